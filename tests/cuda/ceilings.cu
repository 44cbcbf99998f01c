/* What this device can do at best, as plain programs reach it: the figures that all others are a share of.
 *   gpu-ceilings [cuda:0] [small]
 * One line each: name, value, unit. copy counts reads and writes; read only reads; up and down are pinned host memory; int8
 * is a kernel of nothing but m16n8k32 on registers; bf16 is cuBLAS where the build found it, 8192 x 8192 x 8192. */
#include "worker/cuda/check.cuh"
#include "worker/cuda/ptx.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#if HEARTH_HAVE_CUBLAS
#include <cublas_v2.h>
#endif

#define ROUNDS  7
#define THREADS 256
#define CHAINS  8   /* independent sums of a warp, so that latency hides */

static struct err err;

static void need(cudaError_t rc, const char *what)
{
    if (cuda_check(rc, what, &err) < 0) {
        fprintf(stderr, "gpu-ceilings: %s\n", err.text);
        exit(1);
    }
}

static double now()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The best of some rounds: seconds. The first warms up. */
template <class F> static double best(cudaStream_t stream, F run)
{
    double least = 1e30;
    for (int i = 0; i <= ROUNDS; i++) {
        double start = now();
        run();
        need(cudaStreamSynchronize(stream), "a round");
        double took = now() - start;
        least = i > 0 && took < least ? took : least;
    }
    return least;
}

static void say(const char *name, double value, const char *unit)
{
    printf("%s\t%.2f\t%s\n", name, value, unit);
    fflush(stdout);
}

static __global__ void read_kernel(const struct uint4 *from, size_t n, uint32_t *out)
{
    uint32_t sum = 0;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (size_t)gridDim.x * THREADS) {
        struct uint4 v = from[i];
        sum ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x9e3779b9u) { /* never, but the compiler does not know */
        *out = sum;
    }
}

static __global__ void int8_kernel(uint32_t n, int *out)
{
    int d[CHAINS][4] = {};
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; i++) {
        a[i] = threadIdx.x * 0x01010101u + (uint32_t)i;
        b[i % 2] = threadIdx.x + (uint32_t)i;
    }
    for (uint32_t i = 0; i < n; i++) {
        for (int c = 0; c < CHAINS; c++) {
            ptx_mma_k32(d[c], a, b, d[c]);
        }
    }
    int sum = 0;
    for (int c = 0; c < CHAINS; c++) {
        sum += d[c][0] + d[c][1] + d[c][2] + d[c][3];
    }
    out[(size_t)blockIdx.x * THREADS + threadIdx.x] = sum;
}

#if HEARTH_HAVE_CUBLAS
static void bf16(cudaStream_t stream, int n)
{
    cublasHandle_t blas;
    void *m[3];
    float one = 1.0f, zero = 0.0f;
    for (void *&p : m) {
        need(cudaMalloc(&p, 2ull * n * n), "a matrix");
        need(cudaMemsetAsync(p, 0x3c, 2ull * n * n, stream), "a matrix");
    }
    if (cublasCreate(&blas) != CUBLAS_STATUS_SUCCESS) {
        return;
    }
    cublasSetStream(blas, stream);
    double took = best(stream, [=] {
        cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, m[0], CUDA_R_16BF, n, m[1],
                     CUDA_R_16BF, n, &zero, m[2], CUDA_R_16BF, n, CUBLAS_COMPUTE_32F,
                     CUBLAS_GEMM_DEFAULT);
    });
    say("bf16", 2.0 * n * n * n / took / 1e12, "TFLOP/s");
    cublasDestroy(blas);
    for (void *p : m) {
        need(cudaFree(p), "a matrix");
    }
}
#endif

int main(int argc, char **argv)
{
    bool small = argc > 1 && strcmp(argv[argc - 1], "small") == 0;
    size_t bytes = small ? 1u << 16 : (size_t)2 << 30;
    uint32_t n_blocks = small ? 2 : 2048, n_mma = small ? 4 : 20000;
    const char *device = argc > 1 && !small ? argv[1] : "cuda:0";
    cudaStream_t stream;
    uint8_t *a, *b, *host;
    int *sums;
    need(cudaSetDevice(strlen(device) > 5 ? atoi(device + 5) : 0), device);
    need(cudaStreamCreate(&stream), "a stream");
    need(cudaMalloc((void **)&a, bytes), "memory");
    need(cudaMalloc((void **)&b, bytes), "memory");
    need(cudaMalloc((void **)&sums, (size_t)n_blocks * THREADS * sizeof *sums), "memory");
    need(cudaHostAlloc((void **)&host, bytes, cudaHostAllocDefault), "pinned memory");
    memset(host, 1, bytes);
    need(cudaMemsetAsync(a, 1, bytes, stream), "memory");
    say("copy", 2.0 * (double)bytes / 1e9 / best(stream, [=] {
            need(cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, stream), "copy");
        }), "GB/s");
    say("read", (double)bytes / 1e9 / best(stream, [=] {
            LAUNCH(read_kernel, n_blocks, THREADS, 0, stream, (const struct uint4 *)a,
                   bytes / sizeof(struct uint4), (uint32_t *)sums);
        }), "GB/s");
    say("up", (double)bytes / 1e9 / best(stream, [=] {
            need(cudaMemcpyAsync(a, host, bytes, cudaMemcpyHostToDevice, stream), "up");
        }), "GB/s");
    say("down", (double)bytes / 1e9 / best(stream, [=] {
            need(cudaMemcpyAsync(host, a, bytes, cudaMemcpyDeviceToHost, stream), "down");
        }), "GB/s");
    double products = 2.0 * 16 * 8 * 32 * CHAINS * n_mma * (double)n_blocks * (THREADS / WARP);
    say("int8", products / 1e12 / best(stream, [=] {
            LAUNCH(int8_kernel, n_blocks, THREADS, 0, stream, n_mma, sums);
        }), "TOP/s");
#if HEARTH_HAVE_CUBLAS
    bf16(stream, small ? 256 : 8192);
#endif
    need(cudaFree(a), "memory");
    need(cudaFree(b), "memory");
    need(cudaFree(sums), "memory");
    need(cudaFreeHost(host), "pinned memory");
    need(cudaStreamDestroy(stream), "a stream");
    return 0;
}
