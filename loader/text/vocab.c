#include "loader/text/vocab.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loader/text/pretoken.h"
#include "proto/log.h"

#define KEY(name) "tokenizer.ggml." name

/* What a model type means before the file's own switches (tokenizers.md section 2). */
static const struct model_row {
    const char *name;
    bool add_bos, add_eos, add_space_prefix, clean_spaces, escape_spaces;
    bool needs_scores;
} models[VOCAB_N_MODELS] = {
    [VOCAB_SPM] = { "llama", true, false, true, false, true, true },
    [VOCAB_BPE] = { "gpt2", false, false, false, true, false, false },
    [VOCAB_GEMMA4] = { "gemma4", true, false, false, true, true, false },
    [VOCAB_WPM] = { "bert", true, false, false, true, true, false },
    [VOCAB_UGM] = { "t5", false, true, false, false, true, true },
    [VOCAB_RWKV] = { "rwkv", false, false, false, false, false, false },
    [VOCAB_PLAMO2] = { "plamo2", false, false, false, false, false, true },
};

int vocab_read_bool(const struct weights *w, const char *key, bool *out, struct err *err)
{
    const struct weights_kv *kv = weights_find_kv(w, key);
    uint64_t value;
    if (!kv) {
        return 0;
    }
    if (kv->type != WEIGHTS_BOOL || !weights_kv_u64(kv, 0, &value)) {
        return err_set(err, ERR_BAD_FILE, "key %s: not a bool", key);
    }
    *out = value != 0;
    return 0;
}

int vocab_read_str(const struct weights *w, const char *key, char *buffer, size_t size,
                   struct err *err)
{
    const struct weights_kv *kv = weights_find_kv(w, key);
    buffer[0] = '\0';
    if (!kv) {
        return 0;
    }
    const char *text;
    size_t len;
    if (kv->type != WEIGHTS_STRING || !weights_kv_str(kv, 0, &text, &len)) {
        return err_set(err, ERR_BAD_FILE, "key %s: not a string", key);
    }
    snprintf(buffer, size, "%.*s", (int)(len < size ? len : size), text);
    return 0;
}

static const struct weights_kv *find_array(const struct weights *w, const char *key)
{
    const struct weights_kv *kv = weights_find_kv(w, key);
    return kv && kv->type == WEIGHTS_ARRAY ? kv : NULL;
}

static int load_tokens(struct vocab *v, const struct weights *w, struct err *err)
{
    const struct weights_kv *tokens = find_array(w, KEY("tokens"));
    if (!tokens || tokens->elem != WEIGHTS_STRING) {
        return err_set(err, ERR_BAD_FILE, "key %s: missing or not an array of strings",
                       KEY("tokens"));
    }
    if (tokens->n == 0 || tokens->n > VOCAB_TOKENS_MAX) {
        return err_set(err, ERR_BAD_FILE, "key %s: %llu tokens; between 1 and %u are possible",
                       KEY("tokens"), (unsigned long long)tokens->n, VOCAB_TOKENS_MAX);
    }
    v->n_tokens = (uint32_t)tokens->n;
    char plain[VOCAB_TEXT_MAX];
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        const char *text;
        size_t len;
        if (!weights_kv_str(tokens, id, &text, &len) || len > VOCAB_TEXT_MAX) {
            return err_set(err, ERR_BAD_FILE, "key %s: token %u is longer than %u bytes",
                           KEY("tokens"), id, VOCAB_TEXT_MAX);
        }
        if (len == 0) {
            len = (size_t)snprintf(plain, sizeof plain, "[EMPTY_%u]", id);
            text = plain;
        } else if (v->model == VOCAB_RWKV) {
            len = pieces_unescape(text, len, plain);
            text = plain;
        }
        if (texts_append(&v->texts, text, len, err) < 0) {
            return err_wrap(err, "key %s", KEY("tokens"));
        }
        v->text_len_max = len > v->text_len_max ? len : v->text_len_max;
    }
    v->scores = calloc(v->n_tokens, sizeof *v->scores);
    if (!v->scores) {
        return err_set(err, ERR_NO_MEMORY, "a vocabulary of %u tokens", v->n_tokens);
    }
    return 0;
}

static int load_scores(struct vocab *v, const struct weights *w, struct err *err)
{
    const struct weights_kv *scores = weights_find_kv(w, KEY("scores"));
    if (!models[v->model].needs_scores) {
        return 0; /* other models ignore what a converter may have left there */
    }
    if (!scores || scores->type != WEIGHTS_ARRAY || scores->elem != WEIGHTS_F32) {
        return err_set(err, ERR_BAD_FILE, "key %s: missing or not an array of f32", KEY("scores"));
    }
    if (scores->n < v->n_tokens) {
        return err_set(err, ERR_BAD_FILE, "key %s: %llu scores for %u tokens", KEY("scores"),
                       (unsigned long long)scores->n, v->n_tokens);
    }
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        double score;
        if (!weights_kv_f64(scores, id, &score) || isnan(score)) {
            return err_set(err, ERR_BAD_FILE, "key %s: score %u is not a number", KEY("scores"),
                           id);
        }
        /* Infinities would make sums that cannot be compared. */
        v->scores[id] = (float)(score > FLT_MAX ? FLT_MAX : score < -FLT_MAX ? -FLT_MAX : score);
    }
    v->has_scores = true;
    return 0;
}

static int load_charsmap(struct vocab *v, const struct weights *w, struct err *err)
{
    const struct weights_kv *map = weights_find_kv(w, KEY("precompiled_charsmap"));
    if (!map || v->model != VOCAB_UGM) {
        return 0;
    }
    bool bytes = map->elem == WEIGHTS_U8 || map->elem == WEIGHTS_I8;
    if (map->type != WEIGHTS_ARRAY || !bytes) {
        return err_set(err, ERR_BAD_FILE, "key %s: not an array of bytes",
                       KEY("precompiled_charsmap"));
    }
    if (map->n == 0) {
        return 0;
    }
    v->charsmap = malloc(map->n);
    if (!v->charsmap) {
        return err_set(err, ERR_NO_MEMORY, "a character map of %llu bytes",
                       (unsigned long long)map->n);
    }
    memcpy(v->charsmap, map->data, map->n);
    v->charsmap_len = map->n;
    return 0;
}

/* The model's row and the pre-tokenizer's, then the file's own switches. */
static int load_switches(struct vocab *v, const struct weights *w, const char *pre, struct err *err)
{
    const struct model_row *row = &models[v->model];
    v->add_bos = row->add_bos;
    v->add_eos = row->add_eos;
    v->add_space_prefix = row->add_space_prefix;
    v->clean_spaces = row->clean_spaces;
    v->escape_spaces = row->escape_spaces;
    if (v->model == VOCAB_BPE || v->model == VOCAB_GEMMA4) {
        char name[64];
        if (vocab_read_str(w, KEY("pre"), name, sizeof name, err) < 0) {
            return -1;
        }
        if (v->model == VOCAB_GEMMA4) {
            snprintf(name, sizeof name, "gemma4");
        } else if (pre) {
            snprintf(name, sizeof name, "%.63s", pre);
        } else if (!name[0]) {
            snprintf(name, sizeof name, "default");
            log_warn("key %s is missing: words are cut in the default way", KEY("pre"));
        }
        size_t prefix = strlen(PRETOKEN_REFERENCE);
        v->pre_reference = strncmp(name, PRETOKEN_REFERENCE, prefix) == 0;
        v->pre = pretoken_find(v->pre_reference ? name + prefix : name);
        if (!v->pre) {
            return err_set(err, ERR_UNSUPPORTED, "key %s: pre-tokenizer \"%s\" is not known",
                           KEY("pre"), name);
        }
        if (v->model == VOCAB_BPE) {
            v->add_bos = v->pre->add_bos;
            v->add_sep = v->pre->add_sep;
            v->clean_spaces = v->pre->clean_spaces;
            v->ignore_merges = v->pre->ignore_merges;
            if (v->pre->no_bos && !weights_find_kv(w, KEY("bos_token_id"))) {
                v->pieces.roles[ROLE_BOS] = -1;
            }
        }
    }
    if (vocab_read_bool(w, KEY("add_bos_token"), &v->add_bos, err) < 0 ||
        vocab_read_bool(w, KEY("add_eos_token"), &v->add_eos, err) < 0 ||
        vocab_read_bool(w, KEY("add_sep_token"), &v->add_sep, err) < 0 ||
        vocab_read_bool(w, KEY("add_space_prefix"), &v->add_space_prefix, err) < 0 ||
        vocab_read_bool(w, KEY("remove_extra_whitespaces"), &v->remove_extra_whitespaces, err) <
            0) {
        return -1;
    }
    if (v->model == VOCAB_GEMMA4) {
        v->add_bos = true; /* files exist with a wrong flag */
    }
    return 0;
}

int vocab_load(struct vocab *v, const struct weights *w, const char *pre, struct err *err)
{
    char name[64];
    if (vocab_read_str(w, KEY("model"), name, sizeof name, err) < 0) {
        return -1;
    }
    if (!name[0]) {
        return err_set(err, ERR_BAD_FILE, "key %s: missing", KEY("model"));
    }
    int model = 0;
    while (model < VOCAB_N_MODELS && strcmp(models[model].name, name) != 0) {
        model++;
    }
    if (model == VOCAB_N_MODELS) {
        bool none = strcmp(name, "no_vocab") == 0 || strcmp(name, "none") == 0;
        return err_set(err, ERR_UNSUPPORTED,
                       none ? "key %s: \"%s\": the model has no vocabulary"
                            : "key %s: tokenizer \"%s\" is not known",
                       KEY("model"), name);
    }
    v->model = (enum vocab_model)model;
    if (load_tokens(v, w, err) < 0 || pieces_build(&v->pieces, w, err) < 0 ||
        load_scores(v, w, err) < 0 || load_charsmap(v, w, err) < 0 ||
        load_switches(v, w, pre, err) < 0) {
        return -1;
    }
    return vocab_find_strips(v, w, err);
}

void vocab_clear(struct vocab *v)
{
    texts_clear(&v->texts);
    free(v->scores);
    pieces_clear(&v->pieces);
    free(v->charsmap);
    *v = (struct vocab){ 0 };
}

int32_t vocab_find(const struct vocab *v, const void *text, size_t len)
{
    uint32_t found = texts_find(&v->texts, text, len);
    return found < v->n_tokens ? (int32_t)found : -1;
}

int32_t vocab_find_byte(const struct vocab *v, uint8_t byte)
{
    char name[8];
    int len = snprintf(name, sizeof name, "<0x%02X>", byte);
    int32_t id = vocab_find(v, name, (size_t)len);
    return id >= 0 ? id : vocab_find(v, &byte, 1);
}
