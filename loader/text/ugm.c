/* Unigram (tokenizers.md section 9): text is normalised by the model's character map, then cut into the tokens
 * whose scores have the best sum (Viterbi over the bytes, from character to character). */
#include <float.h>
#include <string.h>

#include "loader/text/algorithm.h"
#include "loader/text/charsmap.h"
#include "loader/text/trie.h"
#include "loader/text/unicode.h"

#define UNKNOWN_PENALTY 10.0 /* below the least score of a normal token */

struct ugm {
    struct charsmap map;
    struct trie *trie; /* normal, user-defined and unused tokens */
    double unknown_score;
};

static void ugm_destroy(void *state)
{
    struct ugm *u = state;
    if (u) {
        trie_destroy(&u->trie);
        free(u);
    }
}

static int ugm_create(void **state, struct vocab *v, const struct weights *w, struct err *err)
{
    (void)w;
    struct ugm *u = calloc(1, sizeof *u);
    double least = FLT_MAX;
    *state = u;
    if (!u) {
        return err_set(err, ERR_NO_MEMORY, "a vocabulary of %u tokens", v->n_tokens);
    }
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        if (v->pieces.types[id] == TOKEN_NORMAL && v->scores[id] < least) {
            least = v->scores[id];
        }
    }
    u->unknown_score = least - UNKNOWN_PENALTY;
    if (v->charsmap && charsmap_init(&u->map, v->charsmap, v->charsmap_len, err) < 0) {
        return -1;
    }
    u->trie = trie_of_vocab(
        v, TRIE_TYPE(TOKEN_NORMAL) | TRIE_TYPE(TOKEN_USER_DEFINED) | TRIE_TYPE(TOKEN_UNUSED), err);
    return u->trie ? 0 : -1;
}

/* ---- normalising ---- */

struct normal {
    const struct vocab *vocab;
    uint8_t *text;
    size_t len, cap;
    bool in_word, marked; /* within a stretch without spaces; a U+2581 stands already */
};

static int push_mark(struct normal *n, struct err *err)
{
    if (GROW(&n->text, &n->cap, n->len + 3, err) < 0) {
        return -1;
    }
    memcpy(n->text + n->len, "\xe2\x96\x81", 3);
    n->len += 3;
    n->marked = true;
    return 0;
}

static int push_bytes(struct normal *n, const uint8_t *bytes, size_t len, struct err *err)
{
    for (size_t i = 0; i < len; i++) {
        if (bytes[i] == ' ') {
            n->in_word = false;
            if (!n->vocab->remove_extra_whitespaces && push_mark(n, err) < 0) {
                return -1;
            }
            continue;
        }
        if (!n->in_word) {
            n->in_word = true;
            bool first = n->vocab->add_space_prefix && !n->marked;
            if ((first || n->vocab->remove_extra_whitespaces) && push_mark(n, err) < 0) {
                return -1;
            }
        }
        if (GROW(&n->text, &n->cap, n->len + 1, err) < 0) {
            return -1;
        }
        n->text[n->len++] = bytes[i];
    }
    return 0;
}

/* The reference also copies what only begins like a user-defined token as it is. Whole ones are cut out before
 * this, and no known vocabulary has one whose start the map would change. */
static int normalise(struct normal *n, const struct ugm *u, const struct fragment *f,
                     struct err *err)
{
    for (size_t at = 0; at < f->len;) {
        const uint8_t *bytes;
        size_t bytes_len;
        uint8_t character[4];
        size_t used = charsmap_match(&u->map, f->text + at, f->len - at, &bytes, &bytes_len);
        if (used == 0) {
            uint32_t code;
            used = utf8_decode(f->text + at, f->len - at, &code, NULL);
            bytes = character;
            bytes_len = utf8_encode(code, character);
        }
        if (push_bytes(n, bytes, bytes_len, err) < 0) {
            return -1;
        }
        at += used;
    }
    return 0;
}

/* ---- the best path ---- */

struct best {
    double score;  /* of the best way to reach this byte */
    uint32_t from; /* where its last token starts */
    int32_t id;    /* that token; -1: not reached */
};

/* Every token that starts at byte at, shortest first, then the unknown one. */
static void extend(const struct ugm *u, const struct vocab *v, const uint8_t *text, size_t len,
                   size_t at, struct best *best)
{
    size_t one = unicode_lead_len(text[at]);
    one = one < len - at ? one : len - at;
    bool covered = false;
    struct trie_walk walk = trie_begin(u->trie);
    for (size_t i = at; i < len && trie_step(&walk, text[i]); i++) {
        uint32_t id = trie_here(&walk);
        if (id == TEXTS_NONE) {
            continue;
        }
        covered = covered || i + 1 - at == one;
        double score = v->pieces.types[id] == TOKEN_USER_DEFINED ? 0.0 : (double)v->scores[id];
        score += best[at].score;
        if (best[i + 1].id < 0 || score > best[i + 1].score) {
            best[i + 1] = (struct best){ score, (uint32_t)at, (int32_t)id };
        }
    }
    double score = best[at].score + u->unknown_score;
    if (!covered && (best[at + one].id < 0 || score > best[at + one].score)) {
        best[at + one] = (struct best){ score, (uint32_t)at, v->pieces.roles[ROLE_UNK] };
    }
}

static int best_path(const struct ugm *u, const struct vocab *v, const uint8_t *text, size_t len,
                     struct ids *out, struct err *err)
{
    struct best *best = malloc((len + 1) * sizeof *best);
    if (!best) {
        return err_set(err, ERR_NO_MEMORY, "a text of %zu bytes", len);
    }
    for (size_t i = 0; i <= len; i++) {
        best[i] = (struct best){ .id = -1 };
    }
    for (size_t at = 0; at < len;) {
        extend(u, v, text, len, at, best);
        size_t one = unicode_lead_len(text[at]);
        at += one < len - at ? one : len - at;
    }
    size_t before = out->n;
    int32_t unknown = v->pieces.roles[ROLE_UNK];
    int result = 0;
    for (size_t at = len; at > 0 && result == 0; at = best[at].from) {
        bool again = best[at].id == unknown && out->n > before && out->ids[out->n - 1] == unknown;
        if (!again) {
            result = ids_push(out, best[at].id, err);
        }
    }
    for (size_t i = before, j = out->n; i + 1 < j; i++) {
        int32_t swap = out->ids[i];
        out->ids[i] = out->ids[--j];
        out->ids[j] = swap;
    }
    free(best);
    return result;
}

static int ugm_encode(const void *state, const struct vocab *v, const struct fragment *f,
                      struct ids *out, struct err *err)
{
    struct normal normal = { .vocab = v };
    int result = normalise(&normal, state, f, err);
    if (result == 0 && normal.len > 0) {
        result = best_path(state, v, normal.text, normal.len, out, err);
    }
    free(normal.text);
    return result;
}

const struct algorithm algorithm_ugm = { .create = ugm_create,
                                         .destroy = ugm_destroy,
                                         .encode = ugm_encode };
