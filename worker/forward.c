/* See forward.h. forward_step reads top-down: check and make room, embed, layers, outputs, commit. */
#include "worker/forward.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/layer.h"

#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* ---- creation ---- */

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
    f->state_from = calloc(n, sizeof *f->state_from);
    f->state = calloc(n, sizeof *f->state);
    f->head_token = calloc(pairs + 1, sizeof *f->head_token);
    int32_t *heads = calloc(pairs + 1, sizeof *heads);
    if (!f->rows || !f->out_rows || !f->zeros || !f->ids || !f->temperature || !f->state_from ||
        !f->state || !f->head_token || !heads) {
        free(heads);
        return err_set(err, ERR_NO_MEMORY, "forward pass of %zu tokens", n);
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
        f->x,       f->h,       f->t,       f->t2,    f->t3, f->qkv,       f->q2,
        f->att,     f->wide,    f->low,     f->low_y, f->g,  f->u,         f->router,
        f->weights, f->experts, f->eg,      f->eu,    f->ed, f->per_layer, f->per_layer_table,
        f->out,     f->logits,  f->head_idx
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

void forward_set_progress(struct forward *f, _Atomic uint32_t *progress)
{
    f->progress = progress;
}

/* ---- a step ---- */

/* One past the last row of the sequence that starts at row `begin`. */
static uint32_t run_end(const struct forward_batch *batch, uint32_t begin)
{
    uint32_t end = begin + 1;
    while (end < batch->n_tokens && batch->seqs[end] == batch->seqs[begin]) {
        end++;
    }
    return end;
}

static int check_run(struct pass *p, uint32_t begin, uint32_t end)
{
    const struct forward_batch *batch = p->batch;
    uint32_t seq = batch->seqs[begin];
    if (seq >= p->kv->header->max_seqs) {
        return err_set(p->err, ERR_BAD_INPUT, "row %u: no sequence %u", begin, seq);
    }
    for (uint32_t i = 0; i < begin; i = run_end(batch, i)) {
        if (batch->seqs[i] == seq) {
            return err_set(p->err, ERR_BAD_INPUT, "row %u: sequence %u stands in two places", begin,
                           seq);
        }
    }
    int64_t pos = kvcache_pos(p->kv, seq);
    for (uint32_t i = begin; i < end; i++, pos++) {
        if (batch->positions[i] != pos) {
            return err_set(p->err, ERR_BAD_INPUT, "row %u: position %lld, the sequence is at %lld",
                           i, (long long)batch->positions[i], (long long)pos);
        }
        if (batch->tokens[i] < 0 || (uint32_t)batch->tokens[i] >= p->m->vocab_size) {
            return err_set(p->err, ERR_BAD_INPUT, "row %u: token %d, the vocabulary has %u", i,
                           batch->tokens[i], p->m->vocab_size);
        }
    }
    if (pos > p->m->ctx_len) {
        return err_set(p->err, ERR_NO_FIT, "position %lld, the context is %u", (long long)pos,
                       p->m->ctx_len);
    }
    return 0;
}

/* Checks everything that a caller can get wrong, makes room, and says for every row where it stands. */
static int admit(struct pass *p)
{
    const struct forward_batch *batch = p->batch;
    if (batch->n_tokens == 0 || batch->n_tokens > p->f->max_tokens) {
        return err_set(p->err, ERR_BAD_INPUT, "%u rows in a step, at most %u", batch->n_tokens,
                       p->f->max_tokens);
    }
    for (uint32_t begin = 0; begin < p->n; begin = run_end(batch, begin)) {
        if (check_run(p, begin, run_end(batch, begin)) < 0) {
            return -1;
        }
    }
    for (uint32_t begin = 0, end; begin < p->n; begin = end) {
        end = run_end(batch, begin);
        uint32_t seq = batch->seqs[begin];
        if (kvcache_reserve(p->kv, seq, end - begin, p->err) < 0) {
            return -1;
        }
        for (uint32_t i = begin; i < end; i++) {
            p->f->rows[i] = (struct kv_row){
                .pages = kvcache_table(p->kv, seq),
                .first_pos = p->kv->seqs[seq].first_pos,
                .pos = batch->positions[i],
                .end_pos = p->m->causal ? batch->positions[i] + 1 : batch->positions[end - 1] + 1,
            };
        }
    }
    return 0;
}

/* Waits for a part of the weights that may still be on its way. */
static int wait_for(struct pass *p, uint64_t data_end)
{
    const struct model_wait *wait = &p->m->wait;
    if (p->f->all_ready) {
        return 0;
    }
    if (wait->wait && wait->wait(wait->arg, data_end, p->err) < 0) {
        return -1;
    }
    const struct weights *w = p->m->weights;
    return p->ops->arrived ? p->ops->arrived(p->b, w->base, w->size, data_end, p->err) : 0;
}

/* The same before a layer: a step that has to wait can go on from there. */
static int wait_in_step(struct pass *p, uint64_t data_end, uint32_t next_layer)
{
    if (wait_for(p, data_end) == 0) {
        return 0;
    }
    p->f->paused = p->err->code == ERR_BUSY;
    p->f->next_layer = next_layer;
    return -1;
}

static int make_rope_tables(struct pass *p)
{
    const struct model *m = p->m;
    for (uint32_t i = 0; i < m->n_ropes; i++) {
        const struct op_rope_table op = {
            .pos = p->batch->positions,
            .freq = m->ropes[i].freq,
            .n_rows = p->n,
            .n_pairs = m->ropes[i].n_pairs,
            .mag = m->ropes[i].mag,
            .cs = p->f->cs[i],
        };
        if (p->ops->rope_table(p->b, &op, p->err) < 0) {
            return -1;
        }
    }
    for (uint32_t i = 0; m->temperature != 0.0 && i < p->n; i++) {
        double turns = floor((double)p->batch->positions[i] / m->temperature_ctx);
        p->f->temperature[i] = (float)(1.0 + m->temperature * log1p(turns));
    }
    return 0;
}

static int embed_rows(struct pass *p, const struct matrix *w, const int32_t *ids, float scale,
                      float *y)
{
    const struct op_embed op = { .w = w, .ids = ids, .n_rows = p->n, .scale = scale, .y = y };
    return p->ops->embed(p->b, &op, p->err);
}

/* gemma4: g = (rms(proj x / sqrt(dim)) + table row * sqrt(q)) / sqrt(2), a vector of q for every layer. */
static int embed_per_layer(struct pass *p)
{
    const struct model *m = p->m;
    struct forward *f = p->f;
    uint32_t q = m->per_layer_dim, width = q * m->n_layers;
    const struct op_add shrink = {
        .n_rows = p->n,
        .width = width,
        .a = f->per_layer,
        .a_stride = width,
        .y_scale = (float)(1.0 / sqrt((double)m->dim)),
        .y = f->per_layer,
        .y_stride = width,
    };
    const struct op_norm norm = {
        .kind = m->arch->norm,
        .n_rows = p->n,
        .n_groups = m->n_layers,
        .width = q,
        .x = f->per_layer,
        .x_stride = width,
        .w = m->per_layer_norm.w,
        .eps = m->norm_eps,
        .y = f->per_layer,
        .y_stride = width,
    };
    struct op_add join = shrink;
    join.b = f->per_layer_table;
    join.b_stride = width;
    join.b_rows = p->n;
    join.b_scale = 1.0f;
    join.y_scale = (float)sqrt(0.5);
    if (embed_rows(p, &m->per_layer_embd, p->batch->tokens, sqrtf((float)q), f->per_layer_table) <
            0 ||
        layer_linear_to(p, &m->per_layer_proj, f->x, f->per_layer) < 0 ||
        p->ops->add(p->b, &shrink, p->err) < 0 || p->ops->norm(p->b, &norm, p->err) < 0) {
        return -1;
    }
    return p->ops->add(p->b, &join, p->err);
}

static int embed(struct pass *p)
{
    const struct model *m = p->m;
    struct forward *f = p->f;
    if (embed_rows(p, &m->token_embd, p->batch->tokens, m->embed_scale, f->x) < 0) {
        return -1;
    }
    if (m->per_layer_dim && embed_per_layer(p) < 0) {
        return -1;
    }
    if (m->token_types.data && (embed_rows(p, &m->token_types, f->zeros, 1.0f, f->t) < 0 ||
                                layer_add(p, f->x, f->t, 1.0f) < 0)) {
        return -1;
    }
    if (m->position_embd.data) {
        for (uint32_t i = 0; i < p->n; i++) {
            f->ids[i] = (int32_t)p->batch->positions[i]; /* below ctx_len, which fits the table */
        }
        if (embed_rows(p, &m->position_embd, f->ids, 1.0f, f->t) < 0 ||
            layer_add(p, f->x, f->t, 1.0f) < 0) {
            return -1;
        }
    }
    return m->embd_norm.present ? layer_norm_to(p, &m->embd_norm, f->x, f->x) : 0;
}

/* gemma4's expert branch beside the dense one; t holds the dense result. */
static int add_gemma4_experts(struct pass *p, const struct model_layer *l)
{
    struct forward *f = p->f;
    const struct model_norm router_norm = { .w = l->router_scale, .present = true };
    const struct op_add shrink = {
        .n_rows = p->n,
        .width = p->m->dim,
        .a = f->t2,
        .a_stride = p->m->dim,
        .y_scale = (float)(1.0 / sqrt((double)p->m->dim)),
        .y = f->t2,
        .y_stride = p->m->dim,
    };
    if (layer_norm_to(p, &l->post_ffn_norm_1, f->t, f->t) < 0 ||
        layer_norm_to(p, &router_norm, f->x, f->t2) < 0 || p->ops->add(p->b, &shrink, p->err) < 0 ||
        layer_norm_to(p, &l->pre_ffn_norm_2, f->x, f->h) < 0 ||
        layer_moe(p, l, f->h, f->t2, f->t3) < 0 ||
        layer_norm_to(p, &l->post_ffn_norm_2, f->t3, f->t3) < 0) {
        return -1;
    }
    return layer_add(p, f->t, f->t3, 1.0f);
}

/* gemma4's per-layer input and output scale, at the end of a layer. */
static int end_gemma4_layer(struct pass *p, uint32_t i, const struct model_layer *l)
{
    struct forward *f = p->f;
    const struct model *m = p->m;
    uint32_t q = m->per_layer_dim;
    if (q) {
        const struct op_act gate = {
            .kind = OP_ACT_GELU,
            .n_rows = p->n,
            .width = q,
            .g_width = q,
            .g = f->u,
            .g_stride = q,
            .u = f->per_layer + (size_t)i * q,
            .u_stride = q * m->n_layers,
            .y = f->u,
            .y_stride = q,
        };
        if (layer_linear_to(p, &l->inp_gate, f->x, f->u) < 0 ||
            p->ops->act(p->b, &gate, p->err) < 0 || layer_linear_to(p, &l->proj, f->u, f->t) < 0 ||
            layer_norm_to(p, &l->post_norm, f->t, f->t) < 0 || layer_add(p, f->x, f->t, 1.0f) < 0) {
            return -1;
        }
    }
    if (!l->out_scale) {
        return 0;
    }
    float scale;
    if (p->ops->download(p->b, &scale, l->out_scale, sizeof scale, p->err) < 0) {
        return -1;
    }
    const struct op_add times = {
        .n_rows = p->n,
        .width = m->dim,
        .a = f->x,
        .a_stride = m->dim,
        .y_scale = scale,
        .y = f->x,
        .y_stride = m->dim,
    };
    return p->ops->add(p->b, &times, p->err);
}

/* The block forms of arch.h. Norms that a form has not are simply not there. */
static int run_layer(struct pass *p, uint32_t i)
{
    const struct model_layer *l = &p->m->layers[i];
    enum arch_block block = p->m->arch->block;
    bool gemma4 = p->m->arch->flags & ARCH_GEMMA4;
    float r = p->m->residual_scale;
    struct forward *f = p->f;
    const float *in = f->x;
    if (l->mixer != MODEL_NO_MIXER) {
        if (l->attn_norm.present) {
            if (layer_norm_to(p, &l->attn_norm, f->x, f->h) < 0) {
                return -1;
            }
            in = f->h;
        }
        if (layer_mix(p, i, in, f->t) < 0) {
            return -1;
        }
        if (block == ARCH_PAR) { /* both branches read the same normed input */
            return layer_ffn(p, l, in, f->t2) < 0 || layer_add(p, f->x, f->t, 1.0f) < 0
                       ? -1
                       : layer_add(p, f->x, f->t2, 1.0f);
        }
        if (block != ARCH_ENC && l->post_attn_norm.present &&
            layer_norm_to(p, &l->post_attn_norm, f->t, f->t) < 0) {
            return -1;
        }
        if (layer_add(p, f->x, f->t, r) < 0) {
            return -1;
        }
    }
    if (block == ARCH_ENC && layer_norm_to(p, &l->post_attn_norm, f->x, f->x) < 0) {
        return -1;
    }
    in = f->x;
    if (l->ffn_norm.present) {
        if (layer_norm_to(p, &l->ffn_norm, f->x, f->h) < 0) {
            return -1;
        }
        in = f->h;
    }
    if (l->has_ffn || l->has_moe) {
        if (l->has_ffn ? layer_ffn(p, l, in, f->t) < 0 : layer_moe(p, l, in, in, f->t) < 0) {
            return -1;
        }
        if (gemma4 && l->has_moe && add_gemma4_experts(p, l) < 0) {
            return -1;
        }
        if (block != ARCH_ENC && l->post_ffn_norm.present &&
            layer_norm_to(p, &l->post_ffn_norm, f->t, f->t) < 0) {
            return -1;
        }
        if (layer_add(p, f->x, f->t, r) < 0) {
            return -1;
        }
    }
    if (block == ARCH_ENC) {
        return layer_norm_to(p, &l->post_ffn_norm, f->x, f->x);
    }
    return gemma4 ? end_gemma4_layer(p, i, l) : 0;
}

/* ---- outputs ---- */

/* The states of `n` rows after the output norm, in f->out. */
static int gather_outputs(struct pass *p, const uint32_t *index, uint32_t n)
{
    const struct model *m = p->m;
    const struct op_gather gather = {
        .x = p->f->x,
        .x_stride = m->dim,
        .n_rows = n,
        .width = m->dim,
        .index = index,
        .y = p->f->out,
        .y_stride = m->dim,
    };
    const struct op_norm norm = {
        .kind = m->arch->norm,
        .n_rows = n,
        .n_groups = 1,
        .width = m->dim,
        .x = p->f->out,
        .x_stride = m->dim,
        .w = m->output_norm.w,
        .b = m->output_norm.b,
        .eps = m->norm_eps,
        .y = p->f->out,
        .y_stride = m->dim,
    };
    if (p->ops->gather(p->b, &gather, p->err) < 0) {
        return -1;
    }
    return m->output_norm.present ? p->ops->norm(p->b, &norm, p->err) : 0;
}

static int compute_logits(struct pass *p, uint32_t n)
{
    const struct model *m = p->m;
    const struct op_matmul op = {
        .x = p->f->out,
        .x_stride = m->dim,
        .n_rows = n,
        .k = m->dim,
        .n_products = 1,
        .products = { { &m->output, m->output_bias, p->f->logits, m->output.m } },
    };
    const struct op_add scale = {
        .n_rows = n,
        .width = m->output.m,
        .a = p->f->logits,
        .a_stride = m->output.m,
        .y_scale = m->logit_scale,
        .softcap = m->logit_softcap,
        .y = p->f->logits,
        .y_stride = m->output.m,
    };
    if (layer_matmul(p, &op) < 0) {
        return -1;
    }
    return m->logit_scale != 1.0f || m->logit_softcap > 0.0f ? p->ops->add(p->b, &scale, p->err)
                                                             : 0;
}

/* All rows with the flag, in groups that fit the work space, to host memory of `width` floats a row. */
static int put_out(struct pass *p, uint8_t flag, uint32_t width, const float *device, float *host)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n; i++) {
        if (p->batch->flags[i] & flag) {
            p->f->out_rows[n++] = i;
        }
    }
    for (uint32_t begin = 0; begin < n; begin += p->f->max_outputs) {
        uint32_t count = n - begin < p->f->max_outputs ? n - begin : p->f->max_outputs;
        if (gather_outputs(p, p->f->out_rows + begin, count) < 0 ||
            (flag == FORWARD_LOGITS && compute_logits(p, count) < 0) ||
            p->ops->download(p->b, host + (size_t)begin * width, device,
                             (size_t)count * width * sizeof *host, p->err) < 0) {
            return -1;
        }
    }
    return 0;
}

#define STEADY_ROWS 16 /* decode: these shapes come again and again */

/* Steps of as many rows and outputs are the same launches on the same memory. */
static int begin_step(struct pass *p)
{
    uint64_t n_outputs = 0;
    if (!p->ops->step) {
        return 0;
    }
    for (uint32_t i = 0; p->batch->flags && i < p->n; i++) {
        n_outputs += p->batch->flags[i] != 0;
    }
    uint64_t key = p->f->number << 32 | (uint64_t)p->n << 24 | n_outputs << 16;
    /* A step that may have to wait for weights is not kept: others may come between. */
    return p->ops->step(p->b, p->f->all_ready && p->n <= STEADY_ROWS ? key : 0, p->err);
}

int forward_step(struct forward *f, struct kvcache *kv, const struct forward_batch *batch,
                 float *logits, float *embeddings, struct err *err)
{
    struct pass p = {
        .f = f,
        .m = f->m,
        .b = f->backend,
        .ops = f->backend->ops,
        .kv = kv,
        .batch = batch,
        .n = batch->n_tokens,
        .err = err,
    };
    if (logits && !f->m->output.data) {
        return err_set(err, ERR_UNSUPPORTED, "%s gives embeddings, no logits", f->m->arch->name);
    }
    assert(kv->mirror || !p.ops->mirror); /* kvcache_place */
    if (!f->paused) {
        f->next_layer = 0;
        if (wait_for(&p, f->m->embed_data_end) < 0 || admit(&p) < 0 || begin_step(&p) < 0 ||
            make_rope_tables(&p) < 0 || embed(&p) < 0) {
            return -1;
        }
    }
    f->paused = false;
    for (uint32_t i = f->next_layer; i < f->m->n_layers; i++) {
        if (wait_in_step(&p, f->m->layers[i].data_end, i) < 0) {
            return -1;
        }
        if (f->progress) {
            atomic_fetch_add_explicit(f->progress, 1, memory_order_relaxed);
        }
        if (run_layer(&p, i) < 0) {
            return err_wrap(err, "layer %u", i);
        }
    }
    if ((logits || embeddings) && wait_in_step(&p, f->m->output_data_end, f->m->n_layers) < 0) {
        return -1;
    }
    if ((logits && put_out(&p, FORWARD_LOGITS, f->m->output.m, f->logits, logits) < 0) ||
        (embeddings && put_out(&p, FORWARD_EMBED, f->m->dim, f->out, embeddings) < 0)) {
        return -1;
    }
    if (p.ops->finish && p.ops->finish(p.b, err) < 0) {
        return -1;
    }
    f->all_ready = f->all_ready || logits || embeddings;
    for (uint32_t begin = 0, end; begin < p.n; begin = end) {
        end = run_end(batch, begin);
        kvcache_commit(kv, batch->seqs[begin], end - begin);
        if (kvcache_send(kv, batch->seqs[begin], false, err) < 0) {
            return -1;
        }
    }
    return 0;
}
