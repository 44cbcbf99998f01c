/* The attention kernels for avx512; see attention_lanes.inc. */
#define LANES_KERNELS attention_avx512
#include "worker/cpu/attention_lanes.inc"
