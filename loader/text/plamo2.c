/* PLaMo-2's tokenizer (tokenizers.md section 10): the tokens whose rounded scores have the best sum, found from the
 * text's end; a character that no token covers costs much and becomes byte tokens. */
#include <math.h>
#include <string.h>

#include "loader/text/algorithm.h"
#include "loader/text/trie.h"
#include "loader/text/unicode.h"

#define SCORE_SCALE    10000.0
#define UNCOVERED_COST 10000000 /* in scaled units, for one character */

static void plamo2_destroy(void *state)
{
    struct trie *trie = state;
    trie_destroy(&trie);
}

/* All tokens but those for single bytes. */
static int plamo2_create(void **state, struct vocab *v, const struct weights *w, struct err *err)
{
    (void)w;
    *state = trie_of_vocab(v, TRIE_TYPE(TOKEN_NORMAL), err);
    return *state ? 0 : -1;
}

struct best {
    int64_t score; /* of the best way from here to the end */
    uint32_t len;  /* bytes of its first token */
    int32_t id;    /* -1: one uncovered character */
};

static struct best best_at(const struct trie *trie, const struct vocab *v, const uint8_t *text,
                           size_t len, size_t at, const struct best *best)
{
    size_t one = unicode_lead_len(text[at]);
    one = one < len - at ? one : len - at;
    struct best here = { best[at + one].score - UNCOVERED_COST, (uint32_t)one, -1 };
    struct trie_walk walk = trie_begin(trie);
    for (size_t i = at; i < len && trie_step(&walk, text[i]); i++) {
        uint32_t id = trie_here(&walk);
        bool inside = i + 1 < len && (text[i + 1] & 0xc0) == 0x80;
        if (id == TEXTS_NONE || inside) {
            continue; /* a token that ends inside a character leads to no place that has a best way */
        }
        /* Scores beyond what 16 million of them may sum up to are as good as the bound. */
        double scaled = fmin(fmax((double)v->scores[id] * SCORE_SCALE, -1e11), 1e11);
        int64_t score = best[i + 1].score + llround(scaled);
        if (score > here.score) {
            here = (struct best){ score, (uint32_t)(i + 1 - at), (int32_t)id };
        }
    }
    return here;
}

/* U+FEFF at the front is no text. Bytes that are no UTF-8 become U+FFFD. */
static int prepare(const struct fragment *f, uint8_t **text, size_t *len, struct err *err)
{
    *text = malloc(f->len * 3);
    *len = 0;
    if (!*text) {
        return err_set(err, ERR_NO_MEMORY, "a text of %zu bytes", f->len);
    }
    for (size_t at = 0; at < f->len;) {
        uint32_t code;
        size_t used = utf8_decode(f->text + at, f->len - at, &code, NULL);
        if (at > 0 || code != 0xfeff) {
            *len += utf8_encode(code, *text + *len);
        }
        at += used;
    }
    return 0;
}

static int plamo2_encode(const void *state, const struct vocab *v, const struct fragment *f,
                         struct ids *out, struct err *err)
{
    uint8_t *text;
    size_t len;
    if (prepare(f, &text, &len, err) < 0) {
        return -1;
    }
    struct best *best = malloc((len + 1) * sizeof *best);
    int result = best ? 0 : err_set(err, ERR_NO_MEMORY, "a text of %zu bytes", len);
    if (best) {
        best[len] = (struct best){ 0 };
    }
    for (size_t at = len; best && at-- > 0;) {
        if ((text[at] & 0xc0) != 0x80) { /* where a character starts */
            best[at] = best_at(state, v, text, len, at, best);
        }
    }
    for (size_t at = 0; result == 0 && at < len; at += best[at].len) {
        if (best[at].id >= 0) {
            result = ids_push(out, best[at].id, err);
            continue;
        }
        for (size_t i = 0; result == 0 && i < best[at].len; i++) {
            int32_t id = vocab_find_byte(v, text[at + i]);
            id = id >= 0 ? id : v->pieces.roles[ROLE_UNK];
            result = id >= 0 ? ids_push(out, id, err) : 0;
        }
    }
    free(best);
    free(text);
    return result;
}

const struct algorithm algorithm_plamo2 = { .create = plamo2_create,
                                            .destroy = plamo2_destroy,
                                            .encode = plamo2_encode };
