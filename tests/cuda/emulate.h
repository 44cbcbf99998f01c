/* A CUDA device on the host: blocks one after another, the threads of a block as fibres that meet at barriers and
 * shuffles; __shared__ is static, the runtime's calls are in emulate_runtime.h. Put before each .cu file of worker/cuda
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
#define __grid_constant__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};

struct uint2 {
    uint32_t x, y;
};

struct uint4 {
    uint32_t x, y, z, w;
};

struct emulate_place {
    dim3 thread, block, block_dim, grid_dim;
};

/* Where the running fibre stands. */
extern struct emulate_place emulate_place;
inline dim3 &threadIdx = emulate_place.thread, &blockIdx = emulate_place.block,
            &blockDim = emulate_place.block_dim, &gridDim = emulate_place.grid_dim;

#define EMULATE_WORDS 6

void *emulate_shared();
unsigned emulate_lane();
/* Gives `n` words to the warp and gets every lane's; all live lanes must call. Valid until the lane's next but one. */
const uint32_t (*emulate_share(const uint32_t *words, unsigned n))[EMULATE_WORDS];
/* Aborts when p is not aligned: a GPU would trap. */
void emulate_aligned(const void *p, size_t alignment);
/* Copies that take place when all but the newest n sets of this thread are waited for. */
void emulate_copy(void *to, const void *from, size_t size_bytes);
void emulate_copies_commit();
void emulate_copies_wait(unsigned n);
void __syncthreads();
void __syncwarp();

template <class T> T __shfl_xor_sync(unsigned, T v, int with)
{
    uint32_t words[EMULATE_WORDS] = { 0 };
    static_assert(sizeof v <= sizeof words, "too wide");
    memcpy(words, &v, sizeof v);
    memcpy(&v, emulate_share(words, EMULATE_WORDS)[emulate_lane() ^ (unsigned)with], sizeof v);
    return v;
}

template <class T> T __shfl_sync(unsigned, T v, unsigned from)
{
    uint32_t words[EMULATE_WORDS] = { 0 };
    static_assert(sizeof v <= sizeof words, "too wide");
    memcpy(words, &v, sizeof v);
    memcpy(&v, emulate_share(words, EMULATE_WORDS)[from % 32], sizeof v);
    return v;
}

/* One fibre at a time. */
template <class T> T atomicAdd(T *to, T v)
{
    T old = *to;
    *to = old + v;
    return old;
}

/* Runs the kernel; aborts with a line when threads wait for each other in vain. */
void emulate_run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &run);

#include "tests/cuda/emulate_runtime.h"
