#include "worker/plan.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"
#include "worker/batch.h"
#include "worker/forward.h"
#include "worker/mirror.h"

const char *const plan_part_names[PLAN_N_PARTS] = {
    [PLAN_BEFORE] = "in use",
    [PLAN_WEIGHTS] = "weights",
    [PLAN_RING] = "stream ring",
    [PLAN_KV] = "keys and values",
    [PLAN_RECURRENT] = "recurrent states",
    [PLAN_WORKSPACE] = "work space",
    [PLAN_MARGIN] = "margin",
};

uint32_t plan_rows_max(const struct model *m, uint32_t ctx_len, const struct spill *spill)
{
    if (m->causal) {
        return (spill->narrow ? PLAN_STREAMED_ROWS : BATCH_ROWS_MAX) + LIMIT_WORKER_SEQUENCES;
    }
    return ctx_len < PLAN_ENCODER_ROWS ? ctx_len : PLAN_ENCODER_ROWS;
}

double plan_step_bytes(const struct weights *w, const struct model *m)
{
    double sum = 0;
    bool tied = !weights_find_tensor(w, "output.weight");
    for (size_t i = 0; i < w->n_tensors; i++) {
        const struct weights_tensor *t = &w->tensors[i];
        double size = (double)t->size_bytes;
        if (strcmp(t->name, "per_layer_token_embd.weight") == 0 ||
            (!tied && strcmp(t->name, "token_embd.weight") == 0)) {
            continue;
        }
        if (t->n_dims == 3 && m->n_experts > 0 && t->ne[2] == m->n_experts) {
            size *= (double)m->n_experts_used / (double)m->n_experts;
        }
        sum += size;
    }
    return sum;
}

/* Binds the model and makes its work space, counted only. *m is the caller's to destroy while the backend is dry. */
static int count(const struct weights *w, struct backend *b, const struct plan_question *q,
                 uint32_t ctx_len, struct plan *p, struct model **m, struct err *err)
{
    const struct model_options options = { q->k_type, q->v_type, ctx_len, q->wait, &p->spill };
    uint64_t host_before = b->spilled_bytes;
    b->used_bytes = p->bytes[PLAN_BEFORE];
    *m = model_bind(w, b, &options, err);
    if (!*m) {
        return -1;
    }
    p->bytes[PLAN_RING] = BACKEND_SLOTS * p->spill.slot_bytes;
    p->bytes[PLAN_WEIGHTS] = b->used_bytes - p->bytes[PLAN_BEFORE] - p->bytes[PLAN_RING];
    p->host_weights_bytes = b->spilled_bytes - host_before;
    b->spilled_bytes = host_before;
    p->step_bytes = (uint64_t)plan_step_bytes(w, *m);
    p->rows_max = plan_rows_max(*m, (*m)->ctx_len, &p->spill);
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

/* Of everything but keys and values. */
static uint64_t fixed_bytes(const struct plan *p)
{
    uint64_t fixed = 0;
    for (int i = 0; i < PLAN_N_PARTS; i++) {
        fixed += i == PLAN_KV ? 0 : p->bytes[i];
    }
    return fixed;
}

static int cannot(const struct plan *p, const struct kv_layout *layout, struct err *err)
{
    return err_set(err, ERR_NO_FIT,
                   "%.2f GiB are needed before the first token (%.2f of weights), a page of %u "
                   "takes %.1f MiB, and the device has %.2f GiB for it",
                   (double)fixed_bytes(p) / (1u << 30), (double)p->bytes[PLAN_WEIGHTS] / (1u << 30),
                   KV_PAGE_TOKENS, (double)layout->page_bytes / (1u << 20),
                   (double)p->room_bytes / (1u << 30));
}

/* Pages that a context needs, and the question at least. */
static uint64_t pages_least(const struct plan_question *q, uint32_t ctx_len)
{
    uint64_t n = kvcache_pages_for(ctx_len);
    return n > q->n_pages_least ? n : q->n_pages_least;
}

/* Pages for all sequences, from what is left: up to half of the device, so that other models find room, or one whole
 * context if that is more. When not even that fits, the context gets shorter, down to `least`. */
static int fit_device(const struct model *m, const struct plan_question *q, uint32_t least,
                      struct plan *p, struct err *err)
{
    const struct kv_layout *layout = &m->kv;
    struct state_shape *shape = &p->shape;
    *shape = (struct state_shape){ .max_seqs = 2 * q->n_sequences, .ctx_len = m->ctx_len };
    p->bytes[PLAN_RECURRENT] = mirror_states_bytes(layout, shape->max_seqs);
    p->bytes[PLAN_KV] = 0;
    uint64_t fixed = fixed_bytes(p);
    uint64_t room = fixed < p->room_bytes ? p->room_bytes - fixed : 0;
    uint64_t most = room / layout->page_bytes;
    while (most < pages_least(q, shape->ctx_len) && shape->ctx_len > least) {
        uint32_t shorter = (shape->ctx_len - shape->ctx_len / 8) / KV_PAGE_TOKENS * KV_PAGE_TOKENS;
        shape->ctx_len = shorter > least ? shorter : least;
    }
    uint64_t enough = pages_least(q, shape->ctx_len);
    uint64_t wanted = (uint64_t)kvcache_pages_for(shape->ctx_len) * q->n_sequences;
    uint64_t half = p->room_bytes / 2 / layout->page_bytes;
    half = half > enough ? half : enough;
    wanted = wanted > enough ? wanted : enough;
    uint64_t n = most < wanted ? most : wanted;
    n = n < half ? n : half;
    if (most < enough || n >= KV_PAGE_NONE) {
        return cannot(p, layout, err);
    }
    shape->n_pages = (uint32_t)n;
    p->bytes[PLAN_KV] = n * layout->page_bytes;
    return state_fit_mirror(layout, q->state_bytes_max, shape, err);
}

static int fit(const struct weights *w, const struct model *m, const struct backend *b,
               const struct plan_question *q, uint32_t least, struct plan *p, struct err *err)
{
    return b->ops->mirror ? fit_device(m, q, least, p, err) : fit_host(w, m, q, p, err);
}

/* With the weights where p->spill says, and a context of ctx_len, or a shorter one that is not below `least`. */
static int place(const struct weights *w, struct backend *b, const struct plan_question *q,
                 uint32_t ctx_len, uint32_t least, struct plan *p, struct err *err)
{
    struct model *m = NULL;
    int rc = count(w, b, q, ctx_len, p, &m, err);
    if (rc == 0) {
        rc = fit(w, m, b, q, least, p, err);
    }
    if (rc == 0 && p->shape.ctx_len < m->ctx_len) {
        /* Work space, and some models' rotation, go by the context's length. */
        uint32_t shorter = p->shape.ctx_len;
        model_destroy(&m);
        rc = count(w, b, q, shorter, p, &m, err);
        rc = rc == 0 ? fit(w, m, b, q, least, p, err) : rc;
    }
    if (rc == 0) {
        p->host_bytes = state_size(&m->kv, &p->shape);
        if (!b->ops->mirror) {
            p->bytes[PLAN_KV] = p->host_bytes; /* with its tables and states */
        }
    }
    model_destroy(&m);
    return rc;
}

#define STREAM_TRIES 8 /* contexts and sums that are tried */

/* Tables in the host's memory, narrow steps, and of the layers' matrices as few bytes as a context of this length needs. 1: not for
 * so long a context. */
static int stream_for(const struct weights *w, struct backend *b, const struct plan_question *q,
                      uint32_t ctx_len, struct spill_sizes *sizes, struct plan *p, struct err *err)
{
    struct model *m = NULL;
    p->spill = (struct spill){ .tables = true, .narrow = true };
    int rc = count(w, b, q, ctx_len, p, &m, err);
    if (rc < 0) {
        model_destroy(&m);
        return -1;
    }
    p->bytes[PLAN_RECURRENT] = mirror_states_bytes(&m->kv, 2 * q->n_sequences);
    p->bytes[PLAN_KV] = pages_least(q, m->ctx_len) * m->kv.page_bytes;
    uint64_t need = fixed_bytes(p) + p->bytes[PLAN_KV], room = p->room_bytes;
    uint64_t most = (p->bytes[PLAN_WEIGHTS] + p->host_weights_bytes) / PLAN_STREAMED_SHARE;
    uint32_t whole = m->ctx_len;
    spill_measure(w, b, m->n_layers, sizes);
    model_destroy(&m);
    /* Slots and what leaves are counted to the byte; a second try is for what only binding knows. */
    if (need <= room) {
        return place(w, b, q, ctx_len, whole, p, err);
    }
    for (uint64_t more = 0; more < 3; more++) {
        p->streamed_bytes = spill_choose(sizes, need - room + (more << 20), most, &p->spill);
        if (p->streamed_bytes == 0) {
            break;
        }
        rc = place(w, b, q, ctx_len, whole, p, err);
        if (rc == 0 || err->code != ERR_NO_FIT) {
            return rc;
        }
    }
    return 1;
}

static int stream(const struct weights *w, struct backend *b, const struct plan_question *q,
                  struct plan *p, struct err *err)
{
    struct spill_sizes *sizes = malloc(sizeof *sizes);
    uint32_t ctx_len = p->train_ctx_len < PLAN_CTX_LEAST ? p->train_ctx_len : PLAN_CTX_LEAST;
    ctx_len = q->ctx_len ? q->ctx_len : ctx_len;
    int rc = sizes ? 1 : err_set(err, ERR_NO_MEMORY, "a table of matrices");
    for (int i = 0; rc == 1 && i < STREAM_TRIES; i++) {
        rc = stream_for(w, b, q, ctx_len, sizes, p, err);
        if (ctx_len <= PLAN_CTX_LEAST) {
            break;
        }
        ctx_len = ctx_len / 4 * 3 > PLAN_CTX_LEAST ? ctx_len / 4 * 3 : PLAN_CTX_LEAST;
    }
    free(sizes);
    return rc;
}

/* All weights on the device; else without the tables there; else with less work space and, as needed, matrices that are
 * streamed; and if that is no way either, as long a context as there is room for. Beside other models nothing is left to the host:
 * whoever decides about turns hears that it does not fit now. */
static int place_somehow(const struct weights *w, struct backend *b, const struct plan_question *q,
                         struct plan *p, struct err *err)
{
    bool spills = b->ops->import_spilled != NULL && b->n_models == 0;
    int rc = place(w, b, q, q->ctx_len, spills ? PLAN_CTX_LEAST : KV_PAGE_TOKENS, p, err);
    if (rc == 0 || !spills || err->code != ERR_NO_FIT) {
        return rc;
    }
    p->spill.tables = true;
    rc = place(w, b, q, q->ctx_len, PLAN_CTX_LEAST, p, err);
    if (rc == 0 || err->code != ERR_NO_FIT) {
        return rc;
    }
    rc = stream(w, b, q, p, err);
    if (rc <= 0) {
        return rc;
    }
    p->spill = (struct spill){ .tables = true };
    p->streamed_bytes = 0;
    return place(w, b, q, q->ctx_len, KV_PAGE_TOKENS, p, err);
}

int plan_compute(const struct weights *w, struct backend *b, const struct plan_question *q,
                 struct plan *p, struct err *err)
{
    *p = (struct plan){ .bytes = {
                            [PLAN_BEFORE] = b->used_bytes, [PLAN_MARGIN] = b->margin_bytes } };
    p->room_bytes = b->ops->room ? b->ops->room(b) : UINT64_MAX;
    b->dry = true;
    int rc = place_somehow(w, b, q, p, err);
    b->dry = false;
    b->used_bytes = p->bytes[PLAN_BEFORE];
    for (int i = 0; i < PLAN_N_PARTS; i++) {
        p->total_bytes += p->bytes[i];
    }
    return rc;
}
