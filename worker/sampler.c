#include "worker/sampler.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/candidates.h"
#include "worker/rng.h"

struct sampler_work {
    uint32_t n_vocab, ctx_len;
    const struct pieces *pieces;
    struct candidates c; /* its lists are owned here, [n_vocab] each */
    uint32_t *counts;    /* [n_vocab], zero between calls */
    uint32_t *matches;   /* [ctx_len + 1] */
    float *logits;       /* [n_vocab], biased */
};

static float sane(float value, float off)
{
    return isfinite(value) ? value : off;
}

void sampler_init(struct sampler *s, const struct journal_params *p)
{
    *s = (struct sampler){
        .seed = p->seed,
        .temp = sane(p->temp, 0),
        .top_p = sane(p->top_p, 1),
        .min_p = sane(p->min_p, 0),
        .typical_p = sane(p->typical_p, 1),
        .repeat_penalty = sane(p->repeat_penalty, 1),
        .presence_penalty = sane(p->presence_penalty, 0),
        .frequency_penalty = sane(p->frequency_penalty, 0),
        .top_k = p->top_k,
        .repeat_last_n = p->repeat_last_n,
        .n_alternatives = p->n_alternatives < LIMIT_ALTERNATIVES ? p->n_alternatives
                                                                 : LIMIT_ALTERNATIVES,
        .logprobs = p->logprobs != 0,
        .ignore_eos = p->ignore_eos != 0,
        .dynatemp_range = sane(p->dynatemp_range, 0),
        .dynatemp_exponent = sane(p->dynatemp_exponent, 1),
        .top_n_sigma = sane(p->top_n_sigma, 0),
        .xtc_probability = sane(p->xtc_probability, 0),
        .xtc_threshold = sane(p->xtc_threshold, 1),
        .dry = { .multiplier = sane(p->dry_multiplier, 0),
                 .base = sane(p->dry_base, 1),
                 .allowed_length = p->dry_allowed_length,
                 .penalty_last_n = p->dry_penalty_last_n },
    };
    mirostat_init(&s->mirostat, p->mirostat, sane(p->mirostat_tau, 0), sane(p->mirostat_eta, 0));
    for (uint32_t i = 0; i < p->n_samplers && i < JOURNAL_N_SAMPLERS; i++) {
        if (p->samplers[i] < JOURNAL_N_SAMPLERS) {
            s->order[s->n_order++] = (enum journal_sampler)p->samplers[i];
        }
    }
    for (int i = 0; p->n_samplers == 0 && i < JOURNAL_N_SAMPLERS; i++) {
        s->order[s->n_order++] = (enum journal_sampler)i;
    }
    bool named = false;
    for (uint32_t i = 0; i < s->n_order; i++) {
        named = named || s->order[i] == JOURNAL_ADAPTIVE_P;
    }
    adaptive_init(&s->adaptive, named && p->adaptive_p != 0 && s->mirostat.version == 0,
                  sane(p->adaptive_target, 0), sane(p->adaptive_decay, 0));
    if (s->repeat_penalty <= 0) {
        s->repeat_penalty = 1;
    }
}

struct sampler_work *sampler_work_create(uint32_t n_vocab, uint32_t ctx_len,
                                         const struct pieces *pieces, struct err *err)
{
    struct sampler_work *w = calloc(1, sizeof *w);
    if (w) {
        *w = (struct sampler_work){
            .n_vocab = n_vocab,
            .ctx_len = ctx_len,
            .pieces = pieces,
            .c = { .set = calloc(n_vocab, sizeof *w->c.set),
                   .sorted = calloc(n_vocab, sizeof *w->c.sorted) },
            .counts = calloc(n_vocab, sizeof *w->counts),
            .matches = calloc(ctx_len + 1ull, sizeof *w->matches),
            .logits = calloc(n_vocab, sizeof *w->logits),
        };
    }
    if (!w || !w->c.set || !w->c.sorted || !w->counts || !w->matches || !w->logits) {
        err_set(err, ERR_NO_MEMORY, "no memory to sample from %u tokens", n_vocab);
        sampler_work_destroy(&w);
    }
    return w;
}

void sampler_work_destroy(struct sampler_work **workp)
{
    struct sampler_work *w = *workp;
    if (w) {
        free(w->c.set);
        free(w->c.sorted);
        free(w->counts);
        free(w->matches);
        free(w->logits);
        free(w);
    }
    *workp = NULL;
}

/* ---- the candidates ---- */

/* Biases, and what must not come, into w->logits. */
static void adjust(struct sampler_work *w, const struct sampler *s, const float *logits,
                   const struct sampler_refused *refused)
{
    memcpy(w->logits, logits, w->n_vocab * sizeof *logits);
    for (uint32_t i = 0; i < s->n_biases; i++) {
        int32_t id = s->biases[i].token;
        if (id >= 0 && (uint32_t)id < w->n_vocab) {
            w->logits[id] += s->biases[i].bias;
        }
    }
    for (uint32_t i = 0; refused && i < refused->n; i++) {
        int32_t id = refused->tokens[i];
        if (id >= 0 && (uint32_t)id < w->n_vocab) {
            w->logits[id] = -INFINITY;
        }
    }
    if (s->ignore_eos) {
        for (uint32_t id = 0; id < w->n_vocab; id++) {
            if (pieces_is_end(w->pieces, (int32_t)id)) {
                w->logits[id] = -INFINITY;
            }
        }
    }
}

/* All ids that may be chosen, in order of id. */
static void collect(struct sampler_work *w)
{
    struct candidate *set = w->c.set;
    const float *logits = w->logits;
    uint32_t n_ids = w->pieces->n > 0 && w->pieces->n < w->n_vocab ? w->pieces->n : w->n_vocab;
    uint32_t n = 0;
    for (uint32_t id = 0; id < n_ids; id++) {
        if (logits[id] > -INFINITY) { /* false for NaN */
            set[n++] = (struct candidate){ .logit = logits[id], .id = (int32_t)id };
        }
    }
    w->c.n = n;
    w->c.scale = 1;
}

/* ---- the steps ---- */

static bool in_vocab(const struct sampler_work *w, int32_t id)
{
    return id >= 0 && (uint32_t)id < w->n_vocab;
}

static bool penalises(const struct sampler *s)
{
    return s->repeat_penalty != 1 || s->presence_penalty != 0 || s->frequency_penalty != 0;
}

static void penalise_one(const struct sampler *s, struct candidate *of, uint32_t count)
{
    if (count > 0) {
        float l = of->logit > 0 ? of->logit / s->repeat_penalty : of->logit * s->repeat_penalty;
        l -= (float)count * s->frequency_penalty + s->presence_penalty;
        of->logit = isnan(l) ? -INFINITY : l;
    }
}

static void penalise(struct sampler_work *w, const struct sampler *s, const int32_t *tokens,
                     uint64_t n_tokens)
{
    uint64_t window = s->repeat_last_n < 0                    ? n_tokens
                      : (uint64_t)s->repeat_last_n < n_tokens ? (uint64_t)s->repeat_last_n
                                                              : n_tokens;
    if (!penalises(s) || window == 0) {
        return;
    }
    const int32_t *seen = tokens + (n_tokens - window);
    for (uint64_t i = 0; i < window; i++) {
        if (in_vocab(w, seen[i])) {
            w->counts[seen[i]]++;
        }
    }
    bool others = false;
    for (uint64_t i = 0; i < window; i++) {
        struct candidate *of = in_vocab(w, seen[i]) ? candidates_at(&w->c, seen[i]) : NULL;
        if (of) {
            penalise_one(s, of, w->counts[of->id]);
            w->counts[of->id] = 0;
        } else {
            others = true;
        }
    }
    for (uint32_t i = 0; others && i < w->c.n; i++) {
        penalise_one(s, &w->c.set[i], w->counts[w->c.set[i].id]);
    }
    for (uint64_t i = 0; others && i < window; i++) {
        if (in_vocab(w, seen[i])) {
            w->counts[seen[i]] = 0;
        }
    }
}

/* Steps that add to logits after the temperature mean those that it gave. */
static void settle(struct candidates *c)
{
    for (uint32_t i = 0; c->scale != 1 && i < c->n; i++) {
        c->set[i].logit = (float)((double)c->set[i].logit / c->scale);
    }
    c->scale = 1;
}

/* Sharper than this is the likeliest alone. */
#define TEMP_LEAST 1e-4

static void temper(struct candidates *c, const struct sampler *s)
{
    double temp = (double)s->temp, range = (double)s->dynatemp_range;
    if (range > 0 && c->n > 1) {
        double low = temp > range ? temp - range : 0;
        double share = candidates_entropy(c) / log(c->n);
        share = share < 0 ? 0 : share > 1 ? 1 : share;
        temp = low + (temp + range - low) * pow(share, (double)s->dynatemp_exponent);
        temp = temp > TEMP_LEAST ? temp : TEMP_LEAST;
    }
    if (temp > 0) {
        c->scale *= temp;
    }
}

static void step(struct sampler_work *w, const struct sampler *s, enum journal_sampler which,
                 const int32_t *tokens, uint64_t n_tokens, uint32_t attempt)
{
    struct candidates *c = &w->c;
    switch (which) {
    case JOURNAL_PENALTIES:
        settle(c);
        penalise(w, s, tokens, n_tokens);
        return;
    case JOURNAL_DRY:
        settle(c);
        dry_apply(&s->dry, w->pieces, tokens, n_tokens, c, w->counts, w->n_vocab, w->matches,
                  w->ctx_len + 1);
        return;
    case JOURNAL_TEMPERATURE:
        temper(c, s);
        return;
    default:
        break;
    }
    if (s->mirostat.version != 0 || c->n < 2) {
        return; /* the rest are filters */
    }
    switch (which) {
    case JOURNAL_TOP_N_SIGMA:
        if (s->top_n_sigma > 0) {
            candidates_n_sigma(c, (double)s->top_n_sigma);
        }
        return;
    case JOURNAL_TOP_K:
        if (s->top_k > 0) {
            candidates_top_k(c, (uint32_t)s->top_k);
        }
        return;
    case JOURNAL_TYPICAL_P:
        if (s->typical_p < 1) {
            candidates_typical(c, (double)s->typical_p);
        }
        return;
    case JOURNAL_TOP_P:
        if (s->top_p < 1) {
            candidates_top_p(c, (double)s->top_p);
        }
        return;
    case JOURNAL_MIN_P:
        if (s->min_p > 0) {
            candidates_min_p(c, s->min_p < 1 ? (double)s->min_p : 1.0);
        }
        return;
    case JOURNAL_XTC:
        if (s->xtc_probability > 0 &&
            rng_uniform(s->seed, n_tokens, attempt, RNG_XTC) < (double)s->xtc_probability) {
            candidates_xtc(c, (double)s->xtc_threshold);
        }
        return;
    default:
        return;
    }
}

/* ---- the choice ---- */

/* The model's own log-probabilities, of the chosen token and of the likeliest. */
static void fill_logprobs(struct sampler_work *w, const struct sampler *s, const float *logits,
                          struct sampler_choice *choice)
{
    struct candidates *c = &w->c;
    memcpy(w->logits, logits, w->n_vocab * sizeof *logits);
    collect(w);
    if (c->n == 0) {
        return;
    }
    double max = candidates_max(c);
    double log_sum = candidates_log_mass(candidates_mass(c));
    choice->logprob = (float)((double)logits[choice->token] - max - log_sum);
    uint32_t k = s->n_alternatives < c->n ? s->n_alternatives : c->n;
    if (k > 0) {
        candidates_first(c, k);
    }
    for (uint32_t i = 0; i < k; i++) {
        choice->alternatives[i] = (struct journal_alternative){
            .token = c->sorted[i].id,
            .logprob = (float)((double)c->sorted[i].logit - max - log_sum),
        };
    }
    choice->n_alternatives = k;
}

static bool any_finite(const struct candidates *c)
{
    return c->n > 0 && isfinite(candidates_max(c));
}

int sampler_choose(struct sampler_work *w, const struct sampler *s, const float *logits,
                   const int32_t *tokens, uint64_t n_tokens, const struct sampler_refused *refused,
                   struct sampler_choice *choice, struct err *err)
{
    *choice = (struct sampler_choice){ 0 };
    adjust(w, s, logits, refused);
    collect(w);
    bool greedy = s->temp <= 0 && s->dynatemp_range <= 0;
    uint32_t attempt = refused ? refused->n : 0;
    bool finite = any_finite(&w->c);
    for (uint32_t i = 0; finite && i < s->n_order; i++) {
        if (!greedy || s->order[i] == JOURNAL_PENALTIES || s->order[i] == JOURNAL_DRY) {
            step(w, s, s->order[i], tokens, n_tokens, attempt);
        }
    }
    if (penalises(s) || s->dry.multiplier > 0) { /* what is added can reach infinity */
        finite = finite && any_finite(&w->c);
    }
    if (!finite) {
        return err_set(err, ERR_FAILED, "%s at position %llu",
                       attempt > 0 ? "the banned strings leave no token"
                                   : "the model gave no finite logit",
                       (unsigned long long)n_tokens);
    }
    double u = greedy ? 0 : rng_uniform(s->seed, n_tokens, attempt, RNG_TOKEN);
    if (greedy) {
        choice->token = candidates_likeliest(&w->c);
    } else if (s->mirostat.version != 0) {
        choice->token = mirostat_draw(&s->mirostat, &w->c, w->n_vocab, u, &choice->feedback);
    } else if (s->adaptive.on) {
        choice->token = adaptive_draw(&s->adaptive, &w->c, u, &choice->feedback);
    } else {
        choice->token = candidates_draw(&w->c, u);
    }
    if (s->logprobs) {
        fill_logprobs(w, s, logits, choice);
    }
    return 0;
}

void sampler_follow(struct sampler *s, float feedback)
{
    mirostat_follow(&s->mirostat, feedback);
    adaptive_follow(&s->adaptive, feedback);
}

struct sampler_mark sampler_mark(const struct sampler *s)
{
    return (struct sampler_mark){ .mirostat_mu = s->mirostat.mu,
                                  .adaptive_sum = s->adaptive.sum,
                                  .adaptive_weight = s->adaptive.weight };
}

void sampler_rewind(struct sampler *s, const struct sampler_mark *to)
{
    s->mirostat.mu = to->mirostat_mu;
    s->adaptive.sum = to->adaptive_sum;
    s->adaptive.weight = to->adaptive_weight;
}
