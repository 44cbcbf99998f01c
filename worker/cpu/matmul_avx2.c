/* The matmul kernels for AVX2, FMA and F16C; compiled with those, called only where the machine has them. */
#define LANES_KERNELS matmul_avx2
#define LANES_NAME    "avx2"
#include "worker/cpu/matmul_lanes.inc"
