/* The language of the reference device (worker/reference): every token follows from all tokens before it by a hash, so that a
 * stream can be checked from its own content (hearth chaos --reference). A link is kept for every position, where a model would keep its keys and
 * values; the next link reads the last one and an older one, so state that was lost, mixed up or half written tells another story.
 *
 *   link(0) = mix(CHAIN_SEED, id(0))          link(p) = mix(link(p-1) ^ rotl(link(link(p-1) mod p), 32), id(p))
 *   id(p+1) = CHAIN_FIRST + link(p) mod CHAIN_IDS */
#pragma once

#include <stdint.h>

#define CHAIN_SEED  0x9e3779b97f4a7c15ull
#define CHAIN_FIRST 16u  /* the ids before it are special ones in many vocabularies */
#define CHAIN_IDS   128u /* different tokens: bytes and short pieces everywhere */

/* Which older link position p > 0 reads, below p; `last` is the link of p - 1. */
static inline uint64_t chain_older(uint64_t last, uint64_t p)
{
    return last % p;
}

/* The link of a position. For the first one last is CHAIN_SEED and older is 0. */
static inline uint64_t chain_link(uint64_t last, uint64_t older, int32_t id)
{
    uint64_t x = last ^ (older << 32 | older >> 32);
    x += 0x9e3779b97f4a7c15ull * ((uint64_t)(uint32_t)id + 1);
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull; /* splitmix64's finish */
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static inline int32_t chain_id(uint64_t link)
{
    return (int32_t)(CHAIN_FIRST + link % CHAIN_IDS);
}
