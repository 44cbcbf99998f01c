/* Goal: the default path's products are right for every weight type, and give the same bits on every instruction set,
 * in either layout, for any number of columns and threads. */
#include "tests/test.h"

#include <math.h>

#include "proto/rows16.h"
#include "tests/ops/random.h"
#include "worker/cpu/cpu.h"
#include "worker/cpu/team.h"

#define K      544 /* two chunks of 256 and a rest; K types take 512 of it */
#define M      39  /* two groups of 16 and a rest */
#define N_COLS 29  /* three panels */

struct fixture {
    struct cpu_backend cpu;
    struct backend_limits limits;
};

static void open_cpu(struct fixture *f, enum cpu_isa isa, unsigned n_threads)
{
    struct err err;
    *f = (struct fixture){
        .limits = { .max_rows = 64, .max_rows_wide = 64, .max_k = 1024, .max_experts = 8 }
    };
    f->cpu.isa = isa;
    f->cpu.n_threads = n_threads;
    f->cpu.team = team_create(n_threads, &err);
    assert_non_null(f->cpu.team);
    f->cpu.scratch_bytes = (cpu_matmul_scratch(&f->limits, n_threads) + 63) & ~(size_t)63;
    f->cpu.scratch = aligned_alloc(64, f->cpu.scratch_bytes);
    assert_non_null(f->cpu.scratch);
}

static void close_cpu(struct fixture *f)
{
    team_destroy(&f->cpu.team);
    free(f->cpu.scratch);
}

static bool have(enum cpu_isa isa)
{
    if (isa == CPU_ISA_PORTABLE) {
        return true;
    }
#if defined(__x86_64__)
    return isa == CPU_ISA_AVX2 ? __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                               : (bool)__builtin_cpu_supports("avx512vbmi");
#else
    return false;
#endif
}

static bool multiplies(int id)
{
    const struct dtype_info *info = dtype_find((uint32_t)id);
    struct matrix w = { .name = "w", .dtype = (enum dtype)id };
    return info && cpu_matmul_check(NULL, &w, NULL) == 0;
}

/* n experts of m rows of k values, in the file's layout or re-laid. */
static struct matrix make(enum dtype dtype, uint32_t k, uint32_t m, uint32_t n, bool laid,
                          uint8_t **owned)
{
    struct err err;
    uint64_t row_bytes;
    assert_ok(dtype_size(dtype, k, &row_bytes, &err), err);
    uint8_t *data = malloc(row_bytes * m * n), *scratch = malloc(16 * row_bytes);
    assert_non_null(data);
    assert_non_null(scratch);
    random_weights(dtype, (uint64_t)k * m * n, data, 7 + (uint64_t)dtype);
    for (uint32_t e = 0; laid && e < n; e++) {
        rows16_pack_in_place(dtype, data + e * m * row_bytes, m, row_bytes, scratch);
    }
    free(scratch);
    *owned = data;
    return (struct matrix){ .name = "w",
                            .dtype = dtype,
                            .layout = laid ? WEIGHTS_LAYOUT_ROWS16 : WEIGHTS_LAYOUT_FILE,
                            .k = k,
                            .m = m,
                            .n_experts = n,
                            .row_bytes = row_bytes,
                            .expert_bytes = row_bytes * m,
                            .data = data };
}

static uint32_t k_of(enum dtype dtype)
{
    return K / dtype_get(dtype)->block_values * dtype_get(dtype)->block_values;
}

/* Columns whose int8 codes are exact: whole numbers with 127 in each block of 32, times a power of two. */
static void exact_columns(float *x, size_t n)
{
    uint64_t state = 3;
    for (size_t i = 0; i < n; i++) {
        int v = (int)(random_u32(&state) % 255) - 127;
        x[i] = (float)(i % 32 == 5 ? 127 : v) * 0x1p-6f;
    }
}

static void multiply(struct fixture *f, const struct matrix *w, const float *x, uint32_t n,
                     float *y)
{
    struct err err;
    struct op_matmul op = { .x = x,
                            .x_stride = K,
                            .n_rows = n,
                            .k = w->k,
                            .n_products = 1,
                            .products = { { .w = w, .y = y, .y_stride = M } } };
    assert_ok(cpu_matmul(&f->cpu.base, &op, &err), err);
}

static void products_match_double_precision(void **state)
{
    (void)state;
    static float x[N_COLS * K], y[N_COLS * M], w[K];
    exact_columns(x, N_COLS * K);
    for (int id = 0; id < DTYPE_N; id++) {
        if (!multiplies(id)) {
            continue;
        }
        uint8_t *data, *file;
        struct matrix m = make((enum dtype)id, k_of((enum dtype)id), M, 1, true, &data);
        struct matrix plain = make((enum dtype)id, k_of((enum dtype)id), M, 1, false, &file);
        struct fixture f;
        open_cpu(&f, CPU_ISA_PORTABLE, 1);
        memset(y, 0xff, sizeof y);
        multiply(&f, &m, x, N_COLS, y);
        for (uint32_t r = 0; r < M; r++) {
            quant_dequantise(m.dtype, file + r * plain.row_bytes, m.k, w);
            for (uint32_t c = 0; c < N_COLS; c++) {
                double want = 0, size = 0;
                for (uint32_t j = 0; j < m.k; j++) {
                    want += (double)w[j] * (double)x[c * K + j];
                    size += fabs((double)w[j] * (double)x[c * K + j]);
                }
                double got = (double)y[c * M + r];
                if (!(fabs(got - want) <= 1e-5 * size)) {
                    fail_msg("%s: row %u column %u: %g, not %g", dtype_get(m.dtype)->name, r, c,
                             got, want);
                }
            }
        }
        close_cpu(&f);
        free(data);
        free(file);
    }
}

static void products_have_the_same_bits_everywhere(void **state)
{
    (void)state;
    static float x[N_COLS * K], want[N_COLS * M], got[N_COLS * M];
    uint64_t random = 11;
    for (size_t i = 0; i < N_COLS * K; i++) {
        x[i] = random_f32(&random) * (i % 97 == 0 ? 20.0f : 1.0f);
    }
    for (int id = 0; id < DTYPE_N; id++) {
        if (!multiplies(id)) {
            continue;
        }
        uint8_t *data[2];
        struct matrix m[2];
        for (int laid = 0; laid < 2; laid++) {
            m[laid] = make((enum dtype)id, k_of((enum dtype)id), M, 1, laid, &data[laid]);
        }
        struct fixture f;
        open_cpu(&f, CPU_ISA_PORTABLE, 1);
        multiply(&f, &m[0], x, N_COLS, want);
        close_cpu(&f);
        for (enum cpu_isa isa = CPU_ISA_PORTABLE; isa <= CPU_ISA_AVX512; isa++) {
            if (!have(isa)) {
                continue;
            }
            open_cpu(&f, isa, isa == CPU_ISA_AVX512 ? 3 : 2);
            static const uint32_t widths[] = { 1, 3, 8, N_COLS };
            for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
                for (int laid = 0; laid < 2; laid++) {
                    memset(got, 0xff, sizeof got);
                    multiply(&f, &m[laid], x, widths[i], got);
                    if (memcmp(got, want, widths[i] * M * sizeof *got) != 0) {
                        fail_msg("%s: isa %d, %u columns, laid %d: other bits",
                                 dtype_get((enum dtype)id)->name, (int)isa, widths[i], laid);
                    }
                }
            }
            close_cpu(&f);
        }
        free(data[0]);
        free(data[1]);
    }
}

/* int8 activations of any values stay within the tolerance of backend.h. */
static void rounding_of_activations_is_small(void **state)
{
    (void)state;
    static float x[K], y[M], w[K];
    uint64_t random = 5;
    uint8_t *data, *file;
    struct fixture f;
    for (size_t i = 0; i < K; i++) {
        x[i] = random_f32(&random);
    }
    struct matrix m = make(DTYPE_Q8_0, K, M, 1, true, &data),
                  plain = make(DTYPE_Q8_0, K, M, 1, false, &file);
    open_cpu(&f, CPU_ISA_PORTABLE, 2);
    multiply(&f, &m, x, 1, y);
    double top = 0, worst = 0;
    for (uint32_t r = 0; r < M; r++) {
        double want = 0;
        quant_dequantise(m.dtype, file + r * plain.row_bytes, K, w);
        for (uint32_t j = 0; j < K; j++) {
            want += (double)w[j] * (double)x[j];
        }
        top = fmax(top, fabs(want));
        worst = fmax(worst, fabs(want - (double)y[r]));
    }
    assert_true(worst < 2e-2 * top);
    close_cpu(&f);
    free(data);
    free(file);
}

/* Several products of different types over one x, with a bias. */
static void products_of_a_group_do_not_meet(void **state)
{
    (void)state;
    static const enum dtype types[] = { DTYPE_Q4_K, DTYPE_Q6_K, DTYPE_F16, DTYPE_Q8_0 };
    static float x[5 * K], y[4][5 * M], alone[5 * M], bias[M];
    uint64_t random = 9;
    uint8_t *data[4];
    struct matrix w[4];
    struct fixture f;
    struct err err;
    for (size_t i = 0; i < 5 * K; i++) {
        x[i] = random_f32(&random);
    }
    for (int i = 0; i < M; i++) {
        bias[i] = (float)i;
    }
    open_cpu(&f, CPU_ISA_PORTABLE, 2);
    struct op_matmul op = { .x = x, .x_stride = K, .n_rows = 5, .k = 512, .n_products = 4 };
    for (int i = 0; i < 4; i++) {
        w[i] = make(types[i], 512, M, 1, true, &data[i]);
        op.products[i] = (struct op_product){ .w = &w[i], .bias = bias, .y = y[i], .y_stride = M };
    }
    assert_ok(cpu_matmul(&f.cpu.base, &op, &err), err);
    for (int i = 0; i < 4; i++) {
        multiply(&f, &w[i], x, 5, alone);
        for (size_t j = 0; j < 5 * M; j++) {
            assert_true(y[i][j] == alone[j] + bias[j % M]);
        }
        free(data[i]);
    }
    close_cpu(&f);
}

static void experts_get_their_rows(void **state)
{
    (void)state;
    enum { N_TOKENS = 9, N_USED = 2, N_EXPERTS = 5, N_ROWS = N_TOKENS * N_USED };
    static const enum dtype types[] = { DTYPE_Q4_K, DTYPE_MXFP4, DTYPE_BF16 };
    static float x[N_TOKENS * K], y[N_ROWS * M], alone[M], bias[N_EXPERTS * M], scale[N_EXPERTS];
    int32_t experts[N_ROWS];
    uint64_t random = 21;
    struct err err;
    for (size_t i = 0; i < N_TOKENS * K; i++) {
        x[i] = random_f32(&random);
    }
    for (size_t i = 0; i < N_EXPERTS * M; i++) {
        bias[i] = random_f32(&random);
        scale[i / M] = 1.5f;
    }
    for (int i = 0; i < N_ROWS; i++) {
        experts[i] = (int32_t)(random_u32(&random) % (N_EXPERTS - 1)); /* one gets none */
    }
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        uint8_t *data;
        struct fixture f;
        struct matrix w = make(types[t], 512, M, N_EXPERTS, true, &data);
        open_cpu(&f, CPU_ISA_PORTABLE, 2);
        struct op_matmul_experts op = { .w = &w,
                                        .bias = bias,
                                        .scale = scale,
                                        .experts = experts,
                                        .x = x,
                                        .x_stride = K,
                                        .x_share = N_USED,
                                        .n_rows = N_ROWS,
                                        .y = y,
                                        .y_stride = M };
        assert_ok(cpu_matmul_experts(&f.cpu.base, &op, &err), err);
        for (int i = 0; i < N_ROWS; i++) {
            struct matrix one = w;
            one.data += (uint64_t)experts[i] * w.expert_bytes;
            multiply(&f, &one, x + i / N_USED * K, 1, alone);
            for (int r = 0; r < M; r++) {
                assert_true(y[i * M + r] ==
                            (alone[r] + bias[experts[i] * M + r]) * scale[experts[i]]);
            }
        }
        close_cpu(&f);
        free(data);
    }
}

/* Values that are not finite stay so: a broken state must not look like an answer. */
static void infinities_reach_the_result(void **state)
{
    (void)state;
    static float x[K], y[M];
    uint8_t *data;
    struct matrix w = make(DTYPE_Q8_0, K, M, 1, true, &data);
    for (enum cpu_isa isa = CPU_ISA_PORTABLE; isa <= CPU_ISA_AVX512; isa++) {
        struct fixture f;
        if (!have(isa)) {
            continue;
        }
        open_cpu(&f, isa, 1);
        x[40] = isa == CPU_ISA_AVX2 ? NAN : INFINITY;
        multiply(&f, &w, x, 1, y);
        assert_true(isnan(y[0]));
        x[40] = 1e-40f;
        multiply(&f, &w, x, 1, y);
        assert_true(y[0] == 0);
        close_cpu(&f);
    }
    free(data);
}

static void unknown_types_are_refused(void **state)
{
    (void)state;
    struct err err;
    struct matrix w = { .name = "blk.0.w", .dtype = DTYPE_Q8_K };
    assert_int_equal(cpu_matmul_check(NULL, &w, &err), -1);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
}

static void rows_come_back_from_their_group(void **state)
{
    (void)state;
    for (int id = 0; id < DTYPE_N; id++) {
        const struct dtype_info *info = dtype_find((uint32_t)id);
        if (!info) {
            continue;
        }
        uint64_t row_bytes = 3u * info->block_bytes;
        uint8_t *rows = malloc(16 * row_bytes), *group = malloc(16 * row_bytes),
                *back = malloc(16 * row_bytes);
        assert_true(rows && group && back);
        uint64_t random = 1;
        for (uint64_t i = 0; i < 16 * row_bytes; i++) {
            rows[i] = (uint8_t)random_u32(&random);
        }
        rows16_pack((enum dtype)id, rows, row_bytes, group);
        rows16_unpack((enum dtype)id, group, row_bytes, back);
        assert_memory_equal(back, rows, 16 * row_bytes);
        free(rows);
        free(group);
        free(back);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_come_back_from_their_group),
        cmocka_unit_test(products_match_double_precision),
        cmocka_unit_test(products_have_the_same_bits_everywhere),
        cmocka_unit_test(rounding_of_activations_is_small),
        cmocka_unit_test(products_of_a_group_do_not_meet),
        cmocka_unit_test(experts_get_their_rows),
        cmocka_unit_test(infinities_reach_the_result),
        cmocka_unit_test(unknown_types_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
