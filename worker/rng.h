/* Random numbers without a state: a pure function of (seed, position, attempt), so a worker that goes on after another's
 * death, or in another batch, draws what would have been drawn. Any thread; header only.
 * Source: Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". */
#pragma once

#include <stdint.h>

/* Ten rounds over the counter with the key; out gets 128 random bits. */
static inline void rng_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0;
        uint64_t b = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* What a number is drawn for, so that two draws at one position are independent. */
enum rng_use {
    RNG_TOKEN,
    RNG_XTC, /* whether the top choices are excluded */
};

/* Uniform in [0, 1), 53 bits. position: where in its sequence the token will stand; attempt: 0, or a later try at the
 * same position. */
static inline double rng_uniform(uint64_t seed, uint64_t position, uint32_t attempt,
                                 enum rng_use use)
{
    uint32_t counter[4] = { (uint32_t)position, (uint32_t)(position >> 32), attempt,
                            (uint32_t)use };
    uint32_t key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };
    uint32_t out[4];
    rng_philox(counter, key, out);
    uint64_t bits = ((uint64_t)out[0] << 32 | out[1]) >> 11;
    return (double)bits * 0x1p-53;
}
