/* SentencePiece's merging (tokenizers.md section 5): spaces become U+2581, then of all adjacent pairs whose
 * concatenation is a token the one with the best score is joined, leftmost first among equals, until none is left.
 * What is no token in the end is written as byte tokens. */
#include <stdbool.h>
#include <string.h>

#include "loader/text/algorithm.h"
#include "loader/text/heap.h"
#include "loader/text/unicode.h"
#include "loader/text/windows.h"

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
    return (len == 3 && memcmp(m->text + at, escaped, 3) == 0 &&
            !m->borders->crossed[m->text[at - 1]]);
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
    heap_reset(&m->pairs);
    for (uint32_t i = 0; i < m->n; i++) {
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

/* Bytes of the character at byte at, by its lead alone: what follows is not checked. */
static size_t character(const struct spm *m, size_t at)
{
    size_t len = unicode_lead_len(m->text[at]);
    return len < m->len - at ? len : m->len - at;
}

static int join(void *work, size_t from, size_t to, struct err *err)
{
    struct spm *m = work;
    m->n = 0;
    for (size_t at = from, len; at < to; at += len) {
        uint32_t i = (uint32_t)m->n, prev = i ? i - 1 : NONE;
        len = character(m, at);
        if (GROW(&m->symbols, &m->symbols_cap, m->n + 1, err) < 0) {
            return -1;
        }
        m->symbols[m->n++] = (struct symbol){ (uint32_t)at, (uint32_t)len, prev, NONE };
        if (prev != NONE) {
            m->symbols[prev].next = i;
        }
    }
    return join_pairs(m, err);
}

static struct windows_symbol first(const void *work)
{
    const struct symbol *s = ((const struct spm *)work)->symbols;
    return (struct windows_symbol){ s->start, (size_t)s->start + s->len };
}

static int emit(void *work, size_t before, struct windows_symbol *last, struct ids *out,
                struct err *err)
{
    const struct spm *m = work;
    for (uint32_t i = 0; i != NONE && m->symbols[i].start < before; i = m->symbols[i].next) {
        const uint8_t *text = m->text + m->symbols[i].start;
        size_t len = m->symbols[i].len;
        *last = (struct windows_symbol){ m->symbols[i].start, m->symbols[i].start + len };
        int32_t id = vocab_find(m->vocab, text, len);
        if (id >= 0) {
            if (ids_push(out, id, err) < 0) {
                return -1;
            }
            continue;
        }
        for (size_t j = 0; j < len; j++) {
            id = vocab_find_byte(m->vocab, text[j]);
            id = id >= 0 ? id : m->vocab->pieces.roles[ROLE_UNK];
            if (id >= 0 && ids_push(out, id, err) < 0) {
                return -1;
            }
        }
    }
    return 0;
}

static const struct windows_ops ops = { .join = join, .first = first, .emit = emit };

/* Between two borders at a time. */
static int encode_words(struct spm *m, struct ids *out, struct err *err)
{
    for (size_t from = 0, to; from < m->len; from = to) {
        to = from;
        do {
            to += character(m, to);
        } while (to < m->len && !is_border(m, to, character(m, to)));
        if (windows_run(&ops, m, from, to, out, err) < 0) {
            return -1;
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
        result = encode_words(&m, out, err);
    }
    free(m.text);
    free(m.symbols);
    heap_clear(&m.pairs);
    return result;
}

const struct algorithm algorithm_spm = { .create = spm_create,
                                         .destroy = spm_destroy,
                                         .encode = spm_encode };
