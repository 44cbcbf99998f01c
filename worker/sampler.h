/* Logits to a token: a pure function of the logits, the parameters, the committed tokens and (seed, position). Sums are of
 * integers or run in a fixed order, ties go to the lower id, so the same inputs give the same token on any run. Nothing is kept
 * between tokens but scratch memory, and what mirostat and adaptive-p carry on, which is walked along the committed records.
 * Worker, loop thread.
 *
 * First biases and tokens that are refused; then the steps in the request's order, which by itself is
 *   penalties    repeat_penalty r: l > 0 ? l / r : l * r, then l - count * frequency - presence, for each token in the
 *                window (Keskar et al. 2019; the OpenAI API)
 *   dry          dry.h
 *   top_n_sigma, top_k, typ_p, top_p, min_p, xtc     candidates.h
 *   temperature  l / temp; with dynatemp_range r it goes from temp - r to temp + r by (entropy / ln n)^exponent
 * and a draw: adaptive-p's (adaptive.h) when it is on and named by the order, wherever that names it. With temp 0 (and no
 * range) the likeliest after penalties and dry is taken, whatever the rest says; with mirostat (mirostat.h) the draw is its own
 * and the filters are left out.
 * The window of the penalties is the last repeat_last_n tokens of prompt and answer; -1: all of them, 0: none.
 * Log-probabilities are those of the model: of the logits as they came, before any of this. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/journal.h"
#include "proto/limits.h"
#include "proto/pieces.h"
#include "worker/adaptive.h"
#include "worker/dry.h"
#include "worker/mirostat.h"

/* What one request asks for; fixed at its start. */
struct sampler {
    uint64_t seed;
    float temp, top_p, min_p, typical_p;
    float repeat_penalty, presence_penalty, frequency_penalty;
    int32_t top_k;
    int32_t repeat_last_n;
    uint32_t n_alternatives;
    bool logprobs, ignore_eos;
    uint32_t n_biases;
    struct journal_bias biases[LIMIT_LOGIT_BIASES];
    float dynatemp_range, dynatemp_exponent;
    float top_n_sigma, xtc_probability, xtc_threshold;
    struct dry dry;
    struct mirostat mirostat; /* of the tokens so far, as what follows: sampler_follow */
    struct adaptive adaptive;
    uint32_t n_order;
    enum journal_sampler order[JOURNAL_N_SAMPLERS];
};

/* Copies the parameters, with anything that is not a sane number replaced by "off". */
void sampler_init(struct sampler *s, const struct journal_params *params);

/* Scratch memory for one vocabulary, shared by all requests of a model. */
struct sampler_work;
struct sampler_work *sampler_work_create(uint32_t n_vocab, uint32_t ctx_len,
                                         const struct pieces *pieces,
                                         struct err *err); /* pieces is borrowed */
void sampler_work_destroy(struct sampler_work **work);

struct sampler_choice {
    int32_t token;
    float logprob; /* with logprobs, else 0 */
    float
        feedback; /* of the token: mirostat its surprise, adaptive-p its probability, else 0; goes into the record */
    uint32_t n_alternatives;
    struct journal_alternative alternatives[LIMIT_ALTERNATIVES]; /* most likely first */
};

/* Tokens that must not be chosen at this position, each tried before. */
struct sampler_refused {
    const int32_t *tokens; /* borrowed */
    uint32_t n;
};

/* Chooses the token that follows `tokens` (n_tokens of prompt and answer). logits: [n_vocab], borrowed, not changed.
 * refused: NULL or none. Ids that the vocabulary does not have are never chosen. Allocates nothing.
 * Errors: ERR_FAILED when no logit is a finite number. */
int sampler_choose(struct sampler_work *work, const struct sampler *s, const float *logits,
                   const int32_t *tokens, uint64_t n_tokens, const struct sampler_refused *refused,
                   struct sampler_choice *choice, struct err *err);

/* A token of this feedback was chosen, or stands in the log: called once for each, in order. */
void sampler_follow(struct sampler *s, float feedback);

/* What the samplers with a state carry on, to go back to. */
struct sampler_mark {
    double mirostat_mu, adaptive_sum, adaptive_weight;
};
struct sampler_mark sampler_mark(const struct sampler *s);
void sampler_rewind(struct sampler *s, const struct sampler_mark *to);
