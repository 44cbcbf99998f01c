/* Goal: answers come apart into content, reasoning and calls, formats that the conformance suite leaves out included; what is no call stays
 * content, and no cut or mangled answer crashes. */
#include "tests/test.h"

#include "proto/parse/parse.h"

static const char tools_text[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\","
    "\"properties\":"
    "{\"s\":{\"type\":\"string\"},\"n\":{\"type\":\"integer\"},\"b\":{\"type\":[\"boolean\","
    "\"null\"]}}}}},"
    "{\"type\":\"function\",\"function\":{\"name\":\"python\",\"parameters\":{}}}]";

static struct json *parse(const char *format, const char *text, size_t len, bool open, bool offered)
{
    struct err err;
    struct json *tools = offered ? json_parse(tools_text, strlen(tools_text), &err) : NULL;
    const struct parse_options options = { .reasoning_open = open };
    const struct parse_format *f = parse_find(format);
    assert_non_null(f);
    struct json *answer = parse_answer(f, text, len, tools, &options, &err);
    assert_non_null(answer);
    json_destroy(&tools);
    return answer;
}

/* The answer as one line of JSON. */
static void expect(const char *format, const char *text, const char *wanted)
{
    struct json *answer = parse(format, text, strlen(text), false, true);
    assert_string_equal(json_text(answer, NULL), wanted);
    json_destroy(&answer);
}

#define CALL(arguments)                                                                            \
    "{\"content\":\"\",\"reasoning_content\":\"\",\"tool_calls\":[{\"name\":\"f\","                \
    "\"arguments\":" arguments "}]}"
#define CONTENT(text) "{\"content\":\"" text "\",\"reasoning_content\":\"\",\"tool_calls\":[]}"

static void parse_finds_calls_of_each_kind(void **state)
{
    (void)state;
    expect("hermes", "<tool_call>{\"name\":\"f\",\"arguments\":{\"n\":1}}</tool_call>",
           CALL("{\"n\":1}"));
    expect("llama-3", "<|python_tag|>f.call(s=\"a\", n=2)", CALL("{\"s\":\"a\",\"n\":2}"));
    expect("llama-3", "{\"type\":\"function\",\"name\":\"f\",\"parameters\":{}}", CALL("{}"));
    expect("phi-4-mini", "<|tool_call|>[{\"name\":\"f\",\"arguments\":{\"n\":1}}]<|/tool_call|>",
           CALL("{\"n\":1}"));
    expect("apriel", "<tool_calls>[{\"name\":\"f\",\"arguments\":{}}]</tool_calls>", CALL("{}"));
    expect("gigachat-3", "function call<|role_sep|>\n{\"name\":\"f\",\"arguments\":{\"n\":1}}",
           CALL("{\"n\":1}"));
    expect("mirothinker",
           "<use_mcp_tool>\n<server_name>s</server_name>\n<tool_name>f</"
           "tool_name>\n<arguments>\n{\"n\":1}\n"
           "</arguments>\n</use_mcp_tool>",
           CALL("{\"n\":1}"));
    expect("command-r", "Action: ```json\n[{\"tool_name\":\"f\",\"parameters\":{\"n\":1}}]\n```",
           CALL("{\"n\":1}"));
    expect("generic", "{\"tool_call\":{\"name\":\"f\",\"arguments\":{\"n\":1}}}",
           CALL("{\"n\":1}"));
    expect("generic", "{\"response\":\"hi\"}", CONTENT("hi"));
    expect("lfm2", "[f(s='it\\'s', b=None)]", CALL("{\"s\":\"it's\",\"b\":null}"));
    expect("functionary-3.2", "f\n{\"n\":1}", CALL("{\"n\":1}"));
    expect("gpt-oss", " to=functions.f<|channel|>commentary json<|message|>{\"n\":1}<|call|>",
           CALL("{\"n\":1}"));
}

static void parse_types_xml_parameters_by_schema(void **state)
{
    (void)state;
    expect("qwen3-coder",
           "<function=f><parameter=s>\n12\n</parameter><parameter=n>12</"
           "parameter><parameter=b>True</parameter>"
           "<parameter=other>[1]</parameter><parameter=word>\"q\"</parameter></function>",
           CALL("{\"s\":\"12\",\"n\":12,\"b\":true,\"other\":[1],\"word\":\"\\\"q\\\"\"}"));
}

static void parse_unwraps_arguments_in_a_string(void **state)
{
    (void)state;
    expect("hermes", "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"n\\\": 1}\"}</tool_call>",
           CALL("{\"n\":1}"));
}

static void parse_gives_back_ids(void **state)
{
    (void)state;
    expect("kimi-k2",
           "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:3<|tool_call_argument_begin|"
           ">{}",
           "{\"content\":\"\",\"reasoning_content\":\"\",\"tool_calls\":[{\"name\":\"f\","
           "\"arguments\":{},"
           "\"id\":\"functions.f:3\"}]}");
}

static void parse_leaves_what_is_no_call(void **state)
{
    (void)state;
    expect("hermes", "a <tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>",
           CONTENT("a <tool_call>{\\\"name\\\":\\\"g\\\",\\\"arguments\\\":{}}</tool_call>"));
    expect("hermes", "a <tool_call>{\"name\":", CONTENT("a <tool_call>{\\\"name\\\":"));
    expect("mistral-args", "[TOOL_CALLS]g[ARGS]{}", CONTENT("[TOOL_CALLS]g[ARGS]{}"));
    expect("llama-3", "{\"answer\": 42}", CONTENT("{\\\"answer\\\": 42}"));
    expect("qwen3-coder", "use <function=g> or <b>", CONTENT("use <function=g> or <b>"));
    expect("lfm2", "[1, 2]", CONTENT("[1, 2]"));
    /* Without tools nothing is a call. */
    const char *text = "{\"name\":\"f\",\"parameters\":{}}";
    struct json *answer = parse("llama-3", text, strlen(text), false, false);
    assert_int_equal(json_len(json_find(answer, "tool_calls")), 0);
    assert_string_equal(json_as_str(json_find(answer, "content"), NULL), text);
    json_destroy(&answer);
}

static void parse_reads_reasoning_the_prompt_opened(void **state)
{
    (void)state;
    struct json *answer = parse("hermes", "why\n</think>\n\nso", 16, true, true);
    assert_string_equal(json_text(answer, NULL),
                        "{\"content\":\"so\",\"reasoning_content\":\"why\",\"tool_calls\":[]}");
    json_destroy(&answer);
    answer = parse("hermes", "cut off", 7, true, true);
    assert_string_equal(json_as_str(json_find(answer, "reasoning_content"), NULL), "cut off");
    json_destroy(&answer);
    assert_true(parse_opens_reasoning(parse_find("hermes"), "assistant\n<think>\n", 18));
    assert_false(parse_opens_reasoning(parse_find("hermes"), "<think>\n\n</think>\n\n", 19));
}

static void parse_recognises_templates(void **state)
{
    (void)state;
    static const struct {
        const char *text, *format;
    } rows[] = {
        { "x [TOOL_CALLS] y [CALL_ID] [ARGS]", "mistral-call-id" },
        { "[TOOL_CALLS] [ARGS]", "mistral-args" },
        { "<tool_call> <function= <parameter=", "qwen3-coder" },
        { "<tool_call> {\"name\"", "hermes" },
        { "<|start_header_id|>ipython", "llama-3" },
        { "plain", "generic" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_string_equal(parse_name(parse_recognise(rows[i].text, strlen(rows[i].text))),
                            rows[i].format);
    }
}

/* Every prefix of an answer that holds each format's marks, by every format. */
static void parse_survives_every_prefix(void **state)
{
    (void)state;
    static const char text[] = "<think>a</think>b<tool_call>\n<function=f>\n<parameter=s>\nx\n</"
                               "parameter>\n</function>\n</tool_call>"
                               "[TOOL_CALLS]f[CALL_ID]1[ARGS]{\"n\":[1]}<|tool_call_begin|>"
                               "functions.f:0<|tool_call_argument_begin|>{}"
                               "<|tool_call>call:f{s:<|\"|>t<|\"|>}<tool_call|><|tool_call_start|>["
                               "f(s='\\x41', n={1:(2,)})]"
                               "<|channel|>analysis<|message|>q<|end|><|start|>assistant<|channel|>"
                               "x to=functions.f<|message|>{}<|call|>"
                               "all\nk>>>f\n{}<arg_key>s</arg_key><arg_value>1</arg_value>Action: "
                               "```json\n[{}]```{\"tool_calls\":[{}]}";
    for (size_t i = 0; parse_at(i); i++) {
        for (size_t off = 0; off < sizeof text; off += 37) {
            for (size_t len = 0; off + len < sizeof text; len += 1 + off / 8) {
                char *cut = malloc(len +
                                   1); /* its own block, so that a read past the end is seen */
                memcpy(cut, text + off, len);
                struct json *answer = parse(parse_name(parse_at(i)), cut, len, len & 1, true);
                json_destroy(&answer);
                free(cut);
            }
        }
    }
}

static void parse_many_markers_take_bounded_time(void **state)
{
    (void)state;
    static const char *const pieces[] = {
        "<tool_call>", "[TOOL_CALLS]",    "<function=", "<|tool_call>call:f{", "<|message|>", ">>>",
        "{",           "Action: ```json", "<think>"
    };
    size_t size = 1u << 17;
    char *text = malloc(size + 64);
    for (size_t k = 0; k < sizeof pieces / sizeof pieces[0]; k++) {
        size_t len = 0;
        while (len < size) {
            strcpy(text + len, pieces[k]);
            len += strlen(pieces[k]);
        }
        for (size_t i = 0; parse_at(i); i++) {
            struct json *answer = parse(parse_name(parse_at(i)), text, len, false, true);
            json_destroy(&answer);
        }
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parse_finds_calls_of_each_kind),
        cmocka_unit_test(parse_types_xml_parameters_by_schema),
        cmocka_unit_test(parse_unwraps_arguments_in_a_string),
        cmocka_unit_test(parse_gives_back_ids),
        cmocka_unit_test(parse_leaves_what_is_no_call),
        cmocka_unit_test(parse_reads_reasoning_the_prompt_opened),
        cmocka_unit_test(parse_recognises_templates),
        cmocka_unit_test(parse_survives_every_prefix),
        cmocka_unit_test(parse_many_markers_take_bounded_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
