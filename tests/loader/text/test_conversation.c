/* Goal: a conversation as clients write it becomes what each template wants: probed, not guessed from names. */
#include "tests/test.h"

#include <dirent.h>

#include "loader/text/conversation.h"

/* Three ways of being a template. */
static const char plain[] = /* no system, no tools, strings only, sides take turns */
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns') }}{% endif %}<{{ m.role }}>{{ m.content + '' }}{{ '\\n' }}{% "
    "endfor %}";
static const char able[] = /* everything, arguments as an object */
    "{% for t in tools or [] %}T:{{ t.function.name }} {{ t.function.description }}{{ '\\n' }}{% "
    "endfor %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning %}({{ m.reasoning }}){% endif %}{{ m.content + '' }}"
    "{% for c in m.tool_calls %}[{{ c.function.name }} {% for k, v in c.function.arguments.items() "
    "%}"
    "{{ k }}={{ v }};{% endfor %}{{ c.id }}]{% endfor %}"
    "{% if m.role == 'tool' %}({{ m.name }} {{ m.tool_call_id }}){% endif %}{{ '\\n' }}{% endfor %}"
    "{% if enable_thinking %}think{% endif %}";
static const char parts[] = /* lists of parts alone; arguments as text; short ids */
    "{% for t in tools or [] %}T:{{ t | tojson }}{{ '\\n' }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p.text }}{% endfor %}"
    "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}"
    "[{{ '```' + c.function.arguments + '```' + c.function.name }}]{% endfor %}{{ '\\n' }}{% "
    "endfor %}";

static struct json *normalised(const char *text, const char *request, struct err *err)
{
    struct template *t = template_compile(text, strlen(text), err);
    assert_non_null(t);
    struct conversation c;
    conversation_probe(&c, t, text, strlen(text), "", "");
    struct json *context = json_parse(request, strlen(request), err);
    assert_non_null(context);
    if (conversation_normalise(&c, context, 0, err) < 0) {
        json_destroy(&context);
    }
    template_destroy(&t);
    return context;
}

static void expect(const char *text, const char *request, const char *wanted)
{
    struct err err = { 0 };
    struct json *context = normalised(text, request, &err);
    struct template_output out = { 0 };
    struct template *t = template_compile(text, strlen(text), &err);
    if (!context || template_render(t, context, 0, &out, &err) < 0) {
        fail_msg("%s: %s", request, err.text);
    }
    assert_string_equal(out.text, wanted);
    for (size_t i = 0; i < out.n_spans;
         i++) { /* what the request said is not the template's voice */
        const struct template_span *s = &out.spans[i];
        assert_false(s->trusted && memmem(out.text + s->off, s->len, "USER", 4));
    }
    template_output_clear(&out);
    template_destroy(&t);
    json_destroy(&context);
}

static void expect_refusal(const char *request, enum err_code code, const char *words)
{
    struct err err = { 0 };
    struct json *context = normalised(able, request, &err);
    assert_null(context);
    assert_int_equal(err.code, code);
    if (!strstr(err.text, words)) {
        fail_msg("%s does not say %s", err.text, words);
    }
}

#define USER   "{\"role\":\"user\",\"content\":\"USER\"}"
#define SYSTEM "{\"role\":\"system\",\"content\":\"S USER\"}"
#define TOOLS                                                                                      \
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":\"d\"}}]"
#define CALL(id)                                                                                   \
    "{\"id\":\"" id "\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"k\\\": 1}\"}}"
#define RESULT(id) "{\"role\":\"tool\",\"tool_call_id\":\"" id "\",\"content\":\"of " id "\"}"

static void conversation_puts_the_system_message_where_it_is_read(void **state)
{
    (void)state;
    expect(plain, "{\"messages\":[" SYSTEM "," USER "]}", "<user>S USER\n\nUSER\n");
    expect(plain, "{\"messages\":[" SYSTEM "]}", "<user>S USER\n");
    expect(able, "{\"messages\":[{\"role\":\"developer\",\"content\":\"S\"}," USER "]}",
           "<system>S\n<user>USER\n");
}

static void conversation_gives_content_its_shape(void **state)
{
    (void)state;
    static const char two[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":"
        "\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]}";
    expect(able, two, "<user>a\nb\n");
    expect(parts, two, "<user>ab\n");
    expect(parts, "{\"messages\":[" USER "]}", "<user>USER\n");
}

static void conversation_gives_calls_their_shape(void **state)
{
    (void)state;
    static const char asked[] =
        "{" TOOLS ",\"messages\":[" USER
        ",{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[" CALL("abcdefgh1") "," CALL(
            "abcdefgh2") "]}," RESULT("abcdefgh2") "," RESULT("abcdefgh1") "]}";
    expect(able, asked,
           "T:f d\n<user>USER\n<assistant>[f k=1;abcdefgh1][f k=1;abcdefgh2]\n"
           "<tool>of abcdefgh1(f abcdefgh1)\n<tool>of abcdefgh2(f abcdefgh2)\n");
    expect(parts,
           "{\"messages\":[" USER
           ",{\"role\":\"assistant\",\"tool_calls\":[" CALL("a-long-id-of-some-client") "]}]}",
           "<user>USER\n<assistant>[```{\"k\": 1}```f]\n");
    expect(
        able,
        "{\"messages\":[" USER
        ",{\"role\":\"assistant\",\"content\":\"\",\"function_call\":{\"name\":\"f\",\"arguments\":"
        "\"{\\\"k\\\": 2}\"}},{\"role\":\"function\",\"name\":\"f\",\"content\":\"r\"}]}",
        "<user>USER\n<assistant>[f k=2;WKpzxBjwa]\n<tool>r(f WKpzxBjwa)\n");
}

static void conversation_tells_a_plain_template_about_tools(void **state)
{
    (void)state;
    expect(
        plain,
        "{" TOOLS ",\"messages\":[" SYSTEM "," USER
        ",{\"role\":\"assistant\",\"tool_calls\":[" CALL("x") "]}," RESULT("x") "," USER "]}",
        "<user>S USER\n\nYou can call these tools:\n"
        "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":\"d\",\"parameters\":{"
        "\"type\":\"object\",\"properties\":{}}}}\n"
        "Answer with one JSON object and nothing else. To call a tool: {\"tool_call\": "
        "{\"name\": NAME, \"arguments\": {...}}}. To call several: {\"tool_calls\": "
        "[{\"name\": NAME, \"arguments\": {...}}, ...]}. To answer: {\"response\": TEXT}.\n\nUSER\n"
        "<assistant>{\"tool_call\":{\"name\":\"f\",\"arguments\":{\"k\":1}}}\n"
        "<user>Result of f:\nof x\n\nUSER\n");
    expect(plain, "{" TOOLS ",\"tool_choice\":\"none\",\"messages\":[" USER "]}", "<user>USER\n");
}

static void conversation_keeps_reasoning_where_it_is_read(void **state)
{
    (void)state;
    static const char thought[] = "{\"messages\":[" USER
                                  ",{\"role\":\"assistant\",\"content\":\"a\","
                                  "\"reasoning_content\":\"why\"}]}";
    expect(able, thought, "<user>USER\n<assistant>(why)a\n");
    expect(plain, thought, "<user>USER\n<assistant>a\n");
    expect(able, "{\"messages\":[" USER "],\"chat_template_kwargs\":{\"thinking\":true}}",
           "<user>USER\nthink");
}

static void conversation_refuses_early(void **state)
{
    (void)state;
    expect_refusal("{\"messages\":[{\"content\":\"a\"}]}", ERR_BAD_INPUT, "message 0 has no role");
    expect_refusal("{\"messages\":[{\"role\":1,\"content\":\"a\"}]}", ERR_BAD_INPUT, "role");
    expect_refusal("{\"messages\":[7]}", ERR_BAD_INPUT, "role");
    expect_refusal("{\"messages\":[" USER ",{\"role\":\"assistant\",\"content\":null}]}",
                   ERR_BAD_INPUT, "message 1 has neither");
    expect_refusal("{\"messages\":[{\"role\":\"user\",\"content\":5}]}", ERR_BAD_INPUT, "content");
    expect_refusal("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"odd\"}]}]}",
                   ERR_BAD_INPUT, "part 0");
    expect_refusal("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
                   ERR_UNSUPPORTED, "image_url");
    expect_refusal("{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{}}]}]}",
                   ERR_BAD_INPUT, "function.name");
    expect_refusal("{\"tools\":[{}],\"messages\":[" USER "]}", ERR_BAD_INPUT, "tool 0");
    expect_refusal("{\"tools\":{},\"messages\":[" USER "]}", ERR_BAD_INPUT, "tools");
}

static char *read_all(const char *path, size_t *len)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *text = malloc(1u << 20);
    *len = fread(text, 1, 1u << 20, f);
    fclose(f);
    return text;
}

/* Every real template writes all of a conversation with a system message, a call and its result. */
static void conversation_suits_every_real_template(void **state)
{
    (void)state;
    static const char request[] =
        "{" TOOLS
        ",\"add_generation_prompt\":true,\"messages\":[{\"role\":\"system\",\"content\":\"w0rd1\"},"
        "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"w0rd2\"}]},{\"role\":"
        "\"assistant\","
        "\"content\":null,\"tool_calls\":[{\"id\":\"call_0123456789\",\"function\":{\"name\":"
        "\"w0rd3\","
        "\"arguments\":\"{\\\"w0rd4\\\": \\\"w0rd5\\\"}\"}}]},{\"role\":\"tool\",\"tool_call_id\":"
        "\"call_0123456789\",\"content\":\"w0rd6\"},{\"role\":\"assistant\",\"content\":\"w0rd7\"},"
        "{\"role\":\"user\",\"content\":\"w0rd8\"}]}";
    const char *base = test_conformance();
    if (!base) {
        skip();
    }
    char path[4096];
    snprintf(path, sizeof path, "%s/templates", base);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    size_t n = 0, n_bad = 0;
    for (struct dirent *e; (e = readdir(dir));) {
        if (!strstr(e->d_name, ".jinja")) {
            continue;
        }
        struct err err = { 0 };
        size_t len;
        snprintf(path, sizeof path, "%s/templates/%s", base, e->d_name);
        char *text = read_all(path, &len);
        struct template *t = template_compile(text, len, &err);
        struct conversation c;
        struct template_output out = { 0 };
        assert_non_null(t);
        conversation_probe(&c, t, text, len, "", "");
        struct json *context = json_parse(request, strlen(request), &err);
        json_set(context, "bos_token", json_new_str("", 0));
        json_set(context, "eos_token", json_new_str("", 0));
        bool good = conversation_normalise(&c, context, 0, &err) == 0 &&
                    template_render(t, context, 0, &out, &err) == 0;
        for (char k = '1'; good && k <= '8'; k++) {
            const char word[] = { 'w', '0', 'r', 'd', k, 0 };
            if (!strstr(out.text, word)) {
                err_set(&err, ERR_FAILED, "%s is missing", word);
                good = false;
            }
        }
        /* One forgets calls that a user's message follows, one assigns to what Jinja does not let it. */
        if (!good && !strstr("mistral-common-v2-spm.jinja MiroThinker.jinja", e->d_name)) {
            print_error("%s: %s\n", e->d_name, err.text);
            n_bad++;
        }
        n++;
        template_output_clear(&out);
        template_destroy(&t);
        json_destroy(&context);
        free(text);
    }
    closedir(dir);
    print_message("templates: %zu, not all of the conversation: %zu\n", n, n_bad);
    assert_true(n >= 101);
    assert_int_equal(n_bad, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conversation_puts_the_system_message_where_it_is_read),
        cmocka_unit_test(conversation_gives_content_its_shape),
        cmocka_unit_test(conversation_gives_calls_their_shape),
        cmocka_unit_test(conversation_tells_a_plain_template_about_tools),
        cmocka_unit_test(conversation_keeps_reasoning_where_it_is_read),
        cmocka_unit_test(conversation_refuses_early),
        cmocka_unit_test(conversation_suits_every_real_template),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
