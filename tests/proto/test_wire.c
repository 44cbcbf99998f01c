/* Messages, links, lines and JSON: what goes in comes out, what is malformed is refused and nothing dies. */
#include "tests/test.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/channel.h"
#include "proto/json.h"
#include "proto/link.h"
#include "proto/message.h"

static struct message_arena arena;

static void an_envelope_comes_back(void **state)
{
    (void)state;
    struct err err = { 0 };
    uint8_t out[LIMIT_ENVELOPE_BYTES];
    Hearth__Ack ack = HEARTH__ACK__INIT;
    ack.id = message_bytes("0123456789abcdef", 16);
    Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_ACK, &ack);
    e.has_cookie = true;
    e.cookie = 99;
    size_t len = message_pack(&e, out, &err);
    assert_true(len > 0);
    Hearth__Envelope *back = message_unpack(&arena, out, len, &err);
    assert_non_null(back);
    assert_int_equal(back->cookie, 99);
    assert_int_equal(back->body_case, HEARTH__ENVELOPE__BODY_ACK);
    assert_memory_equal(back->ack->id.data, "0123456789abcdef", 16);
    assert_string_equal(message_name(back->body_case), "ack");
}

static void malformed_envelopes_are_refused(void **state)
{
    (void)state;
    struct err err = { 0 };
    uint8_t out[LIMIT_ENVELOPE_BYTES];
    Hearth__Cancel cancel = HEARTH__CANCEL__INIT;
    cancel.id = message_str("12");
    Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_CANCEL, &cancel);
    size_t len = message_pack(&e, out, &err);
    for (size_t cut = 0; cut < len; cut++) {
        assert_null(message_unpack(&arena, out, cut, &err));
        assert_int_equal(err.code, ERR_BAD_INPUT);
    }
    e.version = MESSAGE_VERSION + 1;
    len = message_pack(&e, out, &err);
    assert_null(message_unpack(&arena, out, len, &err));
    static uint8_t large[LIMIT_ENVELOPE_BYTES + 1];
    assert_null(message_unpack(&arena, large, sizeof large, &err));
    /* Random bytes: refused or read, never a crash; unknown fields cannot cost more than the arena. */
    srand(1);
    for (int round = 0; round < 20000; round++) {
        size_t n = (size_t)rand() % 300;
        for (size_t i = 0; i < n; i++) {
            large[i] = (uint8_t)rand();
        }
        message_unpack(&arena, large, n, &err);
    }
    for (size_t i = 0; i + 1 < LIMIT_ENVELOPE_BYTES; i += 2) {
        large[i] = 0x78; /* field 15, varint: unknown, two bytes each */
        large[i + 1] = 0;
    }
    assert_null(message_unpack(&arena, large, LIMIT_ENVELOPE_BYTES, &err));
}

static void strings_are_bounded(void **state)
{
    (void)state;
    char out[5];
    assert_true(message_copy(out, sizeof out, message_str("abcd")));
    assert_false(message_copy(out, sizeof out, message_str("abcde")));
    assert_string_equal(out, "abcd");
    assert_false(message_copy(out, sizeof out, message_bytes("a\0b", 3)));
}

struct pair {
    char path[64], endpoint[80];
    struct link *router, *dealer;
};

static int open_links(void **state)
{
    static struct pair p;
    struct err err = { 0 };
    snprintf(p.path, sizeof p.path, "/tmp/hearth-test-link-%d", (int)getpid());
    snprintf(p.endpoint, sizeof p.endpoint, "ipc://%s", p.path);
    unlink(p.path);
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    strcpy(address.sun_path, p.path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 8) < 0) {
        return -1;
    }
    p.router = link_listen(p.endpoint, fd, &err);
    p.dealer = NULL;
    assert_ok(link_connect(&p.dealer, p.endpoint, &err), err);
    *state = &p;
    return p.router && p.dealer ? 0 : -1;
}

static int close_links(void **state)
{
    struct pair *p = *state;
    link_close(&p->dealer);
    link_close(&p->router);
    unlink(p->path);
    return 0;
}

static void recv_one(struct link *link, struct link_msg *msg)
{
    struct err err = { 0 };
    for (int tries = 0; tries < 100; tries++) {
        int got = link_recv(link, msg, &err);
        if (got != 0) {
            assert_int_equal(got, 1);
            return;
        }
        link_wait(link, 100, &err);
    }
    fail_msg("nothing came");
}

static void messages_go_both_ways_with_payloads(void **state)
{
    struct pair *p = *state;
    struct err err = { 0 };
    struct link_msg msg;
    static char big[1 << 20];
    memset(big, 'p', sizeof big);
    assert_ok(link_send(p->dealer, NULL, "hello", 5, big, sizeof big, &err), err);
    recv_one(p->router, &msg);
    assert_int_equal(msg.envelope_len, 5);
    assert_int_equal(msg.payload_len, sizeof big);
    struct link_peer peer = msg.peer;
    assert_ok(link_send(p->router, &peer, "answer", 6, NULL, 0, &err), err);
    recv_one(p->dealer, &msg);
    assert_memory_equal(msg.envelope, "answer", 6);
    assert_null(msg.payload);
    struct link_peer stranger = { .len = 5, .id = { 0, 9, 9, 9, 9 } };
    assert_int_equal(link_send(p->router, &stranger, "x", 1, NULL, 0, &err), -1);
    assert_int_equal(err.code, ERR_CLOSED);
    static char too_big[LIMIT_PAYLOAD_BYTES + 1];
    assert_int_equal(link_send(p->dealer, NULL, "x", 1, too_big, sizeof too_big, &err), -1);
    assert_int_equal(err.code, ERR_NO_FIT);
}

/* Who hangs up and connects again is another peer; words to the one that was find nobody. */
static void a_link_begins_anew_as_another_peer(void **state)
{
    struct pair *p = *state;
    struct err err = { 0 };
    struct link_msg msg;
    assert_ok(link_send(p->dealer, NULL, "one", 3, NULL, 0, &err), err);
    recv_one(p->router, &msg);
    struct link_peer before = msg.peer;
    for (int i = 0; i < 20; i++) {
        assert_ok(link_connect(&p->dealer, p->endpoint, &err), err);
    }
    assert_ok(link_send(p->dealer, NULL, "two", 3, NULL, 0, &err), err);
    recv_one(p->router, &msg);
    assert_false(link_peer_equal(&before, &msg.peer));
    assert_ok(link_send(p->router, &msg.peer, "three", 5, NULL, 0, &err), err);
    recv_one(p->dealer, &msg);
    assert_int_equal(msg.envelope_len, 5);
}

static void descriptors_travel_on_the_line(void **state)
{
    (void)state;
    struct err err = { 0 };
    struct channel_msg msg = { .op = CHANNEL_DEPOSIT, .segment = 5 };
    int pair[2], pipes[2], fds[CHANNEL_FDS_MAX];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(channel_recv(pair[1], &msg, fds, false, &err), 0);
    assert_ok(channel_send(pair[0], &msg, pipes, 2, &err), err);
    memset(&msg, 0, sizeof msg);
    assert_int_equal(channel_recv(pair[1], &msg, fds, true, &err), 1);
    assert_int_equal(msg.segment, 5);
    assert_int_equal(write(fds[1], "x", 1), 1);
    char c;
    assert_int_equal(read(pipes[0], &c, 1), 1);
    for (int i = 0; i < 2; i++) {
        close(fds[i]);
        close(pipes[i]);
    }
    assert_int_equal(send(pair[0], "nonsense", 8, 0), 8);
    assert_int_equal(channel_recv(pair[1], &msg, fds, true, &err), -1);
    assert_int_equal(err.code, ERR_BAD_INPUT);
    close(pair[0]);
    assert_int_equal(channel_recv(pair[1], &msg, fds, true, &err), -1);
    assert_int_equal(err.code, ERR_CLOSED);
    close(pair[1]);
}

/* Who leaves without having read everything resets the line, and Linux tells that before what he had said: last words are heard all
 * the same. A loader that outlived its broker, and was told of the next one, was so taken for one that died before its work was done. */
static void last_words_are_heard(void **state)
{
    (void)state;
    struct err err = { 0 };
    struct channel_msg told = { .op = CHANNEL_BROKER_NEW }, msg = { .op = CHANNEL_NOTE };
    int pair[2], fds[CHANNEL_FDS_MAX];
    for (int wait = 0; wait < 2; wait++) {
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        assert_ok(channel_send(pair[1], &told, NULL, 0, &err), err);
        assert_ok(channel_send(pair[0], &msg, NULL, 0, &err), err);
        assert_ok(channel_send(pair[0], &msg, NULL, 0, &err), err);
        close(pair[0]);
        for (int i = 0; i < 2; i++) {
            struct channel_msg heard;
            assert_int_equal(channel_recv(pair[1], &heard, fds, wait, &err), 1);
            assert_int_equal(heard.op, CHANNEL_NOTE);
        }
        assert_int_equal(channel_recv(pair[1], &msg, fds, wait, &err), -1);
        assert_int_equal(err.code, ERR_CLOSED);
        close(pair[1]);
        msg.op = CHANNEL_NOTE;
    }
}

static void a_full_line_says_so(void **state)
{
    (void)state;
    struct err err = { 0 };
    struct channel_msg msg = { .op = CHANNEL_NOTE };
    int pair[2], sent = 0;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    while (channel_send(pair[0], &msg, NULL, 0, &err) == 0) {
        assert_true(++sent < 100000);
    }
    assert_int_equal(err.code, ERR_FULL);
    close(pair[0]);
    close(pair[1]);
}

static void json_is_strict_and_keeps_order(void **state)
{
    (void)state;
    struct err err = { 0 };
    static const char *const bad[] = { "", "{", "{}x", "[1,]", "nul", "\"\xff\"" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct json *value = json_parse(bad[i], strlen(bad[i]), &err);
        if (value) {
            fail_msg("accepted: %s", bad[i]);
        }
        assert_int_equal(err.code, ERR_BAD_INPUT);
    }
    const char *text = "{\"b\":1,\"a\":[true,2.5,\"x\"],\"c\":null}";
    struct json *value = json_parse(text, strlen(text), &err);
    assert_non_null(value);
    const char *key;
    json_member(value, 0, &key);
    assert_string_equal(key, "b");
    assert_int_equal(json_kind(json_at(json_find(value, "a"), 1)), JSON_DOUBLE);
    assert_string_equal(json_text(value, NULL), text);
    json_destroy(&value);
    char deep[1000];
    memset(deep, '[', sizeof deep);
    assert_null(json_parse(deep, sizeof deep, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_envelope_comes_back),
        cmocka_unit_test(malformed_envelopes_are_refused),
        cmocka_unit_test(strings_are_bounded),
        cmocka_unit_test_setup_teardown(messages_go_both_ways_with_payloads, open_links,
                                        close_links),
        cmocka_unit_test_setup_teardown(a_link_begins_anew_as_another_peer, open_links,
                                        close_links),
        cmocka_unit_test(descriptors_travel_on_the_line),
        cmocka_unit_test(last_words_are_heard),
        cmocka_unit_test(a_full_line_says_so),
        cmocka_unit_test(json_is_strict_and_keeps_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
