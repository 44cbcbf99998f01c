#include "worker/candidates.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "worker/mass.h"

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

uint64_t candidates_mass(struct candidates *c)
{
    float max = (float)candidates_max(c), scale = (float)c->scale;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        c->set[i].mass = mass_of(c->set[i].logit - max, scale);
        sum += c->set[i].mass;
    }
    return sum;
}

double candidates_log_mass(uint64_t mass)
{
    return log((double)mass) - MASS_BITS * log(2);
}

/* ---- the first up to a mark ---- */

/* Pivots that no file can be made for ahead. */
static uint32_t next_pivot(uint32_t *state, uint32_t n)
{
    *state = *state * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)*state * n >> 32);
}

/* Those likelier than a pivot stand before `at` afterwards, the pivot there. Returns their masses' sum. */
static uint64_t divide(struct candidate *set, uint32_t from, uint32_t to, uint32_t pivot,
                       uint32_t *at)
{
    struct candidate p = set[pivot];
    uint64_t sum = 0;
    set[pivot] = set[to - 1];
    *at = from;
    for (uint32_t i = from; i + 1 < to; i++) {
        if (likelier(&set[i], &p)) {
            struct candidate moved = set[i];
            set[i] = set[*at];
            set[(*at)++] = moved;
            sum += moved.mass;
        }
    }
    set[to - 1] = set[*at];
    set[*at] = p;
    return sum;
}

/* The same as up_to for a few. */
static uint32_t up_to_by_pivots(struct candidate *set, uint32_t n, uint64_t mark)
{
    uint32_t from = 0, to = n, state = n;
    while (to - from > 1) {
        uint32_t at;
        uint64_t before = divide(set, from, to, from + next_pivot(&state, to - from), &at);
        if (mark < before) {
            to = at;
        } else if (mark - before < set[at].mass) {
            return at + 1;
        } else {
            mark -= before + set[at].mass;
            from = at + 1;
        }
    }
    return from + 1;
}

#define BINS 2048 /* of a 64th each, by the distance from the best */

static uint32_t bin_of(const struct candidate *of, float max)
{
    float far = (max - of->logit) * 64.0f;
    return far < BINS - 1 ? (uint32_t)far : BINS - 1;
}

/* Brings those of a bin to the front of set[from..n); returns where they end. */
static uint32_t gather(struct candidate *set, uint32_t from, uint32_t n, float max, uint32_t first,
                       uint32_t last)
{
    for (uint32_t i = from; i < n; i++) {
        uint32_t bin = bin_of(&set[i], max);
        if (bin >= first && bin <= last) {
            struct candidate moved = set[i];
            set[i] = set[from];
            set[from++] = moved;
        }
    }
    return from;
}

/* Brings those to the front at whose end the sum of masses, the likeliest first, passes mark, which is less than all of
 * it: returns how many, of whom the last stands last. */
static uint32_t up_to(struct candidates *c, uint64_t mark)
{
    uint64_t sums[BINS] = { 0 };
    float max = (float)candidates_max(c);
    for (uint32_t i = 0; i < c->n; i++) {
        sums[bin_of(&c->set[i], max)] += c->set[i].mass;
    }
    uint32_t bin = 0;
    for (; bin < BINS - 1 && mark >= sums[bin]; bin++) {
        mark -= sums[bin];
    }
    uint32_t n_before = bin > 0 ? gather(c->set, 0, c->n, max, 0, bin - 1) : 0;
    uint32_t end = gather(c->set, n_before, c->n, max, bin, bin);
    return n_before + up_to_by_pivots(c->set + n_before, end - n_before, mark);
}

/* ---- filters ---- */

#define FEW 256 /* a heap is quicker then */

void candidates_top_k(struct candidates *c, uint32_t k)
{
    if (k == 0 || k >= c->n) {
        return;
    }
    if (k <= FEW) {
        candidates_first(c, k);
        keep_sorted(c, k);
        return;
    }
    for (uint32_t i = 0; i < c->n; i++) {
        c->set[i].mass = 1;
    }
    c->n = up_to(c, k - 1);
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
    uint64_t sum = candidates_mass(c);
    c->n = up_to(c, mass_share(top_p, sum));
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

int32_t candidates_draw(struct candidates *c, double u)
{
    uint64_t mark = mass_mark(mass_draw(u), candidates_mass(c));
    return c->set[up_to(c, mark) - 1].id;
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
