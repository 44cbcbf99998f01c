/* Goal: products and look-ups of every weight type on the emulated device agree with the CPU: quantised ones to the bit, for
 * any number of columns, by whichever kernel. */
#include "tests/cuda/twins.h"

#include "proto/rows16.h"
#include "proto/weights.h"
#include "worker/quant.h"

#define K       1088 /* more than one round of 32 chains, and a rest; big blocks take 1024 of it */
#define M       21   /* a group of 16 rows and a rest */
#define COLUMNS 37   /* wide: one group of columns beyond a tile of 32, and a rest */

static const enum dtype types[] = {
    DTYPE_F32,     DTYPE_F16,   DTYPE_BF16,   DTYPE_Q4_0,    DTYPE_Q4_1,   DTYPE_Q5_0,
    DTYPE_Q5_1,    DTYPE_Q8_0,  DTYPE_Q2_K,   DTYPE_Q3_K,    DTYPE_Q4_K,   DTYPE_Q5_K,
    DTYPE_Q6_K,    DTYPE_IQ1_S, DTYPE_IQ1_M,  DTYPE_IQ2_XXS, DTYPE_IQ2_XS, DTYPE_IQ2_S,
    DTYPE_IQ3_XXS, DTYPE_IQ3_S, DTYPE_IQ4_NL, DTYPE_IQ4_XS,  DTYPE_TQ1_0,  DTYPE_TQ2_0,
    DTYPE_MXFP4,   DTYPE_NVFP4, DTYPE_Q1_0,   DTYPE_Q2_0,
};
#define N_TYPES (sizeof types / sizeof types[0])

/* One tensor as both backends have it. */
struct pair {
    uint8_t *data;
    size_t size_bytes;
    struct matrix cpu, cuda;
};

static void make(struct twins *t, enum dtype dtype, uint32_t k, uint32_t m, uint32_t n, bool laid,
                 struct pair *p)
{
    struct err err;
    uint64_t row_bytes;
    k = k / dtype_get(dtype)->block_values * dtype_get(dtype)->block_values;
    assert_ok(dtype_size(dtype, k, &row_bytes, &err), err);
    p->size_bytes = row_bytes * m * n;
    p->data = malloc(p->size_bytes);
    uint8_t *scratch = malloc(16 * row_bytes);
    assert_true(p->data && scratch);
    random_weights(dtype, (uint64_t)k * m * n, p->data, 7 + (uint64_t)dtype);
    for (uint32_t e = 0; laid && e < n; e++) {
        rows16_pack_in_place(dtype, p->data + e * m * row_bytes, m, row_bytes, scratch);
    }
    free(scratch);
    const struct weights_tensor tensor = {
        .name = "w",
        .dtype = dtype,
        .layout = laid ? WEIGHTS_LAYOUT_ROWS16 : WEIGHTS_LAYOUT_FILE,
        .n_dims = 3,
        .ne = { k, m, n, 1 },
        .size_bytes = p->size_bytes,
        .data_end = p->size_bytes,
        .data = p->data,
    };
    assert_ok(t->cpu->ops->import(t->cpu, &tensor, &p->cpu, &err), err);
    assert_ok(t->cuda->ops->import(t->cuda, &tensor, &p->cuda, &err), err);
    assert_ok(t->cuda->ops->arrived(t->cuda, NULL, SIZE_MAX, tensor.data_end, &err), err);
    assert_ok(t->cuda->ops->check_matrix(t->cuda, &p->cuda, &err), err);
}

static void drop(struct twins *t, struct pair *p)
{
    t->cuda->ops->release(t->cuda, p->data, p->size_bytes);
    free(p->data);
}

static void multiply(struct backend *b, const struct matrix *w, const float *x, uint32_t n,
                     const float *bias, float *y)
{
    struct err err;
    const struct op_matmul op = { .x = x,
                                  .x_stride = K,
                                  .n_rows = n,
                                  .k = w->k,
                                  .n_products = 1,
                                  .products = { { .w = w, .bias = bias, .y = y, .y_stride = M } } };
    memset(y, 0xff, (size_t)n * M * sizeof *y);
    assert_ok(b->ops->matmul(b, &op, &err), err);
}

static void products_agree_with_the_cpu(void **state)
{
    struct twins *t = *state;
    static const uint32_t columns[] = { 1, 7, 8, 9, 16, 17, 32, COLUMNS };
    static float want[COLUMNS * M], got[COLUMNS * M];
    float *x = twins_floats(COLUMNS * K, 1, 3), *bias = twins_floats(M, 1, 4);
    for (size_t i = 0; i < N_TYPES; i++) {
        struct pair p;
        const char *name = dtype_get(types[i])->name;
        bool floats = !quant_info(types[i])->sub;
        make(t, types[i], K, M, 1, i % 2, &p);
        multiply(t->cpu, &p.cpu, x, COLUMNS, bias, want);
        for (size_t n = 0; n < sizeof columns / sizeof columns[0]; n++) {
            multiply(t->cuda, &p.cuda, x, columns[n], bias, got);
            twins_compare(got, want, (size_t)columns[n] * M, floats ? 1e-5 : 0, name);
        }
        if (floats) { /* a column alone has the bits that it has in a crowd */
            memcpy(want, got, sizeof got);
            multiply(t->cuda, &p.cuda, x + (size_t)9 * K, 1, bias, got);
            assert_memory_equal(got, want + (size_t)9 * M, M * sizeof *got);
        }
        drop(t, &p);
    }
    free(x);
    free(bias);
}

/* f16 and bf16 on tensor cores: near the CPU whatever the activations' size, and the same bits for any number of columns. */
static void float_weights_on_tensor_cores(void **state)
{
    struct twins *t = *state;
    enum { N = 131, KF = 600, MF = 37, EXPERTS = 14 }; /* so many rows in all that they go there */
    static const enum dtype halves[] = { DTYPE_F16, DTYPE_BF16 };
    static const uint32_t columns[] = { 1, 8, 9, 17, 40, N };
    static const struct {
        float scale;
        uint32_t stride; /* odd: no row of x but the first is aligned */
    } forms[] = { { 1, KF }, { 1e6f, KF + 1 }, { 1e-20f, KF } };
    float *want = calloc((size_t)N * MF, 4), *got = calloc((size_t)N * MF, 4);
    float *all = calloc((size_t)N * MF, 4), *bias = twins_floats(MF, 1e-21f, 4);
    struct err err;
    assert_true(want && got && all);
    for (size_t i = 0; i < 2 * 3; i++) {
        struct pair p;
        uint32_t stride = forms[i / 2].stride;
        float *x = twins_floats((size_t)N * (KF + 1), forms[i / 2].scale, 3);
        make(t, halves[i % 2], KF, MF, EXPERTS, i % 2, &p);
        struct op_matmul op = { .x = x, .x_stride = stride, .n_rows = N, .k = KF, .n_products = 1 };
        op.products[0] = (struct op_product){ &p.cpu, bias, want, MF };
        assert_ok(t->cpu->ops->matmul(t->cpu, &op, &err), err);
        op.products[0] = (struct op_product){ &p.cuda, bias, all, MF };
        assert_ok(t->cuda->ops->matmul(t->cuda, &op, &err), err);
        for (uint32_t c = 0; c < N; c++) {
            twins_compare(all + c * MF, want + c * MF, MF, 1e-5, dtype_get(halves[i % 2])->name);
        }
        op.products[0].y = got;
        for (size_t n = 0; i < 4 && n < sizeof columns / sizeof columns[0]; n++) {
            op.n_rows = columns[n];
            assert_ok(t->cuda->ops->matmul(t->cuda, &op, &err), err);
            assert_memory_equal(got, all, (size_t)columns[n] * MF * sizeof *got);
        }
        x[5] = INFINITY;
        x[stride + 6] = NAN;
        op.n_rows = 2;
        assert_ok(t->cuda->ops->matmul(t->cuda, &op, &err), err);
        assert_false(isfinite(got[0]) || isfinite(got[MF]));
        drop(t, &p);
        free(x);
    }
    free(want);
    free(got);
    free(all);
    free(bias);
}

static void a_prompt_takes_several_blocks_of_columns(void **state)
{
    struct twins *t = *state;
    enum { N = 131 };
    float *x = twins_floats((size_t)N * K, 1, 3);
    float *want = calloc(N * M, sizeof *want), *got = calloc(N * M, sizeof *got);
    struct pair p;
    assert_true(want && got);
    make(t, DTYPE_Q4_K, 256, M, 1, false, &p);
    multiply(t->cpu, &p.cpu, x, N, NULL, want);
    multiply(t->cuda, &p.cuda, x, N, NULL, got);
    twins_compare(got, want, N * M, 0, "131 columns");
    drop(t, &p);
    free(x);
    free(want);
    free(got);
}

/* One op of several matrices: those of one type share a launch, whatever stands between. */
static void a_group_of_products_is_each_alone(void **state)
{
    struct twins *t = *state;
    static const struct {
        enum dtype dtype;
        uint32_t m;
    } parts[] = { { DTYPE_Q4_K, 40 }, { DTYPE_F16, 5 }, { DTYPE_Q4_K, 3 }, { DTYPE_Q6_K, 33 } };
    static float want[4][9 * 40], got[4][9 * 40];
    float *x = twins_floats(9 * K, 1, 3);
    struct pair p[4];
    for (uint32_t n = 1; n <= 9; n += 8) {
        struct op_matmul op = { .x = x, .x_stride = K, .n_rows = n, .k = 1024, .n_products = 4 };
        struct err err;
        for (int i = 0; i < 4; i++) {
            make(t, parts[i].dtype, 1024, parts[i].m, 1, false, &p[i]);
            op.products[i] = (struct op_product){ &p[i].cpu, NULL, want[i], 40 };
        }
        assert_ok(t->cpu->ops->matmul(t->cpu, &op, &err), err);
        for (int i = 0; i < 4; i++) {
            op.products[i].w = &p[i].cuda;
            op.products[i].y = got[i];
        }
        assert_ok(t->cuda->ops->matmul(t->cuda, &op, &err), err);
        for (int i = 0; i < 4; i++) {
            for (uint32_t c = 0; c < n; c++) {
                twins_compare(got[i] + 40 * c, want[i] + 40 * c, parts[i].m, i == 1 ? 1e-5 : 0,
                              "a product of a group");
            }
            drop(t, &p[i]);
        }
    }
    free(x);
}

/* A norm or an activation leaves its rows quantised for the next product; what is written in between makes them old. */
static void rows_left_quantised_are_not_believed_too_long(void **state)
{
    struct twins *t = *state;
    enum { N = 3, WIDTH = 256 };
    static float h[2][N * WIDTH], y[2][N * M];
    float *x = twins_floats(N * WIDTH, 1, 3), *u = twins_floats(N * WIDTH, 1, 4);
    struct pair p;
    struct err err;
    make(t, DTYPE_Q8_0, WIDTH, M, 1, false, &p);
    for (int form = 0; form < 3; form++) {
        for (int cuda = 0; cuda < 2; cuda++) {
            struct backend *b = cuda ? t->cuda : t->cpu;
            struct op_norm norm = { .n_rows = N,
                                    .n_groups = 1,
                                    .width = WIDTH,
                                    .x = x,
                                    .x_stride = WIDTH,
                                    .eps = 1e-5f,
                                    .y = h[cuda],
                                    .y_stride = WIDTH };
            struct op_act act = { .kind = OP_ACT_SILU,
                                  .n_rows = N,
                                  .width = WIDTH,
                                  .g = x,
                                  .u = u,
                                  .g_stride = WIDTH,
                                  .u_stride = WIDTH,
                                  .g_width = WIDTH,
                                  .y = h[cuda],
                                  .y_stride = WIDTH };
            struct op_add add = { .n_rows = N,
                                  .width = WIDTH,
                                  .a = h[cuda],
                                  .a_stride = WIDTH,
                                  .y_scale = 2,
                                  .y = h[cuda],
                                  .y_stride = WIDTH };
            struct op_matmul op = {
                .x = h[cuda],
                .x_stride = WIDTH,
                .n_rows = N,
                .k = WIDTH,
                .n_products = 1,
                .products = { { .w = cuda ? &p.cuda : &p.cpu, .y = y[cuda], .y_stride = M } }
            };
            assert_ok(b->ops->norm(b, &norm, &err), err);
            if (form == 1) {
                assert_ok(b->ops->act(b, &act, &err), err);
            } else if (form == 2) {
                assert_ok(b->ops->add(b, &add, &err), err);
            }
            assert_ok(b->ops->matmul(b, &op, &err), err);
        }
        twins_compare(y[1], y[0], N * M, 2e-2, "quantised before");
    }
    drop(t, &p);
    free(x);
    free(u);
}

/* Gate, up and activation as one op, then a product of what it left: the bits that each alone gives, which are the CPU's. */
static void a_gated_product_is_its_parts(void **state)
{
    struct twins *t = *state;
    enum { N = 40, WIDTH = 96, K_IN = 512 };
    static const enum dtype some[] = { DTYPE_Q8_0, DTYPE_Q4_K, DTYPE_IQ3_S, DTYPE_Q6_K };
    static const uint32_t columns[] = { 1, 8, 9, 17, N };
    static const enum op_act_kind kinds[] = { OP_ACT_SILU, OP_ACT_GELU, OP_ACT_SWIGLU_CLAMP };
    static float g[2][N * WIDTH], u[2][N * WIDTH], y[2][N * M];
    float *x = twins_floats(N * K, 1, 3), *bias = twins_floats(WIDTH, 1, 4);
    for (size_t i = 0; i < sizeof some / sizeof some[0] * 3; i++) {
        struct pair gate, up, down;
        struct err err;
        make(t, some[i / 3], K_IN, WIDTH, 1, false, &gate);
        make(t, some[i / 3], K_IN, WIDTH, 1, true, &up);
        make(t, DTYPE_Q8_0, WIDTH, M, 1, false, &down);
        for (size_t n = 0; n < sizeof columns / sizeof columns[0]; n++) {
            memset(g, 0xff, sizeof g);
            for (int cuda = 0; cuda < 2; cuda++) {
                struct backend *b = cuda ? t->cuda : t->cpu;
                const struct op_act act = { .kind = kinds[i % 3],
                                            .n_rows = columns[n],
                                            .width = WIDTH,
                                            .g = g[cuda],
                                            .u = u[cuda],
                                            .g_stride = WIDTH,
                                            .u_stride = WIDTH,
                                            .g_width = WIDTH,
                                            .y = u[cuda],
                                            .y_stride = WIDTH };
                const struct op_matmul both = {
                    .x = x,
                    .x_stride = K,
                    .n_rows = columns[n],
                    .k = K_IN,
                    .n_products = 2,
                    .products = { { cuda ? &up.cuda : &up.cpu, bias, u[cuda], WIDTH },
                                  { cuda ? &gate.cuda : &gate.cpu, NULL, g[cuda], WIDTH } },
                    .act = &act
                };
                const struct op_matmul then = {
                    .x = u[cuda],
                    .x_stride = WIDTH,
                    .n_rows = columns[n],
                    .k = WIDTH,
                    .n_products = 1,
                    .products = { { cuda ? &down.cuda : &down.cpu, NULL, y[cuda], M } },
                };
                assert_ok(b->ops->matmul(b, &both, &err), err);
                assert_ok(b->ops->matmul(b, &then, &err), err);
            }
            assert_true(isnan(g[1][0])); /* one launch: no gate is written */
            assert_memory_equal(u[1], u[0], columns[n] * WIDTH * sizeof u[0][0]);
            assert_memory_equal(y[1], y[0], columns[n] * M * sizeof y[0][0]);
        }
        drop(t, &gate);
        drop(t, &up);
        drop(t, &down);
    }
    free(x);
    free(bias);
}

static void look_ups_agree_with_the_cpu(void **state)
{
    struct twins *t = *state;
    static float want[3 * K], got[3 * K];
    static const int32_t ids[3] = { M - 1, 0, 16 };
    struct err err;
    for (size_t i = 0; i < N_TYPES; i++) {
        struct pair p;
        make(t, types[i], K, M, 1, i % 2 == 0, &p);
        struct op_embed op = { .w = &p.cpu, .ids = ids, .n_rows = 3, .scale = 1.5f, .y = want };
        assert_ok(t->cpu->ops->embed(t->cpu, &op, &err), err);
        op.w = &p.cuda;
        op.y = got;
        assert_ok(t->cuda->ops->embed(t->cuda, &op, &err), err);
        twins_compare(got, want, (size_t)3 * p.cpu.k, 0, dtype_get(types[i])->name);
        drop(t, &p);
    }
}

/* The same op on both sides; its weights and y are filled in here. */
static void both_experts(struct twins *t, const struct pair *p, struct op_matmul_experts op,
                         float *want, float *got)
{
    struct err err;
    op.w = &p->cpu;
    op.y = want;
    assert_ok(t->cpu->ops->matmul_experts(t->cpu, &op, &err), err);
    op.w = &p->cuda;
    op.y = got;
    assert_ok(t->cuda->ops->matmul_experts(t->cuda, &op, &err), err);
}

static void experts_agree_with_the_cpu(void **state)
{
    struct twins *t = *state;
    enum { ROWS = 10, SHARE = 2, EXPERTS = 4 };
    static const struct {
        enum dtype dtype;
        uint32_t n; /* enough of them: float weights go to the tensor cores */
    } some[] = { { DTYPE_Q4_K, EXPERTS },
                 { DTYPE_MXFP4, EXPERTS },
                 { DTYPE_IQ3_S, EXPERTS },
                 { DTYPE_BF16, EXPERTS },
                 { DTYPE_F16, 25 } };
    static const int32_t experts[ROWS] = { 0, 3, 3, 1, 0, 1, 3, 0, 1, 3 };
    static float want[ROWS * M], got[ROWS * M];
    float *x = twins_floats(ROWS / SHARE * K, 1, 5), *bias = twins_floats(EXPERTS * M, 1, 6);
    float *scale = twins_floats(EXPERTS, 1, 7);
    for (size_t i = 0; i < sizeof some / sizeof some[0]; i++) {
        struct pair p;
        make(t, some[i].dtype, 512, M, some[i].n, i % 2, &p);
        const struct op_matmul_experts op = { .bias = bias,
                                              .scale = scale,
                                              .experts = experts,
                                              .x = x,
                                              .x_stride = K,
                                              .x_share = SHARE,
                                              .n_rows = ROWS,
                                              .y_stride = M };
        both_experts(t, &p, op, want, got);
        bool floats = quant_info(some[i].dtype)->sub == 0;
        twins_compare(got, want, ROWS * M, floats ? 1e-5 : 0, dtype_get(some[i].dtype)->name);
        drop(t, &p);
    }
    free(x);
    free(bias);
    free(scale);
}

/* More rows than were reserved, as an absorbing head's: they come in pieces. */
static void experts_rows_come_in_pieces(void **state)
{
    struct twins *t = *state;
    enum { ROWS = 200, EXPERTS = 2 };
    int32_t experts[ROWS];
    float *x = twins_floats(ROWS * K, 1, 8), *want = calloc(ROWS, 4), *got = calloc(ROWS, 4);
    struct err err;
    struct pair p;
    assert_true(want && got);
    for (int i = 0; i < ROWS; i++) {
        experts[i] = i / 3 % EXPERTS;
    }
    make(t, DTYPE_Q8_0, K, 1, EXPERTS, false, &p);
    struct op_matmul_experts op = { .w = &p.cuda,
                                    .experts = experts,
                                    .x = x,
                                    .x_stride = K,
                                    .x_share = 1,
                                    .n_rows = ROWS,
                                    .y = got,
                                    .y_stride = 1 };
    assert_ok(t->cuda->ops->matmul_experts(t->cuda, &op, &err), err);
    op.w = &p.cpu;
    op.y = want;
    for (int i = 0; i < ROWS; i += 50) { /* the CPU has no room for all */
        op.n_rows = 50;
        op.x = x + (size_t)i * K;
        op.experts = experts + i;
        op.y = want + i;
        assert_ok(t->cpu->ops->matmul_experts(t->cpu, &op, &err), err);
    }
    twins_compare(got, want, ROWS, 1e-5, "rows in pieces");
    drop(t, &p);
    free(x);
    free(want);
    free(got);
}

/* The judge of the rest has the same bits on both devices. */
static void the_exact_setting_gives_the_cpus_bits(void **state)
{
    (void)state;
    enum { N = 5, SHARE = 2, EXPERTS = 3 };
    static const int32_t experts[N] = { 2, 0, 0, 1, 2 };
    static float want[N * M], got[N * M];
    struct twins t = twins_exact();
    float *x = twins_floats(N * K, 1, 5), *bias = twins_floats(EXPERTS * M, 1, 6);
    float *scale = twins_floats(EXPERTS, 1, 7);
    struct err err;
    for (size_t i = 0; i < N_TYPES; i++) {
        struct pair p;
        const char *name = dtype_get(types[i])->name;
        make(&t, types[i], i % 2 ? 256 : K, M, EXPERTS, false, &p);
        multiply(t.cpu, &p.cpu, x, N, bias, want);
        multiply(t.cuda, &p.cuda, x, N, bias, got);
        twins_compare(got, want, N * M, 0, name);
        const struct op_matmul_experts op = { .bias = bias,
                                              .scale = scale,
                                              .experts = experts,
                                              .x = x,
                                              .x_stride = K,
                                              .x_share = SHARE,
                                              .n_rows = N,
                                              .y_stride = M };
        both_experts(&t, &p, op, want, got);
        twins_compare(got, want, N * M, 0, name);
        drop(&t, &p);
    }
    assert_int_equal(t.cuda->ops->check_kv(t.cuda, DTYPE_F32, DTYPE_F16, &err), 0);
    assert_int_equal(t.cuda->ops->check_kv(t.cuda, DTYPE_F32, DTYPE_Q8_0, &err), -1);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    backend_close(&t.cuda);
    backend_close(&t.cpu);
    free(x);
    free(bias);
    free(scale);
}

static void infinities_reach_the_result(void **state)
{
    struct twins *t = *state;
    static float y[COLUMNS * M];
    float *x = twins_floats(COLUMNS * K, 1, 3);
    struct pair p;
    make(t, DTYPE_Q4_K, K, M, 1, false, &p);
    x[40] = INFINITY;
    x[K + 70] = NAN;
    for (uint32_t n = 2; n <= COLUMNS; n += COLUMNS - 2) {
        multiply(t->cuda, &p.cuda, x, n, NULL, y);
        assert_true(isnan(y[0]) && isnan(y[M]));
    }
    multiply(t->cuda, &p.cuda, x, 1, NULL, y);
    assert_true(isnan(y[0]));
    drop(t, &p);
    free(x);
}

static void what_has_no_kernel_is_refused(void **state)
{
    struct twins *t = *state;
    struct err err;
    struct matrix w = { .name = "blk.0.w", .dtype = DTYPE_Q8_K };
    assert_int_equal(t->cuda->ops->check_matrix(t->cuda, &w, &err), -1);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    const struct backend_options options = { .n_threads = 1 };
    assert_null(cuda_open("cuda:7", &options, &err));
    assert_int_equal(err.code, ERR_FAILED);
}

static void without_a_device_auto_means_the_cpu(void **state)
{
    (void)state;
    struct err err;
    const struct backend_options options = { .n_threads = 1 };
    assert_string_equal(backend_choose("auto", NULL, NULL), "cuda:0");
    assert_string_equal(backend_choose("cuda:1", NULL, NULL), "cuda:1");
    assert_string_equal(backend_choose(NULL, NULL, NULL), "cpu");
    setenv("HEARTH_EMULATED_DEVICES", "0", 1);
    assert_string_equal(backend_choose("auto", NULL, NULL), "cpu");
    assert_null(backend_open("cuda:0", &options, &err));
    assert_int_equal(err.code, ERR_FAILED);
    unsetenv("HEARTH_EMULATED_DEVICES");
    assert_null(backend_open("cudas", &options, &err));
    assert_int_equal(err.code, ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(look_ups_agree_with_the_cpu),
        cmocka_unit_test(products_agree_with_the_cpu),
        cmocka_unit_test(float_weights_on_tensor_cores),
        cmocka_unit_test(a_prompt_takes_several_blocks_of_columns),
        cmocka_unit_test(a_group_of_products_is_each_alone),
        cmocka_unit_test(rows_left_quantised_are_not_believed_too_long),
        cmocka_unit_test(a_gated_product_is_its_parts),
        cmocka_unit_test(experts_agree_with_the_cpu),
        cmocka_unit_test(experts_rows_come_in_pieces),
        cmocka_unit_test(the_exact_setting_gives_the_cpus_bits),
        cmocka_unit_test(infinities_reach_the_result),
        cmocka_unit_test(what_has_no_kernel_is_refused),
        cmocka_unit_test(without_a_device_auto_means_the_cpu),
    };
    return cmocka_run_group_tests(tests, twins_open, twins_close);
}
