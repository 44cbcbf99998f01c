/* The matmul kernels in plain C. */
#define LANES_KERNELS matmul_portable
#define LANES_NAME    "portable"
#include "worker/cpu/matmul_lanes.inc"
