/* What an answer shows: independent of how tokens cut the bytes, and never a stop string's own text. */
#include "tests/test.h"

#include "worker/stops.h"

static struct stops stops_of(const char *const *texts, uint32_t n)
{
    struct stops s = { 0 };
    struct err err;
    for (uint32_t i = 0; i < n; i++) {
        assert_ok(stops_add(&s, (const uint8_t *)texts[i], (uint32_t)strlen(texts[i]), &err), err);
    }
    return s;
}

/* Feeds text in pieces of at most `cut` bytes; returns whether it stopped. */
static bool feed(struct stops s, const char *text, uint32_t cut, char *shown)
{
    uint8_t out[STOPS_OUT_MAX];
    uint32_t n = 0, n_out, len = (uint32_t)strlen(text);
    bool stopped = false;
    for (uint32_t at = 0; at < len && !stopped; at += cut) {
        uint32_t piece = len - at < cut ? len - at : cut;
        stopped = stops_push(&s, (const uint8_t *)text + at, piece, out, &n_out);
        memcpy(shown + n, out, n_out);
        n += n_out;
    }
    n_out = stops_flush(&s, out);
    memcpy(shown + n, out, n_out);
    shown[n + n_out] = 0;
    return stopped;
}

static void a_stop_hits_at_the_same_byte_however_text_is_cut(void **state)
{
    (void)state;
    static const char *const texts[] = { "END", "abcd", "bc", "\n\n", "\xc3\xa9!" };
    static const struct {
        const char *text, *want;
        bool stops;
    } rows[] = {
        { "hello END world", "hello ", true },
        { "hello EN", "hello EN", false },
        { "xabcdx", "xa", true }, /* bc is complete first */
        { "line\n\nmore", "line", true },
        { "E EN ENE END", "E EN ENE ", true },
        { "caf\xc3\xa9!", "caf", true },
        { "caf\xc3\xa9", "caf\xc3\xa9", false },
        { "EENDEND", "E", true },
        { "", "", false },
    };
    struct stops s = stops_of(texts, 5);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (uint32_t cut = 1; cut < 8; cut++) {
            char shown[64];
            bool stopped = feed(s, rows[i].text, cut, shown);
            assert_int_equal(stopped, rows[i].stops);
            assert_string_equal(shown, rows[i].want);
        }
    }
}

static void what_may_become_a_stop_or_a_character_is_held(void **state)
{
    (void)state;
    static const char *const texts[] = { "STOP" };
    struct stops s = stops_of(texts, 1);
    uint8_t out[STOPS_OUT_MAX];
    uint32_t n;
    assert_false(stops_push(&s, (const uint8_t *)"abST", 4, out, &n));
    assert_int_equal(n, 2);
    assert_false(stops_push(&s, (const uint8_t *)"x\xf0\x9f", 3, out, &n));
    assert_int_equal(n, 3);
    assert_memory_equal(out, "STx", 3);
    assert_int_equal(s.n_held, 2);
    assert_false(stops_push(&s, (const uint8_t *)"\x8f\xb3", 2, out, &n));
    assert_int_equal(n, 4);
    assert_int_equal(s.n_held, 0);
}

static void more_or_longer_stops_than_allowed_are_refused(void **state)
{
    (void)state;
    struct stops s = { 0 };
    struct err err;
    static const uint8_t text[LIMIT_STOP_BYTES + 1] = { 'x' };
    assert_int_equal(stops_add(&s, text, sizeof text, &err), -1);
    assert_int_equal(err.code, ERR_BAD_INPUT);
    for (int i = 0; i < LIMIT_STOP_STRINGS; i++) {
        assert_ok(stops_add(&s, text, LIMIT_STOP_BYTES, &err), err);
    }
    assert_int_equal(stops_add(&s, text, 1, &err), -1);
    assert_int_equal(err.code, ERR_FULL);
    assert_ok(stops_add(&s, text, 0, &err), err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stop_hits_at_the_same_byte_however_text_is_cut),
        cmocka_unit_test(what_may_become_a_stop_or_a_character_is_held),
        cmocka_unit_test(more_or_longer_stops_than_allowed_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
