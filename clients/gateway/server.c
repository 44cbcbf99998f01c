/* The loop's side: libmicrohttpd in external epoll mode, the watch on sockets, heartbeats, the end. */
#include "clients/gateway/server_parts.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "clients/gateway/metrics.h"
#include "clients/gateway/pool.h"
#include "proto/channel.h"
#include "proto/log.h"

#define TURN_MS      1000 /* heartbeats are looked at so often */
#define STREAM_CHUNK 16384

bool server_stopping(const struct server *s)
{
    return atomic_load(&s->stopping);
}

const struct server_options *server_options_of(const struct server *s)
{
    return &s->options;
}

/* ---- ringing ---- */

void server_ring(struct exchange *x)
{
    struct server *s = x->server;
    uint64_t one = 1;
    if (x->rung) {
        return;
    }
    x->rung = true;
    x->refs++;
    pthread_mutex_lock(&s->lock);
    bool first = !s->rung;
    x->next_rung = s->rung;
    s->rung = x;
    pthread_mutex_unlock(&s->lock);
    if (first && write(s->wake_fd, &one, sizeof one) < 0) {
        log_warn("a ring is lost");
    }
}

/* A suspended connection goes on. */
static void resume(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool suspended = x->suspended;
    x->suspended = false;
    pthread_mutex_unlock(&x->lock);
    if (suspended) {
        MHD_resume_connection(x->connection);
    }
}

static void take_rung(struct server *s)
{
    uint64_t count;
    if (read(s->wake_fd, &count, sizeof count) < 0) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    struct exchange *x = s->rung;
    s->rung = NULL;
    pthread_mutex_unlock(&s->lock);
    while (x) {
        pthread_mutex_lock(&x->lock);
        struct exchange *next = x->next_rung;
        x->rung = false;
        bool ended = x->connection == NULL;
        pthread_mutex_unlock(&x->lock);
        if (!ended) {
            resume(x);
        }
        exchange_unref(&x);
        x = next;
    }
}

/* ---- the watch ---- */

void server_watch(struct exchange *x, bool on)
{
    struct epoll_event event = { .events = EPOLLRDHUP | EPOLLONESHOT, .data.ptr = x };
    if (on != x->watched &&
        epoll_ctl(x->server->watch_fd, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, x->fd, &event) == 0) {
        x->watched = on;
    }
}

static void take_watched(struct server *s)
{
    struct epoll_event events[64];
    int n = epoll_wait(s->watch_fd, events, 64, 0);
    for (int i = 0; i < n; i++) {
        struct exchange *x = events[i].data.ptr;
        exchange_leave(x);
        resume(x);
    }
}

/* ---- answers ---- */

static ssize_t read_stream(void *cls, uint64_t pos, char *buf, size_t max)
{
    struct exchange *x = cls;
    (void)pos;
    ssize_t n = 0;
    pthread_mutex_lock(&x->lock);
    if (x->gone) {
        n = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (x->out_len > x->out_off) {
        size_t left = x->out_len - x->out_off;
        n = (ssize_t)(left < max ? left : max);
        memcpy(buf, x->out + x->out_off, (size_t)n);
        x->out_off += (size_t)n;
    } else if (x->done) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        x->suspended = true;
        MHD_suspend_connection(x->connection);
    }
    pthread_mutex_unlock(&x->lock);
    return n;
}

static void add_headers(struct exchange *x, struct MHD_Response *response)
{
    MHD_add_response_header(response, "Content-Type", x->type);
    MHD_add_response_header(response, "x-request-id", x->id);
    for (int i = 0; i < x->n_headers; i++) {
        MHD_add_response_header(response, x->headers[i].name, x->headers[i].value);
    }
    if (x->origin[0]) {
        MHD_add_response_header(response, "Access-Control-Allow-Origin", x->origin);
        MHD_add_response_header(response, "Vary", "Origin");
    }
    if (x->streams) {
        MHD_add_response_header(response, "Cache-Control", "no-cache");
        MHD_add_response_header(response, "X-Accel-Buffering", "no");
    }
}

/* The answer is known, at least its beginning; x->lock is held. */
static enum MHD_Result answer(struct exchange *x)
{
    struct MHD_Response *response;
    unsigned status = x->status;
    if (x->streams) {
        response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_CHUNK, read_stream, x,
                                                     NULL);
    } else {
        response = MHD_create_response_from_buffer(x->out_len, x->out, MHD_RESPMEM_MUST_COPY);
    }
    if (!response) {
        return MHD_NO;
    }
    add_headers(x, response);
    x->queued = true;
    pthread_mutex_unlock(&x->lock); /* the reader takes it */
    enum MHD_Result result = MHD_queue_response(x->connection, status, response);
    MHD_destroy_response(response);
    pthread_mutex_lock(&x->lock);
    metrics_answer(status);
    log_debug("%s %s %s: %u", x->id, x->method, x->path, status);
    return result;
}

enum MHD_Result server_answer(struct exchange *x)
{
    enum MHD_Result result = MHD_YES;
    pthread_mutex_lock(&x->lock);
    if (x->gone) {
        result = MHD_NO;
    } else if (x->status) {
        result = answer(x);
    } else if (x->done) {
        result = MHD_NO; /* a hand that closed without a word */
    } else {
        x->suspended = true;
        MHD_suspend_connection(x->connection);
    }
    pthread_mutex_unlock(&x->lock);
    return result;
}

static void on_log(void *cls, const char *format, va_list args)
{
    char line[256];
    (void)cls;
    vsnprintf(line, sizeof line, format, args);
    line[strcspn(line, "\n")] = 0;
    log_debug("http: %s", line);
}

/* ---- the loop ---- */

/* Streams that wait long begin; silent ones get a ping. */
static void heartbeats(struct server *s)
{
    uint64_t now = exchange_now_ms();
    for (struct exchange *x = s->first; x; x = x->next) {
        pthread_mutex_lock(&x->lock);
        bool late = x->may_stream && x->status == 0 && now - x->born_ms > SERVER_STREAM_AFTER_MS;
        bool silent = x->streams && !x->done && now - x->out_ms > SERVER_PING_MS;
        const char *ping = x->ping;
        pthread_mutex_unlock(&x->lock);
        if (late) {
            exchange_stream(x);
        }
        if ((late || silent) && ping) {
            exchange_write(x, ping, strlen(ping));
        }
    }
}

/* The configuration was read again, and its keys are these: lines, each with its NUL. */
static void take_keys(struct server *s, const struct channel_msg *msg)
{
    const char *lines[HTTP_KEYS_MAX + 1];
    struct err err;
    size_t n = 0;
    for (uint32_t at = 0; at < msg->argv_bytes && n <= HTTP_KEYS_MAX; n++) {
        lines[n] = msg->text + at;
        at += (uint32_t)strnlen(lines[n], msg->argv_bytes - at) + 1;
    }
    if (guard_set(s->options.guard, lines, n, &err) < 0) {
        log_warn("the configuration's keys are not taken: %s", err.text);
    } else {
        log_info("%zu keys", n);
    }
}

/* False: the keeper is gone, or a signal says to end. */
static bool read_lines(struct server *s, int signal_fd)
{
    struct signalfd_siginfo info;
    struct channel_msg msg;
    struct err err;
    int fds[CHANNEL_FDS_MAX], got = 0;
    if (read(signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        return false;
    }
    while (s->options.channel_fd >= 0 &&
           (got = channel_recv(s->options.channel_fd, &msg, fds, false, &err)) > 0) {
        if (msg.op == CHANNEL_TELL) {
            take_keys(s, &msg);
        } /* a new broker is seen by the connections themselves */
    }
    return got == 0;
}

static int wait_of(struct server *s, int most_ms)
{
    MHD_UNSIGNED_LONG_LONG ms;
    int wait = s->first ? most_ms : 60000;
    if (MHD_get_timeout(s->daemon, &ms) == MHD_YES && ms < (MHD_UNSIGNED_LONG_LONG)wait) {
        wait = (int)ms;
    }
    return wait;
}

static bool turn(struct server *s, int signal_fd, int wait_ms)
{
    enum { HTTP, WAKE, WATCH, SIGNAL, CHANNEL, N };
    int http_fd = MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    struct pollfd polled[N] = {
        [HTTP] = { .fd = http_fd, .events = POLLIN },
        [WAKE] = { .fd = s->wake_fd, .events = POLLIN },
        [WATCH] = { .fd = s->watch_fd, .events = POLLIN },
        [SIGNAL] = { .fd = signal_fd, .events = POLLIN },
        [CHANNEL] = { .fd = s->options.channel_fd, .events = POLLIN },
    };
    if (poll(polled, N, wait_of(s, wait_ms)) < 0 && errno != EINTR) {
        log_error("poll: %s", strerror(errno));
        return false;
    }
    if (polled[WATCH].revents) {
        take_watched(s);
    }
    take_rung(s);
    heartbeats(s);
    MHD_run(s->daemon);
    return !(polled[SIGNAL].revents || polled[CHANNEL].revents) || read_lines(s, signal_fd);
}

static void loop(struct server *s, int signal_fd)
{
    while (turn(s, signal_fd, TURN_MS)) {
    }
    /* The end: every hand is interrupted and says so to its client. */
    atomic_store(&s->stopping, true);
    MHD_socket listener = MHD_quiesce_daemon(s->daemon);
    if (listener != MHD_INVALID_SOCKET) {
        close(listener);
    }
    uint64_t until = exchange_now_ms() + SERVER_STOP_MS;
    for (struct exchange *x = s->first; x; x = x->next) {
        pthread_mutex_lock(&x->lock);
        if (x->hand) {
            pool_interrupt(x->hand);
        }
        pthread_mutex_unlock(&x->lock);
    }
    while (s->first && exchange_now_ms() < until) {
        turn(s, signal_fd, 50);
    }
    for (struct exchange *x = s->first; x; x = x->next) {
        exchange_leave(x);
        resume(x);
    }
}

static struct MHD_Daemon *start_daemon(struct server *s)
{
    return MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, intake_request,
        s, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_LISTEN_SOCKET, s->options.listen_fd,
        MHD_OPTION_NOTIFY_COMPLETED, intake_completed, s, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)SERVER_IDLE_S, MHD_OPTION_CONNECTION_LIMIT, (unsigned)SERVER_CONNECTIONS,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)SERVER_HEADER_BYTES,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
}

int server_run(const struct server_options *options, struct err *err)
{
    struct server s = { .options = *options };
    sigset_t signals;
    int result = -1;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    pthread_mutex_init(&s.lock, NULL);
    s.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s.watch_fd = epoll_create1(EPOLL_CLOEXEC);
    s.pool = pool_create(options->run, POOL_HANDS_MAX, true, err);
    s.quick = pool_create(options->run, POOL_QUICK_MAX, false, err);
    if (signal_fd < 0 || s.wake_fd < 0 || s.watch_fd < 0 || !s.pool || !s.quick) {
        err_set(err, ERR_IO, "descriptors or memory for the loop: %s", strerror(errno));
        goto end;
    }
    s.daemon = start_daemon(&s);
    if (!s.daemon) {
        err_set(err, ERR_FAILED, "libmicrohttpd does not start");
        goto end;
    }
    metrics_pool(s.pool);
    loop(&s, signal_fd);
    metrics_pool(NULL);
    MHD_run(s.daemon);
    MHD_stop_daemon(s.daemon);
    result = 0;
end:
    pool_destroy(&s.pool);
    pool_destroy(&s.quick);
    take_rung(&s); /* what rang last */
    close(signal_fd);
    close(s.wake_fd);
    close(s.watch_fd);
    pthread_mutex_destroy(&s.lock);
    return result;
}
