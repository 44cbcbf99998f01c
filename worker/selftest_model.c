/* The model of a device's self-test, laid into an anonymous segment as a load would: llama with four layers, its 28 matrices
 * of all common types in turn. */
#include "worker/selftest.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/bytes.h"
#include "worker/quant_random.h"

#define DIM      256u /* whole blocks of every type */
#define FFN      256u
#define HEADS    4u
#define KV_HEADS 2u
#define HEAD_DIM 64u
#define LAYERS   4u
#define VOCAB    64u
#define TENSORS  (LAYERS * 9 + 3)

static const enum dtype types[] = {
    DTYPE_Q8_0,   DTYPE_Q4_K, DTYPE_Q6_K,   DTYPE_Q5_K,  DTYPE_IQ3_S,   DTYPE_IQ4_XS,
    DTYPE_F16,    DTYPE_Q3_K, DTYPE_Q2_K,   DTYPE_Q4_0,  DTYPE_IQ3_XXS, DTYPE_IQ2_S,
    DTYPE_IQ4_NL, DTYPE_BF16, DTYPE_IQ2_XS, DTYPE_Q4_1,  DTYPE_IQ2_XXS, DTYPE_Q5_0,
    DTYPE_IQ1_S,  DTYPE_Q5_1, DTYPE_MXFP4,  DTYPE_TQ2_0, DTYPE_IQ1_M,   DTYPE_TQ1_0,
};

/* The parts of a layer; rows 0: a vector of f32. */
static const struct part {
    const char *name;
    uint64_t k, m;
} parts[] = {
    { "attn_norm", DIM, 0 },
    { "attn_q", DIM, HEADS *HEAD_DIM },
    { "attn_k", DIM, KV_HEADS *HEAD_DIM },
    { "attn_v", DIM, KV_HEADS *HEAD_DIM },
    { "attn_output", HEADS *HEAD_DIM, DIM },
    { "ffn_norm", DIM, 0 },
    { "ffn_gate", DIM, FFN },
    { "ffn_up", DIM, FFN },
    { "ffn_down", FFN, DIM },
};

struct place {
    enum dtype dtype;
    uint64_t k, m, off;
};

struct build {
    struct weights_builder *builder;
    struct place places[TENSORS];
    uint32_t n, n_matrices;
    uint64_t data_bytes;
};

static int add_tensor(struct build *s, const char *name, uint64_t k, uint64_t m, struct err *err)
{
    struct place *p = &s->places[s->n++];
    uint64_t size_bytes, rows = m ? m : 1;
    enum dtype dtype = m ? types[s->n_matrices++ % (sizeof types / sizeof *types)] : DTYPE_F32;
    *p = (struct place){ dtype, k, rows, s->data_bytes };
    if (dtype_size(dtype, k * rows, &size_bytes, err) < 0) {
        return -1;
    }
    s->data_bytes = align_up(p->off + size_bytes, 32);
    return weights_builder_add_tensor(s->builder, name, strlen(name), dtype, WEIGHTS_LAYOUT_FILE,
                                      m ? 2 : 1, (uint64_t[]){ k, rows, 1, 1 }, p->off, size_bytes,
                                      err);
}

static int add_tensors(struct build *s, struct err *err)
{
    char name[64];
    if (add_tensor(s, "token_embd.weight", DIM, VOCAB, err) < 0 ||
        add_tensor(s, "output_norm.weight", DIM, 0, err) < 0) {
        return -1;
    }
    for (uint32_t i = 0; i < LAYERS; i++) {
        for (size_t j = 0; j < sizeof parts / sizeof *parts; j++) {
            snprintf(name, sizeof name, "blk.%u.%s.weight", i, parts[j].name);
            if (add_tensor(s, name, parts[j].k, parts[j].m, err) < 0) {
                return -1;
            }
        }
    }
    return add_tensor(s, "output.weight", DIM, VOCAB, err);
}

static int add_keys(struct weights_builder *b, struct err *err)
{
    static const char arch_key[] = "general.architecture", arch[] = "llama";
    static const char epsilon_key[] = "llama.attention.layer_norm_rms_epsilon";
    static const uint64_t arch_end = sizeof arch - 1;
    static const float epsilon = 1e-5f;
    static const struct {
        const char *key;
        uint32_t value;
    } keys[] = {
        { "llama.context_length", 512 },
        { "llama.embedding_length", DIM },
        { "llama.block_count", LAYERS },
        { "llama.feed_forward_length", FFN },
        { "llama.attention.head_count", HEADS },
        { "llama.attention.head_count_kv", KV_HEADS },
        { "llama.attention.key_length", HEAD_DIM },
        { "llama.attention.value_length", HEAD_DIM },
    };
    int rc = weights_builder_add_strings(b, arch_key, sizeof arch_key - 1, WEIGHTS_STRING, 1, arch,
                                         &arch_end, err);
    for (size_t i = 0; i < sizeof keys / sizeof *keys && rc == 0; i++) {
        rc = weights_builder_add(b, keys[i].key, strlen(keys[i].key), WEIGHTS_U32, WEIGHTS_U32, 1,
                                 &keys[i].value, err);
    }
    return rc < 0 ? rc
                  : weights_builder_add(b, epsilon_key, sizeof epsilon_key - 1, WEIGHTS_F32,
                                        WEIGHTS_F32, 1, &epsilon, err);
}

/* Norms near 1; matrices that keep the size of what passes through them. */
static int fill(const struct build *s, uint8_t *data, struct err *err)
{
    uint64_t random = 20260101;
    for (uint32_t i = 0; i < s->n; i++) {
        const struct place *p = &s->places[i];
        const struct dtype_info *info = dtype_get(p->dtype);
        uint64_t n_blocks = p->k * p->m / info->block_values;
        uint8_t *to = data + p->off;
        if (p->m == 1) {
            for (uint64_t j = 0; j < p->k; j++) {
                float value = 1.0f + 0.1f * quant_random_normal(&random);
                memcpy(to + j * sizeof value, &value, sizeof value);
            }
            continue;
        }
        uint8_t *blocks = malloc(n_blocks * info->block_bytes + 8);
        int rc = blocks ? quant_random_blocks(p->dtype, n_blocks, 1 / sqrt((double)p->k), &random,
                                              blocks, err)
                        : err_set(err, ERR_NO_MEMORY, "self-test: weights");
        if (rc == 0) {
            memcpy(to, blocks, n_blocks * info->block_bytes);
        }
        free(blocks);
        if (rc < 0) {
            return -1;
        }
    }
    return 0;
}

static int lay_out(struct build *s, int fd, struct weights *w, struct err *err)
{
    uint64_t data_off;
    s->builder = weights_builder_create(err);
    if (!s->builder || add_keys(s->builder, err) < 0 || add_tensors(s, err) < 0 ||
        weights_builder_write(s->builder, fd, 0, s->data_bytes, 0, 3, &data_off, err) < 0) {
        return -1;
    }
    size_t size = data_off + s->data_bytes;
    uint8_t *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return err_set_errno(err, ERR_NO_MEMORY, "self-test: weights");
    }
    int rc = fill(s, base + data_off, err);
    weights_advance((struct weights_header *)(void *)base, s->data_bytes);
    munmap(base, size);
    return rc < 0 ? rc : weights_map(w, fd, err);
}

int selftest_model(struct weights *w, struct err *err)
{
    struct build s = { 0 };
    int fd = memfd_create("hearth self-test", MFD_CLOEXEC);
    if (fd < 0) {
        return err_set_errno(err, ERR_IO, "self-test: memory");
    }
    int rc = lay_out(&s, fd, w, err);
    weights_builder_destroy(&s.builder);
    close(fd);
    return rc;
}
