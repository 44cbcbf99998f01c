/* A product by widening the weights to 16-bit floats and cuBLAS: what gpu_prefill.c measures ours against. */
#pragma once

#include "worker/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

struct rival; /* a handle of cuBLAS, memory that grows */

struct rival_times {
    double widen, multiply; /* seconds */
};

int rival_open(struct backend *b, struct rival **rival, struct err *err);
void rival_close(struct rival **rival);

/* y(n, m) = x(n, k) W(m, k)^T, the best time of some rounds. x, y: device. W: F16, BF16 or a quantised type. 1; 0 without
 * cuBLAS: only widened. */
int rival_multiply(struct rival *r, const struct matrix *w, const float *x, uint32_t n, float *y,
                   int rounds, struct rival_times *times, struct err *err);

#ifdef __cplusplus
}
#endif
