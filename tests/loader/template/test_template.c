/* Goal: the template engine says what Jinja says, knows which text is the template's own, and names the line of
 * an error. The whole language is in the conformance suite; here are the parts that chat templates lean on. */
#include "tests/loader/template/render.h"

#define CHATML                                                                                     \
    "{% for m in messages %}\n"                                                                    \
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\n"                        \
    "{% endfor %}\n"                                                                               \
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

static void template_renders_chatml(void **state)
{
    (void)state;
    expect(CHATML,
           "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"add_generation_prompt\":true}",
           "<|im_start|>user\nHi<|im_end|>\n\n<|im_start|>assistant\n");
}

static void template_renders_a_llama_style_conversation(void **state)
{
    (void)state;
    expect(
        "{{- bos_token }}{%- set ns = namespace(n=0) %}\n"
        "{%- for m in messages if m.role != 'system' -%}\n"
        "    {%- set ns.n = ns.n + 1 %}\n"
        "    {{- '<|start_header_id|>' ~ m['role'] ~ '<|end_header_id|>\\n\\n' ~ (m.content | "
        "trim) ~ '<|eot_id|>' }}\n"
        "    {%- if loop.last %}{{ ns.n }}{% endif %}\n"
        "{%- endfor %}",
        "{\"bos_token\":\"<s>\",\"messages\":[{\"role\":\"system\",\"content\":\"x\"},"
        "{\"role\":\"user\",\"content\":\"  Hi \"},{\"role\":\"assistant\",\"content\":\"Yo\"}]}",
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>2");
}

static void template_renders_tools_as_json(void **state)
{
    (void)state;
    expect("{% for t in tools %}{{ t | tojson }}{% for k, v in "
           "t.function.parameters.properties.items() %}"
           " {{ k }}:{{ v.type }}{% endfor %}{% endfor %}",
           "{\"tools\":[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{\"items\":{"
           "\"type\":\"integer\"}}}}}]}",
           "{\"function\": {\"name\": \"f\", \"parameters\": {\"properties\": {\"items\": "
           "{\"type\": \"integer\"}}}}}"
           " items:integer");
}

static void template_macro_and_caller(void **state)
{
    (void)state;
    expect("{% macro tag(name, close=true) %}<{{ name }}>{{ caller() }}{% if close %}</{{ name "
           "}}>{% endif %}"
           "{% endmacro %}{% call tag('b') %}x{% endcall %}{% call tag('i', close=false) %}y{% "
           "endcall %}",
           NULL, "<b>x</b><i>y");
}

static void template_keeps_number_kinds(void **state)
{
    (void)state;
    expect("{{ a }} {{ b }} {{ c }} {{ a | tojson }}", "{\"a\":21.0,\"b\":21,\"c\":1e16}",
           "21.0 21 1e+16 21.0");
}

static void template_has_a_clock(void **state)
{
    (void)state;
    setenv("TZ", "UTC", 1);
    expect("{{ strftime_now('%d %b %Y %H:%M') }}", NULL, "26 Jul 2025 14:05");
}

static void template_raises_with_its_own_message(void **state)
{
    (void)state;
    struct template_output out;
    struct err err;
    const char *text = "\n{{ raise_exception('roles must alternate, not ' ~ role) }}";
    assert_int_equal(render(text, strlen(text), "{\"role\":\"x\"}", &out, &err), -1);
    assert_int_equal(err.code, ERR_TEMPLATE);
    assert_string_equal(err.text, "roles must alternate, not x");
    assert_string_equal(out.message, "roles must alternate, not x");
    assert_int_equal(out.line, 2);
    template_output_clear(&out);
}

static void template_error_names_the_line(void **state)
{
    (void)state;
    struct template_output out;
    struct err err;
    const char *text = "a\n{% for m in messages %}\n{{ m.content + 1 }}\n{% endfor %}";
    assert_int_equal(render(text, strlen(text), "{\"messages\":[{\"content\":\"c\"}]}", &out, &err),
                     -1);
    assert_string_equal(err.text, "template line 3: can only concatenate str (not \"int\") to str");
    template_output_clear(&out);
    text = "a\n\n{% if %}";
    assert_int_equal(render(text, strlen(text), NULL, &out, &err), -1);
    assert_non_null(strstr(err.text, "template line 3: "));
    template_output_clear(&out);
}

static void template_failures_have_kinds(void **state)
{
    (void)state;
    expect_failure("{{ a.b }}", NULL, TEMPLATE_UNDEFINED);
    expect_failure("{{ 1 / 0 }}", NULL, TEMPLATE_RUNTIME);
    expect_failure("{{ 1 | nosuch }}", NULL, TEMPLATE_MISUSE);
    expect_failure("{% set d = {} %}{% set d.a = 1 %}", NULL, TEMPLATE_MISUSE);
    expect_failure("{{ {}.update({}) }}", NULL, TEMPLATE_SANDBOX);
    expect_failure("{% foo %}", NULL, TEMPLATE_COMPILE);
    expect_failure("{% include 'x' %}", NULL, TEMPLATE_RUNTIME);
    expect_failure("{{ [undefined_thing] | tojson }}", NULL, TEMPLATE_RUNTIME);
}

/* --- trust --- */

/* The trusted spans' bytes in order, each ended by '|'. */
static void expect_trusted(const char *text, const char *context, const char *wanted)
{
    struct template_output out;
    struct err err;
    char got[1024] = "";
    size_t off = 0;
    if (render(text, strlen(text), context, &out, &err) < 0) {
        fail_msg("%s: %s", text, err.text);
    }
    for (size_t i = 0; i < out.n_spans; i++) {
        assert_int_equal(out.spans[i].off, off);
        assert_true(i == 0 || out.spans[i].trusted != out.spans[i - 1].trusted);
        off += out.spans[i].len;
        if (out.spans[i].trusted) {
            strncat(got, out.text + out.spans[i].off, out.spans[i].len);
            strcat(got, "|");
        }
    }
    assert_int_equal(off, out.len);
    assert_string_equal(got, wanted);
    template_output_clear(&out);
}

static void template_marks_what_users_wrote(void **state)
{
    (void)state;
    const char *context = "{\"u\":\"<|im_end|>\",\"bos_token\":\"<s>\",\"d\":{\"<k>\":\"v\"},"
                          "\"l\":[\"a\",\"b\"],\"n\":7}";
    expect_trusted("<a>{{ u }}<b>", context, "<a>|<b>|");
    expect_trusted("{{ bos_token + '<a>' + u + '<b>' }}", context, "<s><a>|<b>|");
    expect_trusted("{{ ('<a>' ~ u ~ '<b>')[1:] }}", context, "a>|<b>|");
    expect_trusted("{{ ('<a>' ~ u ~ '<b>') | upper }}", context, "<A>|<B>|");
    expect_trusted("{{ '{} and %s'.format(u) % 'x' }}", context, " and x|");
    expect_trusted("{{ u | replace('im', '<a>') }}", context, "<a>|");
    expect_trusted("{{ l | join('<a>') }}", context, "<a>|");
    expect_trusted("{{ d | tojson }}", context, "{\"|\": \"|\"}|");
    expect_trusted("{% set x %}<a>{{ u }}{% endset %}{{ x }}{{ x | trim }}", context, "<a>|<a>|");
    expect_trusted("{% macro f(x) %}<a>{{ x }}<b>{% endmacro %}{{ f(u) }}", context, "<a>|<b>|");
    expect_trusted("{{ ('<a>' ~ u).split('|')[0] }}", context, "<a>|");
    expect_trusted("{{ '[\"<a>\"]' | from_json }}", context, "['<a>']|");
    expect_trusted("{{ ('[\"' ~ l[0] ~ '<a>\"]') | from_json | first }}", context, "");
    expect_trusted("{{ n }}{{ none }}{{ u | length }}", context, "7None10|");
    expect_trusted("{% for k in d %}{{ k }}{% endfor %}{{ d }}", context, "{'|': '|'}|");
}

static void template_long_text_gathers_in_linear_memory(void **state)
{
    (void)state;
    /* 4000 pieces of 500 bytes: by copying each time this would be 4 GB. */
    expect("{% set ns = namespace(s='') %}{% for i in range(4000) %}"
           "{% set ns.s = ns.s + 'x' * 250 + u %}{% endfor %}{{ ns.s | length }}",
           "{\"u\":\"0123456789012345678901234567890123456789012345678901234567890123456789\"}",
           "1280000");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(template_renders_chatml),
        cmocka_unit_test(template_renders_a_llama_style_conversation),
        cmocka_unit_test(template_renders_tools_as_json),
        cmocka_unit_test(template_macro_and_caller),
        cmocka_unit_test(template_keeps_number_kinds),
        cmocka_unit_test(template_has_a_clock),
        cmocka_unit_test(template_raises_with_its_own_message),
        cmocka_unit_test(template_error_names_the_line),
        cmocka_unit_test(template_failures_have_kinds),
        cmocka_unit_test(template_marks_what_users_wrote),
        cmocka_unit_test(template_long_text_gathers_in_linear_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
