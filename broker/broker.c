#include "broker/broker.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "broker/door.h"
#include "broker/recover.h"
#include "broker/route.h"
#include "proto/log.h"

#define MESSAGES_PER_TURN 256 /* of one source before the others have their turn */
#define TURN_MAX_MS                                                                                \
    1000 /* a turn comes at least so often: an alarm that was forgotten costs a second */

/* ---- small tools of the room ---- */

static uint64_t clock_ms(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

uint64_t broker_unix_ms(void)
{
    return clock_ms(CLOCK_REALTIME);
}

void broker_random(void *out, size_t n)
{
    uint8_t *at = out;
    while (n > 0) {
        ssize_t got = getrandom(at, n, 0);
        if (got > 0) {
            at += got;
            n -= (size_t)got;
        }
    }
}

uint64_t broker_digest(uint64_t seed, const void *data, size_t n)
{
    const uint8_t *at = data;
    uint64_t h = 0xcbf29ce484222325ull ^ (seed * 0x9e3779b97f4a7c15ull);
    for (size_t i = 0; i < n; i++) {
        h = (h ^ at[i]) * 0x100000001b3ull;
    }
    return h;
}

void broker_alarm(struct broker *b, uint64_t at_ms)
{
    if (at_ms < b->alarm_ms) {
        b->alarm_ms = at_ms;
    }
}

uint64_t broker_serial(struct broker *b)
{
    /* Works in flight under the last broker must not be taken for new ones. */
    return ((uint64_t)b->heritage.broker_epoch << 40) + ++b->last_serial;
}

uint64_t broker_segment(struct broker *b)
{
    return ((uint64_t)b->heritage.broker_epoch << 32) + ++b->last_segment;
}

/* ---- opening ---- */

int broker_open(struct broker *b, struct err *err)
{
    char endpoint[128];
    b->now_ms = b->born_ms = clock_ms(CLOCK_MONOTONIC);
    b->alarm_ms = b->now_ms;
    b->records.eventfd = -1;
    b->keeper = keeper_line_create(HERITAGE_CHANNEL_FD, err);
    if (!b->keeper || shards_open_dir(&b->shards, b->heritage.run, err) < 0) {
        return -1;
    }
    snprintf(endpoint, sizeof endpoint, "ipc://%s/broker", b->heritage.run);
    int fd = dup(HERITAGE_ROUTER_FD);
    b->link = link_listen(endpoint, fd, err);
    if (!b->link) {
        return -1;
    }
    catalog_scan(&b->catalog, &b->config);
    workers_init(b);
    clients_init(b);
    parks_open(b);
    recover_begin(b);
    records_init(b);
    return 0;
}

/* Aliases that are pinned are wanted from the start. */
static void want_pinned(struct broker *b)
{
    for (uint32_t i = 0; i < b->config.n_aliases; i++) {
        struct err err;
        if (b->config.aliases[i].pin && !models_get(b, b->config.aliases[i].name, NULL, &err)) {
            log_warn("pinned %s: %s", b->config.aliases[i].name, err.text);
        }
    }
}

void broker_close(struct broker *b)
{
    parks_close(b, b->stopping && b->listed);
    shards_close(&b->shards, b->heritage.run, b->stopping && b->listed);
    link_close(&b->link);
    keeper_line_destroy(&b->keeper);
    requests_clear(&b->requests);
    texts_clear(&b->texts);
    evals_clear(&b->evals);
    watch_clear(b);
    models_clear(&b->models);
    workers_clear(&b->workers);
    clients_clear(&b->clients);
    records_clear(&b->records);
    queue_clear(&b->queue);
    catalog_clear(&b->catalog);
    config_clear(&b->config);
}

/* SIGHUP: configuration and catalog are read again; a mistake in the file leaves all as it was. */
static void reload(struct broker *b)
{
    struct config fresh;
    struct err err = { 0 };
    if (config_load(&fresh, b->argc, b->argv, &err) < 0) {
        log_error("configuration not read again: %s", err.text);
    } else {
        config_clear(&b->config);
        b->config = fresh;
        gateway_on_reload(b);
        log_info("configuration read again");
    }
    catalog_scan(&b->catalog, &b->config);
    workers_revive(b, "SIGHUP");
    models_policy(b);
    want_pinned(b);
}

/* ---- what the keeper says ---- */

static void on_answer(struct broker *b, struct keeper_event *e)
{
    struct err err = { 0 };
    if (e->msg.status != ERR_NONE) {
        err_set(&err,
                e->msg.status > 0 && e->msg.status < ERR_N_CODES ? (enum err_code)e->msg.status
                                                                 : ERR_FAILED,
                "%s", e->msg.text);
    }
    struct shard *shard;
    int fd = e->fds[0];
    e->fds[0] = -1; /* taken below, or closed here */
    switch (e->what) {
    case KEEPER_LIST:
        recover_end(b);
        want_pinned(b);
        break;
    case KEEPER_SPAWN_WORKER:
        workers_on_spawn(b, (uint32_t)e->subject, e->msg.child, e->msg.pid, &err);
        break;
    case KEEPER_SPAWN_LOADER:
        models_on_loader(b, e->subject, e->msg.child, e->msg.pid, &err);
        break;
    case KEEPER_SPAWN_CHECK:
        models_on_check(b, e->subject, e->msg.child, &err);
        break;
    case KEEPER_SPAWN_TEXT:
        models_on_text(b, e->subject, e->msg.child, e->msg.pid, &err);
        break;
    case KEEPER_SPAWN_HTTP:
        gateway_on_spawn(b, e->msg.child, e->msg.pid, &err);
        break;
    case KEEPER_TAKE_WEIGHTS:
        models_on_weights(b, e->subject, e->other, fd, &err);
        fd = -1;
        break;
    case KEEPER_CREATE_STATE:
        models_on_state(b, e->subject, e->other, &err);
        break;
    case KEEPER_TAKE_STATE:
        watch_on_state(b, e->subject, e->other, fd, &err);
        fd = -1;
        break;
    case KEEPER_TAKE_WATERMARK:
        watch_on_weights(b, e->subject, e->other, fd, &err);
        fd = -1;
        break;
    case KEEPER_TAKE_UPLOADED:
        models_on_uploaded(b, e->subject, e->other, fd);
        fd = -1;
        break;
    case KEEPER_TAKE_BULK:
        evals_on_bulk(b, e->subject, fd, &err);
        fd = -1;
        break;
    case KEEPER_TAKE_RESULT:
        evals_on_result(b, e->subject, fd, &err);
        fd = -1;
        break;
    case KEEPER_GRANT:
        workers_on_grant(b, (uint32_t)e->other, e->subject, &err);
        break;
    case KEEPER_DEPOSIT_READER:
        clients_on_deposit(b, e->subject, &err);
        break;
    case KEEPER_DEPOSIT_SHARD:
        shard = shards_find(&b->shards, (uid_t)e->subject);
        if (shard) {
            shard->deposited = err.code == ERR_NONE;
        }
        break;
    case KEEPER_DEPOSIT_OWN:
        records_on_deposit(b, &err);
        break;
    default: /* a failed CREATE is followed by a failed SPAWN or TAKE, which is handled */
        if (err.code != ERR_NONE) {
            log_warn("keeper: %s", err.text);
        }
    }
    if (fd >= 0) {
        close(fd);
    }
}

static void on_keeper(struct broker *b, struct keeper_event *e)
{
    switch (e->msg.op) {
    case CHANNEL_DONE:
        on_answer(b, e);
        break;
    case CHANNEL_CHILD:
    case CHANNEL_SEGMENT:
        recover_row(b, &e->msg);
        break;
    case CHANNEL_NOTE:
        if (!gateway_on_note(b, e->msg.child, e->msg.code, e->msg.text) &&
            !models_on_note(b, e->msg.child, e->msg.code, e->msg.value, e->msg.text)) {
            log_debug("note %u of child %u, which is nobody's", e->msg.code, e->msg.child);
        }
        break;
    case CHANNEL_DIED:
        if (!workers_on_died(b, e->msg.child, e->msg.status) &&
            !models_on_died(b, e->msg.child, e->msg.status) &&
            !gateway_on_died(b, e->msg.child, e->msg.status)) {
            log_debug("child %u died, which is nobody's", e->msg.child);
        }
        break;
    case CHANNEL_HANGUP:
        reload(b);
        break;
    case CHANNEL_TERM:
        b->stopping = true;
        break;
    default:
        log_warn("keeper: op %u is not for the broker", e->msg.op);
    }
    for (int i = 0; i < CHANNEL_FDS_MAX; i++) {
        if (e->fds[i] >= 0) {
            close(e->fds[i]);
        }
    }
}

void broker_drain_keeper(struct broker *b)
{
    static struct keeper_event event;
    for (int i = 0; i < MESSAGES_PER_TURN; i++) {
        struct err err = { 0 };
        int got = keeper_line_recv(b->keeper, &event, &err);
        if (got < 0) {
            b->fatal = err;
        }
        if (got <= 0) {
            return;
        }
        on_keeper(b, &event);
    }
    broker_alarm(b, b->now_ms);
}

static void drain_link(struct broker *b)
{
    struct link_msg msg;
    struct err err = { 0 };
    for (int i = 0; i < MESSAGES_PER_TURN; i++) {
        int got = link_recv(b->link, &msg, &err);
        if (got == 0) {
            return;
        }
        if (got > 0) {
            door_on_message(b, &msg);
        } else if (err.code == ERR_BAD_INPUT) {
            door_on_bad(b, &msg.peer, &err);
        } else {
            b->fatal = err;
            return;
        }
    }
    broker_alarm(b, b->now_ms);
}

/* ---- acting ---- */

void broker_act(struct broker *b)
{
    b->alarm_ms = b->now_ms + TURN_MAX_MS;
    if (!b->listed) {
        return; /* nothing is decided before we know what there is */
    }
    texts_act(b);
    evals_act(b);
    requests_act(b);
    models_act(b);
    keeps_act(b);
    workers_act(b);
    watch_act(b);
    gateway_act(b);
    lend_act(b);
    parks_act(b);
    route_act(b);
    records_act(b);
    clients_act(b);
    requests_sweep(b);
}

/* ---- the loop ---- */

enum { POLL_SIGNAL, POLL_KEEPER, POLL_LINK, POLL_ATTACH, POLL_RECORDS, POLL_FIXED };

/* Fills the array; visitors, then clients with a line, come behind the fixed ones. Returns how many. */
static nfds_t fill_polled(struct broker *b, int signal_fd, struct pollfd *p)
{
    nfds_t n = POLL_FIXED;
    bool listed = b->listed;
    p[POLL_SIGNAL] = (struct pollfd){ .fd = signal_fd, .events = POLLIN };
    p[POLL_KEEPER] = (struct pollfd){
        .fd = HERITAGE_CHANNEL_FD,
        .events = (short)(POLLIN | (keeper_line_waiting(b->keeper) ? POLLOUT : 0))
    };
    p[POLL_LINK] = (struct pollfd){ .fd = listed ? link_fd(b->link) : -1, .events = POLLIN };
    p[POLL_ATTACH] = (struct pollfd){ .fd = listed ? HERITAGE_ATTACH_FD : -1, .events = POLLIN };
    p[POLL_RECORDS] = (struct pollfd){ .fd = b->records.eventfd, .events = POLLIN };
    for (uint32_t i = 0; i < b->clients.n_visitors; i++) {
        p[n++] = (struct pollfd){ .fd = b->clients.visitors[i].fd, .events = POLLIN };
    }
    for (uint32_t i = 0; i < b->clients.n; i++) {
        p[n++] = (struct pollfd){ .fd = b->clients.list[i]->line, .events = POLLIN };
    }
    return n;
}

static void drain_lines(struct broker *b, const struct pollfd *p)
{
    uint32_t n_visitors = b->clients.n_visitors, n_clients = b->clients.n;
    /* Clients before visitors: a visitor may become a client's line, the rows polled stay the same. */
    for (uint32_t i = 0; i < n_clients; i++) {
        struct client *c = b->clients.list[i];
        const struct pollfd *row = &p[POLL_FIXED + n_visitors + i];
        if (row->fd == c->line && row->revents && c->line >= 0 && !c->gone) {
            clients_read_line(b, c);
        }
    }
    for (uint32_t i = n_visitors; i-- > 0;) { /* downwards: a row that goes is filled by the last */
        if (p[POLL_FIXED + i].revents) {
            clients_read_visitor(b, i);
        }
    }
    if (p[POLL_ATTACH].revents) {
        clients_accept(b, HERITAGE_ATTACH_FD);
    }
}

static void on_signal(struct broker *b, int signal_fd)
{
    struct signalfd_siginfo info;
    while (read(signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGHUP) {
            reload(b);
        } else {
            b->stopping = true;
        }
    }
}

static int timeout_of(struct broker *b)
{
    struct err ignored;
    if (b->listed && link_wait(b->link, 0, &ignored) == 1) {
        return 0; /* ZeroMQ's descriptor is edge-triggered: what came while we acted rings no more */
    }
    uint64_t now = clock_ms(CLOCK_MONOTONIC);
    return b->alarm_ms <= now ? 0 : (int)(b->alarm_ms - now);
}

int broker_loop(struct broker *b, int signal_fd)
{
    static struct pollfd polled[POLL_FIXED + CLIENTS_VISITORS_MAX + CLIENTS_MAX];
    while (b->fatal.code == ERR_NONE && !(b->stopping && parks_settled(b))) {
        nfds_t n = fill_polled(b, signal_fd, polled);
        if (poll(polled, n, timeout_of(b)) < 0 && errno != EINTR) {
            err_set_errno(&b->fatal, ERR_IO, "poll");
            break;
        }
        b->now_ms = clock_ms(CLOCK_MONOTONIC);
        if (polled[POLL_SIGNAL].revents) {
            on_signal(b, signal_fd);
        }
        broker_drain_keeper(b);
        if (b->listed) {
            drain_link(b);
            drain_lines(b, polled);
        }
        broker_act(b);
        if (b->fatal.code == ERR_NONE) {
            keeper_line_flush(b->keeper, &b->fatal);
        }
    }
    if (b->fatal.code != ERR_NONE) {
        log_error("%s", b->fatal.text);
        return err_exit_code(b->fatal.code);
    }
    log_info("stops");
    return 0;
}
