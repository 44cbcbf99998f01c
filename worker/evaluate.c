#include "worker/evaluate.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LOGITS_SCRATCH_BYTES                                                                       \
    (16u << 20) /* for rows that are only looked at: a group of them, not a prompt's */

static bool wants_logits(enum evaluate_kind kind)
{
    return kind == EVALUATE_LOGITS || kind == EVALUATE_PERPLEXITY;
}

static bool is_by_token(enum evaluate_kind kind)
{
    return kind == EVALUATE_LOGITS || kind == EVALUATE_EMBED_NONE;
}

/* Where a row of the result stands. */
static float *row_of(const struct evaluate *e, uint64_t row)
{
    return e->out + (row - e->out_row) * e->n_cols;
}

static int set_lens(struct evaluate *e, const uint32_t *lens, uint32_t n_lens, uint32_t ctx_len,
                    struct err *err)
{
    uint32_t whole = (uint32_t)e->n_ids;
    if (n_lens == 0) {
        lens = &whole;
        n_lens = 1;
    }
    e->lens = malloc(n_lens * sizeof *e->lens);
    if (!e->lens) {
        return err_set(err, ERR_NO_MEMORY, "no memory for %u lengths", n_lens);
    }
    memcpy(e->lens, lens, n_lens * sizeof *lens);
    e->n_lens = n_lens;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n_lens; i++) {
        if (lens[i] == 0) {
            return err_set(err, ERR_BAD_INPUT, "sequence %u of %u is empty", i, n_lens);
        }
        if ((uint64_t)e->start + lens[i] > ctx_len) {
            return err_set(err, ERR_NO_FIT,
                           "sequence %u ends at position %" PRIu64 ", the context is %u", i,
                           (uint64_t)e->start + lens[i], ctx_len);
        }
        sum += lens[i];
    }
    return sum == e->n_ids
               ? 0
               : err_set(err, ERR_BAD_INPUT,
                         "lengths sum to %" PRIu64 ", there are %" PRIu64 " ids", sum, e->n_ids);
}

static int set_ids(struct evaluate *e, const int32_t *ids, uint32_t vocab_size, struct err *err)
{
    e->ids = malloc(e->n_ids * sizeof *ids);
    if (!e->ids) {
        return err_set(err, ERR_NO_MEMORY, "no memory for %" PRIu64 " ids", e->n_ids);
    }
    memcpy(e->ids, ids, e->n_ids * sizeof *ids);
    for (uint64_t i = 0; i < e->n_ids; i++) {
        if (e->ids[i] < 0 || (uint32_t)e->ids[i] >= vocab_size) {
            return err_set(err, ERR_BAD_INPUT, "id %" PRIu64 " is %d, the vocabulary has %u", i,
                           e->ids[i], vocab_size);
        }
    }
    return 0;
}

static int make_room(struct evaluate *e, const struct model *model, struct err *err)
{
    uint64_t rows = 0;
    if (e->kind == EVALUATE_PERPLEXITY) {
        rows = LOGITS_SCRATCH_BYTES / (model->vocab_size * sizeof(float));
        rows = rows < 1 ? 1 : rows;
    } else if (e->kind == EVALUATE_EMBED_MEAN) {
        rows = e->rows_max;
    }
    e->scratch_rows = (uint32_t)(rows < e->rows_max ? rows : e->rows_max);
    uint64_t width = wants_logits(e->kind) ? model->vocab_size : model->dim;
    e->scratch = malloc((e->scratch_rows * width + 1) * sizeof *e->scratch);
    e->sum = calloc(model->dim, sizeof *e->sum);
    e->tokens = calloc(e->rows_max, sizeof *e->tokens);
    e->seqs = calloc(e->rows_max, sizeof *e->seqs);
    e->positions = calloc(e->rows_max, sizeof *e->positions);
    e->flags = calloc(e->rows_max, 1);
    if (!e->scratch || !e->sum || !e->tokens || !e->seqs || !e->positions || !e->flags) {
        return err_set(err, ERR_NO_MEMORY, "no memory to evaluate %u rows", e->rows_max);
    }
    return 0;
}

int evaluate_init(struct evaluate *e, const struct model *model, enum evaluate_kind kind,
                  const int32_t *ids, uint64_t n_ids, const uint32_t *lens, uint32_t n_lens,
                  int64_t start, uint32_t ctx_len, uint32_t max_rows, struct err *err)
{
    *e = (struct evaluate){
        .kind = kind, .start = start, .n_ids = n_ids, .seq = -1, .rows_max = max_rows
    };
    if ((unsigned)kind >= EVALUATE_N_KINDS || n_ids == 0 || n_ids > UINT32_MAX || start < 0 ||
        start > ctx_len) {
        return err_set(err, ERR_BAD_INPUT,
                       "nothing to evaluate: %" PRIu64 " ids from position %lld", n_ids,
                       (long long)start);
    }
    if (wants_logits(kind) && !model->causal) {
        return err_set(err, ERR_UNSUPPORTED, "an encoder gives embeddings, not logits");
    }
    if (set_lens(e, lens, n_lens, ctx_len, err) < 0 ||
        set_ids(e, ids, model->vocab_size, err) < 0 || make_room(e, model, err) < 0) {
        evaluate_clear(e);
        return -1;
    }
    for (uint32_t i = 0; !model->causal && i < e->n_lens; i++) {
        if (e->lens[i] > max_rows) {
            uint32_t len = e->lens[i];
            evaluate_clear(e);
            return err_set(err, ERR_NO_FIT, "an encoder takes a sequence whole: %u ids, at most %u",
                           len, max_rows);
        }
    }
    e->n_cols = wants_logits(kind) ? model->vocab_size : model->dim;
    e->n_rows = kind == EVALUATE_PERPLEXITY ? 0 : is_by_token(kind) ? n_ids : e->n_lens;
    return 0;
}

void evaluate_clear(struct evaluate *e)
{
    free(e->ids);
    free(e->lens);
    free(e->scratch);
    free(e->sum);
    free(e->tokens);
    free(e->seqs);
    free(e->positions);
    free(e->flags);
    *e = (struct evaluate){ .seq = -1 };
}

bool evaluate_done(const struct evaluate *e)
{
    return e->at_len == e->n_lens;
}

uint64_t evaluate_ready(const struct evaluate *e)
{
    return e->kind == EVALUATE_PERPLEXITY ? 0 : is_by_token(e->kind) ? e->at_id : e->at_len;
}

uint32_t evaluate_rows(const struct evaluate *e, const struct model *model, uint32_t max_rows)
{
    uint32_t left = e->lens[e->at_len] - e->at_token;
    uint32_t most = max_rows < e->rows_max ? max_rows : e->rows_max;
    if (!model->causal) {
        return left;
    }
    if (e->kind == EVALUATE_PERPLEXITY && most > e->scratch_rows) {
        most = e->scratch_rows;
    }
    return left < most ? left : most;
}

/* Which rows of this step are wanted. */
static void flag_rows(struct evaluate *e, uint32_t n)
{
    uint32_t len = e->lens[e->at_len];
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = e->at_token + i;
        bool wanted = true;
        if (e->kind == EVALUATE_PERPLEXITY) {
            wanted = at + 1 < len;
        } else if (e->kind == EVALUATE_EMBED_CLS) {
            wanted = at == 0;
        } else if (e->kind == EVALUATE_EMBED_LAST) {
            wanted = at + 1 == len;
        }
        e->flags[i] = !wanted ? 0 : wants_logits(e->kind) ? FORWARD_LOGITS : FORWARD_EMBED;
    }
}

static double negative_log_p(const float *logits, uint32_t n, int32_t id)
{
    double max = (double)logits[0], sum = 0;
    for (uint32_t i = 1; i < n; i++) {
        max = (double)logits[i] > max ? (double)logits[i] : max;
    }
    for (uint32_t i = 0; i < n; i++) {
        sum += exp((double)logits[i] - max);
    }
    return max + log(sum) - (double)logits[id];
}

/* What a step's rows add to a result that is not the rows themselves. */
static void take_rows(struct evaluate *e, const struct model *model, uint32_t n)
{
    if (e->kind == EVALUATE_PERPLEXITY) {
        const float *row = e->scratch;
        for (uint32_t i = 0; i < n; i++) {
            if (e->flags[i]) {
                e->nll += negative_log_p(row, model->vocab_size, e->ids[e->at_id + i + 1]);
                e->n_predicted++;
                row += model->vocab_size;
            }
        }
    } else if (e->kind == EVALUATE_EMBED_MEAN) {
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t j = 0; j < model->dim; j++) {
                e->sum[j] += (double)e->scratch[(uint64_t)i * model->dim + j];
            }
        }
    }
}

static void end_sequence(struct evaluate *e, const struct model *model)
{
    if (e->kind == EVALUATE_EMBED_MEAN) {
        float *row = row_of(e, e->at_len);
        for (uint32_t j = 0; j < model->dim; j++) {
            row[j] = (float)(e->sum[j] / (double)e->lens[e->at_len]);
            e->sum[j] = 0;
        }
    } else if (e->kind == EVALUATE_EMBED_CLS || e->kind == EVALUATE_EMBED_LAST) {
        float *row = row_of(e, e->at_len);
        for (uint32_t j = 0; j < model->dim; j++) {
            row[j] += 0.0f; /* a sum of one: -0 becomes 0, as in the mean */
        }
    }
    e->seq_ended = true;
    e->at_len++;
    e->at_token = 0;
}

int evaluate_step(struct evaluate *e, const struct model *model, struct forward *forward,
                  struct kvcache *kv, uint32_t max_rows, struct err *err)
{
    assert(!evaluate_done(e) && e->seq >= 0 && !e->seq_ended && max_rows > 0);
    uint32_t n = evaluate_rows(e, model, max_rows);
    for (uint32_t i = 0; i < n; i++) {
        e->tokens[i] = e->ids[e->at_id + i];
        e->seqs[i] = (uint32_t)e->seq;
        e->positions[i] = e->start + e->at_token + i;
    }
    flag_rows(e, n);
    const struct forward_batch batch = { .n_tokens = n,
                                         .tokens = e->tokens,
                                         .seqs = e->seqs,
                                         .positions = e->positions,
                                         .flags = e->flags };
    bool by_sequence = e->kind == EVALUATE_EMBED_CLS || e->kind == EVALUATE_EMBED_LAST;
    float *rows = is_by_token(e->kind) ? row_of(e, e->at_id)
                  : by_sequence        ? row_of(e, e->at_len)
                                       : e->scratch;
    bool logits = wants_logits(e->kind);
    if (forward_step(forward, kv, &batch, logits ? rows : NULL, logits ? NULL : rows, err) < 0) {
        return -1;
    }
    take_rows(e, model, n);
    e->at_token += n;
    e->at_id += n;
    if (e->at_token == e->lens[e->at_len]) {
        end_sequence(e, model);
    }
    return 0;
}

double evaluate_perplexity(const struct evaluate *e)
{
    return e->n_predicted ? exp(e->nll / (double)e->n_predicted) : 1.0;
}
