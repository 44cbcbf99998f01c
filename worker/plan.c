#include "worker/plan.h"

#include <inttypes.h>

#include "proto/limits.h"
#include "worker/batch.h"
#include "worker/forward.h"
#include "worker/mirror.h"

const char *const plan_part_names[PLAN_N_PARTS] = {
    [PLAN_BEFORE] = "in use",        [PLAN_WEIGHTS] = "weights",
    [PLAN_KV] = "keys and values",   [PLAN_RECURRENT] = "recurrent states",
    [PLAN_WORKSPACE] = "work space", [PLAN_MARGIN] = "margin",
};

uint32_t plan_rows_max(const struct model *m, uint32_t ctx_len)
{
    if (m->causal) {
        return BATCH_ROWS_MAX + LIMIT_WORKER_SEQUENCES;
    }
    return ctx_len < PLAN_ENCODER_ROWS ? ctx_len : PLAN_ENCODER_ROWS;
}

/* Binds the model and makes its work space, counted only. *m is the caller's to destroy while the backend is dry. */
static int count(const struct weights *w, struct backend *b, const struct plan_question *q,
                 uint32_t ctx_len, struct plan *p, struct model **m, struct err *err)
{
    const struct model_options options = { q->k_type, q->v_type, ctx_len, q->wait };
    b->used_bytes = p->bytes[PLAN_BEFORE];
    *m = model_bind(w, b, &options, err);
    if (!*m) {
        return -1;
    }
    p->bytes[PLAN_WEIGHTS] = b->used_bytes - p->bytes[PLAN_BEFORE];
    p->rows_max = plan_rows_max(*m, (*m)->ctx_len);
    p->n_layers = (*m)->n_layers;
    p->train_ctx_len = (*m)->train_ctx_len;
    uint64_t before = b->used_bytes;
    struct forward *f = forward_create(*m, b, p->rows_max, q->n_sequences, err);
    int rc = f ? 0 : -1;
    p->bytes[PLAN_WORKSPACE] = b->used_bytes - before;
    forward_destroy(&f);
    return rc;
}

/* A CPU computes in the state segment: its budget decides, and the weights are the segment's. */
static int fit_host(const struct weights *w, const struct model *m, const struct plan_question *q,
                    struct plan *p, struct err *err)
{
    if (state_fit(&m->kv, q->n_sequences, m->ctx_len, q->state_bytes_max, &p->shape, err) < 0) {
        return -1;
    }
    p->bytes[PLAN_WEIGHTS] = w->header->data_bytes;
    return 0;
}

static int cannot(const struct plan *p, const struct kv_layout *layout, struct err *err)
{
    uint64_t fixed = 0;
    for (int i = 0; i < PLAN_N_PARTS; i++) {
        fixed += i == PLAN_KV ? 0 : p->bytes[i];
    }
    return err_set(err, ERR_NO_FIT,
                   "%.2f GiB are needed before the first token (%.2f of weights), a page of %u "
                   "takes %.1f MiB, and the device has %.2f GiB for it",
                   (double)fixed / (1u << 30), (double)p->bytes[PLAN_WEIGHTS] / (1u << 30),
                   KV_PAGE_TOKENS, (double)layout->page_bytes / (1u << 20),
                   (double)p->room_bytes / (1u << 30));
}

/* Pages for all sequences, from what is left: up to half of the device, so that other models find room, or one whole
 * context if that is more. When not even that fits, the context gets shorter. */
static int fit_device(const struct model *m, const struct plan_question *q, struct plan *p,
                      struct err *err)
{
    const struct kv_layout *layout = &m->kv;
    struct state_shape *shape = &p->shape;
    *shape = (struct state_shape){ .max_seqs = 2 * q->n_sequences, .ctx_len = m->ctx_len };
    p->bytes[PLAN_RECURRENT] = mirror_states_bytes(layout, shape->max_seqs);
    uint64_t fixed = 0;
    for (int i = 0; i < PLAN_N_PARTS; i++) {
        fixed += i == PLAN_KV ? 0 : p->bytes[i];
    }
    uint64_t room = fixed < p->room_bytes ? p->room_bytes - fixed : 0;
    uint64_t most = room / layout->page_bytes;
    while (most < kvcache_pages_for(shape->ctx_len) && shape->ctx_len > KV_PAGE_TOKENS) {
        uint32_t shorter = (shape->ctx_len - shape->ctx_len / 8) / KV_PAGE_TOKENS * KV_PAGE_TOKENS;
        shape->ctx_len = shorter > KV_PAGE_TOKENS ? shorter : KV_PAGE_TOKENS;
    }
    uint64_t wanted = (uint64_t)kvcache_pages_for(shape->ctx_len) * q->n_sequences;
    uint64_t half = p->room_bytes / 2 / layout->page_bytes;
    half = half > kvcache_pages_for(shape->ctx_len) ? half : kvcache_pages_for(shape->ctx_len);
    uint64_t n = most < wanted ? most : wanted;
    n = n < half ? n : half;
    if (most < kvcache_pages_for(shape->ctx_len) || n >= KV_PAGE_NONE) {
        return cannot(p, layout, err);
    }
    shape->n_pages = (uint32_t)n;
    p->bytes[PLAN_KV] = n * layout->page_bytes;
    return state_fit_mirror(layout, q->state_bytes_max, shape, err);
}

static int fit(const struct weights *w, const struct model *m, const struct backend *b,
               const struct plan_question *q, struct plan *p, struct err *err)
{
    return b->ops->mirror ? fit_device(m, q, p, err) : fit_host(w, m, q, p, err);
}

int plan_compute(const struct weights *w, struct backend *b, const struct plan_question *q,
                 struct plan *p, struct err *err)
{
    struct model *m = NULL;
    *p = (struct plan){ .bytes = {
                            [PLAN_BEFORE] = b->used_bytes, [PLAN_MARGIN] = b->margin_bytes } };
    p->room_bytes = b->ops->room ? b->ops->room(b) : UINT64_MAX;
    b->dry = true;
    int rc = count(w, b, q, q->ctx_len, p, &m, err);
    if (rc == 0) {
        rc = fit(w, m, b, q, p, err);
    }
    if (rc == 0 && p->shape.ctx_len < m->ctx_len) {
        /* Work space, and some models' rotation, go by the context's length. */
        uint32_t ctx_len = p->shape.ctx_len;
        model_destroy(&m);
        rc = count(w, b, q, ctx_len, p, &m, err);
        rc = rc == 0 ? fit(w, m, b, q, p, err) : rc;
    }
    if (rc == 0) {
        p->host_bytes = state_size(&m->kv, &p->shape);
        if (!b->ops->mirror) {
            p->bytes[PLAN_KV] = p->host_bytes; /* with its tables and states */
        }
    }
    model_destroy(&m);
    b->dry = false;
    b->used_bytes = p->bytes[PLAN_BEFORE];
    for (int i = 0; i < PLAN_N_PARTS; i++) {
        p->total_bytes += p->bytes[i];
    }
    return rc;
}
