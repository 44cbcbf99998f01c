/* WordPiece (tokenizers.md section 8): text is stripped of accents on composed letters, lower-cased and cut into
 * words; each word takes the longest token from the left again and again, or becomes the unknown token as a
 * whole. Token texts mark a word's start with U+2581 in front. */
#include <string.h>

#include "loader/text/algorithm.h"
#include "loader/text/trie.h"
#include "loader/text/unicode.h"

static void wpm_destroy(void *state)
{
    struct trie *trie = state;
    trie_destroy(&trie);
}

static int wpm_create(void **state, struct vocab *v, const struct weights *w, struct err *err)
{
    (void)w;
    *state = trie_of_vocab(v, TRIE_ALL_TYPES, err);
    return *state ? 0 : -1;
}

struct words {
    const struct trie *trie;
    const struct vocab *vocab;
    uint8_t *word; /* U+2581 and the word at hand */
    size_t len, cap;
    struct ids *out;
};

static int begin_word(struct words *w, struct err *err)
{
    if (GROW(&w->word, &w->cap, 3, err) < 0) {
        return -1;
    }
    memcpy(w->word, "\xe2\x96\x81", 3);
    w->len = 3;
    return 0;
}

/* Ids of the word at hand, if there is one, and the next begins. */
static int end_word(struct words *w, struct err *err)
{
    size_t before = w->out->n;
    for (size_t at = 0; w->len > 3 && at < w->len;) {
        size_t len = 0;
        uint32_t id = trie_longest(w->trie, w->word + at, w->len - at, &len);
        if (id == TEXTS_NONE) {
            int32_t unknown = w->vocab->pieces.roles[ROLE_UNK];
            w->out->n = before;
            if (unknown >= 0 && ids_push(w->out, unknown, err) < 0) {
                return -1;
            }
            break;
        }
        if (ids_push(w->out, (int32_t)id, err) < 0) {
            return -1;
        }
        at += len;
    }
    return begin_word(w, err);
}

static int push_code(struct words *w, uint32_t code, struct err *err)
{
    if (GROW(&w->word, &w->cap, w->len + 4, err) < 0) {
        return -1;
    }
    w->len += utf8_encode(code, w->word + w->len);
    return 0;
}

static bool is_ideograph(uint32_t code)
{
    static const uint32_t blocks[][2] = {
        { 0x4e00, 0x9fff },   { 0x3400, 0x4dbf },   { 0x20000, 0x2a6df }, { 0x2a700, 0x2b73f },
        { 0x2b740, 0x2b81f }, { 0x2b920, 0x2ceaf }, { 0xf900, 0xfaff },   { 0x2f800, 0x2fa1f },
    };
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        if (code >= blocks[i][0] && code <= blocks[i][1]) {
            return true;
        }
    }
    return false;
}

static int push_character(struct words *w, uint32_t code, struct err *err)
{
    code = unicode_decomposed_base(code);
    uint32_t set = UNICODE_BIT(unicode_category(code));
    if (set & UNICODE_SPACE) {
        return end_word(w, err);
    }
    if (code == 0 || code == UTF8_REPLACEMENT || set & UNICODE_CONTROL) {
        return 0;
    }
    bool alone = set & UNICODE_PUNCTUATION || (set & UNICODE_SYMBOL && code < 0x7f) ||
                 is_ideograph(code);
    if (alone && end_word(w, err) < 0) {
        return -1;
    }
    if (push_code(w, unicode_lowercase(code), err) < 0) {
        return -1;
    }
    return alone ? end_word(w, err) : 0;
}

static int wpm_encode(const void *state, const struct vocab *v, const struct fragment *f,
                      struct ids *out, struct err *err)
{
    struct words w = { .trie = state, .vocab = v, .out = out };
    int result = begin_word(&w, err);
    for (size_t at = 0; result == 0 && at < f->len;) {
        uint32_t code;
        at += utf8_decode(f->text + at, f->len - at, &code, NULL);
        result = push_character(&w, code, err);
    }
    if (result == 0) {
        result = end_word(&w, err);
    }
    free(w.word);
    return result;
}

const struct algorithm algorithm_wpm = { .create = wpm_create,
                                         .destroy = wpm_destroy,
                                         .encode = wpm_encode };
