/* SentencePiece's merging (tokenizers.md section 5): spaces become U+2581, then of all adjacent pairs whose
 * concatenation is a token the one with the best score is joined, leftmost first among equals, until none is left.
 * What is no token in the end is written as byte tokens. */
#include <string.h>

#include "loader/text/algorithm.h"
#include "loader/text/heap.h"
#include "loader/text/unicode.h"

struct symbol {
    uint32_t start, len; /* bytes of the prepared text; len 0: joined to its left neighbour */
    uint32_t prev, next; /* neighbours, NONE at the ends */
};

#define NONE UINT32_MAX

struct spm {
    const struct vocab *vocab;
    uint8_t *text; /* prepared */
    size_t len, cap;
    struct symbol *symbols;
    size_t n, symbols_cap;
    struct heap pairs; /* key: score, best first, then left symbol; value: joined length */
};

static int prepare(struct spm *m, const struct fragment *f, struct err *err)
{
    static const uint8_t escaped[3] = { 0xe2, 0x96, 0x81 };
    size_t spaces = m->vocab->add_space_prefix && f->after_special;
    bool prefix = spaces;
    for (size_t i = 0; i < f->len; i++) {
        spaces += f->text[i] == ' ';
    }
    m->len = f->len + 3 * spaces - (spaces - prefix);
    if (GROW(&m->text, &m->cap, m->len, err) < 0) {
        return -1;
    }
    uint8_t *out = m->text;
    if (prefix) {
        memcpy(out, escaped, 3);
        out += 3;
    }
    for (size_t i = 0; i < f->len; i++) {
        if (f->text[i] == ' ') {
            memcpy(out, escaped, 3);
            out += 3;
        } else {
            *out++ = f->text[i];
        }
    }
    return 0;
}

/* One symbol for each character, its length by the lead byte alone: what follows is not checked. */
static int cut(struct spm *m, struct err *err)
{
    for (size_t at = 0; at < m->len;) {
        size_t len = unicode_lead_len(m->text[at]);
        len = len < m->len - at ? len : m->len - at;
        if (GROW(&m->symbols, &m->symbols_cap, m->n + 1, err) < 0) {
            return -1;
        }
        m->symbols[m->n] = (struct symbol){ .start = (uint32_t)at,
                                            .len = (uint32_t)len,
                                            .prev = m->n ? (uint32_t)m->n - 1 : NONE,
                                            .next = (uint32_t)m->n + 1 };
        m->n++;
        at += len;
    }
    m->symbols[m->n - 1].next = NONE;
    return 0;
}

/* The float's bits in an order that is descending by value; -0 and 0 are equal. */
static uint32_t descending(float score)
{
    uint32_t bits;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

/* Notes the pair of left and its right neighbour when it is a token. */
static int note_pair(struct spm *m, uint32_t left, struct err *err)
{
    if (left == NONE || m->symbols[left].next == NONE) {
        return 0;
    }
    size_t len = (size_t)m->symbols[left].len + m->symbols[m->symbols[left].next].len;
    if (len > m->vocab->text_len_max) {
        return 0;
    }
    int32_t id = vocab_find(m->vocab, m->text + m->symbols[left].start, len);
    if (id < 0) {
        return 0;
    }
    uint64_t key = (uint64_t)descending(m->vocab->scores[id]) << 32 | left;
    return heap_push(&m->pairs, key, len, err);
}

static int join_pairs(struct spm *m, struct err *err)
{
    for (uint32_t i = 0; i + 1 < m->n; i++) {
        if (note_pair(m, i, err) < 0) {
            return -1;
        }
    }
    while (m->pairs.n) {
        struct heap_item pair = heap_pop(&m->pairs);
        struct symbol *left = &m->symbols[(uint32_t)pair.key];
        if (left->len == 0 || left->next == NONE) {
            continue;
        }
        /* Symbols only grow, so a pair that changed since is longer than noted. */
        struct symbol *right = &m->symbols[left->next];
        if ((uint64_t)left->len + right->len != pair.value) {
            continue;
        }
        left->len += right->len;
        left->next = right->next;
        right->len = 0;
        if (left->next != NONE) {
            m->symbols[left->next].prev = (uint32_t)pair.key;
        }
        if (note_pair(m, left->prev, err) < 0 || note_pair(m, (uint32_t)pair.key, err) < 0) {
            return -1;
        }
    }
    return 0;
}

static int emit(const struct spm *m, struct ids *out, struct err *err)
{
    for (uint32_t i = 0; i != NONE; i = m->symbols[i].next) {
        const uint8_t *text = m->text + m->symbols[i].start;
        int32_t id = vocab_find(m->vocab, text, m->symbols[i].len);
        if (id >= 0) {
            if (ids_push(out, id, err) < 0) {
                return -1;
            }
            continue;
        }
        for (uint32_t j = 0; j < m->symbols[i].len; j++) {
            id = vocab_find_byte(m->vocab, text[j]);
            id = id >= 0 ? id : m->vocab->special[VOCAB_UNK];
            if (id >= 0 && ids_push(out, id, err) < 0) {
                return -1;
            }
        }
    }
    return 0;
}

static int spm_encode(const void *state, const struct vocab *v, const struct fragment *f,
                      struct ids *out, struct err *err)
{
    (void)state;
    struct spm m = { .vocab = v };
    int result = -1;
    if (prepare(&m, f, err) == 0 && cut(&m, err) == 0 && join_pairs(&m, err) == 0) {
        result = emit(&m, out, err);
    }
    free(m.text);
    free(m.symbols);
    heap_clear(&m.pairs);
    return result;
}

const struct algorithm algorithm_spm = { .encode = spm_encode };
