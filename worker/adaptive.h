/* Adaptive-p: draws tokens whose probability is near a target, and moves its aim so that those chosen have it in the mean.
 * (llama.cpp's sampler of that name, PR 17927.) Like mirostat's its state is a function of the committed tokens: each record
 * carries the probability of its token, and the two sums are walked along them. Loop thread; plain values.
 *   at the start   sum = target / (1 - decay), weight = 1 / (1 - decay)
 *   aim            2 * target - sum / weight, within 0 and 1
 *   draw           by softmax of 5 - 10 x^2 / (1 + x), x = |p - aim| / 0.3, p the probability among the candidates as
 *                  the other samplers left them
 *   then           sum = p + decay * sum, weight = 1 + decay * weight */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "worker/candidates.h"

struct adaptive {
    bool on;
    double target, decay;
    double sum, weight;
};

/* target is brought within 0 and 1, decay within 0 and 0.99. */
void adaptive_init(struct adaptive *a, bool on, float target, float decay);

/* Draws one of the candidates by u and gives the probability p it had; their logits become those of the draw. */
int32_t adaptive_draw(const struct adaptive *a, struct candidates *c, double u, float *p);

/* A token of this probability follows. */
void adaptive_follow(struct adaptive *a, float p);
