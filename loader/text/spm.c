/* SentencePiece's merging (tokenizers.md section 5): spaces become U+2581, then of all adjacent pairs whose
 * concatenation is a token the one with the best score is joined, leftmost first among equals, until none is left.
 * What is no token in the end is written as byte tokens. */
#include <stdbool.h>
#include <string.h>

#include "loader/text/algorithm.h"
#include "loader/text/heap.h"
#include "loader/text/unicode.h"

struct symbol {
    uint32_t start, len; /* bytes of the prepared text; len 0: joined to its left neighbour */
    uint32_t prev, next; /* neighbours, NONE at the ends */
};

#define NONE UINT32_MAX

static const uint8_t escaped[3] = { 0xe2, 0x96, 0x81 }; /* U+2581, a space in token texts */

/* Which bytes some token has directly before a U+2581. Where a word begins behind any other byte no join can ever
 * reach across, so words are joined one by one: the same ids, with a queue that fits the cache. */
struct borders {
    bool crossed[256];
};

struct spm {
    const struct vocab *vocab;
    const struct borders *borders;
    uint8_t *text; /* prepared */
    size_t len, cap;
    struct symbol *symbols;
    size_t n, symbols_cap;
    struct heap pairs; /* key: score, best first, then left symbol; value: joined length */
};

static void spm_destroy(void *state)
{
    free(state);
}

static int spm_create(void **state, struct vocab *v, const struct weights *w, struct err *err)
{
    (void)w;
    struct borders *b = calloc(1, sizeof *b);
    if (!b) {
        return err_set(err, ERR_NO_MEMORY, "a table of borders");
    }
    *state = b;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        size_t len;
        const uint8_t *text = vocab_text(v, id, &len);
        for (size_t i = 1; i + 3 <= len; i++) {
            if (memcmp(text + i, escaped, 3) == 0) {
                b->crossed[text[i - 1]] = true;
            }
        }
    }
    return 0;
}

static int prepare(struct spm *m, const struct fragment *f, struct err *err)
{
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

/* No join can reach from what ends before byte at to the symbol of len bytes there. */
static bool is_border(const struct spm *m, size_t at, size_t len)
{
    return at == 0 || (len == 3 && memcmp(m->text + at, escaped, 3) == 0 &&
                       !m->borders->crossed[m->text[at - 1]]);
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
        uint32_t i = (uint32_t)m->n, prev = is_border(m, at, len) ? NONE : i - 1;
        m->symbols[m->n++] = (struct symbol){ (uint32_t)at, (uint32_t)len, prev, NONE };
        if (prev != NONE) {
            m->symbols[prev].next = i;
        }
        at += len;
    }
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

/* Joins what stands between two borders, from its first symbol on; returns the next one's first through *first. */
static int join_pairs(struct spm *m, uint32_t *first, struct err *err)
{
    uint32_t i = *first;
    do {
        if (note_pair(m, i, err) < 0) {
            return -1;
        }
        i++;
    } while (i < m->n && m->symbols[i].prev != NONE);
    *first = i;
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
    for (size_t i = 0; i < m->n; i++) {
        const uint8_t *text = m->text + m->symbols[i].start;
        if (m->symbols[i].len == 0) {
            continue; /* joined to its left neighbour */
        }
        int32_t id = vocab_find(m->vocab, text, m->symbols[i].len);
        if (id >= 0) {
            if (ids_push(out, id, err) < 0) {
                return -1;
            }
            continue;
        }
        for (uint32_t j = 0; j < m->symbols[i].len; j++) {
            id = vocab_find_byte(m->vocab, text[j]);
            id = id >= 0 ? id : m->vocab->pieces.roles[ROLE_UNK];
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
    struct spm m = { .vocab = v, .borders = state };
    int result = prepare(&m, f, err);
    if (result == 0) {
        result = cut(&m, err);
    }
    for (uint32_t first = 0; result == 0 && first < m.n;) {
        result = join_pairs(&m, &first, err);
    }
    if (result == 0) {
        result = emit(&m, out, err);
    }
    free(m.text);
    free(m.symbols);
    heap_clear(&m.pairs);
    return result;
}

const struct algorithm algorithm_spm = { .create = spm_create,
                                         .destroy = spm_destroy,
                                         .encode = spm_encode };
