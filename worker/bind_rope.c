/* Rotary positions of a model: kinds, scalings and frequency tables, computed once at binding. */
#include "worker/bind.h"

#include <math.h>
#include <stdlib.h>

#define PI 3.14159265358979323846

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
    if (b->backend->dry) {
        return 0; /* no size depends on them, and the data may not be there */
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
    bool none = bind_key_is(b, "rope.scaling.type", "none");
    s->yarn = bind_key_is(b, "rope.scaling.type", "yarn");
    if (bind_f64(b, "rope.scale_linear", 0.0, &factor) < 0 ||
        bind_f64(b, "rope.scaling.factor", factor, &factor) < 0 ||
        bind_f64(b, "rope.scaling.original_context_length", b->m->train_ctx_len, &s->orig_ctx) <
            0 ||
        bind_f64(b, "rope.scaling.attn_factor", 1.0, &attn) < 0 ||
        bind_f64(b, "rope.scaling.yarn_attn_factor", 1.0, &yarn_attn) < 0 ||
        bind_f64(b, "rope.scaling.yarn_log_multiplier", 0.0, &s->log_multiplier) < 0 ||
        bind_f64(b, "rope.scaling.yarn_beta_fast", 32.0, &s->beta_fast) < 0 ||
        bind_f64(b, "rope.scaling.yarn_beta_slow", 1.0, &s->beta_slow) < 0 ||
        bind_f64(b, "rope.scaling.yarn_ext_factor", 1.0, &s->ext) < 0) {
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
    if (base <= 1.0 || n_rot < 2 || n_rot % 2 != 0 || n_rot > BIND_DIM_MAX ||
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
    if (!bind_find_key(b, "rope.dimension_sections")) {
        return 0;
    }
    for (uint32_t i = 0; i < 3; i++) {
        if (bind_u32_at(b, "rope.dimension_sections", i, 0, &s[i]) < 0) {
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
int bind_ropes(struct bind *b, uint32_t k_dim, int ropes[2])
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
    if (bind_f64(b, "rope.freq_base", a->flags & ARCH_GEMMA4 ? 1e6 : 10000.0, &base) < 0 ||
        bind_u32(b, "rope.dimension_count", k_dim, &n_rot) < 0 ||
        bind_f64(b, "rope.freq_base_swa", 10000.0, &base_swa) < 0 ||
        bind_f64(b, "rope.scaling.original_context_length", m->train_ctx_len, &orig) < 0 ||
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
    if ((a->flags & ARCH_IMROPE) && still_last_axis(b, ropes[0]) < 0) {
        return -1;
    }
    if (a->flags & ARCH_GEMMA4) {
        uint32_t d;
        if (bind_u32(b, "attention.key_length_swa", k_dim, &d) < 0 ||
            bind_u32(b, "rope.dimension_count_swa", d, &n_rot_swa) < 0) {
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
