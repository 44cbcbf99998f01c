/* The only inline PTX: each instruction under a name of ours. The emulation (tests/cuda/emulate.h) compiles the second
 * half instead, twins in plain C, so that what a kernel means can be checked without a GPU. */
#pragma once

#include <stdint.h>
#include <string.h>

#if !defined(HEARTH_EMULATED)

/* Bytes of {y, x} (y the upper four) picked by the nibbles of `s`, three bits each; the fourth: its sign, eight times. */
static __device__ __forceinline__ uint32_t ptx_prmt(uint32_t x, uint32_t y, uint32_t s)
{
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(y), "r"(s));
    return d;
}

/* d(16, 8) = c + a(16, 32) b(32, 8), signed bytes. With g = lane / 4, t = lane % 4: a[0] row g, a[1] row g + 8, both four k
 * of their own for each t, a[2] and a[3] the same rows, four more; b[0], b[1] the same k of column g. d and c: [0], [1]
 * row g, columns 2t and 2t + 1; [2], [3] row g + 8. */
static __device__ __forceinline__ void ptx_mma_k32(int d[4], const uint32_t a[4],
                                                   const uint32_t b[2], const int c[4])
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]),
          "r"(c[2]), "r"(c[3]));
}

/* d(16, 8) += a(16, 16) b(16, 8), f16 in, f32 out; lanes as above with two k to a register. */
static __device__ __forceinline__ void ptx_mma_f16(float d[4], const uint32_t a[4],
                                                   const uint32_t b[2])
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* The same of bf16. */
static __device__ __forceinline__ void ptx_mma_bf16(float d[4], const uint32_t a[4],
                                                    const uint32_t b[2])
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Asks for 16 (4) bytes from global to shared memory, both aligned; there after a wait. */
static __device__ __forceinline__ void ptx_copy16(void *shared, const void *global)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global)
                 : "memory");
}

static __device__ __forceinline__ void ptx_copy4(void *shared, const void *global)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global)
                 : "memory");
}

/* Closes a set of this thread's copies; waits until all but the newest N sets are there, for this thread. */
static __device__ __forceinline__ void ptx_copies_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> static __device__ __forceinline__ void ptx_copies_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* Launched early (LAUNCH_EARLY): nothing that other kernels wrote may be read before. */
static __device__ __forceinline__ void ptx_wait_for_others()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Those launched early may take what room is left; they wait for this kernel's end by themselves. */
static __device__ __forceinline__ void ptx_let_others_start()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

static __device__ __forceinline__ void ptx_aligned(const void *, uint32_t)
{
}

/* These bytes of global memory will be wanted: to L2. Both multiples of 16. One thread asks for all; before sm_90 nothing is asked. */
static __device__ __forceinline__ void ptx_ask(const void *p, uint32_t n_bytes)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(n_bytes));
#else
    (void)p;
    (void)n_bytes;
#endif
}

/* 4 and 2 aligned bytes through the read-only cache. */
static __device__ __forceinline__ uint32_t ptx_load32(const void *p)
{
    uint32_t v;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

static __device__ __forceinline__ uint32_t ptx_load16(const void *p)
{
    uint16_t v;
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
}

static __device__ __forceinline__ float ptx_f32_of_f16(uint32_t bits)
{
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((uint16_t)bits));
    return f;
}

/* To nearest even. */
static __device__ __forceinline__ uint16_t ptx_f16_of_f32(float f)
{
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(f));
    return bits;
}

/* Two at a time, the first in the lower half. */
static __device__ __forceinline__ uint32_t ptx_f16x2(float low, float high)
{
    uint32_t bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

static __device__ __forceinline__ uint32_t ptx_bf16x2(float low, float high)
{
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

#else

static inline void ptx_aligned(const void *p, uint32_t alignment)
{
    emulate_aligned(p, alignment);
}

/* So that what must not be touched is seen. */
static inline void ptx_ask(const void *p, uint32_t n_bytes)
{
    const volatile uint8_t *bytes = (const volatile uint8_t *)p;
    emulate_aligned(p, 16);
    emulate_aligned((const void *)(uintptr_t)n_bytes, 16);
    for (uint32_t i = 0; i < n_bytes; i += 16) {
        (void)bytes[i];
    }
}

static inline uint32_t ptx_prmt(uint32_t x, uint32_t y, uint32_t s)
{
    uint64_t both = (uint64_t)y << 32 | x;
    uint32_t d = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t pick = s >> (4 * i) & 15, byte = (uint32_t)(both >> (8 * (pick & 7))) & 255;
        d |= (pick & 8 ? (byte & 128 ? 255 : 0) : byte) << (8 * i);
    }
    return d;
}

static inline int ptx_dot4(uint32_t a, uint32_t b)
{
    int sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (int8_t)(a >> (8 * i)) * (int8_t)(b >> (8 * i));
    }
    return sum;
}

static inline void ptx_mma_k32(int d[4], const uint32_t a[4], const uint32_t b[2], const int c[4])
{
    const uint32_t mine[6] = { a[0], a[1], a[2], a[3], b[0], b[1] };
    const uint32_t(*all)[EMULATE_WORDS] = emulate_share(mine, 6);
    unsigned lane = emulate_lane(), g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; i++) {
        const uint32_t(*x)[EMULATE_WORDS] = all + 4 * (2 * t + i % 2);
        int sum = c[i];
        for (unsigned s = 0; s < 4; s++) {
            const uint32_t *row = all[4 * g + s];
            sum += ptx_dot4(row[i / 2], x[s][4]) + ptx_dot4(row[2 + i / 2], x[s][5]);
        }
        d[i] = sum;
    }
}

/* A device adds in its own order; nothing may lean on this one. */
template <class F>
static inline void twin_mma_k16(float d[4], const uint32_t a[4], const uint32_t b[2], F value)
{
    uint32_t words[EMULATE_WORDS] = { a[0], a[1], a[2], a[3], b[0], b[1] };
    const uint32_t(*all)[EMULATE_WORDS] = emulate_share(words, 6);
    unsigned lane = emulate_lane(), g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned s = 0; s < 4; s++) {
            const uint32_t *row = all[4 * g + s], *column = all[4 * (2 * t + i % 2) + s];
            const uint32_t pairs[2][2] = { { row[i / 2], column[4] },
                                           { row[2 + i / 2], column[5] } };
            for (unsigned p = 0; p < 2; p++) {
                for (unsigned h = 0; h < 2; h++) {
                    d[i] += value((uint16_t)(pairs[p][0] >> (16 * h))) *
                            value((uint16_t)(pairs[p][1] >> (16 * h)));
                }
            }
        }
    }
}

static inline void ptx_mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    twin_mma_k16(d, a, b, [](uint16_t bits) { return dtype_f32_of_f16(bits); });
}

static inline void ptx_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    twin_mma_k16(d, a, b, [](uint16_t bits) { return quant_f32_of_bf16(bits); });
}

/* Shared memory is written at the wait only, so that what is read too early is seen. */
static inline void ptx_copy16(void *shared, const void *global)
{
    emulate_copy(shared, global, 16);
}

static inline void ptx_copy4(void *shared, const void *global)
{
    emulate_copy(shared, global, 4);
}

static inline void ptx_copies_commit()
{
    emulate_copies_commit();
}

template <int N> static inline void ptx_copies_wait()
{
    emulate_copies_wait(N);
}

static inline void ptx_wait_for_others()
{
}

static inline void ptx_let_others_start()
{
}

static inline uint32_t ptx_load32(const void *p)
{
    uint32_t v;
    emulate_aligned(p, 4);
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t ptx_load16(const void *p)
{
    uint16_t v;
    emulate_aligned(p, 2);
    memcpy(&v, p, sizeof v);
    return v;
}

static inline float ptx_f32_of_f16(uint32_t bits)
{
    return dtype_f32_of_f16((uint16_t)bits);
}

static inline uint16_t ptx_f16_of_f32(float f)
{
    return dtype_f16_of_f32(f);
}

static inline uint32_t ptx_f16x2(float low, float high)
{
    return dtype_f16_of_f32(low) | (uint32_t)dtype_f16_of_f32(high) << 16;
}

static inline uint32_t ptx_bf16x2(float low, float high)
{
    return quant_bf16_of_f32(low) | (uint32_t)quant_bf16_of_f32(high) << 16;
}

#endif
