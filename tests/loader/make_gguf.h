/* Writes small GGUF files in memory, right or wrong: every field is put by hand, its place can be noted. */
#pragma once

#include <stdint.h>
#include <string.h>

#include "proto/weights.h"

struct maker {
    uint8_t data[1 << 16];
    size_t size;
};

static inline void make_bytes(struct maker *m, const void *data, size_t size)
{
    if (size <= sizeof m->data - m->size) {
        memcpy(m->data + m->size, data, size);
        m->size += size;
    }
}

static inline void make_u8(struct maker *m, uint8_t value)
{
    make_bytes(m, &value, sizeof value);
}

static inline void make_u32(struct maker *m, uint32_t value)
{
    make_bytes(m, &value, sizeof value);
}

static inline void make_u64(struct maker *m, uint64_t value)
{
    make_bytes(m, &value, sizeof value);
}

static inline void make_str(struct maker *m, const char *text)
{
    make_u64(m, strlen(text));
    make_bytes(m, text, strlen(text));
}

static inline void make_head(struct maker *m, uint64_t n_tensors, uint64_t n_kvs)
{
    m->size = 0;
    make_bytes(m, "GGUF", 4);
    make_u32(m, 3);
    make_u64(m, n_tensors);
    make_u64(m, n_kvs);
}

static inline void make_kv_u32(struct maker *m, const char *key, uint32_t value)
{
    make_str(m, key);
    make_u32(m, WEIGHTS_U32);
    make_u32(m, value);
}

static inline void make_kv_str(struct maker *m, const char *key, const char *value)
{
    make_str(m, key);
    make_u32(m, WEIGHTS_STRING);
    make_str(m, value);
}

static inline void make_tensor(struct maker *m, const char *name, uint32_t type, uint64_t ne0,
                               uint64_t ne1, uint64_t off)
{
    make_str(m, name);
    make_u32(m, 2);
    make_u64(m, ne0);
    make_u64(m, ne1);
    make_u32(m, type);
    make_u64(m, off);
}

static inline void make_pad(struct maker *m, size_t align)
{
    while (m->size % align) {
        make_u8(m, 0);
    }
}

/* n bytes of a pattern that tells places apart. */
static inline void make_data(struct maker *m, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        make_u8(m, (uint8_t)(seed >> 24));
    }
}

/* Numbers with a seed: the same in every run. */
static inline uint64_t make_random(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15ull;
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
