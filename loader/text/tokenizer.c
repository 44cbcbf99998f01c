#include "loader/text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "loader/text/algorithm.h"
#include "loader/text/partition.h"
#include "loader/text/unicode.h"

static const struct algorithm *const algorithms[VOCAB_N_MODELS] = {
    [VOCAB_SPM] = &algorithm_spm,       [VOCAB_BPE] = &algorithm_bpe,
    [VOCAB_GEMMA4] = &algorithm_bpe,    [VOCAB_WPM] = &algorithm_wpm,
    [VOCAB_UGM] = &algorithm_ugm,       [VOCAB_RWKV] = &algorithm_rwkv,
    [VOCAB_PLAMO2] = &algorithm_plamo2,
};

struct tokenizer {
    struct vocab vocab;
    const struct algorithm *algorithm;
    void *state; /* the algorithm's tables */
    struct partition partition;
};

/* ---- life ---- */

/* The token of a line's end, for penalties. */
static int find_newline(struct tokenizer *t, struct err *err)
{
    int32_t id = -1;
    if (t->vocab.model == VOCAB_SPM) {
        id = vocab_find_byte(&t->vocab, '\n');
    } else if (t->vocab.model != VOCAB_WPM) {
        struct ids ids = { 0 };
        if (tokenizer_encode(t, "\n", 1, 0, &ids, err) < 0) {
            return -1;
        }
        id = ids.n ? ids.ids[0] : -1;
        ids_clear(&ids);
    }
    t->vocab.pieces.roles[ROLE_NEWLINE] = id >= 0 ? id : t->vocab.pieces.roles[ROLE_PAD];
    return 0;
}

struct tokenizer *tokenizer_create(const struct weights *w, const char *pre, struct err *err)
{
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        err_set(err, ERR_NO_MEMORY, "a tokenizer");
        return NULL;
    }
    if (vocab_load(&t->vocab, w, pre, err) < 0) {
        goto fail;
    }
    t->algorithm = algorithms[t->vocab.model];
    if (t->algorithm->create && t->algorithm->create(&t->state, &t->vocab, w, err) < 0) {
        goto fail;
    }
    if (partition_init(&t->partition, &t->vocab, err) < 0 || find_newline(t, err) < 0) {
        goto fail;
    }
    return t;
fail:
    tokenizer_destroy(&t);
    return NULL;
}

void tokenizer_destroy(struct tokenizer **t)
{
    if (*t) {
        if ((*t)->algorithm && (*t)->algorithm->destroy) {
            (*t)->algorithm->destroy((*t)->state);
        }
        partition_clear(&(*t)->partition);
        vocab_clear(&(*t)->vocab);
        free(*t);
        *t = NULL;
    }
}

/* ---- encoding ---- */

static int encode_fragments(const struct tokenizer *t, const uint8_t *text, size_t len,
                            const struct cuts *cuts, struct ids *out, struct err *err)
{
    size_t at = 0;
    for (size_t i = 0; i <= cuts->n; i++) {
        size_t end = i < cuts->n ? cuts->cuts[i].start : len;
        struct fragment f = { .text = text + at, .len = end - at, .after_special = true };
        if (f.len && t->algorithm->encode(t->state, &t->vocab, &f, out, err) < 0) {
            return -1;
        }
        if (i < cuts->n) {
            if (ids_push(out, cuts->cuts[i].id, err) < 0) {
                return -1;
            }
            at = cuts->cuts[i].end;
        }
    }
    return 0;
}

static int push_special(const struct tokenizer *t, enum token_role special, bool wanted,
                        struct ids *out, struct err *err)
{
    int32_t id = t->vocab.pieces.roles[special];
    return wanted && id >= 0 ? ids_push(out, id, err) : 0;
}

/* The special tokens of each span on its own, as its flags allow: none is put together across a border. */
static int cut_spans(const struct tokenizer *t, const uint8_t *text,
                     const struct tokenizer_span *spans, size_t n_spans, struct cuts *cuts,
                     struct err *err)
{
    for (size_t i = 0; i < n_spans; i++) {
        size_t first = cuts->n;
        struct cuts own = { 0 };
        int result = partition_run(&t->partition, &t->vocab, text + spans[i].off, spans[i].len,
                                   spans[i].parse_special, &own, err);
        if (result == 0) {
            result = GROW(&cuts->cuts, &cuts->cap, cuts->n + own.n, err);
        }
        for (size_t k = 0; result == 0 && k < own.n; k++) {
            struct cut cut = own.cuts[k];
            cut.start += spans[i].off;
            cut.end += spans[i].off;
            cuts->cuts[first + k] = cut;
            cuts->n++;
        }
        free(own.cuts);
        if (result < 0) {
            return -1;
        }
    }
    return 0;
}

int tokenizer_encode_spans(const struct tokenizer *t, const char *text, size_t len,
                           const struct tokenizer_span *spans, size_t n_spans, bool add_special,
                           struct ids *out, struct err *err)
{
    if (len > TOKENIZER_TEXT_MAX) {
        return err_set(err, ERR_NO_FIT, "a text of %zu bytes; at most %u are possible", len,
                       TOKENIZER_TEXT_MAX);
    }
    const struct vocab *v = &t->vocab;
    const uint8_t *bytes = (const uint8_t *)text;
    bool pairs = v->model == VOCAB_WPM;
    size_t before = out->n;
    struct cuts cuts = { 0 };
    int result = -1;
    if (push_special(t, ROLE_BOS, add_special && (v->add_bos || pairs), out, err) == 0 &&
        cut_spans(t, bytes, spans, n_spans, &cuts, err) == 0 &&
        encode_fragments(t, bytes, len, &cuts, out, err) == 0 &&
        push_special(t, pairs ? ROLE_SEP : ROLE_EOS, add_special && (v->add_eos || pairs), out,
                     err) == 0) {
        result = 0;
    }
    free(cuts.cuts);
    if (result < 0) {
        out->n = before;
    }
    return result;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                     struct ids *out, struct err *err)
{
    struct tokenizer_span whole = { .len = len, .parse_special = flags & TOKENIZER_PARSE_SPECIAL };
    return tokenizer_encode_spans(t, text, len, &whole, 1, flags & TOKENIZER_ADD_SPECIAL, out, err);
}

/* ---- questions ---- */

const uint8_t *tokenizer_piece(const struct tokenizer *t, int32_t id, bool special, size_t *len)
{
    uint32_t n;
    const uint8_t *bytes = pieces_bytes(&t->vocab.pieces, id, special, &n);
    *len = n;
    return bytes;
}

size_t tokenizer_piece_max(const struct tokenizer *t)
{
    return t->vocab.pieces.all_max;
}

uint32_t tokenizer_n_vocab(const struct tokenizer *t)
{
    return t->vocab.n_tokens;
}

int32_t tokenizer_special(const struct tokenizer *t, enum token_role special)
{
    return t->vocab.pieces.roles[special];
}

bool tokenizer_is_eog(const struct tokenizer *t, int32_t id)
{
    return pieces_is_end(&t->vocab.pieces, id);
}

int tokenizer_eog_ids(const struct tokenizer *t, struct ids *out, struct err *err)
{
    for (uint32_t id = 0; id < t->vocab.n_tokens; id++) {
        if (tokenizer_is_eog(t, (int32_t)id) && ids_push(out, (int32_t)id, err) < 0) {
            return -1;
        }
    }
    return 0;
}

const struct vocab *tokenizer_vocab(const struct tokenizer *t)
{
    return &t->vocab;
}
