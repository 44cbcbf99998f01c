/* A vocabulary made of the input, then a text made of the rest: load, encode, detokenise, stream. Layout: model, splitter,
 * flags; token texts, each behind a byte for its type and one for its score, until a 0xff; merges until a 0xff; the
 * text. Texts end at bytes below 0x02. */
#include <stdlib.h>
#include <string.h>

#include "loader/text/detok.h"
#include "loader/text/pretoken.h"
#include "proto/log.h"
#include "tests/fuzz/fuzz.h"
#include "tests/loader/text/small_vocab.h"

#define TOKENS_MAX 64
#define TEXT_MAX   40

struct input {
    const uint8_t *at, *end;
};

static uint8_t take(struct input *in)
{
    return in->at < in->end ? *in->at++ : 0xff;
}

/* The next text into out; false at the list's end. */
static bool take_text(struct input *in, char *out)
{
    size_t len = 0;
    if (in->at == in->end || *in->at == 0xff) {
        take(in);
        return false;
    }
    while (in->at < in->end && len < TEXT_MAX && *in->at != 0xff) {
        uint8_t byte = take(in);
        if (byte < 2) {
            break;
        }
        out[len++] = (char)byte;
    }
    out[len] = '\0';
    return true;
}

static void use(const struct tokenizer *t, const char *text, size_t len, unsigned flags)
{
    struct err err;
    struct ids ids = { 0 };
    struct detok_text back = { 0 };
    if (tokenizer_encode(t, text, len, flags & 3, &ids, &err) == 0) {
        (void)detok_all(t, ids.ids, ids.n, flags >> 2 & 3, &back, &err);
        struct detok *d = detok_create(t, flags & 16, &err);
        for (size_t i = 0; d && i < ids.n; i++) {
            size_t n;
            detok_push(d, ids.ids[i], &n);
        }
        detok_destroy(&d);
    }
    free(back.text);
    ids_clear(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const models[] = {
        "llama", "gpt2", "gemma4", "bert", "t5", "rwkv", "plamo2"
    };
    static char token_texts[TOKENS_MAX][TEXT_MAX + 1], merge_texts[TOKENS_MAX][TEXT_MAX + 1];
    struct small_token tokens[TOKENS_MAX];
    const char *merges[TOKENS_MAX];
    static bool quiet;
    if (!quiet) { /* a warning for each odd id would drown what matters */
        setenv("HEARTH_LOG", "error", 1);
        log_init("fuzz");
        quiet = true;
    }
    struct input in = { data, data + size };
    struct small_vocab v = { .model = models[take(&in) % 7], .tokens = tokens, .merges = merges };
    size_t n_rows = 0;
    while (pretoken_at(n_rows)) {
        n_rows++;
    }
    v.pre = pretoken_at(take(&in) % n_rows)->name;
    unsigned flags = take(&in);
    v.bytes = flags & 32;
    v.space_prefix = (int)(flags >> 6) - 1;
    v.bos = take(&in) % 8 - 1;
    v.eos = take(&in) % 8 - 1;
    while (v.n_tokens < TOKENS_MAX) {
        uint8_t type = take(&in) % 32, score = take(&in);
        if (!take_text(&in, token_texts[v.n_tokens])) {
            break;
        }
        /* Most are normal; one in 32 has a type that is none, which must be refused. */
        tokens[v.n_tokens] = (struct small_token){ token_texts[v.n_tokens], -(float)score,
                                                   type < 8 ? type : TOKEN_NORMAL };
        v.n_tokens++;
    }
    while (v.n_merges < TOKENS_MAX && take_text(&in, merge_texts[v.n_merges])) {
        merges[v.n_merges] = merge_texts[v.n_merges];
        v.n_merges++;
    }
    struct weights w = { 0 };
    struct err err;
    struct weights_builder *b = small_vocab_begin(&v);
    if (strcmp(v.model, "t5") == 0 && flags & 1) { /* the text's bytes as a character map too */
        const char *key = "tokenizer.ggml.precompiled_charsmap";
        if (weights_builder_add(b, key, strlen(key), WEIGHTS_ARRAY, WEIGHTS_U8,
                                (uint64_t)(in.end - in.at), in.at, &err) != 0) {
            abort();
        }
    }
    small_vocab_finish(&b, &w);
    struct tokenizer *t = tokenizer_create(&w, NULL, &err);
    weights_unmap(&w);
    if (t) {
        use(t, (const char *)in.at, (size_t)(in.end - in.at), flags);
    }
    tokenizer_destroy(&t);
    return 0;
}
