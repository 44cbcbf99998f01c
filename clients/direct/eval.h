/* What hearth-eval asks of a running service, so that eval.c does without the client library. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Numbers as in enum hearth_eval_kind. */
enum eval_kind {
    EVAL_LOGITS,
    EVAL_EMBED_NONE,
    EVAL_EMBED_MEAN,
    EVAL_EMBED_CLS,
    EVAL_EMBED_LAST,
    EVAL_PERPLEXITY,
};

struct eval_question {
    const char *run, *model; /* run: NULL for the usual places */
    enum eval_kind kind;
    const int32_t *ids;
    size_t n_ids;
    const uint32_t *lens;
    size_t n_lens;
    uint32_t start, ctx;
    FILE *out; /* receives the rows; NULL for perplexity */
};

/* Asks and writes. Returns the exit code; 0 with *perplexity set when that was asked. Prints the error line.
 * eval_service.c; eval_alone.c in a build without the client library. */
int eval_service(const struct eval_question *q, double *perplexity);
