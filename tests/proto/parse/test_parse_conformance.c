/* Goal: every reference answer comes apart as the reference says. Content and reasoning are compared without white space at their
 * ends, arguments as JSON values. */
#include "tests/test.h"

#include "proto/parse/parse.h"

static bool same_text(const struct json *a, const struct json *b)
{
    const char *space = " \t\r\n";
    const char *p = json_as_str(a, NULL), *q = json_as_str(b, NULL);
    p += strspn(p, space);
    q += strspn(q, space);
    size_t n = strlen(p), m = strlen(q);
    while (n && strchr(space, p[n - 1])) {
        n--;
    }
    while (m && strchr(space, q[m - 1])) {
        m--;
    }
    return n == m && memcmp(p, q, n) == 0;
}

static bool same_value(const struct json *a, const struct json *b)
{
    if (json_kind(a) != json_kind(b) || json_len(a) != json_len(b)) {
        return false;
    }
    if (json_kind(a) == JSON_OBJECT) {
        for (size_t i = 0; i < json_len(a); i++) {
            const char *key;
            const struct json *value = json_member(a, i, &key);
            if (!same_value(value, json_find(b, key))) {
                return false;
            }
        }
        return true;
    }
    if (json_kind(a) == JSON_ARRAY) {
        for (size_t i = 0; i < json_len(a); i++) {
            if (!same_value(json_at(a, i), json_at(b, i))) {
                return false;
            }
        }
        return true;
    }
    return strcmp(json_text(a, NULL), json_text(b, NULL)) == 0;
}

static bool same_answer(const struct json *got, const struct json *wanted)
{
    const struct json *calls = json_find(got, "tool_calls");
    const struct json *others = json_find(wanted, "tool_calls");
    bool same = same_text(json_find(got, "content"), json_find(wanted, "content")) &&
                same_text(json_find(got, "reasoning_content"),
                          json_find(wanted, "reasoning_content")) &&
                json_len(calls) == json_len(others);
    for (size_t i = 0; same && i < json_len(calls); i++) {
        const struct json *a = json_at(calls, i), *b = json_at(others, i);
        same = same_value(json_find(a, "name"), json_find(b, "name")) &&
               same_value(json_find(a, "arguments"), json_find(b, "arguments"));
    }
    return same;
}

static void parse_reads_the_reference_answers(void **state)
{
    (void)state;
    const char *dir = test_conformance();
    if (!dir) {
        skip();
    }
    char path[4096], *line = NULL;
    size_t cap = 0, n = 0, n_bad = 0;
    ssize_t len;
    snprintf(path, sizeof path, "%s/templates/outputs.jsonl", dir);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    while ((len = getline(&line, &cap, f)) >= 0) {
        struct err err;
        struct json *row = json_parse(line, (size_t)len, &err);
        assert_non_null(row);
        const char *name = json_as_str(json_find(row, "format"), NULL);
        const struct parse_format *format = parse_find(name);
        assert_non_null(format);
        size_t text_len;
        const char *text = json_as_str(json_find(row, "text"), &text_len);
        struct json *answer = parse_answer(format, text, text_len, json_find(row, "tools"), NULL,
                                           &err);
        if (!same_answer(answer, json_find(row, "expected"))) {
            print_error("%s %s: %s\n", name, json_as_str(json_find(row, "case"), NULL),
                        json_text(answer, NULL));
            n_bad++;
        }
        n++;
        json_destroy(&answer);
        json_destroy(&row);
    }
    free(line);
    fclose(f);
    assert_int_equal(n_bad, 0);
    assert_true(n >= 236);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(parse_reads_the_reference_answers) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
