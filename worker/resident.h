/* A model on this worker's device: weights, state, work space, and the generations and evaluations in flight on it. The
 * step is here; sockets are not. Loop thread only.
 *
 * Steps begin while the last weights are still being read: a step that comes to a layer which is not there is set aside and goes
 * on when it is.
 *
 *   FREE -> READING (binding needs data that is not there) -> NEEDING (state pages asked for) -> READY -> FREE */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/limits.h"
#include "proto/pieces.h"
#include "proto/uploaded.h"
#include "proto/weights.h"
#include "worker/batch.h"
#include "worker/evaluate.h"
#include "worker/forward.h"
#include "worker/golden.h"
#include "worker/model.h"
#include "worker/park.h"
#include "worker/pick.h"
#include "worker/plan.h"
#include "worker/sampler.h"
#include "worker/sequence.h"
#include "worker/state.h"

#define RESIDENT_SEQUENCES   16 /* generations in flight when nobody says otherwise */
#define RESIDENT_EVALUATIONS 64 /* waiting on one model */
#define RESIDENT_TAG_BYTES   33 /* fingerprint as text, with its NUL */

enum resident_phase { RESIDENT_FREE, RESIDENT_READING, RESIDENT_NEEDING, RESIDENT_READY };

struct resident_options {
    uint64_t model; /* the broker's number */
    uint64_t segment;
    char name[LIMIT_MODEL_NAME_BYTES];
    uint32_t ctx_len; /* 0: the file's, up to what fits */
    enum dtype k_type, v_type;
    uint32_t n_sequences;      /* 0: RESIDENT_SEQUENCES */
    uint64_t state_bytes_max;  /* 0: a quarter of the machine's memory */
    char golden[GOLDEN_BYTES]; /* of the model's first run on this device; empty: this is it */
};

struct resident_evaluation {
    uint64_t work; /* the broker's number */
    struct evaluate e;
    void *bulk; /* owned mapping of the result's segment */
    size_t bulk_bytes;
    bool ended;
    struct err error; /* code ERR_NONE: it went well */
};

/* A step of generations; `set_aside` while it waits for weights. */
struct resident_batch {
    bool set_aside;
    uint32_t n, n_rows, n_decode;
    bool shared;
    struct sequence *order[LIMIT_WORKER_SEQUENCES]; /* [n] */
    struct batch_item items[LIMIT_WORKER_SEQUENCES];
    uint32_t n_picks; /* rows whose token the device chooses; their order is that of `order` */
};

/* The step that a device still computes (resident_ahead.c). */
struct resident_ahead {
    bool flying;
    uint32_t n;
    struct {
        struct sequence *s;
        uint64_t arrival; /* s is another one when this differs */
        uint32_t pick;
    } rows[LIMIT_WORKER_SEQUENCES]; /* [n]: whose tokens come */
    struct op_picked picked[2]
                           [LIMIT_WORKER_SEQUENCES]; /* this step's, and those of the one before */
    uint32_t turn;                                   /* which is this step's */
    uint32_t prefill_rows;
    bool shared;
    double began;
};

struct resident {
    enum resident_phase phase;
    struct resident_options options;
    char golden[GOLDEN_BYTES];     /* this run's; empty: not asked for */
    struct backend *backend;       /* borrowed */
    const struct weights *weights; /* borrowed until it is closed */
    bool windowed;                 /* only a window of the weights is there at once */
    struct uploaded *word;         /* then: what its loader waits for; owned mapping */
    uint64_t data_wanted; /* what the watermark must reach before binding or the step goes on */
    struct model *model;
    struct pieces pieces;
    struct state_shape shape;
    struct spill spill; /* weights in the host's memory (plan.h) */
    uint64_t spilled_bytes;
    uint64_t fingerprint;
    char fingerprint_text[RESIDENT_TAG_BYTES];
    uint64_t state_bytes;
    void *state_map;
    size_t state_map_bytes;
    struct state state;
    uint64_t park_key;     /* of this engine's and device's files; 0: it has none */
    uint64_t park_segment; /* the broker's number of what is being written */
    struct park writing, reading;
    struct forward *forward;
    uint32_t rows_max; /* of one step */
    struct sampler_work *sampling;
    float *logits;              /* (n_sequences, vocab_size) */
    struct sequence *sequences; /* [options.n_sequences] */
    uint64_t arrivals;
    bool room_freed; /* since somebody had to wait for pages */
    struct batch_pace pace;
    struct resident_batch batch;
    /* where the device chooses tokens; NULL: it does not */
    struct picker *picker;
    struct op_pick *picks;          /* [n_sequences] */
    struct op_pick_change *changes; /* [n_sequences * OP_PICK_CHANGES_MAX] */
    uint32_t n_changes;
    struct resident_ahead ahead;
    struct resident_evaluation *evaluations; /* [RESIDENT_EVALUATIONS], the first is worked on */
    uint32_t n_evaluations;
    bool evaluate_next; /* turn and turn about with the generations */
    /* one step's arrays [rows_max] */
    int32_t *tokens;
    uint32_t *seqs;
    int64_t *positions;
    uint8_t *flags;
};

/* Afterwards call resident_bind until it says 1. */
void resident_open(struct resident *r, const struct resident_options *options,
                   struct backend *backend, const struct weights *weights);

/* Its weights come by a window: the word (fd borrowed) that tells the loader what is on the device. After resident_open.
 * ERR_BUSY when another worker told it something. */
int resident_open_window(struct resident *r, int word_fd, struct err *err);

/* Binds as soon as the data that it needs is there: 1 bound (state_bytes and fingerprint_text say which state is needed), 0
 * not yet, -1 failed. */
int resident_bind(struct resident *r, struct err *err);

/* Maps the state segment (fd borrowed) and gets ready. fresh: nothing in it is believed. */
int resident_start(struct resident *r, int state_fd, bool fresh, struct err *err);

/* Gives everything back; logs and results stay. Accepts a free one. */
void resident_close(struct resident *r);

/* Whether answers can be generated: false for encoders. */
bool resident_generates(const struct resident *r);

/* Takes a request in. NULL: ERR_BUSY when all sequences are taken, else sequence_open's errors. */
struct sequence *resident_take(struct resident *r, const struct journal *journal,
                               struct sequence_name name, uint32_t epoch, struct err *err);

struct sequence *resident_find(struct resident *r, struct sequence_name name);

/* The sequence is no longer this worker's: its state stays as long as there is room. */
void resident_release(struct resident *r, struct sequence *s);

/* The next idle conversation that no file holds yet begins to leave for fd (taken). 1 it does; 0 there is none; -1 failed. */
int resident_park(struct resident *r, uint64_t segment, int fd, struct err *err);

/* Queues an evaluation; the descriptor of its segment is borrowed. ids lie at its start (ids_bytes), the result goes behind.
 * Errors: ERR_BUSY, ERR_BAD_INPUT, ERR_NO_FIT. */
int resident_evaluate(struct resident *r, uint64_t work, enum evaluate_kind kind,
                      const uint32_t *lens, uint32_t n_lens, int64_t start, int bulk_fd,
                      uint64_t ids_bytes, uint64_t n_ids, struct err *err);

/* Forgets an evaluation that has been answered. */
void resident_evaluation_close(struct resident *r, uint32_t i);

/* Whether a step would do something now. */
bool resident_has_work(const struct resident *r);

/* Whether there is work, but only for weights that are still being read. Tells the watchdog that this is no hang. */
bool resident_waits(struct resident *r);

/* One step: decode rows and prefill chunks, or a piece of an evaluation. Sequences and evaluations that it ends say so in
 * `ended`; the caller tells whom it concerns. An error is the device's, not a request's. */
int resident_step(struct resident *r, struct err *err);
