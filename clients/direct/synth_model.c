#include "clients/direct/synth_model.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clients/direct/synth_types.h"
#include "loader/gguf.h"
#include "loader/layout.h"
#include "loader/publish.h"
#include "loader/room.h"
#include "proto/bytes.h"

const char synth_archs[] = "llama, qwen2, qwen3, qwen3moe, gemma2, gemma3";
const char synth_presets[] = "tiny, 1b, 8b, 27b, 30b-a3b, 32b, 70b";
const char synth_types[] =
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q6_K, Q5_K_S/M, Q4_K_S/M, Q3_K_S/M/L, Q2_K, "
    "Q2_K_S, IQ4_XS, IQ4_NL, IQ3_M, IQ3_S, IQ3_XS, IQ3_XXS, IQ2_M, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M, "
    "IQ1_S, TQ1_0, TQ2_0, MXFP4_MOE";

#define ALIGN 32

/* What an architecture adds to the common skeleton. */
struct family {
    const char *name;
    bool qkv_bias, qk_norm, post_norms, experts, rope_freqs;
    float rope_base;
    uint32_t window; /* tokens; 0: none */
};

static const struct family families[] = {
    { .name = "llama", .rope_base = 500000.0f, .rope_freqs = true },
    { .name = "qwen2", .rope_base = 1000000.0f, .qkv_bias = true },
    { .name = "qwen3", .rope_base = 1000000.0f, .qk_norm = true },
    { .name = "qwen3moe", .rope_base = 1000000.0f, .qk_norm = true, .experts = true },
    { .name = "gemma2", .rope_base = 10000.0f, .post_norms = true, .window = 4096 },
    { .name = "gemma3",
      .rope_base = 1000000.0f,
      .qk_norm = true,
      .post_norms = true,
      .window = 1024 },
};

/* Shapes. A row with an architecture is that model as published; the row without is for all others. */
struct shape {
    const char *preset, *arch;
    uint32_t n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab_size, ctx_len;
    bool tied;
    uint32_t n_experts, n_used, expert_dim;
};

static const struct shape shapes[] = {
    { "tiny", NULL, 4, 256, 4, 2, 64, 768, 512, 4096, false, 8, 2, 256 },
    { "1b", "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, true, 0, 0, 0 },
    { "1b", "gemma3", 26, 1152, 4, 1, 256, 6912, 262144, 32768, true, 0, 0, 0 },
    { "1b", NULL, 16, 2048, 32, 8, 64, 8192, 128256, 131072, true, 32, 4, 512 },
    { "8b", "qwen3", 36, 4096, 32, 8, 128, 12288, 151936, 40960, false, 0, 0, 0 },
    { "8b", NULL, 32, 4096, 32, 8, 128, 14336, 128256, 131072, false, 64, 8, 768 },
    { "27b", "gemma2", 46, 4608, 32, 16, 128, 36864, 256000, 8192, true, 0, 0, 0 },
    { "27b", NULL, 62, 5376, 32, 16, 128, 21504, 262208, 131072, true, 128, 8, 768 },
    { "30b-a3b", NULL, 48, 2048, 32, 4, 128, 6144, 151936, 40960, false, 128, 8, 768 },
    { "32b", "qwen3", 64, 5120, 64, 8, 128, 25600, 151936, 40960, false, 0, 0, 0 },
    { "32b", NULL, 64, 5120, 40, 8, 128, 27648, 152064, 131072, false, 128, 8, 768 },
    { "70b", NULL, 80, 8192, 64, 8, 128, 28672, 128256, 131072, false, 128, 8, 1024 },
};

static const struct shape *find_shape(const char *arch, const char *preset)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (strcmp(shapes[i].preset, preset) == 0 &&
            (!shapes[i].arch || strcmp(shapes[i].arch, arch) == 0)) {
            return &shapes[i];
        }
    }
    return NULL;
}

/* ---- the tensors ---- */

struct plan {
    struct synth *synth;
    const struct family *family;
    const struct shape *shape;
    const struct synth_recipe *recipe;
    size_t cap;
    bool failed;
};

__attribute__((format(printf, 6, 7))) static void add(struct plan *p, enum synth_role role,
                                                      uint32_t layer, uint32_t n_dims,
                                                      const uint64_t *ne, const char *format, ...)
{
    struct synth *s = p->synth;
    if (s->n_tensors == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 128;
        void *grown = realloc(s->tensors, cap * sizeof *s->tensors);
        if (!grown) {
            p->failed = true;
            return;
        }
        s->tensors = grown;
        p->cap = cap;
    }
    struct synth_tensor *t = &s->tensors[s->n_tensors++];
    *t = (struct synth_tensor){ .n_dims = n_dims, .ne = { 1, 1, 1, 1 } };
    memcpy(t->ne, ne, n_dims * sizeof *ne);
    va_list args;
    va_start(args, format);
    vsnprintf(t->name, sizeof t->name, format, args);
    va_end(args);
    uint32_t group = p->shape->n_heads / p->shape->n_kv_heads;
    struct synth_place place = { .role = role,
                                 .layer = layer,
                                 .n_layers = p->shape->n_layers,
                                 .group = group,
                                 .n_experts = p->family->experts ? p->shape->n_experts : 0,
                                 .expert = n_dims == 3,
                                 .big = p->shape->n_layers == 80 && group > 1,
                                 .tied = p->shape->tied,
                                 .ne0 = ne[0] };
    t->dtype = synth_recipe_type(p->recipe, &place);
    struct err err;
    int rc = dtype_size(t->dtype, t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3], &t->size_bytes, &err);
    assert(rc == 0);
    t->data_off = s->data_bytes;
    s->data_bytes = align_up(t->data_off + t->size_bytes, ALIGN);
}

#define NE(...)                                                                                    \
    (const uint64_t[])                                                                             \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

static void add_layer(struct plan *p, uint32_t i)
{
    const struct shape *s = p->shape;
    const struct family *f = p->family;
    uint64_t n = s->dim, q = (uint64_t)s->n_heads * s->head_dim,
             kv = (uint64_t)s->n_kv_heads * s->head_dim;
    add(p, SYNTH_PLAIN, i, 1, NE(n), "blk.%" PRIu32 ".attn_norm.weight", i);
    add(p, SYNTH_QK, i, 2, NE(n, q), "blk.%" PRIu32 ".attn_q.weight", i);
    add(p, SYNTH_QK, i, 2, NE(n, kv), "blk.%" PRIu32 ".attn_k.weight", i);
    add(p, SYNTH_V, i, 2, NE(n, kv), "blk.%" PRIu32 ".attn_v.weight", i);
    add(p, SYNTH_O, i, 2, NE(q, n), "blk.%" PRIu32 ".attn_output.weight", i);
    if (f->qkv_bias) {
        add(p, SYNTH_PLAIN, i, 1, NE(q), "blk.%" PRIu32 ".attn_q.bias", i);
        add(p, SYNTH_PLAIN, i, 1, NE(kv), "blk.%" PRIu32 ".attn_k.bias", i);
        add(p, SYNTH_PLAIN, i, 1, NE(kv), "blk.%" PRIu32 ".attn_v.bias", i);
    }
    if (f->qk_norm) {
        add(p, SYNTH_PLAIN, i, 1, NE(s->head_dim), "blk.%" PRIu32 ".attn_q_norm.weight", i);
        add(p, SYNTH_PLAIN, i, 1, NE(s->head_dim), "blk.%" PRIu32 ".attn_k_norm.weight", i);
    }
    if (f->post_norms) {
        add(p, SYNTH_PLAIN, i, 1, NE(n), "blk.%" PRIu32 ".post_attention_norm.weight", i);
    }
    add(p, SYNTH_PLAIN, i, 1, NE(n), "blk.%" PRIu32 ".ffn_norm.weight", i);
    if (f->experts) {
        uint64_t e = s->n_experts, u = s->expert_dim;
        add(p, SYNTH_PLAIN, i, 2, NE(n, e), "blk.%" PRIu32 ".ffn_gate_inp.weight", i);
        add(p, SYNTH_GATE_UP, i, 3, NE(n, u, e), "blk.%" PRIu32 ".ffn_gate_exps.weight", i);
        add(p, SYNTH_GATE_UP, i, 3, NE(n, u, e), "blk.%" PRIu32 ".ffn_up_exps.weight", i);
        add(p, SYNTH_DOWN, i, 3, NE(u, n, e), "blk.%" PRIu32 ".ffn_down_exps.weight", i);
    } else {
        uint64_t u = s->ffn_dim;
        add(p, SYNTH_GATE_UP, i, 2, NE(n, u), "blk.%" PRIu32 ".ffn_gate.weight", i);
        add(p, SYNTH_GATE_UP, i, 2, NE(n, u), "blk.%" PRIu32 ".ffn_up.weight", i);
        add(p, SYNTH_DOWN, i, 2, NE(u, n), "blk.%" PRIu32 ".ffn_down.weight", i);
    }
    if (f->post_norms) {
        add(p, SYNTH_PLAIN, i, 1, NE(n), "blk.%" PRIu32 ".post_ffw_norm.weight", i);
    }
}

static void add_tensors(struct plan *p)
{
    const struct shape *s = p->shape;
    add(p, SYNTH_EMBED, 0, 2, NE(s->dim, s->vocab_size), "token_embd.weight");
    if (p->family->rope_freqs) {
        add(p, SYNTH_PLAIN, 0, 1, NE(s->head_dim / 2), "rope_freqs.weight");
    }
    for (uint32_t i = 0; i < s->n_layers; i++) {
        add_layer(p, i);
    }
    add(p, SYNTH_PLAIN, 0, 1, NE(s->dim), "output_norm.weight");
    if (!s->tied) {
        add(p, SYNTH_OUTPUT, 0, 2, NE(s->dim, s->vocab_size), "output.weight");
    }
}

/* ---- the head: keys, vocabulary, infos ---- */

static void put_u32(FILE *f, uint32_t value)
{
    fwrite(&value, sizeof value, 1, f);
}

static void put_u64(FILE *f, uint64_t value)
{
    fwrite(&value, sizeof value, 1, f);
}

static void put_str(FILE *f, const char *text)
{
    put_u64(f, strlen(text));
    fwrite(text, 1, strlen(text), f);
}

/* The keys are counted as they are written. */
struct keys {
    FILE *f;
    const char *arch;
    uint64_t n;
};

static void key(struct keys *k, const char *name, enum weights_type type)
{
    char full[128];
    snprintf(full, sizeof full, "%s%s", *name == '.' ? k->arch : "", name);
    put_str(k->f, full);
    put_u32(k->f, type);
    k->n++;
}

static void key_str(struct keys *k, const char *name, const char *value)
{
    key(k, name, WEIGHTS_STRING);
    put_str(k->f, value);
}

static void key_u32(struct keys *k, const char *name, uint32_t value)
{
    key(k, name, WEIGHTS_U32);
    put_u32(k->f, value);
}

static void key_f32(struct keys *k, const char *name, float value)
{
    key(k, name, WEIGHTS_F32);
    fwrite(&value, sizeof value, 1, k->f);
}

static void key_bool(struct keys *k, const char *name, bool value)
{
    key(k, name, WEIGHTS_BOOL);
    fputc(value, k->f);
}

static void key_array(struct keys *k, const char *name, enum weights_type elem, uint64_t n)
{
    key(k, name, WEIGHTS_ARRAY);
    put_u32(k->f, elem);
    put_u64(k->f, n);
}

#define N_SPECIAL 3 /* the last ids: end of text, start and end of a turn */

/* A byte as the byte-level alphabet writes it: printable ones stand for themselves, others from U+0100 on. */
static void byte_text(unsigned byte, char text[4])
{
    static const struct {
        unsigned from, to;
    } printable[] = { { 33, 126 }, { 161, 172 }, { 174, 255 } };
    unsigned code = 256, below = 0;
    bool itself = false;
    for (int i = 0; i < 3; i++) {
        itself = itself || (byte >= printable[i].from && byte <= printable[i].to);
        for (unsigned b = printable[i].from; b <= printable[i].to; b++) {
            below += b < byte;
        }
    }
    code = itself ? byte : 256 + byte - below;
    if (code < 0x80) {
        snprintf(text, 4, "%c", (char)code);
    } else {
        snprintf(text, 4, "%c%c", (char)(0xc0 | code >> 6), (char)(0x80 | (code & 0x3f)));
    }
}

/* Token id: 256 bytes, 26 merges of a space and a letter, then words that no merge reaches, then the special ones. */
static void token_text(uint32_t id, uint32_t vocab_size, char text[64])
{
    static const char *const special[N_SPECIAL] = { "<|endoftext|>", "<|im_start|>", "<|im_end|>" };
    char space[4], one[4];
    if (id >= vocab_size - N_SPECIAL) {
        snprintf(text, 64, "%s", special[id - (vocab_size - N_SPECIAL)]);
    } else if (id < 256) {
        byte_text(id, one);
        snprintf(text, 64, "%s", one);
    } else {
        byte_text(' ', space);
        if (id < 256 + 26) {
            snprintf(text, 64, "%s%c", space, (char)('a' + (id - 256)));
            return;
        }
        char word[32];
        size_t n = 0;
        for (uint32_t rest = id; n < 3 || rest; rest /= 26) {
            word[n++] = (char)('a' + rest % 26);
        }
        word[n] = '\0';
        snprintf(text, 64, "%s%s", space, word);
    }
}

static void put_vocabulary(struct keys *k, uint32_t vocab_size)
{
    char text[64], space[4];
    key_str(k, "tokenizer.ggml.model", "gpt2");
    key_str(k, "tokenizer.ggml.pre", "gpt-2");
    key_array(k, "tokenizer.ggml.tokens", WEIGHTS_STRING, vocab_size);
    for (uint32_t id = 0; id < vocab_size; id++) {
        token_text(id, vocab_size, text);
        put_str(k->f, text);
    }
    key_array(k, "tokenizer.ggml.token_type", WEIGHTS_I32, vocab_size);
    for (uint32_t id = 0; id < vocab_size; id++) {
        put_u32(k->f, id >= vocab_size - N_SPECIAL ? 3 : 1); /* control, normal */
    }
    byte_text(' ', space);
    key_array(k, "tokenizer.ggml.merges", WEIGHTS_STRING, 26);
    for (char letter = 'a'; letter <= 'z'; letter++) {
        snprintf(text, sizeof text, "%s %c", space, letter);
        put_str(k->f, text);
    }
    key_u32(k, "tokenizer.ggml.bos_token_id", vocab_size - 3);
    key_u32(k, "tokenizer.ggml.eos_token_id", vocab_size - 1);
    key_u32(k, "tokenizer.ggml.padding_token_id", vocab_size - 3);
    key_bool(k, "tokenizer.ggml.add_bos_token", false);
    key_str(
        k, "tokenizer.chat_template",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
}

static void put_keys(struct keys *k, const struct plan *p, const char *type)
{
    const struct shape *s = p->shape;
    char name[128];
    key_str(k, "general.architecture", p->family->name);
    snprintf(name, sizeof name, "synthetic %s %s %s", p->family->name, s->preset, type);
    key_str(k, "general.name", name);
    key_u32(k, "general.file_type", synth_recipe_id(p->recipe));
    key_u32(k, "general.quantization_version", 2);
    key_u32(k, ".context_length", s->ctx_len);
    key_u32(k, ".embedding_length", s->dim);
    key_u32(k, ".block_count", s->n_layers);
    key_u32(k, ".feed_forward_length", s->ffn_dim);
    key_u32(k, ".attention.head_count", s->n_heads);
    key_u32(k, ".attention.head_count_kv", s->n_kv_heads);
    key_u32(k, ".attention.key_length", s->head_dim);
    key_u32(k, ".attention.value_length", s->head_dim);
    key_f32(k, ".attention.layer_norm_rms_epsilon", 1e-6f);
    key_u32(k, ".rope.dimension_count", s->head_dim);
    key_f32(k, ".rope.freq_base", p->family->rope_base);
    key_u32(k, ".vocab_size", s->vocab_size);
    if (p->family->window) {
        key_u32(k, ".attention.sliding_window", p->family->window);
    }
    if (strcmp(p->family->name, "gemma2") == 0) {
        key_f32(k, ".attn_logit_softcapping", 50.0f);
        key_f32(k, ".final_logit_softcapping", 30.0f);
    }
    if (p->family->experts) {
        key_u32(k, ".expert_count", s->n_experts);
        key_u32(k, ".expert_used_count", s->n_used);
        key_u32(k, ".expert_feed_forward_length", s->expert_dim);
    }
    put_vocabulary(k, s->vocab_size);
}

static int make_head(const struct plan *p, const char *type, struct err *err)
{
    struct synth *s = p->synth;
    FILE *f = open_memstream(&s->head, &s->head_bytes);
    if (!f) {
        return err_set(err, ERR_NO_MEMORY, "no memory for a header");
    }
    struct keys keys = { .f = f, .arch = p->family->name };
    fwrite("GGUF", 1, 4, f);
    put_u32(f, 3);
    put_u64(f, s->n_tensors);
    put_u64(f, 0); /* the number of keys: below */
    put_keys(&keys, p, type);
    for (size_t i = 0; i < s->n_tensors; i++) {
        const struct synth_tensor *t = &s->tensors[i];
        put_str(f, t->name);
        put_u32(f, t->n_dims);
        for (uint32_t d = 0; d < t->n_dims; d++) {
            put_u64(f, t->ne[d]);
        }
        put_u32(f, t->dtype);
        put_u64(f, t->data_off);
    }
    while (ftell(f) % ALIGN) {
        fputc(0, f);
    }
    bool failed = ferror(f);
    if (fclose(f) != 0 || failed) {
        return err_set(err, ERR_NO_MEMORY, "no memory for a header");
    }
    memcpy(s->head + 16, &keys.n, sizeof keys.n);
    return 0;
}

struct synth *synth_create(const char *arch, const char *preset, const char *type, struct err *err)
{
    struct plan p = { .recipe = synth_recipe_find(type), .shape = find_shape(arch, preset) };
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (strcmp(families[i].name, arch) == 0) {
            p.family = &families[i];
        }
    }
    if (!p.family) {
        err_set(err, ERR_USAGE, "architecture %s: there are %s", arch, synth_archs);
        return NULL;
    }
    if (!p.shape) {
        err_set(err, ERR_USAGE, "preset %s: there are %s", preset, synth_presets);
        return NULL;
    }
    if (!p.recipe) {
        err_set(err, ERR_USAGE, "type %s: there are %s", type, synth_types);
        return NULL;
    }
    if (p.family->experts && !p.shape->n_experts) {
        err_set(err, ERR_USAGE, "preset %s has no experts, %s wants some", preset, arch);
        return NULL;
    }
    p.synth = calloc(1, sizeof *p.synth);
    if (!p.synth) {
        err_set(err, ERR_NO_MEMORY, "no memory for a plan");
        return NULL;
    }
    add_tensors(&p);
    if (p.failed) {
        err_set(err, ERR_NO_MEMORY, "no memory for a plan");
    }
    if (p.failed || make_head(&p, type, err) < 0) {
        synth_destroy(&p.synth);
    }
    return p.synth;
}

void synth_destroy(struct synth **s)
{
    if (*s) {
        free((*s)->tensors);
        free((*s)->head);
        free(*s);
        *s = NULL;
    }
}

/* ---- in memory ---- */

static int manifest_of(const struct gguf *g, enum weights_layout layout, struct weights_builder *b,
                       struct err *err)
{
    for (uint64_t i = 0; i < g->n_kvs; i++) {
        const struct gguf_kv *kv = &g->kvs[i];
        if (weights_builder_borrow(b, kv->key, kv->key_len, kv->type, kv->elem, kv->n, kv->data,
                                   kv->size_bytes, false, err) < 0) {
            return -1;
        }
    }
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        if (weights_builder_add_tensor(b, t->name, t->name_len, t->dtype, layout_of(t, layout),
                                       t->n_dims, t->ne, t->data_off, t->size_bytes, err) < 0) {
            return -1;
        }
    }
    return 0;
}

static int fill_all(const struct synth *s, struct publish *p, int fd, struct err *err)
{
    struct weights w;
    if (weights_map(&w, fd, err) < 0) {
        return -1;
    }
    struct layout *layout = layout_create(&w, p->base, err);
    struct synth_filler *filler = synth_filler_create(err);
    int rc = layout && filler ? 0 : -1;
    for (size_t i = 0; rc == 0 && i < s->n_tensors; i++) {
        const struct synth_tensor *t = &s->tensors[i];
        uint64_t at = p->data_off + t->data_off;
        rc = synth_fill(filler, t, t->ne[1] * t->ne[2] * t->ne[3], p->base + at, err);
        if (rc == 0) {
            publish_advance(p, layout_advance(layout, t->data_off + t->size_bytes));
        }
    }
    synth_filler_destroy(&filler);
    layout_destroy(&layout);
    weights_unmap(&w);
    return rc;
}

/* fill: with its data; else the data section has its size and no bytes. */
static int load(const char *arch, const char *preset, const char *type, enum weights_layout layout,
                bool fill, struct weights *out, struct err *err)
{
    *out = (struct weights){ 0 };
    struct gguf g = { 0 };
    struct head head;
    struct publish publish = { .fd = -1 };
    struct weights_builder *b = NULL;
    int fd = -1, rc = -1;
    struct synth *s = synth_create(arch, preset, type, err);
    if (!s) {
        return -1;
    }
    /* The head is judged as a file of the whole size; only its leading bytes are looked at. */
    head_init_bytes(&head, (uint8_t *)s->head, s->head_bytes);
    head.file_size = s->head_bytes + s->data_bytes;
    int meminfo = room_open();
    int fits = fill ? room_check(meminfo, s->data_bytes, ROOM_NO_BUDGET, err) : 0;
    if (meminfo >= 0) {
        close(meminfo);
    }
    if (fits < 0 || gguf_parse(&g, &head, err) < 0 || !(b = weights_builder_create(err)) ||
        manifest_of(&g, layout, b, err) < 0) {
        goto end;
    }
    fd = memfd_create("hearth-synth", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        err_set_errno(err, ERR_NO_MEMORY, "memfd");
        goto end;
    }
    if (publish_begin(&publish, fd, b, g.data_off, g.data_bytes, g.digest, g.version, err) < 0 ||
        (fill && fill_all(s, &publish, fd, err) < 0)) {
        goto end;
    }
    rc = weights_map(out, fd, err);
end:
    weights_builder_destroy(&b);
    publish_end(&publish);
    gguf_clear(&g);
    if (fd >= 0) {
        close(fd);
    }
    synth_destroy(&s);
    return rc;
}

int synth_load(const char *arch, const char *preset, const char *type, enum weights_layout layout,
               struct weights *out, struct err *err)
{
    return load(arch, preset, type, layout, true, out, err);
}

int synth_open_manifest(const char *arch, const char *preset, const char *type, struct weights *out,
                        struct err *err)
{
    return load(arch, preset, type, WEIGHTS_LAYOUT_FILE, false, out, err);
}
