/* Which tokens have a role: ids by key and by text, the set that ends a generation, and the types that conversion left
 * wrong. One table of texts; one walk over the vocabulary finds them all. */
#include <string.h>

#include "proto/log.h"
#include "proto/pieces.h"

#define KEY(name) "tokenizer.ggml." name

/* What holds for a tokenizer model before the file's own keys. */
static const struct {
    const char *model;
    int32_t bos, eos, unk, sep, pad, mask;
} defaults[] = {
    { "llama", 1, 2, 0, -1, -1, -1 },      { "gpt2", 11, 11, -1, -1, -1, -1 },
    { "bert", 101, -1, 100, 102, 0, 103 }, { "t5", -1, 1, 2, -1, 0, -1 },
    { "plamo2", 1, 2, 0, -1, 3, -1 },
};

/* The key of an id, and an older name for it. */
static const struct {
    enum token_role role;
    const char *key, *old_key;
} keys[] = {
    { ROLE_BOS, KEY("bos_token_id"), NULL },
    { ROLE_EOS, KEY("eos_token_id"), NULL },
    { ROLE_UNK, KEY("unknown_token_id"), NULL },
    { ROLE_SEP, KEY("seperator_token_id"), NULL }, /* the format's own spelling */
    { ROLE_PAD, KEY("padding_token_id"), NULL },
    { ROLE_MASK, KEY("mask_token_id"), NULL },
    { ROLE_EOT, KEY("eot_token_id"), NULL },
    { ROLE_EOM, KEY("eom_token_id"), NULL },
    { ROLE_FIM_PRE, KEY("fim_pre_token_id"), KEY("prefix_token_id") },
    { ROLE_FIM_SUF, KEY("fim_suf_token_id"), KEY("suffix_token_id") },
    { ROLE_FIM_MID, KEY("fim_mid_token_id"), KEY("middle_token_id") },
    { ROLE_FIM_PAD, KEY("fim_pad_token_id"), NULL },
    { ROLE_FIM_REP, KEY("fim_rep_token_id"), NULL },
    { ROLE_FIM_SEP, KEY("fim_sep_token_id"), NULL },
};

/* Holders of these roles end a generation. */
static const enum token_role ending_roles[] = { ROLE_EOS,     ROLE_EOT,     ROLE_EOM,
                                                ROLE_FIM_PAD, ROLE_FIM_REP, ROLE_FIM_SEP };

enum {
    ENDS = 1,  /* ends a generation */
    WORD = 2,  /* a word in ordinary vocabularies too: counts only where the file says control */
    SHOWN = 4, /* part of a message format that has to reach the reader */
};

/* Texts that give a token away where no key does. Of several texts of a role the first that exists counts. */
static const struct {
    const char *text;
    enum token_role role; /* ROLE_N: none */
    unsigned what;
} rows[] = {
    { "<|eot_id|>", ROLE_EOT, ENDS },
    { "<|im_end|>", ROLE_EOT, ENDS },
    { "<|end|>", ROLE_EOT, ENDS },
    { "<end_of_turn>", ROLE_EOT, ENDS },
    { "<|endoftext|>", ROLE_EOT, ENDS },
    { "<|end_of_text|>", ROLE_EOT, ENDS },
    { "<EOT>", ROLE_EOT, ENDS },
    { "_<EOT>", ROLE_EOT, ENDS },
    { "[EOT]", ROLE_EOT, ENDS },
    { "<｜end▁of▁sentence｜>", ROLE_EOT, ENDS },
    { "<end_of_utterance>", ROLE_EOT, ENDS },
    { "<|eom_id|>", ROLE_EOM, ENDS },
    { "<|return|>", ROLE_N, ENDS },
    { "<|call|>", ROLE_N, ENDS },
    { "<|flush|>", ROLE_N, ENDS },
    { "<|calls|>", ROLE_N, ENDS },
    { "</s>", ROLE_N, ENDS | WORD },
    { "[EOS]", ROLE_N, ENDS },
    { "<eos>", ROLE_N, ENDS },
    { "<turn|>", ROLE_N, ENDS },
    { "<|tool_response>", ROLE_N, ENDS },
    { "<|fim_prefix|>", ROLE_FIM_PRE, 0 },
    { "<fim-prefix>", ROLE_FIM_PRE, 0 },
    { "<fim_prefix>", ROLE_FIM_PRE, 0 },
    { "<｜fim▁begin｜>", ROLE_FIM_PRE, 0 },
    { "<PRE>", ROLE_FIM_PRE, 0 },
    { "▁<PRE>", ROLE_FIM_PRE, 0 },
    { "<|code_prefix|>", ROLE_FIM_PRE, 0 },
    { "<|prefix|>", ROLE_FIM_PRE, 0 },
    { "<|fim_suffix|>", ROLE_FIM_SUF, 0 },
    { "<fim-suffix>", ROLE_FIM_SUF, 0 },
    { "<fim_suffix>", ROLE_FIM_SUF, 0 },
    { "<｜fim▁hole｜>", ROLE_FIM_SUF, 0 },
    { "<SUF>", ROLE_FIM_SUF, 0 },
    { "▁<SUF>", ROLE_FIM_SUF, 0 },
    { "<|code_suffix|>", ROLE_FIM_SUF, 0 },
    { "<|suffix|>", ROLE_FIM_SUF, 0 },
    { "<|fim_middle|>", ROLE_FIM_MID, 0 },
    { "<fim-middle>", ROLE_FIM_MID, 0 },
    { "<fim_middle>", ROLE_FIM_MID, 0 },
    { "<｜fim▁end｜>", ROLE_FIM_MID, 0 },
    { "<MID>", ROLE_FIM_MID, 0 },
    { "▁<MID>", ROLE_FIM_MID, 0 },
    { "<|code_middle|>", ROLE_FIM_MID, 0 },
    { "<|middle|>", ROLE_FIM_MID, 0 },
    { "<|fim_pad|>", ROLE_FIM_PAD, 0 },
    { "<fim-pad>", ROLE_FIM_PAD, 0 },
    { "<fim_pad>", ROLE_FIM_PAD, 0 },
    { "<PAD>", ROLE_FIM_PAD, WORD },
    { "[PAD]", ROLE_FIM_PAD, WORD },
    { "<|fim_repo|>", ROLE_FIM_REP, 0 },
    { "<|repo_name|>", ROLE_FIM_REP, 0 },
    { "<fim-repo>", ROLE_FIM_REP, 0 },
    { "<REPO>", ROLE_FIM_REP, 0 },
    { "<reponame>", ROLE_FIM_REP, 0 },
    { "<|file_sep|>", ROLE_FIM_SEP, 0 },
    { "<|channel|>", ROLE_N, SHOWN },
    { "<|message|>", ROLE_N, SHOWN },
    { "<|start|>", ROLE_N, SHOWN },
    { "<|constrain|>", ROLE_N, SHOWN },
};

enum { N_ROWS = sizeof rows / sizeof rows[0] };

struct search {
    struct pieces *p;
    int32_t found[N_ROWS]; /* the least id with the row's text, or -1 */
};

static void find_texts(struct search *s, const struct weights_kv *tokens)
{
    bool first[256] = { false }; /* few tokens begin like a row */
    size_t lens[N_ROWS];
    for (int r = 0; r < N_ROWS; r++) {
        first[(uint8_t)rows[r].text[0]] = true;
        lens[r] = strlen(rows[r].text);
        s->found[r] = -1;
    }
    for (uint32_t id = 0; id < s->p->n; id++) {
        const char *text;
        size_t len;
        if (!weights_kv_str(tokens, id, &text, &len) || len == 0 || !first[(uint8_t)text[0]]) {
            continue;
        }
        for (int r = 0; r < N_ROWS; r++) {
            if (lens[r] == len && s->found[r] < 0 && memcmp(rows[r].text, text, len) == 0) {
                s->found[r] = (int32_t)id;
            }
        }
    }
}

/* The row's token where it counts, or -1. */
static int32_t holder(const struct search *s, int r)
{
    int32_t id = s->found[r];
    return id >= 0 && rows[r].what & WORD && s->p->types[id] != TOKEN_CONTROL ? -1 : id;
}

static int32_t find_text(const struct search *s, const char *text)
{
    for (int r = 0; r < N_ROWS; r++) {
        if (strcmp(rows[r].text, text) == 0) {
            return s->found[r];
        }
    }
    return -1;
}

/* ---- ids ---- */

/* An id by key. One that is no token of the vocabulary is ignored: files carry such. */
static int read_id(const struct pieces *p, const struct weights *w, const char *key, int32_t *out,
                   struct err *err)
{
    const struct weights_kv *kv = key ? weights_find_kv(w, key) : NULL;
    int64_t id;
    if (!kv) {
        return 0;
    }
    if (kv->type == WEIGHTS_ARRAY || kv->type == WEIGHTS_STRING) {
        return err_set(err, ERR_BAD_FILE, "key %s: not a number", key);
    }
    if (!weights_kv_i64(kv, 0, &id) || id < 0 || id >= p->n) {
        log_warn("key %s: no such token among %u; ignored", key, p->n);
        return 0;
    }
    *out = (int32_t)id;
    return 0;
}

static void take_by_text(struct search *s, enum token_role role, int32_t not_this)
{
    for (int r = 0; r < N_ROWS; r++) {
        int32_t id = rows[r].role == role ? holder(s, r) : -1;
        if (id >= 0 && id != not_this) {
            s->p->roles[role] = id;
            s->p->types[id] = TOKEN_CONTROL;
            return;
        }
    }
}

static void set_defaults(struct pieces *p, const char *model, size_t len)
{
    for (int i = 0; i < ROLE_N; i++) {
        p->roles[i] = -1;
    }
    for (size_t i = 0; i < sizeof defaults / sizeof defaults[0]; i++) {
        if (strlen(defaults[i].model) == len && memcmp(defaults[i].model, model, len) == 0) {
            p->roles[ROLE_BOS] = defaults[i].bos;
            p->roles[ROLE_EOS] = defaults[i].eos;
            p->roles[ROLE_UNK] = defaults[i].unk;
            p->roles[ROLE_SEP] = defaults[i].sep;
            p->roles[ROLE_PAD] = defaults[i].pad;
            p->roles[ROLE_MASK] = defaults[i].mask;
        }
    }
}

static int find_ids(struct search *s, const struct weights *w, struct err *err)
{
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        int32_t *id = &s->p->roles[keys[i].role];
        *id = *id < (int64_t)s->p->n ? *id : -1; /* a default beyond a small vocabulary */
        if (read_id(s->p, w, keys[i].old_key, id, err) < 0 ||
            read_id(s->p, w, keys[i].key, id, err) < 0) {
            return -1;
        }
        if (*id < 0) {
            take_by_text(s, keys[i].role, -1);
        }
    }
    return 0;
}

/* ---- ends ---- */

static void find_ends(struct search *s)
{
    struct pieces *p = s->p;
    for (size_t i = 0; i < sizeof ending_roles / sizeof ending_roles[0]; i++) {
        int32_t id = p->roles[ending_roles[i]];
        if (id >= 0) {
            p->flags[id] |= PIECES_END;
        }
    }
    for (int r = 0; r < N_ROWS; r++) {
        int32_t id = rows[r].what & ENDS ? holder(s, r) : -1;
        if (id >= 0) {
            p->flags[id] |= PIECES_END;
            p->types[id] = TOKEN_CONTROL;
        }
    }
}

static bool ends(const struct search *s, const char *text)
{
    return pieces_is_end(s->p, find_text(s, text));
}

/* Harmony's <|end|> closes a message, not the answer: another token is the end of a turn. */
static void keep_messages_open(struct search *s)
{
    struct pieces *p = s->p;
    int32_t id = find_text(s, "<|end|>");
    if (!pieces_is_end(p, id)) {
        return;
    }
    p->flags[id] &= (uint8_t)~PIECES_END;
    p->types[id] = TOKEN_USER_DEFINED;
    if (p->roles[ROLE_EOT] == id) {
        p->roles[ROLE_EOT] = -1;
        take_by_text(s, ROLE_EOT, id);
        if (p->roles[ROLE_EOT] >= 0) {
            p->flags[p->roles[ROLE_EOT]] |= PIECES_END;
        }
    }
}

static void correct_types(struct search *s)
{
    struct pieces *p = s->p;
    for (int r = 0; r < N_ROWS; r++) {
        if (rows[r].what & SHOWN && s->found[r] >= 0) {
            p->types[s->found[r]] = TOKEN_USER_DEFINED;
        }
    }
    if ((ends(s, "<|return|>") && ends(s, "<|call|>")) ||
        (ends(s, "<|calls|>") && ends(s, "<|flush|>"))) {
        keep_messages_open(s);
    }
    int32_t word = find_text(s, "</s>");
    if (ends(s, "<|tool_response>") && word >= 0 && word != p->roles[ROLE_EOS]) {
        /* The file may call it what it likes here: it ends nothing and is a word. */
        p->flags[word] &= (uint8_t)~PIECES_END;
        p->types[word] = TOKEN_NORMAL;
    }
}

int pieces_find_roles(struct pieces *p, const struct weights *w, const char *model,
                      size_t model_len, struct err *err)
{
    struct search s = { .p = p };
    set_defaults(p, model, model_len);
    find_texts(&s, weights_find_kv(w, KEY("tokens")));
    if (find_ids(&s, w, err) < 0) {
        return -1;
    }
    find_ends(&s);
    correct_types(&s);
    return 0;
}
