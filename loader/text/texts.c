#include "loader/text/texts.h"

#include <stdlib.h>
#include <string.h>

#include "loader/text/grow.h"

/* FNV-1a over 64 bits with a final mix, because slots use the low bits. */
static uint64_t hash_bytes(const void *text, size_t len)
{
    const uint8_t *p = text;
    uint64_t h = 0xcbf29ce484222325ull ^ len;
    for (size_t i = 0; i < len; i++) {
        h = (h ^ p[i]) * 0x100000001b3ull;
    }
    h ^= h >> 32;
    h *= 0x9e3779b97f4a7c15ull;
    return h ^ h >> 29;
}

/* The slot that holds text, or the free one where it belongs. */
static size_t find_slot(const struct texts *t, const void *text, size_t len)
{
    size_t slot = hash_bytes(text, len) & (t->n_slots - 1);
    while (t->slots[slot]) {
        size_t have_len;
        const uint8_t *have = texts_get(t, t->slots[slot] - 1, &have_len);
        if (have_len == len && (len == 0 || memcmp(have, text, len) == 0)) {
            break;
        }
        slot = (slot + 1) & (t->n_slots - 1);
    }
    return slot;
}

static int grow_index(struct texts *t, struct err *err)
{
    if ((t->n + 1) * 2 <= t->n_slots) {
        return 0;
    }
    struct texts grown = *t;
    grown.n_slots = t->n_slots ? t->n_slots * 2 : 64;
    grown.slots = calloc(grown.n_slots, sizeof *grown.slots);
    if (!grown.slots) {
        return err_set(err, ERR_NO_MEMORY, "an index of %zu texts", grown.n_slots);
    }
    for (uint32_t i = 0; i < t->n; i++) {
        size_t len;
        const uint8_t *text = texts_get(t, i, &len);
        size_t slot = find_slot(&grown, text, len);
        if (!grown.slots[slot]) {
            grown.slots[slot] = i + 1;
        }
    }
    free(t->slots);
    *t = grown;
    return 0;
}

int texts_append(struct texts *t, const void *text, size_t len, struct err *err)
{
    if (len > UINT32_MAX - t->pool_len || t->n >= UINT32_MAX - 1) {
        return err_set(err, ERR_BAD_FILE, "texts are longer than 4 GiB in all");
    }
    if (grow_index(t, err) < 0 || GROW(&t->pool, &t->pool_cap, t->pool_len + len + 1, err) < 0 ||
        GROW(&t->ends, &t->ends_cap, t->n + 1, err) < 0) {
        return -1;
    }
    size_t slot = find_slot(t, text, len);
    if (len) {
        memcpy(t->pool + t->pool_len, text, len);
    }
    t->pool_len += len;
    t->ends[t->n++] = (uint32_t)t->pool_len;
    if (!t->slots[slot]) {
        t->slots[slot] = (uint32_t)t->n;
    }
    return 0;
}

int texts_intern(struct texts *t, const void *text, size_t len, uint32_t *number, struct err *err)
{
    *number = texts_find(t, text, len);
    if (*number != TEXTS_NONE) {
        return 0;
    }
    *number = (uint32_t)t->n;
    return texts_append(t, text, len, err);
}

uint32_t texts_find(const struct texts *t, const void *text, size_t len)
{
    if (!t->n_slots) {
        return TEXTS_NONE;
    }
    uint32_t found = t->slots[find_slot(t, text, len)];
    return found ? found - 1 : TEXTS_NONE;
}

void texts_clear(struct texts *t)
{
    free(t->pool);
    free(t->ends);
    free(t->slots);
    *t = (struct texts){ 0 };
}
