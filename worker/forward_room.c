/* The work space of a forward pass: every array as wide as the widest layer wants it, allocated once when a model is bound. */
#include <math.h>
#include <stdlib.h>

#include "worker/forward.h"
#include "worker/layer.h"

#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* The widest of everything, over all layers. */
struct widths {
    uint32_t qkv, q2, att, wide, ffn, expert, heads, k_dim, v_dim, k, m, low, low_y;
};

static void see(struct widths *w, const struct matrix *matrix)
{
    w->k = MAX(w->k, matrix->k);
    w->m = MAX(w->m, matrix->m);
    if (matrix->low_rank) {
        w->low = MAX(w->low, matrix->low_rank->a.m);
        w->low_y = MAX(w->low_y, matrix->m);
        w->k = MAX(w->k, w->low);
        w->m = MAX(w->m, w->low);
    }
}

static void measure_layer(const struct model *m, const struct model_layer *l, struct widths *w)
{
    uint32_t h = l->n_heads, g = l->n_kv_heads;
    const struct matrix *all[] = {
        &l->q.w,           &l->k.w,         &l->v.w,           &l->qkv.w,
        &l->o.w,           &l->q_a.w,       &l->q_b.w,         &l->kv_a.w,
        &l->kv_b.w,        &l->k_b,         &l->v_b,           &l->gate.w,
        &l->beta.w,        &l->alpha.w,     &l->ba.w,          &l->in.w,
        &l->out.w,         &l->ffn_gate.w,  &l->ffn_up.w,      &l->ffn_down.w,
        &l->router.w,      &l->exp_gate,    &l->exp_up,        &l->exp_down,
        &l->shared_gate.w, &l->shared_up.w, &l->shared_down.w, &l->shared_router.w,
        &l->inp_gate.w,    &l->proj.w,
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        see(w, all[i]);
    }
    if (l->mixer == MODEL_ATTENTION) {
        w->qkv = MAX(w->qkv, h * l->k_dim + g * (l->k_dim + l->v_dim));
        w->q2 = MAX(w->q2, m->arch->flags & ARCH_HYBRID ? 2 * h * l->k_dim : 0);
        w->wide = MAX(w->wide, m->arch->flags & ARCH_HYBRID ? h * l->k_dim : 0);
        w->att = MAX(w->att, h * l->v_dim);
    } else if (l->mixer == MODEL_MLA) {
        bool fused = l->kv_b.w.data != NULL;
        uint32_t n_rot = l->k_dim - (fused ? l->nope_dim : l->latent_dim), d = l->nope_dim + n_rot;
        w->qkv = MAX(w->qkv, h * d + l->latent_dim + n_rot);
        w->q2 = MAX(w->q2, h * MAX(d, l->latent_dim));
        w->wide = MAX(w->wide, MAX(l->q_a.w.m, h * MAX(l->k_dim, l->nope_dim + l->mla_v_dim)));
        w->att = MAX(w->att, h * l->mla_v_dim);
    } else if (l->mixer == MODEL_DELTA_NET) {
        uint32_t inner = m->ssm_v_heads * m->ssm_state_dim;
        w->q2 = MAX(w->q2, l->conv_channels + inner + 2 * m->ssm_v_heads);
        w->wide = MAX(w->wide, l->conv_channels + inner + 2 * m->ssm_v_heads);
        w->att = MAX(w->att, inner);
    }
    if (l->mixer == MODEL_ATTENTION || l->mixer == MODEL_MLA) {
        w->heads = MAX(w->heads, h);
        w->k_dim = MAX(w->k_dim, l->k_dim);
        w->v_dim = MAX(w->v_dim, l->v_dim);
    }
    w->ffn = MAX(w->ffn, MAX(l->has_ffn ? l->ffn_dim : 0, l->shared_dim));
    w->ffn = MAX(w->ffn, l->inp_gate.w.data ? l->inp_gate.w.m : 0);
    w->expert = MAX(w->expert, l->has_moe ? l->expert_dim : 0);
}

static void *device_array(struct forward *f, uint64_t n, uint64_t width, struct err *err, bool *ok)
{
    if (n * width == 0 || !*ok) {
        return NULL;
    }
    void *memory = f->backend->ops->alloc(f->backend, n * width * sizeof(float), err);
    *ok = memory != NULL;
    return memory;
}

static int alloc_device(struct forward *f, const struct widths *w, struct err *err)
{
    const struct model *m = f->m;
    uint64_t n = f->max_tokens, slots = n * (m->n_experts ? m->n_experts_used : 0);
    bool ok = true;
    f->x = device_array(f, n, m->dim, err, &ok);
    f->h = device_array(f, n, m->dim, err, &ok);
    f->t = device_array(f, n, m->dim, err, &ok);
    f->t2 = device_array(f, n, m->dim, err, &ok);
    f->t3 = device_array(f, n, m->arch->flags & ARCH_GEMMA4 ? m->dim : 0, err, &ok);
    f->qkv = device_array(f, n, w->qkv, err, &ok);
    f->q2 = device_array(f, n, w->q2, err, &ok);
    f->att = device_array(f, n, w->att, err, &ok);
    f->wide = device_array(f, n, w->wide, err, &ok);
    f->low = device_array(f, n, w->low, err, &ok);
    f->low_y = device_array(f, n, w->low_y, err, &ok);
    f->g = device_array(f, n, 2ull * w->ffn, err, &ok);
    f->u = device_array(f, n, w->ffn, err, &ok);
    f->router = device_array(f, n, m->n_experts, err, &ok);
    f->weights = device_array(f, slots, 1, err, &ok);
    f->experts = device_array(f, slots, 1, err, &ok);
    f->eg = device_array(f, slots, 2ull * w->expert, err, &ok);
    f->eu = device_array(f, slots, w->expert, err, &ok);
    f->ed = device_array(f, slots, m->dim, err, &ok);
    f->per_layer = device_array(f, n, (uint64_t)m->per_layer_dim * m->n_layers, err, &ok);
    f->per_layer_table = device_array(f, n, (uint64_t)m->per_layer_dim * m->n_layers, err, &ok);
    for (uint32_t i = 0; i < m->n_ropes; i++) {
        f->cs[i] = device_array(f, n, 2ull * m->ropes[i].n_pairs, err, &ok);
    }
    f->out = device_array(f, f->max_outputs, m->dim, err, &ok);
    f->logits = device_array(f, f->max_outputs, m->output.m, err, &ok);
    f->fed = device_array(f, f->backend->ops->sample ? OP_PICK_ROWS_MAX : 0, 1, err, &ok);
    f->head_idx = device_array(f, n, w->heads, err, &ok);
    return ok ? 0 : -1;
}

/* Host arrays; the (token, head) numbers never change. */
static int alloc_host(struct forward *f, const struct widths *w, struct err *err)
{
    size_t n = f->max_tokens, pairs = n * w->heads;
    f->rows = calloc(n, sizeof *f->rows);
    f->out_rows = calloc(n, sizeof *f->out_rows);
    f->zeros = calloc(n, sizeof *f->zeros);
    f->ids = calloc(n, sizeof *f->ids);
    f->temperature = calloc(n, sizeof *f->temperature);
    f->out_scales = calloc(f->m->n_layers, sizeof *f->out_scales);
    f->state_from = calloc(n, sizeof *f->state_from);
    f->state = calloc(n, sizeof *f->state);
    f->head_token = calloc(pairs + 1, sizeof *f->head_token);
    int32_t *heads = calloc(pairs + 1, sizeof *heads);
    if (!f->rows || !f->out_rows || !f->zeros || !f->ids || !f->temperature || !f->out_scales ||
        !f->state_from || !f->state || !f->head_token || !heads) {
        free(heads);
        return err_set(err, ERR_NO_MEMORY, "forward pass of %zu tokens", n);
    }
    for (uint32_t i = 0; i < f->m->n_layers; i++) {
        f->out_scales[i] = NAN;
    }
    for (size_t r = 0; r < pairs; r++) {
        f->head_token[r] = (uint32_t)(r / w->heads);
        heads[r] = (int32_t)(r % w->heads);
    }
    int rc = pairs ? f->backend->ops->upload(f->backend, f->head_idx, heads, pairs * sizeof *heads,
                                             err)
                   : 0;
    free(heads);
    return rc;
}

static uint64_t n_created; /* names the steps of one; loop thread */

struct forward *forward_create(const struct model *model, struct backend *backend,
                               uint32_t max_tokens, uint32_t max_outputs, struct err *err)
{
    if (max_tokens == 0 || max_outputs == 0 || max_tokens > FORWARD_TOKENS_MAX) {
        err_set(err, ERR_BAD_INPUT, "a step of %u tokens, %u outputs", max_tokens, max_outputs);
        return NULL;
    }
    struct forward *f = calloc(1, sizeof *f);
    if (!f) {
        err_set(err, ERR_NO_MEMORY, "forward pass");
        return NULL;
    }
    f->m = model;
    f->backend = backend;
    f->number = ++n_created;
    f->max_tokens = max_tokens;
    f->max_outputs = max_outputs < max_tokens ? max_outputs : max_tokens;
    struct widths w = { 0 };
    see(&w, &model->output);
    see(&w, &model->token_embd);
    see(&w, &model->per_layer_proj.w);
    see(&w, &model->per_layer_embd);
    for (uint32_t i = 0; i < model->n_layers; i++) {
        measure_layer(model, &model->layers[i], &w);
    }
    const struct backend_limits limits = {
        .max_rows = max_tokens,
        .max_rows_wide = max_tokens * MAX(MAX(1, w.heads), model->n_experts_used),
        .max_k = w.k,
        .max_m = w.m,
        .max_k_act = model->dim,
        .max_heads = w.heads,
        .max_k_dim = w.k_dim,
        .max_v_dim = w.v_dim,
        .max_experts = MAX(model->n_experts, w.heads),
        .ctx_len = model->ctx_len,
    };
    if (backend->ops->reserve(backend, &limits, err) < 0 || alloc_device(f, &w, err) < 0 ||
        alloc_host(f, &w, err) < 0) {
        forward_destroy(&f);
        return NULL;
    }
    return f;
}

void forward_destroy(struct forward **forward)
{
    struct forward *f = *forward;
    if (!f) {
        return;
    }
    void *device[] = {
        f->x,       f->h,       f->t,   f->t2,      f->t3, f->qkv,       f->q2,
        f->att,     f->wide,    f->low, f->low_y,   f->g,  f->u,         f->router,
        f->weights, f->experts, f->eg,  f->eu,      f->ed, f->per_layer, f->per_layer_table,
        f->out,     f->logits,  f->fed, f->head_idx
    };
    for (size_t i = 0; i < sizeof device / sizeof device[0]; i++) {
        f->backend->ops->free(f->backend, device[i]);
    }
    for (uint32_t i = 0; i < MODEL_ROPES_MAX; i++) {
        f->backend->ops->free(f->backend, f->cs[i]);
    }
    free(f->rows);
    free(f->out_rows);
    free(f->zeros);
    free(f->ids);
    free(f->temperature);
    free(f->out_scales);
    free(f->state_from);
    free(f->state);
    free(f->head_token);
    free(f);
    *forward = NULL;
}

void forward_abandon(struct forward *f)
{
    f->paused = false;
}
