/* The watch over children that live and do nothing. A worker that owns work and whose progress word (proto/progress.h) stands
 * still for max(5 s, 50 x the median layer) is hung, so is one that does not answer while it takes or leaves a
 * model, and a loader that neither tells nor reads anything. So is, after the same 5 s, whoever somebody has stopped (SIGSTOP) before its Hello, while it
 * takes or leaves a model, or loads: what else they take long for cannot be told from work. They are killed by SIGKILL, which the kernel carries out even
 * on a stopped process; the death counts as a fault (DESIGN.md section 5).
 *
 * Quiet time is added up from turn to turn, each turn at most WATCH_TURN_MS: a broker that was itself stopped, or a
 * machine that slept, accuses nobody. Loop thread only. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"

struct broker;
struct model;

#define WATCH_TURN_MS   500        /* looks this often; what one turn may count */
#define WATCH_QUIET_MS  5000       /* a step of no model hearth serves has a layer of this length */
#define WATCH_LAYERS    50         /* or so many medians, whichever is longer */
#define WATCH_BIND_MS   60000      /* taking or leaving a model, and what its bytes need: */
#define WATCH_BIND_RATE (64 << 10) /* bytes a ms: the slowest memory that we believe in */
#define WATCH_LOADER_MS 60000      /* a loader without a note or a byte */
#define WATCH_SAMPLES   15         /* layers timed; their median counts */

/* Of a worker. */
struct watch_worker {
    uint32_t child;     /* whom the rest is about */
    bool greeted;       /* since its Hello */
    uint32_t seen;      /* sum of the words of its models */
    uint64_t looked_ms; /* the last look; 0: none */
    uint64_t quiet_ms;  /* how long it owned work and nothing moved */
    /* How long it was stopped, before its Hello or as it takes or leaves a model. */
    uint64_t stopped_ms;
    uint32_t layer_us[WATCH_SAMPLES];
    uint32_t n_samples; /* ever taken */
};

/* Of a model: its word, its bind and its loader. */
struct watch_model {
    const _Atomic uint32_t *progress; /* mapped, or NULL */
    uint64_t segment;                 /* whose word that is */
    int state_fd;                     /* of that segment, for the ledger; 0: none */
    bool asked;                       /* TAKE of the state segment is out */
    uint32_t bind;                    /* as last seen */
    uint64_t bind_quiet_ms, bind_looked_ms;
    uint64_t uploaded; /* of weights by a window, as last seen */
    uint32_t loader;   /* whom the rest is about */
    int weights_fd;    /* of the segment that it fills; 0: none, or not given yet */
    uint64_t watermark, loader_quiet_ms, loader_stopped_ms;
    uint64_t begun_ms, begun_at; /* when its bytes were first looked at, and how many there were */
    uint64_t looked_ms;
    bool loader_killed; /* by us: its death is a fault */
};

/* Every turn, after models and workers. */
void watch_act(struct broker *b);

/* The keeper gave a state segment: fd (taken; -1: none). */
void watch_on_state(struct broker *b, uint64_t number, uint64_t segment, int fd,
                    const struct err *err);

/* The keeper gave a weights segment that is being filled. fd is taken. */
void watch_on_weights(struct broker *b, uint64_t number, uint64_t segment, int fd,
                      const struct err *err);

/* How far a model's loader has come. */
struct watch_loading {
    uint64_t bytes, of; /* of the data: what is there, of how much */
    uint64_t rate;      /* bytes a second since it was first looked at; 0: not known yet */
};

/* false: it is not being read, or its head is not known yet. */
bool watch_loading(const struct broker *b, const struct model *m, struct watch_loading *out);

/* Unmaps what is mapped. */
void watch_clear(struct broker *b);
