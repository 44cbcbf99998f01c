/* The ops on a real device against the CPU backend: gpu-ops [cuda:0]. A plain program, for a machine with a compiler and a
 * driver and nothing else (tests/gpu.sh); tests/cuda runs it emulated too, so that it is known to work. Sizes are
 * those of small layers, off every tile. One line for each check that fails; exit status 1 when one did. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/weights.h"
#include "tests/ops/random.h"
#include "worker/backend.h"
#include "worker/cuda/cuda.h"

#define COLUMNS_MAX 70

static struct backend *cpu, *gpu;
static unsigned n_checks, n_failed;

static void need(int rc, const struct err *err)
{
    if (rc < 0) {
        fprintf(stderr, "gpu-ops: %s\n", err->text);
        exit(1);
    }
}

static void *room(size_t size)
{
    void *p = calloc(1, size);
    if (!p) {
        fprintf(stderr, "gpu-ops: no memory\n");
        exit(1);
    }
    return p;
}

static float *floats(size_t n, float scale, uint64_t seed)
{
    float *x = room(n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        x[i] = random_f32(&seed) * scale;
    }
    return x;
}

static void *to_device(const void *host, size_t size)
{
    struct err err = { 0 };
    void *p = gpu->ops->alloc(gpu, size, &err);
    need(p ? gpu->ops->upload(gpu, p, host, size, &err) : -1, &err);
    return p;
}

static void from_device(void *host, const void *device, size_t size)
{
    struct err err = { 0 };
    need(gpu->ops->download(gpu, host, device, size, &err), &err);
}

/* Within `tolerance` of the largest value wanted; 0: the same bits. */
static void check(const float *got, const float *want, size_t n, double tolerance, const char *what)
{
    double top = 1e-6, worst = 0;
    n_checks++;
    if (tolerance == 0) {
        worst = memcmp(got, want, n * sizeof *got) ? 1 : 0;
    } else {
        for (size_t i = 0; i < n; i++) {
            double away = fabs((double)got[i] - (double)want[i]);
            top = fmax(top, fabs((double)want[i]));
            worst = away <= worst ? worst : away; /* NaN stays */
        }
        worst /= top;
    }
    if (!(worst <= tolerance)) {
        n_failed++;
        printf("FAIL %s: off by %.3g of the largest\n", what, worst);
    }
}

/* ---- products ---- */

static void multiply(struct backend *b, const struct matrix *w, const float *x, uint32_t n,
                     float *y)
{
    struct err err = { 0 };
    const struct op_matmul op = { .x = x,
                                  .x_stride = w->k,
                                  .n_rows = n,
                                  .k = w->k,
                                  .n_products = 1,
                                  .products = { { .w = w, .y = y, .y_stride = w->m } } };
    need(b->ops->matmul(b, &op, &err), &err);
}

static void products(enum dtype dtype, uint32_t k, uint32_t m)
{
    static const uint32_t columns[] = { 1, 2, 7, 8, 9, 16, 17, COLUMNS_MAX };
    struct err err = { 0 };
    char what[96];
    uint64_t row_bytes;
    const struct dtype_info *info = dtype_get(dtype);
    k = k / info->block_values * info->block_values;
    need(dtype_size(dtype, k, &row_bytes, &err), &err);
    uint8_t *data = room(row_bytes * m);
    random_weights(dtype, (uint64_t)k * m, data, 7 + (uint64_t)dtype);
    const struct weights_tensor t = { .name = "w",
                                      .dtype = dtype,
                                      .n_dims = 2,
                                      .ne = { k, m, 1, 1 },
                                      .size_bytes = row_bytes * m,
                                      .data_end = row_bytes * m,
                                      .data = data };
    struct matrix on_cpu, on_gpu;
    need(cpu->ops->import(cpu, &t, &on_cpu, &err), &err);
    need(gpu->ops->import(gpu, &t, &on_gpu, &err), &err);
    need(gpu->ops->arrived(gpu, NULL, SIZE_MAX, t.data_end, &err), &err);
    size_t n_y = (size_t)COLUMNS_MAX * m;
    float *x = floats((size_t)COLUMNS_MAX * k, 1, 3), *want = room(n_y * sizeof *want);
    float *got = room(n_y * sizeof *got), *first = room(m * sizeof *first);
    float *x_gpu = to_device(x, (size_t)COLUMNS_MAX * k * sizeof *x);
    float *y_gpu = to_device(got, n_y * sizeof *got);
    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
        uint32_t n = columns[i];
        bool wide = n > 16 && info->quantised;
        multiply(cpu, &on_cpu, x, n, want);
        multiply(gpu, &on_gpu, x_gpu, n, y_gpu);
        from_device(got, y_gpu, (size_t)n * m * sizeof *got);
        snprintf(what, sizeof what, "%s, %u x %u, %u columns", info->name, m, k, n);
        check(got, want, (size_t)n * m, wide ? 0 : 1e-5, what);
        if (n == 1) {
            memcpy(first, got, m * sizeof *first);
        } else {
            snprintf(what, sizeof what, "%s, %u x %u, column 0 of %u as alone", info->name, m, k,
                     n);
            check(got, first, m, 0, what);
        }
    }
    gpu->ops->release(gpu, data, row_bytes * m);
    gpu->ops->free(gpu, x_gpu);
    gpu->ops->free(gpu, y_gpu);
    free(x);
    free(want);
    free(got);
    free(first);
    free(data);
}

/* ---- streamed weights ---- */

#define N_STREAMED                                                                                 \
    7 /* an odd number over two slots: each slot's next one differs from round to round */
#define N_ROUNDS 6 /* steps are seen, made graphs, and sent */

/* The same products from the host's memory and from the device's, to the bit: a slot that is read or filled too early shows. */
static void streamed(uint32_t k, uint32_t m)
{
    static const uint32_t columns[] = { 1, 17 }; /* in a step's graph, and at once */
    struct err err = { 0 };
    char what[96];
    uint64_t row_bytes;
    need(dtype_size(DTYPE_Q8_0, k, &row_bytes, &err), &err);
    uint64_t bytes = row_bytes * m;
    uint8_t *data = room(N_STREAMED * bytes);
    struct matrix here[N_STREAMED], there[N_STREAMED];
    random_weights(DTYPE_Q8_0, (uint64_t)k * m * N_STREAMED, data, 11);
    for (uint32_t i = 0; i < N_STREAMED; i++) {
        const struct weights_tensor t = { .name = "w",
                                          .dtype = DTYPE_Q8_0,
                                          .n_dims = 2,
                                          .ne = { k, m, 1, 1 },
                                          .size_bytes = bytes,
                                          .data_end = bytes,
                                          .data = data + i * bytes };
        const struct backend_spilled slot = { .base = data,
                                              .slot_bytes = (bytes + (16ull * k)) * 2,
                                              .turn = i };
        need(gpu->ops->import(gpu, &t, &here[i], &err), &err);
        need(gpu->ops->import_spilled(gpu, &t, &slot, &there[i], &err), &err);
    }
    need(gpu->ops->arrived(gpu, NULL, SIZE_MAX, bytes, &err), &err);
    size_t n_y = 17ull * m;
    float *x = floats(17ull * k, 1, 5), *want = room(n_y * N_STREAMED * sizeof *want);
    float *got = room(n_y * N_STREAMED * sizeof *got), *x_gpu = to_device(x, 17ull * k * sizeof *x);
    float *y_gpu = to_device(got, n_y * N_STREAMED * sizeof *got);
    for (uint32_t round = 0; round < N_ROUNDS * 2; round++) {
        uint32_t n = columns[round % 2];
        for (uint32_t i = 0; i < N_STREAMED; i++) {
            multiply(gpu, &here[i], x_gpu, n, y_gpu + i * n_y);
        }
        from_device(want, y_gpu, n_y * N_STREAMED * sizeof *want);
        need(gpu->ops->clear(gpu, y_gpu, n_y * N_STREAMED * sizeof *got, &err), &err);
        need(gpu->ops->step(gpu, n == 1 ? 99 : 0, &err), &err);
        for (uint32_t i = 0; i < N_STREAMED; i++) {
            multiply(gpu, &there[i], x_gpu, n, y_gpu + i * n_y);
        }
        need(gpu->ops->finish(gpu, &err), &err);
        from_device(got, y_gpu, n_y * N_STREAMED * sizeof *got);
        for (uint32_t i = 0; i < N_STREAMED; i++) {
            snprintf(what, sizeof what, "streamed matrix %u, %u x %u, %u columns", i, m, k, n);
            check(got + i * n_y, want + i * n_y, (size_t)n * m, 0, what);
        }
    }
    gpu->ops->release(gpu, data, N_STREAMED * bytes);
    gpu->ops->free(gpu, x_gpu);
    gpu->ops->free(gpu, y_gpu);
    free(x);
    free(want);
    free(got);
    free(data);
}

/* ---- attention ---- */

#define N_HEADS    12
#define N_KV_HEADS 2
#define DIM        64
#define N_PAGES    20
#define N_POS      (N_PAGES * KV_PAGE_TOKENS - 9)
#define N_ROWS     18

static void attention(enum dtype type)
{
    struct err err = { 0 };
    const struct dtype_info *info = dtype_get(type);
    uint32_t row = DIM / info->block_values * info->block_bytes;
    uint64_t area = (uint64_t)KV_PAGE_TOKENS * N_KV_HEADS * row;
    struct kv_layer layer = { .n_kv_heads = N_KV_HEADS,
                              .k_dim = DIM,
                              .v_dim = DIM,
                              .k_row_bytes = row,
                              .v_row_bytes = row,
                              .v_off = area };
    struct kv_layout layout = { .k_type = type,
                                .v_type = type,
                                .n_layers = 1,
                                .page_bytes = (2 * area + 4095) & ~4095ull,
                                .layer = &layer };
    size_t bytes = N_PAGES * layout.page_bytes, n_kv = (size_t)N_POS * N_KV_HEADS * DIM;
    size_t n_q = (size_t)N_ROWS * N_HEADS * DIM;
    uint8_t *pages = room(bytes), *back = room(bytes), *pages_gpu = to_device(pages, bytes);
    float *k = floats(n_kv, 2, 21), *v = floats(n_kv, 1, 22), *q = floats(n_q, 1, 23);
    float *want = room(n_q * sizeof *want), *got = room(n_q * sizeof *got);
    float *k_gpu = to_device(k, n_kv * sizeof *k), *v_gpu = to_device(v, n_kv * sizeof *v);
    float *q_gpu = to_device(q, n_q * sizeof *q), *o_gpu = to_device(got, n_q * sizeof *got);
    struct kv_row *rows = room(N_POS * sizeof *rows);
    uint32_t table[N_PAGES];
    char what[64];
    for (uint32_t i = 0; i < N_PAGES; i++) {
        table[i] = (i * 7 + 3) % N_PAGES;
    }
    for (uint32_t i = 0; i < N_POS; i++) {
        rows[i] = (struct kv_row){ .pages = table, .pos = i, .end_pos = i + 1 };
    }
    struct op_kv_store store = { .layout = &layout,
                                 .page_base = pages,
                                 .rows = rows,
                                 .n_rows = N_POS,
                                 .k = k,
                                 .v = v,
                                 .k_stride = N_KV_HEADS * DIM,
                                 .v_stride = N_KV_HEADS * DIM };
    need(cpu->ops->kv_store(cpu, &store, &err), &err);
    store.page_base = pages_gpu;
    store.k = k_gpu;
    store.v = v_gpu;
    need(gpu->ops->kv_store(gpu, &store, &err), &err);
    from_device(back, pages_gpu, bytes);
    n_checks++;
    if (memcmp(back, pages, bytes) != 0) {
        n_failed++;
        printf("FAIL pages of %s: other bytes than the CPU's\n", info->name);
    }
    struct op_attention op = { .layout = &layout,
                               .page_base = pages,
                               .rows = rows + N_POS - N_ROWS,
                               .n_rows = N_ROWS,
                               .n_heads = N_HEADS,
                               .q = q,
                               .q_stride = N_HEADS * DIM,
                               .o = want,
                               .o_stride = N_HEADS * DIM,
                               .scale = 0.125f };
    need(cpu->ops->attention(cpu, &op, &err), &err);
    op.page_base = pages_gpu;
    op.q = q_gpu;
    op.o = o_gpu;
    need(gpu->ops->attention(gpu, &op, &err), &err);
    from_device(got, o_gpu, n_q * sizeof *got);
    snprintf(what, sizeof what, "attention over %s", info->name);
    check(got, want, n_q, quant_info(type)->sub ? 2e-2 : 1e-5, what);
    op.n_rows = 1; /* split now, not split before */
    need(gpu->ops->attention(gpu, &op, &err), &err);
    memcpy(want, got, N_HEADS * DIM * sizeof *got);
    from_device(got, o_gpu, N_HEADS * DIM * sizeof *got);
    snprintf(what, sizeof what, "attention over %s, a row alone", info->name);
    check(got, want, N_HEADS * DIM, 0, what);
    void *device[] = { pages_gpu, k_gpu, v_gpu, q_gpu, o_gpu };
    void *host[] = { pages, back, k, v, q, want, got, rows };
    for (size_t i = 0; i < sizeof device / sizeof device[0]; i++) {
        gpu->ops->free(gpu, device[i]);
    }
    for (size_t i = 0; i < sizeof host / sizeof host[0]; i++) {
        free(host[i]);
    }
}

int main(int argc, char **argv)
{
    struct err err = { 0 };
    const struct backend_options options = { 0 };
    const struct backend_limits limits = { .max_rows = 96,
                                           .max_rows_wide = 96,
                                           .max_k = 4096,
                                           .max_m = 4096,
                                           .max_heads = N_HEADS,
                                           .max_k_dim = DIM,
                                           .max_v_dim = DIM,
                                           .max_experts = 1,
                                           .ctx_len = N_PAGES * KV_PAGE_TOKENS };
    static const enum dtype kv_types[] = { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0,
                                           DTYPE_Q4_0 };
    /* Small with a second argument: the emulation's time. */
    uint32_t k = argc > 2 ? 544 : 2848, m = argc > 2 ? 19 : 1003;
    cpu = backend_open("cpu", &options, &err);
    gpu = cpu ? cuda_open(argc > 1 ? argv[1] : "cuda:0", &options, &err) : NULL;
    need(gpu ? cpu->ops->reserve(cpu, &limits, &err) : -1, &err);
    need(gpu->ops->reserve(gpu, &limits, &err), &err);
    for (int id = 0; id < DTYPE_N; id++) {
        const struct matrix w = { .name = "w", .dtype = (enum dtype)id };
        if (dtype_find((uint32_t)id) && gpu->ops->check_matrix(gpu, &w, &err) == 0) {
            bool halves = id == DTYPE_F16 || id == DTYPE_BF16; /* few rows stay off tensor cores */
            products((enum dtype)id, k, halves && m < 530 ? 530 : m);
        }
    }
    streamed(argc > 2 ? 544 : 4096, argc > 2 ? 48 : 4096);
    for (size_t i = 0; i < sizeof kv_types / sizeof kv_types[0]; i++) {
        attention(kv_types[i]);
    }
    printf("%u checks, %u failed\n", n_checks, n_failed);
    backend_close(&gpu);
    backend_close(&cpu);
    return n_failed ? 1 : 0;
}
