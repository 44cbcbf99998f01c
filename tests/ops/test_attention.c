/* Goal: attention over every K/V type is right, reads no position it must not, and gives the same bits on every
 * instruction set, for rows alone or together, for any number of threads. */
#include "tests/test.h"

#include <math.h>

#include "tests/ops/random.h"
#include "worker/cpu/cpu.h"
#include "worker/cpu/team.h"

#define N_POS                                                                                      \
    4200 /* eight spans and a rest: a row alone has key heads bundled, rows together have not */
#define N_PAGES    (N_POS / KV_PAGE_TOKENS + 2)
#define N_HEADS    6
#define N_KV_HEADS 2
#define DIM_MAX    64

struct kv {
    struct kv_layout layout;
    struct kv_layer layer;
    uint8_t *pages;
    uint32_t table[N_PAGES];
    float *k, *v; /* [N_POS][N_KV_HEADS][dim], as given */
};

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

static void open_cpu(struct cpu_backend *c, enum cpu_isa isa, unsigned n_threads)
{
    struct err err;
    const struct backend_limits limits = { .max_rows = N_POS,
                                           .max_heads = N_HEADS,
                                           .max_k_dim = DIM_MAX,
                                           .max_v_dim = DIM_MAX,
                                           .ctx_len = N_POS };
    *c = (struct cpu_backend){ .isa = isa, .n_threads = n_threads, .limits = limits };
    c->team = team_create(n_threads, &err);
    assert_non_null(c->team);
    c->scratch_bytes = (cpu_attention_scratch(&limits, n_threads) + 63) & ~(size_t)63;
    c->scratch = aligned_alloc(64, c->scratch_bytes);
    assert_non_null(c->scratch);
}

static void close_cpu(struct cpu_backend *c)
{
    team_destroy(&c->team);
    free(c->scratch);
}

static uint32_t row_bytes(enum dtype dtype, uint32_t n)
{
    const struct dtype_info *d = dtype_get(dtype);
    return (n + d->block_values - 1) / d->block_values * d->block_bytes;
}

static struct kv_row row_at(const struct kv *kv, int64_t pos)
{
    return (struct kv_row){ .pages = kv->table, .first_pos = 0, .pos = pos, .end_pos = pos + 1 };
}

/* Pages in another order, full of NaN bits; then every position stored by the op. */
static void fill(struct kv *kv, struct cpu_backend *c, enum dtype k_type, enum dtype v_type,
                 uint32_t k_dim, uint32_t v_dim)
{
    static struct kv_row rows[N_POS];
    struct err err;
    uint64_t random = 77;
    *kv = (struct kv){ .layer = { .n_kv_heads = N_KV_HEADS, .k_dim = k_dim, .v_dim = v_dim } };
    kv->layer.k_row_bytes = row_bytes(k_type, k_dim);
    kv->layer.v_row_bytes = row_bytes(v_type, v_dim);
    kv->layer.k_off = 128;
    kv->layer.v_off = (128 + (uint64_t)KV_PAGE_TOKENS * N_KV_HEADS * kv->layer.k_row_bytes + 63) &
                      ~63ull;
    kv->layout = (struct kv_layout){
        .k_type = k_type, .v_type = v_type, .n_layers = 1, .layer = &kv->layer
    };
    kv->layout.page_bytes = (kv->layer.v_off +
                             (uint64_t)KV_PAGE_TOKENS * N_KV_HEADS * kv->layer.v_row_bytes + 4095) &
                            ~4095ull;
    kv->pages = aligned_alloc(4096, N_PAGES * kv->layout.page_bytes);
    assert_non_null(kv->pages);
    memset(kv->pages, 0xff, N_PAGES * kv->layout.page_bytes);
    for (uint32_t i = 0; i < N_PAGES; i++) {
        kv->table[i] = (i * 7 + 3) % N_PAGES;
    }
    size_t n_k = (size_t)N_POS * N_KV_HEADS * k_dim, n_v = (size_t)N_POS * N_KV_HEADS * v_dim;
    kv->k = malloc(n_k * sizeof *kv->k);
    kv->v = malloc(n_v * sizeof *kv->v);
    assert_true(kv->k && kv->v);
    for (size_t i = 0; i < n_k; i++) {
        kv->k[i] = random_f32(&random) * 2;
    }
    for (size_t i = 0; i < n_v; i++) {
        kv->v[i] = random_f32(&random);
    }
    for (int i = 0; i < N_POS; i++) {
        rows[i] = row_at(kv, i);
    }
    struct op_kv_store op = { .layout = &kv->layout,
                              .page_base = kv->pages,
                              .rows = rows,
                              .n_rows = N_POS,
                              .k = kv->k,
                              .v = kv->v,
                              .k_stride = N_KV_HEADS * k_dim,
                              .v_stride = N_KV_HEADS * v_dim };
    assert_ok(cpu_kv_store(&c->base, &op, &err), err);
}

static void clear(struct kv *kv)
{
    free(kv->pages);
    free(kv->k);
    free(kv->v);
}

/* What the cache holds of x: rounded to the type. */
static void rounded(enum dtype dtype, const float *x, uint32_t n, float *out)
{
    float pad[DIM_MAX] = { 0 };
    uint8_t blocks[DIM_MAX * 4];
    uint32_t wide = dtype_get(dtype)->quantised ? (n + 31) / 32 * 32 : n;
    memcpy(pad, x, n * sizeof *x);
    assert_int_equal(quant_encode(dtype, pad, wide, blocks, NULL), 0);
    quant_dequantise(dtype, blocks, wide, out);
}

/* The formula of backend.h in double. */
static void reference(const struct kv *kv, const struct op_attention *op, uint32_t i, uint32_t h,
                      double *o)
{
    const struct kv_row *row = &op->rows[i];
    uint32_t g = h / (N_HEADS / N_KV_HEADS), kd = kv->layer.k_dim, vd = kv->layer.v_dim;
    static double s[N_POS];
    double max = op->sinks ? (double)op->sinks[h] : -INFINITY, total = 0;
    float x[DIM_MAX];
    int64_t lo = row->first_pos;
    if (op->window && row->pos - (int64_t)op->window + 1 > lo) {
        lo = row->pos - (int64_t)op->window + 1;
    }
    for (int64_t u = lo; u < row->end_pos; u++) {
        rounded(kv->layout.k_type, kv->k + ((size_t)u * N_KV_HEADS + g) * kd, kd, x);
        s[u] = 0;
        for (uint32_t j = 0; j < kd; j++) {
            s[u] += (double)op->q[(size_t)i * op->q_stride + h * kd + j] * (double)x[j];
        }
        s[u] *= (double)op->scale;
        s[u] = op->softcap > 0 ? (double)op->softcap * tanh(s[u] / (double)op->softcap) : s[u];
        max = fmax(max, s[u]);
    }
    memset(o, 0, vd * sizeof *o);
    for (int64_t u = lo; u < row->end_pos; u++) {
        double a = exp(s[u] - max);
        rounded(kv->layout.v_type, kv->v + ((size_t)u * N_KV_HEADS + g) * vd, vd, x);
        total += a;
        for (uint32_t j = 0; j < vd; j++) {
            o[j] += a * (double)x[j];
        }
    }
    total += op->sinks ? exp((double)op->sinks[h] - max) : 0;
    for (uint32_t j = 0; j < vd; j++) {
        o[j] /= total;
    }
}

static const struct variant {
    const char *name;
    enum dtype k_type, v_type;
    uint32_t k_dim, v_dim, window;
    float softcap;
    bool sinks, backward; /* backward: rows see what follows them too */
} variants[] = {
    { "f32", DTYPE_F32, DTYPE_F32, 64, 64, 0, 0, false, false },
    { "f16", DTYPE_F16, DTYPE_F16, 64, 48, 0, 0, false, false },
    { "bf16 with window and odd heads", DTYPE_BF16, DTYPE_BF16, 40, 24, 70, 0, false, false },
    { "f16 with sinks and softcap", DTYPE_F16, DTYPE_F16, 32, 32, 0, 5, true, false },
    { "q8_0", DTYPE_Q8_0, DTYPE_Q8_0, 64, 64, 0, 0, false, false },
    { "q4_0 with padding and window", DTYPE_Q4_0, DTYPE_Q8_0, 40, 56, 100, 0, true, false },
    { "q8_0 and q4_0", DTYPE_Q8_0, DTYPE_Q4_0, 32, 32, 0, 0, false, false },
    { "f32 both ways", DTYPE_F32, DTYPE_F16, 16, 16, 0, 0, false, true },
};

/* Rows at these positions, the last ones side by side as in a prefill. */
static const int64_t positions[] = { 0,    15,   63,   64,   511,  512,  590,  2100,
                                     4192, 4193, 4194, 4195, 4196, 4197, 4198, 4199 };
#define N_ROWS (sizeof positions / sizeof *positions)

static struct op_attention make_op(const struct kv *kv, const struct variant *v,
                                   struct kv_row *rows, float *q, float *o, const float *sinks)
{
    uint64_t random = 5;
    for (size_t i = 0; i < N_ROWS; i++) {
        rows[i] = row_at(kv, positions[i]);
        rows[i].end_pos = v->backward ? N_POS : positions[i] + 1;
    }
    for (size_t i = 0; i < N_ROWS * N_HEADS * v->k_dim; i++) {
        q[i] = random_f32(&random);
    }
    return (struct op_attention){ .layout = &kv->layout,
                                  .page_base = kv->pages,
                                  .rows = rows,
                                  .n_rows = N_ROWS,
                                  .n_heads = N_HEADS,
                                  .q = q,
                                  .q_stride = N_HEADS * v->k_dim,
                                  .o = o,
                                  .o_stride = N_HEADS * v->v_dim,
                                  .scale = 0.3f,
                                  .softcap = v->softcap,
                                  .window = v->window,
                                  .sinks = v->sinks ? sinks : NULL };
}

static float q[N_ROWS * N_HEADS * DIM_MAX], want[N_ROWS * N_HEADS * DIM_MAX],
    got[N_ROWS * N_HEADS * DIM_MAX];
static const float sinks[N_HEADS] = { -1, 0, 1, 3, 9, 0.5f };

static void attention_matches_double_precision(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof variants / sizeof *variants; n++) {
        const struct variant *v = &variants[n];
        struct cpu_backend c;
        struct kv kv;
        struct kv_row rows[N_ROWS];
        struct err err;
        open_cpu(&c, have(CPU_ISA_AVX2) ? CPU_ISA_AVX2 : CPU_ISA_PORTABLE, 1);
        fill(&kv, &c, v->k_type, v->v_type, v->k_dim, v->v_dim);
        struct op_attention op = make_op(&kv, v, rows, q, got, sinks);
        assert_ok(cpu_attention(&c.base, &op, &err), err);
        /* Queries meet quantised keys as int8. */
        double tolerance = quant_info(v->k_type)->sub ? 2e-2 : 1e-5;
        for (uint32_t i = 0; i < N_ROWS; i++) {
            for (uint32_t h = 0; h < N_HEADS; h++) {
                double o[DIM_MAX], top = 0;
                reference(&kv, &op, i, h, o);
                for (uint32_t j = 0; j < v->v_dim; j++) {
                    top = fmax(top, fabs(o[j]));
                }
                for (uint32_t j = 0; j < v->v_dim; j++) {
                    double x = (double)got[(size_t)i * op.o_stride + h * v->v_dim + j];
                    if (!(fabs(x - o[j]) <= tolerance * top)) {
                        fail_msg("%s: row %u head %u value %u: %g, not %g", v->name, i, h, j, x,
                                 o[j]);
                    }
                }
            }
        }
        clear(&kv);
        close_cpu(&c);
    }
}

static void attention_has_the_same_bits_everywhere(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof variants / sizeof *variants; n++) {
        const struct variant *v = &variants[n];
        size_t size = N_ROWS * N_HEADS * v->v_dim * sizeof *got;
        struct cpu_backend c;
        struct kv kv;
        struct kv_row rows[N_ROWS];
        struct err err;
        open_cpu(&c, CPU_ISA_PORTABLE, 1);
        fill(&kv, &c, v->k_type, v->v_type, v->k_dim, v->v_dim);
        struct op_attention op = make_op(&kv, v, rows, q, want, sinks);
        assert_ok(cpu_attention(&c.base, &op, &err), err);
        close_cpu(&c);
        op.o = got;
        for (enum cpu_isa isa = CPU_ISA_PORTABLE; isa <= CPU_ISA_AVX512; isa++) {
            if (!have(isa)) {
                continue;
            }
            /* Many threads: spans are shared out. */
            open_cpu(&c, isa, isa == CPU_ISA_AVX2 ? 9 : 2);
            memset(got, 0xff, size);
            assert_ok(cpu_attention(&c.base, &op, &err), err);
            if (memcmp(got, want, size) != 0) {
                fail_msg("%s: isa %d: other bits", v->name, (int)isa);
            }
            memset(got, 0xff, size);
            for (size_t i = 0; i < N_ROWS; i++) {
                struct op_attention one = op;
                one.n_rows = 1;
                one.rows = &rows[i];
                one.q = op.q + i * op.q_stride;
                one.o = got + i * op.o_stride;
                assert_ok(cpu_attention(&c.base, &one, &err), err);
            }
            if (memcmp(got, want, size) != 0) {
                fail_msg("%s: isa %d: other bits row by row", v->name, (int)isa);
            }
            close_cpu(&c);
        }
        clear(&kv);
    }
}

static void kv_types_without_a_kernel_are_refused(void **state)
{
    (void)state;
    struct err err;
    assert_int_equal(cpu_attention_check(NULL, DTYPE_F16, DTYPE_Q4_0, &err), 0);
    assert_int_equal(cpu_attention_check(NULL, DTYPE_F16, DTYPE_Q4_K, &err), -1);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_matches_double_precision),
        cmocka_unit_test(attention_has_the_same_bits_everywhere),
        cmocka_unit_test(kv_types_without_a_kernel_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
