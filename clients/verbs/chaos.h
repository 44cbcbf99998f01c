/* Inside hearth chaos: what its three files share. chaos.c is the story (options, clients, summary), chaos_stream.c one stream and
 * whether it is right, chaos_fault.c what is done to whom. One connection belongs to one thread; the tallies are everybody's. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "clients/hearth.h"

#define CHAOS_JOBS       24  /* different requests, when each is compared with its solo run */
#define CHAOS_TOKENS_MAX 400 /* of the longest answer */
#define CHAOS_PROMPT_MAX 400 /* tokens, with the reference device */
#define CHAOS_FITS       700 /* prompt and answer: tiny models under a tight budget have that context */
#define CHAOS_MODELS_MAX 16     /* asked in turn */
#define CHAOS_FAULTS_MAX 200000 /* remembered, with the pause of each */
#define CHAOS_STREAM_MS  60000  /* a stream that says nothing for so long is lost */

enum chaos_role { ROLE_WORKER, ROLE_BROKER, ROLE_LOADER, ROLE_TEXT, ROLE_CLIENT, N_ROLES };
enum chaos_act { ACT_KILL, ACT_STOP, ACT_STALL, N_ACTS }; /* stall: stopped until it is replaced */
enum chaos_phase { PHASE_ANY, PHASE_AGAIN, PHASE_PREFILL, PHASE_LOAD, N_PHASES };
extern const char *const chaos_roles[N_ROLES], *const chaos_acts[N_ACTS],
                                                   *const chaos_phases[N_PHASES];

struct chaos_fault {
    uint8_t role, act, phase;
    uint64_t at_us;
    _Atomic uint64_t pause_us; /* the longest gap between two tokens of a stream around it */
};

/* Durations by size: 8 buckets an octave, so a percentile is right within 9 %. */
#define SPREAD_BUCKETS 320
struct spread {
    _Atomic uint64_t n[SPREAD_BUCKETS];
};
void spread_note(struct spread *s, uint64_t us);
double spread_ms(const struct spread *s, double part); /* part 0.99: p99; 0 when it is empty */

struct chaos {
    const char *run;
    const char *models[CHAOS_MODELS_MAX]; /* NULL: the default one */
    uint32_t n_models;
    bool reference; /* streams are hash chains and checked by computing them */
    struct chaos_fault faults[CHAOS_FAULTS_MAX];
    _Atomic uint32_t n_faults;
    _Atomic bool stop;
    _Atomic uint64_t requests, tokens, lost, doubled, changed;
    struct spread gaps, firsts; /* between two tokens; from submit to the first */
};
extern struct chaos chaos;

uint64_t chaos_now_us(void);
uint64_t chaos_draw(uint64_t *state); /* 31 random bits */
void chaos_note_error(const char *text);
bool chaos_failed(void);

/* ---- chaos_stream.c ---- */

struct job {
    const char *model;
    char prompt[64]; /* text, compared with `ids` */
    int32_t tokens[CHAOS_PROMPT_MAX];
    uint32_t n_tokens; /* > 0: the prompt is these, the answer a chain */
    uint32_t n;
    uint64_t seed;
    int32_t ids[CHAOS_TOKENS_MAX];
};

enum verdict { SAME, LOST, DOUBLED, CHANGED };

/* One of the fixed jobs, i < CHAOS_JOBS. */
void job_fixed(struct job *job, uint32_t i);
/* A new one for the reference device; some share their beginning. */
void job_draw(struct job *job, uint64_t *chance);

/* NULL with the reason. detach: it outlives the connection. */
struct hearth_request *job_submit(struct hearth *h, const struct job *job, bool detach,
                                  struct hearth_error *error);
/* Follows a request from its first token and frees it. learn: its ids are written down instead. */
enum verdict job_follow(struct hearth_request *r, struct job *job, uint64_t submitted_us,
                        bool learn, struct hearth_error *error);
/* Counts a finished stream. */
void job_count(enum verdict verdict, const struct hearth_error *error);

/* ---- chaos_fault.c ---- */

struct fault_plan {
    uint64_t chance;
    bool roles[N_ROLES], acts[N_ACTS];
};

/* One fault somewhere; v is the parent's connection. Nothing happens when nobody is there. */
void fault_strike(struct fault_plan *plan, struct hearth *h);

/* Clients that die in the middle: call before any thread or connection. 0, or -1 with errno. */
int fault_nursery_open(const char *run);
/* A thread: lets clients stream with detach, kills them, picks their streams up. arg: the seed. */
void *fault_victims(void *arg);
