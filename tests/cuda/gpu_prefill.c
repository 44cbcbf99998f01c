/* Products of many columns, ours beside cuBLAS on the same device: gpu-prefill [cuda:0] [small]. Which of the two a prompt should
 * take, for each type and shape, is a question to this table (worker/cuda/README.md). One line each: type, rows, values
 * of a row, columns; ours in ms and TFLOP/s; to f16 and cuBLAS's GEMM with f32 sums, in ms; cuBLAS's TFLOP/s; how often ours
 * fits into theirs. Beside 16-bit weights nothing is widened, and cuBLAS rounds the activations, which ours does not.
 * Without cuBLAS its columns are "-". */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/weights.h"
#include "tests/cuda/gpu_rival.h"
#include "tests/ops/random.h"

#define ROUNDS    7
#define FAR       3e-2 /* of the largest: int8 activations against f16 ones */
#define N_COLUMNS 3

static void need(int rc, const struct err *err)
{
    if (rc < 0) {
        fprintf(stderr, "gpu-prefill: %s\n", err->text);
        exit(1);
    }
}

static void *room(size_t size)
{
    struct err err;
    void *p = calloc(1, size);
    need(p ? 0 : err_set(&err, ERR_NO_MEMORY, "no memory"), &err);
    return p;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The best of some rounds, in seconds; the first warms up. */
static double time_ours(struct backend *b, const struct op_matmul *op)
{
    struct err err = { 0 };
    double least = 1e30;
    for (int i = 0; i <= ROUNDS; i++) {
        double start = now();
        need(b->ops->matmul(b, op, &err), &err);
        need(b->ops->finish(b, &err), &err);
        double took = now() - start;
        least = i > 0 && took < least ? took : least;
    }
    return least;
}

/* Off by how much of the largest. */
static double away(const float *a, const float *b, size_t n)
{
    double top = 1e-6, worst = 0;
    for (size_t i = 0; i < n; i++) {
        double off = fabs((double)a[i] - (double)b[i]);
        top = fmax(top, fabs((double)a[i]));
        worst = off <= worst ? worst : off; /* NaN stays */
    }
    return worst / top;
}

static int compare(struct backend *b, struct rival *rival, enum dtype dtype, uint32_t m, uint32_t k,
                   const uint32_t *columns)
{
    struct err err = { 0 };
    const struct dtype_info *info = dtype_get(dtype);
    uint32_t most = columns[N_COLUMNS - 1];
    size_t n_x = (size_t)most * k, n_y = (size_t)most * m;
    uint64_t row_bytes, state = 5;
    need(dtype_size(dtype, k, &row_bytes, &err), &err);
    uint8_t *data = room(row_bytes * m);
    random_weights(dtype, (uint64_t)k * m, data, 7);
    const struct weights_tensor t = { .name = "w",
                                      .dtype = dtype,
                                      .n_dims = 2,
                                      .ne = { k, m, 1, 1 },
                                      .size_bytes = row_bytes * m,
                                      .data_end = row_bytes * m,
                                      .data = data };
    struct matrix w;
    float *x = room(n_x * sizeof *x), *ours = room(n_y * sizeof *x),
          *theirs = room(n_y * sizeof *x);
    int failed = 0;
    for (size_t i = 0; i < n_x; i++) {
        x[i] = random_f32(&state);
    }
    need(b->ops->import(b, &t, &w, &err), &err);
    need(b->ops->arrived(b, NULL, SIZE_MAX, t.data_end, &err), &err);
    float *x_there = b->ops->alloc(b, n_x * sizeof *x, &err);
    float *y_there = b->ops->alloc(b, n_y * sizeof *x, &err);
    need(x_there && y_there ? b->ops->upload(b, x_there, x, n_x * sizeof *x, &err) : -1, &err);
    for (int i = 0; i < N_COLUMNS; i++) {
        uint32_t n = columns[i];
        const struct op_matmul op = { .x = x_there,
                                      .x_stride = k,
                                      .n_rows = n,
                                      .k = k,
                                      .n_products = 1,
                                      .products = { { .w = &w, .y = y_there, .y_stride = m } } };
        struct rival_times r;
        double own = time_ours(b, &op), flops = 2.0 * m * k * n;
        need(b->ops->download(b, ours, y_there, (size_t)n * m * sizeof *x, &err), &err);
        int rc = rival_multiply(rival, &w, x_there, n, y_there, ROUNDS, &r, &err);
        need(rc, &err);
        printf("%s\t%u\t%u\t%u\t%.3f\t%.1f", info->name, m, k, n, own * 1e3, flops / own / 1e12);
        if (rc == 0) {
            printf("\t%.3f\t-\t-\t-\n", r.widen * 1e3);
            continue;
        }
        printf("\t%.3f\t%.3f\t%.1f\t%.2f\n", r.widen * 1e3, r.multiply * 1e3,
               flops / r.multiply / 1e12, (r.widen + r.multiply) / own);
        need(b->ops->download(b, theirs, y_there, (size_t)n * m * sizeof *x, &err), &err);
        double off = away(ours, theirs, (size_t)n * m);
        if (!(off < FAR)) {
            printf("FAIL %s: off by %.3g of the largest\n", info->name, off);
            failed = 1;
        }
        fflush(stdout);
    }
    b->ops->release(b, data, row_bytes * m);
    b->ops->free(b, x_there);
    b->ops->free(b, y_there);
    free(x);
    free(ours);
    free(theirs);
    free(data);
    return failed;
}

int main(int argc, char **argv)
{
    /* The shapes of a 32B: its heads, its way up and down. */
    static const uint32_t shapes[][2] = { { 5120, 5120 }, { 27648, 5120 }, { 5120, 27648 } };
    static const uint32_t large[N_COLUMNS] = { 128, 512, 2048 }, little[N_COLUMNS] = { 3, 17, 40 };
    static const enum dtype types[] = { DTYPE_Q8_0,  DTYPE_Q4_0, DTYPE_Q4_K, DTYPE_Q6_K,
                                        DTYPE_IQ3_S, DTYPE_F16,  DTYPE_BF16 };
    bool small = argc > 2;
    const uint32_t *columns = small ? little : large;
    const struct backend_options options = { 0 };
    const struct backend_limits limits = { .max_rows = columns[N_COLUMNS - 1],
                                           .max_rows_wide = columns[N_COLUMNS - 1],
                                           .max_k = small ? 256 : 27648,
                                           .max_m = small ? 64 : 27648,
                                           .max_heads = 1,
                                           .max_k_dim = 1,
                                           .max_v_dim = 1,
                                           .max_experts = 1,
                                           .ctx_len = 64 };
    struct err err = { 0 };
    struct rival *rival;
    int failed = 0;
    struct backend *b = cuda_open(argc > 1 ? argv[1] : "cuda:0", &options, &err);
    need(b ? b->ops->reserve(b, &limits, &err) : -1, &err);
    need(rival_open(b, &rival, &err), &err);
    printf("type\tm\tk\tn\tours ms\tours TFLOP/s\tto f16 ms\tcuBLAS ms\tcuBLAS TFLOP/s\tratio\n");
    for (size_t s = 0; s < (small ? 1 : sizeof shapes / sizeof shapes[0]); s++) {
        for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
            failed |= compare(b, rival, types[i], small ? 40 : shapes[s][0],
                              small ? 256 : shapes[s][1], columns);
        }
    }
    rival_close(&rival);
    backend_close(&b);
    return failed;
}
