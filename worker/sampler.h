/* Logits to a token: a pure function of the logits, the parameters, the committed tokens and (seed, position). Sums run in
 * double in a fixed order, ties go to the lower id, so the same inputs give the same token on any run. Nothing is kept
 * between tokens but scratch memory. Worker, loop thread.
 *
 * The order of the filters: bias, penalties, then greedy (temp 0), or top-k, typical-p, top-p, min-p, temperature, draw.
 *   repeat_penalty r     l > 0 ? l / r : l * r                  for each token in the window
 *   frequency, presence  l - count * frequency - presence       (Keskar et al. 2019; the OpenAI API)
 *   typical-p            Meister et al. 2022    top-p  Holtzman et al. 2019    min-p  Nguyen et al. 2024
 * The window of the penalties is the last repeat_last_n tokens of prompt and answer; -1: all of them, 0: none.
 * Log-probabilities are those of the model: of the logits as they came, before any of this. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/journal.h"
#include "proto/limits.h"
#include "proto/pieces.h"

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
};

/* Copies the parameters, with anything that is not a sane number replaced by "off". */
void sampler_init(struct sampler *s, const struct journal_params *params);

/* Scratch memory for one vocabulary, shared by all requests of a model. */
struct sampler_work;
struct sampler_work *sampler_work_create(uint32_t n_vocab, const struct pieces *pieces,
                                         struct err *err); /* pieces is borrowed */
void sampler_work_destroy(struct sampler_work **work);

struct sampler_choice {
    int32_t token;
    float logprob; /* with logprobs, else 0 */
    uint32_t n_alternatives;
    struct journal_alternative alternatives[LIMIT_ALTERNATIVES]; /* most likely first */
};

/* Chooses the token that follows `tokens` (n_tokens of prompt and answer). logits: [n_vocab], borrowed, not changed.
 * Ids that the vocabulary does not have are never chosen. Allocates nothing.
 * Errors: ERR_FAILED when no logit is a finite number. */
int sampler_choose(struct sampler_work *work, const struct sampler *s, const float *logits,
                   const int32_t *tokens, uint64_t n_tokens, struct sampler_choice *choice,
                   struct err *err);
