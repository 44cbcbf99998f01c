/* hearth chaos: kills, stops and stalls hearth's own processes while clients stream, and checks every stream against the one
 * that the same request gave alone, or, where the service runs on the reference device, against the chain that it must be.
 * For people who want to see for themselves that a crash is a pause.
 *
 * Clients are threads with a connection each; a process is hurt by its pid alone. The pause that a fault makes is the longest gap
 * between two tokens of a stream that was running when it came. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "clients/verbs/chaos.h"
#include "clients/verbs/verb.h"
#include "proto/json.h"

#define CLIENTS_MAX    256  /* threads that stream */
#define IDLE_MAX       2000 /* connections that do not */
#define STALLED_MAX    64   /* clients that ask and do not read */
#define IDLE_LOOK_MS   500  /* how often an idle client looks whether its broker is there */
#define STALLED_TOKENS 1000 /* asked for by one that does not read them */

static const struct program program = {
    "chaos",
    "[OPTIONS]",
    "Kills hearth's processes while clients stream and checks that nothing is lost, doubled or "
    "changed.",
    "Prints one JSON object. Exit 0: every stream was right. The hearth that it is run against is "
    "disturbed for "
    "everybody; the keeper is left alone. Without --reference each stream is compared with the one "
    "that its request gives alone, before anything is killed. With --reference the service has to "
    "run with --device reference: its answers are hash chains, every request is another one and "
    "is checked by computing it; clients are killed too, and their answers picked up.",
};

struct chaos chaos = { .n_models = 1 };

static char first_error[512];
static pthread_mutex_t error_lock = PTHREAD_MUTEX_INITIALIZER;

void chaos_note_error(const char *text)
{
    pthread_mutex_lock(&error_lock);
    if (!first_error[0]) {
        snprintf(first_error, sizeof first_error, "%s", text);
    }
    pthread_mutex_unlock(&error_lock);
}

bool chaos_failed(void)
{
    return atomic_load(&chaos.lost) + atomic_load(&chaos.doubled) + atomic_load(&chaos.changed) > 0;
}

/* ---- clients ---- */

static struct job fixed[CHAOS_JOBS];

static void *client(void *arg)
{
    uint64_t chance = (uint64_t)(uintptr_t)arg;
    struct hearth_error error = { 0 };
    struct job *job = malloc(sizeof *job);
    struct hearth *h = hearth_open(chaos.run, "chaos", &error);
    if (!h || !job) {
        job_count(LOST, &error);
    }
    while (h && job && !atomic_load(&chaos.stop)) {
        if (chaos.reference) {
            job_draw(job, &chance);
        } else {
            *job = fixed[chaos_draw(&chance) % CHAOS_JOBS];
        }
        uint64_t submitted_us = chaos_now_us();
        struct hearth_request *r = job_submit(h, job, false, &error);
        job_count(r ? job_follow(r, job, submitted_us, false, &error) : LOST, &error);
    }
    hearth_close(&h);
    free(job);
    return NULL;
}

static uint32_t n_idle, n_stalled;

/* Those who are connected and want nothing, and those who ask and never read: in one thread, which looks whether they are still
 * welcome. */
static void *idlers(void *arg)
{
    struct hearth **h = calloc(n_idle + n_stalled, sizeof(struct hearth *));
    struct hearth_request *asked[STALLED_MAX] = { 0 };
    struct hearth_error error = { 0 };
    uint64_t chance = (uint64_t)(uintptr_t)arg;
    struct job *job = malloc(sizeof *job);
    bool good = h && job;
    for (uint32_t i = 0; good && i < n_idle + n_stalled; i++) {
        h[i] = hearth_open(chaos.run, i < n_stalled ? "chaos stalled" : "chaos idle", &error);
        good = h[i] != NULL;
    }
    for (uint32_t i = 0; good && i < n_stalled; i++) {
        job_draw(job, &chance);
        job->n = STALLED_TOKENS;
        asked[i] = job_submit(h[i], job, false, &error);
        good = asked[i] != NULL;
    }
    while (good && !atomic_load(&chaos.stop)) {
        for (uint32_t i = 0; good && i < n_idle + n_stalled; i++) {
            good = hearth_check(h[i], &error) == 0;
        }
        poll(NULL, 0, IDLE_LOOK_MS);
    }
    if (!good) {
        job_count(LOST, &error);
    }
    for (uint32_t i = 0; h && i < n_idle + n_stalled; i++) {
        if (i < n_stalled) {
            hearth_end(&asked[i]);
        }
        hearth_close(&h[i]);
    }
    free(h);
    free(job);
    return NULL;
}

/* ---- the summary ---- */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Faults of a role: how many of each kind, and the pauses of those that a stream felt. */
static struct json *of_role(enum chaos_role role)
{
    static uint64_t pauses[CHAOS_FAULTS_MAX];
    uint32_t felt = 0, n = atomic_load(&chaos.n_faults), acts[N_ACTS] = { 0 };
    for (uint32_t i = 0; i < n; i++) {
        const struct chaos_fault *f = &chaos.faults[i];
        uint64_t us = atomic_load(&f->pause_us);
        if (f->role != role) {
            continue;
        }
        acts[f->act]++;
        if (f->act == ACT_KILL && us > 0) {
            pauses[felt++] = us;
        }
    }
    qsort(pauses, felt, sizeof *pauses, by_value);
    struct json *o = json_new_object();
    for (int i = 0; i < N_ACTS; i++) {
        char name[16];
        snprintf(name, sizeof name, "%ss", chaos_acts[i]);
        json_set(o, name, json_new_int(acts[i]));
    }
    if (felt) {
        json_set(o, "pause_ms_p50", json_new_double((double)pauses[felt / 2] / 1000));
        json_set(o, "pause_ms_p99", json_new_double((double)pauses[(felt * 99 - 1) / 100] / 1000));
        json_set(o, "pause_ms_max", json_new_double((double)pauses[felt - 1] / 1000));
    }
    return o;
}

static struct json *spread_json(const struct spread *s)
{
    struct json *o = json_new_object();
    json_set(o, "p50", json_new_double(spread_ms(s, 0.5)));
    json_set(o, "p95", json_new_double(spread_ms(s, 0.95)));
    json_set(o, "p99", json_new_double(spread_ms(s, 0.99)));
    return o;
}

static void print_summary(uint64_t seed, int64_t n_clients, double seconds)
{
    struct json *o = json_new_object(), *per_role = json_new_object(),
                *per_phase = json_new_object();
    uint32_t n = atomic_load(&chaos.n_faults), kills = 0, gone = 0, phases[N_PHASES] = { 0 };
    for (uint32_t i = 0; i < n; i++) {
        const struct chaos_fault *f = &chaos.faults[i];
        gone += f->role == N_ROLES;
        kills += f->role < N_ROLES && f->act == ACT_KILL;
        phases[f->phase] += f->role < N_ROLES;
    }
    for (int i = 0; i < N_ROLES; i++) {
        json_set(per_role, chaos_roles[i], of_role((enum chaos_role)i));
    }
    for (int i = 0; i < N_PHASES; i++) {
        json_set(per_phase, chaos_phases[i], json_new_int(phases[i]));
    }
    json_set(o, "seed", json_new_int((int64_t)seed));
    json_set(o, "clients", json_new_int(n_clients));
    json_set(o, "seconds", json_new_double(seconds));
    json_set(o, "kills", json_new_int(kills));
    json_set(o, "gone", json_new_int(gone)); /* ended by themselves before their turn came */
    json_set(o, "roles", per_role);
    json_set(o, "phases", per_phase);
    json_set(o, "requests", json_new_int((int64_t)atomic_load(&chaos.requests)));
    json_set(o, "tokens", json_new_int((int64_t)atomic_load(&chaos.tokens)));
    json_set(o, "lost", json_new_int((int64_t)atomic_load(&chaos.lost)));
    json_set(o, "doubled", json_new_int((int64_t)atomic_load(&chaos.doubled)));
    json_set(o, "changed", json_new_int((int64_t)atomic_load(&chaos.changed)));
    json_set(o, "gap_ms", spread_json(&chaos.gaps));
    json_set(o, "first_token_ms", spread_json(&chaos.firsts));
    if (first_error[0]) {
        json_set(o, "first_error", json_new_str(first_error, strlen(first_error)));
    }
    puts(json_text(o, NULL));
    json_destroy(&o);
}

/* ---- the story ---- */

/* "worker,broker": sets those of n names that are in the list. */
static void read_list(const char *what, const char *list, const char *const *names, bool *wanted,
                      int n)
{
    memset(wanted, 0, (size_t)n * sizeof *wanted);
    for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',') {
        size_t len = strcspn(at, ",");
        int i = 0;
        while (i < n && (strlen(names[i]) != len || strncmp(names[i], at, len) != 0)) {
            i++;
        }
        if (i == n) {
            options_fail(&program, "--%s %s: %.*s is none", what, list, (int)len, at);
        }
        wanted[i] = true;
    }
}

static void read_models(char *list)
{
    chaos.n_models = 0;
    for (char *at = strtok(list, ","); at; at = strtok(NULL, ",")) {
        if (chaos.n_models == CHAOS_MODELS_MAX) {
            options_fail(&program, "at most %d models", CHAOS_MODELS_MAX);
        }
        chaos.models[chaos.n_models++] = at;
    }
    chaos.n_models += chaos.n_models == 0;
}

/* Every fixed job once, alone. */
static void learn_fixed(struct verb *v)
{
    struct hearth_error error = { 0 };
    for (uint32_t i = 0; i < CHAOS_JOBS; i++) {
        job_fixed(&fixed[i], i);
        struct hearth_request *r = job_submit(v->h, &fixed[i], false, &error);
        if (!r || job_follow(r, &fixed[i], 0, true, &error) != SAME) {
            verb_fail(v, &error);
        }
    }
    atomic_store(&chaos.tokens, 0);
    memset(&chaos.gaps, 0, sizeof chaos.gaps);
}

/* false: the user wants it to end. */
static bool wait_ms(const struct verb *v, uint64_t ms)
{
    struct pollfd p = { .fd = v->signal_fd, .events = POLLIN };
    return poll(&p, 1, (int)ms) == 0;
}

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    struct fault_plan plan = { 0 };
    int64_t kills = -1, seed = 1, n_clients = 8, idle = 0, stalled = 0, seconds = 0, pause_ms = 500;
    const char *models = NULL, *roles = "worker,broker,loader,text,client", *acts = "kill";
    static pthread_t threads[CLIENTS_MAX];
    pthread_t victims, still;
    const struct option table[] = {
        { "model", 'm', OPTION_STRING, &models, "MODEL,...", "who is asked, in turn", NULL },
        { "kills", 0, OPTION_INT, &kills, "N", "faults in all (20, or what --seconds allows)",
          NULL },
        { "seconds", 0, OPTION_INT, &seconds, "S", "ends after so long", NULL },
        { "pause", 0, OPTION_INT, &pause_ms, "MS", "between two faults at most (500)", NULL },
        { "clients", 0, OPTION_INT, &n_clients, "N", "streams at the same time (8)", NULL },
        { "idle", 0, OPTION_INT, &idle, "N", "clients that are only connected (0)", NULL },
        { "stalled", 0, OPTION_INT, &stalled, "N", "clients that ask and do not read (0)", NULL },
        { "roles", 0, OPTION_STRING, &roles, "LIST", "worker,broker,loader,text,client", NULL },
        { "acts", 0, OPTION_STRING, &acts, "LIST", "kill,stop,stall (kill)", NULL },
        { "reference", 0, OPTION_FLAG, &chaos.reference, NULL,
          "the service runs on the reference device", NULL },
        { "seed", 0, OPTION_INT, &seed, "S", "of what is hurt when (1)", NULL },
        VERB_OPTIONS(v),
    };
    if (options_parse(&program, table, argc, argv) > 0) {
        options_fail(&program, "takes no arguments");
    }
    kills = kills >= 0 ? kills : seconds > 0 ? CHAOS_FAULTS_MAX : 20;
    if (kills > CHAOS_FAULTS_MAX || n_clients < 1 || n_clients > CLIENTS_MAX || idle < 0 ||
        idle > IDLE_MAX || stalled < 0 || stalled > STALLED_MAX || pause_ms < 1) {
        options_fail(&program, "at most %d kills, 1 to %d clients, %d idle ones, %d stalled ones",
                     CHAOS_FAULTS_MAX, CLIENTS_MAX, IDLE_MAX, STALLED_MAX);
    }
    read_list("roles", roles, chaos_roles, plan.roles, N_ROLES);
    read_list("acts", acts, chaos_acts, plan.acts, N_ACTS);
    if (models) {
        read_models(strdup(models)); /* lives as long as the program */
    }
    bool mortal = chaos.reference && plan.roles[ROLE_CLIENT] && kills > 0;
    if (mortal && fault_nursery_open(v.run) < 0) {
        options_fail(&program, "no children: %s", strerror(errno));
    }
    verb_open(&v);
    chaos.run = hearth_run(v.h);
    if (!chaos.reference) {
        learn_fixed(&v);
    }
    plan.chance = (uint64_t)seed;
    n_idle = (uint32_t)idle;
    n_stalled = (uint32_t)stalled;
    uint64_t begun = chaos_now_us(), until = begun + (uint64_t)seconds * 1000000;
    int64_t n_started = 0;
    for (; n_started < n_clients; n_started++) {
        uint64_t own = (uint64_t)seed * 1000 + (uint64_t)n_started;
        if (pthread_create(&threads[n_started], NULL, client, (void *)(uintptr_t)own) != 0) {
            break;
        }
    }
    mortal = mortal && pthread_create(&victims, NULL, fault_victims,
                                      (void *)(uintptr_t)(seed * 1000 - 1)) == 0;
    bool crowded = n_idle + n_stalled > 0 &&
                   pthread_create(&still, NULL, idlers, (void *)(uintptr_t)(seed * 1000 - 2)) == 0;
    while (atomic_load(&chaos.n_faults) < (uint32_t)kills && !chaos_failed() &&
           (seconds == 0 || chaos_now_us() < until) &&
           wait_ms(&v, chaos_draw(&plan.chance) % (uint64_t)pause_ms)) {
        fault_strike(&plan, v.h);
    }
    while (chaos_now_us() < until && !chaos_failed() && kills == 0 && wait_ms(&v, 100)) {
    }
    wait_ms(&v, 500); /* what the last one broke */
    atomic_store(&chaos.stop, true);
    for (int64_t i = 0; i < n_started; i++) {
        pthread_join(threads[i], NULL);
    }
    if (mortal) {
        pthread_join(victims, NULL);
    }
    if (crowded) {
        pthread_join(still, NULL);
    }
    print_summary((uint64_t)seed, n_started, (double)(chaos_now_us() - begun) / 1e6);
    return verb_close(&v, !chaos_failed() && n_started == n_clients ? 0 : 1);
}
