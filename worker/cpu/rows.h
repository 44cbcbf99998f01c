/* The elementwise kernels: one row at a time, plain C loops that the compiler vectorises, built once for each instruction
 * set from rows.inc. Every step is one IEEE operation or an explicit fmaf, and sums run in a fixed interleaving, so the
 * sets agree to the bit. Used by norm.c, ffn.c, moe.c and delta.c; any thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "worker/backend.h"

struct rows_kernels {
    /* y = act(g) * u over n; u NULL: act(g). y may be g or u. */
    void (*act)(enum op_act_kind kind, const float *g, const float *u, float *y, uint32_t n);
    /* y = y_scale * (a + b_scale b), then softcap; b NULL: a alone. y may be a or b. */
    void (*add)(const float *a, const float *b, float b_scale, float y_scale, float softcap,
                float *y, uint32_t n);
    /* op_norm's formula for one vector; w, b may be NULL. y may be x. */
    void (*norm)(enum op_norm_kind kind, const float *x, const float *w, const float *b, float eps,
                 float *y, uint32_t n);
    /* y = fma(a, x, y) over n. */
    void (*fma)(float a, const float *x, float *y, uint32_t n);
    /* One token of one head of the gated delta net: S (n, n) decays, learns (k, beta (v - S^T k)), and answers
     * o = S^T q. k and q are scaled already. e: n floats of scratch. */
    void (*delta)(float decay, float beta, const float *q, const float *k, const float *v, float *S,
                  float *e, float *o, uint32_t n);
};

extern const struct rows_kernels rows_portable, rows_avx2, rows_avx512;
