/* What hearth chaos does to whom: processes are found by the status and hurt by their pid; clients are children of a nursery,
 * forked before there are threads. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clients/verbs/chaos.h"
#include "proto/json.h"

#define STOP_MS_MAX     300   /* below what any watchdog minds */
#define STALL_MS_MAX    15000 /* by then the watchdog has struck */
#define STALL_NOBODY_MS 2000  /* of a role that nobody watches */
#define AGAIN_MS_MAX    50    /* after the last fault: its recovery is under way */
#define LOOKS           20    /* for a phase, before any moment will do */
#define LOOK_MS         5

const char *const chaos_roles[N_ROLES] = { "worker", "broker", "loader", "text", "client" };
const char *const chaos_acts[N_ACTS] = { "kill", "stop", "stall" };
const char *const chaos_phases[N_PHASES] = { "any", "again", "prefill", "load" };

static void sleep_ms(uint64_t ms)
{
    poll(NULL, 0, (int)ms);
}

static struct json *ask_status(struct hearth *h)
{
    struct hearth_error error;
    struct err err;
    char *text = hearth_status(h, false, &error);
    struct json *status = text ? json_parse(text, strlen(text), &err) : NULL;
    free(text);
    return status;
}

static bool is(const struct json *o, const char *key, const char *value)
{
    const char *text = json_as_str(json_find(o, key), NULL);
    return text && strcmp(text, value) == 0;
}

/* The pid of a process of this role, 0: there is none. A text service is a loader of kind "text". */
static int pid_of(const struct json *status, enum chaos_role role)
{
    const struct json *list = json_find(status, "processes");
    for (size_t i = 0; i < json_len(list); i++) {
        const struct json *p = json_at(list, i);
        bool text = is(p, "kind", "text");
        if (role == ROLE_TEXT ? text : !text && is(p, "role", chaos_roles[role])) {
            return (int)json_as_int(json_find(p, "pid"));
        }
    }
    return 0;
}

static bool in_phase(const struct json *status, enum chaos_phase phase)
{
    const struct json *list = json_find(status, "requests");
    if (phase == PHASE_LOAD) {
        return pid_of(status, ROLE_LOADER) != 0;
    }
    for (size_t i = 0; i < json_len(list); i++) {
        if (is(json_at(list, i), "state", "prefill")) {
            return true;
        }
    }
    return phase != PHASE_PREFILL;
}

/* ---- acts ---- */

/* NULL: as many as are remembered have been. */
static struct chaos_fault *note_fault(enum chaos_role role, enum chaos_act act,
                                      enum chaos_phase phase)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    uint32_t i = atomic_load(&chaos.n_faults);
    struct chaos_fault *f = i < CHAOS_FAULTS_MAX ? &chaos.faults[i] : NULL;
    if (!f) {
        pthread_mutex_unlock(&lock);
        return NULL;
    }
    f->role = (uint8_t)role;
    f->act = (uint8_t)act;
    f->phase = (uint8_t)phase;
    f->at_us = chaos_now_us();
    atomic_store(&chaos.n_faults, i + 1); /* before it falls: the gap may end soon */
    pthread_mutex_unlock(&lock);
    return f;
}

static void strike(int pid, enum chaos_role role, enum chaos_act act, enum chaos_phase phase,
                   uint64_t stop_ms)
{
    struct chaos_fault *f = note_fault(role, act, phase);
    if (f && kill(pid, act == ACT_KILL ? SIGKILL : SIGSTOP) < 0) {
        f->role = N_ROLES; /* it went by itself */
    }
    if (!f || f->role == N_ROLES) {
        return;
    }
    if (act == ACT_STALL) {
        bool watched = role == ROLE_WORKER;
        stop_ms = watched ? STALL_MS_MAX : STALL_NOBODY_MS;
        for (; stop_ms > 0 && kill(pid, 0) == 0; stop_ms -= LOOK_MS) {
            sleep_ms(LOOK_MS);
        }
    } else if (act == ACT_STOP) {
        sleep_ms(stop_ms);
    }
    if (act != ACT_KILL) {
        kill(pid, SIGCONT);
    }
}

/* One of those that are wanted. Stalls take seconds and loaders are rare: they are left to their weight. */
static uint32_t choose(uint64_t *chance, const bool *wanted, const uint8_t *weights, uint32_t n)
{
    uint32_t all = 0, i = 0;
    for (uint32_t k = 0; k < n; k++) {
        all += wanted[k] ? weights[k] : 0;
    }
    uint32_t at = all ? (uint32_t)(chaos_draw(chance) % all) : 0;
    for (; i + 1 < n && at >= (wanted[i] ? weights[i] : 0u); i++) {
        at -= wanted[i] ? weights[i] : 0u;
    }
    return i;
}

void fault_strike(struct fault_plan *plan, struct hearth *h)
{
    static const uint8_t role_weights[N_ROLES] = { 4, 2, 2, 1, 0 }, act_weights[] = { 40, 8, 1 };
    enum chaos_role role = choose(&plan->chance, plan->roles, role_weights, N_ROLES);
    enum chaos_act act = choose(&plan->chance, plan->acts, act_weights, N_ACTS);
    enum chaos_phase phase = chaos_draw(&plan->chance) % N_PHASES;
    uint64_t stop_ms = chaos_draw(&plan->chance) % STOP_MS_MAX;
    uint64_t again_ms = chaos_draw(&plan->chance) % AGAIN_MS_MAX;
    if (phase == PHASE_AGAIN && atomic_load(&chaos.n_faults) > 0) {
        int pid = 0;
        struct json *status = ask_status(h);
        pid = pid_of(status, role);
        json_destroy(&status);
        if (pid <= 1) {
            return;
        }
        strike(pid, role, ACT_KILL, phase, 0);
        sleep_ms(again_ms);
        status = ask_status(h);
        enum chaos_role second = choose(&plan->chance, plan->roles, role_weights, N_ROLES);
        pid = pid_of(status, second);
        json_destroy(&status);
        if (pid > 1) {
            strike(pid, second, act, phase, stop_ms);
        }
        return;
    }
    struct json *status = ask_status(h);
    for (int i = 0; i < LOOKS && !in_phase(status, phase); i++) {
        json_destroy(&status);
        sleep_ms(LOOK_MS);
        status = ask_status(h);
    }
    phase = in_phase(status, phase) ? phase : PHASE_ANY;
    role = phase == PHASE_LOAD && plan->roles[ROLE_LOADER] ? ROLE_LOADER : role;
    int pid = pid_of(status, role);
    json_destroy(&status);
    if (pid > 1) {
        strike(pid, role, act, phase, stop_ms);
    }
}

/* ---- clients that die ---- */

struct birth {
    int pid;
    char id[33];
};

static int nursery = -1; /* the parent's end */

/* Submits a detached request of this seed, tells its id, reads until it is killed. */
static void live(int fd, const char *run, uint64_t seed)
{
    struct hearth_error error;
    static struct job job;
    struct birth birth = { .pid = getpid() };
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct hearth *h = hearth_open(run, "chaos victim", &error);
    job_draw(&job, &seed);
    struct hearth_request *r = h ? job_submit(h, &job, true, &error) : NULL;
    if (r) {
        memcpy(birth.id, hearth_info(r)->id, sizeof birth.id);
    }
    if (write(fd, &birth, sizeof birth) != (ssize_t)sizeof birth || !r) {
        _exit(1);
    }
    for (struct hearth_token t; hearth_next(r, &t, 50, &error) >= 0 && !t.ended;) {
    }
    pause(); /* not acknowledged: somebody else will read it */
    _exit(0);
}

int fault_nursery_open(const char *run)
{
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0) {
        return -1;
    }
    pid_t pid = fork();
    if (pid != 0) {
        close(fds[1]);
        nursery = fds[0];
        return pid < 0 ? -1 : 0;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(fds[0]);
    signal(SIGCHLD, SIG_IGN);
    for (uint64_t seed; read(fds[1], &seed, sizeof seed) == (ssize_t)sizeof seed;) {
        if (fork() == 0) {
            live(fds[1], run, seed);
        }
    }
    _exit(0);
}

/* One life: -1 when it did not come so far as to be admitted. */
static int one_victim(struct hearth *h, uint64_t seed, uint64_t live_ms)
{
    struct birth birth;
    struct job *job = malloc(sizeof *job);
    struct hearth_error error = { 0 };
    struct pollfd p = { .fd = nursery, .events = POLLIN };
    uint64_t chance = seed;
    if (!job || write(nursery, &seed, sizeof seed) < 0 || poll(&p, 1, CHAOS_STREAM_MS) <= 0 ||
        read(nursery, &birth, sizeof birth) != (ssize_t)sizeof birth || !birth.id[0]) {
        free(job);
        return -1;
    }
    sleep_ms(live_ms);
    strike(birth.pid, ROLE_CLIENT, ACT_KILL, PHASE_ANY, 0);
    job_draw(job, &chance);
    struct hearth_request *r = hearth_attach(h, birth.id, 0, &error);
    job_count(r ? job_follow(r, job, 0, false, &error) : LOST, &error);
    free(job);
    return 0;
}

void *fault_victims(void *arg)
{
    uint64_t chance = (uint64_t)(uintptr_t)arg;
    struct hearth_error error = { 0 };
    struct hearth *h = hearth_open(chaos.run, "chaos heir", &error);
    while (h && !atomic_load(&chaos.stop)) {
        uint64_t seed = chaos_draw(&chance);
        if (one_victim(h, seed, chaos_draw(&chance) % 100) < 0) {
            job_count(LOST, &(struct hearth_error){ .text = "a client could not begin" });
        }
        sleep_ms(chaos_draw(&chance) % 200);
    }
    hearth_close(&h);
    return NULL;
}
