#include "worker/candidates.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

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

void candidates_first(struct candidates *c, uint32_t k)
{
    /* sorted is a heap with the least likely on top, so most candidates cost one comparison. */
    struct candidate *out = c->sorted;
    const struct candidate *set = c->set;
    memcpy(out, set, k * sizeof *out);
    heapify(out, k, less_likely);
    for (uint32_t i = k, n = c->n; i < n; i++) {
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

/* The set becomes the first n of sorted. */
static void keep_sorted(struct candidates *c, uint32_t n)
{
    memcpy(c->set, c->sorted, n * sizeof *c->set);
    c->n = n;
}

/* ---- sums ---- */

double candidates_max(const struct candidates *c)
{
    const struct candidate *set = c->set;
    float best = set[0].logit;
    for (uint32_t i = 1, n = c->n; i < n; i++) {
        best = set[i].logit > best ? set[i].logit : best;
    }
    return (double)best;
}

static double log_weight(const struct candidates *c, const struct candidate *of, double max)
{
    return ((double)of->logit - max) / c->scale;
}

double candidates_weight(const struct candidates *c, double max)
{
    double sum = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        sum += exp(log_weight(c, &c->set[i], max));
    }
    return sum;
}

static double entropy_of(const struct candidates *c, double max, double log_sum)
{
    double entropy = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        double lp = log_weight(c, &c->set[i], max) - log_sum, p = exp(lp);
        entropy -= p > 0 ? p * lp : 0;
    }
    return entropy;
}

double candidates_entropy(const struct candidates *c)
{
    double max = candidates_max(c);
    return entropy_of(c, max, log(candidates_weight(c, max)));
}

/* ---- filters ---- */

void candidates_top_k(struct candidates *c, uint32_t k)
{
    if (k > 0 && k < c->n) {
        candidates_first(c, k);
        keep_sorted(c, k);
    }
}

void candidates_typical(struct candidates *c, double typical_p)
{
    double max = candidates_max(c);
    double log_sum = log(candidates_weight(c, max));
    double entropy = entropy_of(c, max, log_sum);
    for (uint32_t i = 0; i < c->n; i++) {
        c->set[i].key = fabs(-(log_weight(c, &c->set[i], max) - log_sum) - entropy);
    }
    uint32_t n = c->n, kept = 0;
    heapify(c->set, n, more_typical);
    double mass = 0;
    while (n > 0 && (kept == 0 || mass < typical_p)) {
        struct candidate next = pop(c->set, &n, more_typical);
        mass += exp(log_weight(c, &next, max) - log_sum);
        c->sorted[kept++] = next;
    }
    keep_sorted(c, kept);
}

void candidates_top_p(struct candidates *c, double top_p)
{
    double max = candidates_max(c);
    double enough = top_p * candidates_weight(c, max), mass = 0;
    uint32_t n = c->n, kept = 0;
    heapify(c->set, n, likelier);
    while (n > 0 && (kept == 0 || mass < enough)) {
        struct candidate next = pop(c->set, &n, likelier);
        mass += exp(log_weight(c, &next, max));
        c->sorted[kept++] = next;
    }
    keep_sorted(c, kept);
}

/* Keeps those whose logit is at least `least`; the likeliest is one of them. */
static void keep_from(struct candidates *c, double least)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if ((double)c->set[i].logit >= least || c->n == 1) {
            c->set[kept++] = c->set[i];
        }
    }
    c->n = kept;
}

void candidates_min_p(struct candidates *c, double min_p)
{
    keep_from(c, candidates_max(c) + c->scale * log(min_p));
}

void candidates_n_sigma(struct candidates *c, double n)
{
    double sum = 0, squares = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        sum += (double)c->set[i].logit;
    }
    double mean = sum / c->n;
    for (uint32_t i = 0; i < c->n; i++) {
        double d = (double)c->set[i].logit - mean;
        squares += d * d;
    }
    keep_from(c, candidates_max(c) - n * sqrt(squares / c->n));
}

void candidates_xtc(struct candidates *c, double threshold)
{
    double max = candidates_max(c);
    double least = threshold * candidates_weight(c, max);
    const struct candidate *last = NULL;
    for (uint32_t i = 0; i < c->n; i++) {
        if (exp(log_weight(c, &c->set[i], max)) >= least &&
            (!last || less_likely(&c->set[i], last))) {
            last = &c->set[i];
        }
    }
    if (!last) {
        return;
    }
    struct candidate stays = *last;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if (!likelier(&c->set[i], &stays)) {
            c->set[kept++] = c->set[i];
        }
    }
    c->n = kept;
}

/* ---- the choice ---- */

int32_t candidates_draw(const struct candidates *c, double u)
{
    double max = candidates_max(c);
    double mark = u * candidates_weight(c, max), mass = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        mass += exp(log_weight(c, &c->set[i], max));
        if (mark < mass) {
            return c->set[i].id;
        }
    }
    return c->set[c->n - 1].id; /* not reached: mark < sum, and mass is the same sum */
}

int32_t candidates_likeliest(const struct candidates *c)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < c->n; i++) {
        if (likelier(&c->set[i], &c->set[best])) {
            best = i;
        }
    }
    return c->set[best].id;
}
