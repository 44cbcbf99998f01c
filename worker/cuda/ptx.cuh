/* The only inline PTX: each instruction under a name of ours. The emulation (tests/cuda/emulate.h) compiles the second
 * half instead, twins in plain C, so that what a kernel means can be checked without a GPU. */
#pragma once

#include <stdint.h>
#include <string.h>

#if !defined(HEARTH_EMULATED)

/* c + sum of four products of signed bytes. */
static __device__ __forceinline__ int ptx_dp4a(uint32_t a, uint32_t b, int c)
{
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

/* Bytes of {y, x} (y the upper four) picked by the nibbles of `s`, three bits each. */
static __device__ __forceinline__ uint32_t ptx_prmt(uint32_t x, uint32_t y, uint32_t s)
{
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(y), "r"(s));
    return d;
}

/* c(16, 8) += a(16, 16) b(16, 8), signed bytes. With g = lane / 4, t = lane % 4: a[0] row g, a[1] row g + 8, both
 * k 4t..4t+3; b the same k of column g; c[0], c[1] row g columns 2t, 2t + 1, c[2], c[3] row g + 8. */
static __device__ __forceinline__ void ptx_mma_k16(int c[4], const uint32_t a[2], uint32_t b)
{
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
}

/* The same over k of 32: a[2], a[3] and b[1] are k 16 + 4t.. of the same rows and column. */
static __device__ __forceinline__ void ptx_mma_k32(int c[4], const uint32_t a[4],
                                                   const uint32_t b[2])
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* 16 aligned bytes of weights, read once: past the first cache. */
static __device__ __forceinline__ uint4 ptx_load_weights(const uint8_t *p)
{
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return v;
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

static __device__ __forceinline__ void ptx_prefetch(const void *p)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
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

#else

static inline int ptx_dp4a(uint32_t a, uint32_t b, int c)
{
    for (int i = 0; i < 4; i++) {
        c += (int8_t)(a >> (8 * i)) * (int8_t)(b >> (8 * i));
    }
    return c;
}

static inline uint32_t ptx_prmt(uint32_t x, uint32_t y, uint32_t s)
{
    uint64_t both = (uint64_t)y << 32 | x;
    uint32_t d = 0;
    for (int i = 0; i < 4; i++) {
        d |= (uint32_t)(both >> (8 * ((s >> (4 * i)) & 7)) & 255) << (8 * i);
    }
    return d;
}

static inline void ptx_mma_k16(int c[4], const uint32_t a[2], uint32_t b)
{
    const uint32_t mine[3] = { a[0], a[1], b };
    const uint32_t(*all)[EMULATE_WORDS] = emulate_share(mine, 3);
    unsigned lane = emulate_lane(), g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; i++) {
        unsigned column = 2 * t + i % 2;
        for (unsigned s = 0; s < 4; s++) {
            c[i] = ptx_dp4a(all[4 * g + s][i / 2], all[4 * column + s][2], c[i]);
        }
    }
}

static inline void ptx_mma_k32(int c[4], const uint32_t a[4], const uint32_t b[2])
{
    ptx_mma_k16(c, a, b[0]);
    ptx_mma_k16(c, a + 2, b[1]);
}

static inline uint4 ptx_load_weights(const uint8_t *p)
{
    uint4 v;
    emulate_aligned(p, 16);
    memcpy(&v, p, sizeof v);
    return v;
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

static inline void ptx_prefetch(const void *)
{
}

static inline float ptx_f32_of_f16(uint32_t bits)
{
    return dtype_f32_of_f16((uint16_t)bits);
}

static inline uint16_t ptx_f16_of_f32(float f)
{
    return dtype_f16_of_f32(f);
}

#endif
