#include "worker/cpu/ceiling.h"

#include <stdint.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TURNS 200000 /* of one item of the loop */
#define LANES 12     /* sums at a time, each of 64 multiply-adds: enough to hide one's latency */

#if defined(__x86_64__)
static volatile uint64_t sink; /* keeps the loop's result alive */

__attribute__((target("avx512f,avx512vnni"))) static uint64_t multiply(void)
{
    __m512i s[LANES], a = _mm512_set1_epi32(0x01020304), b = _mm512_set1_epi32(0x05060708);
#pragma GCC unroll 12
    for (int i = 0; i < LANES; i++) {
        s[i] = _mm512_set1_epi32(i);
    }
    for (int t = 0; t < TURNS; t++) {
#pragma GCC unroll 12
        for (int i = 0; i < LANES; i++) {
            s[i] = _mm512_dpbusd_epi32(s[i], a, b);
            __asm__ volatile(""
                             : "+v"(s[i])); /* else twelve equal sums would be one, or two calls */
        }
    }
#pragma GCC unroll 12
    for (int i = 1; i < LANES; i++) {
        s[0] = _mm512_add_epi32(s[0], s[i]);
    }
    return (uint64_t)_mm512_reduce_add_epi64(s[0]);
}

static void multiply_items(void *arg, size_t begin, size_t end, unsigned member)
{
    (void)arg;
    (void)member;
    for (size_t i = begin; i < end; i++) {
        sink = multiply();
    }
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double cpu_ceiling_gmacs(struct team *team, unsigned n_threads)
{
    if (!__builtin_cpu_supports("avx512vnni")) {
        return 0;
    }
    double start = now_s();
    team_run(team, multiply_items, NULL, 2 * (size_t)n_threads, 1);
    return 2.0 * n_threads * TURNS * LANES * 64 / (now_s() - start) / 1e9;
}
#else
double cpu_ceiling_gmacs(struct team *team, unsigned n_threads)
{
    (void)team;
    (void)n_threads;
    return 0;
}
#endif
