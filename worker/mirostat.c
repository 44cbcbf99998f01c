#include "worker/mirostat.h"

#include <math.h>

#define ESTIMATE_FROM 100 /* of the likeliest, as in the paper */

void mirostat_init(struct mirostat *m, int version, float tau, float eta)
{
    *m = (struct mirostat){ .version = version == 1 || version == 2 ? version : 0,
                            .tau = tau,
                            .eta = eta,
                            .mu = 2 * (double)tau };
}

/* k of version 1. The set is in order in c->sorted, at least two of them. */
static double zipf_k(const struct candidates *c, uint32_t n_sorted, double mu, double n_vocab)
{
    double tb = 0, tt = 0;
    for (uint32_t i = 0; i + 1 < n_sorted; i++) {
        double t = log((i + 2.0) / (i + 1.0));
        double b = ((double)c->sorted[i].logit - (double)c->sorted[i + 1].logit) / c->scale;
        tb += t * b;
        tt += t * t;
    }
    double s = tb / tt, epsilon = s - 1;
    /* epsilon / (1 - N^-epsilon) has the limit 1 / ln N where epsilon is 0. */
    double ratio = fabs(epsilon) < 1e-9 ? 1 / log(n_vocab) : epsilon / (1 - pow(n_vocab, -epsilon));
    return pow(ratio * exp2(mu), 1 / s);
}

static void cut_by_zipf(const struct mirostat *m, struct candidates *c, uint32_t n_vocab)
{
    if (c->n < 2) {
        return;
    }
    uint32_t n = c->n < ESTIMATE_FROM ? c->n : ESTIMATE_FROM;
    candidates_first(c, n);
    double k = round(zipf_k(c, n, m->mu, n_vocab));
    if (!(k >= 1)) { /* also when it is not a number: all are equally likely, or one is */
        k = isnan(k) ? c->n : 1;
    }
    if (k < c->n) {
        candidates_top_k(c, (uint32_t)k);
    }
}

static void cut_by_surprise(const struct mirostat *m, struct candidates *c, double max,
                            double log2_sum)
{
    double least = max - (m->mu - log2_sum) * c->scale * log(2);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if ((double)c->set[i].logit >= least) {
            c->set[kept++] = c->set[i];
        }
    }
    if (kept == 0) {
        candidates_top_k(c, 1);
    } else {
        c->n = kept;
    }
}

int32_t mirostat_draw(const struct mirostat *m, struct candidates *c, uint32_t n_vocab, double u,
                      float *surprise)
{
    double max = candidates_max(c);
    double log2_sum = log2(candidates_weight(c, max));
    if (m->version == 1) {
        cut_by_zipf(m, c, n_vocab);
    } else {
        cut_by_surprise(m, c, max, log2_sum);
    }
    int32_t id = candidates_draw(c, u);
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->set[i].id == id) {
            *surprise = (float)(log2_sum - ((double)c->set[i].logit - max) / c->scale / log(2));
        }
    }
    return id;
}

void mirostat_follow(struct mirostat *m, float surprise)
{
    if (m->version != 0 && isfinite(surprise)) {
        m->mu -= (double)m->eta * ((double)surprise - (double)m->tau);
    }
}
