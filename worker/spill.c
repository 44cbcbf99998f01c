#include "worker/spill.h"

#include <stdio.h>
#include <string.h>

#include "proto/bytes.h"

#define NAME_BYTES 64
#define PAGE       4096u

/* The first of these that a layer has is the part. */
static const struct {
    enum spill_part part;
    const char *name;
} names[] = {
    { SPILL_ATTN_IN, "attn_qkv" }, { SPILL_ATTN_IN, "ssm_in" },
    { SPILL_ATTN_IN, "attn_q_b" }, { SPILL_ATTN_IN, "attn_q" },
    { SPILL_ATTN_OUT, "ssm_out" }, { SPILL_ATTN_OUT, "attn_output" },
    { SPILL_FFN_IN, "ffn_up" },    { SPILL_FFN_IN, "ffn_up_shexp" },
    { SPILL_FFN_OUT, "ffn_down" }, { SPILL_FFN_OUT, "ffn_down_shexp" },
};

#define N_NAMES (sizeof names / sizeof names[0])

static const struct weights_tensor *find(const struct weights *w, uint32_t layer, const char *part)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "blk.%u.%s.weight", layer, part);
    return weights_find_tensor(w, name);
}

/* The name that stands for a part of this layer, or NULL. */
static const char *name_of(const struct weights *w, uint32_t layer, enum spill_part part)
{
    for (size_t i = 0; i < N_NAMES; i++) {
        if (names[i].part == part && find(w, layer, names[i].name)) {
            return names[i].name;
        }
    }
    return NULL;
}

void spill_measure(const struct weights *w, struct backend *dry, uint32_t n_layers,
                   struct spill_sizes *sizes)
{
    *sizes = (struct spill_sizes){ .n_layers = n_layers };
    for (uint32_t i = 0; i < n_layers; i++) {
        for (enum spill_part p = 0; p < SPILL_N_PARTS; p++) {
            const char *name = name_of(w, i, p);
            const struct weights_tensor *t = name ? find(w, i, name) : NULL;
            struct matrix m;
            struct err err;
            uint64_t before = dry->used_bytes;
            if (t && t->ne[2] == 1 && dry->ops->import(dry, t, &m, &err) == 0) {
                sizes->bytes[i][p] = dry->used_bytes - before;
            }
            dry->used_bytes = before;
        }
    }
}

/* Takes from the parts of at most slot_bytes every so many that they sum up to a share of wanted / total, each in
 * the middle of its stretch: the last one's slot is filled again under what follows it. */
static uint64_t spread(const struct spill_sizes *sizes, uint64_t total, uint64_t wanted,
                       struct spill *s)
{
    uint64_t seen = 0, chosen = 0, unit = (total >> 20) + 1; /* products of byte counts: 64 bits */
    memset(s->streamed, 0, sizeof s->streamed);
    for (uint32_t i = 0; i < sizes->n_layers; i++) {
        for (enum spill_part p = 0; p < SPILL_N_PARTS; p++) {
            uint64_t bytes = sizes->bytes[i][p];
            if (bytes == 0 || bytes > s->slot_bytes) {
                continue;
            }
            seen += bytes;
            uint64_t due = seen < total ? seen / unit * wanted / (total / unit) : wanted;
            if (chosen + bytes / 2 <= due) {
                s->streamed[i] |= (uint8_t)(1u << p);
                chosen += bytes;
            }
        }
    }
    return chosen;
}

/* At least `wanted` bytes of parts that fit s->slot_bytes; 0: there are not so many. */
static uint64_t choose(const struct spill_sizes *sizes, uint64_t wanted, struct spill *s)
{
    uint64_t total = 0, least = UINT64_MAX, chosen = 0;
    for (uint32_t i = 0; i < sizes->n_layers * SPILL_N_PARTS; i++) {
        uint64_t bytes = sizes->bytes[i / SPILL_N_PARTS][i % SPILL_N_PARTS];
        if (bytes > 0 && bytes <= s->slot_bytes) {
            total += bytes;
            least = bytes < least ? bytes : least;
        }
    }
    for (uint64_t ask = wanted; total >= wanted && chosen < wanted; ask += least) {
        chosen = spread(sizes, total, ask < 2 * total ? ask : 2 * total, s);
    }
    return chosen;
}

/* The next larger size of a slot than `than`; 0: there is none. */
static uint64_t next_slot(const struct spill_sizes *sizes, uint64_t than)
{
    uint64_t next = 0;
    for (uint32_t i = 0; i < sizes->n_layers * SPILL_N_PARTS; i++) {
        uint64_t bytes = align_up(sizes->bytes[i / SPILL_N_PARTS][i % SPILL_N_PARTS], PAGE);
        if (bytes > than && (next == 0 || bytes < next)) {
            next = bytes;
        }
    }
    return next;
}

uint64_t spill_choose(const struct spill_sizes *sizes, uint64_t wanted, uint64_t most,
                      struct spill *s)
{
    uint64_t best = 0;
    struct spill at = *s, found = *s;
    for (at.slot_bytes = next_slot(sizes, 0); at.slot_bytes; /* a few sizes: parts are alike */
         at.slot_bytes = next_slot(sizes, at.slot_bytes)) {
        uint64_t need = wanted + BACKEND_SLOTS * at.slot_bytes;
        uint64_t bytes = need <= most ? choose(sizes, need, &at) : 0;
        if (bytes > 0 && bytes <= most && (best == 0 || bytes < best)) {
            best = bytes;
            found = at;
        }
    }
    *s = found;
    return best;
}

bool spill_streams(const struct spill *s, const struct weights *w, uint32_t layer, const char *part,
                   uint32_t *turn)
{
    *turn = 0;
    if (s->slot_bytes == 0 || layer >= MODEL_LAYERS_MAX || s->streamed[layer] == 0) {
        return false;
    }
    for (uint32_t i = 0; i < layer; i++) {
        *turn += (uint32_t)__builtin_popcount(s->streamed[i]);
    }
    for (enum spill_part p = 0; p < SPILL_N_PARTS; p++) {
        const char *name = s->streamed[layer] & (1u << p) ? name_of(w, layer, p) : NULL;
        if (name && strcmp(name, part) == 0) {
            return true;
        }
        *turn += name != NULL;
    }
    return false;
}
