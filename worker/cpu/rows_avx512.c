/* The elementwise kernels for avx512; see rows.inc. */
#define ROWS_KERNELS rows_avx512
#include "worker/cpu/rows.inc"
