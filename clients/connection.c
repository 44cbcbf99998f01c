#include "clients/connection.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "proto/shm.h"

#define GREETING_AGAIN_MS 500 /* a Hello that nobody answered is said again on a new link */
#define TURN_MS           50  /* one look around while the broker is away */

uint64_t connection_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void connection_error(struct hearth_error *out, const struct err *err)
{
    if (out) {
        *out = (struct hearth_error){ .exit_code = err_exit_code(err->code) };
        snprintf(out->code, sizeof out->code, "%s", err_name(err->code));
        snprintf(out->text, sizeof out->text, "%s", err->text);
    }
}

void connection_failed(struct err *err, const Hearth__Failed *failed)
{
    char code[32], text[ERR_TEXT_MAX];
    message_copy(code, sizeof code, failed->code);
    message_copy(text, sizeof text, failed->text);
    err_set(err, err_code_of_name(code), "%s", text);
}

/* ---- where, and is anybody there ---- */

/* A keeper, or a child of it, holds the runtime directory's lock. */
static bool somebody_holds(const struct hearth *h)
{
    char path[128];
    snprintf(path, sizeof path, "%s/lock", h->run);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == EACCES; /* a service of another user: the listeners will say more */
    }
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    bool held = fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
    close(fd);
    return held;
}

/* ---- the steps of connecting ---- */

static void go_down(struct hearth *h)
{
    if (h->state == CONNECTION_UP || h->down_since_ms == 0) {
        h->down_since_ms = connection_now_ms();
    }
    if (h->attach_fd >= 0) {
        close(h->attach_fd);
        h->attach_fd = -1;
    }
    h->state = CONNECTION_DOWN;
}

static int greet(struct hearth *h, struct err *err)
{
    char endpoint[128];
    snprintf(endpoint, sizeof endpoint, "ipc://%s/broker", h->run);
    if (link_connect(&h->link, endpoint, err) < 0) {
        return -1;
    }
    Hearth__Hello hello = HEARTH__HELLO__INIT;
    hello.role = HEARTH__ROLE__CLIENT;
    hello.has_name = true;
    hello.name = message_str(h->program);
    hello.has_pid = true;
    hello.pid = (uint32_t)getpid();
    Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_HELLO, &hello);
    h->state = CONNECTION_GREETING;
    h->greeted_ms = connection_now_ms();
    return connection_send(h, &e, NULL, 0, err);
}

static void attach(struct hearth *h)
{
    char path[128];
    struct err err;
    snprintf(path, sizeof path, "%s/attach", h->run);
    h->attach_fd = channel_connect(path, &err);
    struct channel_msg msg = { .op = CHANNEL_ATTACH, .value = h->number };
    int fds[] = { h->page_fd, h->event_fd };
    if (h->attach_fd < 0 || channel_send(h->attach_fd, &msg, fds, 2, &err) < 0) {
        go_down(h);
        return;
    }
    h->state = CONNECTION_ATTACHING;
}

void connection_ack_later(struct hearth *h, const uint8_t id[LIMIT_REQUEST_ID_BYTES])
{
    if (h->n_unacked < CONNECTION_UNACKED_MAX) {
        memcpy(h->unacked[h->n_unacked++], id, LIMIT_REQUEST_ID_BYTES);
    }
}

/* What could not be acknowledged while the broker was away. */
static void say_unacked(struct hearth *h)
{
    struct err ignored;
    while (h->n_unacked > 0) {
        Hearth__Ack ack = HEARTH__ACK__INIT;
        ack.id = message_bytes(h->unacked[--h->n_unacked], LIMIT_REQUEST_ID_BYTES);
        Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_ACK, &ack);
        connection_send(h, &e, NULL, 0, &ignored);
    }
}

static int attached(struct hearth *h, const struct channel_msg *msg, int fd, struct err *err)
{
    struct journal shard;
    int status = journal_map(&shard, fd, false, err);
    close(fd);
    if (status < 0) {
        return err_wrap(err, "the broker's journal");
    }
    if (h->shard_mapped) {
        /* The same file as before, mapped anew; requests hold the address of h->shard, not of its bytes. */
        journal_unmap(&h->shard);
    }
    h->shard = shard;
    h->shard_mapped = true;
    h->shard_number = msg->value;
    h->state = CONNECTION_UP;
    h->generation++;
    h->down_since_ms = 0;
    say_unacked(h);
    return 0;
}

/* What came on the attach line. */
static int read_attach(struct hearth *h, struct err *err)
{
    struct channel_msg msg;
    int fds[CHANNEL_FDS_MAX], got;
    while (h->attach_fd >= 0 && (got = channel_recv(h->attach_fd, &msg, fds, false, err)) != 0) {
        if (got < 0) {
            go_down(h);
            return 0;
        }
        if (msg.op == CHANNEL_ATTACHED && fds[0] >= 0) {
            if (attached(h, &msg, fds[0], err) < 0) {
                return -1;
            }
            fds[0] = -1;
        } else if (msg.op == CHANNEL_BULK && fds[0] >= 0) {
            if (h->bulk_fd >= 0) {
                close(h->bulk_fd);
            }
            h->bulk_fd = fds[0];
            h->bulk_tag = msg.value;
            fds[0] = -1;
        } else if (msg.status == ERR_REFUSED && h->state == CONNECTION_ATTACHING) {
            /* The broker that welcomed us died before we attached: its successor does not know our number. Greet anew. */
            go_down(h);
        } else if (msg.status != ERR_NONE) {
            return err_set(err, (enum err_code)msg.status, "%s", msg.text);
        }
        for (int i = 0; i < CHANNEL_FDS_MAX; i++) {
            if (fds[i] >= 0) {
                close(fds[i]);
            }
        }
    }
    return 0;
}

/* While greeting, the only envelope that matters is Welcome. */
static int read_welcome(struct hearth *h, struct err *err)
{
    const uint8_t *payload;
    size_t len;
    Hearth__Envelope *e;
    while (h->state == CONNECTION_GREETING && (e = connection_recv(h, &payload, &len))) {
        if (e->body_case == HEARTH__ENVELOPE__BODY_WELCOME) {
            h->number = e->welcome->number;
            attach(h);
        } else if (e->body_case == HEARTH__ENVELOPE__BODY_FAILED) {
            connection_failed(err, e->failed);
            return -1;
        }
    }
    return 0;
}

/* One step on the way up; gives up when nobody holds the directory or the broker stays away. */
static int climb(struct hearth *h, struct err *err)
{
    uint64_t now = connection_now_ms();
    /* Who was never connected hears at once that nobody is there; who was waits for the service manager to bring it back. */
    if (h->generation == 0 && !somebody_holds(h)) {
        return err_set(err, ERR_UNREACHABLE, "no hearth runs at %s; start one with: hearth serve",
                       h->run);
    }
    if (now - h->down_since_ms > LIMIT_COME_BACK_S * 1000) {
        return err_set(err, ERR_UNREACHABLE, "the broker at %s has not answered for %d s", h->run,
                       LIMIT_COME_BACK_S);
    }
    if (h->state != CONNECTION_DOWN && now - h->greeted_ms > GREETING_AGAIN_MS) {
        go_down(h);
    }
    return h->state == CONNECTION_DOWN ? greet(h, err) : 0;
}

int connection_turn(struct hearth *h, int timeout_ms, struct err *err)
{
    if (h->state != CONNECTION_UP) {
        if (climb(h, err) < 0) {
            return -1;
        }
        if (timeout_ms < 0 || timeout_ms > TURN_MS) {
            timeout_ms = TURN_MS;
        }
    }
    if (h->state == CONNECTION_GREETING && read_welcome(h, err) < 0) {
        return -1; /* it may have come before the descriptor was polled: ZeroMQ's is edge-triggered */
    }
    enum { LINK, ATTACH, EVENT, INTERRUPT, N };
    struct pollfd polled[N] = {
        [LINK] = { .fd = h->state != CONNECTION_DOWN ? link_fd(h->link) : -1, .events = POLLIN },
        [ATTACH] = { .fd = h->attach_fd, .events = POLLIN },
        [EVENT] = { .fd = h->event_fd, .events = POLLIN },
        [INTERRUPT] = { .fd = h->interrupt_fd, .events = POLLIN },
    };
    if (poll(polled, N, timeout_ms) < 0 && errno != EINTR) {
        return err_set_errno(err, ERR_IO, "poll");
    }
    if (polled[EVENT].revents & POLLIN) {
        uint64_t count;
        if (read(h->event_fd, &count, sizeof count) < 0) {
            return 0; /* somebody was faster: nothing to learn from it */
        }
    }
    if (polled[ATTACH].revents && read_attach(h, err) < 0) {
        return -1;
    }
    if (h->state == CONNECTION_GREETING && read_welcome(h, err) < 0) {
        return -1;
    }
    if (polled[INTERRUPT].revents & POLLIN) {
        return err_set(err, ERR_INTERRUPTED, "interrupted");
    }
    return 0;
}

/* ---- messages ---- */

int connection_send(struct hearth *h, const Hearth__Envelope *e, const void *payload,
                    size_t payload_len, struct err *err)
{
    size_t len = message_pack(e, h->pack, err);
    if (len == 0) {
        return -1;
    }
    if (payload_len > LIMIT_PAYLOAD_BYTES) {
        return err_set(err, ERR_NO_FIT, "an input of %zu bytes, at most %u", payload_len,
                       LIMIT_PAYLOAD_BYTES);
    }
    struct err ignored;
    if (h->state != CONNECTION_DOWN &&
        link_send(h->link, NULL, h->pack, len, payload, payload_len, &ignored) < 0) {
        go_down(h);
    }
    return 0;
}

/* The answer to a question that is pending goes to who asked. */
static bool settle(struct hearth *h, const Hearth__Envelope *e)
{
    for (struct connection_pending *p = h->pending; p && e->cookie; p = p->next) {
        if (p->cookie == e->cookie) {
            p->cookie = 0;
            p->refused = e->body_case == HEARTH__ENVELOPE__BODY_FAILED;
            if (p->refused) {
                connection_failed(&p->why, e->failed);
            }
            return true;
        }
    }
    return false;
}

/* The broker does not know us: the one that did is dead, and the socket found the next one before its line told us. */
static bool is_stranger(const Hearth__Envelope *e)
{
    struct err err;
    if (e->body_case != HEARTH__ENVELOPE__BODY_FAILED) {
        return false;
    }
    connection_failed(&err, e->failed);
    return err.code == ERR_CLOSED;
}

Hearth__Envelope *connection_recv(struct hearth *h, const uint8_t **payload, size_t *payload_len)
{
    struct link_msg msg;
    struct err err;
    int got;
    while (h->state != CONNECTION_DOWN && (got = link_recv(h->link, &msg, &err)) != 0) {
        Hearth__Envelope *e = got > 0
                                  ? message_unpack(&h->arena, msg.envelope, msg.envelope_len, &err)
                                  : NULL;
        if (e && is_stranger(e)) {
            go_down(h); /* what was asked is asked again on the next connection */
            return NULL;
        }
        if (e && !settle(h, e)) {
            *payload = msg.payload;
            *payload_len = msg.payload_len;
            return e;
        }
    }
    return NULL;
}

Hearth__Envelope *connection_ask(struct hearth *h, Hearth__Envelope *e, const void *payload,
                                 size_t payload_len, const uint8_t **answer, size_t *answer_len,
                                 struct err *err)
{
    uint32_t sent_on = h->generation - 1;
    const uint8_t *got_payload;
    size_t got_len;
    e->has_cookie = true;
    e->cookie = ++h->last_cookie;
    for (;;) {
        if (h->state == CONNECTION_UP && sent_on != h->generation) {
            sent_on = h->generation;
            if (connection_send(h, e, payload, payload_len, err) < 0) {
                return NULL;
            }
        }
        Hearth__Envelope *got;
        while (h->state == CONNECTION_UP && (got = connection_recv(h, &got_payload, &got_len))) {
            if (!got->has_cookie || got->cookie != e->cookie) {
                continue;
            }
            if (got->body_case == HEARTH__ENVELOPE__BODY_FAILED) {
                connection_failed(err, got->failed);
                h->retry_ms = got->failed->retry_after_ms;
                h->position = got->failed->queue_position;
                h->n_prompt = got->failed->n_prompt;
                h->n_ctx = got->failed->n_ctx;
                return NULL;
            }
            if (answer) {
                *answer = got_payload;
                *answer_len = got_len;
            }
            return got;
        }
        if (connection_turn(h, LIMIT_SLEEP_MS, err) < 0) {
            return NULL;
        }
    }
}

/* ---- open and close ---- */

struct hearth *hearth_open(const char *run, const char *program, struct hearth_error *error)
{
    struct err err = { 0 };
    struct hearth *h = calloc(1, sizeof *h);
    if (!h) {
        err_set(&err, ERR_NO_MEMORY, "no memory for a connection");
        goto fail;
    }
    h->pending = &h->load;
    h->attach_fd = h->page_fd = h->event_fd = h->bulk_fd = h->interrupt_fd = -1;
    snprintf(h->program, sizeof h->program, "%s", program ? program : "client");
    if (heritage_find_run(run, h->run, &err) < 0) {
        goto fail;
    }
    h->page_fd = shm_create("hearth-reader", LIMIT_SHARD_PAGE, true, &err);
    h->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (h->page_fd < 0 || h->event_fd < 0) {
        goto fail;
    }
    h->page = shm_map(h->page_fd, true, &h->page_bytes, &err);
    if (!h->page) {
        goto fail;
    }
    h->down_since_ms = connection_now_ms();
    while (h->state != CONNECTION_UP) {
        if (connection_turn(h, TURN_MS, &err) < 0) {
            goto fail;
        }
    }
    return h;
fail:
    connection_error(error, &err);
    hearth_close(&h);
    return NULL;
}

void hearth_close(struct hearth **hp)
{
    struct hearth *h = *hp;
    if (!h) {
        return;
    }
    link_close(&h->link);
    int fds[] = { h->attach_fd, h->page_fd, h->event_fd, h->bulk_fd };
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    shm_unmap(h->page, h->page_bytes);
    if (h->shard_mapped) {
        journal_unmap(&h->shard);
    }
    free(h->loading);
    free(h);
    *hp = NULL;
}

int hearth_check(struct hearth *h, struct hearth_error *error)
{
    struct err err = { 0 };
    do {
        if (connection_turn(h, h->state == CONNECTION_UP ? 0 : TURN_MS, &err) < 0) {
            connection_error(error, &err);
            return -1;
        }
    } while (h->state != CONNECTION_UP);
    return 0;
}

int hearth_interrupt_fd(struct hearth *h, int fd)
{
    int before = h->interrupt_fd;
    h->interrupt_fd = fd;
    return before;
}

const char *hearth_run(const struct hearth *h)
{
    return h->run;
}
