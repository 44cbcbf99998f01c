/* Goal: the ops beside products and attention agree with the CPU, at widths off the warp. */
#include "tests/cuda/twins.h"

#define ROWS   3
#define STRIDE 160

static const uint32_t widths[] = { 1, 7, 33, 128, 150 };

/* Calls the op on both backends; `y` names its output. */
#define BOTH(name, op, y_field, n, tolerance, what)                                                \
    do {                                                                                           \
        struct err err_;                                                                           \
        (op).y_field = want;                                                                       \
        assert_ok(t->cpu->ops->name(t->cpu, &(op), &err_), err_);                                  \
        (op).y_field = got;                                                                        \
        assert_ok(t->cuda->ops->name(t->cuda, &(op), &err_), err_);                                \
        twins_compare(got, want, n, tolerance, what);                                              \
    } while (0)

static float want[ROWS * 8 * STRIDE], got[ROWS * 8 * STRIDE];

static void norms_agree(void **state)
{
    struct twins *t = *state;
    float *x = twins_floats(ROWS * STRIDE, 3, 1), *w = twins_floats(STRIDE, 1, 2),
          *b = twins_floats(STRIDE, 1, 3);
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        for (int form = 0; form < 6; form++) {
            uint32_t groups = form % 3 == 2 && widths[i] < 40 ? 4 : 1;
            struct op_norm op = { .kind = form < 3 ? OP_NORM_RMS : OP_NORM_LAYER,
                                  .n_rows = ROWS,
                                  .n_groups = groups,
                                  .width = widths[i],
                                  .x = x,
                                  .x_stride = STRIDE,
                                  .w = form % 3 ? w : NULL,
                                  .b = form % 3 == 2 ? b : NULL,
                                  .w_per_group = groups > 1,
                                  .eps = 1e-5f,
                                  .y_stride = STRIDE };
            BOTH(norm, op, y, (ROWS - 1) * STRIDE + groups * widths[i], 1e-6, "norm");
        }
    }
    free(x);
    free(w);
    free(b);
}

/* A residual sum inside the norm: what add and norm give, on both backends. */
static void a_norm_takes_the_sum_before_it_along(void **state)
{
    struct twins *t = *state;
    enum { WIDTH = 96 };
    float *start = twins_floats(ROWS * STRIDE, 3, 1), *branch = twins_floats(ROWS * STRIDE, 3, 5);
    float *w = twins_floats(STRIDE, 1, 2);
    static float x[2][ROWS * STRIDE], y[2][ROWS * STRIDE];
    struct err err;
    for (int form = 0; form < 4; form++) {
        struct backend *b = form % 2 ? t->cuda : t->cpu;
        for (int fused = 0; fused < 2; fused++) {
            memcpy(x[fused], start, sizeof x[fused]);
            memset(y[fused], 0, sizeof y[fused]);
            struct op_norm norm = { .kind = form < 2 ? OP_NORM_RMS : OP_NORM_LAYER,
                                    .n_rows = ROWS,
                                    .n_groups = 1,
                                    .width = WIDTH,
                                    .x = x[fused],
                                    .x_stride = STRIDE,
                                    .w = w,
                                    .eps = 1e-5f,
                                    .y = y[fused],
                                    .y_stride = STRIDE };
            const struct op_add add = { .n_rows = ROWS,
                                        .width = WIDTH,
                                        .a = x[fused],
                                        .a_stride = STRIDE,
                                        .b = branch,
                                        .b_stride = STRIDE,
                                        .b_rows = ROWS,
                                        .b_scale = 0.3f,
                                        .y_scale = 1,
                                        .y = x[fused],
                                        .y_stride = STRIDE };
            if (fused) {
                norm.sum = x[fused];
                norm.plus = branch;
                norm.plus_stride = STRIDE;
                norm.plus_scale = 0.3f;
            } else {
                assert_ok(b->ops->add(b, &add, &err), err);
            }
            assert_ok(b->ops->norm(b, &norm, &err), err);
        }
        assert_memory_equal(x[0], x[1], sizeof x[0]);
        assert_memory_equal(y[0], y[1], sizeof y[0]);
    }
    free(start);
    free(branch);
    free(w);
}

static void turns_agree(void **state)
{
    struct twins *t = *state;
    static const int64_t pos[ROWS] = { 0, 17, 100000 };
    static const float row_scale[ROWS] = { 1, 0.5f, 2 };
    double freq[20];
    float cs[ROWS * 40], *x = twins_floats(ROWS * STRIDE, 1, 4);
    struct err err;
    for (int j = 0; j < 20; j++) {
        freq[j] = pow(10000, -j / 20.0);
    }
    struct op_rope_table table = {
        .pos = pos, .freq = freq, .n_rows = ROWS, .n_pairs = 20, .mag = 1.1
    };
    BOTH(rope_table, table, cs, ROWS * 40, 0, "rope table");
    memcpy(cs, want, sizeof cs);
    for (int form = 0; form < 4; form++) {
        struct op_rope op = { .x_stride = STRIDE,
                              .n_rows = ROWS,
                              .n_heads = 3,
                              .head_dim = 50,
                              .n_pairs = 20,
                              .neox = form & 1,
                              .cs = cs,
                              .row_scale = form & 2 ? row_scale : NULL };
        memcpy(want, x, ROWS * STRIDE * sizeof *x);
        memcpy(got, x, ROWS * STRIDE * sizeof *x);
        BOTH(rope, op, x, ROWS * STRIDE, 0, "rope");
    }
    (void)err;
    free(x);
}

static void rows_agree(void **state)
{
    struct twins *t = *state;
    float *g = twins_floats(ROWS * STRIDE, 9, 5), *u = twins_floats(ROWS * STRIDE, 9, 6);
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        for (int kind = OP_ACT_SILU; kind <= OP_ACT_SIGMOID; kind++) {
            for (int form = 0; form < 3; form++) {
                struct op_act op = { .kind = (enum op_act_kind)kind,
                                     .n_rows = ROWS,
                                     .width = widths[i],
                                     .g = g,
                                     .u = form ? u : NULL,
                                     .g_stride = STRIDE,
                                     .u_stride = STRIDE,
                                     .g_width = form == 2 && kind == OP_ACT_SIGMOID ? 1 : widths[i],
                                     .y_stride = STRIDE };
                BOTH(act, op, y, (ROWS - 1) * STRIDE + widths[i], 0, "act");
            }
        }
        for (int form = 0; form < 8; form++) {
            struct op_add op = { .n_rows = ROWS,
                                 .width = widths[i],
                                 .a = g,
                                 .b = form & 1 ? u : NULL,
                                 .a_stride = STRIDE,
                                 .b_stride = STRIDE,
                                 .b_rows = form & 2 ? 1 : ROWS,
                                 .b_scale = 0.5f,
                                 .y_scale = form & 4 ? 1.5f : 1.0f,
                                 .softcap = form & 2 ? 5.0f : 0.0f,
                                 .y_stride = STRIDE };
            BOTH(add, op, y, (ROWS - 1) * STRIDE + widths[i], 0, "add");
        }
        static const uint32_t index[4] = { 2, 0, 2, 1 };
        struct op_gather op = { .x = g,
                                .x_stride = STRIDE,
                                .n_rows = 4,
                                .width = widths[i],
                                .index = index,
                                .y_stride = STRIDE };
        BOTH(gather, op, y, 3 * STRIDE + widths[i], 0, "gather");
    }
    free(g);
    free(u);
}

static void routes_agree(void **state)
{
    struct twins *t = *state;
    enum { EXPERTS = 48, USED = 5 };
    float *logits = twins_floats(ROWS * EXPERTS, 4, 7), *bias = twins_floats(EXPERTS, 1, 8);
    int32_t chosen[2][ROWS * USED];
    struct err err;
    logits[3] = logits[40]; /* a tie */
    logits[EXPERTS + 2] = NAN;
    for (int form = 0; form < 24; form++) {
        struct op_moe_route op = { .logits = logits,
                                   .logits_stride = EXPERTS,
                                   .n_rows = form < 12 ? ROWS : 1,
                                   .n_experts = EXPERTS,
                                   .n_used = USED,
                                   .n_groups = form & 1 ? 6 : 1,
                                   .n_groups_used = form & 1 ? 3 : 1,
                                   .gating = (enum op_gating)(form / 2 % 3),
                                   .normalise = form & 2,
                                   .softmax_chosen = form >= 18,
                                   .scale = 2.5f,
                                   .choice_bias = form & 4 ? bias : NULL };
        op.experts = chosen[0];
        op.weights = want;
        assert_ok(t->cpu->ops->moe_route(t->cpu, &op, &err), err);
        op.experts = chosen[1];
        op.weights = got;
        assert_ok(t->cuda->ops->moe_route(t->cuda, &op, &err), err);
        for (uint32_t i = 0; i < op.n_rows * USED; i++) {
            assert_int_equal(chosen[1][i], chosen[0][i]);
            assert_true((isnan(got[i]) && isnan(want[i])) ||
                        fabsf(got[i] - want[i]) <= 1e-6f * fabsf(want[i]));
        }
    }
    float *x = twins_floats(ROWS * USED * STRIDE, 1, 9);
    struct op_moe_sum sum = { .x = x,
                              .x_stride = STRIDE,
                              .n_rows = ROWS,
                              .n_used = USED,
                              .width = 150,
                              .weights = bias,
                              .y_stride = STRIDE };
    BOTH(moe_sum, sum, y, 2 * STRIDE + 150, 0, "moe sum");
    free(x);
    free(logits);
    free(bias);
}

#define DS_MAX 128

/* Two sequences, three and one rows, twice: the second step begins with what the first left. */
static void delta_nets_agree_at(struct twins *t, uint32_t ds)
{
    enum { N = 4, HK = 2, HV = 4, TAPS = 4 };
    const uint32_t channels = 2 * HK * ds + HV * ds;
    const uint32_t state_size = HV * ds * ds + (TAPS - 1) * channels;
    float *u = twins_floats(N * channels, 1, 10), *z = twins_floats(N * HV * ds, 1, 11);
    float *b = twins_floats(N * HV, 2, 12), *a = twins_floats(N * HV, 2, 13);
    float *conv = twins_floats(channels * TAPS, 1, 14), *dt = twins_floats(HV, 1, 15);
    float *coef = twins_floats(HV, 1, 16), *norm = twins_floats(ds, 1, 17);
    float *states[2][2], y[2][N * HV * DS_MAX];
    struct err err;
    for (int device = 0; device < 2; device++) {
        struct backend *on = device ? t->cuda : t->cpu;
        for (int i = 0; i < 2; i++) {
            states[device][i] = calloc(2 * state_size, sizeof(float));
            assert_non_null(states[device][i]);
        }
        for (int step = 0; step < 2; step++) {
            const float *from[N] = { states[device][0] + step * state_size, NULL, NULL,
                                     states[device][1] + step * state_size };
            float *to = states[device][0] + (1 - step) * state_size;
            float *state_of[N] = { to, to, to, states[device][1] + (1 - step) * state_size };
            struct op_delta_net op = { .n_rows = N,
                                       .n_k_heads = HK,
                                       .n_v_heads = HV,
                                       .state_dim = ds,
                                       .conv_taps = TAPS,
                                       .interleaved = step,
                                       .u = u,
                                       .z = z,
                                       .b = b,
                                       .a = a,
                                       .u_stride = channels,
                                       .z_stride = HV * ds,
                                       .b_stride = HV,
                                       .a_stride = HV,
                                       .conv = conv,
                                       .dt_bias = dt,
                                       .a_coef = coef,
                                       .norm = norm,
                                       .eps = 1e-6f,
                                       .from = from,
                                       .state = state_of,
                                       .y = y[device],
                                       .y_stride = HV * ds };
            assert_ok(on->ops->delta_net(on, &op, &err), err);
        }
    }
    twins_compare(y[1], y[0], N * HV * ds, 1e-5, "delta net");
    for (int i = 0; i < 2; i++) {
        twins_compare(states[1][i], states[0][i], 2 * state_size, 1e-5, "delta state");
        free(states[0][i]);
        free(states[1][i]);
    }
    float *all[] = { u, z, b, a, conv, dt, coef, norm };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        free(all[i]);
    }
}

/* Sizes that a thread keeps in registers, and another. */
static void delta_nets_agree(void **state)
{
    delta_nets_agree_at(*state, 20);
    delta_nets_agree_at(*state, 64);
    delta_nets_agree_at(*state, DS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_agree),  cmocka_unit_test(a_norm_takes_the_sum_before_it_along),
        cmocka_unit_test(turns_agree),  cmocka_unit_test(rows_agree),
        cmocka_unit_test(routes_agree), cmocka_unit_test(delta_nets_agree),
    };
    return cmocka_run_group_tests(tests, twins_open, twins_close);
}
