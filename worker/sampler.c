#include "worker/sampler.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/rng.h"

struct candidate {
    float logit;
    int32_t id;
    double key; /* typical-p: distance from the entropy */
};

struct sampler_work {
    uint32_t n_vocab;
    const struct pieces *pieces;
    struct candidate *set, *sorted; /* [n_vocab] each */
    uint32_t *counts;               /* [n_vocab], zero between calls */
    float *logits;                  /* [n_vocab], biased and penalised */
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
    };
    if (s->repeat_penalty <= 0) {
        s->repeat_penalty = 1;
    }
}

struct sampler_work *sampler_work_create(uint32_t n_vocab, const struct pieces *pieces,
                                         struct err *err)
{
    struct sampler_work *w = calloc(1, sizeof *w);
    if (w) {
        *w = (struct sampler_work){
            .n_vocab = n_vocab,
            .pieces = pieces,
            .set = calloc(n_vocab, sizeof *w->set),
            .sorted = calloc(n_vocab, sizeof *w->sorted),
            .counts = calloc(n_vocab, sizeof *w->counts),
            .logits = calloc(n_vocab, sizeof *w->logits),
        };
    }
    if (!w || !w->set || !w->sorted || !w->counts || !w->logits) {
        err_set(err, ERR_NO_MEMORY, "no memory to sample from %u tokens", n_vocab);
        sampler_work_destroy(&w);
    }
    return w;
}

void sampler_work_destroy(struct sampler_work **workp)
{
    struct sampler_work *w = *workp;
    if (w) {
        free(w->set);
        free(w->sorted);
        free(w->counts);
        free(w->logits);
        free(w);
    }
    *workp = NULL;
}

/* ---- orders and heaps ---- */

typedef bool before_fn(const struct candidate *a, const struct candidate *b);

static bool likelier(const struct candidate *a, const struct candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static bool less_likely(const struct candidate *a, const struct candidate *b)
{
    return likelier(b, a);
}

static bool more_typical(const struct candidate *a, const struct candidate *b)
{
    return a->key < b->key || (!(b->key < a->key) && a->id < b->id);
}

static void sift(struct candidate *heap, uint32_t n, uint32_t at, before_fn *before)
{
    struct candidate moving = heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= n) {
            break;
        }
        if (child + 1 < n && before(&heap[child + 1], &heap[child])) {
            child++;
        }
        if (!before(&heap[child], &moving)) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

static void heapify(struct candidate *heap, uint32_t n, before_fn *before)
{
    for (uint32_t i = n / 2; i-- > 0;) {
        sift(heap, n, i, before);
    }
}

static struct candidate pop(struct candidate *heap, uint32_t *n, before_fn *before)
{
    struct candidate top = heap[0];
    heap[0] = heap[--*n];
    if (*n > 0) {
        sift(heap, *n, 0, before);
    }
    return top;
}

/* The k first of set, in order, into out; set is left in disorder. */
static void select_first(struct candidate *set, uint32_t n, struct candidate *out, uint32_t k)
{
    /* out is a heap with the least likely on top, so most candidates cost one comparison. */
    memcpy(out, set, k * sizeof *out);
    heapify(out, k, less_likely);
    for (uint32_t i = k; i < n; i++) {
        if (likelier(&set[i], &out[0])) {
            out[0] = set[i];
            sift(out, k, 0, less_likely);
        }
    }
    for (uint32_t left = k; left > 1;) {
        struct candidate last = pop(out, &left, less_likely);
        out[left] = last;
    }
}

/* ---- the steps ---- */

/* Bias and penalties into w->logits. */
static void adjust(struct sampler_work *w, const struct sampler *s, const float *logits,
                   const int32_t *tokens, uint64_t n_tokens)
{
    memcpy(w->logits, logits, w->n_vocab * sizeof *logits);
    for (uint32_t i = 0; i < s->n_biases; i++) {
        int32_t id = s->biases[i].token;
        if (id >= 0 && (uint32_t)id < w->n_vocab) {
            w->logits[id] += s->biases[i].bias;
        }
    }
    if (s->ignore_eos) {
        for (uint32_t id = 0; id < w->n_vocab; id++) {
            if (pieces_is_end(w->pieces, (int32_t)id)) {
                w->logits[id] = -INFINITY;
            }
        }
    }
    bool penalised = s->repeat_penalty != 1 || s->presence_penalty != 0 ||
                     s->frequency_penalty != 0;
    uint64_t window = s->repeat_last_n < 0                    ? n_tokens
                      : (uint64_t)s->repeat_last_n < n_tokens ? (uint64_t)s->repeat_last_n
                                                              : n_tokens;
    if (!penalised || window == 0) {
        return;
    }
    const int32_t *seen = tokens + (n_tokens - window);
    for (uint64_t i = 0; i < window; i++) {
        if (seen[i] >= 0 && (uint32_t)seen[i] < w->n_vocab) {
            w->counts[seen[i]]++;
        }
    }
    for (uint64_t i = 0; i < window; i++) {
        if (seen[i] < 0 || (uint32_t)seen[i] >= w->n_vocab || w->counts[seen[i]] == 0) {
            continue;
        }
        float *l = &w->logits[seen[i]];
        *l = *l > 0 ? *l / s->repeat_penalty : *l * s->repeat_penalty;
        *l -= (float)w->counts[seen[i]] * s->frequency_penalty + s->presence_penalty;
        w->counts[seen[i]] = 0;
    }
}

/* All ids that may be chosen, in order of id. */
static uint32_t collect(struct sampler_work *w)
{
    uint32_t n = 0;
    uint32_t n_ids = w->pieces->n > 0 && w->pieces->n < w->n_vocab ? w->pieces->n : w->n_vocab;
    for (uint32_t id = 0; id < n_ids; id++) {
        if (w->logits[id] > -INFINITY) { /* false for NaN */
            w->set[n++] = (struct candidate){ .logit = w->logits[id], .id = (int32_t)id };
        }
    }
    return n;
}

static double max_logit(const struct candidate *set, uint32_t n)
{
    float best = set[0].logit;
    for (uint32_t i = 1; i < n; i++) {
        best = set[i].logit > best ? set[i].logit : best;
    }
    return (double)best;
}

static double weight_sum(const struct candidate *set, uint32_t n, double max)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += exp((double)set[i].logit - max);
    }
    return sum;
}

/* Keeps the most typical candidates that together reach typical_p. Reads set, which may hold them in any order. */
static uint32_t keep_typical(struct sampler_work *w, uint32_t n, double typical_p)
{
    double max = max_logit(w->set, n);
    double log_sum = log(weight_sum(w->set, n, max));
    double entropy = 0;
    for (uint32_t i = 0; i < n; i++) {
        double lp = (double)w->set[i].logit - max - log_sum;
        entropy -= exp(lp) * lp;
    }
    for (uint32_t i = 0; i < n; i++) {
        w->set[i].key = fabs(-((double)w->set[i].logit - max - log_sum) - entropy);
    }
    heapify(w->set, n, more_typical);
    uint32_t kept = 0;
    double mass = 0;
    while (n > 0 && (kept == 0 || mass < typical_p)) {
        struct candidate c = pop(w->set, &n, more_typical);
        mass += exp((double)c.logit - max - log_sum);
        w->sorted[kept++] = c;
    }
    memcpy(w->set, w->sorted, kept * sizeof *w->set);
    return kept;
}

/* Keeps the likeliest candidates that together reach top_p; afterwards set is in order. */
static uint32_t keep_top_p(struct sampler_work *w, uint32_t n, double top_p)
{
    double max = max_logit(w->set, n);
    double enough = top_p * weight_sum(w->set, n, max);
    heapify(w->set, n, likelier);
    uint32_t kept = 0;
    double mass = 0;
    while (n > 0 && (kept == 0 || mass < enough)) {
        struct candidate c = pop(w->set, &n, likelier);
        mass += exp((double)c.logit - max);
        w->sorted[kept++] = c;
    }
    memcpy(w->set, w->sorted, kept * sizeof *w->set);
    return kept;
}

static uint32_t keep_min_p(struct sampler_work *w, uint32_t n, double min_p)
{
    double least = max_logit(w->set, n) + log(min_p);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        if ((double)w->set[i].logit >= least || n == 1) {
            w->set[kept++] = w->set[i];
        }
    }
    return kept;
}

static int32_t draw(const struct candidate *set, uint32_t n, double temp, double u)
{
    double max = max_logit(set, n);
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += exp(((double)set[i].logit - max) / temp);
    }
    double mark = u * sum, mass = 0;
    for (uint32_t i = 0; i < n; i++) {
        mass += exp(((double)set[i].logit - max) / temp);
        if (mark < mass) {
            return set[i].id;
        }
    }
    return set[n - 1].id; /* not reached: mark < sum, and mass is the same sum */
}

static int32_t likeliest(const struct candidate *set, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++) {
        if (likelier(&set[i], &set[best])) {
            best = i;
        }
    }
    return set[best].id;
}

/* The model's own log-probabilities, of the chosen token and of the likeliest. */
static void fill_logprobs(struct sampler_work *w, const struct sampler *s, const float *logits,
                          struct sampler_choice *choice)
{
    memcpy(w->logits, logits, w->n_vocab * sizeof *logits);
    uint32_t n = collect(w);
    if (n == 0) {
        return;
    }
    double max = max_logit(w->set, n);
    double log_sum = log(weight_sum(w->set, n, max));
    choice->logprob = (float)((double)logits[choice->token] - max - log_sum);
    uint32_t k = s->n_alternatives < n ? s->n_alternatives : n;
    if (k > 0) {
        select_first(w->set, n, w->sorted, k);
    }
    for (uint32_t i = 0; i < k; i++) {
        choice->alternatives[i] = (struct journal_alternative){
            .token = w->sorted[i].id,
            .logprob = (float)((double)w->sorted[i].logit - max - log_sum),
        };
    }
    choice->n_alternatives = k;
}

int sampler_choose(struct sampler_work *w, const struct sampler *s, const float *logits,
                   const int32_t *tokens, uint64_t n_tokens, struct sampler_choice *choice,
                   struct err *err)
{
    *choice = (struct sampler_choice){ 0 };
    adjust(w, s, logits, tokens, n_tokens);
    uint32_t n = collect(w);
    if (n == 0 || !isfinite(max_logit(w->set, n))) {
        return err_set(err, ERR_FAILED, "the model gave no finite logit at position %llu",
                       (unsigned long long)n_tokens);
    }
    if (s->temp <= 0) {
        choice->token = likeliest(w->set, n);
    } else {
        if (s->top_k > 0 && (uint32_t)s->top_k < n) {
            select_first(w->set, n, w->sorted, (uint32_t)s->top_k);
            n = (uint32_t)s->top_k;
            memcpy(w->set, w->sorted, n * sizeof *w->set);
        }
        if (s->typical_p < 1) {
            n = keep_typical(w, n, (double)s->typical_p);
        }
        if (s->top_p < 1) {
            n = keep_top_p(w, n, (double)s->top_p);
        }
        if (s->min_p > 0) {
            n = keep_min_p(w, n, s->min_p < 1 ? (double)s->min_p : 1.0);
        }
        choice->token = draw(w->set, n, (double)s->temp, rng_uniform(s->seed, n_tokens, 0));
    }
    if (s->logprobs) {
        fill_logprobs(w, s, logits, choice);
    }
    return 0;
}
