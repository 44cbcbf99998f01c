/* Splitters: a few words of each family, and what holds for all of them on any text. */
#include "tests/test.h"

#include "loader/text/pretoken.h"
#include "loader/text/unicode.h"

/* Words joined by "|". */
static void assert_words(const char *pre, bool reference, const char *text, const char *want)
{
    struct splitter s = { 0 };
    char have[512] = "";
    size_t n = 0;
    assert_non_null(pretoken_find(pre));
    assert_int_equal(
        splitter_run(&s, pretoken_find(pre), reference, (const uint8_t *)text, strlen(text), NULL),
        0);
    for (size_t i = 0; i < s.n; i++) {
        if (i && s.cuts[i]) {
            have[n++] = '|';
        }
        n += utf8_encode(s.codes[i], (uint8_t *)have + n);
    }
    have[n] = '\0';
    splitter_clear(&s);
    assert_string_equal(have, want);
}

static void each_family_cuts_its_own_way(void **state)
{
    (void)state;
    assert_words("gpt-2", false, "I'm 12345  ok!!\n", "I|'m| 12345| | ok|!!|\n");
    assert_words("starcoder", false, " 123", " |1|2|3");
    assert_words("llama-bpe", false, "I'M 12345  ok!!\n\nx", "I|'M| |123|45| | ok|!!\n\n|x");
    assert_words("qwen2", false, "a 123", "a| |1|2|3");
    assert_words("gpt-4o", false, "camelCase's", "camel|Case's");
    assert_words("gpt-4o", true, "\xc3\x89t\xc3\x89", "\xc3\x89t\xc3\x89");
    assert_words("gpt-4o", false, "\xc3\x89t\xc3\x89", "\xc3\x89t|\xc3\x89");
    assert_words("tekken", false, "it's 12", "it|'s| |1|2");
    assert_words("deepseek-v3", false, "a ~b", "a| ~|b");
    assert_words("deepseek-v3", true, "a ~b", "a| |~b");
    assert_words("falcon", false, "1234,x", "123|4|,|x");
    assert_words("bloom", false, "a b, c", "a| b|,| c");
    assert_words("chameleon", false, "IMGIMGABZ<sentinel:1>", "IMGIMGABZ|<|sentinel|:|1|>");
    assert_words("superbpe", false, "a 12345", "a |12|345");
    assert_words("tiny_aya", false, "12345 1234x", "12|345| |123|4|x");
    assert_words("exaone-moe", false, "one two  x", "one two| | x");
    assert_words("gemma4", false, "a b\n\nc", "a b|\n\n|c");
    assert_words("jais-2", false, "a      b", "a|    | | b");
}

static void names_that_are_none_are_refused(void **state)
{
    (void)state;
    assert_null(pretoken_find(""));
    assert_null(pretoken_find("gpt-3"));
    assert_null(pretoken_find("reference/gpt-2"));
}

/* Goal: whatever the text, cuts stand inside of it, the first at its start, and broken bytes do no harm. Long runs
 * of each kind are there because a splitter that looks at a run from each of its places would not come back. */
static void every_splitter_survives_every_text(void **state)
{
    (void)state;
    enum { RUN = 60000 };
    static const char *const units[] = { " ",
                                         "\n",
                                         " \n",
                                         "a",
                                         "A",
                                         "7",
                                         "!",
                                         "'",
                                         "\xc3\xa9"
                                         "A",
                                         "~",
                                         "\xff",
                                         "\xe4\xb8\x80",
                                         "a ",
                                         "\t",
                                         "<sentinel:",
                                         "IMGIMG",
                                         "\xcc\x81",
                                         "\xe3\x80\x80" };
    char *text = malloc(RUN + 16);
    struct splitter s = { 0 };
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t len = 0;
        while (len < RUN) {
            memcpy(text + len, units[u], strlen(units[u]));
            len += strlen(units[u]);
        }
        text[len++] = 'x';
        const struct pretoken *pre;
        for (size_t i = 0; (pre = pretoken_at(i)); i++) {
            if (i && pre->passes == pretoken_at(i - 1)->passes) {
                continue;
            }
            for (int reference = 0; reference < 2; reference++) {
                assert_int_equal(splitter_run(&s, pre, reference, (const uint8_t *)text, len, NULL),
                                 0);
                assert_true(s.n > 0 && s.n <= len && s.cuts[0] == 1);
            }
        }
    }
    splitter_clear(&s);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_family_cuts_its_own_way),
        cmocka_unit_test(names_that_are_none_are_refused),
        cmocka_unit_test(every_splitter_survives_every_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
