#include "small_vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "loader/text/unicode.h"
#include "proto/alphabet.h"

#define KEY(name) "tokenizer.ggml." name

static void must(int result, const struct err *err)
{
    if (result != 0) {
        fprintf(stderr, "small vocabulary: %s\n", err->text);
        abort();
    }
}

void small_vocab_strs(struct weights_builder *b, const char *key, const char *const *texts,
                      size_t n)
{
    struct err err = { 0 };
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        len += strlen(texts[i]);
    }
    char *data = malloc(len + 1);
    uint64_t *ends = malloc((n + 1) * sizeof *ends);
    len = 0;
    for (size_t i = 0; i < n; i++) {
        memcpy(data + len, texts[i], strlen(texts[i]));
        len += strlen(texts[i]);
        ends[i] = len;
    }
    must(weights_builder_add_strings(b, key, strlen(key), WEIGHTS_ARRAY, n, data, ends, &err),
         &err);
    free(data);
    free(ends);
}

void small_vocab_str(struct weights_builder *b, const char *key, const char *text)
{
    struct err err = { 0 };
    uint64_t end = strlen(text);
    must(weights_builder_add_strings(b, key, strlen(key), WEIGHTS_STRING, 1, text, &end, &err),
         &err);
}

void small_vocab_number(struct weights_builder *b, const char *key, enum weights_type type,
                        uint64_t value)
{
    struct err err = { 0 };
    must(weights_builder_add(b, key, strlen(key), type, type, 1, &value, &err), &err);
}

static void add_tokens(struct weights_builder *b, const struct small_vocab *v)
{
    struct err err = { 0 };
    size_t n = v->n_tokens + (v->bytes ? 256 : 0);
    const char **texts = calloc(n, sizeof *texts);
    float *scores = calloc(n, sizeof *scores);
    int32_t *types = calloc(n, sizeof *types);
    static char names[256][8];
    bool spm = strcmp(v->model, "llama") == 0;
    for (size_t i = 0; i < n; i++) {
        if (i < v->n_tokens) {
            texts[i] = v->tokens[i].text;
            scores[i] = v->tokens[i].score;
            types[i] = v->tokens[i].type;
            continue;
        }
        uint8_t byte = (uint8_t)(i - v->n_tokens);
        memset(names[byte], 0, sizeof names[byte]);
        if (spm) {
            snprintf(names[byte], sizeof names[byte], "<0x%02X>", byte);
        } else {
            utf8_encode(alphabet_code(byte), (uint8_t *)names[byte]);
        }
        texts[i] = names[byte];
        types[i] = spm ? 6 : 1;
    }
    small_vocab_strs(b, KEY("tokens"), texts, n);
    must(weights_builder_add(b, KEY("scores"), strlen(KEY("scores")), WEIGHTS_ARRAY, WEIGHTS_F32,
                             n - v->scores_short, scores, &err),
         &err);
    must(weights_builder_add(b, KEY("token_type"), strlen(KEY("token_type")), WEIGHTS_ARRAY,
                             WEIGHTS_I32, n, types, &err),
         &err);
    free(texts);
    free(scores);
    free(types);
}

struct weights_builder *small_vocab_begin(const struct small_vocab *v)
{
    struct err err = { 0 };
    struct weights_builder *b = weights_builder_create(&err);
    must(b ? 0 : -1, &err);
    small_vocab_str(b, KEY("model"), v->model);
    if (v->pre) {
        small_vocab_str(b, KEY("pre"), v->pre);
    }
    if (v->name) {
        small_vocab_str(b, "general.name", v->name);
    }
    if (v->tokens) {
        add_tokens(b, v);
    }
    if (v->merges) {
        small_vocab_strs(b, KEY("merges"), v->merges, v->n_merges);
    }
    if (v->bos >= 0) {
        small_vocab_number(b, KEY("bos_token_id"), WEIGHTS_U32, (uint64_t)v->bos);
    }
    if (v->eos >= 0) {
        small_vocab_number(b, KEY("eos_token_id"), WEIGHTS_U32, (uint64_t)v->eos);
    }
    if (v->space_prefix >= 0) {
        small_vocab_number(b, KEY("add_space_prefix"), WEIGHTS_BOOL, (uint64_t)v->space_prefix);
    }
    return b;
}

void small_vocab_finish(struct weights_builder **b, struct weights *w)
{
    struct err err = { 0 };
    uint64_t data_off;
    int fd = memfd_create("small-vocab", MFD_CLOEXEC);
    must(fd >= 0 ? 0 : -1, &err);
    must(weights_builder_write(*b, fd, 0, 0, 1, 3, &data_off, &err), &err);
    must(weights_map(w, fd, &err), &err);
    close(fd);
    weights_builder_destroy(b);
}

void small_vocab_map(struct weights *w, const struct small_vocab *v)
{
    struct weights_builder *b = small_vocab_begin(v);
    small_vocab_finish(&b, w);
}
