/* Which tokens have a role: ids by key and by text, the set that ends generation, the types that conversion
 * left wrong, and the tokens that eat white space beside them (tokenizers.md sections 4.3, 4.4 and 11). */
#include "loader/text/vocab.h"

#include <ctype.h>
#include <string.h>

#include "loader/text/pretoken.h"
#include "proto/log.h"

#define KEY(name) "tokenizer.ggml." name

/* The key of an id, an older name for it, and the texts that give it away where there is no key. Texts
 * that ordinary vocabularies also hold as words ("</s>", "[PAD]") count only when the file says control. */
static const struct role {
    enum vocab_special special;
    const char *key, *old_key;
    const char *texts[12];
} roles[] = {
    { VOCAB_BOS, KEY("bos_token_id"), NULL, { NULL } },
    { VOCAB_EOS, KEY("eos_token_id"), NULL, { NULL } },
    { VOCAB_UNK, KEY("unknown_token_id"), NULL, { NULL } },
    { VOCAB_SEP, KEY("seperator_token_id"), NULL, { NULL } }, /* the format's own spelling */
    { VOCAB_PAD, KEY("padding_token_id"), NULL, { NULL } },
    { VOCAB_MASK, KEY("mask_token_id"), NULL, { NULL } },
    { VOCAB_EOT,
      KEY("eot_token_id"),
      NULL,
      { "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
        "<EOT>", "_<EOT>", "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>" } },
    { VOCAB_EOM, KEY("eom_token_id"), NULL, { "<|eom_id|>" } },
    { VOCAB_FIM_PRE,
      KEY("fim_pre_token_id"),
      KEY("prefix_token_id"),
      { "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
        "<|code_prefix|>", "<|prefix|>" } },
    { VOCAB_FIM_SUF,
      KEY("fim_suf_token_id"),
      KEY("suffix_token_id"),
      { "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
        "<|code_suffix|>", "<|suffix|>" } },
    { VOCAB_FIM_MID,
      KEY("fim_mid_token_id"),
      KEY("middle_token_id"),
      { "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
        "<|code_middle|>", "<|middle|>" } },
    { VOCAB_FIM_PAD,
      KEY("fim_pad_token_id"),
      NULL,
      { "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]" } },
    { VOCAB_FIM_REP,
      KEY("fim_rep_token_id"),
      NULL,
      { "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>" } },
    { VOCAB_FIM_SEP, KEY("fim_sep_token_id"), NULL, { "<|file_sep|>" } },
};

static const char *const ends[] = {
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
    "<eos>",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
};

static const char *const only_if_control[] = { "</s>", "<PAD>", "[PAD]" };

static int32_t find_text(const struct vocab *v, const char *text)
{
    int32_t id = vocab_find(v, text, strlen(text));
    for (size_t i = 0; id >= 0 && i < sizeof only_if_control / sizeof *only_if_control; i++) {
        if (strcmp(text, only_if_control[i]) == 0 && v->types[id] != VOCAB_CONTROL) {
            return -1;
        }
    }
    return id;
}

/* An id by key. One that is no token of the vocabulary is ignored: files carry such. */
static int read_id(const struct vocab *v, const struct weights *w, const char *key, int32_t *out,
                   struct err *err)
{
    const struct weights_kv *kv = weights_find_kv(w, key);
    if (!kv) {
        return 0;
    }
    int64_t id;
    if (kv->type == WEIGHTS_ARRAY || kv->type == WEIGHTS_STRING) {
        return err_set(err, ERR_BAD_FILE, "key %s: not a number", key);
    }
    if (!weights_kv_i64(kv, 0, &id) || id < 0 || id >= v->n_tokens) {
        log_warn("key %s: no such token among %u; ignored", key, v->n_tokens);
        return 0;
    }
    *out = (int32_t)id;
    return 0;
}

static void find_by_text(struct vocab *v, const struct role *role, int32_t not_this)
{
    for (size_t i = 0; i < 12 && role->texts[i]; i++) {
        int32_t id = find_text(v, role->texts[i]);
        if (id >= 0 && id != not_this) {
            v->special[role->special] = id;
            v->types[id] = VOCAB_CONTROL;
            return;
        }
    }
}

static int load_ids(struct vocab *v, const struct weights *w, struct err *err)
{
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        const struct role *role = &roles[i];
        int32_t *id = &v->special[role->special];
        *id = *id < (int64_t)v->n_tokens ? *id : -1; /* a default beyond a small vocabulary */
        if ((role->old_key && read_id(v, w, role->old_key, id, err) < 0) ||
            read_id(v, w, role->key, id, err) < 0) {
            return -1;
        }
        if (*id < 0) {
            find_by_text(v, role, -1);
        }
    }
    return 0;
}

static bool is_end(const struct vocab *v, const char *text)
{
    int32_t id = vocab_find(v, text, strlen(text));
    return id >= 0 && v->flags[id] & VOCAB_EOG;
}

/* Takes a token out of the set that ends generation and gives it a type. */
static void remove_end(struct vocab *v, const char *text, enum vocab_type type)
{
    int32_t id = vocab_find(v, text, strlen(text));
    if (id < 0 || !(v->flags[id] & VOCAB_EOG)) {
        return;
    }
    v->flags[id] &= (uint8_t)~VOCAB_EOG;
    v->types[id] = (uint8_t)type;
    if (v->special[VOCAB_EOT] == id) {
        v->special[VOCAB_EOT] = -1;
        for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
            if (roles[i].special == VOCAB_EOT) {
                find_by_text(v, &roles[i], id);
            }
        }
        if (v->special[VOCAB_EOT] >= 0) {
            v->flags[v->special[VOCAB_EOT]] |= VOCAB_EOG;
        }
    }
}

static void find_ends(struct vocab *v)
{
    static const enum vocab_special by_role[] = { VOCAB_EOS,     VOCAB_EOT,     VOCAB_EOM,
                                                  VOCAB_FIM_PAD, VOCAB_FIM_REP, VOCAB_FIM_SEP };
    for (size_t i = 0; i < sizeof by_role / sizeof *by_role; i++) {
        int32_t id = v->special[by_role[i]];
        if (id >= 0) {
            v->flags[id] |= VOCAB_EOG;
        }
    }
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        int32_t id = find_text(v, ends[i]);
        if (id >= 0) {
            v->flags[id] |= VOCAB_EOG;
            v->types[id] = VOCAB_CONTROL;
        }
    }
}

/* Harmony's tokens are parsed and printed always; its <|end|> closes a message, not the answer. */
static void correct_types(struct vocab *v)
{
    static const char *const always[] = { "<|channel|>", "<|message|>", "<|start|>",
                                          "<|constrain|>" };
    for (size_t i = 0; i < sizeof always / sizeof *always; i++) {
        int32_t id = vocab_find(v, always[i], strlen(always[i]));
        if (id >= 0) {
            v->types[id] = VOCAB_USER_DEFINED;
        }
    }
    if ((is_end(v, "<|return|>") && is_end(v, "<|call|>")) ||
        (is_end(v, "<|calls|>") && is_end(v, "<|flush|>"))) {
        remove_end(v, "<|end|>", VOCAB_USER_DEFINED);
    }
    if (is_end(v, "<|tool_response>")) {
        /* The file may call "</s>" what it likes here: it ends nothing and is a word. */
        int32_t id = vocab_find(v, "</s>", 4);
        if (id >= 0 && id != v->special[VOCAB_EOS]) {
            v->flags[id] &= (uint8_t)~VOCAB_EOG;
            v->types[id] = VOCAB_NORMAL;
        }
    }
}

static bool text_is(const struct vocab *v, uint32_t id, const char *text)
{
    size_t len;
    const uint8_t *have = vocab_text(v, id, &len);
    return len == strlen(text) && memcmp(have, text, len) == 0;
}

static void flag_text(struct vocab *v, const char *text, uint8_t flag)
{
    int32_t id = vocab_find(v, text, strlen(text));
    if (id >= 0) {
        v->flags[id] |= flag;
    }
}

/* The file does not say which tokens eat white space; a few models are known by name. */
static int find_strips(struct vocab *v, const struct weights *w, struct err *err)
{
    char name[256], arch[64];
    if (vocab_read_str(w, "general.name", name, sizeof name, err) < 0 ||
        vocab_read_str(w, "general.architecture", arch, sizeof arch, err) < 0) {
        return -1;
    }
    for (char *c = name; *c; c++) {
        *c = (char)tolower((unsigned char)*c);
    }
    if (strstr(name, "phi-3") || strstr(name, "phi3")) {
        for (uint32_t id = 0; id < v->n_tokens; id++) {
            uint8_t type = v->types[id];
            bool special = type == VOCAB_CONTROL || type == VOCAB_USER_DEFINED ||
                           type == VOCAB_UNKNOWN;
            bool plain = text_is(v, id, "<unk>") || text_is(v, id, "<s>") ||
                         text_is(v, id, "<|endoftext|>");
            if (special && !plain) {
                v->flags[id] |= VOCAB_RSTRIP;
            }
        }
        flag_text(v, "</s>", VOCAB_RSTRIP);
    }
    const char *pre = v->pre ? v->pre->name : "";
    if (strcmp(pre, "jina-v2-de") == 0 || strcmp(pre, "jina-v2-es") == 0 ||
        strcmp(pre, "jina-v2-code") == 0 || strcmp(arch, "nomic-bert-moe") == 0 ||
        strcmp(arch, "jina-bert-v3") == 0) {
        flag_text(v, "<mask>", VOCAB_LSTRIP);
    }
    if (strstr(name, "modern-bert")) {
        flag_text(v, "[MASK]", VOCAB_LSTRIP);
    }
    return 0;
}

int vocab_load_special(struct vocab *v, const struct weights *w, struct err *err)
{
    if (load_ids(v, w, err) < 0) {
        return -1;
    }
    find_ends(v);
    correct_types(v);
    return find_strips(v, w, err);
}
