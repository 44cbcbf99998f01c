/* Goal: no template can crash, hang or eat the machine: each ends with text or with one error. */
#include "tests/loader/template/render.h"

/* Uses most of the language, so that its prefixes cut every construct. */
static const char sampler[] =
    "{%- macro f(a, b=[1, 2.5e1, 'x\\n'], *c) -%}{%- endmacro -%}{# note #}\n"
    "{%- macro g(a, b=[1, 2.5e1, \"x\\u00e9\"]) -%}{{ a }}{{ b[::-1] }}{{ varargs }}{%- endmacro "
    "-%}\n"
    "{% set ns = namespace(n=0, d={'k': (1,), 2: none}) %}\n"
    "{% for x, y in [(1, 2), (3, 4)] if x is odd recursive %}{{ loop.index }}{% set ns.n = ns.n + "
    "x ** 2 // 3 % 5 %}\n"
    "{% if x == 1 and not y in [2] or x is divisibleby 3 %}{% continue %}{% elif y %}{% break %}{% "
    "else %}-{% endif %}\n"
    "{% else %}none{% endfor %}{% with q = 1 ~ 'a' %}{{ q|upper|replace('A', 'b') }}{% endwith %}\n"
    "{% call(z) g(1, b='c') %}{{ z }}{% endcall %}{% filter trim %} {{ {'a': 1}.items()|list }} {% "
    "endfilter %}\n"
    "{% raw %}{{ no }}{% endraw %}{% generation %}{{ messages[0]['content'] if messages else "
    "'none' }}{% endgeneration %}\n"
    "{{- '%05.1f|%s' % (1.5, 'x') -}}{{ '{:>5}'.format('a') }}{{ {'b': 1} | tojson(indent=2) }}{% "
    "set t | trim %} x {% endset %}\n";

static void template_every_prefix_ends(void **state)
{
    (void)state;
    const char *context = "{\"messages\":[{\"content\":\"hello\"}]}";
    const char *whole = strchr(sampler, '\n') + 1; /* the first macro is wrong on purpose */
    const char *const texts[] = { sampler, whole };
    for (size_t k = 0; k < 2; k++) {
        for (size_t len = 0; len <= strlen(texts[k]); len++) {
            struct template_output out;
            struct err err;
            char *cut = malloc(len + 1); /* its own block, so that a read past the end is seen */
            memcpy(cut, texts[k], len);
            if (render(cut, len, context, &out, &err) < 0) {
                assert_true(err.text[0] != '\0');
            }
            template_output_clear(&out);
            free(cut);
        }
    }
}

/* n copies of a, then middle, then n copies of b */
static char *nested(const char *a, size_t n, const char *middle, const char *b)
{
    char *text = malloc((strlen(a) + strlen(b)) * n + strlen(middle) + 1), *at = text;
    for (size_t i = 0; i < n; i++) {
        at = stpcpy(at, a);
    }
    at = stpcpy(at, middle);
    for (size_t i = 0; i < n; i++) {
        at = stpcpy(at, b);
    }
    return text;
}

static void template_deep_nesting_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *a, *middle, *b;
        enum template_failure failure;
    } rows[] = {
        { "(", "{{ 1 }}", ")", TEMPLATE_OK },
        { "{% if 1 %}", "x", "{% endif %}", TEMPLATE_COMPILE },
        { "{% for x in [1] %}", "x", "{% endfor %}", TEMPLATE_COMPILE },
        { "{% macro f() %}", "x", "{% endmacro %}", TEMPLATE_COMPILE },
        { "{{ 1 }}{% set x %}", "x", "{% endset %}", TEMPLATE_COMPILE },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *text = nested(rows[i].a, 20000, rows[i].middle, rows[i].b);
        if (rows[i].failure == TEMPLATE_OK) {
            struct template_output out;
            struct err err;
            assert_ok(render(text, strlen(text), NULL, &out, &err), err);
            template_output_clear(&out);
        } else {
            expect_failure(text, NULL, rows[i].failure);
        }
        free(text);
    }
    static const struct {
        const char *before, *a, *middle, *b, *after;
        enum template_failure failure;
    } expressions[] = {
        { "{{ ", "(", "1", ")", " }}", TEMPLATE_COMPILE },
        { "{{ ", "[", "1", "]", " }}", TEMPLATE_COMPILE },
        { "{{ ", "{1:", "1", "}", " }}", TEMPLATE_COMPILE },
        { "{{ ", "- ", "1", "", " }}", TEMPLATE_COMPILE },
        { "{{ ", "not ", "1", "", " }}", TEMPLATE_COMPILE },
        { "{{ ", "1 if 1 else ", "1", "", " }}", TEMPLATE_COMPILE },
        { "{{ ", "f(", "1", ")", " }}", TEMPLATE_COMPILE },
        { "{{ ", "x[", "1", "]", " }}", TEMPLATE_COMPILE },
        { "{{ 1", " + 1", "", "", " }}", TEMPLATE_LIMIT },
        { "{{ 'a'", " | trim", "", "", " }}", TEMPLATE_LIMIT },
        { "{{ x", ".x", "", "", " }}", TEMPLATE_LIMIT },
        { "{{ x", "()", "", "", " }}", TEMPLATE_LIMIT },
        { "{{ 1", " or 1", "", "", " }}", TEMPLATE_LIMIT },
        { "{% for ", "(", "x", ")", " in y %}{% endfor %}", TEMPLATE_COMPILE },
        { "{% set x", " | trim", "", "", " %}{% endset %}", TEMPLATE_COMPILE },
    };
    for (size_t i = 0; i < sizeof expressions / sizeof expressions[0]; i++) {
        char *inner = nested(expressions[i].a, 20000, expressions[i].middle, expressions[i].b);
        char *text = malloc(strlen(inner) + 64);
        snprintf(text, strlen(inner) + 64, "%s%s%s", expressions[i].before, inner,
                 expressions[i].after);
        if (i + 1 == sizeof expressions / sizeof expressions[0]) {
            expect_failure(text, NULL, TEMPLATE_LIMIT);
        } else {
            expect_failure(text, NULL, expressions[i].failure);
        }
        free(text);
        free(inner);
    }
}

static void template_endless_work_is_stopped(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) "
        "}}",
        "{% for n in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% "
        "endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% "
        "endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% "
        "endfor %}",
        "{% set l = [] %}{% for i in range(99) %}{% set _ = l.append(l) %}{% endfor %}{{ l }}",
        "{% set l = [] %}{% set _ = l.append(l) %}{{ l | tojson }}",
        "{% set l = [] %}{% set m = [] %}{% set _ = l.append(m) %}{% set _ = m.append(l) %}{{ l == "
        "[[l]] or l < m }}",
        "{{ 'x' * 999999999999 }}",
        "{{ [1] * 999999999999 }}",
        "{{ 'ab' | replace('', 'x' * 9999999) }}",
        "{{ range(100001) }}",
        "{{ range(0, 9223372036854775807) }}",
        "{{ '%9999999d' % 1 }}",
        "{{ '%.9999999f' % 1 }}",
        "{{ '{:999999}'.format(1) }}",
        "{{ 'a' | center(999999999) }}",
        "{{ 'a' | indent(999999999, true) }}",
        "{{ [1] | tojson(indent=999999999) }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ [1] | batch(999999999, 0) | list }}",
        "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{{ s | length }}{% endfor %}",
        "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% if 'y' in s %}{% endif %}{% "
        "endfor %}",
        "{% set s = 'x' * 99999 %}{{ s.split('x') | map('length') | sort | unique | join(s) | "
        "length }}",
        "{% set s = 'x' * 999999 %}{% for i in range(9999) %}{{ s.rfind('xy') }}{% endfor %}",
        "{% set s = ' ' * 999999 %}{% for i in range(9999) %}{{ s | trim }}{% endfor %}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct template_output out;
        struct err err;
        if (render(texts[i], strlen(texts[i]), NULL, &out, &err) == 0) {
            assert_true(out.len <= 16u << 20);
        } else {
            assert_true(strncmp(err.text, "template line 1: ", 17) == 0);
        }
        template_output_clear(&out);
    }
    expect_failure(texts[2], NULL, TEMPLATE_LIMIT);
    expect_failure(texts[9], NULL, TEMPLATE_LIMIT);
    expect_failure(texts[15], NULL, TEMPLATE_LIMIT);
}

static void template_arithmetic_stays_in_range(void **state)
{
    (void)state;
    expect_failure("{{ 9223372036854775807 + 1 }}", NULL, TEMPLATE_RUNTIME);
    expect_failure("{{ -9223372036854775807 - 2 }}", NULL, TEMPLATE_RUNTIME);
    expect_failure("{{ 2 ** 64 }}", NULL, TEMPLATE_RUNTIME);
    expect_failure("{{ (-9223372036854775807 - 1) // -1 }}", NULL, TEMPLATE_RUNTIME);
    expect_failure("{{ -(-9223372036854775807 - 1) }}", NULL, TEMPLATE_RUNTIME);
    expect_failure("{{ 99999999999999999999 + 1 }}", NULL, TEMPLATE_RUNTIME);
    expect("{{ 99999999999999999999 }} {{ 1e308 * 10 }} {{ 1e400 | int(5) }}", NULL,
           "99999999999999999999 inf 5");
    expect("{{ 'abc'[9223372036854775807:] }}{{ 'abc'[-9223372036854775807:2] }}{{ "
           "'abc'[::9223372036854775807] }}",
           NULL, "aba");
}

static void template_bad_bytes_are_refused(void **state)
{
    (void)state;
    expect_failure("a\n\xff", NULL, TEMPLATE_COMPILE);
    expect_failure("{{ '\xc3' }}", NULL, TEMPLATE_COMPILE);
    expect_failure("{{ '\\x4' }}", NULL, TEMPLATE_COMPILE);
    expect_failure("{{ '\\uffff", NULL, TEMPLATE_COMPILE);
    expect_failure("{{ ` }}", NULL, TEMPLATE_COMPILE);
    struct template_output out;
    struct err err;
    assert_int_equal(render("{{ \0 }}", 7, NULL, &out, &err), -1);
    template_output_clear(&out);
    assert_ok(render("a\0b", 3, NULL, &out, &err), err);
    assert_int_equal(out.len, 3);
    template_output_clear(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(template_every_prefix_ends),
        cmocka_unit_test(template_deep_nesting_is_refused),
        cmocka_unit_test(template_endless_work_is_stopped),
        cmocka_unit_test(template_arithmetic_stays_in_range),
        cmocka_unit_test(template_bad_bytes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
