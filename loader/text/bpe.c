/* Byte-pair merging by rank (tokenizers.md section 6): text is cut into words (pretoken.h), a word's bytes are
 * written in a 256-character alphabet, and of all adjacent pairs that have a merge rule the one with the lowest rank
 * is joined, leftmost first, until none is left. gemma4 does the same over the characters themselves.
 *
 * Symbols are numbers of vocab.texts: tokens by their ids, and pieces that only merges name behind them. So a rule is
 * a pair of numbers, and the loop never touches a string. */
#include <stdio.h>
#include <string.h>

#include "loader/text/algorithm.h"
#include "loader/text/heap.h"
#include "loader/text/pretoken.h"
#include "loader/text/unicode.h"
#include "loader/text/windows.h"
#include "proto/alphabet.h"

#define KEY_MERGES "tokenizer.ggml.merges"
#define MERGES_MAX (1u << 23) /* 18 times the longest list seen */
#define NONE       UINT32_MAX

struct rule {
    uint32_t left, right; /* symbols; left NONE: a free slot */
    uint32_t rank, joined;
};

struct bpe {
    struct rule *rules; /* hash table by (left, right) */
    size_t n_slots;     /* power of two */
    bool rank_by_id;    /* no merge list: a pair's rank is the id of its concatenation */
    uint32_t symbol_of_byte[256];
    int32_t id_of_byte[256]; /* token for a single byte of what is no token, or -1 */
};

/* ---- tables ---- */

static size_t rule_slot(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15ull;
    size_t slot = (h ^ h >> 32) & (b->n_slots - 1);
    while (b->rules[slot].left != NONE &&
           (b->rules[slot].left != left || b->rules[slot].right != right)) {
        slot = (slot + 1) & (b->n_slots - 1);
    }
    return slot;
}

static int add_rule(struct bpe *b, struct vocab *v, const char *text, size_t len, uint32_t rank,
                    struct err *err)
{
    const char *space = len > 1 ? memchr(text + 1, ' ', len - 1) : NULL;
    if (!space) {
        return 0; /* names no pair, so nothing ever matches it */
    }
    size_t left_len = (size_t)(space - text), right_len = len - left_len - 1;
    char joined[2 * VOCAB_TEXT_MAX];
    if (right_len == 0 || left_len > VOCAB_TEXT_MAX || right_len > VOCAB_TEXT_MAX) {
        return right_len == 0
                   ? 0
                   : err_set(err, ERR_BAD_FILE, "key %s: rule %u is longer than %u bytes",
                             KEY_MERGES, rank, VOCAB_TEXT_MAX);
    }
    memcpy(joined, text, left_len);
    memcpy(joined + left_len, space + 1, right_len);
    struct rule rule = { .rank = rank };
    if (texts_intern(&v->texts, text, left_len, &rule.left, err) < 0 ||
        texts_intern(&v->texts, space + 1, right_len, &rule.right, err) < 0 ||
        texts_intern(&v->texts, joined, len - 1, &rule.joined, err) < 0) {
        return -1;
    }
    struct rule *slot = &b->rules[rule_slot(b, rule.left, rule.right)];
    if (slot->left == NONE) { /* of equal rules the first counts */
        *slot = rule;
    }
    return 0;
}

static int load_rules(struct bpe *b, struct vocab *v, const struct weights *w, struct err *err)
{
    const struct weights_kv *merges = weights_find_kv(w, KEY_MERGES);
    if (!merges && v->pre && strcmp(v->pre->name, "kimi-k2") == 0) {
        b->rank_by_id = true;
        return 0;
    }
    if (!merges || merges->type != WEIGHTS_ARRAY || merges->elem != WEIGHTS_STRING) {
        return err_set(err, ERR_BAD_FILE, "key %s: missing or not an array of strings", KEY_MERGES);
    }
    if (merges->n > MERGES_MAX) {
        return err_set(err, ERR_BAD_FILE, "key %s: %llu rules; at most %u are possible", KEY_MERGES,
                       (unsigned long long)merges->n, MERGES_MAX);
    }
    b->n_slots = 64;
    while (b->n_slots < merges->n * 2) {
        b->n_slots *= 2;
    }
    b->rules = malloc(b->n_slots * sizeof *b->rules);
    if (!b->rules) {
        return err_set(err, ERR_NO_MEMORY, "%zu merge rules", (size_t)merges->n);
    }
    for (size_t i = 0; i < b->n_slots; i++) {
        b->rules[i].left = NONE;
    }
    for (uint32_t rank = 0; rank < merges->n; rank++) {
        const char *text;
        size_t len;
        if (!weights_kv_str(merges, rank, &text, &len)) {
            return err_set(err, ERR_BAD_FILE, "key %s: rule %u is no string", KEY_MERGES, rank);
        }
        if (add_rule(b, v, text, len, rank, err) < 0) {
            return -1;
        }
    }
    return 0;
}

static void bpe_destroy(void *state)
{
    struct bpe *b = state;
    if (b) {
        free(b->rules);
        free(b);
    }
}

static int bpe_create(void **state, struct vocab *v, const struct weights *w, struct err *err)
{
    struct bpe *b = calloc(1, sizeof *b);
    if (!b) {
        return err_set(err, ERR_NO_MEMORY, "merge rules");
    }
    *state = b;
    if (load_rules(b, v, w, err) < 0) {
        return -1;
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        uint8_t text[4];
        size_t len = utf8_encode(alphabet_code((uint8_t)byte), text);
        if (texts_intern(&v->texts, text, len, &b->symbol_of_byte[byte], err) < 0) {
            return -1;
        }
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        uint8_t text = (uint8_t)byte;
        b->id_of_byte[byte] = v->model == VOCAB_GEMMA4 ? vocab_find_byte(v, text)
                                                       : vocab_find(v, &text, 1);
    }
    return 0;
}

/* ---- one word ---- */

struct symbol {
    uint32_t number;     /* of vocab.texts; NONE: a character that no text names */
    uint32_t start;      /* its first byte in the word */
    uint32_t prev, next; /* neighbours, NONE at the ends */
};

/* What a pair was when it was noted: it counts only while it still stands so. */
struct work {
    const struct bpe *b;
    const struct vocab *v;
    struct splitter splitter;
    uint8_t *word; /* bytes of the word at hand */
    size_t word_len, word_cap;
    struct symbol *symbols; /* of bytes [.., joined_to) */
    size_t n, symbols_cap, joined_to;
    struct heap pairs; /* key: rank, then left symbol; value: numbers of both */
};

/* Rank and result of joining two symbols; false when no rule does. */
static bool find_rule(const struct bpe *b, const struct vocab *v, uint32_t left, uint32_t right,
                      uint32_t *rank, uint32_t *joined)
{
    if (left == NONE || right == NONE) {
        return false;
    }
    if (!b->rank_by_id) {
        const struct rule *rule = &b->rules[rule_slot(b, left, right)];
        *rank = rule->rank;
        *joined = rule->joined;
        return rule->left != NONE;
    }
    uint8_t text[2 * VOCAB_TEXT_MAX];
    size_t left_len, right_len;
    const uint8_t *left_text = texts_get(&v->texts, left, &left_len);
    const uint8_t *right_text = texts_get(&v->texts, right, &right_len);
    if (left_len + right_len > v->text_len_max) {
        return false;
    }
    memcpy(text, left_text, left_len);
    memcpy(text + left_len, right_text, right_len);
    int32_t id = vocab_find(v, text, left_len + right_len);
    *rank = *joined = (uint32_t)id;
    return id >= 0;
}

static int note_pair(struct work *k, uint32_t left, struct err *err)
{
    uint32_t right = left == NONE ? NONE : k->symbols[left].next;
    uint32_t rank, joined;
    if (right == NONE ||
        !find_rule(k->b, k->v, k->symbols[left].number, k->symbols[right].number, &rank, &joined)) {
        return 0;
    }
    uint64_t key = (uint64_t)rank << 32 | left;
    uint64_t pair = (uint64_t)k->symbols[left].number << 32 | k->symbols[right].number;
    return heap_push(&k->pairs, key, pair, err);
}

static int join_pairs(struct work *k, struct err *err)
{
    heap_reset(&k->pairs);
    for (uint32_t i = 0; i + 1 < k->n; i++) {
        if (note_pair(k, i, err) < 0) {
            return -1;
        }
    }
    while (k->pairs.n) {
        struct heap_item pair = heap_pop(&k->pairs);
        uint32_t at = (uint32_t)pair.key, joined, rank;
        struct symbol *left = &k->symbols[at];
        /* A symbol that was joined to its left keeps the number NONE, which no pair has. */
        if (left->number != pair.value >> 32 || left->next == NONE) {
            continue;
        }
        struct symbol *right = &k->symbols[left->next];
        if (right->number != (uint32_t)pair.value ||
            !find_rule(k->b, k->v, left->number, right->number, &rank, &joined)) {
            continue;
        }
        left->number = joined;
        left->next = right->next;
        right->number = NONE;
        if (left->next != NONE) {
            k->symbols[left->next].prev = at;
        }
        if (note_pair(k, left->prev, err) < 0 || note_pair(k, at, err) < 0) {
            return -1;
        }
    }
    return 0;
}

/* A symbol that is no token goes out byte by byte; bytes without a token are lost, as vocabularies
 * that lack them intend. */
static int emit_bytes(const struct work *k, const uint8_t *text, size_t len, struct ids *out,
                      struct err *err)
{
    for (size_t i = 0; i < len; i++) {
        int32_t id = k->b->id_of_byte[text[i]];
        if (id >= 0 && ids_push(out, id, err) < 0) {
            return -1;
        }
    }
    return 0;
}

static struct windows_symbol span_of(const struct work *k, const struct symbol *symbol)
{
    size_t end = symbol->next == NONE ? k->joined_to : k->symbols[symbol->next].start;
    return (struct windows_symbol){ symbol->start, end };
}

static struct windows_symbol first(const void *work)
{
    const struct work *k = work;
    return span_of(k, &k->symbols[0]);
}

static int emit(void *work, size_t before, struct windows_symbol *last, struct ids *out,
                struct err *err)
{
    const struct work *k = work;
    for (uint32_t i = 0; i != NONE && k->symbols[i].start < before; i = k->symbols[i].next) {
        const struct symbol *symbol = &k->symbols[i];
        *last = span_of(k, symbol);
        if (symbol->number < k->v->n_tokens) {
            if (ids_push(out, (int32_t)symbol->number, err) < 0) {
                return -1;
            }
            continue;
        }
        size_t len = last->end - last->start;
        const uint8_t *text = k->word + symbol->start;
        if (symbol->number != NONE) {
            text = texts_get(&k->v->texts, symbol->number, &len);
        }
        if (emit_bytes(k, text, len, out, err) < 0) {
            return -1;
        }
    }
    return 0;
}

static int push_symbol(struct work *k, uint32_t number, size_t start, struct err *err)
{
    if (GROW(&k->symbols, &k->symbols_cap, k->n + 1, err) < 0) {
        return -1;
    }
    k->symbols[k->n] = (struct symbol){ .number = number,
                                        .start = (uint32_t)start,
                                        .prev = k->n ? (uint32_t)k->n - 1 : NONE,
                                        .next = NONE };
    if (k->n) {
        k->symbols[k->n - 1].next = (uint32_t)k->n;
    }
    k->n++;
    return 0;
}

static int join(void *work, size_t from, size_t to, struct err *err)
{
    struct work *k = work;
    k->n = 0;
    for (k->joined_to = from; k->joined_to < to;) {
        size_t len = 1, at = k->joined_to;
        uint32_t number = k->b->symbol_of_byte[k->word[at]];
        if (k->v->model == VOCAB_GEMMA4) {
            uint32_t code;
            len = utf8_decode(k->word + at, k->word_len - at, &code, NULL);
            number = texts_find(&k->v->texts, k->word + at, len);
        }
        if (push_symbol(k, number, at, err) < 0) {
            return -1;
        }
        k->joined_to += len;
    }
    return join_pairs(k, err);
}

static const struct windows_ops ops = { .join = join, .first = first, .emit = emit };

/* The whole word as one token, or -1. */
static int32_t find_word(const struct work *k)
{
    if (k->v->model == VOCAB_GEMMA4) {
        return k->word[0] == '\n' ? vocab_find(k->v, k->word, k->word_len) : -1;
    }
    if (!k->v->ignore_merges || k->word_len > k->v->text_len_max) {
        return -1;
    }
    uint8_t text[2 * VOCAB_TEXT_MAX]; /* the alphabet has at most two bytes a character */
    size_t len = 0;
    for (size_t i = 0; i < k->word_len; i++) {
        len += utf8_encode(alphabet_code(k->word[i]), text + len);
    }
    return vocab_find(k->v, text, len);
}

static int encode_word(struct work *k, struct ids *out, struct err *err)
{
    int32_t id = find_word(k);
    if (id >= 0) {
        return ids_push(out, id, err);
    }
    return windows_run(&ops, k, 0, k->word_len, out, err);
}

static int encode_words(struct work *k, struct ids *out, struct err *err)
{
    for (size_t start = 0; start < k->splitter.n;) {
        size_t end = splitter_piece_end(&k->splitter, start);
        k->word_len = 0;
        if (GROW(&k->word, &k->word_cap, (end - start) * 4, err) < 0) {
            return -1;
        }
        for (size_t i = start; i < end; i++) {
            uint32_t code = k->splitter.codes[i];
            if (k->v->escape_spaces && code == ' ') {
                code = 0x2581;
            }
            k->word_len += utf8_encode(code, k->word + k->word_len);
        }
        if (encode_word(k, out, err) < 0) {
            return -1;
        }
        start = end;
    }
    return 0;
}

static int bpe_encode(const void *state, const struct vocab *v, const struct fragment *f,
                      struct ids *out, struct err *err)
{
    struct work k = { .b = state, .v = v };
    int result = splitter_run(&k.splitter, v->pre, v->pre_reference, f->text, f->len, err);
    if (result == 0) {
        result = encode_words(&k, out, err);
    }
    splitter_clear(&k.splitter);
    free(k.word);
    free(k.symbols);
    heap_clear(&k.pairs);
    return result;
}

const struct algorithm algorithm_bpe = { .create = bpe_create,
                                         .destroy = bpe_destroy,
                                         .encode = bpe_encode };
