/* What bounds integer products on this machine: 8-bit multiply-adds between registers, nothing else. For `hearth bench` and
 * tests/bench/matmul.c, which say how near the kernels come. The caller's thread and its team. */
#pragma once

#include "worker/cpu/team.h"

/* One round of the loop on all members: thousand millions of multiply-adds a second; 0 without AVX-512 VNNI. */
double cpu_ceiling_gmacs(struct team *team, unsigned n_threads);
