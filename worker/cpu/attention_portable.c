/* The attention kernels for portable; see attention_lanes.inc. */
#define LANES_KERNELS attention_portable
#include "worker/cpu/attention_lanes.inc"
