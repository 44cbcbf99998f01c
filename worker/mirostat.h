/* Mirostat (Basu et al. 2020): keeps the surprise of the text near tau. Its state mu is a function of the committed tokens:
 * each record carries the surprise of its token, and mu is walked along them, so a worker that goes on after another's
 * death has the same mu to the bit. Loop thread; plain values.
 *   mu = 2 * tau at the start; after each token mu -= eta * (surprise - tau); surprise = -log2 p of the token among all
 *   candidates, before the cut.
 *   version 1   Zipf's exponent s is estimated from the 100 likeliest; of k = ((s-1) 2^mu / (1 - N^(1-s)))^(1/s) is drawn
 *   version 2   is drawn from the candidates whose surprise is at most mu (the likeliest at least) */
#pragma once

#include <stdint.h>

#include "worker/candidates.h"

struct mirostat {
    int version; /* 0: off */
    float tau, eta;
    double mu;
};

/* version 0 is off; so is anything that is not 1 or 2. */
void mirostat_init(struct mirostat *m, int version, float tau, float eta);

/* Leaves the candidates that mu allows, draws one by u, and gives its surprise in bits. n_vocab: N. */
int32_t mirostat_draw(const struct mirostat *m, struct candidates *c, uint32_t n_vocab, double u,
                      float *surprise);

/* A token of this surprise follows. */
void mirostat_follow(struct mirostat *m, float surprise);
