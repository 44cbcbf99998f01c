/* What every .cu file begins with: the contract's headers as C, launches (launch.cuh) and calls of the runtime as errors of ours.
 * tests/cuda compiles the same sources with emulate.h put before them instead of the runtime. */
#pragma once

#if !defined(HEARTH_EMULATED)
#include <cuda_runtime.h>
#endif

/* In C++ a function hides the constructor of a struct of its name (quant_info): legal, and meant. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
extern "C" {
#include "proto/dtype.h"
#include "proto/err.h"
#include "worker/backend.h"
#include "worker/cuda/cuda.h"
#include "worker/quant.h"
}
#pragma GCC diagnostic pop

#include "worker/cuda/launch.cuh"

/* Shared memory whose size the launch says. */
#if !defined(HEARTH_EMULATED)
#define DYNAMIC_SHARED(type, name)                                                                 \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];                                \
    type *name = (type *)dynamic_shared
#else
#define DYNAMIC_SHARED(type, name) type *name = (type *)emulate_shared()
#endif

/* Says in one line what the device said, and ends the process: after such an error nothing that this process asks of the
 * device works, and nothing in the device's memory is believed. cuda.cu */
[[noreturn]] void cuda_die(cudaError_t rc, const char *what);

/* Whether rc is the device's end for this process. */
bool cuda_is_fatal(cudaError_t rc);

/* 0, or -1 with the runtime's words behind ours. Does not return when the device is lost. */
static inline int cuda_check(cudaError_t rc, const char *what, struct err *err)
{
    if (rc == cudaSuccess) {
        return 0;
    }
    if (cuda_is_fatal(rc)) {
        cuda_die(rc, what);
    }
    return err_set(err, rc == cudaErrorMemoryAllocation ? ERR_NO_MEMORY : ERR_FAILED,
                   "cuda: %s: %s", what, cudaGetErrorString(rc));
}

/* What the launches since the last check have to say; waits for nothing. */
static inline int cuda_launched(const char *what, struct err *err)
{
    return cuda_check(cudaGetLastError(), what, err);
}

/* Once before a kernel asks for more than 48 KiB of shared memory. */
static inline int cuda_allow_shared(const void *kernel, size_t shared_bytes, struct err *err)
{
    return shared_bytes <= 48u << 10
               ? 0
               : cuda_check(cudaFuncSetAttribute(kernel,
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 (int)shared_bytes),
                            "shared memory", err);
}

static inline uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

static inline unsigned blocks_of(uint64_t n, unsigned size)
{
    return (unsigned)((n + size - 1) / size);
}

#define WARP 32
