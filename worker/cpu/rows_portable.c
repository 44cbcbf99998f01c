/* The elementwise kernels for portable; see rows.inc. */
#define ROWS_KERNELS rows_portable
#include "worker/cpu/rows.inc"
