/* hearth-keeper: the parent. It starts the broker and holds what must outlive everybody: memory, listeners, the list of
 * children. It parses nothing but its own fixed-size messages (proto/channel.h), decides no policy, and links libc alone.
 * One thread, one loop: signals, then the broker's channel, then the children's. Everything else may die. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "broker/keeper/keeper.h"
#include "proto/log.h"

#define STOP_GRACE_MS  5000 /* the broker has this long to end cleanly */
#define KILL_GRACE_MS  2000 /* children, between SIGTERM and SIGKILL */
#define BACKOFF_MIN_MS 50   /* before a broker that died young is born again */
#define BACKOFF_MAX_MS 2000
#define YOUNG_MS       2000 /* a broker that lived longer is replaced at once */

static struct keeper keeper;

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- brokers ---- */

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
        keeper_hear(k, child); /* its last words */
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
        keeper_tell_broker(k);

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
                keeper_send_held(whose[i]);
            }
            if (polled[i].revents & (POLLIN | POLLHUP | POLLERR)) {
                keeper_hear(k, whose[i]);
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
