/* The matmul kernels for AVX-512 with VNNI, VBMI and BITALG; compiled with those, called only where the machine has them. */
#define LANES_KERNELS matmul_avx512
#define LANES_NAME    "avx512"
#include "worker/cpu/matmul_lanes.inc"
