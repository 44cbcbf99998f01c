#include "loader/text/detok.h"

#include <stdlib.h>
#include <string.h>

#include "loader/text/grow.h"
#include "proto/utf8.h"

/* ---- all at once ---- */

/* The three passes of tidying. Each looks at its input and forward only, so it may write in place: writing never
 * overtakes reading. */

/* A space directly before one of ? ! . , goes. */
static size_t tidy_punctuation(uint8_t *text, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        bool drop = text[i] == ' ' && i + 1 < len && text[i + 1] && strchr("?!.,", text[i + 1]);
        if (!drop) {
            text[n++] = text[i];
        }
    }
    return n;
}

/* Both spaces around a lone apostrophe go; a space serves one apostrophe only. */
static size_t tidy_apostrophes(uint8_t *text, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (len - i > 2 && memcmp(text + i, " ' ", 3) == 0) {
            text[n++] = '\'';
            i += 2;
        } else {
            text[n++] = text[i];
        }
    }
    return n;
}

/* A space before 's 'm 're 've goes. */
static size_t tidy_contractions(uint8_t *text, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        const uint8_t *next = text + i + 1;
        size_t left = len - i - 1;
        bool drop = text[i] == ' ' &&
                    ((left >= 2 && (!memcmp(next, "'s", 2) || !memcmp(next, "'m", 2))) ||
                     (left >= 3 && (!memcmp(next, "'re", 3) || !memcmp(next, "'ve", 3))));
        if (!drop) {
            text[n++] = text[i];
        }
    }
    return n;
}

static int append(struct detok_text *out, const uint8_t *bytes, size_t len, struct err *err)
{
    if (len == 0) {
        return 0;
    }
    if (GROW(&out->text, &out->cap, out->len + len, err) < 0) {
        return -1;
    }
    memcpy(out->text + out->len, bytes, len);
    out->len += len;
    return 0;
}

int detok_all(const struct tokenizer *t, const int32_t *ids, size_t n, unsigned flags,
              struct detok_text *out, struct err *err)
{
    const struct vocab *v = tokenizer_vocab(t);
    bool strip = v->add_space_prefix;
    size_t begin = 0, before = out->len;
    if (flags & DETOK_REMOVE_SPECIAL) {
        if (v->add_bos && n > 0 && ids[0] == v->pieces.roles[ROLE_BOS]) {
            begin = 1;
            strip = false;
        }
        if (v->add_eos && n > begin && ids[n - 1] == v->pieces.roles[ROLE_EOS]) {
            n--;
        }
    }
    for (size_t i = begin; i < n; i++) {
        size_t len;
        if (ids[i] < 0 || (uint32_t)ids[i] >= v->n_tokens) {
            out->len = before;
            return err_set(err, ERR_BAD_INPUT, "token %d: ids are 0 to %u", ids[i],
                           v->n_tokens - 1);
        }
        const uint8_t *piece = tokenizer_piece(t, ids[i], flags & DETOK_UNPARSE_SPECIAL, &len);
        bool drop = strip && i == begin && len > 0 && piece[0] == ' ';
        if (append(out, piece + drop, len - drop, err) < 0) {
            out->len = before;
            return -1;
        }
    }
    if (v->clean_spaces && out->len > before) {
        uint8_t *text = out->text + before;
        size_t len = tidy_punctuation(text, out->len - before);
        len = tidy_apostrophes(text, len);
        out->len = before + tidy_contractions(text, len);
    }
    return 0;
}

/* ---- one by one ---- */

struct detok {
    const struct tokenizer *t; /* borrowed */
    bool special;
    size_t n_held;    /* bytes at the front of buffer that the next push begins with */
    size_t n_out;     /* bytes before them that the last call returned */
    uint8_t buffer[]; /* 3 held bytes and the longest piece */
};

#define HELD_MAX 3 /* of a character's four bytes */

struct detok *detok_create(const struct tokenizer *t, bool special, struct err *err)
{
    struct detok *d = calloc(1, sizeof *d + HELD_MAX + tokenizer_piece_max(t));
    if (!d) {
        err_set(err, ERR_NO_MEMORY, "a stream of tokens");
        return NULL;
    }
    d->t = t;
    d->special = special;
    return d;
}

void detok_destroy(struct detok **d)
{
    free(*d);
    *d = NULL;
}

const uint8_t *detok_push(struct detok *d, int32_t id, size_t *len)
{
    size_t piece_len;
    const uint8_t *piece = tokenizer_piece(d->t, id, d->special, &piece_len);
    memmove(d->buffer, d->buffer + d->n_out, d->n_held);
    memcpy(d->buffer + d->n_held, piece, piece_len);
    size_t total = d->n_held + piece_len;
    d->n_out = utf8_complete((const char *)d->buffer, total);
    d->n_held = total - d->n_out;
    *len = d->n_out;
    return d->buffer;
}

const uint8_t *detok_finish(struct detok *d, size_t *len)
{
    const uint8_t *held = d->buffer + d->n_out;
    *len = d->n_held;
    d->n_held = d->n_out = 0;
    return held;
}
