/* Goal: an answer followed while it is written comes to the same as the whole, however it is cut; thoughts and content are shown
 * as they come, calls when they end, nothing is taken back. */
#include "follow.h"

static const char tools_text[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\","
    "\"properties\":{\"s\":{\"type\":\"string\"},\"n\":{\"type\":\"integer\"}}}}},"
    "{\"type\":\"function\",\"function\":{\"name\":\"python\",\"parameters\":{}}}]";

static struct json *tools;

static void check(const struct parse_format *format, const char *text, size_t len, bool offered,
                  bool open, size_t first, size_t piece)
{
    struct err err;
    const struct parse_options how = { .reasoning_open = open };
    struct json *whole = parse_answer(format, text, len, offered ? tools : NULL, &how, &err);
    assert_non_null(whole);
    assert_true(
        follow_agrees(format, text, len, offered ? tools : NULL, &how, first, piece, whole));
    json_destroy(&whole);
}

/* The events of a text that comes byte by byte, as "kind:text" joined by '|'. */
static void expect(const char *name, const char *text, bool open, const char *wanted)
{
    struct err err;
    const struct parse_options how = { .reasoning_open = open };
    struct parse_stream *s = parse_stream_create(parse_find(name), tools, &how, &err);
    struct parse_event e;
    char got[4096] = "";
    size_t n = 0;
    enum parse_event_kind last = PARSE_CALL;
    for (size_t i = 0; i <= strlen(text); i++) {
        if (text[i]) {
            assert_int_equal(parse_stream_feed(s, text + i, 1, &err), 0);
        } else {
            n += (size_t)sprintf(got + n, "$");
            assert_int_equal(parse_stream_end(s, &err), 0);
        }
        while (parse_stream_next(s, &e)) {
            if (e.kind != last || e.kind == PARSE_CALL) {
                n += (size_t)sprintf(got + n, "%c:", "rct"[e.kind]);
            }
            last = e.kind;
            if (e.kind == PARSE_CALL) {
                n += (size_t)sprintf(got + n, "%s",
                                     json_text(json_find(e.call, "arguments"), NULL));
            } else {
                n += (size_t)sprintf(got + n, "%.*s", (int)e.len, e.text);
            }
        }
    }
    assert_string_equal(got, wanted);
    parse_stream_destroy(&s);
}

/* '$' is where the answer ended: what stands before it came in time. */
static void stream_shows_what_is_known(void **state)
{
    (void)state;
    expect("hermes", "<think>\nwhy </think>\n\nso it is \n", false, "r:whyc:so it is$");
    expect("hermes", "why</think>so", true, "r:whyc:so$");
    expect("hermes", "a < b <too", false, "c:a < b$ <too");
    expect("hermes", "a <tool_call>{\"name\":\"f\",\"arguments\":{\"n\":1}}</tool_call>", false,
           "c:at:{\"n\":1}$");
    expect("hermes",
           "<tool_call>{\"name\":\"f\",\"arguments\":{\"n\":1}}</tool_call>\n<tool_call>{\"name\":"
           "\"f\",\"arguments\":{\"n\":2}}</tool_call>",
           false, "t:{\"n\":1}t:{\"n\":2}$");
    expect("hermes", "a <tool_call>{\"name\":\"g\"}</tool_call>", false,
           "c:a$ <tool_call>{\"name\":\"g\"}</tool_call>");
    expect("mistral-args", "[TOOL_CALLS]f[ARGS]{\"n\":{}}[TOOL_CALLS]f[ARGS]{}", false,
           "t:{\"n\":{}}t:{}$");
    expect("mistral-nemo", "x[TOOL_CALLS][{\"name\":\"f\",\"arguments\":{\"n\":[1]}}]", false,
           "c:xt:{\"n\":[1]}$");
    expect("llama-3", "Hello {", false, "c:Hello {$");
    expect("llama-3", "\n{\"name\":\"f\",\"parameters\":{}}", false, "$t:{}");
    expect("kimi-k2",
           "<think>why<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
           "<|tool_call_argument_begin|>{}<|tool_call_end|>",
           false, "r:whyt:{}$");
    expect(
        "gpt-oss",
        "<|channel|>analysis<|message|>a b<|end|><|start|>assistant<|channel|>commentary<|message|>"
        "c<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>"
        "<|start|>assistant<|channel|>final<|message|>d e<|return|>",
        false, "r:a bc:ct:{}c:\nd e$");
    expect("functionary-3.2", "all\nHi >>>f\n{\"n\":1}>>>all\nyo", false,
           "c:Hit:{\"n\":1}c: \nyo$");
    expect("command-r7b", "<|START_RESPONSE|>a <b<|END_RESPONSE|>", false, "c:a <b$");
}

static const char rough[] =
    "<think>a </think> b<tool_call>\n<function=f>\n<parameter=s>\nx\n</parameter>\n</function>\n"
    "</tool_call>[TOOL_CALLS]f[CALL_ID]1[ARGS]{\"n\":[1]}<|tool_calls_section_begin|>"
    "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    "<|tool_call>call:f{s:<|\"|>t<|\"|>}<tool_call|><|tool_call_start|>[f(s='\\x41')]"
    "<|tool_call_end|><|channel|>analysis<|message|>q<|end|><|start|>assistant<|channel|>x "
    "to=functions.f<|message|>{}<|call|>all\nk>>>f\n{}>>>all\n z Action: ```json\n[{}]```"
    "{\"name\":\"f\",\"arguments\":{}} functools[{\"name\":\"f\",\"arguments\":{}}]";

static void stream_is_the_whole_for_rough_text(void **state)
{
    (void)state;
    for (size_t i = 0; parse_at(i); i++) {
        for (size_t off = 0; off < sizeof rough; off += 7) {
            size_t len = sizeof rough - 1 - off;
            len = off % 3 ? len : len / 2;
            check(parse_at(i), rough + off, len, off & 1, off & 2, off % 11, 1 + off % 3);
        }
    }
}

static void stream_takes_bounded_time(void **state)
{
    (void)state;
    static const char *const pieces[] = { "<tool_call>",  "[TOOL_CALLS]", "}]",
                                          "</tool_call>", "<|message|>",  ">>>",
                                          "<|start|>",    " <think" };
    enum { SIZE = 1 << 14 };
    char *text = malloc(SIZE + 64);
    for (size_t k = 0; k < sizeof pieces / sizeof pieces[0]; k++) {
        size_t len = 0;
        while (len < SIZE) {
            strcpy(text + len, pieces[k]);
            len += strlen(pieces[k]);
        }
        for (size_t i = 0; parse_at(i); i++) {
            check(parse_at(i), text, len, true, false, 100, 97);
        }
    }
    free(text);
}

static void stream_is_the_whole_at_every_cut_of_the_reference(void **state)
{
    (void)state;
    const char *dir = test_conformance();
    if (!dir) {
        skip();
    }
    char path[4096], *line = NULL;
    size_t cap = 0, n = 0;
    ssize_t len;
    snprintf(path, sizeof path, "%s/templates/outputs.jsonl", dir);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    while ((len = getline(&line, &cap, file)) >= 0) {
        struct err err;
        struct json *row = json_parse(line, (size_t)len, &err);
        const struct parse_format *format = parse_find(json_as_str(json_find(row, "format"), NULL));
        const struct json *offered = json_find(row, "tools");
        size_t text_len;
        const char *text = json_as_str(json_find(row, "text"), &text_len);
        struct json *whole = parse_answer(format, text, text_len, offered, NULL, &err);
        struct json *plain = parse_answer(format, text, text_len, NULL, NULL, &err);
        for (size_t cut = 0; cut <= text_len; cut++) {
            assert_true(
                follow_agrees(format, text, text_len, offered, NULL, cut, text_len + 1, whole));
        }
        for (size_t piece = 1; piece < 6; piece++) {
            assert_true(follow_agrees(format, text, text_len, offered, NULL, piece, piece, whole));
            assert_true(follow_agrees(format, text, text_len, NULL, NULL, piece, piece, plain));
        }
        n++;
        json_destroy(&plain);
        json_destroy(&whole);
        json_destroy(&row);
    }
    free(line);
    fclose(file);
    print_message("answers, each cut at every byte: %zu\n", n);
    assert_true(n >= 236);
}

int main(void)
{
    struct err err;
    tools = json_parse(tools_text, strlen(tools_text), &err);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stream_shows_what_is_known),
        cmocka_unit_test(stream_is_the_whole_for_rough_text),
        cmocka_unit_test(stream_takes_bounded_time),
        cmocka_unit_test(stream_is_the_whole_at_every_cut_of_the_reference),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    json_destroy(&tools);
    return rc;
}
