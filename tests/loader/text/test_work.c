/* Goal: a conversation becomes ids in the template's voice and the user's: ChatML where the model has no template, another template
 * where an alias brings one, a last message that is continued, nothing of the user's text a special token. */
#include "tests/test.h"

#include "loader/text/work.h"
#include "small_vocab.h"

enum { BOS, START, END, THINK };

static const struct small_token tokens[] = { { "<s>", 0, TOKEN_CONTROL },
                                             { "<|im_start|>", 0, TOKEN_CONTROL },
                                             { "<|im_end|>", 0, TOKEN_CONTROL },
                                             { "<think>", 0, TOKEN_CONTROL } };
static const char *const no_merges[] = { "q q" };
static const struct small_vocab vocab = { .model = "gpt2",
                                          .pre = "gpt-2",
                                          .tokens = tokens,
                                          .n_tokens = 4,
                                          .merges = no_merges,
                                          .n_merges = 1,
                                          .bytes = true,
                                          .bos = -1,
                                          .eos = -1,
                                          .space_prefix = -1 };

static void open_work(struct work *work, const char *template)
{
    struct weights w = { 0 };
    struct err err = { 0 };
    struct weights_builder *b = small_vocab_begin(&vocab);
    if (template) {
        small_vocab_str(b, "tokenizer.chat_template", template);
    }
    small_vocab_finish(&b, &w);
    assert_int_equal(work_open(work, &w, &err), 0);
    weights_unmap(&w);
}

/* The prompt's tokens as text, special ones as {n}. */
static void expect(const struct work *work, const char *request, const char *wanted)
{
    struct work_answer ids = { 0 };
    struct err err = { 0 };
    char text[1024];
    size_t n = 0;
    if (work_prompt(work, WORK_MESSAGES, request, strlen(request), 0, &ids, &err) < 0) {
        fail_msg("%s: %s", request, err.text);
    }
    for (size_t i = 0; i < ids.len / sizeof(int32_t); i++) {
        size_t len;
        int32_t id;
        memcpy(&id, ids.data + i * sizeof id, sizeof id);
        const uint8_t *piece = tokenizer_piece(work->tokenizer, id, false, &len);
        n += (size_t)(id < 4 ? sprintf(text + n, "{%d}", id)
                             : sprintf(text + n, "%.*s", (int)len, (const char *)piece));
    }
    text[n] = 0;
    assert_string_equal(text, wanted);
    free(ids.data);
}

#define ASK "{\"role\":\"user\",\"content\":\"a<|im_end|>\"}"

static void work_falls_back_to_chatml(void **state)
{
    (void)state;
    struct work w;
    open_work(&w, NULL);
    expect(&w, "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"}," ASK "]}",
           "{1}system\ns{2}\n{1}user\na<|im_end|>{2}\n{1}assistant\n");
    work_close(&w);
}

static void work_continues_the_last_message(void **state)
{
    (void)state;
    struct work w;
    open_work(&w, NULL);
    expect(&w,
           "{\"add_generation_prompt\":false,\"messages\":[" ASK
           ",{\"role\":\"assistant\",\"content\":\"so e\"}]}",
           "{1}user\na<|im_end|>{2}\n{1}assistant\nso e");
    expect(&w, "{\"messages\":[" ASK ",{\"role\":\"assistant\",\"content\":\"e\"}]}",
           "{1}user\na<|im_end|>{2}\n{1}assistant\ne{2}\n{1}assistant\n");
    work_close(&w);
}

static void work_speaks_with_another_voice(void **state)
{
    (void)state;
    static const char own[] = "{% for m in messages %}<think>{{ m.content }}{% endfor %}";
    static const char other[] = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}";
    struct work w;
    open_work(&w, own);
    struct err err = { 0 };
    for (int i = 0; i < 2; i++) {
        expect(&w, "{\"messages\":[" ASK "]}", "{3}a<|im_end|>");
        assert_int_equal(work_speak(&w, other, strlen(other), &err), 0);
        expect(&w, "{\"messages\":[" ASK "]}", "{1}a<|im_end|>");
        assert_int_equal(work_speak(&w, NULL, 0, &err), 0);
    }
    assert_int_equal(work_speak(&w, "{% if", 5, &err), 0);
    struct work_answer out = { 0 };
    static const char ask[] = "{\"messages\":[" ASK "]}";
    assert_int_equal(work_prompt(&w, WORK_MESSAGES, ask, strlen(ask), 0, &out, &err), -1);
    assert_int_equal(err.code, ERR_BAD_FILE);
    free(out.data);
    work_close(&w);
}

static void work_parses_in_the_way_the_prompt_asked_for(void **state)
{
    (void)state;
    static const char said[] =
        "{\"text\":\"{\\\"tool_call\\\":{\\\"name\\\":\\\"f\\\",\\\"arguments\\\":{}}}\","
        "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]}";
    struct work w;
    open_work(&w, "{% for m in messages %}<tool_call>{{ m.content }}{% endfor %}");
    struct work_answer out = { 0 };
    struct err err = { 0 };
    assert_int_equal(work_parse(&w, said, strlen(said), 0, &out, &err), 0);
    struct json *answer = json_parse((const char *)out.data, out.len, &err);
    assert_int_equal(json_len(json_find(answer, "tool_calls")), 1);
    assert_string_equal(json_as_str(json_find(answer, "format"), NULL), "generic");
    json_destroy(&answer);
    free(out.data);
    work_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(work_falls_back_to_chatml),
        cmocka_unit_test(work_continues_the_last_message),
        cmocka_unit_test(work_speaks_with_another_voice),
        cmocka_unit_test(work_parses_in_the_way_the_prompt_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
