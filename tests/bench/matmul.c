/* bench_matmul [TYPE [COLUMNS [THREADS [ISA]]]]: GB/s of weights and GMAC/s of one product, the best of a few rounds. ISA: 0
 * portable, 1 avx2, 2 avx512 (the default). Weights are larger than the caches (96 MB), laid by rows of 16. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/rows16.h"
#include "tests/ops/random.h"
#include "worker/cpu/cpu.h"
#include "worker/cpu/team.h"

#define K      2048
#define BYTES  (96u << 20)
#define ROUNDS 7

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void measure(enum dtype dtype, uint32_t n_cols, unsigned n_threads, enum cpu_isa isa)
{
    static const char *const names[] = { "portable", "avx2", "avx512" };
    struct err err;
    uint64_t row_bytes = 0;
    dtype_size(dtype, K, &row_bytes, &err);
    uint32_t m = n_cols > 16 ? 2048 : (uint32_t)(BYTES / row_bytes) / 16 * 16;
    uint8_t *data = aligned_alloc(64, row_bytes * m), *scratch = malloc(16 * row_bytes);
    float *x = malloc((size_t)n_cols * K * 4), *y = malloc((size_t)n_cols * m * 4);
    uint64_t random = 1;
    random_weights(dtype, (uint64_t)K * 64, data, 1);
    for (uint64_t off = 64 * row_bytes; off < m * row_bytes; off += 64 * row_bytes) {
        uint64_t left = m * row_bytes - off;
        memcpy(data + off, data, left < 64 * row_bytes ? left : 64 * row_bytes);
    }
    rows16_pack_in_place(dtype, data, m, row_bytes, scratch);
    for (size_t i = 0; i < (size_t)n_cols * K; i++) {
        x[i] = random_f32(&random);
    }
    const struct backend_limits limits = { .max_rows = n_cols, .max_k = K, .max_experts = 1 };
    struct cpu_backend c = { .isa = isa, .n_threads = n_threads, .limits = limits };
    c.team = team_create(n_threads, &err);
    c.scratch_bytes = (cpu_matmul_scratch(&limits, n_threads) + 63) & ~(size_t)63;
    c.scratch = aligned_alloc(64, c.scratch_bytes);
    const struct matrix w = { .name = "w",
                              .dtype = dtype,
                              .layout = WEIGHTS_LAYOUT_ROWS16,
                              .k = K,
                              .m = m,
                              .n_experts = 1,
                              .row_bytes = row_bytes,
                              .expert_bytes = row_bytes * m,
                              .data = data };
    const struct op_matmul op = { .x = x,
                                  .x_stride = K,
                                  .n_rows = n_cols,
                                  .k = K,
                                  .n_products = 1,
                                  .products = { { .w = &w, .y = y, .y_stride = m } } };
    double best = 1e9;
    for (int i = 0; i < ROUNDS; i++) {
        double start = now();
        cpu_matmul(&c.base, &op, &err);
        double took = now() - start;
        best = took < best ? took : best;
    }
    printf("%-8s %-8s %4u columns %u threads: %7.2f GB/s %8.2f GMAC/s\n", dtype_get(dtype)->name,
           names[isa], n_cols, n_threads, (double)(row_bytes * m) / best / 1e9,
           (double)n_cols * K * m / best / 1e9);
    team_destroy(&c.team);
    free(c.scratch);
    free(data);
    free(scratch);
    free(x);
    free(y);
}

int main(int argc, char **argv)
{
    int dtype = argc > 1 ? dtype_of_name(argv[1]) : DTYPE_Q8_0;
    uint32_t n_cols = argc > 2 ? (uint32_t)atoi(argv[2]) : 1;
    unsigned n_threads = argc > 3 ? (unsigned)atoi(argv[3]) : 1;
    enum cpu_isa isa = argc > 4 ? (enum cpu_isa)atoi(argv[4]) : CPU_ISA_AVX512;
    if (isa > CPU_ISA_AVX512 || dtype < 0 || n_cols < 1 || n_cols > 4096 || n_threads > 64) {
        fprintf(stderr, "bench_matmul [TYPE [COLUMNS [THREADS [ISA]]]]\n");
        return 2;
    }
    measure((enum dtype)dtype, n_cols, n_threads, isa);
    return 0;
}
