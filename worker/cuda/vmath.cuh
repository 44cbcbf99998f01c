/* exp, tanh and sigmoid by the CPU's own steps (cpu/vmath.h), so that both backends give the same bits there. */
#pragma once

#include "worker/cuda/check.cuh"

#define VMATH_INLINE static __host__ __device__ __forceinline__
#include "worker/cpu/vmath.h"
