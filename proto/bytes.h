/* A bounded cursor over untrusted bytes, and overflow-checked sizes. Header only; any thread.
 * A read past the end sets `failed` and gives zero: check once, after a group of reads. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct bytes {
    const uint8_t *data; /* borrowed */
    size_t size;
    size_t pos; /* offset of the next byte; never beyond size */
    bool failed;
};

static inline struct bytes bytes_of(const void *data, size_t size)
{
    return (struct bytes){ .data = data, .size = size };
}

static inline size_t bytes_left(const struct bytes *b)
{
    return b->size - b->pos;
}

/* The next n bytes, borrowed, or NULL past the end. */
static inline const uint8_t *bytes_take(struct bytes *b, size_t n)
{
    if (b->failed || n > b->size - b->pos) {
        b->failed = true;
        return NULL;
    }
    const uint8_t *p = b->data + b->pos;
    b->pos += n;
    return p;
}

#define BYTES_READ(name, type)                                                                     \
    static inline type bytes_##name(struct bytes *b)                                               \
    {                                                                                              \
        type value = 0;                                                                            \
        const uint8_t *p = bytes_take(b, sizeof value);                                            \
        if (p) {                                                                                   \
            memcpy(&value, p, sizeof value);                                                       \
        }                                                                                          \
        return value;                                                                              \
    }
BYTES_READ(u8, uint8_t)
BYTES_READ(u16, uint16_t)
BYTES_READ(u32, uint32_t)
BYTES_READ(u64, uint64_t)
#undef BYTES_READ

/* a * b or a + b into *out; false when it does not fit. */
static inline bool size_mul(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool size_add(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

/* value rounded up to a multiple of align (a power of two); the caller knows it fits. */
static inline uint64_t align_up(uint64_t value, uint64_t align)
{
    return (value + align - 1) & ~(align - 1);
}
