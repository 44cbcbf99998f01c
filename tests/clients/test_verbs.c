/* What verbs share: conversations as JSON, sizes, ages, the status as JSON. */
#include "proto/size.h"
#include "tests/test.h"

#include "clients/status_json.h"
#include "clients/verbs/look.h"
#include "clients/verbs/messages.h"

static void a_conversation_is_a_template_context(void **state)
{
    (void)state;
    struct messages *m = messages_create();
    messages_add(m, "system", "be \"brief\"", 10);
    messages_add(m, "user", "h\xc3\xa9\xff\xe2\x82",
                 6); /* a good character, a wrong byte, half a character */
    size_t len;
    assert_string_equal(
        messages_json(m, &len),
        "{\"messages\":[{\"role\":\"system\",\"content\":\"be "
        "\\\"brief\\\"\"},{\"role\":\"user\",\"content\":"
        "\"h\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"}],\"add_generation_prompt\":true}");
    messages_drop_last(m);
    assert_int_equal(messages_count(m), 1);
    messages_destroy(&m);
    assert_null(m);
}

static void sizes_and_ages_are_for_people(void **state)
{
    (void)state;
    char text[32];
    assert_string_equal(size_print(0, text), "0 B");
    assert_string_equal(size_print(1536, text), "1.5 KiB");
    assert_string_equal(size_print(3ull << 30, text), "3.0 GiB");
    assert_string_equal(look_age(5, text), "5 s");
    assert_string_equal(look_age(600, text), "10 min");
    assert_string_equal(look_age(86400, text), "24 h");
}

static void the_status_is_the_json_of_the_command_line(void **state)
{
    (void)state;
    struct err err = { 0 };
    Hearth__Status s = HEARTH__STATUS__INIT;
    Hearth__ProcessInfo p = HEARTH__PROCESS_INFO__INIT, *processes[] = { &p };
    Hearth__RequestInfo r = HEARTH__REQUEST_INFO__INIT, *requests[] = { &r };
    s.version = message_str("1");
    s.ready = true;
    p.role = message_str("worker");
    p.state = message_str("ready");
    p.pid = 7;
    p.restarts = 2;
    s.n_process = s.n_request = 1;
    s.process = processes;
    s.request = requests;
    r.id = message_bytes("\x01\xab", 2);
    r.model = message_str("m");
    r.state = message_str("decode");
    r.client = message_bytes("\xff", 1); /* a name that is no text must not break the JSON */
    char *text = status_json(&s, &err);
    assert_non_null(text);
    struct json *o = json_parse(text, strlen(text), &err);
    assert_non_null(o);
    const struct json *process = json_at(json_find(o, "processes"), 0);
    assert_string_equal(look_str(process, "role"), "worker");
    assert_int_equal(look_int(process, "restarts"), 2);
    assert_string_equal(look_str(json_at(json_find(o, "requests"), 0), "id"), "01ab");
    assert_true(json_as_bool(json_find(o, "ready")));
    assert_int_equal(json_kind(json_find(o, "device")), JSON_OBJECT);
    json_destroy(&o);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_conversation_is_a_template_context),
        cmocka_unit_test(sizes_and_ages_are_for_people),
        cmocka_unit_test(the_status_is_the_json_of_the_command_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
