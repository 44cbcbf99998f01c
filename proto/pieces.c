#include "proto/pieces.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* token_type as in the file. */
enum { TYPE_UNDEFINED, TYPE_NORMAL, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER, TYPE_UNUSED, TYPE_BYTE };

#define ID_NONE (-1)

/* Which texts make a token the one of its kind when the key is absent; the first in the list that exists counts. */
static const char *const eot_texts[] = {
    "<|eot_id|>",         "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
    "<|end_of_text|>",    "<EOT>",      "_<EOT>",  "[EOT]",         "<｜end▁of▁sentence｜>",
    "<end_of_utterance>", NULL,
};
static const char *const eom_texts[] = { "<|eom_id|>", NULL };
static const char *const fim_pad_texts[] = { "<|fim_pad|>", "<fim-pad>", "<fim_pad>",
                                             "<PAD>",       "[PAD]",     NULL };
static const char *const fim_rep_texts[] = { "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
                                             "<REPO>",       "<reponame>",    NULL };
static const char *const fim_sep_texts[] = { "<|file_sep|>", NULL };

/* Every token of one of these texts ends a generation. */
static const char *const end_texts[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    NULL,
};

/* These spellings are ordinary text in some vocabularies: they count only where the file says control. */
static const char *const only_if_control[] = { "</s>", "[PAD]", "<PAD>", NULL };

/* Parts of a message format that have to reach the reader. */
static const char *const shown_texts[] = { "<|channel|>", "<|message|>", "<|start|>",
                                           "<|constrain|>", NULL };

struct build {
    struct pieces *p;
    const struct weights *w;
    const struct weights_kv *tokens;
    uint8_t *types;   /* [n] */
    uint32_t *marked; /* ids whose text begins like those that are asked for by text */
    uint32_t n_marked;
};

static bool text_of(const struct build *b, uint32_t id, const char **text, size_t *len)
{
    return weights_kv_str(b->tokens, id, text, len);
}

static bool text_is(const struct build *b, uint32_t id, const char *want)
{
    const char *text;
    size_t len;
    return text_of(b, id, &text, &len) && len == strlen(want) && memcmp(text, want, len) == 0;
}

static bool in_list(const char *text, const char *const *list)
{
    for (; *list; list++) {
        if (strcmp(text, *list) == 0) {
            return true;
        }
    }
    return false;
}

#define MARKS                                                                                      \
    "<[_" /* what all texts that are asked for begin with; a vocabulary has few such tokens */

static void find_marked(struct build *b)
{
    const char *text;
    size_t len;
    for (uint32_t i = 0; i < b->p->n; i++) {
        if (text_of(b, i, &text, &len) && len > 0 && memchr(MARKS, *text, sizeof MARKS - 1)) {
            b->marked[b->n_marked++] = i;
        }
    }
}

/* The first id with this text. */
static int64_t find_text(const struct build *b, const char *want)
{
    assert(*want && strchr(MARKS, *want));
    for (uint32_t i = 0; i < b->n_marked; i++) {
        if (text_is(b, b->marked[i], want)) {
            return b->marked[i];
        }
    }
    return ID_NONE;
}

static bool may_become_control(const struct build *b, int64_t id, const char *text)
{
    return b->types[id] == TYPE_CONTROL || !in_list(text, only_if_control);
}

static void mark_end(struct build *b, int64_t id)
{
    if (id != ID_NONE) {
        b->p->flags[id] |= PIECES_END;
    }
}

/* The id that a key names, or that one of the texts has. An id beyond the vocabulary is ignored. */
static int64_t special_id(struct build *b, const char *key, int64_t otherwise,
                          const char *const *texts)
{
    const struct weights_kv *kv = weights_find_kv(b->w, key);
    uint64_t id;
    if (kv && weights_kv_u64(kv, 0, &id) && id < b->p->n) {
        return (int64_t)id;
    }
    for (; texts && *texts; texts++) {
        int64_t found = find_text(b, *texts);
        if (found != ID_NONE && may_become_control(b, found, *texts)) {
            b->types[found] = TYPE_CONTROL;
            return found;
        }
    }
    return otherwise < (int64_t)b->p->n ? otherwise : ID_NONE;
}

static bool is_end(const struct build *b, int64_t id)
{
    return id != ID_NONE && (b->p->flags[id] & PIECES_END);
}

/* Which ids end a generation, and the corrections of types that go with it. */
static void find_ends(struct build *b, int64_t eos)
{
    for (const char *const *t = shown_texts; *t; t++) {
        int64_t id = find_text(b, *t);
        if (id != ID_NONE) {
            b->types[id] = TYPE_USER;
        }
    }
    mark_end(b, special_id(b, "tokenizer.ggml.eos_token_id", eos, NULL));
    mark_end(b, special_id(b, "tokenizer.ggml.eot_token_id", ID_NONE, eot_texts));
    mark_end(b, special_id(b, "tokenizer.ggml.eom_token_id", ID_NONE, eom_texts));
    mark_end(b, special_id(b, "tokenizer.ggml.fim_pad_token_id", ID_NONE, fim_pad_texts));
    mark_end(b, special_id(b, "tokenizer.ggml.fim_rep_token_id", ID_NONE, fim_rep_texts));
    mark_end(b, special_id(b, "tokenizer.ggml.fim_sep_token_id", ID_NONE, fim_sep_texts));
    for (const char *const *t = end_texts; *t; t++) {
        int64_t id = find_text(b, *t);
        if (id != ID_NONE && may_become_control(b, id, *t)) {
            b->types[id] = TYPE_CONTROL;
            mark_end(b, id);
        }
    }
    int64_t end = find_text(b, "<|end|>");
    bool harmony = (is_end(b, find_text(b, "<|return|>")) && is_end(b, find_text(b, "<|call|>"))) ||
                   (is_end(b, find_text(b, "<|calls|>")) && is_end(b, find_text(b, "<|flush|>")));
    if (harmony && is_end(b, end)) {
        b->p->flags[end] &= (uint8_t)~PIECES_END;
        b->types[end] = TYPE_USER;
    }
    int64_t s = find_text(b, "</s>");
    if (is_end(b, find_text(b, "<|tool_response>")) && is_end(b, s)) {
        b->p->flags[s] &= (uint8_t)~PIECES_END;
        b->types[s] = TYPE_NORMAL;
    }
}

/* ---- texts to bytes ---- */

/* The byte that a character of the byte-level alphabet stands for, or -1. Printable Latin-1 stands for itself, the other
 * 68 bytes, in order, for U+0100 and on. */
static int alphabet_byte(uint32_t cp)
{
    if ((cp >= 0x21 && cp <= 0x7e) || (cp >= 0xa1 && cp <= 0xac) || (cp >= 0xae && cp <= 0xff)) {
        return (int)cp;
    }
    if (cp < 0x100 || cp > 0x143) {
        return -1;
    }
    uint32_t nth = cp - 0x100;
    if (nth <= 0x20) {
        return (int)nth;
    }
    return nth <= 0x42 ? (int)(0x7f + nth - 0x21) : 0xad;
}

/* Length of the UTF-8 character that begins at text, with its code point; 1 and no code point when it is none. */
static uint32_t character(const uint8_t *text, size_t len, uint32_t *cp)
{
    static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    uint32_t lead = text[0];
    uint32_t n = lead < 0x80   ? 1
                 : lead < 0xc0 ? 0
                 : lead < 0xe0 ? 2
                 : lead < 0xf0 ? 3
                 : lead < 0xf8 ? 4
                               : 0;
    *cp = UINT32_MAX;
    if (n == 0 || n > len) {
        return 1;
    }
    uint32_t value = n == 1 ? lead : lead & (0x7fu >> n);
    for (uint32_t i = 1; i < n; i++) {
        if ((text[i] & 0xc0) != 0x80) {
            return 1;
        }
        value = value << 6 | (text[i] & 0x3fu);
    }
    if (value < least[n] || value > 0x10ffff) {
        return 1;
    }
    *cp = value;
    return n;
}

/* Writes a normal token's bytes; never more than len of them. */
static uint32_t decode_normal(enum pieces_kind kind, const uint8_t *text, size_t len, uint8_t *out)
{
    uint32_t n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        uint32_t step = character(text + i, len - i, &cp);
        int byte = kind == PIECES_BYTES                   ? alphabet_byte(cp)
                   : kind == PIECES_SPACE && cp == 0x2581 ? ' '
                                                          : -1;
        if (byte >= 0) {
            out[n++] = (uint8_t)byte;
        } else {
            memcpy(out + n, text + i, step);
            n += step;
        }
        i += step;
    }
    return n;
}

static int hex_digit(uint8_t c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The byte of "<0xHH>", or -1. */
static int byte_token(const uint8_t *text, size_t len)
{
    if (len != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') {
        return -1;
    }
    int high = hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Puts the bytes of every id into the pool, which has room for all texts. */
static void fill(struct build *b, uint32_t room)
{
    struct pieces *p = b->p;
    uint32_t used = 0;
    for (uint32_t i = 0; i < p->n; i++) {
        const char *text;
        size_t len;
        char empty[32];
        p->offs[i] = used;
        /* The loading process may still live, so what was counted before is checked again. */
        if (!text_of(b, i, &text, &len) || len + 32 > room - used) {
            len = 0;
        }
        if (len == 0 && room - used >= sizeof empty) {
            len = (size_t)snprintf(empty, sizeof empty, "[EMPTY_%u]", i);
            text = empty;
        }
        const uint8_t *bytes = (const uint8_t *)text;
        int byte = b->types[i] == TYPE_BYTE ? byte_token(bytes, len) : -1;
        if (byte >= 0) {
            p->pool[used++] = (uint8_t)byte;
            p->flags[i] |= PIECES_BYTE;
        } else if (b->types[i] == TYPE_NORMAL) {
            used += decode_normal(p->kind, bytes, len, p->pool + used);
        } else if (b->types[i] != TYPE_UNUSED && b->types[i] != TYPE_UNDEFINED) {
            memcpy(p->pool + used, bytes, len);
            used += (uint32_t)len;
        }
        if (b->types[i] == TYPE_CONTROL || b->types[i] == TYPE_UNKNOWN) {
            p->flags[i] |= PIECES_SPECIAL;
        } else if (used - p->offs[i] > p->bytes_max) {
            p->bytes_max = used - p->offs[i];
        }
        p->flags[i] |= b->types[i] == TYPE_CONTROL ? PIECES_CONTROL
                       : b->types[i] == TYPE_USER  ? PIECES_USER
                                                   : 0;
    }
    p->offs[p->n] = used;
}

/* What a value of tokenizer.ggml.model means here: how texts are written and the end token when no key names it. */
static const struct {
    const char *model;
    enum pieces_kind kind;
    int eos;
} models[] = {
    { "llama", PIECES_SPACE, 2 },        { "gpt2", PIECES_BYTES, 11 },
    { "gemma4", PIECES_SPACE, ID_NONE }, { "bert", PIECES_SPACE, ID_NONE },
    { "t5", PIECES_SPACE, 1 },           { "plamo2", PIECES_RAW, 2 },
};

static int read_types(struct build *b, struct err *err)
{
    const struct weights_kv *kv = weights_find_kv(b->w, "tokenizer.ggml.token_type");
    if (kv && kv->n < b->p->n) {
        return err_set(err, ERR_BAD_FILE, "tokenizer.ggml.token_type has %llu values, tokens %u",
                       (unsigned long long)kv->n, b->p->n);
    }
    for (uint32_t i = 0; i < b->p->n; i++) {
        int64_t type = TYPE_NORMAL;
        if (kv && !weights_kv_i64(kv, i, &type)) {
            return err_set(err, ERR_BAD_FILE, "tokenizer.ggml.token_type[%u] is no integer", i);
        }
        b->types[i] = type >= TYPE_UNDEFINED && type <= TYPE_BYTE ? (uint8_t)type : TYPE_UNDEFINED;
    }
    return 0;
}

int pieces_build(struct pieces *p, const struct weights *w, struct err *err)
{
    *p = (struct pieces){ .kind = PIECES_RAW };
    struct build b = { .p = p, .w = w, .tokens = weights_find_kv(w, "tokenizer.ggml.tokens") };
    if (b.tokens && (b.tokens->elem != WEIGHTS_STRING || b.tokens->n > INT32_MAX)) {
        return err_set(err, ERR_BAD_FILE, "tokenizer.ggml.tokens: not an array of strings");
    }
    p->n = b.tokens ? (uint32_t)b.tokens->n : 0;
    uint64_t room = b.tokens ? b.tokens->size_bytes + 32ull * p->n : 0;
    if (room > UINT32_MAX) {
        return err_set(err, ERR_BAD_FILE, "tokenizer.ggml.tokens: %llu bytes of text",
                       (unsigned long long)room);
    }
    p->offs = calloc((size_t)p->n + 1, sizeof *p->offs);
    p->pool = malloc(room ? room : 1);
    p->flags = calloc((size_t)p->n + 1, 1);
    b.types = malloc((size_t)p->n + 1);
    b.marked = malloc(((size_t)p->n + 1) * sizeof *b.marked);
    if (!p->offs || !p->pool || !p->flags || !b.types || !b.marked) {
        err_set(err, ERR_NO_MEMORY, "no memory for a vocabulary of %u tokens", p->n);
        goto fail;
    }
    int64_t eos = ID_NONE;
    const struct weights_kv *model = weights_find_kv(w, "tokenizer.ggml.model");
    const char *name;
    size_t len;
    if (model && weights_kv_str(model, 0, &name, &len)) {
        for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
            if (len == strlen(models[i].model) && memcmp(name, models[i].model, len) == 0) {
                p->kind = models[i].kind;
                eos = models[i].eos;
            }
        }
    }
    if (read_types(&b, err) < 0) {
        goto fail;
    }
    find_marked(&b);
    find_ends(&b, eos);
    fill(&b, (uint32_t)room);
    free(b.types);
    free(b.marked);
    return 0;
fail:
    free(b.types);
    free(b.marked);
    pieces_clear(p);
    return -1;
}

void pieces_clear(struct pieces *p)
{
    free(p->offs);
    free(p->pool);
    free(p->flags);
    *p = (struct pieces){ 0 };
}

const uint8_t *pieces_bytes(const struct pieces *p, int32_t id, bool special, uint32_t *len)
{
    *len = 0;
    if (id < 0 || (uint32_t)id >= p->n || (!special && (p->flags[id] & PIECES_SPECIAL))) {
        return p->pool;
    }
    *len = p->offs[id + 1] - p->offs[id];
    return p->pool + p->offs[id];
}

bool pieces_is_end(const struct pieces *p, int32_t id)
{
    return id >= 0 && (uint32_t)id < p->n && (p->flags[id] & PIECES_END);
}

uint32_t pieces_incomplete(const uint8_t *data, uint32_t len)
{
    for (uint32_t back = 1; back <= 3 && back <= len; back++) {
        uint8_t c = data[len - back];
        if ((c & 0xc0) == 0x80) {
            continue;
        }
        uint32_t need = (c & 0xe0) == 0xc0   ? 2
                        : (c & 0xf0) == 0xe0 ? 3
                        : (c & 0xf8) == 0xf0 ? 4
                                             : 0;
        return need > back ? back : 0;
    }
    return 0;
}
