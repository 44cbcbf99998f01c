/* One layer: the mixers (attention, latent attention, gated delta net) and the feed-forwards. Formulas: the
 * architecture pages, sections 4, 5, 9.1 and 9.8. Each function is a flat story over ops. */
#include "worker/layer.h"

#include <assert.h>

/* ---- small ops ---- */

int layer_norm_to(struct pass *p, const struct model_norm *norm, const float *x, float *y)
{
    struct op_norm op = {
        .kind = p->m->arch->norm,
        .n_rows = p->n,
        .n_groups = 1,
        .width = p->m->dim,
        .x = x,
        .x_stride = p->m->dim,
        .w = norm->w,
        .b = norm->b,
        .eps = p->m->norm_eps,
        .y = y,
        .y_stride = p->m->dim,
    };
    if (p->f->owed && x == p->f->x) {
        op.sum = p->f->x;
        op.plus = p->f->t;
        op.plus_stride = p->m->dim;
        op.plus_scale = p->f->owed_scale;
        p->f->owed = false;
    }
    return p->ops->norm(p->b, &op, p->err);
}

void layer_owe(struct pass *p, float scale)
{
    assert(!p->f->owed);
    p->f->owed = true;
    p->f->owed_scale = scale;
}

int layer_settle(struct pass *p)
{
    if (!p->f->owed) {
        return 0;
    }
    p->f->owed = false;
    return layer_add(p, p->f->x, p->f->t, p->f->owed_scale);
}

int layer_add(struct pass *p, float *x, const float *branch, float scale)
{
    const struct op_add op = {
        .n_rows = p->n,
        .width = p->m->dim,
        .a = x,
        .a_stride = p->m->dim,
        .b = branch,
        .b_stride = p->m->dim,
        .b_rows = p->n,
        .b_scale = scale,
        .y_scale = 1.0f,
        .y = x,
        .y_stride = p->m->dim,
    };
    return p->ops->add(p->b, &op, p->err);
}

/* y += scale * B (A x) for one product of op. */
static int add_low_rank(struct pass *p, const struct op_matmul *op, const struct op_product *to)
{
    const struct low_rank *r = to->w->low_rank;
    const struct op_matmul down = {
        .x = op->x,
        .x_stride = op->x_stride,
        .n_rows = op->n_rows,
        .k = op->k,
        .n_products = 1,
        .products = { { .w = &r->a, .y = p->f->low, .y_stride = r->a.m } },
    };
    const struct op_matmul up = {
        .x = p->f->low,
        .x_stride = r->a.m,
        .n_rows = op->n_rows,
        .k = r->a.m,
        .n_products = 1,
        .products = { { .w = &r->b, .y = p->f->low_y, .y_stride = r->b.m } },
    };
    const struct op_add add = {
        .n_rows = op->n_rows,
        .width = r->b.m,
        .a = to->y,
        .a_stride = to->y_stride,
        .b = p->f->low_y,
        .b_stride = r->b.m,
        .b_rows = op->n_rows,
        .b_scale = r->scale,
        .y_scale = 1.0f,
        .y = to->y,
        .y_stride = to->y_stride,
    };
    return p->ops->matmul(p->b, &down, p->err) < 0 || p->ops->matmul(p->b, &up, p->err) < 0
               ? -1
               : p->ops->add(p->b, &add, p->err);
}

int layer_matmul(struct pass *p, const struct op_matmul *op)
{
    struct op_matmul first = *op;
    for (uint32_t i = 0; i < op->n_products; i++) {
        first.act = op->products[i].w->low_rank ? NULL
                                                : first.act; /* behind what an adapter adds */
    }
    int rc = p->ops->matmul(p->b, &first, p->err);
    for (uint32_t i = 0; rc == 0 && i < op->n_products; i++) {
        if (op->products[i].w->low_rank) {
            rc = add_low_rank(p, op, &op->products[i]);
        }
    }
    return rc == 0 && op->act && !first.act ? p->ops->act(p->b, op->act, p->err) : rc;
}

int layer_linear_to(struct pass *p, const struct model_linear *w, const float *x, float *y)
{
    const struct op_matmul op = {
        .x = x,
        .x_stride = w->w.k,
        .n_rows = p->n,
        .k = w->w.k,
        .n_products = 1,
        .products = { { .w = &w->w, .bias = w->bias, .y = y, .y_stride = w->w.m } },
    };
    return layer_matmul(p, &op);
}

/* Rows of `width` floats from one stride to another. */
static int copy_rows(struct pass *p, uint32_t n_rows, uint32_t width, const float *a,
                     uint32_t a_stride, float *y, uint32_t y_stride)
{
    const struct op_add op = {
        .n_rows = n_rows,
        .width = width,
        .a = a,
        .a_stride = a_stride,
        .y_scale = 1.0f,
        .y = y,
        .y_stride = y_stride,
    };
    return p->ops->add(p->b, &op, p->err);
}

/* In place, every head of the rows. */
static struct op_norm norm_of_heads(struct pass *p, const struct model_norm *norm, float *x,
                                    uint32_t x_stride, uint32_t n_heads, uint32_t head_dim)
{
    bool whole = p->m->arch->flags & ARCH_QK_NORM_WHOLE;
    return (struct op_norm){
        .kind = p->m->arch->norm,
        .n_rows = p->n,
        .n_groups = whole ? 1 : n_heads,
        .width = whole ? n_heads * head_dim : head_dim,
        .x = x,
        .x_stride = x_stride,
        .w = norm->w,
        .b = norm->b,
        .w_per_group = p->m->arch->flags & ARCH_QK_NORM_PER_HEAD,
        .eps = p->m->norm_eps,
        .y = x,
        .y_stride = x_stride,
    };
}

/* Only where there is such a rope. */
static struct op_rope turn_of_heads(struct pass *p, int rope, float *x, uint32_t x_stride,
                                    uint32_t n_heads, uint32_t head_dim, const float *row_scale)
{
    return (struct op_rope){
        .x = x,
        .x_stride = x_stride,
        .n_rows = p->n,
        .n_heads = n_heads,
        .head_dim = head_dim,
        .n_pairs = rope < 0 ? 0 : p->m->ropes[rope].n_pairs,
        .neox = p->m->arch->rope == ARCH_ROPE_NEOX,
        .cs = rope < 0 ? NULL : p->f->cs[rope],
        .row_scale = row_scale,
    };
}

/* Of this layer, with nothing before it. */
static struct op_kv_store store_of(struct pass *p, const struct model_layer *l, const float *k,
                                   uint32_t k_stride, const float *v, uint32_t v_stride)
{
    return (struct op_kv_store){
        .layout = &p->m->kv,
        .layer = l->kv_layer,
        .page_base = kvcache_pages(p->kv),
        .rows = p->f->rows,
        .n_rows = p->n,
        .k = k,
        .v = v,
        .k_stride = k_stride,
        .v_stride = v_stride,
    };
}

static int attend(struct pass *p, const struct model_layer *l, const float *q, uint32_t q_stride,
                  float *o)
{
    const struct op_attention op = {
        .layout = &p->m->kv,
        .layer = l->kv_layer,
        .page_base = kvcache_pages(p->kv),
        .rows = p->f->rows,
        .n_rows = p->n,
        .n_heads = l->n_heads,
        .q = q,
        .q_stride = q_stride,
        .o = o,
        .o_stride = l->n_heads * l->v_dim,
        .scale = l->scale,
        .softcap = l->softcap,
        .window = l->window,
        .sinks = l->sinks,
    };
    return p->ops->attention(p->b, &op, p->err);
}

/* ---- attention ---- */

/* q, k and v side by side in f->qkv; a gated layer's double-width q goes to f->q2 as it is. */
static int project_qkv(struct pass *p, const struct model_layer *l, const float *x, uint32_t stride,
                       uint32_t k_at, uint32_t v_at)
{
    struct forward *f = p->f;
    bool gated = p->m->arch->flags & ARCH_HYBRID;
    struct op_matmul op = { .x = x, .x_stride = p->m->dim, .n_rows = p->n, .k = p->m->dim };
    struct op_product *product = op.products;
    if (l->qkv.w.data) {
        *product++ = (struct op_product){ &l->qkv.w, l->qkv.bias, f->qkv, stride };
    } else {
        *product++ = gated ? (struct op_product){ &l->q.w, l->q.bias, f->q2, l->q.w.m }
                           : (struct op_product){ &l->q.w, l->q.bias, f->qkv, stride };
        if (l->writes_kv) {
            *product++ = (struct op_product){ &l->k.w, l->k.bias, f->qkv + k_at, stride };
        }
        if (l->writes_kv && !l->v_from_k) {
            *product++ = (struct op_product){ &l->v.w, l->v.bias, f->qkv + v_at, stride };
        }
    }
    op.n_products = (uint32_t)(product - op.products);
    return layer_matmul(p, &op);
}

/* Queries, keys and values are normed and turned where the layer says so, and kept. */
static int place_qkv(struct pass *p, const struct model_layer *l, float *q, uint32_t q_stride,
                     float *k, float *v, uint32_t stride)
{
    const struct model_norm plain = { .present = true };
    uint32_t h = l->n_heads, g = l->n_kv_heads, d = l->k_dim;
    const float *temperature = p->m->temperature != 0.0 ? p->f->temperature : NULL;
    bool turns = l->rope >= 0;
    const struct op_norm q_norm = norm_of_heads(p, &l->q_norm, q, q_stride, h, d),
                         k_norm = norm_of_heads(p, &l->k_norm, k, stride, g, d),
                         v_norm = norm_of_heads(p, &plain, v, stride, g, l->v_dim);
    const struct op_rope q_rope = turn_of_heads(p, l->rope, q, q_stride, h, d, temperature),
                         k_rope = turn_of_heads(p, l->rope, k, stride, g, d, NULL);
    struct op_kv_store store = store_of(p, l, k, stride, v, stride);
    store.q_norm = l->q_norm.present ? &q_norm : NULL;
    store.q_rope = turns ? &q_rope : NULL;
    if (!l->writes_kv) {
        return backend_before_store(p->b, &store, p->err);
    }
    store.k_norm = l->k_norm.present ? &k_norm : NULL;
    store.k_rope = turns ? &k_rope : NULL;
    store.v_norm = p->m->arch->flags & ARCH_GEMMA4 ? &v_norm : NULL;
    return p->ops->kv_store(p->b, &store, p->err);
}

static int mix_attention(struct pass *p, const struct model_layer *l, const float *x, float *y)
{
    struct forward *f = p->f;
    bool gated = p->m->arch->flags & ARCH_HYBRID;
    uint32_t h = l->n_heads, g = l->n_kv_heads, d = l->k_dim;
    uint32_t k_at = h * d, v_at = k_at + g * d, stride = v_at + g * l->v_dim;
    float *q = f->qkv, *k = f->qkv + k_at, *v = f->qkv + v_at;
    if (project_qkv(p, l, x, stride, k_at, v_at) < 0) {
        return -1;
    }
    if (gated) { /* per head: d query values, d gate values */
        if (copy_rows(p, p->n * h, d, f->q2, 2 * d, f->wide, d) < 0) {
            return -1;
        }
        q = f->wide;
    }
    uint32_t q_stride = gated ? h * d : stride;
    if (l->writes_kv && l->v_from_k && copy_rows(p, p->n, g * d, k, stride, v, stride) < 0) {
        return -1;
    }
    if (place_qkv(p, l, q, q_stride, k, v, stride) < 0) {
        return -1;
    }
    if (attend(p, l, q, q_stride, f->att) < 0) {
        return -1;
    }
    if (gated) {
        const struct op_act gate = {
            .kind = OP_ACT_SIGMOID,
            .n_rows = p->n * h,
            .width = d,
            .g = f->q2 + d,
            .g_stride = 2 * d,
            .g_width = d,
            .u = f->att,
            .u_stride = d,
            .y = f->att,
            .y_stride = d,
        };
        if (p->ops->act(p->b, &gate, p->err) < 0) {
            return -1;
        }
    }
    return layer_linear_to(p, &l->o, f->att, y);
}

/* ---- latent attention ---- */

/* The cached head is [c ; rope(kr)] and its first part is the value: queries are absorbed into the latent space,
 * q'_h = B_h q_nope, and the heads' outputs leave it by attn_v_b. */
static int attend_latent(struct pass *p, const struct model_layer *l, float *q, float *kva,
                         const struct op_norm *norm, const struct op_rope *q_rope,
                         const struct op_rope *k_rope)
{
    struct forward *f = p->f;
    uint32_t h = l->n_heads, rank = l->latent_dim, n_rot = l->k_dim - rank, d = l->nope_dim + n_rot;
    const struct op_matmul_experts absorb = {
        .w = &l->k_b,
        .experts = f->head_idx,
        .x = q,
        .x_stride = d,
        .x_share = 1,
        .n_rows = p->n * h,
        .y = f->wide,
        .y_stride = l->k_dim,
    };
    const struct op_matmul_experts leave = {
        .w = &l->v_b,
        .experts = f->head_idx,
        .x = f->q2,
        .x_stride = rank,
        .x_share = 1,
        .n_rows = p->n * h,
        .y = f->att,
        .y_stride = l->mla_v_dim,
    };
    struct op_kv_store store = store_of(p, l, kva, l->k_dim, kva, l->k_dim);
    store.k_norm = norm;
    store.q_rope = q_rope;
    store.k_rope = k_rope;
    if (p->ops->kv_store(p->b, &store, p->err) < 0 ||
        p->ops->matmul_experts(p->b, &absorb, p->err) < 0 ||
        copy_rows(p, p->n * h, n_rot, q + l->nope_dim, d, f->wide + rank, l->k_dim) < 0 ||
        attend(p, l, f->wide, h * l->k_dim, f->q2) < 0) {
        return -1;
    }
    return p->ops->matmul_experts(p->b, &leave, p->err);
}

/* Keys and values of every head are expanded and cached as ordinary ones. */
static int attend_expanded(struct pass *p, const struct model_layer *l, const float *q, float *kva)
{
    struct forward *f = p->f;
    uint32_t h = l->n_heads, rank = l->latent_dim, d = l->k_dim, nope = l->nope_dim,
             n_rot = d - nope;
    uint32_t kva_stride = rank + n_rot, pair = nope + l->v_dim;
    float *k = f->q2, *v = f->att; /* att is written by the attention after v was stored */
    const struct op_matmul expand = {
        .x = kva,
        .x_stride = kva_stride,
        .n_rows = p->n,
        .k = rank,
        .n_products = 1,
        .products = { { .w = &l->kv_b.w,
                        .bias = l->kv_b.bias,
                        .y = f->wide,
                        .y_stride = h * pair } },
    };
    const struct op_gather spread = {
        .x = kva + rank,
        .x_stride = kva_stride,
        .n_rows = p->n * h,
        .width = n_rot,
        .index = f->head_token,
        .y = k + nope,
        .y_stride = d,
    };
    const struct op_kv_store store = store_of(p, l, k, h * d, v, h * l->v_dim);
    if (layer_matmul(p, &expand) < 0 || copy_rows(p, p->n * h, nope, f->wide, pair, k, d) < 0 ||
        p->ops->gather(p->b, &spread, p->err) < 0 ||
        copy_rows(p, p->n * h, l->v_dim, f->wide + nope, pair, v, l->v_dim) < 0 ||
        p->ops->kv_store(p->b, &store, p->err) < 0) {
        return -1;
    }
    return attend(p, l, q, h * d, f->att);
}

static int mix_mla(struct pass *p, const struct model_layer *l, const float *x, float *y)
{
    struct forward *f = p->f;
    bool fused = l->kv_b.w.data != NULL;
    uint32_t h = l->n_heads, rank = l->latent_dim;
    uint32_t n_rot = fused ? l->k_dim - l->nope_dim : l->k_dim - rank;
    uint32_t d = l->nope_dim + n_rot, kva_stride = rank + n_rot;
    float *q = f->qkv, *kva = f->qkv + (size_t)p->f->max_tokens * h * d;
    if (l->q_a.w.data) {
        const struct op_norm norm = {
            .kind = p->m->arch->norm,
            .n_rows = p->n,
            .n_groups = 1,
            .width = l->q_a.w.m,
            .x = f->wide,
            .x_stride = l->q_a.w.m,
            .w = l->q_a_norm.w,
            .eps = p->m->norm_eps,
            .y = f->wide,
            .y_stride = l->q_a.w.m,
        };
        if (layer_linear_to(p, &l->q_a, x, f->wide) < 0 || p->ops->norm(p->b, &norm, p->err) < 0 ||
            layer_linear_to(p, &l->q_b, f->wide, q) < 0) {
            return -1;
        }
    } else if (layer_linear_to(p, &l->q, x, q) < 0) {
        return -1;
    }
    const struct op_norm norm = {
        .kind = p->m->arch->norm,
        .n_rows = p->n,
        .n_groups = 1,
        .width = rank,
        .x = kva,
        .x_stride = kva_stride,
        .w = l->kv_a_norm.w,
        .eps = p->m->norm_eps,
        .y = kva,
        .y_stride = kva_stride,
    };
    const struct op_rope q_rope = turn_of_heads(p, l->rope, q + l->nope_dim, h * d, h, d, NULL);
    const struct op_rope k_rope = turn_of_heads(p, l->rope, kva + rank, kva_stride, 1, n_rot, NULL);
    if (layer_linear_to(p, &l->kv_a, x, kva) < 0) {
        return -1;
    }
    if (fused) { /* what is expanded is normed; what is turned comes after */
        if (p->ops->norm(p->b, &norm, p->err) < 0 || p->ops->rope(p->b, &q_rope, p->err) < 0 ||
            p->ops->rope(p->b, &k_rope, p->err) < 0 || attend_expanded(p, l, q, kva) < 0) {
            return -1;
        }
    } else if (attend_latent(p, l, q, kva, &norm, &q_rope, &k_rope) < 0) {
        return -1;
    }
    return layer_linear_to(p, &l->o, f->att, y);
}

/* ---- gated delta net ---- */

/* Older files pack all inputs of a key head together: q, k, v (r heads), z (r heads). Newer ones pack only b and a. */
static int unpack_groups(struct pass *p, const float *packed, uint32_t packed_width,
                         const uint32_t *widths, float *const *parts, const uint32_t *strides,
                         uint32_t n_parts)
{
    uint32_t hk = p->m->ssm_k_heads, group = packed_width / hk;
    for (uint32_t g = 0; g < hk; g++) {
        uint32_t at = g * group;
        for (uint32_t i = 0; i < n_parts; i++) {
            if (copy_rows(p, p->n, widths[i], packed + at, packed_width, parts[i] + g * widths[i],
                          strides[i]) < 0) {
                return -1;
            }
            at += widths[i];
        }
    }
    return 0;
}

static int delta_inputs(struct pass *p, const struct model_layer *l, const float *x, float *u,
                        float *z, float *ba)
{
    const struct model *m = p->m;
    struct forward *f = p->f;
    uint32_t ds = m->ssm_state_dim, hk = m->ssm_k_heads, hv = m->ssm_v_heads, r = hv / hk;
    uint32_t channels = l->conv_channels, inner = hv * ds;
    if (l->qkv.w.data) {
        const struct op_matmul op = {
            .x = x,
            .x_stride = m->dim,
            .n_rows = p->n,
            .k = m->dim,
            .n_products = 2,
            .products = { { &l->qkv.w, l->qkv.bias, u, channels },
                          { &l->gate.w, l->gate.bias, z, inner } },
        };
        if (layer_matmul(p, &op) < 0) {
            return -1;
        }
    } else {
        const uint32_t widths[4] = { ds, ds, r * ds, r * ds };
        float *const parts[4] = { u, u + hk * ds, u + 2 * hk * ds, z };
        const uint32_t strides[4] = { channels, channels, channels, inner };
        if (layer_linear_to(p, &l->in, x, f->q2) < 0 ||
            unpack_groups(p, f->q2, channels + inner, widths, parts, strides, 4) < 0) {
            return -1;
        }
    }
    if (l->ba.w.data) {
        const uint32_t widths[2] = { r, r };
        float *const parts[2] = { ba, ba + hv };
        const uint32_t strides[2] = { 2 * hv, 2 * hv };
        return layer_linear_to(p, &l->ba, x, f->q2) < 0
                   ? -1
                   : unpack_groups(p, f->q2, 2 * hv, widths, parts, strides, 2);
    }
    const struct op_matmul op = {
        .x = x,
        .x_stride = m->dim,
        .n_rows = p->n,
        .k = m->dim,
        .n_products = 2,
        .products = { { &l->beta.w, l->beta.bias, ba, 2 * hv },
                      { &l->alpha.w, l->alpha.bias, ba + hv, 2 * hv } },
    };
    return layer_matmul(p, &op);
}

static int mix_delta_net(struct pass *p, const struct model_layer *l, const float *x, float *y)
{
    const struct model *m = p->m;
    struct forward *f = p->f;
    uint32_t ds = m->ssm_state_dim, hv = m->ssm_v_heads, inner = hv * ds;
    float *u = f->wide, *z = u + (size_t)f->max_tokens * l->conv_channels;
    float *ba = z + (size_t)f->max_tokens * inner;
    if (delta_inputs(p, l, x, u, z, ba) < 0) {
        return -1;
    }
    for (uint32_t i = 0; i < p->n; i++) {
        uint32_t seq = p->batch->seqs[i];
        bool first = i == 0 || p->batch->seqs[i - 1] != seq;
        f->state[i] = (float *)(void *)(kvcache_state(p->kv, seq, true) + l->state_off);
        f->state_from[i] =
            first ? (const float *)(void *)(kvcache_state(p->kv, seq, false) + l->state_off) : NULL;
    }
    const struct op_delta_net op = {
        .n_rows = p->n,
        .n_k_heads = m->ssm_k_heads,
        .n_v_heads = hv,
        .state_dim = ds,
        .conv_taps = m->ssm_conv,
        .interleaved = m->arch->flags & ARCH_INTERLEAVED_HEADS,
        .u = u,
        .z = z,
        .b = ba,
        .a = ba + hv,
        .u_stride = l->conv_channels,
        .z_stride = inner,
        .b_stride = 2 * hv,
        .a_stride = 2 * hv,
        .conv = l->conv,
        .dt_bias = l->dt_bias,
        .a_coef = l->a_coef,
        .norm = l->ssm_norm.w,
        .eps = m->norm_eps,
        .from = f->state_from,
        .state = f->state,
        .y = f->att,
        .y_stride = inner,
    };
    return p->ops->delta_net(p->b, &op, p->err) < 0 ? -1 : layer_linear_to(p, &l->out, f->att, y);
}

int layer_mix(struct pass *p, uint32_t i, const float *x, float *y)
{
    const struct model_layer *l = &p->m->layers[i];
    switch (l->mixer) {
    case MODEL_ATTENTION:
        return mix_attention(p, l, x, y);
    case MODEL_MLA:
        return mix_mla(p, l, x, y);
    case MODEL_DELTA_NET:
        return mix_delta_net(p, l, x, y);
    case MODEL_LINEAR_ONLY:
        return layer_linear_to(p, &l->o, x, y);
    case MODEL_NO_MIXER:
        break;
    }
    assert(!"layer: a layer without a mixer is not mixed");
    return -1;
}

/* ---- feed-forward ---- */

/* y = down(act(gate x) * up x), or without the gate; fused: gate rows first in `up`. */
static int gated(struct pass *p, const struct model_linear *gate, const struct model_linear *up,
                 const struct model_linear *down, bool fused, const float *x, float *y)
{
    struct forward *f = p->f;
    uint32_t width = down->w.k;
    struct op_matmul op = {
        .x = x,
        .x_stride = p->m->dim,
        .n_rows = p->n,
        .k = p->m->dim,
        .n_products = 1,
        .products = { { &up->w, up->bias, fused ? f->g : f->u, up->w.m } },
    };
    if (gate->w.data) {
        op.products[op.n_products++] = (struct op_product){ &gate->w, gate->bias, f->g, width };
    }
    struct op_act act = {
        .kind = p->m->arch->act,
        .n_rows = p->n,
        .width = width,
        .g_width = width,
        .g = f->g,
        .g_stride = width,
        .u = f->u,
        .u_stride = width,
        .y = f->u,
        .y_stride = width,
    };
    if (fused) {
        act.g_stride = act.u_stride = 2 * width;
        act.u = f->g + width;
    } else if (!gate->w.data) {
        act.g = f->u;
        act.u = NULL;
    }
    op.act = &act;
    return layer_matmul(p, &op) < 0 ? -1 : layer_linear_to(p, down, f->u, y);
}

int layer_ffn(struct pass *p, const struct model_layer *l, const float *x, float *y)
{
    return gated(p, &l->ffn_gate, &l->ffn_up, &l->ffn_down, l->fused, x, y);
}

static int route(struct pass *p, const struct model_layer *l, const float *x)
{
    const struct model *m = p->m;
    const struct op_moe_route op = {
        .logits = p->f->router,
        .logits_stride = m->n_experts,
        .n_rows = p->n,
        .n_experts = m->n_experts,
        .n_used = m->n_experts_used,
        .n_groups = m->n_expert_groups,
        .n_groups_used = m->n_expert_groups_used,
        .gating = m->gating,
        .normalise = m->expert_normalise,
        .softmax_chosen = m->arch->moe == ARCH_MOE_SOFTMAX_CHOSEN,
        .scale = m->expert_scale,
        .choice_bias = l->choice_bias,
        .experts = p->f->experts,
        .weights = p->f->weights,
    };
    return layer_linear_to(p, &l->router, x, p->f->router) < 0
               ? -1
               : p->ops->moe_route(p->b, &op, p->err);
}

static int shared_expert(struct pass *p, const struct model_layer *l, const float *x, float *y)
{
    struct forward *f = p->f;
    if (gated(p, &l->shared_gate, &l->shared_up, &l->shared_down, false, x, f->t2) < 0) {
        return -1;
    }
    if (l->shared_router.w.data) {
        const struct op_act weigh = {
            .kind = OP_ACT_SIGMOID,
            .n_rows = p->n,
            .width = p->m->dim,
            .g = f->router,
            .g_stride = 1,
            .g_width = 1,
            .u = f->t2,
            .u_stride = p->m->dim,
            .y = f->t2,
            .y_stride = p->m->dim,
        };
        if (layer_linear_to(p, &l->shared_router, x, f->router) < 0 ||
            p->ops->act(p->b, &weigh, p->err) < 0) {
            return -1;
        }
    }
    return layer_add(p, y, f->t2, 1.0f);
}

int layer_moe(struct pass *p, const struct model_layer *l, const float *x, const float *router_x,
              float *y)
{
    struct forward *f = p->f;
    const struct model *m = p->m;
    uint32_t used = m->n_experts_used, slots = p->n * used, width = l->expert_dim;
    const struct op_matmul_experts up = {
        .w = &l->exp_up,
        .bias = l->exp_up_bias,
        .experts = f->experts,
        .x = x,
        .x_stride = m->dim,
        .x_share = used,
        .n_rows = slots,
        .y = l->merged ? f->eg : f->eu,
        .y_stride = l->exp_up.m,
    };
    struct op_matmul_experts gate = up;
    gate.w = &l->exp_gate;
    gate.bias = l->exp_gate_bias;
    gate.y = f->eg;
    const struct op_act act = {
        .kind = m->arch->act,
        .n_rows = slots,
        .width = width,
        .g_width = width,
        .g = f->eg,
        .g_stride = l->merged ? 2 * width : width,
        .u = l->merged ? f->eg + width : f->eu,
        .u_stride = l->merged ? 2 * width : width,
        .y = f->eu,
        .y_stride = width,
    };
    const struct op_matmul_experts down = {
        .w = &l->exp_down,
        .bias = l->exp_down_bias,
        .scale = l->exp_down_scale,
        .experts = f->experts,
        .x = f->eu,
        .x_stride = width,
        .x_share = 1,
        .n_rows = slots,
        .y = f->ed,
        .y_stride = m->dim,
    };
    const struct op_moe_sum sum = {
        .x = f->ed,
        .x_stride = m->dim,
        .n_rows = p->n,
        .n_used = used,
        .width = m->dim,
        .weights = f->weights,
        .y = y,
        .y_stride = m->dim,
    };
    if (route(p, l, router_x) < 0 || p->ops->matmul_experts(p->b, &up, p->err) < 0 ||
        (!l->merged && p->ops->matmul_experts(p->b, &gate, p->err) < 0) ||
        p->ops->act(p->b, &act, p->err) < 0 || p->ops->matmul_experts(p->b, &down, p->err) < 0 ||
        p->ops->moe_sum(p->b, &sum, p->err) < 0) {
        return -1;
    }
    return l->shared_up.w.data ? shared_expert(p, l, x, y) : 0;
}
