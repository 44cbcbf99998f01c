/* hearth-keeper: the parent. It starts the broker and holds what must outlive everybody: memory, listeners, the list of
 * children. It parses nothing but its own fixed-size messages (proto/channel.h), decides no policy, and links libc alone.
 * One thread, one loop: signals, then the broker's channel, then the children's. Everything else may die. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "broker/keeper/children.h"
#include "broker/keeper/place.h"
#include "broker/keeper/segments.h"
#include "proto/log.h"
#include "proto/shm.h"

#define STOP_GRACE_MS     5000 /* the broker has this long to end cleanly */
#define KILL_GRACE_MS     2000 /* children, between SIGTERM and SIGKILL */
#define BACKOFF_MIN_MS    50   /* before a broker that died young is born again */
#define BACKOFF_MAX_MS    2000
#define YOUNG_MS          2000 /* a broker that lived longer is replaced at once */
#define MESSAGES_PER_TURN 64   /* drained from one channel before the others have their turn */

enum phase { RUNNING, STOPPING, KILLING };

struct keeper {
    struct place place;
    struct children children;
    struct segments segments;
    int signal_fd;
    enum phase phase;
    uint64_t phase_until_ms;
    int exit_code;
    char argv_packed[LIMIT_ARGV_BYTES]; /* for the broker, unread */
    uint32_t argv_bytes;
    uint32_t broker; /* child number; 0: none lives */
    uint32_t broker_epoch;
    uint64_t broker_born_ms, broker_birth_at_ms;
    unsigned backoff_ms;
    bool broker_once_served; /* it asked for a birth: its options were good */
    bool broker_ready;       /* this one took the lists: it is at work */
    /* A LIST in progress: what is still to be sent. */
    bool listing;
    uint64_t list_cookie;
    int list_child, list_segment;
};

static struct keeper keeper;

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- births ---- */

static void spawn_broker(struct keeper *k)
{
    struct err err = { 0 };
    uint8_t token[LIMIT_TOKEN_BYTES] = { 0 };
    char tag[LIMIT_TAG_BYTES] = "broker";
    int fds[] = { k->place.router_fd, k->place.attach_fd };
    struct birth birth = { .role = HERITAGE_BROKER,
                           .tag = tag,
                           .token = token,
                           .argv_packed = k->argv_packed,
                           .argv_bytes = k->argv_bytes,
                           .fds = fds,
                           .n_fds = 2,
                           .broker_epoch = ++k->broker_epoch };
    struct child *child = children_spawn(&k->children, &birth, &err);
    if (!child) {
        log_error("%s", err.text);
        k->exit_code = err_exit_code(err.code);
        k->phase = KILLING;
        return;
    }
    k->broker = child->number;
    k->broker_born_ms = now_ms();
    k->listing = false;
    k->broker_ready = false;
    log_info("broker: epoch %u, pid %d", k->broker_epoch, (int)child->pid);
    struct channel_msg msg = { .op = CHANNEL_BROKER_NEW, .value = k->broker_epoch };
    for (int i = 0; i < LIMIT_CHILDREN; i++) {
        struct child *other = &k->children.rows[i];
        if (other->number && other->number != k->broker && !other->dead) {
            /* A full line belongs to a child that does not read: it will find its link broken by itself. */
            channel_send(other->channel, &msg, NULL, 0, &err);
        }
        if (other->number && other->dead) {
            children_forget(other); /* the new broker's list is of the living */
        }
    }
}

static void do_spawn(struct keeper *k, const struct channel_msg *msg, struct channel_msg *answer,
                     struct err *err)
{
    int fds[LIMIT_GRANTS], n_fds = 0;
    struct child *child = NULL;
    if (msg->role >= HERITAGE_N_ROLES || msg->role == HERITAGE_BROKER) {
        err_set(err, ERR_USAGE, "role %u cannot be born", msg->role);
        return;
    }
    for (uint32_t i = 0; i < msg->n_grants; i++) {
        int got[CHANNEL_FDS_MAX];
        if (segments_take(&k->segments, msg->grants[i].segment, 0, got, err) < 0) {
            goto close_fds;
        }
        if (got[1] >= 0) {
            close(got[1]);
        }
        fds[n_fds] = got[0];
        if (!(msg->grants[i].flags & CHANNEL_WRITABLE)) {
            fds[n_fds] = shm_reopen_readonly(got[0], err);
            close(got[0]);
            if (fds[n_fds] < 0) {
                goto close_fds;
            }
        }
        n_fds++;
    }
    struct birth birth = { .role = (enum heritage_role)msg->role,
                           .tag = msg->tag,
                           .token = msg->token,
                           .argv_packed = msg->text,
                           .argv_bytes = msg->argv_bytes,
                           .fds = fds,
                           .n_fds = n_fds };
    child = children_spawn(&k->children, &birth, err);
    if (child) {
        answer->child = child->number;
        answer->pid = child->pid;
        k->broker_once_served = true;
        for (uint32_t i = 0; i < msg->n_grants; i++) {
            segments_grant(&k->segments, msg->grants[i].segment, child->number,
                           (uint32_t)msg->grants[i].flags, err);
        }
    }
close_fds:
    for (int i = 0; i < n_fds; i++) {
        close(fds[i]);
    }
}

/* ---- messages ---- */

/* Sends now, or holds the one answer that did not fit. Owns fds. */
static void answer_to(struct child *child, const struct channel_msg *answer,
                      int fds[CHANNEL_FDS_MAX])
{
    struct err err = { 0 };
    int n_fds = fds[0] < 0 ? 0 : fds[1] < 0 ? 1 : 2;
    if (channel_send(child->channel, answer, fds, n_fds, &err) < 0 && err.code == ERR_FULL) {
        child->holding = true;
        child->held = *answer;
        memcpy(child->held_fds, fds, sizeof child->held_fds);
        return;
    }
    for (int i = 0; i < n_fds; i++) {
        close(fds[i]);
    }
}

static void send_held(struct child *child)
{
    int fds[CHANNEL_FDS_MAX] = { child->held_fds[0], child->held_fds[1] };
    child->holding = false;
    child->held_fds[0] = child->held_fds[1] = -1;
    answer_to(child, &child->held, fds);
}

static void take_for(struct keeper *k, struct child *child, const struct channel_msg *msg)
{
    struct err err = { 0 };
    int fds[CHANNEL_FDS_MAX] = { -1, -1 };
    uint32_t as = child->number == k->broker ? 0 : child->number;
    struct channel_msg answer = { .op = CHANNEL_DONE,
                                  .cookie = msg->cookie,
                                  .segment = msg->segment };
    if (segments_take(&k->segments, msg->segment, as, fds, &err) < 0) {
        answer.status = (int32_t)err.code;
        snprintf(answer.text, sizeof answer.text, "%s", err.text);
    }
    answer_to(child, &answer, fds);
}

static void from_broker(struct keeper *k, struct child *broker, const struct channel_msg *msg,
                        int fds[CHANNEL_FDS_MAX])
{
    struct err err = { 0 };
    struct channel_msg answer = { .op = CHANNEL_DONE,
                                  .cookie = msg->cookie,
                                  .segment = msg->segment };
    struct child *child;
    int none[CHANNEL_FDS_MAX] = { -1, -1 };
    switch (msg->op) {
    case CHANNEL_SPAWN:
        do_spawn(k, msg, &answer, &err);
        break;
    case CHANNEL_KILL:
        child = children_find(&k->children, msg->child);
        if (child && !child->dead && child->number != k->broker) {
            kill(child->pid, (int)msg->value);
        }
        break; /* a dead one needs no killing: its DIED is on the way */
    case CHANNEL_TELL:
        child = children_find(&k->children, msg->child);
        if (child && !child->dead && child->channel >= 0) {
            channel_send(child->channel, msg, NULL, 0, &err);
        }
        break;
    case CHANNEL_CREATE:
        segments_create(&k->segments, msg->segment, msg->bytes, msg->flags & CHANNEL_SPARSE,
                        msg->tag, &err);
        break;
    case CHANNEL_DEPOSIT:
        segments_deposit(&k->segments, msg->segment, fds, msg->tag, &err);
        fds[0] = fds[1] = -1;
        break;
    case CHANNEL_DROP:
        segments_drop(&k->segments, msg->segment);
        break;
    case CHANNEL_GRANT:
        if (!children_find(&k->children, msg->child)) {
            err_set(&err, ERR_NOT_FOUND, "no child %u", msg->child);
        } else {
            segments_grant(&k->segments, msg->segment, msg->child, msg->flags, &err);
        }
        break;
    case CHANNEL_TAKE:
        take_for(k, broker, msg);
        return;
    case CHANNEL_LIST:
        k->listing = k->broker_ready = true;
        k->list_cookie = msg->cookie;
        k->list_child = k->list_segment = 0;
        return; /* answered row by row, as the line takes them */
    case CHANNEL_STOP:
        if (k->phase == RUNNING) {
            k->exit_code = (int)msg->value;
        }
        k->phase = KILLING;
        k->phase_until_ms = 0;
        break;
    default:
        err_set(&err, ERR_BAD_INPUT, "op %u is not for the keeper", msg->op);
    }
    if (err.code != ERR_NONE) {
        answer.status = (int32_t)err.code;
        snprintf(answer.text, sizeof answer.text, "%s", err.text);
    }
    answer_to(broker, &answer, none);
}

static void from_child(struct keeper *k, struct child *child, const struct channel_msg *msg)
{
    if (msg->op == CHANNEL_TAKE) {
        take_for(k, child, msg);
    } else if (msg->op == CHANNEL_NOTE && msg->code > 0 && msg->code <= CHANNEL_NOTE_FAILED) {
        struct child_note *note = &child->notes[msg->code];
        note->there = true;
        note->reported = false;
        note->value = msg->value;
        snprintf(note->text, sizeof note->text, "%.*s", (int)sizeof note->text - 1, msg->text);
    } else {
        log_warn("child %u (%s): op %u is not its to say", child->number, child->tag, msg->op);
    }
}

static void read_channel(struct keeper *k, struct child *child)
{
    struct channel_msg msg;
    struct err err = { 0 };
    int fds[CHANNEL_FDS_MAX];
    for (int i = 0; i < MESSAGES_PER_TURN && !child->holding && child->channel >= 0; i++) {
        int got = channel_recv(child->channel, &msg, fds, false, &err);
        if (got == 0) {
            return;
        }
        if (got < 0) {
            if (err.code == ERR_CLOSED) {
                close(child->channel); /* its death follows */
                child->channel = -1;
            } else {
                log_warn("child %u (%s): %s", child->number, child->tag, err.text);
            }
            return;
        }
        if (child->number == k->broker) {
            from_broker(k, child, &msg, fds);
        } else {
            from_child(k, child, &msg);
        }
        for (int f = 0; f < CHANNEL_FDS_MAX; f++) {
            if (fds[f] >= 0) {
                close(fds[f]);
            }
        }
    }
}

/* ---- telling the broker ---- */

/* Each returns false when the broker's line is full: later. */
static bool tell_list(struct keeper *k, int line)
{
    struct err err;
    for (; k->list_child < LIMIT_CHILDREN; k->list_child++) {
        struct child *c = &k->children.rows[k->list_child];
        if (c->number && !c->dead && c->number != k->broker) {
            struct channel_msg msg = { .op = CHANNEL_CHILD,
                                       .cookie = k->list_cookie,
                                       .child = c->number,
                                       .pid = c->pid,
                                       .role = c->role };
            memcpy(msg.token, c->token, sizeof msg.token);
            memcpy(msg.tag, c->tag, sizeof msg.tag);
            if (channel_send(line, &msg, NULL, 0, &err) < 0) {
                return false;
            }
            for (size_t n = 0; n < sizeof c->notes / sizeof c->notes[0]; n++) {
                c->notes[n].reported = false; /* the new broker hears them again */
            }
        }
    }
    for (; k->list_segment < LIMIT_SEGMENTS; k->list_segment++) {
        const struct segment *s = &k->segments.rows[k->list_segment];
        if (s->number) {
            struct channel_msg msg = { .op = CHANNEL_SEGMENT,
                                       .cookie = k->list_cookie,
                                       .segment = s->number };
            off_t size = lseek(s->fds[0], 0, SEEK_END);
            msg.bytes = size > 0 ? (uint64_t)size : 0;
            memcpy(msg.tag, s->tag, sizeof msg.tag);
            if (channel_send(line, &msg, NULL, 0, &err) < 0) {
                return false;
            }
        }
    }
    struct channel_msg done = { .op = CHANNEL_DONE, .cookie = k->list_cookie };
    if (channel_send(line, &done, NULL, 0, &err) < 0) {
        return false;
    }
    k->listing = false;
    return true;
}

static bool tell_child(struct child *c, int line)
{
    struct err err;
    for (uint32_t code = 0; code < sizeof c->notes / sizeof c->notes[0]; code++) {
        struct child_note *note = &c->notes[code];
        if (note->there && !note->reported) {
            struct channel_msg msg = { .op = CHANNEL_NOTE,
                                       .child = c->number,
                                       .pid = c->pid,
                                       .code = code,
                                       .value = note->value };
            snprintf(msg.text, sizeof msg.text, "%s", note->text);
            memcpy(msg.tag, c->tag, sizeof msg.tag);
            if (channel_send(line, &msg, NULL, 0, &err) < 0) {
                return false;
            }
            note->reported = true;
        }
    }
    if (c->dead && !c->reported) {
        struct channel_msg msg = { .op = CHANNEL_DIED,
                                   .child = c->number,
                                   .pid = c->pid,
                                   .status = c->status,
                                   .role = c->role };
        memcpy(msg.tag, c->tag, sizeof msg.tag);
        if (channel_send(line, &msg, NULL, 0, &err) < 0) {
            return false;
        }
        c->reported = true;
    }
    return true;
}

static void tell_broker(struct keeper *k)
{
    struct child *broker = children_find(&k->children, k->broker);
    if (!broker || broker->dead || broker->channel < 0 || broker->holding ||
        (k->listing && !tell_list(k, broker->channel))) {
        return;
    }
    for (int i = 0; i < LIMIT_CHILDREN; i++) {
        struct child *c = &k->children.rows[i];
        if (c->number && c->number != k->broker) {
            if (!tell_child(c, broker->channel)) {
                return;
            }
            if (c->dead && c->reported) {
                children_forget(c);
            }
        }
    }
}

/* ---- deaths ---- */

static void broker_died(struct keeper *k, struct child *child)
{
    uint64_t lived_ms = now_ms() - k->broker_born_ms;
    int status = child->status;
    children_forget(child);
    k->broker = 0;
    if (k->phase != RUNNING) {
        k->phase = KILLING; /* nobody is left to end things more gently */
        k->phase_until_ms = 0;
        return;
    }
    if (WIFEXITED(status) && !k->broker_once_served) {
        k->exit_code = WEXITSTATUS(status); /* it refused its options and said why */
        k->phase = KILLING;
        k->phase_until_ms = 0;
        return;
    }
    /* Only a broker that fails by itself, young, is slowed down; one that was at work and was killed is replaced at once. */
    bool killed = WIFSIGNALED(status) &&
                  (WTERMSIG(status) == SIGKILL || WTERMSIG(status) == SIGTERM);
    if (lived_ms > YOUNG_MS || (killed && k->broker_ready)) {
        k->backoff_ms = 0;
    } else {
        k->backoff_ms = k->backoff_ms == 0 ? BACKOFF_MIN_MS : 2 * k->backoff_ms;
        k->backoff_ms = k->backoff_ms > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : k->backoff_ms;
    }
    k->broker_birth_at_ms = now_ms() + k->backoff_ms;
    log_warn("broker: %s %d after %llu ms; a new one in %u ms",
             WIFSIGNALED(status) ? "died by signal" : "left with code",
             WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
             (unsigned long long)lived_ms, k->backoff_ms);
}

static void reap(struct keeper *k)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        struct child *child = children_find_pid(&k->children, pid);
        if (!child) {
            continue;
        }
        read_channel(k, child); /* its last words */
        child->dead = true;
        child->status = status;
        segments_forget_child(&k->segments, child->number);
        if (child->number == k->broker) {
            broker_died(k, child);
        }
    }
}

/* ---- stopping ---- */

static void tell_term(struct keeper *k, uint32_t op)
{
    struct child *broker = children_find(&k->children, k->broker);
    struct channel_msg msg = { .op = op };
    struct err err;
    if (broker && broker->channel >= 0) {
        channel_send(broker->channel, &msg, NULL, 0, &err);
    }
}

static void on_signal(struct keeper *k)
{
    struct signalfd_siginfo info;
    while (read(k->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        switch (info.ssi_signo) {
        case SIGCHLD:
            reap(k);
            break;
        case SIGHUP:
            tell_term(k, CHANNEL_HANGUP);
            break;
        default:
            if (k->phase == RUNNING) {
                log_info("signal %u: stopping", info.ssi_signo);
                k->phase = STOPPING;
                k->phase_until_ms = now_ms() + STOP_GRACE_MS;
                tell_term(k, CHANNEL_TERM);
            } else {
                k->phase = KILLING; /* asked twice: no more grace */
                k->phase_until_ms = 0;
            }
        }
    }
}

static int living(struct keeper *k, int signal_nr)
{
    int n = 0;
    for (int i = 0; i < LIMIT_CHILDREN; i++) {
        struct child *c = &k->children.rows[i];
        if (c->number && !c->dead) {
            n++;
            if (signal_nr) {
                kill(c->pid, signal_nr);
            }
        }
    }
    return n;
}

/* SIGTERM for all, then SIGKILL; true when nobody is left. */
static bool kill_all(struct keeper *k)
{
    static bool asked;
    if (living(k, 0) == 0) {
        return true;
    }
    if (!asked) {
        asked = true;
        living(k, SIGTERM);
        k->phase_until_ms = now_ms() + KILL_GRACE_MS;
    } else if (now_ms() >= k->phase_until_ms) {
        living(k, SIGKILL);
        k->phase_until_ms = now_ms() + KILL_GRACE_MS;
    }
    return false;
}

/* ---- the loop ---- */

static int next_timeout(const struct keeper *k)
{
    uint64_t now = now_ms(), at = UINT64_MAX;
    if (k->phase != RUNNING) {
        at = k->phase_until_ms;
    } else if (k->broker == 0) {
        at = k->broker_birth_at_ms;
    }
    return at == UINT64_MAX ? -1 : at <= now ? 0 : (int)(at - now);
}

static void loop(struct keeper *k)
{
    struct pollfd polled[1 + LIMIT_CHILDREN];
    struct child *whose[1 + LIMIT_CHILDREN];
    for (;;) {
        if (k->phase == STOPPING && now_ms() >= k->phase_until_ms) {
            log_warn("the broker did not end in %d ms", STOP_GRACE_MS);
            k->phase = KILLING;
        }
        if (k->phase == KILLING && kill_all(k)) {
            return;
        }
        if (k->phase == RUNNING && k->broker == 0 && now_ms() >= k->broker_birth_at_ms) {
            spawn_broker(k);
        }
        tell_broker(k);

        int n = 0;
        polled[n++] = (struct pollfd){ .fd = k->signal_fd, .events = POLLIN };
        for (int i = 0; i < LIMIT_CHILDREN; i++) {
            struct child *c = &k->children.rows[i];
            if (c->number && !c->dead && c->channel >= 0) {
                bool blocked = c->holding || (c->number == k->broker && k->listing);
                whose[n] = c;
                polled[n++] = (struct pollfd){ .fd = c->channel,
                                               .events = blocked ? POLLOUT : POLLIN };
            }
        }
        if (poll(polled, (nfds_t)n, next_timeout(k)) < 0 && errno != EINTR) {
            log_error("poll: %s", strerror(errno));
            return;
        }
        for (int i = 1; i < n; i++) {
            if ((polled[i].revents & POLLOUT) && whose[i]->holding) {
                send_held(whose[i]);
            }
            if (polled[i].revents & (POLLIN | POLLHUP | POLLERR)) {
                read_channel(k, whose[i]);
            }
        }
        if (polled[0].revents & POLLIN) {
            on_signal(k);
        }
    }
}

/* ---- main ---- */

/* --run DIR (or --run=DIR) is ours; everything goes on to the broker as it is, --run too. */
static int read_options(struct keeper *k, int argc, char **argv, const char **run, struct err *err)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--run") == 0 && i + 1 < argc) {
            *run = argv[i + 1];
        } else if (strncmp(argv[i], "--run=", 6) == 0) {
            *run = argv[i] + 6;
        }
        size_t len = strlen(argv[i]) + 1;
        if (k->argv_bytes + len > sizeof k->argv_packed || i > LIMIT_ARGS) {
            return err_set(err, ERR_USAGE, "more than %zu bytes or %d arguments",
                           sizeof k->argv_packed, LIMIT_ARGS);
        }
        memcpy(k->argv_packed + k->argv_bytes, argv[i], len);
        k->argv_bytes += (uint32_t)len;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct keeper *k = &keeper;
    struct err err = { 0 };
    const char *run = NULL;
    log_init("keeper");
    signal(SIGPIPE, SIG_IGN);
    if (read_options(k, argc, argv, &run, &err) < 0) {
        goto fail;
    }
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    umask(0077);
    if (place_open(&k->place, run, &err) < 0 ||
        children_init(&k->children, k->place.run, k->place.lock_fd, &err) < 0) {
        goto fail;
    }
    segments_init(&k->segments);
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    k->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (k->signal_fd < 0) {
        err_set_errno(&err, ERR_IO, "signalfd");
        goto fail;
    }
    loop(k);
    place_close(&k->place);
    return k->exit_code;
fail:
    fprintf(stderr, "hearth serve: %s\n", err.text);
    place_close(&k->place);
    return err_exit_code(err.code);
}
