/* The --direct side of hearth-eval: loader and engine in this process; one thread drives them. */
#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "clients/direct/eval.h"
#include "loader/load.h"
#include "worker/evaluate.h"

#define OUTPUTS_MAX 64 /* rows of logits at a time: 64 * 256k words is 64 MiB */

static_assert((int)EVAL_LOGITS == (int)EVALUATE_LOGITS, "eval kinds");
static_assert((int)EVAL_EMBED_LAST == (int)EVALUATE_EMBED_LAST, "eval kinds");
static_assert((int)EVAL_PERPLEXITY == (int)EVALUATE_PERPLEXITY, "eval kinds");

struct engine {
    struct weights weights;
    struct backend *backend;
    struct model *model;
    struct forward *forward;
    struct kvcache kv;
    void *memory; /* the cache's, mapped */
    size_t memory_bytes;
    uint32_t longest, ctx, step; /* positions; tokens of one step */
    struct evaluate work;
    float *rows; /* (step, n_cols): results that are not written yet */
};

static void close_engine(struct engine *g)
{
    evaluate_clear(&g->work);
    kvcache_clear(&g->kv);
    if (g->memory) {
        munmap(g->memory, g->memory_bytes);
    }
    forward_destroy(&g->forward);
    model_destroy(&g->model);
    backend_close(&g->backend);
    weights_unmap(&g->weights);
    free(g->rows);
}

static int open_model(struct engine *g, const struct eval_question *q,
                      const struct eval_engine *how, struct err *err)
{
    const struct backend_options backend = { .exact = how->exact, .n_threads = how->n_threads };
    enum weights_layout layout = how->exact ? WEIGHTS_LAYOUT_FILE : WEIGHTS_LAYOUT_ROWS16;
    if (loader_load_direct(q->model, layout, &g->weights, err) < 0) {
        return -1;
    }
    g->backend = backend_open(backend_choose(how->device, NULL, NULL), &backend, err);
    if (!g->backend) {
        return -1;
    }
    for (size_t i = 0; i < q->n_lens; i++) {
        g->longest = q->lens[i] > g->longest ? q->lens[i] : g->longest;
    }
    uint64_t reach = (uint64_t)q->start + g->longest, ctx = q->ctx ? q->ctx : reach;
    if (ctx > UINT32_MAX / 2 || reach > ctx) {
        return err_set(err, ERR_NO_FIT, "position %llu, the context is %llu",
                       (unsigned long long)reach, (unsigned long long)ctx);
    }
    g->ctx = (uint32_t)ctx;
    const struct model_options options = { .k_type = how->k_type,
                                           .v_type = how->v_type,
                                           .ctx_len = g->ctx };
    g->model = model_bind(&g->weights, g->backend, &options, err);
    if (!g->model) {
        return err_wrap(err, "model %s", q->model);
    }
    if (!g->model->causal && g->longest > FORWARD_TOKENS_MAX) {
        return err_set(err, ERR_NO_FIT, "%u tokens at once, at most %d", g->longest,
                       FORWARD_TOKENS_MAX);
    }
    g->step = g->model->causal && how->chunk < g->longest ? how->chunk : g->longest;
    return 0;
}

static int make_cache(struct engine *g, struct err *err)
{
    uint32_t n_pages = kvcache_pages_for(g->longest) + 1;
    uint32_t n_host_pages = g->backend->ops->mirror ? 0 : n_pages; /* nobody takes over */
    g->memory_bytes = kvcache_mirror_size(&g->model->kv, n_host_pages, 1, g->ctx);
    g->memory = mmap(NULL, g->memory_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (g->memory == MAP_FAILED) {
        g->memory = NULL;
        return err_set(err, ERR_NO_MEMORY, "%zu bytes of keys and values", g->memory_bytes);
    }
    return kvcache_init_mirror(&g->kv, &g->model->kv, g->memory, g->memory_bytes, n_pages,
                               n_host_pages, 1, g->ctx, err) < 0
               ? -1
               : kvcache_place(&g->kv, g->backend, err);
}

static int open_engine(struct engine *g, const struct eval_question *q,
                       const struct eval_engine *how, struct err *err)
{
    if (open_model(g, q, how, err) < 0) {
        return -1;
    }
    g->forward = forward_create(g->model, g->backend, g->step, OUTPUTS_MAX, err);
    if (!g->forward || make_cache(g, err) < 0 ||
        evaluate_init(&g->work, g->model, (enum evaluate_kind)q->kind, q->ids, q->n_ids, q->lens,
                      (uint32_t)q->n_lens, q->start, g->ctx, g->step, err) < 0) {
        return -1;
    }
    g->work.out = g->rows = malloc(g->step * g->work.n_cols * sizeof *g->rows);
    return g->rows ? 0
                   : err_set(err, ERR_NO_MEMORY, "%zu floats of output",
                             (size_t)(g->step * g->work.n_cols));
}

static int write_ready(struct engine *g, FILE *out, struct err *err)
{
    uint64_t n = evaluate_ready(&g->work) - g->work.out_row;
    if (n && fwrite(g->rows, g->work.n_cols * sizeof *g->rows, n, out) != n) {
        return err_set_errno(err, ERR_IO, "write the rows");
    }
    g->work.out_row += n;
    return 0;
}

static int evaluate_all(struct engine *g, FILE *out, struct err *err)
{
    struct evaluate *e = &g->work;
    while (!evaluate_done(e)) {
        uint32_t seq;
        if (e->seq < 0) {
            if (kvcache_begin(&g->kv, (struct kvcache_tag){ .lo = 1 }, e->start, &seq, err) < 0) {
                return -1;
            }
            e->seq = seq;
        }
        if (evaluate_step(e, g->model, g->forward, &g->kv, g->step, err) < 0) {
            return err_wrap(err, "sequence %u", e->at_len);
        }
        if (write_ready(g, out, err) < 0) {
            return -1;
        }
        if (e->seq_ended) {
            kvcache_end(&g->kv, (uint32_t)e->seq);
            e->seq = -1;
            e->seq_ended = false;
        }
    }
    return 0;
}

int eval_direct(const struct eval_question *q, const struct eval_engine *how, double *perplexity,
                struct err *err)
{
    struct engine g = { .work.seq = -1 };
    int rc = open_engine(&g, q, how, err);
    if (rc == 0) {
        rc = evaluate_all(&g, q->out, err);
        *perplexity = evaluate_perplexity(&g.work);
    }
    close_engine(&g);
    return rc;
}
