#include "worker/adaptive.h"

#include <math.h>

#define WIDTH     0.3  /* of the hill around the aim */
#define PEAK      5.0  /* its logit */
#define STEEPNESS 10.0 /* a square near the aim, a line far from it */
#define DECAY_MAX 0.99

static double within(double value, double low, double high)
{
    return value < low ? low : value > high ? high : value;
}

void adaptive_init(struct adaptive *a, bool on, float target, float decay)
{
    double t = within((double)target, 0, 1), d = within((double)decay, 0, DECAY_MAX);
    *a = (struct adaptive){
        .on = on,
        .target = t,
        .decay = d,
        .sum = t / (1 - d),
        .weight = 1 / (1 - d),
    };
}

int32_t adaptive_draw(const struct adaptive *a, struct candidates *c, double u, float *p)
{
    double aim = within(2 * a->target - a->sum / a->weight, 0, 1);
    double max = candidates_max(c), sum = candidates_weight(c, max);
    for (uint32_t i = 0; i < c->n; i++) {
        struct candidate *of = &c->set[i];
        of->key = exp(((double)of->logit - max) / c->scale) / sum;
        double x = fabs(of->key - aim) / WIDTH;
        of->logit = (float)(PEAK - STEEPNESS * x * x / (1 + x));
    }
    c->scale = 1;
    int32_t id = candidates_draw(c, u);
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->set[i].id == id) {
            *p = (float)c->set[i].key;
        }
    }
    return id;
}

void adaptive_follow(struct adaptive *a, float p)
{
    if (a->on && isfinite(p)) {
        a->sum = (double)p + a->decay * a->sum;
        a->weight = 1 + a->decay * a->weight;
    }
}
