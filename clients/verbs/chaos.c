/* hearth chaos: kills hearth's own processes while clients stream, and checks every stream against the one that the same
 * request gave alone. For people who want to see for themselves that a crash is a pause.
 *
 * Clients are threads with a connection each (hearth.h: one connection, one thread). The parent's own connection asks the
 * status for pids; a process is killed by its pid alone. The gap that a kill makes is the longest pause between two tokens of
 * a stream that was running when it fell. */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/verbs/verb.h"
#include "proto/json.h"

#define JOBS        24    /* different requests */
#define TOKENS_MAX  96    /* of the longest */
#define CLIENTS_MAX 256   /* threads */
#define KILLS_MAX   10000 /* remembered, with the pause of each */
#define STREAM_MS   60000 /* a stream that says nothing for so long is lost */

static const struct program program = {
    "chaos",
    "[OPTIONS]",
    "Kills hearth's processes while clients stream and checks that nothing is lost, doubled or "
    "changed.",
    "Prints one JSON object. Exit 0: every stream was the one that its request gives alone. The "
    "hearth that it is run "
    "against is disturbed for everybody; the keeper is left alone.",
};

enum { ROLE_WORKER, ROLE_BROKER, ROLE_LOADER, N_ROLES };
static const char *const roles[N_ROLES] = { "worker", "broker", "loader" };

struct job {
    char prompt[64];
    uint32_t n;
    uint64_t seed;
    int32_t ids[TOKENS_MAX];
};

struct kill_note {
    int role;
    uint64_t at_us;
    _Atomic uint64_t pause_us; /* the longest gap between tokens around it */
};

static struct {
    const char *run, *model;
    struct job jobs[JOBS];
    struct kill_note kills[KILLS_MAX];
    _Atomic uint32_t n_kills;
    _Atomic bool stop;
    _Atomic uint64_t requests, tokens, lost, doubled, changed;
    pthread_mutex_t lock; /* of first_error */
    char first_error[512];
} chaos = { .lock = PTHREAD_MUTEX_INITIALIZER };

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint64_t draw(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}

static void note_error(const char *text)
{
    pthread_mutex_lock(&chaos.lock);
    if (!chaos.first_error[0]) {
        snprintf(chaos.first_error, sizeof chaos.first_error, "%s", text);
    }
    pthread_mutex_unlock(&chaos.lock);
}

/* A gap between two tokens counts for every kill that fell into it. */
static void note_gap(uint64_t from_us, uint64_t to_us)
{
    uint32_t n = atomic_load(&chaos.n_kills);
    for (uint32_t i = n; i-- > 0 && chaos.kills[i].at_us + 10000000 > from_us;) {
        struct kill_note *k = &chaos.kills[i];
        uint64_t known = atomic_load(&k->pause_us), gap = to_us - from_us;
        if (k->at_us < from_us || k->at_us > to_us) {
            continue;
        }
        while (gap > known && !atomic_compare_exchange_weak(&k->pause_us, &known, gap)) {
        }
    }
}

/* ---- one stream ---- */

enum verdict { SAME, LOST, DOUBLED, CHANGED };

/* Streams a job. wanted NULL: its ids are written down in the job; else they are compared. */
static enum verdict stream(struct hearth *h, struct job *job, const int32_t *wanted,
                           struct hearth_error *error)
{
    struct hearth_ask ask = { .model = chaos.model,
                              .kind = HEARTH_TEXT,
                              .prompt = job->prompt,
                              .prompt_len = strlen(job->prompt),
                              .has_n_max = true,
                              .n_max = job->n };
    ask.sampling.has_temp = ask.sampling.has_seed = ask.sampling.ignore_eos = true;
    ask.sampling.temp = 0.8f;
    ask.sampling.seed = job->seed;
    struct hearth_request *r = hearth_submit(h, &ask, error);
    if (!r) {
        return LOST;
    }
    struct hearth_token t = { 0 };
    enum verdict verdict = SAME;
    uint64_t last_us = 0;
    uint32_t n = 0;
    while (!t.ended) {
        enum hearth_result got = hearth_next(r, &t, STREAM_MS, error);
        if (got != HEARTH_TOKEN) {
            if (got == HEARTH_TIMEOUT) {
                snprintf(error->text, sizeof error->text, "no token for %d s", STREAM_MS / 1000);
            }
            verdict = LOST;
            break;
        }
        uint64_t us = now_us();
        if (last_us) {
            note_gap(last_us, us);
        }
        last_us = us;
        if (!t.has_token) {
            continue;
        }
        if (n < job->n && !wanted) {
            job->ids[n] = t.id;
        } else if (n >= job->n) {
            verdict = DOUBLED;
        } else if (t.id != wanted[n] && verdict == SAME) {
            verdict = n > 0 && t.id == wanted[n - 1] ? DOUBLED : CHANGED;
        }
        n++;
    }
    if (verdict == SAME && t.ended && strcmp(t.finish_reason, "error") == 0) {
        *error = t.error;
        verdict = LOST;
    } else if (verdict == SAME && n < job->n) {
        snprintf(error->text, sizeof error->text, "%u tokens of %u", n, job->n);
        verdict = LOST;
    }
    atomic_fetch_add(&chaos.tokens, n);
    hearth_end(&r);
    return verdict;
}

static void *client(void *arg)
{
    uint64_t chance = (uint64_t)(uintptr_t)arg;
    struct hearth_error error = { 0 };
    struct hearth *h = hearth_open(chaos.run, "chaos", &error);
    if (!h) {
        note_error(error.text);
        atomic_fetch_add(&chaos.lost, 1);
        return NULL;
    }
    while (!atomic_load(&chaos.stop)) {
        struct job *job = &chaos.jobs[draw(&chance) % JOBS];
        enum verdict v = stream(h, job, job->ids, &error);
        atomic_fetch_add(&chaos.requests, 1);
        if (v != SAME) {
            atomic_fetch_add(v == LOST      ? &chaos.lost
                             : v == DOUBLED ? &chaos.doubled
                                            : &chaos.changed,
                             1);
            note_error(v == LOST ? error.text
                                 : "a stream is not the one that its request gives alone");
        }
    }
    hearth_close(&h);
    return NULL;
}

/* ---- kills ---- */

/* The pid of a process of this role, 0: there is none. */
static int pid_of(struct hearth *h, const char *role)
{
    struct hearth_error error;
    struct err err;
    char *text = hearth_status(h, false, &error);
    struct json *status = text ? json_parse(text, strlen(text), &err) : NULL;
    const struct json *list = json_find(status, "processes");
    int pid = 0;
    for (size_t i = 0; i < json_len(list) && !pid; i++) {
        const char *is = json_as_str(json_find(json_at(list, i), "role"), NULL);
        if (is && strcmp(is, role) == 0) {
            pid = (int)json_as_int(json_find(json_at(list, i), "pid"));
        }
    }
    json_destroy(&status);
    free(text);
    return pid;
}

static void kill_one(struct hearth *h, int role)
{
    int pid = pid_of(h, roles[role]);
    uint32_t i = atomic_load(&chaos.n_kills);
    if (pid <= 1) {
        return;
    }
    chaos.kills[i].role = role;
    chaos.kills[i].at_us = now_us();
    atomic_store(&chaos.n_kills, i + 1); /* before it falls: the gap may end soon */
    if (kill(pid, SIGKILL) < 0) {
        atomic_store(&chaos.n_kills, i);
    }
}

/* false: the user wants it to end. */
static bool wait_ms(const struct verb *v, uint64_t ms)
{
    struct pollfd p = { .fd = v->signal_fd, .events = POLLIN };
    return poll(&p, 1, (int)ms) == 0;
}

/* ---- the summary ---- */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static struct json *of_role(int role)
{
    static uint64_t pauses[KILLS_MAX];
    uint32_t n = 0, felt = 0, n_kills = atomic_load(&chaos.n_kills);
    for (uint32_t i = 0; i < n_kills; i++) {
        uint64_t us = atomic_load(&chaos.kills[i].pause_us);
        n += chaos.kills[i].role == role;
        if (chaos.kills[i].role == role && us > 0) {
            pauses[felt++] = us;
        }
    }
    qsort(pauses, felt, sizeof *pauses, by_value);
    struct json *o = json_new_object();
    json_set(o, "kills", json_new_int(n));
    if (felt) {
        json_set(o, "pause_ms_p50", json_new_double((double)pauses[felt / 2] / 1000));
        json_set(o, "pause_ms_p99", json_new_double((double)pauses[(felt * 99 - 1) / 100] / 1000));
    }
    return o;
}

static void print_summary(uint64_t seed, int64_t n_clients, double seconds)
{
    struct json *o = json_new_object(), *per_role = json_new_object();
    for (int i = 0; i < N_ROLES; i++) {
        json_set(per_role, roles[i], of_role(i));
    }
    json_set(o, "seed", json_new_int((int64_t)seed));
    json_set(o, "clients", json_new_int(n_clients));
    json_set(o, "seconds", json_new_double(seconds));
    json_set(o, "kills", json_new_int(atomic_load(&chaos.n_kills)));
    json_set(o, "roles", per_role);
    json_set(o, "requests", json_new_int((int64_t)atomic_load(&chaos.requests)));
    json_set(o, "tokens", json_new_int((int64_t)atomic_load(&chaos.tokens)));
    json_set(o, "lost", json_new_int((int64_t)atomic_load(&chaos.lost)));
    json_set(o, "doubled", json_new_int((int64_t)atomic_load(&chaos.doubled)));
    json_set(o, "changed", json_new_int((int64_t)atomic_load(&chaos.changed)));
    if (chaos.first_error[0]) {
        json_set(o, "first_error", json_new_str(chaos.first_error, strlen(chaos.first_error)));
    }
    puts(json_text(o, NULL));
    json_destroy(&o);
}

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    int64_t kills = 20, seed = 1, n_clients = 8;
    struct hearth_error error = { 0 };
    static pthread_t threads[CLIENTS_MAX];
    const struct option table[] = {
        { "model", 'm', OPTION_STRING, &chaos.model, "MODEL", "who is asked", NULL },
        { "kills", 0, OPTION_INT, &kills, "N", "processes to kill (20)", NULL },
        { "clients", 0, OPTION_INT, &n_clients, "N", "streams at the same time (8)", NULL },
        { "seed", 0, OPTION_INT, &seed, "S", "of what is killed when (1)", NULL },
        VERB_OPTIONS(v),
    };
    if (options_parse(&program, table, argc, argv) > 0) {
        options_fail(&program, "takes no arguments");
    }
    if (kills < 0 || kills > KILLS_MAX || n_clients < 1 || n_clients > CLIENTS_MAX) {
        options_fail(&program, "at most %d kills, 1 to %d clients", KILLS_MAX, CLIENTS_MAX);
    }
    verb_open(&v);
    chaos.run = hearth_run(v.h);
    for (uint32_t i = 0; i < JOBS; i++) {
        struct job *job = &chaos.jobs[i];
        snprintf(job->prompt, sizeof job->prompt, "Story %u: once upon a time", i % 6);
        job->n = 32 + i * 7 % (TOKENS_MAX - 31);
        job->seed = i + 1;
        if (stream(v.h, job, NULL, &error) != SAME) {
            verb_fail(&v, &error);
        }
    }
    atomic_store(&chaos.tokens, 0);
    uint64_t chance = (uint64_t)seed, begun = now_us();
    int64_t n_started = 0;
    for (; n_started < n_clients; n_started++) {
        uint64_t own = (uint64_t)seed * 1000 + (uint64_t)n_started;
        if (pthread_create(&threads[n_started], NULL, client, (void *)(uintptr_t)own) != 0) {
            break;
        }
    }
    while (atomic_load(&chaos.n_kills) < (uint32_t)kills &&
           atomic_load(&chaos.lost) + atomic_load(&chaos.doubled) + atomic_load(&chaos.changed) ==
               0 &&
           wait_ms(&v, draw(&chance) % 500)) {
        uint64_t d = draw(&chance) % 4;
        kill_one(v.h, d < 2 ? ROLE_WORKER : d == 2 ? ROLE_BROKER : ROLE_LOADER);
    }
    wait_ms(&v, 500); /* what the last one broke */
    atomic_store(&chaos.stop, true);
    for (int64_t i = 0; i < n_started; i++) {
        pthread_join(threads[i], NULL);
    }
    print_summary((uint64_t)seed, n_started, (double)(now_us() - begun) / 1e6);
    bool good = atomic_load(&chaos.lost) + atomic_load(&chaos.doubled) +
                    atomic_load(&chaos.changed) ==
                0;
    return verb_close(&v, good && n_started == n_clients ? 0 : 1);
}
