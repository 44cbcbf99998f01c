/* What hearth-eval asks, and who can answer: a running service, or an engine in this process. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/dtype.h"
#include "proto/err.h"

/* Numbers as in enum hearth_eval_kind and enum evaluate_kind. */
enum eval_kind {
    EVAL_LOGITS,
    EVAL_EMBED_NONE,
    EVAL_EMBED_MEAN,
    EVAL_EMBED_CLS,
    EVAL_EMBED_LAST,
    EVAL_PERPLEXITY,
};

struct eval_question {
    const char *run;   /* NULL for the usual places */
    const char *model; /* its name, or its file for eval_direct */
    enum eval_kind kind;
    const int32_t *ids;
    size_t n_ids;
    const uint32_t *lens;
    size_t n_lens;
    uint32_t start, ctx; /* ctx 0: as long as needed */
    FILE *out;           /* receives the rows; NULL for perplexity */
};

/* Asks and writes. Returns the exit code; 0 with *perplexity set when that was asked. Prints the error line.
 * eval_service.c; eval_alone.c in a build without the client library. */
int eval_service(const struct eval_question *q, double *perplexity);

struct eval_engine {
    const char *device; /* as --device has it, or NULL */
    bool exact;
    uint32_t n_threads; /* 0: all cores */
    uint32_t chunk;     /* tokens of one step, at least 1 */
    enum dtype k_type, v_type;
};

/* Loads the model file, computes and writes the rows as they come. Blocks; one thread drives the engine. Errors are those of
 * loading, binding, evaluate_init (worker/evaluate.h), ERR_IO of the rows. eval_direct.c */
int eval_direct(const struct eval_question *q, const struct eval_engine *how, double *perplexity,
                struct err *err);
