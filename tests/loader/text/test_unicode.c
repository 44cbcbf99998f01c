/* UTF-8 and categories: what decodes, what does not, what may still become whole. */
#include "tests/test.h"

#include "loader/text/unicode.h"

static void categories_are_those_of_the_standard(void **state)
{
    (void)state;
    static const struct {
        uint32_t code;
        enum unicode_category category;
    } rows[] = {
        { 'A', UNICODE_LU },    { 'z', UNICODE_LL },      { '7', UNICODE_ND },
        { '_', UNICODE_PC },    { '$', UNICODE_SC },      { ' ', UNICODE_ZS },
        { 0x2c6, UNICODE_LM },  { 0x301, UNICODE_MN },    { 0x4e00, UNICODE_LO },
        { 0x216b, UNICODE_NL }, { 0xbd, UNICODE_NO },     { 0x1f600, UNICODE_SO },
        { 0x200b, UNICODE_CF }, { 0xe000, UNICODE_CO },   { 0xd800, UNICODE_CS },
        { 0x378, UNICODE_CN },  { 0x110000, UNICODE_CN }, { UINT32_MAX, UNICODE_CN },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(unicode_category(rows[i].code), rows[i].category);
    }
}

static void white_space_is_25_code_points(void **state)
{
    (void)state;
    int n = 0;
    for (uint32_t code = 0; code < UTF8_LIMIT; code++) {
        n += (UNICODE_BIT(unicode_category(code)) & UNICODE_SPACE) != 0;
    }
    assert_int_equal(n, 25);
    assert_true(UNICODE_BIT(unicode_category(0x85)) & UNICODE_SPACE);
    assert_false(UNICODE_BIT(unicode_category(0xfeff)) & UNICODE_SPACE);
}

static void letters_lower_and_decompose(void **state)
{
    (void)state;
    assert_int_equal(unicode_lowercase('A'), 'a');
    assert_int_equal(unicode_lowercase('a'), 'a');
    assert_int_equal(unicode_lowercase(0x100), 0x101);
    assert_int_equal(unicode_lowercase(0x101), 0x101);
    assert_int_equal(unicode_lowercase(0x416), 0x436);
    assert_int_equal(unicode_decomposed_base(0xe9), 'e');
    assert_int_equal(unicode_decomposed_base(0xac01), 0x1100);
    assert_int_equal(unicode_decomposed_base('e'), 'e');
}

static void every_character_comes_back(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < UTF8_LIMIT; code += code < 0x3000 ? 1 : 37) {
        uint8_t text[4];
        uint32_t back;
        bool valid;
        size_t len = utf8_encode(code, text);
        bool surrogate = code >= 0xd800 && code <= 0xdfff;
        size_t used = utf8_decode(text, len, &back, &valid);
        assert_int_equal(valid, !surrogate);
        if (valid) {
            assert_int_equal(back, code);
            assert_int_equal(used, len);
        }
    }
}

/* Goal: each undecodable place costs one byte, overlong forms and what lies beyond the limit included. */
static void broken_bytes_are_taken_one_by_one(void **state)
{
    (void)state;
    static const char *const rows[] = {
        "\x80",         "\xff",     "\xc0\x80",     "\xe0\x80\x80", "\xf4\x90\x80\x80",
        "\xed\xa0\x80", "\xe2\x82", "\xf0\x9f\x98", "\xc3("
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint32_t code;
        bool valid;
        size_t used = utf8_decode((const uint8_t *)rows[i], strlen(rows[i]), &code, &valid);
        assert_int_equal(used, 1);
        assert_false(valid);
        assert_int_equal(code, UTF8_REPLACEMENT);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(categories_are_those_of_the_standard),
        cmocka_unit_test(white_space_is_25_code_points),
        cmocka_unit_test(letters_lower_and_decompose),
        cmocka_unit_test(every_character_comes_back),
        cmocka_unit_test(broken_bytes_are_taken_one_by_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
