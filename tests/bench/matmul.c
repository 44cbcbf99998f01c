/* bench_matmul [TYPE,.. [COLUMNS [THREADS [ISA [MIB]]]]]: one product, beside what bounds it on the same threads in the same run:
 * a plain read loop over the same bytes, and a loop of 8-bit multiply-adds between registers. Rounds alternate (product, read, multiply),
 * medians are printed. ISA: 0 portable, 1 avx2, 2 avx512 (the default). MIB of weights, 192 if not told, laid by rows
 * of 16; above 16 columns 2048 rows. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "proto/rows16.h"
#include "tests/ops/random.h"
#include "worker/cpu/ceiling.h"
#include "worker/cpu/cpu.h"
#include "worker/cpu/team.h"

#define K          2048
#define ROUNDS     25
#define READ_BYTES (256u << 10) /* of one item of the read loop */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v)
{
    qsort(v, ROUNDS, sizeof *v, by_size);
    return v[ROUNDS / 2];
}

/* ---- what bounds it ---- */

struct stretch {
    const uint8_t *data;
    uint64_t n;
};

static volatile uint64_t sink; /* keeps the loops' results alive */

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static uint64_t read_wide(const uint8_t *p, const uint8_t *end)
{
    __m512i s[4] = { { 0 } };
    for (; p + 256 <= end; p += 256) {
        for (int i = 0; i < 4; i++) {
            s[i] = _mm512_xor_si512(s[i], _mm512_loadu_si512(p + 64 * i));
        }
    }
    s[0] = _mm512_xor_si512(_mm512_xor_si512(s[0], s[1]), _mm512_xor_si512(s[2], s[3]));
    return (uint64_t)_mm512_reduce_add_epi64(s[0]);
}
#endif

static uint64_t read_words(const uint8_t *p, const uint8_t *end)
{
    uint64_t s = 0, v;
    for (; p + 8 <= end; p += 8) {
        memcpy(&v, p, 8);
        s ^= v;
    }
    return s;
}

static void read_items(void *arg, size_t begin, size_t end, unsigned member)
{
    const struct stretch *b = arg;
    uint64_t to = (uint64_t)end * READ_BYTES;
    const uint8_t *from = b->data + (uint64_t)begin * READ_BYTES,
                  *last = b->data + (to < b->n ? to : b->n);
    (void)member;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        sink = read_wide(from, last);
        return;
    }
#endif
    sink = read_words(from, last);
}

/* ---- the product ---- */

static uint8_t *make_weights(enum dtype dtype, uint32_t m, uint64_t row_bytes)
{
    uint8_t *data = aligned_alloc(64, row_bytes * m), *scratch = malloc(16 * row_bytes);
    random_weights(dtype, (uint64_t)K * 64, data, 1);
    for (uint64_t off = 64 * row_bytes; off < m * row_bytes; off += 64 * row_bytes) {
        uint64_t left = m * row_bytes - off;
        memcpy(data + off, data, left < 64 * row_bytes ? left : 64 * row_bytes);
    }
    rows16_pack_in_place(dtype, data, m, row_bytes, scratch);
    free(scratch);
    return data;
}

static void measure(enum dtype dtype, uint32_t n_cols, unsigned n_threads, enum cpu_isa isa,
                    uint32_t mib)
{
    static const char *const names[] = { "portable", "avx2", "avx512" };
    struct err err;
    uint64_t row_bytes = 0;
    dtype_size(dtype, K, &row_bytes, &err);
    uint32_t m = n_cols > 16 ? 2048 : (uint32_t)(((uint64_t)mib << 20) / row_bytes) / 16 * 16;
    uint8_t *data = make_weights(dtype, m, row_bytes);
    float *x = malloc((size_t)n_cols * K * 4), *y = malloc((size_t)n_cols * m * 4);
    uint64_t random = 1;
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
    struct stretch bytes = { data, row_bytes * m };
    double product[ROUNDS], read[ROUNDS], peak[ROUNDS], macs = (double)n_cols * K * m;
    cpu_matmul(&c.base, &op, &err);
    for (int i = 0; i < ROUNDS; i++) {
        double start = now();
        cpu_matmul(&c.base, &op, &err);
        product[i] = now() - start;
        start = now();
        team_run(c.team, read_items, &bytes, (bytes.n + READ_BYTES - 1) / READ_BYTES, 1);
        read[i] = now() - start;
        peak[i] = cpu_ceiling_gmacs(c.team, n_threads);
    }
    double took = median(product), gbs = (double)bytes.n / took / 1e9, gmacs = macs / took / 1e9;
    double read_gbs = (double)bytes.n / median(read) / 1e9;
    double peak_gmacs = median(peak);
    printf(
        "%-8s %-8s %4u columns %u threads: %6.2f GB/s (read %5.2f, %.2f of it; best %5.2f of %5.2f)"
        " %7.1f GMAC/s (peak %5.1f, %.3f; best %.3f)\n",
        dtype_get(dtype)->name, names[isa], n_cols, n_threads, gbs, read_gbs, gbs / read_gbs,
        (double)bytes.n / product[0] / 1e9, (double)bytes.n / read[0] / 1e9, gmacs, peak_gmacs,
        gmacs / peak_gmacs, macs / product[0] / 1e9 / peak_gmacs);
    fflush(stdout);
    team_destroy(&c.team);
    free(c.scratch);
    free(data);
    free(x);
    free(y);
}

int main(int argc, char **argv)
{
    char types[256];
    snprintf(types, sizeof types, "%s", argc > 1 ? argv[1] : "Q8_0");
    uint32_t n_cols = argc > 2 ? (uint32_t)atoi(argv[2]) : 1;
    unsigned n_threads = argc > 3 ? (unsigned)atoi(argv[3]) : 1;
    enum cpu_isa isa = argc > 4 ? (enum cpu_isa)atoi(argv[4]) : CPU_ISA_AVX512;
    uint32_t mib = argc > 5 ? (uint32_t)atoi(argv[5]) : 192;
    for (char *name = strtok(types, ","); name; name = strtok(NULL, ",")) {
        int dtype = dtype_of_name(name);
        if (isa > CPU_ISA_AVX512 || dtype < 0 || n_cols < 1 || n_cols > 4096 || n_threads > 64 ||
            mib < 1) {
            fprintf(stderr, "bench_matmul [TYPE,.. [COLUMNS [THREADS [ISA [MIB]]]]]\n");
            return 2;
        }
        measure((enum dtype)dtype, n_cols, n_threads, isa, mib);
    }
    return 0;
}
