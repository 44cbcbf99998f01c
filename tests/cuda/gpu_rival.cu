/* See gpu_rival.h. */
#include <stdlib.h>
#include <time.h>

#include "worker/cuda/tile_scales.cuh"

#include "tests/cuda/gpu_rival.h"
#if HEARTH_HAVE_CUBLAS
#include <cublas_v2.h>
#endif

#define THREADS 128

struct rival {
    struct cuda_backend *c;
    uint16_t *w, *x; /* owned, device */
    size_t w_bytes, x_bytes;
#if HEARTH_HAVE_CUBLAS
    cublasHandle_t blas;
#endif
};

struct widen_args {
    struct device_matrix w;
    const struct tile_tables *tables;
    uint16_t *to; /* (m, k) f16 */
};

/* A thread for eight values of rows g and g + 8 of a group. */
template <enum dtype T> static __global__ void widen_kernel(struct widen_args a)
{
    uint32_t at = blockIdx.y * (THREADS / 8) + threadIdx.x / 8, g = threadIdx.x % 8, tile = at / 4;
    if (at >= a.w.k / 8) {
        return;
    }
    const uint8_t *round = a.w.data + blockIdx.x * a.w.row_bytes +
                           (uint64_t)(tile / format<T>::tiles) * format<T>::round;
    struct lane_book book = { codebook_source<T>(a.tables), 1, 0 };
    float v[2][8];
    tile_values<T>(round, g, at % 4, tile % format<T>::tiles, &book, v);
    for (uint32_t r = 0; r < 2; r++) {
        uint32_t row = blockIdx.x * GROUP_ROWS + g + 8 * r;
        if (row < a.w.m) {
            uint4 *to = (uint4 *)(void *)(a.to + (uint64_t)row * a.w.k + 8 * at);
            *to = uint4{ ptx_f16x2(v[r][0], v[r][1]), ptx_f16x2(v[r][2], v[r][3]),
                         ptx_f16x2(v[r][4], v[r][5]), ptx_f16x2(v[r][6], v[r][7]) };
        }
    }
}

static __global__ void round_kernel(const float *x, uint32_t n_pairs, bool bf16, uint32_t *to)
{
    uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    if (i < n_pairs) {
        to[i] = bf16 ? ptx_bf16x2(x[2 * i], x[2 * i + 1]) : ptx_f16x2(x[2 * i], x[2 * i + 1]);
    }
}

static int widen(struct rival *r, const struct matrix *w, struct err *err)
{
    struct widen_args a = { device_matrix_of(w), r->c->tables, r->w };
    dim3 grid(blocks_of(w->m, GROUP_ROWS), blocks_of(w->k / 8, THREADS / 8));
    switch (w->dtype) {
#define CASE(type, ...)                                                                            \
    case DTYPE_##type:                                                                             \
        LAUNCH(widen_kernel<DTYPE_##type>, grid, THREADS, 0, r->c->stream, a);                     \
        break;
        TILE_TYPES(CASE)
#undef CASE
    default: /* 16 bits already */
        break;
    }
    return cuda_launched("widen", err);
}

static double now()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The best of some rounds; the first warms up. -1 with err. */
template <class F> static double best(struct rival *r, int rounds, F run, struct err *err)
{
    double least = 1e30;
    for (int i = 0; i <= rounds; i++) {
        double start = now();
        if (run() < 0 || cuda_finish(&r->c->base, err) < 0) {
            return -1;
        }
        double took = now() - start;
        least = i > 0 && took < least ? took : least;
    }
    return least;
}

int rival_open(struct backend *b, struct rival **rival, struct err *err)
{
    struct rival *r = (struct rival *)calloc(1, sizeof *r);
    if (!r) {
        return err_set(err, ERR_NO_MEMORY, "the rival");
    }
    r->c = cuda_of(b);
#if HEARTH_HAVE_CUBLAS
    if (cublasCreate(&r->blas) != CUBLAS_STATUS_SUCCESS ||
        cublasSetStream(r->blas, r->c->stream) != CUBLAS_STATUS_SUCCESS) {
        free(r);
        return err_set(err, ERR_FAILED, "cuBLAS does not start");
    }
#endif
    *rival = r;
    return 0;
}

void rival_close(struct rival **rival)
{
    struct rival *r = *rival;
    cuda_free(&r->c->base, r->w);
    cuda_free(&r->c->base, r->x);
#if HEARTH_HAVE_CUBLAS
    (void)cublasDestroy(r->blas);
#endif
    free(r);
    *rival = NULL;
}

int rival_multiply(struct rival *r, const struct matrix *w, const float *x, uint32_t n,
                   [[maybe_unused]] float *y, int rounds, struct rival_times *times,
                   struct err *err)
{
    bool half = w->dtype == DTYPE_F16 || w->dtype == DTYPE_BF16, bf16 = w->dtype == DTYPE_BF16;
    uint32_t n_pairs = n * (w->k / 2);
    if (cuda_grow(r->c, (void **)&r->w, &r->w_bytes, 2ull * w->m * w->k, err) < 0 ||
        cuda_grow(r->c, (void **)&r->x, &r->x_bytes, 4ull * n_pairs, err) < 0) {
        return -1;
    }
    times->widen = half ? 0.0 : best(r, rounds, [&] { return widen(r, w, err); }, err);
    LAUNCH(round_kernel, blocks_of(n_pairs, THREADS), THREADS, 0, r->c->stream, x, n_pairs, bf16,
           (uint32_t *)(void *)r->x);
    if (times->widen < 0 || cuda_finish(&r->c->base, err) < 0) {
        return -1;
    }
#if HEARTH_HAVE_CUBLAS
    const void *weights = half ? (const void *)w->data : r->w;
    cudaDataType_t type = bf16 ? CUDA_R_16BF : CUDA_R_16F;
    float one = 1.0f, zero = 0.0f;
    times->multiply = best(r, rounds, [&] {
        cublasStatus_t rc = cublasGemmEx(r->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)w->m, (int)n,
                                         (int)w->k, &one, weights, type, (int)w->k, r->x, type,
                                         (int)w->k, &zero, y, CUDA_R_32F, (int)w->m,
                                         CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
        return rc == CUBLAS_STATUS_SUCCESS
                   ? 0
                   : err_set(err, ERR_FAILED, "cuBLAS: GEMM of %u, %u, %u: %d", w->m, n, w->k, rc);
    }, err);
    return times->multiply < 0 ? -1 : 1;
#else
    return 0;
#endif
}
