/* Tokenizers over vocabularies of a few tokens: merging, byte tokens, special tokens, malformed files, streams. */
#include "tests/test.h"

#include "loader/text/charsmap.h"
#include "loader/text/detok.h"
#include "loader/text/tokenizer.h"
#include "small_vocab.h"

#define N(array) (sizeof(array) / sizeof *(array))
#define ADD      TOKENIZER_ADD_SPECIAL
#define PARSE    TOKENIZER_PARSE_SPECIAL

static const struct small_token spm_tokens[] = {
    { "<unk>", 0, TOKEN_UNKNOWN },
    { "<s>", 0, TOKEN_CONTROL },
    { "</s>", 0, TOKEN_CONTROL },
    { "\xe2\x96\x81", -1, TOKEN_NORMAL },
    { "a", -2, TOKEN_NORMAL },
    { "b", -3, TOKEN_NORMAL },
    { "ab", -4, TOKEN_NORMAL },
    { "\xe2\x96\x81"
      "ab",
      -5, TOKEN_NORMAL },
    { "ba", -3.5f, TOKEN_NORMAL },
    { "<think>", 0, TOKEN_USER_DEFINED },
    { "<thinking>", 0, TOKEN_CONTROL },
};
static const struct small_vocab spm = { .model = "llama",
                                        .tokens = spm_tokens,
                                        .n_tokens = N(spm_tokens),
                                        .bytes = true,
                                        .bos = -1,
                                        .eos = -1,
                                        .space_prefix = -1 };

static const struct small_token bpe_tokens[] = {
    { "<|end|>", 0, TOKEN_CONTROL },
    { "he", 0, TOKEN_NORMAL },
    { "ll", 0, TOKEN_NORMAL },
    { "llo", 0, TOKEN_NORMAL },
    { "hello", 0, TOKEN_NORMAL },
    { "\xc4\xa0"
      "hello",
      0, TOKEN_NORMAL },
    { "  ", 0, TOKEN_USER_DEFINED },
    { "<|pad|>", 0, TOKEN_UNUSED },
};
static const char *const bpe_merges[] = { "h e",     "l l", "ll o", "he llo", "\xc4\xa0 hello",
                                          "nospace", "l l" };
static const struct small_vocab bpe = { .model = "gpt2",
                                        .pre = "gpt-2",
                                        .tokens = bpe_tokens,
                                        .n_tokens = N(bpe_tokens),
                                        .merges = bpe_merges,
                                        .n_merges = N(bpe_merges),
                                        .bytes = true,
                                        .bos = 0,
                                        .eos = 0,
                                        .space_prefix = -1 };

static struct tokenizer *open_small(const struct small_vocab *v)
{
    struct err err = { 0 };
    struct weights w = { 0 };
    small_vocab_map(&w, v);
    struct tokenizer *t = tokenizer_create(&w, NULL, &err);
    weights_unmap(&w); /* the tokenizer keeps what it needs */
    if (!t) {
        fail_msg("%s", err.text);
    }
    return t;
}

static void assert_ids(const struct tokenizer *t, const char *text, unsigned flags, size_t n,
                       const int32_t *want)
{
    struct err err = { 0 };
    struct ids ids = { 0 };
    assert_ok(tokenizer_encode(t, text, strlen(text), flags, &ids, &err), err);
    assert_int_equal(ids.n, n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(ids.ids[i], want[i]);
    }
    ids_clear(&ids);
}
#define IDS(t, text, flags, ...)                                                                   \
    assert_ids(t, text, flags, N(((const int32_t[]){ __VA_ARGS__ })),                              \
               (const int32_t[]){ __VA_ARGS__ })

static void spm_joins_the_best_score_first(void **state)
{
    (void)state;
    struct tokenizer *t = open_small(&spm);
    const int32_t byte = (int32_t)N(spm_tokens);
    IDS(t, "ab", 0, 7);
    IDS(t, "aba", 0, 3, 4, 8); /* "ba" scores better than "ab" */
    IDS(t, "ab", ADD, 1, 7);
    IDS(t, "c", 0, 3, byte + 'c'); /* no token: its bytes */
    IDS(t, "a\xff", 0, 3, 4, byte + 0xff);
    assert_ids(t, "", 0, 0, NULL);
    assert_int_equal(tokenizer_piece_max(t), strlen("<thinking>"));
    assert_int_equal(tokenizer_special(t, ROLE_NEWLINE), byte + '\n');
    assert_true(tokenizer_is_eog(t, 2));
    assert_false(tokenizer_is_eog(t, 1));
    assert_false(tokenizer_is_eog(t, -1));
    tokenizer_destroy(&t);
    assert_null(t);
}

/* Goal: what a user writes is text, unless the caller says otherwise; user-defined tokens are always parsed. */
static void special_texts_stay_text_unless_parsed(void **state)
{
    (void)state;
    struct tokenizer *t = open_small(&spm);
    const int32_t byte = (int32_t)N(spm_tokens);
    IDS(t, "<s>", 0, 3, byte + '<', byte + 's', byte + '>');
    IDS(t, "<s>", PARSE, 1);
    IDS(t, "<s>ab<s>ab", PARSE, 1, 7, 1, 7); /* a space before each text behind a special token */
    IDS(t, "<think>", 0, 9);
    IDS(t, "ab<think>ab", 0, 7, 9, 7);
    tokenizer_destroy(&t);
}

static void the_longest_special_token_wins(void **state)
{
    (void)state;
    struct tokenizer *t = open_small(&spm);
    IDS(t, "<thinking>", PARSE, 10);
    static const struct small_token tokens[] = {
        { "<unk>", 0, TOKEN_UNKNOWN },    { "<s>", 0, TOKEN_CONTROL },
        { "</s>", 0, TOKEN_CONTROL },     { "xyz", 0, TOKEN_CONTROL },
        { "yzabc", 0, TOKEN_CONTROL },    { "  ", 0, TOKEN_USER_DEFINED },
        { "   ", 0, TOKEN_USER_DEFINED },
    };
    struct small_vocab v = spm;
    v.tokens = tokens;
    v.n_tokens = N(tokens);
    v.space_prefix = 0;
    struct tokenizer *other = open_small(&v);
    const int32_t byte = (int32_t)N(tokens);
    IDS(other, "xyzabc", PARSE, byte + 'x', 4); /* though "xyz" starts earlier */
    IDS(other, "        ", 0, 6, 6, 5);         /* three, three, two */
    IDS(other, "xyxyz", PARSE, byte + 'x', byte + 'y', 3);
    tokenizer_destroy(&other);
    tokenizer_destroy(&t);
}

static void some_tokens_eat_white_space_behind_them(void **state)
{
    (void)state;
    struct small_vocab v = spm;
    v.name = "Phi-3 mini";
    struct tokenizer *t = open_small(&v);
    IDS(t, "</s> \n ab", PARSE, 2, 7);
    IDS(t, "<s> ab", PARSE, 1, 3, 7); /* not this one */
    tokenizer_destroy(&t);
}

static void bpe_joins_by_rank_within_words(void **state)
{
    (void)state;
    struct tokenizer *t = open_small(&bpe);
    const int32_t byte = (int32_t)N(bpe_tokens);
    IDS(t, "hello hello", 0, 4, 5);
    IDS(t, "hell", 0, 1, 2);
    IDS(t, "helo", 0, 1, byte + 'l', byte + 'o');
    IDS(t, "lll", 0, 2, byte + 'l'); /* the leftmost of equals */
    IDS(t, "<|end|>", PARSE, 0);
    IDS(t, "a  a", 0, byte + 'a', 6, byte + 'a');
    IDS(t, "\xff", 0, byte + 0xef, byte + 0xbf, byte + 0xbd); /* no UTF-8: U+FFFD */
    tokenizer_destroy(&t);
}

static void texts_come_back_from_ids(void **state)
{
    (void)state;
    struct err err = { 0 };
    const struct small_vocab *vocabs[] = { &spm, &bpe };
    uint32_t seed = 7;
    for (size_t k = 0; k < 2; k++) {
        struct small_vocab v = *vocabs[k];
        v.space_prefix = 0;
        struct weights_builder *b = small_vocab_begin(&v);
        struct weights w = { 0 };
        small_vocab_finish(&b, &w);
        struct tokenizer *t = tokenizer_create(&w, NULL, &err);
        weights_unmap(&w);
        assert_non_null(t);
        for (int round = 0; round < 300; round++) {
            static const char alphabet[] = "abhelo <|end|>s\n'.";
            char text[40];
            size_t len = (size_t)round % sizeof text;
            for (size_t i = 0; i < len; i++) {
                seed = seed * 1664525 + 1013904223;
                text[i] = alphabet[(seed >> 16) % (sizeof alphabet - 1)];
            }
            struct ids ids = { 0 };
            struct detok *d = detok_create(t, true, &err);
            assert_ok(tokenizer_encode(t, text, len, PARSE, &ids, &err), err);
            char back[200];
            size_t n = 0, piece;
            for (size_t i = 0; i < ids.n; i++) {
                const uint8_t *bytes = detok_push(d, ids.ids[i], &piece);
                memcpy(back + n, bytes, piece);
                n += piece;
            }
            assert_int_equal(n, len);
            assert_memory_equal(back, text, len);
            detok_finish(d, &piece);
            assert_int_equal(piece, 0);
            detok_destroy(&d);
            ids_clear(&ids);
        }
        tokenizer_destroy(&t);
    }
}

static void streams_never_end_inside_a_character(void **state)
{
    (void)state;
    struct err err = { 0 };
    struct tokenizer *t = open_small(&bpe);
    struct detok *d = detok_create(t, false, &err);
    const int32_t byte = (int32_t)N(bpe_tokens);
    size_t len;
    detok_push(d, byte + 0xe2, &len);
    assert_int_equal(len, 0);
    detok_push(d, byte + 0x82, &len);
    assert_int_equal(len, 0);
    assert_memory_equal(detok_push(d, byte + 0xac, &len), "\xe2\x82\xac", 3);
    assert_int_equal(len, 3);
    detok_push(d, 0, &len); /* a control token shows nothing */
    assert_int_equal(len, 0);
    detok_push(d, 7, &len); /* nor does an unused one, nor an id that is none */
    assert_int_equal(len, 0);
    detok_push(d, 1000000, &len);
    assert_int_equal(len, 0);
    detok_push(d, byte + 0xf0, &len);
    assert_memory_equal(detok_push(d, byte + 'a', &len),
                        "\xf0"
                        "a",
                        2);
    detok_push(d, byte + 0xc3, &len);
    assert_memory_equal(detok_finish(d, &len), "\xc3", 1);
    assert_int_equal(len, 1);
    detok_destroy(&d);
    tokenizer_destroy(&t);
}

static void detokenising_removes_what_encoding_adds(void **state)
{
    (void)state;
    struct err err = { 0 };
    struct tokenizer *t = open_small(&spm);
    static const int32_t ids[] = { 1, 7, 7 };
    struct detok_text text = { 0 };
    assert_ok(detok_all(t, ids + 1, 2, 0, &text, &err), err);
    assert_int_equal(text.len, strlen("ab ab"));
    assert_memory_equal(text.text, "ab ab", text.len);
    text.len = 0;
    assert_ok(detok_all(t, ids, 3, DETOK_UNPARSE_SPECIAL, &text, &err), err);
    assert_memory_equal(text.text, "<s> ab ab", text.len);
    text.len = 0;
    assert_ok(detok_all(t, ids, 3, DETOK_REMOVE_SPECIAL, &text, &err), err);
    assert_memory_equal(text.text, " ab ab", text.len);
    static const int32_t bad[] = { 7, 99999 };
    assert_int_equal(detok_all(t, bad, 2, 0, &text, &err), -1);
    assert_int_equal(err.code, ERR_BAD_INPUT);
    free(text.text);
    tokenizer_destroy(&t);
}

/* ---- malformed files ---- */

static void assert_refused(struct weights_builder *b, const char *pre, enum err_code code,
                           const char *names)
{
    struct err err = { 0 };
    struct weights w = { 0 };
    small_vocab_finish(&b, &w);
    assert_null(tokenizer_create(&w, pre, &err));
    assert_int_equal(err.code, code);
    assert_non_null(strstr(err.text, names));
    weights_unmap(&w);
}

static void malformed_vocabularies_are_refused_by_key(void **state)
{
    (void)state;
    struct small_vocab v = spm;
    v.tokens = NULL;
    assert_refused(small_vocab_begin(&v), NULL, ERR_BAD_FILE, "tokenizer.ggml.tokens");
    v = spm;
    v.scores_short = 1;
    assert_refused(small_vocab_begin(&v), NULL, ERR_BAD_FILE, "tokenizer.ggml.scores");
    v = bpe;
    v.merges = NULL;
    assert_refused(small_vocab_begin(&v), NULL, ERR_BAD_FILE, "tokenizer.ggml.merges");
    v = bpe;
    v.pre = "nobody";
    assert_refused(small_vocab_begin(&v), NULL, ERR_UNSUPPORTED, "nobody");
    assert_refused(small_vocab_begin(&bpe), "reference/nobody", ERR_UNSUPPORTED, "nobody");
    v = spm;
    v.model = "morse";
    assert_refused(small_vocab_begin(&v), NULL, ERR_UNSUPPORTED, "morse");
    v.model = "no_vocab";
    assert_refused(small_vocab_begin(&v), NULL, ERR_UNSUPPORTED, "no vocabulary");
    struct weights_builder *b = small_vocab_begin(&spm);
    small_vocab_number(b, "tokenizer.ggml.add_bos_token", WEIGHTS_U32, 1);
    assert_refused(b, NULL, ERR_BAD_FILE, "add_bos_token");
    b = small_vocab_begin(&spm);
    small_vocab_str(b, "tokenizer.ggml.bos_token_id", "1");
    assert_refused(b, NULL, ERR_BAD_FILE, "bos_token_id");
    static const struct small_token strange[] = { { "a", 0, 17 } };
    v = spm;
    v.tokens = strange;
    v.n_tokens = 1;
    assert_refused(small_vocab_begin(&v), NULL, ERR_BAD_FILE, "token_type");
    static const struct small_token nan[] = { { "a", __builtin_nanf(""), 1 } };
    v.tokens = nan;
    assert_refused(small_vocab_begin(&v), NULL, ERR_BAD_FILE, "scores");
}

/* Goal: ids beyond a small vocabulary, equal texts and empty texts are coped with. */
static void odd_vocabularies_still_work(void **state)
{
    (void)state;
    static const struct small_token tokens[] = { { "a", 0, TOKEN_NORMAL },
                                                 { "a", 0, TOKEN_NORMAL },
                                                 { "", 0, TOKEN_NORMAL } };
    struct small_vocab v = { .model = "llama",
                             .tokens = tokens,
                             .n_tokens = N(tokens),
                             .bos = 4000000000,
                             .eos = -1,
                             .space_prefix = 0 };
    struct tokenizer *t = open_small(&v);
    size_t len;
    IDS(t, "aa", ADD, 1, 0, 0);
    assert_int_equal(tokenizer_special(t, ROLE_BOS), 1); /* the default stands */
    assert_memory_equal(tokenizer_piece(t, 2, false, &len), "[EMPTY_2]", 9);
    assert_memory_equal(tokenizer_piece(t, 1, false, &len), "a", 1);
    tokenizer_destroy(&t);
}

static void other_models_cut_as_their_rules_say(void **state)
{
    (void)state;
    static const struct small_token wpm[] = {
        { "[UNK]", 0, TOKEN_UNKNOWN },
        { "[CLS]", 0, TOKEN_CONTROL },
        { "[SEP]", 0, TOKEN_CONTROL },
        { "\xe2\x96\x81un", 0, 1 },
        { "able", 0, 1 },
        { "\xe2\x96\x81,", 0, 1 },
        { "\xe2\x96\x81"
          "e",
          0, 1 },
    };
    struct small_vocab v = {
        .model = "bert", .tokens = wpm, .n_tokens = N(wpm), .bos = 1, .eos = -1, .space_prefix = -1
    };
    struct weights_builder *b = small_vocab_begin(&v);
    struct weights w = { 0 };
    struct err err = { 0 };
    small_vocab_number(b, "tokenizer.ggml.seperator_token_id", WEIGHTS_U32, 2);
    small_vocab_number(b, "tokenizer.ggml.unknown_token_id", WEIGHTS_U32, 0);
    small_vocab_finish(&b, &w);
    struct tokenizer *t = tokenizer_create(&w, NULL, &err);
    weights_unmap(&w);
    assert_non_null(t);
    IDS(t, "Unable,unx \xc3\xa9", ADD, 1, 3, 4, 5, 0, 6, 2);
    tokenizer_destroy(&t);

    static const struct small_token ugm[] = {
        { "<pad>", 0, TOKEN_CONTROL },
        { "</s>", 0, TOKEN_CONTROL },
        { "<unk>", 0, TOKEN_UNKNOWN },
        { "\xe2\x96\x81", -3, 1 },
        { "a", -3, 1 },
        { "b", -3, 1 },
        { "\xe2\x96\x81"
          "ab",
          -4, 1 },
    };
    v = (struct small_vocab){
        .model = "t5", .tokens = ugm, .n_tokens = N(ugm), .bos = -1, .eos = -1, .space_prefix = 1
    };
    t = open_small(&v);
    IDS(t, "ab", ADD, 6, 1);
    IDS(t, "axxb", 0, 3, 4, 2, 5); /* unknown characters collapse */
    tokenizer_destroy(&t);

    static const struct small_token rwkv[] = {
        { "a", 0, 1 }, { "ab", 0, 1 }, { "\\x00", 0, 1 }, { "\\n", 0, 1 }
    };
    v = (struct small_vocab){ .model = "rwkv",
                              .tokens = rwkv,
                              .n_tokens = N(rwkv),
                              .bos = -1,
                              .eos = -1,
                              .space_prefix = -1 };
    t = open_small(&v);
    IDS(t, "aab\n", 0, 0, 1, 3);
    tokenizer_destroy(&t);

    static const struct small_token plamo[] = { { "<unk>", 0, 2 },  { "<s>", 0, 3 },
                                                { "</s>", 0, 3 },   { "a", -1, 1 },
                                                { "aa", -1.5f, 1 }, { "<0xC3>", 0, 6 },
                                                { "<0xA9>", 0, 6 } };
    v = (struct small_vocab){ .model = "plamo2",
                              .tokens = plamo,
                              .n_tokens = N(plamo),
                              .bos = -1,
                              .eos = -1,
                              .space_prefix = -1 };
    t = open_small(&v);
    IDS(t,
        "\xef\xbb\xbf"
        "aa\xc3\xa9",
        0, 4, 5, 6);
    tokenizer_destroy(&t);
    /* A token that ends inside a character is never taken: nothing begins where it ends. */
    static const struct small_token halves[] = {
        { "<unk>", 0, 2 }, { "\xc3", 9, 1 }, { "a\xc3", 9, 1 }, { "a", -1, 1 }
    };
    v.tokens = halves;
    v.n_tokens = N(halves);
    t = open_small(&v);
    IDS(t, "a\xc3\xa9", 0, 3, 1, 0);
    tokenizer_destroy(&t);
}

/* Goal: no character map, however broken, is read outside of its bytes. */
static void broken_character_maps_do_no_harm(void **state)
{
    (void)state;
    uint8_t map[80];
    uint32_t seed = 1;
    for (int round = 0; round < 20000; round++) {
        for (size_t i = 0; i < sizeof map; i++) {
            seed = seed * 1664525 + 1013904223;
            map[i] = (uint8_t)(seed >> 24) & (round % 3 ? 0xff : 0x17);
        }
        uint32_t size = (uint32_t)(round % 84);
        memcpy(map, &size, sizeof size);
        map[sizeof map - 1] = 0;
        uint8_t *exact = malloc(sizeof map); /* so that a sanitizer sees its end */
        memcpy(exact, map, sizeof map);
        struct charsmap m;
        const uint8_t *text;
        size_t len;
        if (charsmap_init(&m, exact, sizeof map, NULL) == 0) {
            charsmap_match(&m, (const uint8_t *)"\x01\x02\x03\x17\x10", 5, &text, &len);
        }
        free(exact);
    }
}

/* Goal: texts that are one long word or nothing but special tokens come back soon. */
static void long_texts_take_linear_time(void **state)
{
    (void)state;
    enum { LEN = 300000 };
    struct err err = { 0 };
    const struct small_vocab *vocabs[] = { &spm, &bpe };
    static const char *const units[] = { "l", " ", "<thinking", "\xff", "hello" };
    char *text = malloc(LEN + 16);
    for (size_t k = 0; k < 2; k++) {
        struct tokenizer *t = open_small(vocabs[k]);
        for (size_t u = 0; u < N(units); u++) {
            size_t len = 0;
            for (; len < LEN; len += strlen(units[u])) {
                memcpy(text + len, units[u], strlen(units[u]));
            }
            struct ids ids = { 0 };
            assert_ok(tokenizer_encode(t, text, len, PARSE, &ids, &err), err);
            assert_true(ids.n > 0);
            ids_clear(&ids);
        }
        tokenizer_destroy(&t);
    }
    free(text);
}

/* A row of symbols is what joining gives when each two neighbours, encoded alone, stay two (loader/text/windows.h), whatever
 * way they were found. */
static void expect_neighbours_to_stay(const struct tokenizer *t, const char *text, size_t len)
{
    struct err err = { 0 };
    struct ids ids = { 0 }, two = { 0 };
    size_t at = 0, n[2];
    assert_ok(tokenizer_encode(t, text, len, 0, &ids, &err), err);
    for (size_t i = 0; i + 1 < ids.n; i++) {
        (void)tokenizer_piece(t, ids.ids[i], false, &n[0]);
        (void)tokenizer_piece(t, ids.ids[i + 1], false, &n[1]);
        two.n = 0;
        assert_ok(tokenizer_encode(t, text + at, n[0] + n[1], 0, &two, &err), err);
        if (two.n != 2 || two.ids[0] != ids.ids[i] || two.ids[1] != ids.ids[i + 1]) {
            fail_msg("token %zu at byte %zu", i, at);
        }
        at += n[0];
    }
    assert_int_equal(at + n[1], len);
    ids_clear(&ids);
    ids_clear(&two);
}

/* Goal: windows change nothing, neither where joins are local nor in a vocabulary made against them: LETTERS letters whose every
 * pair is a token, in a text that has each pair once in a period, each better than the one before, so that what becomes of the
 * first depends on the last. */
static void long_words_are_joined_as_a_whole(void **state)
{
    (void)state;
    enum { LETTERS = 71, PERIOD = LETTERS * LETTERS, PERIODS = 12 };
    static struct small_token tokens[LETTERS + PERIOD];
    static char texts[LETTERS + PERIOD][8];
    static uint8_t order[PERIOD + 1];
    static char text[PERIOD * PERIODS * 2 + 1], plain[150000];
    size_t n = 0, len = 0;
    for (size_t i = 0; i < LETTERS; i++) {
        order[n++] = (uint8_t)i;
        for (size_t j = i + 1; j < LETTERS; j++) {
            order[n++] = (uint8_t)i;
            order[n++] = (uint8_t)j;
        }
        snprintf(texts[i], sizeof texts[i], "%c%c", 0xd0, 0x80 + (int)i % 64);
        texts[i][0] = (char)(0xd0 + i / 64);
        tokens[i] = (struct small_token){ texts[i], -9e6f, TOKEN_NORMAL };
    }
    assert_int_equal(n, PERIOD);
    for (size_t i = 0; i < PERIOD; i++) {
        char *pair = texts[LETTERS + i];
        snprintf(pair, sizeof texts[0], "%s%s", texts[order[i]], texts[order[(i + 1) % PERIOD]]);
        tokens[LETTERS + i] = (struct small_token){ pair, (float)i - 9000, TOKEN_NORMAL };
    }
    for (size_t i = 0; i < PERIOD * PERIODS; i++) {
        memcpy(text + len, texts[order[(i + 1) % PERIOD]], 2);
        len += 2;
    }
    struct small_vocab v = spm;
    v.tokens = tokens;
    v.n_tokens = N(tokens);
    v.bytes = false;
    v.space_prefix = 0;
    struct tokenizer *t = open_small(&v);
    expect_neighbours_to_stay(t, text, len);
    tokenizer_destroy(&t);
    t = open_small(&bpe);
    uint32_t random = 1;
    for (size_t i = 0; i < sizeof plain; i++) {
        random = random * 1664525 + 1013904223;
        plain[i] = "hello"[random >> 16 & 3];
    }
    expect_neighbours_to_stay(t, plain, sizeof plain);
    tokenizer_destroy(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spm_joins_the_best_score_first),
        cmocka_unit_test(special_texts_stay_text_unless_parsed),
        cmocka_unit_test(the_longest_special_token_wins),
        cmocka_unit_test(some_tokens_eat_white_space_behind_them),
        cmocka_unit_test(bpe_joins_by_rank_within_words),
        cmocka_unit_test(texts_come_back_from_ids),
        cmocka_unit_test(streams_never_end_inside_a_character),
        cmocka_unit_test(detokenising_removes_what_encoding_adds),
        cmocka_unit_test(malformed_vocabularies_are_refused_by_key),
        cmocka_unit_test(odd_vocabularies_still_work),
        cmocka_unit_test(other_models_cut_as_their_rules_say),
        cmocka_unit_test(broken_character_maps_do_no_harm),
        cmocka_unit_test(long_texts_take_linear_time),
        cmocka_unit_test(long_words_are_joined_as_a_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
