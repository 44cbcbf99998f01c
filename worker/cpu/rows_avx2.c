/* The elementwise kernels for avx2; see rows.inc. */
#define ROWS_KERNELS rows_avx2
#include "worker/cpu/rows.inc"
