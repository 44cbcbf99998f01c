#include "proto/pieces.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/alphabet.h"
#include "proto/utf8.h"

#define KEY(name) "tokenizer.ggml." name
#define EMPTY_MAX 32 /* "[EMPTY_4294967295]": what a token without a text is called */

/* Writes a normal token's bytes; never more than len of them. */
static uint32_t decode_normal(enum pieces_kind kind, const uint8_t *text, size_t len, uint8_t *out)
{
    uint32_t n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t code;
        bool valid;
        size_t step = utf8_decode(text + i, len - i, &code, &valid);
        int byte = !valid                                   ? -1
                   : kind == PIECES_BYTES                   ? alphabet_byte(code)
                   : kind == PIECES_SPACE && code == 0x2581 ? ' '
                                                            : -1;
        if (byte >= 0) {
            out[n++] = (uint8_t)byte;
        } else {
            memcpy(out + n, text + i, step);
            n += (uint32_t)step;
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

/* The byte of two digits, or -1. */
static int hex_byte(const char *digits)
{
    int high = hex_digit((uint8_t)digits[0]), low = hex_digit((uint8_t)digits[1]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* The byte of "<0xHH>", or -1. */
static int byte_token(const char *text, size_t len)
{
    return len == 6 && memcmp(text, "<0x", 3) == 0 && text[5] == '>' ? hex_byte(text + 3) : -1;
}

size_t pieces_unescape(const char *text, size_t len, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (text[i] != '\\' || i + 1 == len) {
            out[n++] = text[i];
            continue;
        }
        char c = text[++i];
        int byte = c == 'x' && i + 2 < len ? hex_byte(text + i + 1) : -1;
        if (byte >= 0) {
            out[n++] = (char)byte;
            i += 2;
        } else {
            out[n++] = c == 't' ? '\t' : c == 'n' ? '\n' : c == 'r' ? '\r' : c;
        }
    }
    return n;
}

/* Writes what a token of this type and text prints; never more than len bytes. */
static uint32_t decode(enum pieces_kind kind, enum token_type type, const char *text, size_t len,
                       uint8_t *out)
{
    int byte = type == TOKEN_BYTE ? byte_token(text, len) : -1;
    if (byte >= 0) {
        out[0] = (uint8_t)byte;
        return 1;
    }
    if (type == TOKEN_UNUSED || type == TOKEN_UNDEFINED) {
        return 0;
    }
    if (kind == PIECES_ESCAPES) {
        return (uint32_t)pieces_unescape(text, len, (char *)out);
    }
    if (type == TOKEN_NORMAL && kind != PIECES_RAW) {
        return decode_normal(kind, (const uint8_t *)text, len, out);
    }
    memcpy(out, text, len);
    return (uint32_t)len;
}

/* Puts the bytes of every id into the pool, which has room for all texts. */
static void fill(struct pieces *p, const struct weights_kv *tokens, uint32_t room)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < p->n; i++) {
        const char *text;
        size_t len;
        char empty[EMPTY_MAX];
        enum token_type type = (enum token_type)p->types[i];
        p->offs[i] = used;
        /* The loading process may still live, so what was counted before is checked again. */
        if (!weights_kv_str(tokens, i, &text, &len) || len + sizeof empty > room - used) {
            len = 0;
        }
        if (len == 0 && room - used >= sizeof empty) {
            len = (size_t)snprintf(empty, sizeof empty, "[EMPTY_%u]", i);
            text = empty;
        }
        used += decode(p->kind, type, text, len, p->pool + used);
        uint32_t bytes = used - p->offs[i];
        bool special = type == TOKEN_CONTROL || type == TOKEN_UNKNOWN;
        p->flags[i] |= special ? PIECES_SPECIAL : 0;
        p->all_max = bytes > p->all_max ? bytes : p->all_max;
        p->bytes_max = !special && bytes > p->bytes_max ? bytes : p->bytes_max;
    }
    p->offs[p->n] = used;
}

static const struct {
    const char *model; /* tokenizer.ggml.model */
    enum pieces_kind kind;
} kinds[] = {
    { "llama", PIECES_SPACE }, { "gpt2", PIECES_BYTES }, { "gemma4", PIECES_SPACE },
    { "bert", PIECES_SPACE },  { "t5", PIECES_SPACE },   { "rwkv", PIECES_ESCAPES },
};

static int read_types(struct pieces *p, const struct weights *w, struct err *err)
{
    const struct weights_kv *kv = weights_find_kv(w, KEY("token_type"));
    memset(p->types, TOKEN_NORMAL, p->n);
    if (!kv) {
        return 0;
    }
    if (kv->type != WEIGHTS_ARRAY || kv->n < p->n) {
        return err_set(err, ERR_BAD_FILE, "key %s: not an array of a type for each of %u tokens",
                       KEY("token_type"), p->n);
    }
    for (uint32_t id = 0; id < p->n; id++) {
        uint64_t type;
        if (!weights_kv_u64(kv, id, &type) || type >= TOKEN_N_TYPES) {
            return err_set(err, ERR_BAD_FILE, "key %s: type of token %u is not known",
                           KEY("token_type"), id);
        }
        p->types[id] = (uint8_t)type;
    }
    return 0;
}

int pieces_build(struct pieces *p, const struct weights *w, struct err *err)
{
    *p = (struct pieces){ .kind = PIECES_RAW };
    const struct weights_kv *tokens = weights_find_kv(w, KEY("tokens"));
    const struct weights_kv *model = weights_find_kv(w, KEY("model"));
    if (tokens && (tokens->elem != WEIGHTS_STRING || tokens->n > INT32_MAX)) {
        return err_set(err, ERR_BAD_FILE, "key %s: not an array of strings", KEY("tokens"));
    }
    p->n = tokens ? (uint32_t)tokens->n : 0;
    uint64_t room = tokens ? tokens->size_bytes + (uint64_t)EMPTY_MAX * p->n : 0;
    if (room > UINT32_MAX) {
        return err_set(err, ERR_BAD_FILE, "key %s: %llu bytes of text", KEY("tokens"),
                       (unsigned long long)room);
    }
    p->offs = calloc((size_t)p->n + 1, sizeof *p->offs);
    p->pool = malloc(room ? room : 1);
    p->flags = calloc((size_t)p->n + 1, 1);
    p->types = malloc((size_t)p->n + 1);
    if (!p->offs || !p->pool || !p->flags || !p->types) {
        err_set(err, ERR_NO_MEMORY, "no memory for a vocabulary of %u tokens", p->n);
        goto fail;
    }
    const char *name = "";
    size_t len = 0;
    if (model) {
        weights_kv_str(model, 0, &name, &len);
    }
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (len == strlen(kinds[i].model) && memcmp(name, kinds[i].model, len) == 0) {
            p->kind = kinds[i].kind;
        }
    }
    if (read_types(p, w, err) < 0 || (tokens && pieces_find_roles(p, w, name, len, err) < 0)) {
        goto fail;
    }
    if (tokens) {
        fill(p, tokens, (uint32_t)room);
    }
    return 0;
fail:
    pieces_clear(p);
    return -1;
}

void pieces_clear(struct pieces *p)
{
    free(p->offs);
    free(p->pool);
    free(p->flags);
    free(p->types);
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
