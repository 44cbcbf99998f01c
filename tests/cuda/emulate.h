/* A CUDA device on the host: blocks one after another, the threads of a block as fibres that meet at barriers and
 * shuffles; __shared__ is static, the runtime's calls are malloc and memcpy. Put before each .cu file of worker/cuda
 * (-include), which is then compiled as C++17 by the host's compiler. Catches wrong indices, missing guards, divergent
 * barriers and misaligned loads; says nothing about speed, and little about races, as fibres switch at
 * barriers only (every other launch runs them from last to first). */
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <math.h>

#define HEARTH_EMULATED 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__      static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};

struct uint4 {
    uint32_t x, y, z, w;
};

struct emulate_place {
    dim3 thread, block, block_dim, grid_dim;
};

/* Where the running fibre stands. */
extern struct emulate_place emulate_place;
#define threadIdx emulate_place.thread
#define blockIdx  emulate_place.block
#define blockDim  emulate_place.block_dim
#define gridDim   emulate_place.grid_dim

#define EMULATE_WORDS 4

void *emulate_shared();
unsigned emulate_lane();
/* Gives `n` words to the warp and gets every lane's; all live lanes must call. Valid until the lane's next but one. */
const uint32_t (*emulate_share(const uint32_t *words, unsigned n))[EMULATE_WORDS];
/* Aborts when p is not aligned: a GPU would trap. */
void emulate_aligned(const void *p, size_t alignment);
void __syncthreads();
void __syncwarp();

template <class T> T __shfl_xor_sync(unsigned, T v, int with)
{
    uint32_t words[EMULATE_WORDS] = { 0, 0, 0, 0 };
    static_assert(sizeof v <= sizeof words, "too wide");
    memcpy(words, &v, sizeof v);
    memcpy(&v, emulate_share(words, EMULATE_WORDS)[emulate_lane() ^ (unsigned)with], sizeof v);
    return v;
}

/* ---- the runtime ---- */

typedef int cudaError_t;
typedef struct emulate_stream *cudaStream_t;

/* Runs the kernel; aborts with a line when threads wait for each other in vain. */
void emulate_launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                    const std::function<void()> &run);

enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorNoDevice = 100 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum { cudaHostAllocDefault = 0, cudaHostRegisterMapped = 2 };

const char *cudaGetErrorString(cudaError_t rc);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaMalloc(void **p, size_t size);
cudaError_t cudaFree(void *p);
cudaError_t cudaHostAlloc(void **p, size_t size, unsigned flags);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaHostRegister(void *p, size_t size, unsigned flags);
cudaError_t cudaHostUnregister(void *p);
cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
