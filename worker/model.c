/* Binding: metadata into numbers, names into matrices, in the order of the file's own structure. Everything that
 * the file could say wrongly is checked here once; forward.c then trusts its struct model. */
#include "worker/model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/bytes.h"

#define NAME_MAX_BYTES 128
#define DIM_MAX        (1u << 24) /* any width of a model: far beyond what exists, far below overflow */
#define EXPERTS_MAX    1024
#define KV_FORMAT      1 /* counted up when the meaning of a page changes */
#define KEY_REQUIRED   UINT64_MAX
#define PI             3.14159265358979323846

struct bind {
    const struct weights *w;
    struct backend *backend;
    const struct model_options *options;
    struct model *m;
    struct err *err;
    uint64_t data_end; /* of the tensors bound since it was last reset */
};

/* ---- keys ---- */

static const struct weights_kv *find_key(struct bind *b, const char *name)
{
    char key[NAME_MAX_BYTES];
    snprintf(key, sizeof key, "%s.%s", b->m->arch->name, name);
    return weights_find_kv(b->w, key);
}

/* Element i of a key that may be a scalar (the same for every i) or an array. */
static int key_u32_at(struct bind *b, const char *name, uint64_t i, uint64_t fallback,
                      uint32_t *out)
{
    const struct weights_kv *kv = find_key(b, name);
    uint64_t value = fallback;
    if (!kv && fallback == KEY_REQUIRED) {
        return err_set(b->err, ERR_BAD_FILE, "key %s.%s is missing", b->m->arch->name, name);
    }
    if (kv && (!weights_kv_u64(kv, kv->type == WEIGHTS_ARRAY ? i : 0, &value) || value > DIM_MAX)) {
        return err_set(b->err, ERR_BAD_FILE, "key %s: element %llu is no number up to %u", kv->key,
                       (unsigned long long)i, DIM_MAX);
    }
    *out = (uint32_t)value;
    return 0;
}

static int key_u32(struct bind *b, const char *name, uint64_t fallback, uint32_t *out)
{
    return key_u32_at(b, name, 0, fallback, out);
}

static int key_f64(struct bind *b, const char *name, double fallback, double *out)
{
    const struct weights_kv *kv = find_key(b, name);
    *out = fallback;
    if (kv && (!weights_kv_f64(kv, 0, out) || !isfinite(*out))) {
        return err_set(b->err, ERR_BAD_FILE, "key %s is no number", kv->key);
    }
    if (!kv && isnan(fallback)) {
        return err_set(b->err, ERR_BAD_FILE, "key %s.%s is missing", b->m->arch->name, name);
    }
    return 0;
}

static int key_f32(struct bind *b, const char *name, double fallback, float *out)
{
    double value;
    if (key_f64(b, name, fallback, &value) < 0) {
        return -1;
    }
    *out = (float)value;
    return 0;
}

static bool key_is(struct bind *b, const char *name, const char *text)
{
    const struct weights_kv *kv = find_key(b, name);
    const char *value;
    size_t len;
    return kv && weights_kv_str(kv, 0, &value, &len) && len == strlen(text) &&
           memcmp(value, text, len) == 0;
}

/* ---- tensors ---- */

enum want { WANT_OPTIONAL, WANT_REQUIRED };

/* A matrix [k, m, n_experts]; m or n_experts 0: whatever the file has. */
static int bind_matrix(struct bind *b, const char *name, uint32_t k, uint32_t m, uint32_t n_experts,
                       enum want want, struct matrix *out)
{
    const struct weights_tensor *t = weights_find_tensor(b->w, name);
    *out = (struct matrix){ 0 };
    if (!t) {
        return want == WANT_REQUIRED ? err_set(b->err, ERR_BAD_FILE, "tensor %s is missing", name)
                                     : 0;
    }
    if (b->backend->ops->import(b->backend, t, out, b->err) < 0) {
        return -1;
    }
    if (out->k != k || (m && out->m != m) || (n_experts && out->n_experts != n_experts) ||
        out->m == 0 || out->m > DIM_MAX || out->n_experts == 0) {
        return err_set(b->err, ERR_BAD_FILE, "tensor %s: %s [%u, %u, %u], expected [%u, %u, %u]",
                       name, dtype_get(t->dtype)->name, out->k, out->m, out->n_experts, k, m,
                       n_experts);
    }
    if (b->backend->ops->check_matrix(b->backend, out, b->err) < 0) {
        return -1;
    }
    b->data_end = t->data_end > b->data_end ? t->data_end : b->data_end;
    return 0;
}

/* n f32 values in any shape. */
static int bind_vector(struct bind *b, const char *name, uint64_t n, enum want want,
                       const float **out)
{
    const struct weights_tensor *t = weights_find_tensor(b->w, name);
    struct matrix m;
    *out = NULL;
    if (!t) {
        return want == WANT_REQUIRED ? err_set(b->err, ERR_BAD_FILE, "tensor %s is missing", name)
                                     : 0;
    }
    if (t->dtype != DTYPE_F32) {
        return err_set(b->err, ERR_UNSUPPORTED, "tensor %s: type %s, a vector must be F32", name,
                       dtype_get(t->dtype)->name);
    }
    if (t->size_bytes != n * sizeof(float)) {
        return err_set(b->err, ERR_BAD_FILE, "tensor %s: F32 [%llu, %llu, %llu], expected [%llu]",
                       name, (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                       (unsigned long long)t->ne[2], (unsigned long long)n);
    }
    if (b->backend->ops->import(b->backend, t, &m, b->err) < 0) {
        return -1;
    }
    if ((uintptr_t)m.data % _Alignof(float) != 0) {
        return err_set(b->err, ERR_BAD_FILE, "tensor %s: data is not aligned to 4 bytes", name);
    }
    *out = (const float *)(const void *)m.data;
    b->data_end = t->data_end > b->data_end ? t->data_end : b->data_end;
    return 0;
}

static void __attribute__((format(printf, 2, 3)))
name_of(char out[NAME_MAX_BYTES], const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(out, NAME_MAX_BYTES, format, args);
    va_end(args);
}

static bool has(struct bind *b, uint32_t i, const char *part)
{
    char name[NAME_MAX_BYTES];
    name_of(name, "blk.%u.%s", i, part);
    return weights_find_tensor(b->w, name) != NULL;
}

static int layer_matrix(struct bind *b, uint32_t i, const char *part, uint32_t k, uint32_t m,
                        uint32_t n_experts, enum want want, struct matrix *out)
{
    char name[NAME_MAX_BYTES];
    name_of(name, "blk.%u.%s.weight", i, part);
    return bind_matrix(b, name, k, m, n_experts, want, out);
}

static int layer_vector(struct bind *b, uint32_t i, const char *part, uint64_t n, enum want want,
                        const float **out)
{
    char name[NAME_MAX_BYTES];
    name_of(name, "blk.%u.%s", i, part);
    return bind_vector(b, name, n, want, out);
}

/* A matrix with its optional bias. */
static int layer_linear(struct bind *b, uint32_t i, const char *part, uint32_t k, uint32_t m,
                        enum want want, struct model_linear *out)
{
    char name[NAME_MAX_BYTES];
    if (layer_matrix(b, i, part, k, m, 1, want, &out->w) < 0) {
        return -1;
    }
    name_of(name, "blk.%u.%s.bias", i, part);
    return out->w.data ? bind_vector(b, name, out->w.m, WANT_OPTIONAL, &out->bias) : 0;
}

static int bind_norm(struct bind *b, const char *name, uint64_t n, enum want want,
                     struct model_norm *out)
{
    char full[NAME_MAX_BYTES];
    name_of(full, "%s.weight", name);
    if (bind_vector(b, full, n, want, &out->w) < 0) {
        return -1;
    }
    out->present = out->w != NULL;
    name_of(full, "%s.bias", name);
    return b->m->arch->norm == OP_NORM_LAYER ? bind_vector(b, full, n, WANT_OPTIONAL, &out->b) : 0;
}

static int layer_norm(struct bind *b, uint32_t i, const char *part, uint64_t n, enum want want,
                      struct model_norm *out)
{
    char name[NAME_MAX_BYTES];
    name_of(name, "blk.%u.%s", i, part);
    return bind_norm(b, name, n, want, out);
}

/* ---- rotary positions ---- */

/* The factor tensor's values, on the host; NULL when there is none. */
static int rope_factors(struct bind *b, const char *name, uint32_t n_pairs, const float **out)
{
    const struct weights_tensor *t = weights_find_tensor(b->w, name);
    const struct model_wait *wait = &b->options->wait;
    *out = NULL;
    if (!t) {
        return 0;
    }
    if (t->dtype != DTYPE_F32 || t->ne[0] != n_pairs || (uintptr_t)t->data % 4 != 0) {
        return err_set(b->err, ERR_BAD_FILE, "tensor %s: %s [%llu], expected F32 [%u]", name,
                       dtype_get(t->dtype)->name, (unsigned long long)t->ne[0], n_pairs);
    }
    if (wait->wait && wait->wait(wait->arg, t->data_end, b->err) < 0) {
        return -1;
    }
    *out = (const float *)(const void *)t->data;
    for (uint32_t j = 0; j < n_pairs; j++) {
        if (!((*out)[j] > 0.0f)) {
            return err_set(b->err, ERR_BAD_FILE, "tensor %s: factor %u is %g", name, j,
                           (double)(*out)[j]);
        }
    }
    return 0;
}

struct rope_scaling {
    double scale; /* 1 / factor; 1: none */
    bool yarn;
    double orig_ctx, attn_factor, log_multiplier, beta_fast, beta_slow, ext;
};

static int read_scaling(struct bind *b, struct rope_scaling *s)
{
    double factor, attn, yarn_attn;
    bool none = key_is(b, "rope.scaling.type", "none");
    s->yarn = key_is(b, "rope.scaling.type", "yarn");
    if (key_f64(b, "rope.scale_linear", 0.0, &factor) < 0 ||
        key_f64(b, "rope.scaling.factor", factor, &factor) < 0 ||
        key_f64(b, "rope.scaling.original_context_length", b->m->train_ctx_len, &s->orig_ctx) < 0 ||
        key_f64(b, "rope.scaling.attn_factor", 1.0, &attn) < 0 ||
        key_f64(b, "rope.scaling.yarn_attn_factor", 1.0, &yarn_attn) < 0 ||
        key_f64(b, "rope.scaling.yarn_log_multiplier", 0.0, &s->log_multiplier) < 0 ||
        key_f64(b, "rope.scaling.yarn_beta_fast", 32.0, &s->beta_fast) < 0 ||
        key_f64(b, "rope.scaling.yarn_beta_slow", 1.0, &s->beta_slow) < 0 ||
        key_f64(b, "rope.scaling.yarn_ext_factor", 1.0, &s->ext) < 0) {
        return -1;
    }
    if (factor < 0.0 || s->orig_ctx <= 0.0 || s->beta_fast <= 0.0 || s->beta_slow <= 0.0) {
        return err_set(b->err, ERR_BAD_FILE, "keys %s.rope.scaling.*: out of range",
                       b->m->arch->name);
    }
    s->scale = factor == 0.0 || none ? 1.0 : 1.0 / factor;
    s->attn_factor = s->yarn ? attn * yarn_attn : attn;
    return 0;
}

/* g(k) of the YaRN magnitude. */
static double yarn_gain(double k, double scale)
{
    return scale < 1.0 ? 1.0 + 0.1 * k * log(1.0 / scale) : 1.0;
}

static double yarn_magnitude(const struct arch *arch, const struct rope_scaling *s)
{
    if (arch->flags & ARCH_MLA) {
        return s->attn_factor; /* the score scale carries it */
    }
    double gain = yarn_gain(1.0, s->scale);
    return s->attn_factor *
           (s->log_multiplier != 0.0 ? gain / yarn_gain(s->log_multiplier, s->scale) : gain);
}

/* Appends a table of frequencies; *index is its place in m->ropes, an equal one is used again. */
static int add_rope(struct bind *b, double base, uint32_t n_rot, bool scaled, const float *factors,
                    int *index)
{
    struct model *m = b->m;
    struct rope_scaling s;
    if (read_scaling(b, &s) < 0) {
        return -1;
    }
    if (base <= 1.0 || n_rot < 2 || n_rot % 2 != 0 || n_rot > DIM_MAX ||
        m->n_ropes == MODEL_ROPES_MAX) {
        return err_set(b->err, ERR_BAD_FILE, "rope: base %g over %u components", base, n_rot);
    }
    struct model_rope *r = &m->ropes[m->n_ropes];
    r->n_pairs = n_rot / 2;
    r->freq = malloc(r->n_pairs * sizeof *r->freq);
    if (!r->freq) {
        return err_set(b->err, ERR_NO_MEMORY, "rope");
    }
    m->n_ropes++;
    r->mag = s.attn_factor;
    double scale = scaled ? s.scale : 1.0, low = 0.0, high = 0.0;
    bool yarn = scaled && s.yarn;
    if (yarn) {
        low = floor(n_rot * log(s.orig_ctx / (2 * PI * s.beta_fast)) / (2 * log(base)));
        high = ceil(n_rot * log(s.orig_ctx / (2 * PI * s.beta_slow)) / (2 * log(base)));
        low = fmax(0.0, low);
        high = fmin(n_rot - 1.0, high);
        r->mag = yarn_magnitude(m->arch, &s);
    }
    for (uint32_t j = 0; j < r->n_pairs; j++) {
        double f = pow(base, -2.0 * j / n_rot) / (factors ? (double)factors[j] : 1.0);
        double keep = 0.0;
        if (yarn) {
            double t = (j - low) / fmax(0.001, high - low);
            keep = s.ext * (1.0 - fmin(1.0, fmax(0.0, t)));
        }
        r->freq[j] = f * (scale * (1.0 - keep) + keep);
    }
    *index = (int)m->n_ropes - 1;
    return 0;
}

/* Several position axes, for images: text gives all of them the same position but the last, whose pairs stay (IMROPE, with
 * rope.dimension_sections [s0, s1, s2, s3]). Sections of ordinary files leave the last axis nothing. */
static int still_last_axis(struct bind *b, int rope)
{
    uint32_t s[3];
    if (!find_key(b, "rope.dimension_sections")) {
        return 0;
    }
    for (uint32_t i = 0; i < 3; i++) {
        if (key_u32_at(b, "rope.dimension_sections", i, 0, &s[i]) < 0) {
            return -1;
        }
    }
    struct model_rope *r = &b->m->ropes[rope];
    for (uint32_t j = 0; j < r->n_pairs; j++) {
        if (j >= 3 * s[j % 3]) {
            r->freq[j] = 0.0;
        }
    }
    return 0;
}

/* The tables of a model: [0] for full layers, [1] for window layers where these differ. */
static int bind_ropes(struct bind *b, uint32_t k_dim, int ropes[2])
{
    struct model *m = b->m;
    const struct arch *a = m->arch;
    double base, base_swa, orig;
    uint32_t n_rot, n_rot_swa;
    const float *factors = NULL;
    ropes[0] = ropes[1] = -1;
    if (a->rope == ARCH_ROPE_LEARNED) {
        return 0;
    }
    if (key_f64(b, "rope.freq_base", a->flags & ARCH_GEMMA4 ? 1e6 : 10000.0, &base) < 0 ||
        key_u32(b, "rope.dimension_count", k_dim, &n_rot) < 0 ||
        key_f64(b, "rope.freq_base_swa", 10000.0, &base_swa) < 0 ||
        key_f64(b, "rope.scaling.original_context_length", m->train_ctx_len, &orig) < 0 ||
        rope_factors(b, "rope_freqs.weight", n_rot / 2, &factors) < 0) {
        return -1;
    }
    const char *longrope = m->ctx_len > orig ? "rope_factors_long.weight"
                                             : "rope_factors_short.weight";
    if (!factors && rope_factors(b, longrope, n_rot / 2, &factors) < 0) {
        return -1;
    }
    if (add_rope(b, base, n_rot, true, factors, &ropes[0]) < 0) {
        return -1;
    }
    ropes[1] = ropes[0];
    if ((a->flags & ARCH_INTERLEAVED_HEADS) && still_last_axis(b, ropes[0]) < 0) {
        return -1;
    }
    if (a->flags & ARCH_GEMMA4) {
        uint32_t d;
        if (key_u32(b, "attention.key_length_swa", k_dim, &d) < 0 ||
            key_u32(b, "rope.dimension_count_swa", d, &n_rot_swa) < 0) {
            return -1;
        }
        return add_rope(b, base_swa, n_rot_swa, false, NULL, &ropes[1]);
    }
    if (a->flags & ARCH_LOCAL_ROPE) {
        return add_rope(b, base_swa, n_rot, false, factors, &ropes[1]);
    }
    if (a->flags & ARCH_ROPE_FULL_SCALED) {
        return add_rope(b, base, n_rot, false, factors, &ropes[1]);
    }
    return 0;
}

/* ---- one layer ---- */

static int is_local(struct bind *b, uint32_t i, bool *local)
{
    const struct arch *a = b->m->arch;
    const struct weights_kv *pattern = find_key(b, "attention.sliding_window_pattern");
    uint32_t value;
    *local = false;
    switch (a->window) {
    case ARCH_WINDOW_NONE:
        return 0;
    case ARCH_WINDOW_ALL:
        *local = true;
        return 0;
    case ARCH_WINDOW_EVEN:
        *local = i % 2 == 0;
        return 0;
    case ARCH_WINDOW_PERIOD_KEY:
    case ARCH_WINDOW_PERIOD:
        if (!pattern || pattern->type != WEIGHTS_ARRAY) {
            if (key_u32(b, "attention.sliding_window_pattern", a->window_period, &value) < 0) {
                return -1;
            }
            *local = value == 0 || (i + 1) % value != 0;
            return 0;
        }
        break;
    case ARCH_WINDOW_ARRAY:
        break;
    }
    if (key_u32_at(b, "attention.sliding_window_pattern", i, KEY_REQUIRED, &value) < 0) {
        return -1;
    }
    *local = value != 0;
    return 0;
}

static int bind_attention_weights(struct bind *b, uint32_t i, struct model_layer *l)
{
    const struct arch *a = b->m->arch;
    uint32_t dim = b->m->dim, h = l->n_heads, g = l->n_kv_heads;
    uint32_t q_out = h * l->k_dim * (a->flags & ARCH_HYBRID ? 2 : 1);
    if (layer_linear(b, i, "attn_qkv", dim, q_out + g * (l->k_dim + l->v_dim), WANT_OPTIONAL,
                     &l->qkv) < 0 ||
        layer_linear(b, i, "attn_output", h * l->v_dim, dim, WANT_REQUIRED, &l->o) < 0) {
        return -1;
    }
    if (!l->qkv.w.data) {
        enum want v_want = a->flags & ARCH_GEMMA4 ? WANT_OPTIONAL : WANT_REQUIRED;
        if (layer_linear(b, i, "attn_q", dim, q_out, WANT_REQUIRED, &l->q) < 0) {
            return -1;
        }
        if (l->writes_kv &&
            (layer_linear(b, i, "attn_k", dim, g * l->k_dim, WANT_REQUIRED, &l->k) < 0 ||
             layer_linear(b, i, "attn_v", dim, g * l->v_dim, v_want, &l->v) < 0)) {
            return -1;
        }
        l->v_from_k = l->writes_kv && !l->v.w.data;
        if (l->v_from_k && l->v_dim != l->k_dim) {
            return err_set(b->err, ERR_BAD_FILE, "layer %u: no attn_v, and keys are no values", i);
        }
        if ((a->flags & ARCH_QKV_BIAS_REQUIRED) && (!l->q.bias || !l->k.bias || !l->v.bias)) {
            return err_set(b->err, ERR_BAD_FILE, "layer %u: attn_q, attn_k and attn_v need biases",
                           i);
        }
    }
    uint32_t q_norm = l->k_dim, k_norm = l->k_dim;
    if (a->flags & (ARCH_QK_NORM_WHOLE | ARCH_QK_NORM_PER_HEAD)) {
        q_norm *= h;
        k_norm *= g;
    }
    if (layer_norm(b, i, "attn_q_norm", q_norm, WANT_OPTIONAL, &l->q_norm) < 0 ||
        (l->writes_kv && layer_norm(b, i, "attn_k_norm", k_norm, WANT_OPTIONAL, &l->k_norm) < 0)) {
        return -1;
    }
    return a->flags & ARCH_SINKS
               ? layer_vector(b, i, "attn_sinks.weight", h, WANT_REQUIRED, &l->sinks)
               : 0;
}

static int bind_attention(struct bind *b, uint32_t i, const int ropes[2], struct model_layer *l)
{
    struct model *m = b->m;
    const struct arch *a = m->arch;
    uint32_t block_count, window;
    bool local;
    if (is_local(b, i, &local) < 0 ||
        key_u32(b, "attention.sliding_window", a->window_default, &window) < 0 ||
        key_u32(b, "block_count", KEY_REQUIRED, &block_count) < 0 ||
        key_f32(b, "attention.scale", 0.0, &l->scale) < 0 ||
        key_f32(b, "attn_logit_softcapping", (double)a->attn_softcap, &l->softcap) < 0) {
        return -1;
    }
    if (a->flags & ARCH_GEMMA4 && local &&
        (key_u32(b, "attention.key_length_swa", l->k_dim, &l->k_dim) < 0 ||
         key_u32(b, "attention.value_length_swa", l->k_dim, &l->v_dim) < 0)) {
        return -1;
    }
    local = local && window > 0;
    l->window = local ? window : 0;
    l->softcap = a->attn_softcap > 0.0f ? l->softcap : 0.0f;
    l->rope = ropes[local ? 1 : 0];
    if (((a->flags & ARCH_NO_ROPE_FULL) && !local) ||
        ((a->flags & ARCH_NO_ROPE_4TH) && (i + 1) % 4 == 0)) {
        l->rope = -1;
    }
    if (l->rope >= 0 && m->ropes[l->rope].n_pairs * 2 > l->k_dim) {
        return err_set(b->err, ERR_BAD_FILE, "layer %u: %u of %u components turn", i,
                       m->ropes[l->rope].n_pairs * 2, l->k_dim);
    }
    if (a->flags & ARCH_GEMMA4) {
        l->scale = 1.0f;
    } else if (a->big_layers && a->big_layers == block_count) {
        l->scale = (float)(1.0 / sqrt((double)(m->dim / l->n_heads)));
    } else if (l->scale == 0.0f) {
        l->scale = (float)(1.0 / sqrt((double)l->k_dim));
    }
    if (l->k_dim == 0 || l->v_dim == 0 || l->n_heads % l->n_kv_heads != 0 ||
        (uint64_t)l->n_heads * l->k_dim > DIM_MAX || (uint64_t)l->n_heads * l->v_dim > DIM_MAX) {
        return err_set(b->err, ERR_BAD_FILE, "layer %u: %u heads over %u of %u and %u components",
                       i, l->n_heads, l->n_kv_heads, l->k_dim, l->v_dim);
    }
    l->mixer = MODEL_ATTENTION;
    return bind_attention_weights(b, i, l);
}

/* Multi-head latent attention. Split files keep the latent vector as one key/value head and meet it with absorbed
 * queries; fused files expand keys and values, because their matrix cannot be absorbed without a copy. */
static int bind_mla(struct bind *b, uint32_t i, const int ropes[2], struct model_layer *l)
{
    struct model *m = b->m;
    uint32_t d, rank, n_rot, q_rank, h = l->n_heads;
    double multiplier, factor;
    if (key_u32(b, "attention.key_length_mla", l->k_dim, &d) < 0 ||
        key_u32(b, "attention.value_length_mla", l->v_dim, &l->mla_v_dim) < 0 ||
        key_u32(b, "attention.kv_lora_rank", KEY_REQUIRED, &rank) < 0 ||
        key_u32(b, "rope.dimension_count", KEY_REQUIRED, &n_rot) < 0 ||
        key_u32(b, "attention.q_lora_rank", 0, &q_rank) < 0 ||
        key_f64(b, "rope.scaling.yarn_log_multiplier", 0.0, &multiplier) < 0 ||
        key_f64(b, "rope.scaling.factor", 1.0, &factor) < 0) {
        return -1;
    }
    if (n_rot == 0 || n_rot >= d || rank == 0 || l->mla_v_dim == 0 || (uint64_t)h * d > DIM_MAX ||
        (uint64_t)h * (rank + n_rot) > DIM_MAX || (uint64_t)h * l->mla_v_dim > DIM_MAX) {
        return err_set(b->err, ERR_BAD_FILE, "layer %u: latent attention of %u, %u, %u", i, d, rank,
                       n_rot);
    }
    l->mixer = MODEL_MLA;
    l->rope = ropes[0];
    l->nope_dim = d - n_rot;
    l->latent_dim = rank;
    double yarn = key_is(b, "rope.scaling.type", "yarn") && factor > 1.0
                      ? 1.0 + multiplier * log(factor)
                      : 1.0;
    l->scale = (float)(yarn * yarn / sqrt((double)d));
    bool fused = has(b, i, "attn_kv_b.weight");
    l->n_kv_heads = fused ? h : 1;
    l->k_dim = fused ? d : rank + n_rot;
    l->v_dim = fused ? l->mla_v_dim : rank;
    if (q_rank ? layer_linear(b, i, "attn_q_a", m->dim, q_rank, WANT_REQUIRED, &l->q_a) < 0 ||
                     layer_norm(b, i, "attn_q_a_norm", q_rank, WANT_REQUIRED, &l->q_a_norm) < 0 ||
                     layer_linear(b, i, "attn_q_b", q_rank, h * d, WANT_REQUIRED, &l->q_b) < 0
               : layer_linear(b, i, "attn_q", m->dim, h * d, WANT_REQUIRED, &l->q) < 0) {
        return -1;
    }
    if (layer_linear(b, i, "attn_kv_a_mqa", m->dim, rank + n_rot, WANT_REQUIRED, &l->kv_a) < 0 ||
        layer_norm(b, i, "attn_kv_a_norm", rank, WANT_REQUIRED, &l->kv_a_norm) < 0 ||
        layer_linear(b, i, "attn_output", h * l->mla_v_dim, m->dim, WANT_REQUIRED, &l->o) < 0) {
        return -1;
    }
    if (fused) {
        return layer_linear(b, i, "attn_kv_b", rank, h * (l->nope_dim + l->mla_v_dim),
                            WANT_REQUIRED, &l->kv_b);
    }
    return layer_matrix(b, i, "attn_k_b", l->nope_dim, rank, h, WANT_REQUIRED, &l->k_b) < 0
               ? -1
               : layer_matrix(b, i, "attn_v_b", rank, l->mla_v_dim, h, WANT_REQUIRED, &l->v_b);
}

static int bind_delta_net(struct bind *b, uint32_t i, struct model_layer *l)
{
    struct model *m = b->m;
    uint32_t inner, ds, hk, hv;
    if (key_u32(b, "ssm.state_size", KEY_REQUIRED, &m->ssm_state_dim) < 0 ||
        key_u32(b, "ssm.group_count", KEY_REQUIRED, &m->ssm_k_heads) < 0 ||
        key_u32(b, "ssm.time_step_rank", KEY_REQUIRED, &m->ssm_v_heads) < 0 ||
        key_u32(b, "ssm.inner_size", KEY_REQUIRED, &inner) < 0 ||
        key_u32(b, "ssm.conv_kernel", KEY_REQUIRED, &m->ssm_conv) < 0) {
        return -1;
    }
    ds = m->ssm_state_dim, hk = m->ssm_k_heads, hv = m->ssm_v_heads;
    if (ds == 0 || ds > 1024 || hk == 0 || hv == 0 || hv > 4096 || hv % hk != 0 ||
        inner != hv * ds || m->ssm_conv < 2 || m->ssm_conv > 16) {
        return err_set(b->err, ERR_BAD_FILE, "layer %u: delta net of %u, %u, %u heads, inner %u", i,
                       ds, hk, hv, inner);
    }
    uint32_t channels = 2 * hk * ds + inner;
    l->mixer = MODEL_DELTA_NET;
    l->conv_channels = channels;
    if (has(b, i, "attn_qkv.weight")
            ? layer_linear(b, i, "attn_qkv", m->dim, channels, WANT_REQUIRED, &l->qkv) < 0 ||
                  layer_linear(b, i, "attn_gate", m->dim, inner, WANT_REQUIRED, &l->gate) < 0
            : layer_linear(b, i, "ssm_in", m->dim, channels + inner, WANT_REQUIRED, &l->in) < 0) {
        return -1;
    }
    if (has(b, i, "ssm_ba.weight")
            ? layer_linear(b, i, "ssm_ba", m->dim, 2 * hv, WANT_REQUIRED, &l->ba) < 0
            : layer_linear(b, i, "ssm_beta", m->dim, hv, WANT_REQUIRED, &l->beta) < 0 ||
                  layer_linear(b, i, "ssm_alpha", m->dim, hv, WANT_REQUIRED, &l->alpha) < 0) {
        return -1;
    }
    if (layer_vector(b, i, "ssm_conv1d.weight", (uint64_t)channels * m->ssm_conv, WANT_REQUIRED,
                     &l->conv) < 0 ||
        layer_vector(b, i, "ssm_dt.bias", hv, WANT_REQUIRED, &l->dt_bias) < 0 ||
        layer_vector(b, i, "ssm_a", hv, WANT_REQUIRED, &l->a_coef) < 0 ||
        layer_norm(b, i, "ssm_norm", ds, WANT_REQUIRED, &l->ssm_norm) < 0) {
        return -1;
    }
    return layer_linear(b, i, "ssm_out", inner, m->dim, WANT_REQUIRED, &l->out);
}

/* Which layers of a hybrid are recurrent. */
static int is_recurrent(struct bind *b, uint32_t i, bool *recurrent)
{
    uint32_t value;
    if (find_key(b, "attention.recurrent_layers")) {
        if (key_u32_at(b, "attention.recurrent_layers", i, KEY_REQUIRED, &value) < 0) {
            return -1;
        }
        *recurrent = value != 0;
        return 0;
    }
    if (key_u32(b, "full_attention_interval", 4, &value) < 0) {
        return -1;
    }
    *recurrent = value == 0 || (i + 1) % value != 0;
    return 0;
}

static int bind_experts(struct bind *b, uint32_t i, struct model_layer *l)
{
    struct model *m = b->m;
    uint32_t e = m->n_experts;
    l->has_moe = true;
    l->merged = has(b, i, "ffn_gate_up_exps.weight");
    if (e == 0 || m->n_experts_used == 0 || m->n_experts_used > e || e > EXPERTS_MAX) {
        return err_set(b->err, ERR_BAD_FILE, "layer %u: experts, but expert_count is %u, used %u",
                       i, e, m->n_experts_used);
    }
    if (has(b, i, "ffn_gate.0.weight")) {
        return err_set(b->err, ERR_UNSUPPORTED,
                       "tensor blk.%u.ffn_gate.0.weight: experts in tensors of their own; convert "
                       "the model again",
                       i);
    }
    if (layer_linear(b, i, "ffn_gate_inp", m->dim, e, WANT_REQUIRED, &l->router) < 0) {
        return -1;
    }
    if (l->merged) {
        if (layer_matrix(b, i, "ffn_gate_up_exps", m->dim, 0, e, WANT_REQUIRED, &l->exp_up) < 0) {
            return -1;
        }
        l->expert_dim = l->exp_up.m / 2;
        if (l->exp_up.m % 2 != 0) {
            return err_set(b->err, ERR_BAD_FILE, "tensor %s: %u rows are no gate and up",
                           l->exp_up.name, l->exp_up.m);
        }
    } else {
        if (layer_matrix(b, i, "ffn_gate_exps", m->dim, 0, e, WANT_REQUIRED, &l->exp_gate) < 0 ||
            layer_matrix(b, i, "ffn_up_exps", m->dim, l->exp_gate.m, e, WANT_REQUIRED, &l->exp_up) <
                0 ||
            layer_vector(b, i, "ffn_gate_exps.bias", (uint64_t)e * l->exp_gate.m, WANT_OPTIONAL,
                         &l->exp_gate_bias) < 0 ||
            layer_vector(b, i, "ffn_up_exps.bias", (uint64_t)e * l->exp_gate.m, WANT_OPTIONAL,
                         &l->exp_up_bias) < 0) {
            return -1;
        }
        l->expert_dim = l->exp_gate.m;
    }
    if (layer_matrix(b, i, "ffn_down_exps", l->expert_dim, m->dim, e, WANT_REQUIRED, &l->exp_down) <
            0 ||
        layer_vector(b, i, "ffn_down_exps.bias", (uint64_t)e * m->dim, WANT_OPTIONAL,
                     &l->exp_down_bias) < 0 ||
        layer_vector(b, i, "ffn_down_exps.scale", e, WANT_OPTIONAL, &l->exp_down_scale) < 0 ||
        layer_vector(b, i, "exp_probs_b.bias", e, WANT_OPTIONAL, &l->choice_bias) < 0 ||
        layer_vector(b, i, "ffn_gate_inp.scale", m->dim, WANT_OPTIONAL, &l->router_scale) < 0) {
        return -1;
    }
    if (!has(b, i, "ffn_up_shexp.weight")) {
        return 0;
    }
    if (layer_linear(b, i, "ffn_up_shexp", m->dim, 0, WANT_REQUIRED, &l->shared_up) < 0 ||
        layer_linear(b, i, "ffn_gate_shexp", m->dim, l->shared_up.w.m, WANT_REQUIRED,
                     &l->shared_gate) < 0 ||
        layer_linear(b, i, "ffn_down_shexp", l->shared_up.w.m, m->dim, WANT_REQUIRED,
                     &l->shared_down) < 0 ||
        layer_linear(b, i, "ffn_gate_inp_shexp", m->dim, 1, WANT_OPTIONAL, &l->shared_router) < 0) {
        return -1;
    }
    l->shared_dim = l->shared_up.w.m;
    return 0;
}

static int bind_dense(struct bind *b, uint32_t i, struct model_layer *l)
{
    struct model *m = b->m;
    l->has_ffn = true;
    l->fused = (m->arch->flags & ARCH_FFN_FUSED) && !has(b, i, "ffn_gate.weight");
    if (key_u32_at(b, "feed_forward_length", i, KEY_REQUIRED, &l->ffn_dim) < 0) {
        return -1;
    }
    if (l->ffn_dim == 0) {
        l->has_ffn = false;
        return 0;
    }
    if (layer_linear(b, i, "ffn_up", m->dim, l->fused ? 2 * l->ffn_dim : l->ffn_dim, WANT_REQUIRED,
                     &l->ffn_up) < 0 ||
        layer_linear(b, i, "ffn_gate", m->dim, l->ffn_dim, WANT_OPTIONAL, &l->ffn_gate) < 0) {
        return -1;
    }
    return layer_linear(b, i, "ffn_down", l->ffn_dim, m->dim, WANT_REQUIRED, &l->ffn_down);
}

static int bind_layer_norms(struct bind *b, uint32_t i, struct model_layer *l)
{
    const struct arch *a = b->m->arch;
    uint32_t n = b->m->dim;
    if (a->block == ARCH_ENC) {
        return layer_norm(b, i, "attn_output_norm", n, WANT_REQUIRED, &l->post_attn_norm) < 0
                   ? -1
                   : layer_norm(b, i, "layer_output_norm", n, WANT_REQUIRED, &l->post_ffn_norm);
    }
    bool before = a->block != ARCH_POST, after = a->block == ARCH_SAND || a->block == ARCH_POST;
    if (before && l->mixer != MODEL_NO_MIXER &&
        layer_norm(b, i, "attn_norm", n, WANT_REQUIRED, &l->attn_norm) < 0) {
        return -1;
    }
    if (before && a->block != ARCH_PAR && (l->has_ffn || l->has_moe) &&
        layer_norm(b, i, a->flags & ARCH_POST_ATTN_IS_FFN ? "post_attention_norm" : "ffn_norm", n,
                   WANT_REQUIRED, &l->ffn_norm) < 0) {
        return -1;
    }
    if (after &&
        (layer_norm(b, i, "post_attention_norm", n, WANT_REQUIRED, &l->post_attn_norm) < 0 ||
         layer_norm(b, i, "post_ffw_norm", n, WANT_REQUIRED, &l->post_ffn_norm) < 0)) {
        return -1;
    }
    return 0;
}

static int bind_gemma4_extras(struct bind *b, uint32_t i, struct model_layer *l)
{
    struct model *m = b->m;
    if (l->has_moe &&
        (layer_norm(b, i, "post_ffw_norm_1", m->dim, WANT_REQUIRED, &l->post_ffn_norm_1) < 0 ||
         layer_norm(b, i, "pre_ffw_norm_2", m->dim, WANT_REQUIRED, &l->pre_ffn_norm_2) < 0 ||
         layer_norm(b, i, "post_ffw_norm_2", m->dim, WANT_REQUIRED, &l->post_ffn_norm_2) < 0)) {
        return -1;
    }
    if (m->per_layer_dim &&
        (layer_linear(b, i, "inp_gate", m->dim, m->per_layer_dim, WANT_REQUIRED, &l->inp_gate) <
             0 ||
         layer_linear(b, i, "proj", m->per_layer_dim, m->dim, WANT_REQUIRED, &l->proj) < 0 ||
         layer_norm(b, i, "post_norm", m->dim, WANT_REQUIRED, &l->post_norm) < 0)) {
        return -1;
    }
    if (layer_vector(b, i, "layer_output_scale.weight", 1, WANT_OPTIONAL, &l->out_scale) < 0) {
        return -1;
    }
    return 0;
}

/* gemma4: the last layers read the keys and values of the last layer of their kind that has its own. */
static int find_shared_kv(struct bind *b, uint32_t i, struct model_layer *l)
{
    struct model *m = b->m;
    uint32_t shared;
    bool local, other;
    l->writes_kv = true;
    l->kv_layer = i;
    if (!(m->arch->flags & ARCH_GEMMA4)) {
        return 0;
    }
    if (key_u32(b, "attention.shared_kv_layers", 0, &shared) < 0 || is_local(b, i, &local) < 0) {
        return -1;
    }
    uint32_t own = shared < m->n_layers ? m->n_layers - shared : 0;
    if (i < own) {
        return 0;
    }
    l->writes_kv = false;
    for (uint32_t j = own; j-- > 0;) {
        if (is_local(b, j, &other) < 0) {
            return -1;
        }
        if (other == local) {
            l->kv_layer = j;
            return 0;
        }
    }
    return err_set(b->err, ERR_BAD_FILE, "layer %u: no layer to share keys with", i);
}

static int bind_layer(struct bind *b, uint32_t i, const int ropes[2])
{
    struct model *m = b->m;
    struct model_layer *l = &m->layers[i];
    bool recurrent = false;
    l->rope = -1;
    b->data_end = 0;
    if (key_u32_at(b, "attention.head_count", i, KEY_REQUIRED, &l->n_heads) < 0 ||
        key_u32_at(b, "attention.head_count_kv", i, l->n_heads, &l->n_kv_heads) < 0) {
        return -1;
    }
    uint32_t first_heads;
    if (key_u32_at(b, "attention.head_count", 0, KEY_REQUIRED, &first_heads) < 0) {
        return -1;
    }
    uint32_t d = first_heads ? m->dim / first_heads : 0;
    if (key_u32(b, "attention.key_length", d, &l->k_dim) < 0 ||
        key_u32(b, "attention.value_length", d, &l->v_dim) < 0 || find_shared_kv(b, i, l) < 0 ||
        ((m->arch->flags & ARCH_HYBRID) && is_recurrent(b, i, &recurrent) < 0)) {
        return -1;
    }
    int rc;
    if (recurrent) {
        rc = bind_delta_net(b, i, l);
    } else if (l->n_heads == 0) {
        l->mixer = MODEL_NO_MIXER;
        rc = 0;
    } else if (l->n_kv_heads == 0) {
        l->mixer = MODEL_LINEAR_ONLY;
        rc = layer_linear(b, i, "attn_output", m->dim, m->dim, WANT_REQUIRED, &l->o);
    } else if (m->arch->flags & ARCH_MLA) {
        rc = bind_mla(b, i, ropes, l);
    } else {
        rc = bind_attention(b, i, ropes, l);
    }
    bool experts = has(b, i, "ffn_gate_inp.weight");
    if (rc < 0 || (experts && bind_experts(b, i, l) < 0) ||
        ((!experts || (m->arch->flags & ARCH_GEMMA4)) && bind_dense(b, i, l) < 0) ||
        bind_layer_norms(b, i, l) < 0 ||
        ((m->arch->flags & ARCH_GEMMA4) && bind_gemma4_extras(b, i, l) < 0)) {
        return -1;
    }
    l->data_end = b->data_end;
    return 0;
}

/* ---- the whole model ---- */

static int read_numbers(struct bind *b)
{
    struct model *m = b->m;
    const struct arch *a = m->arch;
    uint32_t n_blocks, n_predict, gating, pooling, normalise;
    double eps;
    const char *eps_key = a->norm == OP_NORM_RMS ? "attention.layer_norm_rms_epsilon"
                                                 : "attention.layer_norm_epsilon";
    if (key_u32(b, "block_count", KEY_REQUIRED, &n_blocks) < 0 ||
        key_u32(b, "nextn_predict_layers", 0, &n_predict) < 0 ||
        key_u32(b, "embedding_length", KEY_REQUIRED, &m->dim) < 0 ||
        key_u32(b, "context_length", KEY_REQUIRED, &m->train_ctx_len) < 0 ||
        key_f64(b, eps_key, (double)NAN, &eps) < 0 ||
        key_u32(b, "expert_count", 0, &m->n_experts) < 0 ||
        key_u32(b, "expert_used_count", 0, &m->n_experts_used) < 0 ||
        key_u32(b, "expert_group_count", 1, &m->n_expert_groups) < 0 ||
        key_u32(b, "expert_group_used_count", 1, &m->n_expert_groups_used) < 0 ||
        key_u32(b, "expert_gating_func", 0, &gating) < 0 ||
        key_u32(b, "expert_weights_norm", 0, &normalise) < 0 ||
        key_f32(b, "expert_weights_scale", 1.0, &m->expert_scale) < 0 ||
        key_u32(b, "pooling_type", 0, &pooling) < 0 ||
        key_u32(b, "embedding_length_per_layer_input", 0, &m->per_layer_dim) < 0) {
        return -1;
    }
    if (n_predict >= n_blocks || n_blocks > MODEL_LAYERS_MAX || m->dim == 0 ||
        m->train_ctx_len == 0 || m->n_expert_groups > (m->n_experts ? m->n_experts : 1) ||
        (m->n_expert_groups > 1 && m->n_experts % m->n_expert_groups != 0)) {
        return err_set(b->err, ERR_BAD_FILE,
                       "%u blocks, dim %u, context %u, %u experts in %u groups", n_blocks, m->dim,
                       m->train_ctx_len, m->n_experts, m->n_expert_groups);
    }
    m->n_layers = n_blocks - n_predict;
    m->ctx_len = b->options->ctx_len ? b->options->ctx_len : m->train_ctx_len;
    m->norm_eps = (float)eps;
    m->pooling = (int)pooling;
    m->causal = a->block != ARCH_ENC;
    m->expert_scale = m->expert_scale == 0.0f ? 1.0f : m->expert_scale;
    bool by_key = a->moe == ARCH_MOE_SIGMOID || a->moe == ARCH_MOE_BY_KEY;
    if (!by_key) {
        m->expert_scale = 1.0f;
    }
    if (gating == 0 && ((a->moe == ARCH_MOE_BY_KEY && (n_blocks == 47 || n_blocks == 48)) ||
                        a->moe == ARCH_MOE_SIGMOID)) {
        gating = 2; /* GLM-4.7-Flash calls itself deepseek2 and leaves the key out */
    }
    m->gating = gating == 2 ? OP_GATING_SIGMOID : OP_GATING_SOFTMAX;
    if (a->moe == ARCH_MOE_SOFTMAX_CHOSEN) {
        m->gating = OP_GATING_LOGITS;
    }
    m->expert_normalise = by_key ? normalise != 0 : a->moe == ARCH_MOE_NORMALISED;
    return 0;
}

static int read_scales(struct bind *b)
{
    struct model *m = b->m;
    const struct arch *a = m->arch;
    double temperature_ctx = 0.0, required = (double)NAN;
    m->embed_scale = a->flags & ARCH_EMBED_SQRT_DIM ? sqrtf((float)m->dim) : 1.0f;
    m->residual_scale = m->logit_scale = 1.0f;
    if (a->flags & ARCH_SCALES) {
        float divisor;
        if (key_f32(b, "embedding_scale", required, &m->embed_scale) < 0 ||
            key_f32(b, "residual_scale", required, &m->residual_scale) < 0 ||
            key_f32(b, "logit_scale", required, &divisor) < 0) {
            return -1;
        }
        m->logit_scale = 1.0f / divisor;
    }
    if ((a->flags & ARCH_LOGIT_SCALE) && key_f32(b, "logit_scale", required, &m->logit_scale) < 0) {
        return -1;
    }
    if (a->logit_softcap > 0.0f &&
        key_f32(b, "final_logit_softcapping", (double)a->logit_softcap, &m->logit_softcap) < 0) {
        return -1;
    }
    if (a->flags & ARCH_TEMPERATURE) {
        if (key_f64(b, "attention.temperature_scale", 0.0, &m->temperature) < 0 ||
            key_f64(b, "rope.scaling.original_context_length", m->train_ctx_len, &temperature_ctx) <
                0) {
            return -1;
        }
        m->temperature_ctx = temperature_ctx > 0.0 ? temperature_ctx : 1.0;
    }
    return 0;
}

static int bind_ends(struct bind *b)
{
    struct model *m = b->m;
    const struct arch *a = m->arch;
    b->data_end = 0;
    if (bind_matrix(b, "token_embd.weight", m->dim, 0, 1, WANT_REQUIRED, &m->token_embd) < 0) {
        return -1;
    }
    m->vocab_size = m->token_embd.m;
    if (a->block == ARCH_ENC) {
        if (bind_matrix(b, "token_types.weight", m->dim, 0, 1, WANT_REQUIRED, &m->token_types) <
                0 ||
            bind_norm(b, "token_embd_norm", m->dim, WANT_REQUIRED, &m->embd_norm) < 0) {
            return -1;
        }
        if (a->rope == ARCH_ROPE_LEARNED) {
            if (bind_matrix(b, "position_embd.weight", m->dim, 0, 1, WANT_REQUIRED,
                            &m->position_embd) < 0) {
                return -1;
            }
            m->ctx_len = m->ctx_len < m->position_embd.m ? m->ctx_len : m->position_embd.m;
        }
    }
    uint32_t q = m->per_layer_dim;
    if (q && (m->n_layers * (uint64_t)q > DIM_MAX ||
              bind_matrix(b, "per_layer_token_embd.weight", q * m->n_layers, m->vocab_size, 1,
                          WANT_REQUIRED, &m->per_layer_embd) < 0 ||
              bind_matrix(b, "per_layer_model_proj.weight", m->dim, q * m->n_layers, 1,
                          WANT_REQUIRED, &m->per_layer_proj.w) < 0 ||
              bind_norm(b, "per_layer_proj_norm", q, WANT_REQUIRED, &m->per_layer_norm) < 0)) {
        return -1;
    }
    m->embed_data_end = b->data_end;
    if (a->block == ARCH_ENC) {
        m->output_data_end = b->data_end;
        return 0;
    }
    if (bind_matrix(b, "output.weight", m->dim, m->vocab_size, 1, WANT_OPTIONAL, &m->output) < 0 ||
        bind_vector(b, "output.bias", m->vocab_size, WANT_OPTIONAL, &m->output_bias) < 0 ||
        bind_norm(b, "output_norm", m->dim, WANT_REQUIRED, &m->output_norm) < 0) {
        return -1;
    }
    if (!m->output.data) {
        m->output = m->token_embd;
    }
    m->output_data_end = b->data_end;
    return 0;
}

/* ---- what a position keeps ---- */

static uint64_t mix(uint64_t hash, uint64_t value)
{
    for (int i = 0; i < 8; i++) { /* FNV-1a */
        hash = (hash ^ (value >> (8 * i) & 0xff)) * 0x100000001b3ull;
    }
    return hash;
}

static int kv_row_bytes(enum dtype type, uint32_t n, uint32_t *out, struct err *err)
{
    uint64_t bytes, padded = dtype_get(type)->quantised ? align_up(n, 32) : n;
    if (dtype_size(type, padded, &bytes, err) < 0) {
        return -1;
    }
    *out = (uint32_t)bytes;
    return 0;
}

static int lay_out_kv(struct bind *b)
{
    struct model *m = b->m;
    struct kv_layout *kv = &m->kv;
    uint64_t off = 0, hash = mix(0xcbf29ce484222325ull, KV_FORMAT);
    kv->k_type = b->options->k_type;
    kv->v_type = b->options->v_type;
    if (b->backend->ops->check_kv(b->backend, kv->k_type, kv->v_type, b->err) < 0) {
        return -1;
    }
    kv->n_layers = m->n_layers;
    kv->layer = calloc(m->n_layers, sizeof *kv->layer);
    if (!kv->layer) {
        return err_set(b->err, ERR_NO_MEMORY, "kv layout");
    }
    hash = mix(mix(mix(hash, kv->k_type), kv->v_type), b->w->header->digest);
    hash = mix(mix(hash, b->backend->exact), (uint64_t)b->backend->name[0]);
    hash = mix(hash,
               m->ropes[0].freq ? (uint64_t)(m->ropes[0].freq[m->ropes[0].n_pairs - 1] * 1e18) : 0);
    for (uint32_t i = 0; i < m->n_layers; i++) {
        struct model_layer *l = &m->layers[i];
        struct kv_layer *k = &kv->layer[i];
        if (l->mixer == MODEL_DELTA_NET) {
            l->state_off = kv->state_bytes;
            kv->state_bytes += align_up(
                ((uint64_t)m->ssm_v_heads * m->ssm_state_dim * m->ssm_state_dim +
                 (uint64_t)(m->ssm_conv - 1) * l->conv_channels) *
                    sizeof(float),
                64);
        }
        if ((l->mixer != MODEL_ATTENTION && l->mixer != MODEL_MLA) || !l->writes_kv) {
            continue;
        }
        *k = (struct kv_layer){ .n_kv_heads = l->n_kv_heads, .k_dim = l->k_dim, .v_dim = l->v_dim };
        if (kv_row_bytes(kv->k_type, k->k_dim, &k->k_row_bytes, b->err) < 0 ||
            kv_row_bytes(kv->v_type, k->v_dim, &k->v_row_bytes, b->err) < 0) {
            return -1;
        }
        k->k_off = off;
        off = align_up(off + (uint64_t)KV_PAGE_TOKENS * k->n_kv_heads * k->k_row_bytes, 64);
        k->v_off = off;
        off = align_up(off + (uint64_t)KV_PAGE_TOKENS * k->n_kv_heads * k->v_row_bytes, 64);
        hash = mix(mix(mix(hash, k->n_kv_heads), k->k_dim), k->v_dim);
    }
    kv->page_bytes = align_up(off, 4096);
    kv->fingerprint = mix(mix(hash, kv->page_bytes), kv->state_bytes);
    return 0;
}

static int bind_all(struct bind *b)
{
    struct model *m = b->m;
    const struct weights_kv *kv = weights_find_kv(b->w, "general.architecture");
    const char *name;
    size_t len;
    int ropes[2];
    uint32_t heads, k_dim;
    if (!kv || !weights_kv_str(kv, 0, &name, &len)) {
        return err_set(b->err, ERR_BAD_FILE, "key general.architecture is missing");
    }
    m->arch = arch_find(name, len);
    if (!m->arch) {
        return err_set(b->err, ERR_UNSUPPORTED, "architecture %.*s is not known",
                       (int)(len < 64 ? len : 64), name);
    }
    if (read_numbers(b) < 0 || read_scales(b) < 0 || bind_ends(b) < 0 ||
        key_u32_at(b, "attention.head_count", 0, KEY_REQUIRED, &heads) < 0 ||
        key_u32(b, "attention.key_length", heads ? m->dim / heads : 0, &k_dim) < 0 ||
        bind_ropes(b, k_dim, ropes) < 0) {
        return -1;
    }
    m->layers = calloc(m->n_layers, sizeof *m->layers);
    if (!m->layers) {
        return err_set(b->err, ERR_NO_MEMORY, "%u layers", m->n_layers);
    }
    for (uint32_t i = 0; i < m->n_layers; i++) {
        if (bind_layer(b, i, ropes) < 0) {
            return -1;
        }
    }
    return lay_out_kv(b);
}

struct model *model_bind(const struct weights *w, struct backend *backend,
                         const struct model_options *options, struct err *err)
{
    struct model *m = calloc(1, sizeof *m);
    if (!m) {
        err_set(err, ERR_NO_MEMORY, "model");
        return NULL;
    }
    struct bind b = { .w = w, .backend = backend, .options = options, .m = m, .err = err };
    m->weights = w;
    m->wait = options->wait;
    if (bind_all(&b) < 0) {
        model_destroy(&m);
        return NULL;
    }
    return m;
}

void model_destroy(struct model **model)
{
    struct model *m = *model;
    if (!m) {
        return;
    }
    for (uint32_t i = 0; i < m->n_ropes; i++) {
        free(m->ropes[i].freq);
    }
    free(m->kv.layer);
    free(m->layers);
    free(m);
    *model = NULL;
}
