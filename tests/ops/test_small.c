/* The ops beside products and attention, against double precision, at widths off every vector length; and vmath's
 * functions against libm. */
#include <math.h>
#include <stdbool.h>

#include "tests/test.h"
#include "worker/backend.h"
#include "worker/cpu/vmath.h"

#define WIDTHS_MAX 70

static const uint32_t widths[] = { 1, 3, 8, 17, 33, 64, 70 };
static const char *const isas[] = { "portable", "avx2", "avx512" };

static float random_value(uint64_t *state, float scale)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return scale * (float)(int32_t)(*state >> 32) / 2147483648.0f;
}

static void fill(float *x, uint32_t n, float scale, uint64_t seed)
{
    for (uint32_t i = 0; i < n; i++) {
        x[i] = random_value(&seed, scale);
    }
}

/* The backend on an instruction set, or NULL when this machine lacks it. */
static struct backend *open_isa(const char *isa)
{
    const struct backend_options options = { .exact = false, .n_threads = 2 };
    struct err err = { 0 };
    setenv("HEARTH_ISA", isa, 1);
    struct backend *b = backend_open("cpu", &options, &err);
    unsetenv("HEARTH_ISA");
    if (!b && err.code != ERR_UNSUPPORTED) {
        fail_msg("%s", err.text);
    }
    return b;
}

static void expect_near(double got, double want, double magnitude, const char *what)
{
    if (!(fabs(got - want) <= 1e-5 * (magnitude > 1e-3 ? magnitude : 1e-3))) {
        fail_msg("%s: %.9g, expected %.9g", what, got, want);
    }
}

static double act_of(enum op_act_kind kind, double g, double u)
{
    switch (kind) {
    case OP_ACT_SILU:
        return g / (1 + exp(-g)) * u;
    case OP_ACT_GELU:
        return 0.5 * g * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (g + 0.044715 * g * g * g))) *
               u;
    case OP_ACT_RELU2:
        return g > 0 ? g * g * u : 0;
    case OP_ACT_SWIGLU_CLAMP:
        g = fmin(g, 7);
        u = fmax(-7, fmin(u, 7));
        return g / (1 + exp(-1.702 * g)) * (u + 1);
    case OP_ACT_SIGMOID:
        return u / (1 + exp(-g));
    }
    return 0;
}

static void check_act(struct backend *b, uint32_t n)
{
    float g[WIDTHS_MAX], u[WIDTHS_MAX], y[WIDTHS_MAX];
    struct err err = { 0 };
    fill(g, n, 12.0f, 1);
    for (enum op_act_kind kind = OP_ACT_SILU; kind <= OP_ACT_SIGMOID; kind++) {
        fill(u, n, 9.0f, 2);
        memcpy(y, u, sizeof y);
        const struct op_act op = {
            .kind = kind, .n_rows = 1, .width = n, .g = g, .u = y, .g_width = n, .y = y
        }; /* in place, as the forward pass does */
        assert_ok(b->ops->act(b, &op, &err), err);
        for (uint32_t j = 0; j < n; j++) {
            double want = act_of(kind, (double)g[j], (double)u[j]);
            expect_near((double)y[j], want, fmax(fabs(want), 1.0), "act");
        }
    }
}

static void check_norm(struct backend *b, uint32_t n)
{
    float x[2 * WIDTHS_MAX], w[2 * WIDTHS_MAX], bias[WIDTHS_MAX], y[2 * WIDTHS_MAX];
    struct err err = { 0 };
    fill(x, 2 * n, 3.0f, 3);
    fill(w, 2 * n, 2.0f, 4);
    fill(bias, n, 1.0f, 5);
    for (int layer = 0; layer < 2; layer++) {
        const struct op_norm op = { .kind = layer ? OP_NORM_LAYER : OP_NORM_RMS,
                                    .n_rows = 1,
                                    .n_groups = 2,
                                    .width = n,
                                    .x = x,
                                    .w = w,
                                    .b = layer ? bias : NULL,
                                    .w_per_group = !layer,
                                    .eps = 1e-5f,
                                    .y = y };
        assert_ok(b->ops->norm(b, &op, &err), err);
        for (uint32_t g = 0; g < 2; g++) {
            double mean = 0, squares = 0;
            for (uint32_t j = 0; layer && j < n; j++) {
                mean += (double)x[g * n + j] / n;
            }
            for (uint32_t j = 0; j < n; j++) {
                squares += ((double)x[g * n + j] - mean) * ((double)x[g * n + j] - mean) / n;
            }
            for (uint32_t j = 0; j < n; j++) {
                double want = ((double)x[g * n + j] - mean) / sqrt(squares + 1e-5) *
                              (double)w[layer ? j : g * n + j];
                want += layer ? (double)bias[j] : 0;
                expect_near((double)y[g * n + j], want, fmax(fabs(want), 1.0), "norm");
            }
        }
    }
}

static void check_add(struct backend *b, uint32_t n)
{
    float a[WIDTHS_MAX], x[WIDTHS_MAX], y[WIDTHS_MAX];
    struct err err = { 0 };
    fill(a, n, 40.0f, 6);
    fill(x, n, 40.0f, 7);
    const struct op_add op = { .n_rows = 1,
                               .width = n,
                               .a = a,
                               .b = x,
                               .b_rows = 1,
                               .b_scale = 0.5f,
                               .y_scale = 2.0f,
                               .softcap = 30.0f,
                               .y = y };
    assert_ok(b->ops->add(b, &op, &err), err);
    for (uint32_t j = 0; j < n; j++) {
        double want = 30 * tanh(2 * ((double)a[j] + 0.5 * (double)x[j]) / 30);
        expect_near((double)y[j], want, 30, "add");
    }
}

static void small_ops_agree_with_double_precision(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
        struct backend *b = open_isa(isas[i]);
        for (size_t w = 0; b && w < sizeof widths / sizeof widths[0]; w++) {
            check_act(b, widths[w]);
            check_norm(b, widths[w]);
            check_add(b, widths[w]);
        }
        backend_close(&b);
    }
}

/* Both pairings, a part of the head that does not turn, and the magnitude. */
static void rope_turns_pairs(void **state)
{
    (void)state;
    struct backend *b = open_isa("portable");
    struct err err = { 0 };
    const double freq[2] = { 1.0, 0.01 };
    const int64_t pos[2] = { 3, 4000 };
    float cs[8];
    const struct op_rope_table table = {
        .pos = pos, .freq = freq, .n_rows = 2, .n_pairs = 2, .mag = 1.25, .cs = cs
    };
    assert_ok(b->ops->rope_table(b, &table, &err), err);
    for (int neox = 0; neox < 2; neox++) {
        float x[2][6] = { { 1, 2, 3, 4, 5, 6 }, { -1, 0.5f, 2, 7, 8, 9 } }, old[2][6];
        memcpy(old, x, sizeof x);
        const struct op_rope op = { .x = x[0],
                                    .x_stride = 6,
                                    .n_rows = 2,
                                    .n_heads = 1,
                                    .head_dim = 6,
                                    .n_pairs = 2,
                                    .neox = neox,
                                    .cs = cs };
        assert_ok(b->ops->rope(b, &op, &err), err);
        for (int i = 0; i < 2; i++) {
            for (int j = 0; j < 2; j++) {
                int p = neox ? j : 2 * j, q = neox ? j + 2 : 2 * j + 1;
                double theta = (double)pos[i] * freq[j], c = 1.25 * cos(theta),
                       s = 1.25 * sin(theta);
                expect_near((double)x[i][p], (double)old[i][p] * c - (double)old[i][q] * s, 10,
                            "rope");
                expect_near((double)x[i][q], (double)old[i][p] * s + (double)old[i][q] * c, 10,
                            "rope");
            }
            assert_true(x[i][4] == old[i][4] && x[i][5] == old[i][5]);
        }
    }
    backend_close(&b);
}

static void route(struct backend *b, const struct op_moe_route *op)
{
    struct err err = { 0 };
    assert_ok(b->ops->moe_route(b, op, &err), err);
}

static void router_chooses_by_score_and_bias(void **state)
{
    (void)state;
    struct backend *b = open_isa("portable");
    const float logits[6] = { 1.0f, 3.0f, 3.0f, -1.0f, 2.0f, 0.0f };
    const float bias[6] = { 0, 0, 0, 1.0f, 0, 0 };
    int32_t experts[2];
    float weights[2];
    struct op_moe_route op = { .logits = logits,
                               .logits_stride = 6,
                               .n_rows = 1,
                               .n_experts = 6,
                               .n_used = 2,
                               .n_groups = 1,
                               .n_groups_used = 1,
                               .gating = OP_GATING_SOFTMAX,
                               .normalise = true,
                               .scale = 1.0f,
                               .experts = experts,
                               .weights = weights };
    route(b, &op);
    assert_int_equal(experts[0], 1); /* a tie goes to the lower index */
    assert_int_equal(experts[1], 2);
    expect_near((double)weights[0], 0.5, 1, "weight");

    op.gating = OP_GATING_SIGMOID;
    op.choice_bias = bias; /* steers the choice, not the weight */
    op.normalise = false;
    op.scale = 2.0f;
    route(b, &op);
    assert_int_equal(experts[0], 3);
    expect_near((double)weights[0], 2 / (1 + exp(1.0)), 1, "weight");

    op.choice_bias = NULL;
    op.n_groups = 3; /* runs {0,1} {2,3} {4,5}: sums of scores of the two best decide */
    op.n_groups_used = 1;
    route(b, &op);
    assert_int_equal(experts[0], 1);
    assert_int_equal(experts[1], 0);

    const float broken[6] = { NAN, NAN, NAN, NAN, NAN, NAN };
    op.logits = broken; /* a NaN must not leave a slot without an expert */
    op.n_groups = 1;
    route(b, &op);
    assert_in_range(experts[0], 0, 5);
    assert_in_range(experts[1], 0, 5);
    assert_int_not_equal(experts[0], experts[1]);
    backend_close(&b);
}

/* A sequence in one step, or token by token through its state: the same bits, and the formula's numbers. */
static void delta_net_continues_from_its_state(void **state)
{
    (void)state;
    enum { DS = 4, HK = 1, HV = 2, TAPS = 3, N = 5, CH = 2 * HK * DS + HV * DS, INNER = HV * DS };
    enum { STATE = HV * DS * DS + (TAPS - 1) * CH };
    float u[N][CH], z[N][INNER], beta[N][HV], a[N][HV], conv[CH * TAPS], norm[DS], y[2][N][INNER];
    const float dt[HV] = { 0.1f, -0.2f }, coef[HV] = { -0.5f, -1.5f };
    float zero[STATE] = { 0 }, whole[STATE], piece[2][STATE] = { { 0 } };
    struct backend *b = open_isa("portable");
    struct err err = { 0 };
    fill(u[0], N * CH, 1.0f, 11);
    fill(z[0], N * INNER, 1.0f, 12);
    fill(beta[0], N * HV, 1.0f, 13);
    fill(a[0], N * HV, 1.0f, 14);
    fill(conv, CH * TAPS, 1.0f, 15);
    fill(norm, DS, 1.0f, 16);
    const float *from[N] = { zero };
    float *to[N] = { whole, whole, whole, whole, whole };
    struct op_delta_net op = { .n_rows = N,
                               .n_k_heads = HK,
                               .n_v_heads = HV,
                               .state_dim = DS,
                               .conv_taps = TAPS,
                               .u = u[0],
                               .z = z[0],
                               .b = beta[0],
                               .a = a[0],
                               .u_stride = CH,
                               .z_stride = INNER,
                               .b_stride = HV,
                               .a_stride = HV,
                               .conv = conv,
                               .dt_bias = dt,
                               .a_coef = coef,
                               .norm = norm,
                               .eps = 1e-6f,
                               .from = from,
                               .state = to,
                               .y = y[0][0],
                               .y_stride = INNER };
    assert_ok(b->ops->delta_net(b, &op, &err), err);
    for (uint32_t i = 0; i < N; i++) {
        from[0] = piece[i % 2];
        to[0] = piece[(i + 1) % 2];
        op.n_rows = 1;
        op.u = u[i];
        op.z = z[i];
        op.b = beta[i];
        op.a = a[i];
        op.y = y[1][i];
        assert_ok(b->ops->delta_net(b, &op, &err), err);
    }
    assert_memory_equal(y[0], y[1], sizeof y[0]);
    assert_memory_equal(whole, piece[N % 2], sizeof whole);
    backend_close(&b);
}

static void vmath_agrees_with_libm(void **state)
{
    (void)state;
    for (float x = -90.0f; x < 89.0f; x += 0.0137f) {
        double e = exp((double)x), t = tanh((double)x), s = 1 / (1 + exp(-(double)x));
        if (x >= VMATH_EXP_MIN && x <= VMATH_EXP_MAX) {
            assert_true(fabs((double)vmath_exp(x) - e) <= 3e-7 * e);
        }
        assert_true(fabs((double)vmath_tanh(x) - t) <= 4e-7 * fabs(t) + 1e-30);
        assert_true(fabs((double)vmath_sigmoid(x) - s) <= 4e-7 * s + 2e-38);
    }
    assert_true(vmath_exp(-1000.0f) == 0.0f);
    assert_true(isfinite(vmath_exp(1000.0f)));
    assert_true(isnan(vmath_exp(NAN)));
    assert_true(isnan(vmath_tanh(NAN)));
    assert_true(vmath_exp(0.0f) == 1.0f);
    assert_true(vmath_tanh(1000.0f) == 1.0f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_ops_agree_with_double_precision),
        cmocka_unit_test(rope_turns_pairs),
        cmocka_unit_test(router_chooses_by_score_and_bias),
        cmocka_unit_test(delta_net_continues_from_its_state),
        cmocka_unit_test(vmath_agrees_with_libm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
