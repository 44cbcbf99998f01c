#include "loader/text/serve.h"

#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "loader/text/work.h"
#include "proto/channel.h"
#include "proto/confine.h"
#include "proto/heritage.h"
#include "proto/link.h"
#include "proto/log.h"
#include "proto/message.h"

#define WORKS_PER_TURN 64 /* drained before the channel is looked at again */

struct service {
    struct heritage heritage;
    uint64_t model; /* the broker's number for it */
    struct weights manifest;
    struct work work;
    struct link *link;
    struct message_arena arena;
    uint8_t pack[LIMIT_ENVELOPE_BYTES];
};

static struct service service;

/* ---- the line to the broker ---- */

static int say(struct service *s, Hearth__Envelope__BodyCase which, void *body, const void *payload,
               size_t payload_len, struct err *err)
{
    Hearth__Envelope e = message_envelope(which, body);
    size_t len = message_pack(&e, s->pack, err);
    return len == 0 ? -1 : link_send(s->link, NULL, s->pack, len, payload, payload_len, err);
}

/* A new link, and who we are. */
static int greet(struct service *s, struct err *err)
{
    char endpoint[128];
    snprintf(endpoint, sizeof endpoint, "ipc://%s/broker", s->heritage.run);
    if (link_connect(&s->link, endpoint, err) < 0) {
        return -1;
    }
    Hearth__Hello hello = HEARTH__HELLO__INIT;
    hello.role = HEARTH__ROLE__TEXT;
    hello.has_token = true;
    hello.token = message_bytes(s->heritage.token, sizeof s->heritage.token);
    hello.has_child = true;
    hello.child = s->heritage.child;
    hello.n_models = 1;
    hello.models = &s->model;
    return say(s, HEARTH__ENVELOPE__BODY_HELLO, &hello, NULL, 0, err);
}

/* ---- one work ---- */

static int do_work(struct service *s, const Hearth__TextWork *work, const uint8_t *input,
                   size_t len, struct work_answer *out, struct err *err)
{
    const Hearth__TextAsk *ask = work->ask;
    const struct work *w = &s->work;
    if (work_speak(&s->work,
                   work->has_chat_template ? (const char *)work->chat_template.data : NULL,
                   work->chat_template.len, err) < 0) {
        return -1;
    }
    const void *data = len ? (const void *)input : "";
    int64_t now = ask->has_now ? (int64_t)ask->now : (int64_t)time(NULL);
    switch (ask->op) {
    case HEARTH__TEXT_OP__TOKENIZE:
        return work_tokenize(w, data, len, ask->add_special, ask->parse_special, out, err);
    case HEARTH__TEXT_OP__DETOKENIZE:
        return work_detokenize(w, data, len, ask->remove_special, ask->unparse_special, out, err);
    case HEARTH__TEXT_OP__RENDER:
        return work_render(w, data, len, now, out, err);
    case HEARTH__TEXT_OP__PIECES:
        return work_pieces(w, data, len, out, err);
    case HEARTH__TEXT_OP__PROMPT:
        return work_prompt(w,
                           work->kind == HEARTH__PROMPT_KIND__MESSAGES ? WORK_MESSAGES
                           : work->kind == HEARTH__PROMPT_KIND__TOKENS ? WORK_TOKENS
                           : work->kind == HEARTH__PROMPT_KIND__INFILL ? WORK_INFILL
                                                                       : WORK_TEXT,
                           data, len, now, out, err);
    case HEARTH__TEXT_OP__PARSE:
        return work_parse(w, data, len, now, out, err);
    case _HEARTH__TEXT_OP_IS_INT_SIZE:
        break;
    }
    return err_set(err, ERR_UNSUPPORTED, "text operation %d", (int)ask->op);
}

static void answer_work(struct service *s, const Hearth__TextWork *work, const uint8_t *input,
                        size_t len)
{
    struct err err = { 0 }, send_err = { 0 };
    struct work_answer out = { 0 };
    Hearth__TextDone done = HEARTH__TEXT_DONE__INIT;
    int result = do_work(s, work, input, len, &out, &err);
    if (result == 0 && out.len > LIMIT_PAYLOAD_BYTES) {
        result = err_set(&err, ERR_NO_FIT, "an answer of %zu bytes, at most %u", out.len,
                         LIMIT_PAYLOAD_BYTES);
    }
    done.work = work->work;
    done.has_code = done.has_text = result < 0;
    if (result < 0) {
        done.code = message_str(err_name(err.code));
        done.text = message_str(err.text);
    }
    if (say(s, HEARTH__ENVELOPE__BODY_TEXT_DONE, &done,
            result < 0 ? NULL
            : out.data ? out.data
                       : (const uint8_t *)"",
            result < 0 ? 0 : out.len, &send_err) < 0) {
        log_warn("answer to work %llu: %s", (unsigned long long)work->work, send_err.text);
    }
    if (out.data) {
        explicit_bzero(out.data, out.len); /* it held a prompt */
        free(out.data);
    }
}

/* True when there may be more. */
static bool read_link(struct service *s)
{
    struct err err = { 0 };
    struct link_msg msg;
    for (int i = 0; i < WORKS_PER_TURN; i++) {
        int got = link_recv(s->link, &msg, &err);
        if (got == 0) {
            return false;
        }
        Hearth__Envelope *e = got > 0
                                  ? message_unpack(&s->arena, msg.envelope, msg.envelope_len, &err)
                                  : NULL;
        if (!e) {
            log_warn("from the broker: %s", err.text);
        } else if (e->body_case == HEARTH__ENVELOPE__BODY_TEXT_WORK) {
            answer_work(s, e->text_work, msg.payload, msg.payload_len);
        }
    }
    return true;
}

/* False: the keeper is gone, or the line to it is. */
static bool read_channel(struct service *s)
{
    struct channel_msg msg;
    struct err err = { 0 };
    int fds[CHANNEL_FDS_MAX], got;
    while ((got = channel_recv(HERITAGE_CHANNEL_FD, &msg, fds, false, &err)) > 0) {
        if (msg.op == CHANNEL_BROKER_NEW && greet(s, &err) < 0) {
            log_warn("a new broker: %s", err.text);
        }
    }
    return got == 0;
}

static void loop(struct service *s)
{
    bool more = true; /* greet() has sent: the descriptor may have rung already (proto/link.h) */
    for (;;) {
        enum { LINK, CHANNEL, N };
        struct pollfd polled[N] = {
            [LINK] = { .fd = link_fd(s->link), .events = POLLIN },
            [CHANNEL] = { .fd = HERITAGE_CHANNEL_FD, .events = POLLIN },
        };
        if (poll(polled, N, more ? 0 : -1) < 0 && errno != EINTR) {
            log_error("poll: %s", strerror(errno));
            return;
        }
        if (polled[CHANNEL].revents && !read_channel(s)) {
            return;
        }
        /* ZeroMQ's descriptor is edge-triggered: read to the end whatever woke us. */
        more = read_link(s);
    }
}

/* ---- main ---- */

static int open_service(struct service *s, int argc, char **argv, struct err *err)
{
    if (heritage_read(&s->heritage, err) < 0) {
        return -1;
    }
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--model") != 0) {
            return err_set(err, ERR_USAGE, "%s: not an option", argv[i]);
        }
        s->model = strtoull(argv[i + 1], NULL, 10);
    }
    if (s->model == 0) {
        return err_set(err, ERR_USAGE, "--model N is wanted");
    }
    if (confine(CONFINE_TEXT, err) < 0) {
        log_warn("%s: goes on unconfined", err->text);
        *err = (struct err){ 0 };
    }
    /* From here on, outside bytes. */
    if (weights_map(&s->manifest, HERITAGE_GRANT_FD, err) < 0 ||
        work_open(&s->work, &s->manifest, err) < 0) {
        return -1;
    }
    if (s->work.own.has_template && !s->work.own.template) {
        log_warn("model %llu: its chat template: %s", (unsigned long long)s->model,
                 s->work.own.err.text);
    }
    return greet(s, err);
}

int text_main(int argc, char **argv)
{
    struct service *s = &service;
    struct err err = { 0 };
    log_init("text");
    tzset(); /* reads a file, which the sandbox forbids: templates show local time */
    mallopt(M_ARENA_MAX, 2); /* two threads at most: no address space for more */
    if (open_service(s, argc, argv, &err) < 0) {
        log_error("%s", err.text);
        struct channel_msg note = { .op = CHANNEL_NOTE,
                                    .code = CHANNEL_NOTE_FAILED,
                                    .value = (uint64_t)err.code };
        snprintf(note.text, sizeof note.text, "%s", err.text);
        struct err ignored;
        channel_send(HERITAGE_CHANNEL_FD, &note, NULL, 0, &ignored);
        return err_exit_code(err.code);
    }
    loop(s);
    link_close(&s->link);
    work_close(&s->work);
    weights_unmap(&s->manifest);
    return 0;
}
