/* Logits, embeddings or perplexity of given ids, in pieces: the same code behind `hearth eval --direct` and the
 * worker's WorkerEvaluate, so that both give the same bytes. Engine only; loop thread.
 *
 * Each sequence starts in an empty cache at position `start`. The caller seats it (kvcache_begin) and takes it away again:
 *     while (!evaluate_done(&e)) {
 *         if (e.seq < 0) { kvcache_begin(kv, tag, e.start, &seq, err); e.seq = seq; }
 *         if (evaluate_step(&e, model, forward, kv, max_rows, err) < 0) ...
 *         if (e.seq_ended) { kvcache_end(kv, e.seq); e.seq = -1; e.seq_ended = false; }
 *     }
 * Rows: logits (n_ids, vocab_size); EMBED_NONE (n_ids, dim); the pooled kinds (n_lens, dim): mean summed in double
 * in order of position; cls is the first row, last the last. Perplexity: exp of the mean of -log p(next id), over all
 * but the last position of each sequence, in double. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "worker/forward.h"

/* The numbers of hearth.proto's EvalKind. */
enum evaluate_kind {
    EVALUATE_LOGITS,
    EVALUATE_EMBED_NONE,
    EVALUATE_EMBED_MEAN,
    EVALUATE_EMBED_CLS,
    EVALUATE_EMBED_LAST,
    EVALUATE_PERPLEXITY,
    EVALUATE_N_KINDS,
};

struct evaluate {
    enum evaluate_kind kind;
    int64_t start;
    int32_t *ids;   /* owned [n_ids] */
    uint32_t *lens; /* owned [n_lens], each at least 1 */
    uint64_t n_ids;
    uint32_t n_lens;
    uint64_t n_rows, n_cols; /* of the result; 0 rows for perplexity */
    float *out; /* borrowed (n_rows, n_cols); set by the caller before the first step */
    uint64_t
        out_row; /* row of the result at `out`: a caller who takes rows away as they are ready (evaluate_ready) moves it up and
                       * needs room for those of one step only */
    /* where it stands */
    int64_t seq; /* cache slot of the current sequence, or -1: it has to be seated */
    bool seq_ended;
    uint32_t at_len;   /* current sequence */
    uint32_t at_token; /* next token of it */
    uint64_t at_id;    /* of all ids */
    double nll;
    uint64_t n_predicted;
    double *sum;    /* owned [dim], mean */
    float *scratch; /* owned: rows of logits or states that are not results themselves */
    uint32_t scratch_rows;
    int32_t *tokens; /* owned, one step's arrays */
    uint32_t *seqs;
    int64_t *positions;
    uint8_t *flags;
    uint32_t rows_max;
};

/* Checks and copies everything. n_lens 0: one sequence of all ids. max_rows: the most rows a step will have.
 * Errors: ERR_BAD_INPUT (an id, a length, a kind), ERR_NO_FIT (beyond ctx_len, both numbers), ERR_NO_MEMORY,
 * ERR_UNSUPPORTED (logits of an encoder). */
int evaluate_init(struct evaluate *e, const struct model *model, enum evaluate_kind kind,
                  const int32_t *ids, uint64_t n_ids, const uint32_t *lens, uint32_t n_lens,
                  int64_t start, uint32_t ctx_len, uint32_t max_rows, struct err *err);

/* Accepts a zeroed one. */
void evaluate_clear(struct evaluate *e);

bool evaluate_done(const struct evaluate *e);

/* How many rows of the result are complete. */
uint64_t evaluate_ready(const struct evaluate *e);

/* Rows that the next step wants of at most max_rows: an encoder takes a sequence whole. */
uint32_t evaluate_rows(const struct evaluate *e, const struct model *model, uint32_t max_rows);

/* One piece of the current sequence. Errors are forward_step's. */
int evaluate_step(struct evaluate *e, const struct model *model, struct forward *forward,
                  struct kvcache *kv, uint32_t max_rows, struct err *err);

/* After the end, of EVALUATE_PERPLEXITY; 1 when nothing was predicted. */
double evaluate_perplexity(const struct evaluate *e);
