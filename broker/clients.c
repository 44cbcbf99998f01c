#include "broker/clients.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "proto/log.h"
#include "proto/shm.h"

#define ACCEPT_PER_TURN 32

void clients_init(struct broker *b)
{
    struct rlimit files;
    b->clients.n_attached_max = CLIENTS_ATTACHED_MAX;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur / 4 < CLIENTS_ATTACHED_MAX) {
        b->clients.n_attached_max = (uint32_t)(files.rlim_cur / 4);
    }
}

static void client_destroy(struct client *c)
{
    if (c->line >= 0) {
        close(c->line);
    }
    if (c->eventfd >= 0) {
        close(c->eventfd);
    }
    free(c);
}

void clients_clear(struct clients *t)
{
    for (uint32_t i = 0; i < t->n; i++) {
        client_destroy(t->list[i]);
    }
    for (uint32_t i = 0; i < t->n_visitors; i++) {
        close(t->visitors[i].fd);
    }
    free(t->old_readers);
    free(t->list);
    *t = (struct clients){ 0 };
}

struct client *clients_find(const struct clients *t, uint64_t number)
{
    for (uint32_t i = 0; i < t->n && number; i++) {
        if (t->list[i]->number == number && !t->list[i]->gone) {
            return t->list[i];
        }
    }
    return NULL;
}

struct client *clients_find_peer(const struct clients *t, const struct link_peer *peer)
{
    for (uint32_t i = 0; i < t->n; i++) {
        if (link_peer_equal(&t->list[i]->peer, peer) && !t->list[i]->gone) {
            return t->list[i];
        }
    }
    return NULL;
}

struct client *clients_find_reader(const struct clients *t, uint64_t reader)
{
    for (uint32_t i = 0; i < t->n && reader; i++) {
        if (t->list[i]->reader == reader && !t->list[i]->gone) {
            return t->list[i];
        }
    }
    return NULL;
}

uint64_t clients_flow(uid_t uid, uint64_t name)
{
    return broker_digest(uid, &name, sizeof name);
}

uint64_t clients_flow_named(const struct client *c, ProtobufCBinaryData name)
{
    return name.len ? clients_flow(c->uid, broker_digest(1, name.data, name.len)) : c->flow;
}

/* ---- Hello ---- */

/* Who never attached and was silent longest makes room. */
static bool forget_oldest(struct broker *b)
{
    struct client *oldest = NULL;
    for (uint32_t i = 0; i < b->clients.n; i++) {
        struct client *c = b->clients.list[i];
        if (c->state == CLIENT_GREETED && !c->gone && (!oldest || c->seen_ms < oldest->seen_ms)) {
            oldest = c;
        }
    }
    if (oldest) {
        oldest->gone = true;
        clients_sweep(b);
    }
    return oldest != NULL;
}

static struct client *client_create(struct broker *b, const struct link_peer *peer, struct err *err)
{
    struct clients *t = &b->clients;
    if (t->n == CLIENTS_MAX && !forget_oldest(b)) {
        err_set(err, ERR_BUSY, "%d clients are here already", CLIENTS_MAX);
        return NULL;
    }
    if (t->n == t->room) {
        uint32_t room = t->room ? t->room * 2 : 64;
        struct client **grown = realloc(t->list, room * sizeof *grown);
        if (!grown) {
            err_set(err, ERR_NO_MEMORY, "no memory for a client");
            return NULL;
        }
        t->list = grown;
        t->room = room;
    }
    struct client *c = calloc(1, sizeof *c);
    if (!c) {
        err_set(err, ERR_NO_MEMORY, "no memory for a client");
        return NULL;
    }
    c->peer = *peer;
    c->line = c->eventfd = -1;
    do {
        broker_random(&c->number, sizeof c->number);
    } while (c->number == 0);
    t->list[t->n++] = c;
    return c;
}

void clients_on_hello(struct broker *b, const struct post_to *to, const Hearth__Hello *hello)
{
    struct err err = { 0 };
    Hearth__Welcome welcome = HEARTH__WELCOME__INIT;
    welcome.epoch = b->heritage.broker_epoch;
    welcome.has_version = true;
    welcome.version = message_str(HEARTH_VERSION);
    if (hello->role != HEARTH__ROLE__CLIENT) {
        bool known = hello->role == HEARTH__ROLE__WORKER ? workers_on_hello(b, &to->peer, hello)
                                                         : models_on_hello(b, &to->peer, hello);
        if (!known) {
            err_set(&err, ERR_REFUSED, "this token is of no child that lives");
            post_failed(b, to, NULL, &err);
            return;
        }
        welcome.number = hello->child;
        post_say(b, to, HEARTH__ENVELOPE__BODY_WELCOME, &welcome, NULL, 0);
        return;
    }
    struct client *c = clients_find_peer(&b->clients, &to->peer);
    if (!c) {
        c = client_create(b, &to->peer, &err);
    }
    if (!c) {
        post_failed(b, to, NULL, &err);
        return;
    }
    if (hello->has_name) {
        message_copy(c->name, sizeof c->name, hello->name);
    }
    if (hello->has_flow && hello->flow.len) {
        c->flow_name = broker_digest(1, hello->flow.data, hello->flow.len);
    }
    c->pid = hello->has_pid ? hello->pid : 0;
    c->seen_ms = b->now_ms;
    welcome.number = c->number;
    post_say(b, to, HEARTH__ENVELOPE__BODY_WELCOME, &welcome, NULL, 0);
}

/* ---- lines ---- */

static void refuse(int fd, const struct err *why)
{
    struct err ignored;
    struct channel_msg answer = { .op = CHANNEL_ATTACHED, .status = (int32_t)why->code };
    snprintf(answer.text, sizeof answer.text, "%s", why->text);
    channel_send(fd, &answer, NULL, 0, &ignored);
}

/* Who has been silent longest makes room: a client says ATTACH with its first breath. */
static void drop_oldest_visitor(struct clients *t)
{
    uint32_t oldest = 0;
    for (uint32_t i = 1; i < t->n_visitors; i++) {
        oldest = t->visitors[i].since_ms < t->visitors[oldest].since_ms ? i : oldest;
    }
    close(t->visitors[oldest].fd);
    t->visitors[oldest] = t->visitors[--t->n_visitors];
}

void clients_accept(struct broker *b, int listen_fd)
{
    struct clients *t = &b->clients;
    for (int i = 0; i < ACCEPT_PER_TURN; i++) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            return;
        }
        struct err err = { 0 };
        struct clients_visitor v = { .fd = fd, .since_ms = b->now_ms };
        if (t->n_visitors == CLIENTS_VISITORS_MAX) {
            drop_oldest_visitor(t);
        }
        if (t->n_attached + t->n_visitors >= t->n_attached_max) {
            err_set(&err, ERR_BUSY, "%u clients are attached, %u at most", t->n_attached,
                    t->n_attached_max);
        } else if (channel_peer(fd, &v.uid, &v.pid, &err) == 0) {
            t->visitors[t->n_visitors++] = v;
            continue;
        }
        refuse(fd, &err);
        close(fd);
    }
}

/* What a client hands over must not be able to stop a worker: the page cannot shrink, the other descriptor is an
 * eventfd and does not block. */
static int check_reader(const int fds[CHANNEL_FDS_MAX], struct err *err)
{
    char link[64], name[64];
    uint64_t bytes = 0;
    if (fds[0] < 0 || fds[1] < 0) {
        return err_set(err, ERR_BAD_INPUT, "ATTACH needs a reader page and an eventfd");
    }
    int seals = fcntl(fds[0], F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK) || shm_size(fds[0], &bytes, err) < 0 ||
        bytes < sizeof(struct journal_reader_page)) {
        return err_set(err, ERR_BAD_INPUT,
                       "the reader page must be a memfd of %zu bytes, sealed against shrinking",
                       sizeof(struct journal_reader_page));
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fds[1]);
    ssize_t n = readlink(link, name, sizeof name - 1);
    name[n > 0 ? n : 0] = 0;
    int flags = fcntl(fds[1], F_GETFL);
    if (strcmp(name, "anon_inode:[eventfd]") != 0 || flags < 0 ||
        fcntl(fds[1], F_SETFL, flags | O_NONBLOCK) < 0) {
        return err_set(err, ERR_BAD_INPUT, "the second descriptor of ATTACH must be an eventfd");
    }
    return 0;
}

static int attach(struct broker *b, const struct clients_visitor *v, const struct channel_msg *msg,
                  int fds[CHANNEL_FDS_MAX], struct err *err)
{
    struct client *c = clients_find(&b->clients, msg->value);
    if (msg->op != CHANNEL_ATTACH || !c || c->state != CLIENT_GREETED) {
        return err_set(err, ERR_REFUSED, "ATTACH must say the number of a Welcome, once");
    }
    if (check_reader(fds, err) < 0) {
        return -1;
    }
    if (quota_client(b, v->uid, err) < 0) {
        return -1;
    }
    c->shard = shards_get(b, v->uid, err);
    if (!c->shard) {
        return -1;
    }
    shards_deposit(b, c->shard);
    c->uid = v->uid;
    c->pid = (uint32_t)v->pid;
    c->line = v->fd;
    c->eventfd = fcntl(fds[1], F_DUPFD_CLOEXEC, 0);
    c->flow = clients_flow(v->uid, c->flow_name ? c->flow_name : c->number);
    c->state = CLIENT_DEPOSITING;
    b->clients.n_attached++;
    struct channel_msg deposit = { .op = CHANNEL_DEPOSIT, .segment = broker_segment(b) };
    snprintf(deposit.tag, sizeof deposit.tag, "reader %016" PRIx64, c->number);
    c->reader = deposit.segment;
    keeper_line_ask(b->keeper, &deposit, fds, 2, KEEPER_DEPOSIT_READER, c->number, c->reader);
    fds[0] = fds[1] = -1; /* the line has them now */
    return 0;
}

void clients_read_visitor(struct broker *b, uint32_t i)
{
    struct clients *t = &b->clients;
    struct clients_visitor v = t->visitors[i];
    static struct channel_msg msg;
    int fds[CHANNEL_FDS_MAX] = { -1, -1 };
    struct err err = { 0 };
    int got = channel_recv(v.fd, &msg, fds, false, &err);
    if (got == 0) {
        return;
    }
    t->visitors[i] = t->visitors[--t->n_visitors];
    if (got < 0 || attach(b, &v, &msg, fds, &err) < 0) {
        refuse(v.fd, &err);
        close(v.fd);
    }
    for (int k = 0; k < CHANNEL_FDS_MAX; k++) {
        if (fds[k] >= 0) {
            close(fds[k]);
        }
    }
}

/* Its requests: cancelled, or left to run when it wished so. */
static void leave_requests(struct broker *b, const struct client *c)
{
    struct err why;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->gone) {
            continue;
        }
        if (r->next_reader == c->reader) {
            r->next_reader = 0;
        }
        if (r->admitted && c->reader &&
            atomic_load_explicit(&request_slot(r)->reader, memory_order_relaxed) == c->reader) {
            /* Who only looked on gives the wake-ups back. */
            const struct client *owner = clients_find(&b->clients, r->client);
            atomic_store_explicit(&request_slot(r)->reader, owner ? owner->reader : 0,
                                  memory_order_release);
        }
        if (r->client == c->number) {
            r->client = 0;
            r->left = true;
            if (r->admitted) {
                request_slot(r)->attached = 0;
            }
            if (!r->detach && !request_ended(r)) {
                err_set(&why, ERR_CANCELLED, "its client is gone");
                request_cancel(b, r, &why);
            }
        }
    }
}

static void client_gone(struct broker *b, struct client *c)
{
    log_debug("client %s (pid %u) is gone", c->name, c->pid);
    c->gone = true;
    b->clients.n_attached--;
    leave_requests(b, c);
    evals_client_gone(b, c->number);
    struct channel_msg drop = { .op = CHANNEL_DROP, .segment = c->reader };
    keeper_line_ask(b->keeper, &drop, NULL, 0, KEEPER_NOTHING, 0, 0);
    workers_revoke(b, c->reader);
    broker_alarm(b, b->now_ms);
}

void clients_read_line(struct broker *b, struct client *c)
{
    static struct channel_msg msg;
    int fds[CHANNEL_FDS_MAX] = { -1, -1 };
    struct err err = { 0 };
    int got = channel_recv(c->line, &msg, fds, false, &err);
    if (got == 0) {
        return;
    }
    for (int k = 0; k < CHANNEL_FDS_MAX; k++) {
        if (fds[k] >= 0) {
            close(fds[k]);
        }
    }
    /* A client has nothing to say here after ATTACH: its end, or nonsense, ends the line. */
    client_gone(b, c);
}

void clients_on_deposit(struct broker *b, uint64_t number, const struct err *err)
{
    struct client *c = clients_find(&b->clients, number);
    struct err why = *err;
    if (!c || c->state != CLIENT_DEPOSITING) {
        return;
    }
    struct channel_msg answer = { .op = CHANNEL_ATTACHED, .value = c->shard->segment };
    if (why.code == ERR_NONE &&
        channel_send(c->line, &answer, &c->shard->fd_readonly, 1, &why) == 0) {
        c->state = CLIENT_ATTACHED;
        return;
    }
    refuse(c->line, &why);
    client_gone(b, c);
}

/* ---- every turn ---- */

void clients_sweep(struct broker *b)
{
    struct clients *t = &b->clients;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        struct client *c = t->list[i];
        if (c->gone || (c->state == CLIENT_GREETED && b->now_ms - c->seen_ms >= CLIENTS_IDLE_MS)) {
            client_destroy(c);
        } else {
            t->list[kept++] = c;
        }
    }
    t->n = kept;
}

void clients_act(struct broker *b)
{
    struct clients *t = &b->clients;
    for (uint32_t i = 0; i < t->n_visitors;) {
        if (b->now_ms - t->visitors[i].since_ms >= LIMIT_HANDSHAKE_MS) {
            close(t->visitors[i].fd);
            t->visitors[i] = t->visitors[--t->n_visitors];
        } else {
            broker_alarm(b, t->visitors[i].since_ms + LIMIT_HANDSHAKE_MS);
            i++;
        }
    }
    if (t->n_old && b->now_ms >= t->old_until_ms) {
        for (uint32_t i = 0; i < t->n_old; i++) {
            struct channel_msg drop = { .op = CHANNEL_DROP, .segment = t->old_readers[i] };
            keeper_line_ask(b->keeper, &drop, NULL, 0, KEEPER_NOTHING, 0, 0);
        }
        t->n_old = 0;
    } else if (t->n_old) {
        broker_alarm(b, t->old_until_ms);
    }
    clients_sweep(b);
}
