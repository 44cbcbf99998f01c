/* Goal: pages hold what the CPU would have written, and attention over them agrees with the CPU for every K/V type, alone
 * or in a crowd, split or not. */
#include "tests/cuda/twins.h"

#define N_POS      1100 /* three spans */
#define N_PAGES    (N_POS / KV_PAGE_TOKENS + 1)
#define N_KV_HEADS 2
#define ROWS_MAX   20

struct kv {
    struct kv_layout layout;
    struct kv_layer layer;
    uint8_t *pages;
    uint32_t table[N_PAGES];
};

static uint32_t row_bytes(enum dtype dtype, uint32_t n)
{
    const struct dtype_info *d = dtype_get(dtype);
    return (n + d->block_values - 1) / d->block_values * d->block_bytes;
}

static void make(struct kv *kv, enum dtype k_type, enum dtype v_type, uint32_t k_dim,
                 uint32_t v_dim)
{
    *kv = (struct kv){ .layer = { .n_kv_heads = N_KV_HEADS, .k_dim = k_dim, .v_dim = v_dim } };
    struct kv_layer *l = &kv->layer;
    l->k_row_bytes = row_bytes(k_type, k_dim);
    l->v_row_bytes = row_bytes(v_type, v_dim);
    l->k_off = 128;
    l->v_off = (128 + (uint64_t)KV_PAGE_TOKENS * N_KV_HEADS * l->k_row_bytes + 63) & ~63ull;
    kv->layout =
        (struct kv_layout){ .k_type = k_type, .v_type = v_type, .n_layers = 1, .layer = l };
    kv->layout.page_bytes =
        (l->v_off + (uint64_t)KV_PAGE_TOKENS * N_KV_HEADS * l->v_row_bytes + 4095) & ~4095ull;
    kv->pages = aligned_alloc(4096, N_PAGES * kv->layout.page_bytes);
    assert_non_null(kv->pages);
    memset(kv->pages, 0xff, N_PAGES * kv->layout.page_bytes);
    for (uint32_t i = 0; i < N_PAGES; i++) {
        kv->table[i] = (i * 7 + 3) % N_PAGES;
    }
}

static void store(struct backend *b, struct kv *kv, uint32_t from, uint32_t n)
{
    static struct kv_row rows[N_POS];
    uint32_t k_stride = N_KV_HEADS * kv->layer.k_dim, v_stride = N_KV_HEADS * kv->layer.v_dim;
    float *k = twins_floats((size_t)N_POS * k_stride, 2, 21);
    float *v = twins_floats((size_t)N_POS * v_stride, 1, 22);
    struct err err;
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = (struct kv_row){ .pages = kv->table, .pos = from + i, .end_pos = from + i + 1 };
    }
    struct op_kv_store op = { .layout = &kv->layout,
                              .page_base = kv->pages,
                              .rows = rows,
                              .n_rows = n,
                              .k = k + (size_t)from * k_stride,
                              .v = v + (size_t)from * v_stride,
                              .k_stride = k_stride,
                              .v_stride = v_stride };
    assert_ok(b->ops->kv_store(b, &op, &err), err);
    free(k);
    free(v);
}

static const enum dtype types[] = { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0 };

static void pages_are_the_cpus(void **state)
{
    struct twins *t = *state;
    static const uint32_t dims[] = { 32, 40, 64 };
    for (size_t i = 0; i < 5; i++) {
        for (size_t d = 0; d < 3; d++) {
            struct kv a, b;
            make(&a, types[i], types[(i + d) % 5], dims[d], dims[2 - d]);
            make(&b, types[i], types[(i + d) % 5], dims[d], dims[2 - d]);
            store(t->cpu, &a, 30, 50);
            store(t->cuda, &b, 30, 50);
            if (memcmp(a.pages, b.pages, N_PAGES * a.layout.page_bytes) != 0) {
                fail_msg("%s and %s of %u and %u: other bytes", dtype_get(a.layout.k_type)->name,
                         dtype_get(a.layout.v_type)->name, dims[d], dims[2 - d]);
            }
            free(a.pages);
            free(b.pages);
        }
    }
}

/* Queries, keys and values of a few rows, and what is to happen to them on the way to the pages. */
struct way {
    bool norms, whole, neox, latent;
    uint32_t n_pairs;
};

enum { WAY_ROWS = 7, WAY_HEADS = 3 };

/* By one op, or by one after another; q and the pages are what is left. */
static void go(struct backend *b, struct kv *kv, const struct way *w, bool together, float *q)
{
    uint32_t g = kv->layer.n_kv_heads, kd = kv->layer.k_dim, vd = kv->layer.v_dim,
             pairs = w->n_pairs;
    uint32_t q_stride = WAY_HEADS * kd, k_stride = g * kd, v_stride = g * vd, at = kd - 2 * pairs;
    float *k = twins_floats((size_t)WAY_ROWS * k_stride, 2, 31);
    float *v = w->latent ? k : twins_floats((size_t)WAY_ROWS * v_stride, 1, 32);
    float *fresh = twins_floats((size_t)WAY_ROWS * q_stride, 1, 33);
    float *weights = twins_floats(4 * (kd + vd), 1, 34),
          *cs = twins_floats(2 * WAY_ROWS * 64, 1, 35);
    float scale[WAY_ROWS];
    struct kv_row rows[WAY_ROWS];
    struct err err;
    memcpy(q, fresh, (size_t)WAY_ROWS * q_stride * sizeof *q);
    for (uint32_t i = 0; i < WAY_ROWS; i++) {
        scale[i] = 1.0f + (float)i / 8;
        rows[i] = (struct kv_row){ .pages = kv->table, .pos = 60 + i, .end_pos = 61 + i };
    }
    uint32_t norm_width = w->latent ? vd : kd;
    struct op_norm q_norm = { .kind = OP_NORM_RMS,
                              .n_rows = WAY_ROWS,
                              .n_groups = WAY_HEADS,
                              .width = kd,
                              .x = q,
                              .x_stride = q_stride,
                              .w = weights,
                              .eps = 1e-5f,
                              .w_per_group = true,
                              .y = q,
                              .y_stride = q_stride };
    struct op_norm k_norm = { .kind = OP_NORM_LAYER,
                              .n_rows = WAY_ROWS,
                              .n_groups = w->latent ? 1 : g,
                              .width = norm_width,
                              .x = k,
                              .x_stride = k_stride,
                              .w = weights + kd,
                              .b = weights,
                              .eps = 1e-5f,
                              .y = k,
                              .y_stride = k_stride };
    struct op_norm v_norm = { .kind = OP_NORM_RMS,
                              .n_rows = WAY_ROWS,
                              .n_groups = g,
                              .width = vd,
                              .x = v,
                              .x_stride = v_stride,
                              .eps = 1e-5f,
                              .y = v,
                              .y_stride = v_stride };
    if (w->whole) {
        q_norm.n_groups = k_norm.n_groups = 1;
        q_norm.width = q_stride;
        k_norm.width = k_stride;
        q_norm.w = k_norm.w = k_norm.b = NULL;
    }
    struct op_rope q_rope = { .x = w->latent ? q + at : q,
                              .x_stride = q_stride,
                              .n_rows = WAY_ROWS,
                              .n_heads = WAY_HEADS,
                              .head_dim = kd,
                              .n_pairs = pairs,
                              .neox = w->neox,
                              .cs = cs,
                              .row_scale = w->neox ? scale : NULL };
    struct op_rope k_rope = q_rope;
    k_rope.x = w->latent ? k + at : k;
    k_rope.x_stride = k_stride;
    k_rope.n_heads = g;
    k_rope.row_scale = NULL;
    struct op_kv_store store = { .layout = &kv->layout,
                                 .page_base = kv->pages,
                                 .rows = rows,
                                 .n_rows = WAY_ROWS,
                                 .k = k,
                                 .v = v,
                                 .k_stride = k_stride,
                                 .v_stride = w->latent ? k_stride : v_stride };
    struct op_kv_store before = store;
    before.q_norm = w->norms && !w->latent ? &q_norm : NULL;
    before.k_norm = w->norms ? &k_norm : NULL;
    before.v_norm = w->norms && !w->latent ? &v_norm : NULL;
    before.q_rope = &q_rope;
    before.k_rope = &k_rope;
    if (together) {
        assert_ok(b->ops->kv_store(b, &before, &err), err);
        if (strcmp(b->name, "cuda") == 0 &&
            !w->whole) { /* one launch: they are changed on the way alone */
            float *as_was = twins_floats((size_t)WAY_ROWS * k_stride, 2, 31);
            assert_memory_equal(k, as_was, (size_t)WAY_ROWS * k_stride * sizeof *k);
            free(as_was);
        }
    } else {
        assert_ok(backend_before_store(b, &before, &err), err);
        assert_ok(b->ops->kv_store(b, &store, &err), err);
    }
    free(k);
    if (!w->latent) {
        free(v);
    }
    free(fresh);
    free(weights);
    free(cs);
}

static void what_comes_before_a_store_changes_no_bit(void **state)
{
    struct twins *t = *state;
    static const struct way ways[] = { { .n_pairs = 20 },
                                       { .n_pairs = 12, .neox = true },
                                       { .norms = true, .n_pairs = 16, .neox = true },
                                       { .norms = true, .whole = true, .n_pairs = 20 },
                                       { .norms = true, .latent = true, .n_pairs = 4 },
                                       { .latent = true, .n_pairs = 4 } };
    for (size_t i = 0; i < 5 * sizeof ways / sizeof ways[0]; i++) {
        const struct way *w = &ways[i / 5];
        struct kv alone, together, cpu;
        uint32_t k_dim = 40, v_dim = w->latent ? 32 : 48;
        float q[3][WAY_ROWS * WAY_HEADS * 40];
        make(&alone, types[i % 5], types[(i + 1) % 5], k_dim, v_dim);
        make(&together, types[i % 5], types[(i + 1) % 5], k_dim, v_dim);
        make(&cpu, types[i % 5], types[(i + 1) % 5], k_dim, v_dim);
        if (w->latent) { /* one key head: the second is not there */
            alone.layer.n_kv_heads = together.layer.n_kv_heads = cpu.layer.n_kv_heads = 1;
        }
        go(t->cuda, &alone, w, false, q[0]);
        go(t->cuda, &together, w, true, q[1]);
        go(t->cpu, &cpu, w, true, q[2]);
        assert_memory_equal(q[0], q[1], sizeof q[0]);
        assert_memory_equal(alone.pages, together.pages, N_PAGES * alone.layout.page_bytes);
        twins_compare(q[1], q[2], sizeof q[1] / sizeof q[1][0], w->norms ? 1e-6 : 0, "queries");
        if (!w->norms) { /* a norm's sums have an order of their own on a device */
            assert_memory_equal(together.pages, cpu.pages, N_PAGES * cpu.layout.page_bytes);
        }
        free(alone.pages);
        free(together.pages);
        free(cpu.pages);
    }
}

/* n_rows rows ending at positions that grow from `at`. */
static void attend(struct backend *b, struct kv *kv, uint32_t n_heads, const int64_t *at,
                   uint32_t n_rows, uint32_t window, const float *sinks, float softcap, float *o)
{
    struct kv_row rows[ROWS_MAX];
    uint32_t k_dim = kv->layer.k_dim, v_dim = kv->layer.v_dim;
    float *q = twins_floats((size_t)N_POS * n_heads * k_dim, 1, 23), *mine;
    struct err err;
    mine = malloc((size_t)n_rows * n_heads * k_dim * sizeof *mine);
    assert_non_null(mine);
    for (uint32_t i = 0; i < n_rows; i++) {
        rows[i] = (struct kv_row){ .pages = kv->table, .pos = at[i], .end_pos = at[i] + 1 };
        memcpy(mine + (size_t)i * n_heads * k_dim, q + (size_t)at[i] * n_heads * k_dim,
               n_heads * k_dim * sizeof *q);
    }
    struct op_attention op = { .layout = &kv->layout,
                               .page_base = kv->pages,
                               .rows = rows,
                               .n_rows = n_rows,
                               .n_heads = n_heads,
                               .q = mine,
                               .q_stride = n_heads * k_dim,
                               .o = o,
                               .o_stride = n_heads * v_dim,
                               .scale = 0.2f,
                               .softcap = softcap,
                               .window = window,
                               .sinks = sinks };
    assert_ok(b->ops->attention(b, &op, &err), err);
    free(q);
    free(mine);
}

/* Types of K and V, sizes of a head, heads of a group. */
static const struct form {
    enum dtype k, v;
    uint32_t k_dim, v_dim, group;
} forms[] = {
    { DTYPE_F32, DTYPE_BF16, 32, 48, 1 },
    { DTYPE_F16, DTYPE_Q8_0, 40, 32, 11 },
    { DTYPE_F16, DTYPE_Q8_0, 32, 48, 21 }, /* a group beyond one warp's rows */
    { DTYPE_BF16, DTYPE_Q4_0, 32, 48, 9 }, /* and beyond one block's */
    { DTYPE_Q8_0, DTYPE_F32, 40, 32, 4 },
    { DTYPE_Q4_0, DTYPE_F16, 96, 80, 5 },
    { DTYPE_F16, DTYPE_F16, 128, 128, 4 },
    { DTYPE_Q8_0, DTYPE_Q4_0, 64, 128, 8 },
    { DTYPE_F16, DTYPE_F16, 256, 192, 2 }, /* heads of two warps */
    { DTYPE_F16, DTYPE_F16, 576, 512, 9 }, /* of four: latent attention */
    { DTYPE_Q8_0, DTYPE_Q4_0, 96, 272, 3 },
    { DTYPE_F16, DTYPE_BF16, 576, 512, 1 }, /* and no tensor cores */
};
#define N_FORMS (sizeof forms / sizeof forms[0])
#define ROW_MAX 9216 /* values of a row of results: 2 * 9 * 512 */

static void attention_agrees_with_the_cpu(void **state)
{
    struct twins *t = *state;
    static const int64_t at[3] = { 5, 700, N_POS - 1 };
    float *want = calloc(3 * ROW_MAX, sizeof *want), *got = calloc(3 * ROW_MAX, sizeof *got);
    float *sinks = twins_floats(42, 3, 24);
    for (size_t i = 0; i < N_FORMS; i++) {
        const struct form *f = &forms[i];
        struct kv kv;
        uint32_t n_heads = N_KV_HEADS * f->group;
        char what[96];
        make(&kv, f->k, f->v, f->k_dim, f->v_dim);
        store(t->cuda, &kv, 0, N_POS);
        for (int form = 0; form < 3; form++) {
            uint32_t window = form == 1 ? 100 : 0;
            const float *sink = form == 1 ? sinks : NULL;
            float softcap = form == 2 ? 3 : 0;
            snprintf(what, sizeof what, "keys %s, values %s, form %d", dtype_get(f->k)->name,
                     dtype_get(f->v)->name, form);
            attend(t->cpu, &kv, n_heads, at, 3, window, sink, softcap, want);
            attend(t->cuda, &kv, n_heads, at, 3, window, sink, softcap, got);
            /* The CPU rounds queries to int8 where keys are quantised; the device rounds quantised values to f16. */
            twins_compare(got, want, (size_t)3 * n_heads * f->v_dim,
                          quant_info(f->k)->sub   ? 2e-2
                          : quant_info(f->v)->sub ? 1e-3
                                                  : 1e-5,
                          what);
        }
        free(kv.pages);
    }
    free(want);
    free(got);
    free(sinks);
}

/* The judge of the rest has the same bits on both devices. */
static void the_exact_setting_gives_the_cpus_bits(void **state)
{
    (void)state;
    static const int64_t at[3] = { 5, 140, 300 };
    static const struct form exact[] = { { DTYPE_F32, DTYPE_F32, 40, 144, 3 },
                                         { DTYPE_F16, DTYPE_BF16, 32, 48, 1 } };
    float *want = calloc(3 * 6 * 144, sizeof *want), *got = calloc(3 * 6 * 144, sizeof *got);
    float *sinks = twins_floats(6, 3, 24);
    struct twins t = twins_exact();
    for (size_t i = 0; i < 2; i++) {
        const struct form *f = &exact[i];
        struct kv kv;
        make(&kv, f->k, f->v, f->k_dim, f->v_dim);
        store(t.cpu, &kv, 0, 301);
        for (int form = 0; form < 2; form++) {
            const float *sink = form ? sinks : NULL;
            attend(t.cpu, &kv, 2 * f->group, at, 3, form * 100, sink, (float)form * 3, want);
            attend(t.cuda, &kv, 2 * f->group, at, 3, form * 100, sink, (float)form * 3, got);
            twins_compare(got, want, (size_t)3 * 2 * f->group * f->v_dim, 0, "exact attention");
        }
        free(kv.pages);
    }
    backend_close(&t.cuda);
    backend_close(&t.cpu);
    free(want);
    free(got);
    free(sinks);
}

/* Twenty rows of one sequence, not split, several to a warp; each of them alone, split. */
static void a_row_has_the_same_bits_in_a_crowd(void **state)
{
    struct twins *t = *state;
    float *alone = calloc(ROW_MAX, sizeof *alone);
    float *crowd = calloc(ROWS_MAX * ROW_MAX, sizeof *crowd);
    assert_true(alone && crowd);
    for (size_t i = 0; i < N_FORMS; i++) {
        int64_t at[ROWS_MAX];
        struct kv kv;
        uint32_t n_heads = N_KV_HEADS * forms[i].group, width = n_heads * forms[i].v_dim;
        assert_true(width <= ROW_MAX);
        uint32_t window = i % 2 ? 90 : 0;
        make(&kv, forms[i].k, forms[i].v, forms[i].k_dim, forms[i].v_dim);
        store(t->cuda, &kv, 0, N_POS);
        for (int r = 0; r < ROWS_MAX; r++) { /* over the border of two spans */
            at[r] = 2 * KV_SPAN - ROWS_MAX / 2 + r;
        }
        attend(t->cuda, &kv, n_heads, at, ROWS_MAX, window, NULL, 0, crowd);
        for (int r = 0; r < ROWS_MAX; r += 7) {
            attend(t->cuda, &kv, n_heads, at + r, 1, window, NULL, 0, alone);
            assert_memory_equal(alone, crowd + (size_t)r * width, width * sizeof *alone);
        }
        free(kv.pages);
    }
    free(alone);
    free(crowd);
}

/* Nine rows of a window that begins in two spans: split, several rows to a warp, each with spans of its own. */
static void rows_of_a_warp_may_begin_in_different_spans(void **state)
{
    struct twins *t = *state;
    enum { N = 9, HEADS = 4, DIM = 32, WINDOW = 580 };
    static_assert(KV_SPAN + WINDOW + N / 2 < N_POS, "every row's position is stored");
    static float some[N * HEADS * DIM], alone[HEADS * DIM];
    int64_t at[N];
    struct kv kv;
    make(&kv, DTYPE_F16, DTYPE_F16, DIM, DIM);
    store(t->cuda, &kv, 0, N_POS);
    for (int r = 0; r < N; r++) {
        at[r] = KV_SPAN + WINDOW - 1 - N / 2 + r;
    }
    attend(t->cuda, &kv, HEADS, at, N, WINDOW, NULL, 0, some);
    for (int r = 0; r < N; r++) {
        attend(t->cuda, &kv, HEADS, at + r, 1, WINDOW, NULL, 0, alone);
        assert_memory_equal(alone, some + r * HEADS * DIM, sizeof alone);
    }
    free(kv.pages);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_the_cpus),
        cmocka_unit_test(what_comes_before_a_store_changes_no_bit),
        cmocka_unit_test(attention_agrees_with_the_cpu),
        cmocka_unit_test(the_exact_setting_gives_the_cpus_bits),
        cmocka_unit_test(a_row_has_the_same_bits_in_a_crowd),
        cmocka_unit_test(rows_of_a_warp_may_begin_in_different_spans),
    };
    return cmocka_run_group_tests(tests, twins_open, twins_close);
}
