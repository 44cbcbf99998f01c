/* Every vector of the conformance directory's tokenizers: ids of texts, pieces, detokenised texts, streams, the words
 * of every pre-tokenizer. Runs when HEARTH_CONFORMANCE names the directory. */
#include "tests/test.h"

#include "loader/text/detok.h"
#include "loader/text/pretoken.h"
#include "loader/text/tokenizer.h"
#include "loader/text/unicode.h"
#include "vectors.h"

#define SHOWN_MAX 8 /* mismatches printed of one file */

static char dir[400];    /* CONFORMANCE/tokenizers */
static size_t n_lacking; /* rows without the model's words, see lacks_model_words */

/* Counts of one file: rows looked at, rows that differ. */
struct tally {
    const char *file;
    size_t n, n_wrong;
};

static void wrong(struct tally *tally, size_t row, const char *what)
{
    if (tally->n_wrong++ < SHOWN_MAX) {
        fprintf(stderr, "  %s row %zu: %s\n", tally->file, row, what);
    }
}

static bool same_ids(const struct json *array, const struct ids *ids)
{
    if (json_len(array) != ids->n) {
        return false;
    }
    for (size_t i = 0; i < ids->n; i++) {
        if (json_as_int(json_at(array, i)) != ids->ids[i]) {
            return false;
        }
    }
    return true;
}

static void read_ids(const struct json *array, struct ids *out)
{
    for (size_t i = 0; i < json_len(array); i++) {
        assert_int_equal(ids_push(out, (int32_t)json_as_int(json_at(array, i)), NULL), 0);
    }
}

static unsigned flags_of(const struct json *row)
{
    return (json_as_bool(json_find(row, "add_special")) ? TOKENIZER_ADD_SPECIAL : 0) |
           (json_as_bool(json_find(row, "parse_special")) ? TOKENIZER_PARSE_SPECIAL : 0);
}

static bool same_text(const struct json *row, const char *key, const uint8_t *text, size_t len)
{
    size_t want_len;
    char *want = vectors_text(row, key, &want_len);
    bool same = want && want_len == len && (len == 0 || memcmp(want, text, len) == 0);
    free(want);
    return same;
}

/* ---- one row each ---- */

static bool encodes(const struct tokenizer *t, const struct json *row, const struct json *want)
{
    struct err err = { 0 };
    struct ids ids = { 0 };
    size_t len;
    char *text = vectors_text(row, "text", &len);
    assert_non_null(text);
    assert_ok(tokenizer_encode(t, text, len, flags_of(row), &ids, &err), err);
    bool same = same_ids(want, &ids);
    ids_clear(&ids);
    free(text);
    return same;
}

static bool detokenises(const struct tokenizer *t, const struct json *row, const char *key,
                        unsigned flags)
{
    struct err err = { 0 };
    struct ids ids = { 0 };
    struct detok_text text = { 0 };
    read_ids(json_find(row, "ids"), &ids);
    assert_ok(detok_all(t, ids.ids, ids.n, flags, &text, &err), err);
    bool same = same_text(row, key, text.text, text.len);
    free(text.text);
    ids_clear(&ids);
    return same;
}

static bool has_piece(const struct tokenizer *t, const struct json *row)
{
    size_t len;
    const uint8_t *piece = tokenizer_piece(t, (int32_t)json_as_int(json_find(row, "id")),
                                           json_as_bool(json_find(row, "special")), &len);
    bool drop = json_as_int(json_find(row, "lstrip")) && len && piece[0] == ' ';
    return same_text(row, "text", piece + drop, len - drop);
}

/* Bytes as JSON shows them: each invalid one as U+FFFD. */
static void shown(struct detok_text *out, const uint8_t *bytes, size_t len)
{
    free(out->text);
    *out = (struct detok_text){ .text = malloc(3 * len + 1) };
    for (size_t i = 0; i < len;) {
        uint32_t code;
        i += utf8_decode(bytes + i, len - i, &code, NULL);
        out->len += utf8_encode(code, out->text + out->len);
    }
}

static bool streams(const struct tokenizer *t, const struct json *row)
{
    struct err err = { 0 };
    struct detok *d = detok_create(t, json_as_bool(json_find(row, "special")), &err);
    const struct json *ids = json_find(row, "ids"), *chunks = json_find(row, "chunks");
    struct detok_text seen = { 0 };
    bool same = d && json_len(ids) == json_len(chunks);
    size_t len, want_len;
    for (size_t i = 0; same && i < json_len(ids); i++) {
        const uint8_t *chunk = detok_push(d, (int32_t)json_as_int(json_at(ids, i)), &len);
        const char *want = json_as_str(json_at(chunks, i), &want_len);
        shown(&seen, chunk, len);
        same = seen.len == want_len && memcmp(seen.text, want, want_len) == 0;
    }
    char hex[16] = "";
    const uint8_t *held = detok_finish(d, &len);
    for (size_t i = 0; i < len; i++) {
        snprintf(hex + 2 * i, 3, "%02x", held[i]);
    }
    const char *want = json_as_str(json_find(row, "pending_hex"), &want_len);
    same = same && strcasecmp(hex, want) == 0;
    free(seen.text);
    detok_destroy(&d);
    return same;
}

/* ---- one vocabulary each ---- */

static void check_cases(const struct tokenizer *t, const char *name, bool reference,
                        struct tally *tally)
{
    char path[512];
    struct vectors v;
    snprintf(path, sizeof path, "%s/%s/cases.jsonl", dir, name);
    assert_true(vectors_open(&v, path));
    struct json *row;
    while ((row = vectors_next(&v))) {
        struct json *model = json_find(row, "ids_model");
        tally->n++;
        if (!encodes(t, row, model && !reference ? model : json_find(row, "ids"))) {
            wrong(tally, v.number, json_as_str(json_find(row, "category"), NULL));
        }
        json_destroy(&row);
    }
    vectors_close(&v);
}

static void check_pieces(const struct tokenizer *t, const char *name, struct tally *tally)
{
    char path[512];
    struct vectors v;
    snprintf(path, sizeof path, "%s/%s/pieces.jsonl", dir, name);
    assert_true(vectors_open(&v, path));
    struct json *row;
    while ((row = vectors_next(&v))) {
        const char *op = json_as_str(json_find(row, "op"), NULL);
        unsigned flags =
            (json_as_bool(json_find(row, "remove_special")) ? DETOK_REMOVE_SPECIAL : 0) |
            (json_as_bool(json_find(row, "unparse_special")) ? DETOK_UNPARSE_SPECIAL : 0);
        bool same = strcmp(op, "piece") == 0        ? has_piece(t, row)
                    : strcmp(op, "detokenize") == 0 ? detokenises(t, row, "text", flags)
                                                    : streams(t, row);
        tally->n++;
        if (!same) {
            wrong(tally, v.number, op);
        }
        json_destroy(&row);
    }
    vectors_close(&v);
}

static void check_number(struct tally *tally, const struct json *info, const char *key,
                         int64_t have)
{
    char other[64], what[160];
    snprintf(other, sizeof other, "%s_alt", key);
    const struct json *want = json_find(info, key), *alternative = json_find(info, other);
    tally->n++;
    if ((!want || json_as_int(want) != have) &&
        (!alternative || json_as_int(alternative) != have)) {
        snprintf(what, sizeof what, "%s is %lld, not %lld", key, (long long)have,
                 (long long)json_as_int(want));
        wrong(tally, 0, what);
    }
}

static bool flagged(const struct vocab *v, const struct json *array, uint8_t flag)
{
    size_t n = 0;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        n += (v->pieces.flags[id] & flag) != 0;
    }
    for (size_t i = 0; i < json_len(array); i++) {
        if (!(v->pieces.flags[json_as_int(json_at(array, i))] & flag)) {
            return false;
        }
    }
    return n == json_len(array);
}

static void check_info(const struct tokenizer *t, const char *name, struct tally *tally)
{
    static const struct {
        const char *key;
        enum token_role special;
    } ids[] = { { "bos", ROLE_BOS },         { "eos", ROLE_EOS },
                { "eot", ROLE_EOT },         { "eom", ROLE_EOM },
                { "unk", ROLE_UNK },         { "sep", ROLE_SEP },
                { "pad", ROLE_PAD },         { "nl", ROLE_NEWLINE },
                { "fim_pre", ROLE_FIM_PRE }, { "fim_suf", ROLE_FIM_SUF },
                { "fim_mid", ROLE_FIM_MID }, { "fim_pad", ROLE_FIM_PAD },
                { "fim_rep", ROLE_FIM_REP }, { "fim_sep", ROLE_FIM_SEP } };
    char path[512];
    snprintf(path, sizeof path, "%s/%s/info.json", dir, name);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    char *text = malloc(1 << 20);
    size_t len = fread(text, 1, 1 << 20, file);
    fclose(file);
    struct err err = { 0 };
    struct json *info = json_parse(text, len, &err);
    assert_non_null(info);
    free(text);
    const struct vocab *v = tokenizer_vocab(t);
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        check_number(tally, info, ids[i].key, tokenizer_special(t, ids[i].special));
    }
    check_number(tally, info, "n_tokens", tokenizer_n_vocab(t));
    check_number(tally, info, "max_token_len", (int64_t)v->text_len_max);
    bool want[] = { v->add_bos,       v->add_eos,      v->add_space_prefix,
                    v->ignore_merges, v->clean_spaces, v->remove_extra_whitespaces };
    const char *keys[] = { "add_bos",       "add_eos",      "add_space_prefix",
                           "ignore_merges", "clean_spaces", "remove_extra_whitespaces" };
    for (size_t i = 0; i < 6; i++) {
        tally->n++;
        if (json_as_bool(json_find(info, keys[i])) != want[i]) {
            wrong(tally, 0, keys[i]);
        }
    }
    tally->n += 3;
    const struct json *other = json_find(info, "eog_alt");
    if (!flagged(v, json_find(info, "eog"), PIECES_END) &&
        !(other && flagged(v, other, PIECES_END))) {
        wrong(tally, 0, "eog");
    }
    if (!flagged(v, json_find(info, "lstrip"), VOCAB_LSTRIP)) {
        wrong(tally, 0, "lstrip");
    }
    if (!flagged(v, json_find(info, "rstrip"), VOCAB_RSTRIP)) {
        wrong(tally, 0, "rstrip");
    }
    const struct json *changes = json_find(info, "type_changes");
    for (size_t i = 0; i < json_len(changes); i++) {
        const char *id;
        const struct json *type = json_member(changes, i, &id);
        tally->n++;
        if (v->pieces.types[atoi(id)] != json_as_int(type)) {
            wrong(tally, 0, id);
        }
    }
    json_destroy(&info);
}

static void every_vocabulary_agrees(void **state)
{
    (void)state;
    static const char *const names[] = {
        "llama-spm",     "phi-3",        "mistral-v3-spm", "gemma-like", "gemma4-like",
        "bert-bge",      "t5-ru",        "gpt-2",          "llama-bpe",  "qwen2",
        "o200k-harmony", "deepseek-llm", "deepseek-coder", "falcon",     "mpt",
        "starcoder",
    };
    if (!test_conformance()) {
        skip();
    }
    struct tally sum = { 0 };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct err err = { 0 };
        struct weights w = { 0 };
        struct tally tally = { .file = names[i] };
        vectors_vocabulary(&w, dir, names[i]);
        struct tokenizer *t = tokenizer_create(&w, NULL, &err);
        if (!t) {
            fail_msg("%s: %s", names[i], err.text);
        }
        check_info(t, names[i], &tally);
        check_cases(t, names[i], false, &tally);
        check_pieces(t, names[i], &tally);
        tokenizer_destroy(&t);
        if (strcmp(names[i], "o200k-harmony") == 0) {
            t = tokenizer_create(&w, PRETOKEN_REFERENCE "gpt-4o", &err);
            assert_non_null(t);
            check_cases(t, names[i], true, &tally);
            tokenizer_destroy(&t);
        }
        weights_unmap(&w);
        fprintf(stderr, "%s: %zu checks, %zu wrong\n", names[i], tally.n, tally.n_wrong);
        sum.n += tally.n;
        sum.n_wrong += tally.n_wrong;
    }
    fprintf(stderr, "vocabularies: %zu checks, %zu wrong\n", sum.n, sum.n_wrong);
    assert_int_equal(sum.n_wrong, 0);
}

/* ---- pre-tokenizers ---- */

static bool splits(const struct pretoken *pre, bool reference, const char *text, size_t len,
                   const struct json *words)
{
    struct splitter s = { 0 };
    size_t n = 0, start = 0, want_len;
    assert_int_equal(splitter_run(&s, pre, reference, (const uint8_t *)text, len, NULL), 0);
    bool same = true;
    for (; same && start < s.n; n++) {
        size_t end = splitter_piece_end(&s, start), have_len = 0;
        const char *want = n < json_len(words) ? json_as_str(json_at(words, n), &want_len) : "";
        uint8_t *have = malloc((end - start) * 4);
        for (size_t i = start; i < end; i++) {
            have_len += utf8_encode(s.codes[i], have + have_len);
        }
        same = n < json_len(words) && have_len == want_len && !memcmp(have, want, want_len);
        free(have);
        start = end;
    }
    splitter_clear(&s);
    return same && n == json_len(words);
}

/* Made-up texts for which the vectors give only the reference's words although the model's own regex, by the rules
 * of the other rows, cuts otherwise (marks that are letters, case within words, digits beside letters). */
static bool lacks_model_words(size_t row)
{
    return row == 305 || row == 307 || row == 337 || row == 356 || row == 371 || row == 378;
}

static void check_words(const struct pretoken *pre, const char *file, struct tally *tally)
{
    char path[512];
    struct vectors v;
    snprintf(path, sizeof path, "%s/pre-types/%s", dir, file);
    assert_true(vectors_open(&v, path));
    struct json *row;
    while ((row = vectors_next(&v))) {
        size_t len;
        char *text = vectors_text(row, "text", &len);
        struct json *words = json_find(row, "words"), *model = json_find(row, "words_model");
        tally->n += 2;
        if (!splits(pre, true, text, len, words)) {
            wrong(tally, v.number, "reference's words");
        }
        bool agrees = splits(pre, false, text, len, model ? model : words);
        if (!agrees && !model && pre->reference && lacks_model_words(v.number)) {
            n_lacking++;
        } else if (!agrees) {
            wrong(tally, v.number, "model's words");
        }
        free(text);
        json_destroy(&row);
    }
    vectors_close(&v);
}

static void every_splitter_agrees(void **state)
{
    (void)state;
    static const char *const names[][2] = {
        { "gpt-2", "gpt-2" },           { "starcoder", "starcoder" },
        { "llama-bpe", "llama-bpe" },   { "qwen2", "qwen2" },
        { "qwen35", "qwen35" },         { "gpt-4o", "gpt-4o" },
        { "tekken", "tekken" },         { "deepseek-llm", "deepseek-llm" },
        { "falcon", "falcon" },         { "deepseek-coder", "deepseek-coder" },
        { "default", "default" },       { "deepseek-v3", "deepseek-v3" },
        { "bloom", "bloom" },           { "viking", "viking" },
        { "chameleon", "chameleon" },   { "jais-2", "jais-2" },
        { "youtu", "youtu" },           { "tiny_aya", "tiny_aya" },
        { "kimi-k2", "kimi-k2" },       { "bailingmoe", "bailingmoe" },
        { "seed-coder", "seed-coder" }, { "afmoe", "afmoe" },
        { "exaone-moe", "exaone-moe" }, { "gemma4", "gemma4" },
    };
    if (!test_conformance()) {
        skip();
    }
    size_t n_wrong = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char file[64];
        snprintf(file, sizeof file, "words-%s.jsonl", names[i][1]);
        struct tally tally = { .file = file };
        const struct pretoken *pre = pretoken_find(names[i][0]);
        assert_non_null(pre);
        check_words(pre, file, &tally);
        fprintf(stderr, "%s: %zu checks, %zu wrong\n", file, tally.n, tally.n_wrong);
        n_wrong += tally.n_wrong;
    }
    fprintf(stderr, "rows that lack the model's words: %zu\n", n_lacking);
    assert_int_equal(n_wrong, 0);
    assert_int_equal(n_lacking, 25);
}

static void check_pre_ids(const struct weights *w, const char *name, struct tally *tally)
{
    char path[512], pre[80];
    struct vectors v;
    struct err err = { 0 };
    snprintf(path, sizeof path, "%s/pre-types/ids-%s.jsonl", dir, name);
    if (!vectors_open(&v, path)) {
        return; /* superbpe, on which the reference crashes */
    }
    snprintf(pre, sizeof pre, PRETOKEN_REFERENCE "%s", name);
    struct tokenizer *t = tokenizer_create(w, pre, &err);
    assert_non_null(t);
    struct json *row;
    while ((row = vectors_next(&v))) {
        tally->n++;
        if (!encodes(t, row, json_find(row, "ids"))) {
            wrong(tally, v.number, "ids");
        }
        if ((json_find(row, "detok") || json_find(row, "detok_b64")) &&
            !detokenises(t, row, "detok", DETOK_UNPARSE_SPECIAL)) {
            wrong(tally, v.number, "detok");
        }
        json_destroy(&row);
    }
    tokenizer_destroy(&t);
    vectors_close(&v);
}

static void every_name_agrees(void **state)
{
    (void)state;
    if (!test_conformance()) {
        skip();
    }
    struct weights w = { 0 };
    struct tally sum = { 0 };
    vectors_vocabulary(&w, dir, "llama-bpe");
    const struct pretoken *pre;
    for (size_t i = 0; (pre = pretoken_at(i)); i++) {
        struct tally tally = { .file = pre->name };
        check_pre_ids(&w, pre->name, &tally);
        sum.n += tally.n;
        sum.n_wrong += tally.n_wrong;
    }
    weights_unmap(&w);
    fprintf(stderr, "names: %zu checks, %zu wrong\n", sum.n, sum.n_wrong);
    assert_int_equal(sum.n_wrong, 0);
}

int main(void)
{
    const char *conformance = getenv("HEARTH_CONFORMANCE");
    snprintf(dir, sizeof dir, "%s/tokenizers", conformance ? conformance : "");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_splitter_agrees),
        cmocka_unit_test(every_vocabulary_agrees),
        cmocka_unit_test(every_name_agrees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
