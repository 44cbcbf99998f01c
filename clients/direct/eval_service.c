/* The -m side of hearth-eval: the same question to a worker, the answer from its bulk segment. */
#include <assert.h>

#include "clients/direct/eval.h"
#include "clients/hearth.h"

static_assert((int)EVAL_LOGITS == (int)HEARTH_LOGITS, "eval kinds");
static_assert((int)EVAL_EMBED_LAST == (int)HEARTH_EMBED_LAST, "eval kinds");
static_assert((int)EVAL_PERPLEXITY == (int)HEARTH_PERPLEXITY, "eval kinds");

static int fail(const struct hearth_error *error)
{
    fprintf(stderr, "hearth eval: %s\n", error->text);
    return error->exit_code ? error->exit_code : 1;
}

int eval_service(const struct eval_question *q, double *perplexity)
{
    struct hearth_error error = { 0 };
    const struct hearth_evaluation ask = {
        .model = q->model,
        .kind = (enum hearth_eval_kind)q->kind,
        .ids = q->ids,
        .n_ids = q->n_ids,
        .lens = q->lens,
        .n_lens = q->n_lens,
        .start = q->start,
        .ctx = q->ctx,
    };
    struct hearth_matrix m = { 0 };
    struct hearth *h = hearth_open(q->run, "eval", &error);
    if (!h) {
        return fail(&error);
    }
    int rc = 0;
    if (hearth_evaluate(h, &ask, &m, &error) < 0) {
        rc = fail(&error);
    } else {
        uint64_t n = m.n_rows * m.n_cols;
        *perplexity = m.perplexity;
        if (q->out && fwrite(m.data, sizeof *m.data, n, q->out) != n) {
            perror("hearth eval: write");
            rc = 1;
        }
        hearth_matrix_free(&m);
    }
    hearth_close(&h);
    return rc;
}
