#include "tests/worker/tiny.h"

#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/bytes.h"
#include "tests/test.h"
#include "worker/quant.h"

#define TENSORS_MAX 128
#define TINY_RANK   20

const struct tiny tiny_default = { .n_layers = 3,
                                   .dim = 64,
                                   .n_heads = 4,
                                   .n_kv_heads = 2,
                                   .head_dim = 32,
                                   .ffn_dim = 96,
                                   .vocab_size = 80,
                                   .dtype = DTYPE_F32 };

struct plan {
    char name[64];
    enum dtype dtype;
    uint64_t ne[3], off, size_bytes;
};

struct tiny_build {
    const struct tiny *t;
    struct weights_builder *b;
    struct plan plans[TENSORS_MAX];
    uint32_t n;
    uint64_t data_bytes;
    uint64_t random;
};

static size_t key_of(const struct tiny *t, const char *name, char key[96])
{
    int n = snprintf(key, 96, "%s.%s", t->arch ? t->arch : "llama", name);
    assert_in_range(n, 1, 95);
    return (size_t)n;
}

static void add_u32(struct tiny_build *s, const char *name, uint32_t value)
{
    char key[96];
    struct err err = { 0 };
    size_t n = key_of(s->t, name, key);
    if (s->t->omit_key && strcmp(s->t->omit_key, name) == 0) {
        return;
    }
    assert_ok(weights_builder_add(s->b, key, n, WEIGHTS_U32, WEIGHTS_U32, 1, &value, &err), err);
}

static void add_f32(struct tiny_build *s, const char *name, float value)
{
    char key[96];
    struct err err = { 0 };
    size_t n = key_of(s->t, name, key);
    assert_ok(weights_builder_add(s->b, key, n, WEIGHTS_F32, WEIGHTS_F32, 1, &value, &err), err);
}

static void plan_tensor(struct tiny_build *s, const char *name, enum dtype dtype, uint64_t k,
                        uint64_t m, uint64_t e)
{
    struct err err = { 0 };
    if (s->t->omit && strcmp(s->t->omit, name) == 0) {
        return;
    }
    if (s->t->bend && strcmp(s->t->bend, name) == 0) {
        m--;
    }
    assert_true(s->n < TENSORS_MAX);
    struct plan *p = &s->plans[s->n++];
    *p = (struct plan){ .dtype = dtype, .ne = { k, m, e }, .off = s->data_bytes };
    snprintf(p->name, sizeof p->name, "%s", name);
    assert_ok(dtype_size(dtype, k * m * e, &p->size_bytes, &err), err);
    s->data_bytes = align_up(p->off + p->size_bytes, 32);
    uint32_t n_dims = e > 1 ? 3 : m > 1 ? 2 : 1;
    assert_ok(weights_builder_add_tensor(s->b, name, strlen(name), dtype, WEIGHTS_LAYOUT_FILE,
                                         n_dims, p->ne, p->off, p->size_bytes, &err),
              err);
}

static void plan_layer_tensor(struct tiny_build *s, uint32_t i, const char *part, enum dtype dtype,
                              uint64_t k, uint64_t m, uint64_t e)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%u.%s.weight", i, part);
    plan_tensor(s, name, dtype, k, m, e);
}

static void plan_experts(struct tiny_build *s, uint32_t i, const char *part, uint64_t k, uint64_t m)
{
    char one[32];
    if (!s->t->single_experts) {
        snprintf(one, sizeof one, "%s_exps", part);
        plan_layer_tensor(s, i, one, s->t->dtype, k, m, s->t->n_experts);
        return;
    }
    for (uint32_t e = 0; e < s->t->n_experts; e++) {
        snprintf(one, sizeof one, "%s.%u", part, e);
        plan_layer_tensor(s, i, one, s->t->dtype, k, m, 1);
        s->data_bytes += 32 * e;
    }
}

static void plan_bias(struct tiny_build *s, uint32_t i, const char *part, uint64_t n)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%u.%s.bias", i, part);
    if (s->t->biases) {
        plan_tensor(s, name, DTYPE_F32, n, 1, 1);
    }
}

static void plan_low_rank(struct tiny_build *s, uint32_t i, const char *part, uint64_t k,
                          uint64_t m)
{
    char name[64];
    for (int b = 0; s->t->adapted && b < 2; b++) {
        snprintf(name, sizeof name, "blk.%u.%s.weight.lora_%c", i, part, "ab"[b]);
        plan_tensor(s, name, DTYPE_F16, b ? TINY_RANK : k, b ? m : TINY_RANK, 1);
    }
}

static void plan_layer(struct tiny_build *s, uint32_t i)
{
    const struct tiny *t = s->t;
    uint32_t d = t->head_dim, e = t->n_experts;
    plan_layer_tensor(s, i, "attn_norm", DTYPE_F32, t->dim, 1, 1);
    plan_layer_tensor(s, i, "attn_q", t->dtype, t->dim, t->n_heads * d, 1);
    plan_layer_tensor(s, i, "attn_k", t->dtype, t->dim, t->n_kv_heads * d, 1);
    plan_layer_tensor(s, i, "attn_v", t->dtype, t->dim, t->n_kv_heads * d, 1);
    plan_low_rank(s, i, "attn_q", t->dim, t->n_heads * d);
    plan_low_rank(s, i, "ffn_down", t->ffn_dim, t->dim);
    plan_bias(s, i, "attn_q", t->n_heads * d);
    plan_bias(s, i, "attn_k", t->n_kv_heads * d);
    plan_bias(s, i, "attn_v", t->n_kv_heads * d);
    plan_layer_tensor(s, i, "attn_output", t->dtype, t->n_heads * d, t->dim, 1);
    plan_layer_tensor(s, i, "ffn_norm", DTYPE_F32, t->dim, 1, 1);
    if (e) {
        plan_layer_tensor(s, i, "ffn_gate_inp", DTYPE_F32, t->dim, e, 1);
        plan_experts(s, i, "ffn_gate", t->dim, t->ffn_dim);
        plan_experts(s, i, "ffn_up", t->dim, t->ffn_dim);
        plan_experts(s, i, "ffn_down", t->ffn_dim, t->dim);
        return;
    }
    plan_layer_tensor(s, i, "ffn_gate", t->dtype, t->dim, t->ffn_dim, 1);
    plan_layer_tensor(s, i, "ffn_up", t->dtype, t->dim, t->ffn_dim, 1);
    plan_layer_tensor(s, i, "ffn_down", t->dtype, t->ffn_dim, t->dim, 1);
}

static void add_keys(struct tiny_build *s)
{
    const struct tiny *t = s->t;
    struct err err = { 0 };
    const char *arch = t->arch ? t->arch : "llama", *key = "general.architecture";
    const uint64_t end = strlen(arch);
    assert_ok(
        weights_builder_add_strings(s->b, key, strlen(key), WEIGHTS_STRING, 1, arch, &end, &err),
        err);
    add_u32(s, "context_length", 512);
    add_u32(s, "embedding_length", t->dim);
    add_u32(s, "block_count", t->n_layers);
    add_u32(s, "feed_forward_length", t->ffn_dim);
    add_u32(s, "attention.head_count", t->n_heads);
    add_u32(s, "attention.head_count_kv", t->n_kv_heads);
    add_u32(s, "attention.key_length", t->head_dim);
    add_u32(s, "attention.value_length", t->head_dim);
    add_f32(s, "attention.layer_norm_rms_epsilon", 1e-5f);
    if (t->n_experts) {
        add_u32(s, "expert_count", t->n_experts);
        add_u32(s, "expert_used_count", 2);
    }
    for (int i = 0; t->adapted && i < 2; i++) {
        const char *name = i ? "hearth.lora.alpha" : "hearth.lora.scale";
        const float value = i ? 10.0f : 0.75f;
        assert_ok(weights_builder_add(s->b, name, strlen(name), WEIGHTS_F32, WEIGHTS_F32, 1, &value,
                                      &err),
                  err);
    }
    if (t->window) {
        add_u32(s, "attention.sliding_window", t->window);
    }
}

static float next_random(struct tiny_build *s)
{
    s->random = s->random * 6364136223846793005ull + 1442695040888963407ull;
    return (float)(int32_t)(s->random >> 32) / 2147483648.0f;
}

static void fill(struct tiny_build *s, uint8_t *data)
{
    struct err err = { 0 };
    for (uint32_t i = 0; i < s->n; i++) {
        const struct plan *p = &s->plans[i];
        uint64_t n = p->ne[0] * p->ne[1] * p->ne[2];
        float *values = malloc(n * sizeof *values);
        assert_non_null(values);
        bool vector = p->ne[1] == 1;
        for (uint64_t j = 0; j < n; j++) {
            values[j] = vector ? 1.0f + 0.2f * next_random(s) : 0.2f * next_random(s);
        }
        assert_ok(quant_encode(p->dtype, values, n, data + p->off, &err), err);
        free(values);
    }
}

void tiny_map(const struct tiny *t, struct weights *w)
{
    struct err err = { 0 };
    uint64_t data_off;
    struct tiny_build s = { .t = t, .random = 42 };
    int fd = memfd_create("tiny", MFD_CLOEXEC);
    assert_true(fd >= 0);
    s.b = weights_builder_create(&err);
    assert_non_null(s.b);
    add_keys(&s);
    plan_tensor(&s, "token_embd.weight", t->dtype, t->dim, t->vocab_size, 1);
    plan_tensor(&s, "output_norm.weight", DTYPE_F32, t->dim, 1, 1);
    for (uint32_t i = 0; i < t->n_layers; i++) {
        plan_layer(&s, i);
    }
    if (t->untied) {
        plan_tensor(&s, "output.weight", t->dtype, t->dim, t->vocab_size, 1);
    }
    assert_ok(weights_builder_write(s.b, fd, 0, s.data_bytes, 1234, 3, &data_off, &err), err);
    weights_builder_destroy(&s.b);
    uint8_t *base = mmap(NULL, data_off + s.data_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(base != MAP_FAILED);
    fill(&s, base + data_off);
    weights_advance((struct weights_header *)(void *)base, s.data_bytes);
    munmap(base, data_off + s.data_bytes);
    assert_ok(weights_map(w, fd, &err), err);
    close(fd);
}
