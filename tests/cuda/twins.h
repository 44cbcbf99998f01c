/* The CPU backend and the emulated device side by side, and arrays that both can read: the emulation's memory is the
 * host's. Each test file is one program, so the statics here are its own. */
#pragma once

#include <math.h>

#include "tests/ops/random.h"
#include "tests/test.h"
#include "worker/backend.h"
#include "worker/cuda/cuda.h"

struct twins {
    struct backend *cpu, *cuda;
};

static const struct backend_limits twins_limits = { .max_rows = 136,
                                                    .max_rows_wide = 96,
                                                    .max_k = 1088,
                                                    .max_m = 1024,
                                                    .max_k_act = 512,
                                                    .max_heads = 42,
                                                    .max_k_dim = 576,
                                                    .max_v_dim = 512,
                                                    .max_experts = 64,
                                                    .ctx_len = 2048 };

static inline int twins_open(void **state)
{
    static struct twins t;
    struct err err = { 0 };
    const struct backend_options options = { .n_threads = 1 }, uploads = { .n_threads = 3 };
    t.cpu = backend_open("cpu", &options, &err);
    t.cuda = t.cpu ? cuda_open("cuda:0", &uploads, &err) : NULL;
    if (!t.cuda || t.cpu->ops->reserve(t.cpu, &twins_limits, &err) < 0 ||
        t.cuda->ops->reserve(t.cuda, &twins_limits, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    *state = &t;
    return 0;
}

/* The same two for the setting --exact; closed by the caller. */
static inline struct twins twins_exact(void)
{
    struct twins t;
    struct err err = { 0 };
    const struct backend_options options = { .n_threads = 1, .exact = true };
    t.cpu = backend_open("cpu", &options, &err);
    t.cuda = t.cpu ? cuda_open("cuda:0", &options, &err) : NULL;
    if (!t.cuda || t.cpu->ops->reserve(t.cpu, &twins_limits, &err) < 0 ||
        t.cuda->ops->reserve(t.cuda, &twins_limits, &err) < 0) {
        fail_msg("%s", err.text);
    }
    return t;
}

static inline int twins_close(void **state)
{
    struct twins *t = *state;
    backend_close(&t->cuda);
    backend_close(&t->cpu);
    return 0;
}

static inline float *twins_floats(size_t n, float scale, uint64_t seed)
{
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) {
        x[i] = random_f32(&seed) * scale;
    }
    return x;
}

/* Nowhere further apart than `tolerance` times the largest of what is wanted. */
static inline void twins_compare(const float *got, const float *want, size_t n, double tolerance,
                                 const char *what)
{
    double top = 1e-6;
    for (size_t i = 0; i < n; i++) {
        top = fmax(top, fabs((double)want[i]));
    }
    for (size_t i = 0; i < n; i++) {
        if (!(fabs((double)got[i] - (double)want[i]) <= tolerance * top)) {
            fail_msg("%s: [%zu] is %.9g, on the CPU %.9g (largest %.3g)", what, i, (double)got[i],
                     (double)want[i], top);
        }
    }
}
