/* Sums and maxima in one order, fixed by the shape alone: pairs half a warp apart, then a quarter, and so on; warps of a
 * block in their order. Every lane of the warp (thread of the block) must call and gets the result. */
#pragma once

#include "worker/cuda/check.cuh"

#define ALL_LANES 0xffffffffu

template <class T> static __device__ __forceinline__ T warp_sum(T v)
{
    for (int off = WARP / 2; off > 0; off /= 2) {
        v += __shfl_xor_sync(ALL_LANES, v, off);
    }
    return v;
}

template <class T> static __device__ __forceinline__ T warp_max(T v)
{
    for (int off = WARP / 2; off > 0; off /= 2) {
        T o = __shfl_xor_sync(ALL_LANES, v, off);
        v = o > v ? o : v;
    }
    return v;
}

/* slots: shared, one for each warp. Ends with the slots free again. */
static __device__ __forceinline__ double block_sum(double v, double *slots)
{
    unsigned warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP;
    v = warp_sum(v);
    if (threadIdx.x % WARP == 0) {
        slots[warp] = v;
    }
    __syncthreads();
    v = slots[0];
    for (unsigned i = 1; i < n_warps; i++) {
        v += slots[i];
    }
    __syncthreads();
    return v;
}
