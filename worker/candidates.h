/* The tokens that may still be chosen, and the filters that leave fewer of them. A set keeps at least one, in no order that
 * says anything; ties go to the lower id. The probability of a candidate is softmax(logit / scale) over the set as it
 * stands: temperature only sets the scale, so that nothing is rounded on the way. top-k, top-p and the draw go by one
 * question: which candidate is it at which the sum, the likeliest first, passes a mark? They sum integers (mass.h), so that a
 * device answers alike; the other filters sum in double, in the set's order. Worker, loop thread; nothing is allocated here.
 *   top-k     the k likeliest                             typical-p  Meister et al. 2022
 *   top-p     the likeliest up to mass p, Holtzman 2019   min-p      at least p times the best, Nguyen et al. 2024
 *   top-n-sigma  logit >= max - n * (standard deviation of the set's logits), Tang et al. 2024
 *   xtc       of those that reach the threshold only the least likely stays (Exclude Top Choices) */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct candidate {
    float logit;
    int32_t id;
    double key;    /* scratch of typical-p and adaptive-p */
    uint64_t mass; /* of top-k, top-p, the draw */
};

struct candidates {
    struct candidate *set, *sorted; /* room for every id each; borrowed */
    uint32_t n;
    double scale; /* the temperature so far; > 0 */
};

/* The candidate of an id where that costs nothing: while the set still holds every id, in order. Else NULL. */
static inline struct candidate *candidates_at(const struct candidates *c, int32_t id)
{
    return (uint32_t)id < c->n && c->set[id].id == id ? &c->set[id] : NULL;
}

/* Largest logit, and the sum of exp((logit - max) / scale). */
double candidates_max(const struct candidates *c);
double candidates_weight(const struct candidates *c, double max);

/* The sum of masses at the set's scale, and what its logarithm is. */
uint64_t candidates_mass(struct candidates *c);
double candidates_log_mass(uint64_t mass);

/* The k first, in order, into c->sorted; the set keeps all, in disorder. k <= n. */
void candidates_first(struct candidates *c, uint32_t k);

void candidates_top_k(struct candidates *c, uint32_t k);
void candidates_typical(struct candidates *c, double typical_p);
void candidates_top_p(struct candidates *c, double top_p);
void candidates_min_p(struct candidates *c, double min_p);
void candidates_n_sigma(struct candidates *c, double n);
void candidates_xtc(struct candidates *c, double threshold);

/* Shannon entropy of the set in nats. */
double candidates_entropy(const struct candidates *c);

/* u in [0, 1) picks by mass, the likeliest first. */
int32_t candidates_draw(struct candidates *c, double u);
int32_t candidates_likeliest(const struct candidates *c);
