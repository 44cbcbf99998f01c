/* The attention kernels for avx2; see attention_lanes.inc. */
#define LANES_KERNELS attention_avx2
#include "worker/cpu/attention_lanes.inc"
