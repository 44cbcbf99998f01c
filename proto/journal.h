/* The journal: the truth about every live request. One shard (a file) per principal, preallocated.
 *
 *   shard header     struct journal_header, 4 KiB
 *   slots            struct journal_slot [n_slots], 1 KiB each: written by the broker alone
 *   arena            extents of whole 4 KiB pages; a slot's extent holds, in order:
 *                      parameters that are not of fixed size (struct journal_extra: biases, strings)
 *                      prompt tokens (int32), then the token log (struct journal_log + records)
 *
 * One writer per word. State words, slots and extents: the broker. A token log has one writer, its owner, named in
 * slot.owner: 0 is the broker, else the epoch (child number) of a worker. The broker changes slot.owner only when the log is its own
 * again: by WorkerReleased or WorkerFinished, or because the worker was reaped.
 * A token exists when its record is committed: record written, then one release-store of log.committed (a count of records).
 * Ends are records too. Readers copy what they read and check bounds, length, sequence number and crc.
 * Offsets are bytes from the shard's start. A slot's `generation` grows with every use: (shard, slot, generation) names a request for good.
 *
 * Recovery needs nothing but the shard: the allocator's state is the union of the live slots' extents. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/limits.h"

#define JOURNAL_MAGIC   0x314c4e4a48545248ull
#define JOURNAL_VERSION 1
#define JOURNAL_LAYOUT  5 /* changes with any struct below */

enum journal_state {
    JOURNAL_FREE = 0, /* the slot names no request */
    JOURNAL_QUEUED,
    JOURNAL_PREFILL, /* taken by a worker, nothing committed in this turn yet */
    JOURNAL_DECODE,
    JOURNAL_DONE, /* ended, kept until acknowledged or expired */
    JOURNAL_CANCELLED,
    JOURNAL_FAILED,
    JOURNAL_N_STATES,
};

enum journal_end {
    JOURNAL_END_NONE = 0,
    JOURNAL_END_STOP,   /* end token or stop string */
    JOURNAL_END_LENGTH, /* n_max or the context */
    JOURNAL_END_CANCELLED,
    JOURNAL_END_ERROR, /* code and reason in the record */
};

const char *journal_state_name(enum journal_state state);
const char *journal_end_name(enum journal_end end); /* "stop", "length", "cancelled", "error" */

struct journal_header {
    uint64_t magic;
    uint32_t version;
    uint32_t layout;
    uint64_t bytes; /* of the whole shard */
    uint32_t n_slots;
    uint32_t slot_bytes;
    uint64_t slots_off;
    uint64_t arena_off, arena_bytes;
    uint32_t uid; /* the principal */
    uint32_t reserved;
};

/* Which model file, so that a changed file is noticed. */
struct journal_model {
    uint64_t device, inode, size, mtime_ns, digest;
    char name[LIMIT_MODEL_NAME_BYTES]; /* as in the catalog */
};

/* Steps from logits to a token whose order a request may choose; the default is this one. */
enum journal_sampler {
    JOURNAL_PENALTIES = 0,
    JOURNAL_DRY,
    JOURNAL_TOP_N_SIGMA,
    JOURNAL_TOP_K,
    JOURNAL_TYPICAL_P,
    JOURNAL_TOP_P,
    JOURNAL_MIN_P,
    JOURNAL_XTC,
    JOURNAL_TEMPERATURE,
    JOURNAL_ADAPTIVE_P, /* the draw itself: acts last, wherever it is named */
    JOURNAL_N_SAMPLERS,
};

const char *journal_sampler_name(enum journal_sampler sampler); /* "penalties", "top_k" ... */

/* Everything that decides the tokens, fixed at admission. In a zeroed one everything that came later is off. */
struct journal_params {
    uint64_t seed;
    float temp;
    float top_p, min_p, typical_p;
    float repeat_penalty, presence_penalty, frequency_penalty;
    int32_t top_k;
    int32_t repeat_last_n; /* -1: the whole context */
    uint32_t n_max;        /* tokens to generate at most */
    uint32_t n_ctx;        /* positions that this request may reach */
    uint32_t n_stops, n_biases;
    uint32_t n_alternatives;
    uint8_t logprobs; /* records carry log-probabilities */
    uint8_t ignore_eos;
    uint8_t priority;
    uint8_t detach;
    uint64_t deadline_unix_ms;               /* 0: none */
    float dynatemp_range, dynatemp_exponent; /* 0: off */
    float top_n_sigma;                       /* not above 0: off */
    float xtc_probability, xtc_threshold;    /* 0: off */
    float dry_multiplier, dry_base;          /* 0: off */
    int32_t dry_allowed_length;
    int32_t dry_penalty_last_n; /* -1: the whole context */
    float mirostat_tau, mirostat_eta;
    int32_t mirostat; /* 0: off; version 1 or 2 */
    float adaptive_target, adaptive_decay;
    uint32_t adaptive_p; /* 0: off */
    uint32_t n_breakers, n_banned;
    uint32_t n_samplers; /* 0: the default order */
    uint8_t samplers[12];
};
static_assert(JOURNAL_N_SAMPLERS <= 12, "each sampler is named at most once");

struct journal_bias {
    int32_t token;
    float bias;
};

/* Behind it: n_biases struct journal_bias, then n_stops stop strings, n_breakers sequence breakers and n_banned banned
 * strings, each { uint32_t length; bytes }, unaligned. */
struct journal_extra {
    uint32_t biases_bytes, strings_bytes;
};

struct journal_slot {
    _Atomic uint32_t
        state; /* enum journal_state; stored with release order, last of the slot's words */
    uint32_t generation;
    uint8_t id[LIMIT_REQUEST_ID_BYTES];
    uint64_t body_digest; /* of Submit: the same id with another body is refused */
    uint64_t flow;        /* a number for the client's flow; survives a broker */
    uint64_t admit_seq;   /* order of admission in this shard's broker */
    uint64_t admitted_unix_ms;
    uint64_t extent_off, extent_bytes; /* in the arena */
    uint64_t extra_off, prompt_off, log_off, log_bytes;
    uint32_t n_prompt;
    uint32_t deaths; /* of workers, by a fault, since the last commit: three is poison */
    uint64_t committed_at_death;
    _Atomic uint64_t owner;  /* 0: broker, else a worker's child number */
    _Atomic uint64_t reader; /* segment number of the reader page to wake, 0: none */
    _Atomic uint32_t cancel; /* the client wants it to end */
    uint32_t records;        /* the broker sends records as frames */
    uint64_t attached;       /* client number, 0: nobody; for the broker after its restart */
    uint32_t acked;          /* its client has read the end, before the worker gave the log back */
    uint32_t spare;
    uint64_t state_bytes; /* of its model's state at admission: params.n_ctx is promised on them */
    struct journal_params params;
    struct journal_model model;
};
#define JOURNAL_SLOT_BYTES 1024
static_assert(sizeof(struct journal_slot) <= JOURNAL_SLOT_BYTES, "a slot has its stride");

struct journal_log {
    _Atomic uint64_t committed; /* records that exist */
    uint64_t reserved[7];       /* a cache line */
};

#define JOURNAL_TOKEN 1u /* flag: the record has a token */
#define JOURNAL_ENDED 2u /* flag: this record ends the request */

/* One record; n_alternatives struct journal_bias-like pairs and n_bytes follow, padded to 8 bytes. */
struct journal_record {
    uint32_t length;  /* whole record, a multiple of 8 */
    uint32_t crc;     /* crc32c of all that follows this field, to length */
    uint64_t seq;     /* 1, 2, 3 ... */
    uint64_t time_us; /* CLOCK_MONOTONIC when written: for timings only */
    uint32_t epoch;   /* the writer: child number, 0 is the broker */
    int32_t token;    /* with JOURNAL_TOKEN */
    float logprob;
    uint16_t flags;
    uint16_t end; /* enum journal_end, with JOURNAL_ENDED */
    uint16_t
        code; /* enum err_code, with JOURNAL_END_ERROR; the bytes then are the reason, not an answer's */
    uint16_t n_alternatives;
    uint32_t n_bytes;
    uint32_t n_cached; /* prompt positions that were reused; in every record of a turn */
    float
        feedback; /* of the token, for the samplers with a state: mirostat its surprise in bits, adaptive-p its probability; else 0 */
};

struct journal_alternative {
    int32_t token;
    float logprob;
};

/* Bytes that a log needs for n_max tokens with pieces of at most piece_bytes_max and n_alternatives each, and for its end. */
uint64_t journal_log_need(uint32_t n_max, uint32_t piece_bytes_max, uint32_t n_alternatives);

/* ---- a mapped shard ---- */
struct journal {
    uint8_t *base;
    size_t size;
    struct journal_header header; /* a checked copy */
    bool writable;
};

/* Creates the file (0600) at path, reserves all bytes (ERR_NO_MEMORY with the size when the tmpfs is full), writes the header.
 * Returns a descriptor, owned. */
int journal_create(const char *path, uint64_t bytes, uint32_t uid, struct err *err);

/* Maps a shard and checks its header. fd is borrowed. ERR_BAD_FILE when it is not a shard of this layout. */
int journal_map(struct journal *j, int fd, bool writable, struct err *err);
void journal_unmap(struct journal *j);

/* Slot i of a mapped shard (i < header.n_slots). */
struct journal_slot *journal_slot_at(const struct journal *j, uint32_t i);

/* ---- the broker's side ---- */

/* Reserves a free slot and an extent for extra, prompt and log; fills sizes and offsets; state stays JOURNAL_FREE until
 * journal_publish. Bytes for extra are extra_bytes behind struct journal_extra. Returns the slot's index, or -1:
 * ERR_BUSY when all slots or all room is taken (with the figures), ERR_NO_FIT when it could never fit. */
int journal_reserve(struct journal *j, uint32_t n_prompt, uint32_t extra_bytes, uint64_t log_bytes,
                    struct err *err);

/* Where the parts of a reserved slot are, for its writer. */
int32_t *journal_prompt(const struct journal *j, const struct journal_slot *slot);
struct journal_extra *journal_extra_of(const struct journal *j, const struct journal_slot *slot);

/* The slot becomes visible: generation + 1, state QUEUED, release order. */
void journal_publish(struct journal_slot *slot);

/* Stores a state with release order. Which moves are allowed is the broker's table (broker/request.c). */
void journal_set_state(struct journal_slot *slot, enum journal_state state);
enum journal_state journal_get_state(const struct journal_slot *slot);

/* Frees a slot; its prompt and log are scrubbed. */
void journal_free(struct journal *j, struct journal_slot *slot);

/* The slot of a request id, or -1. */
int journal_find(const struct journal *j, const uint8_t id[LIMIT_REQUEST_ID_BYTES]);

/* Bytes of the arena in use. */
uint64_t journal_used(const struct journal *j);

/* ---- reading a log: client, broker, a worker that goes on ---- */
struct journal_reader {
    const struct journal *journal; /* borrowed */
    uint64_t log_off, log_bytes;
    uint64_t off; /* of the next record, within the log */
    uint64_t seq; /* of the last record read */
};

/* A checked copy of one record. bytes and alternatives are the reader's own copies, valid until the next read. */
struct journal_view {
    struct journal_record record;
    struct journal_alternative alternatives[LIMIT_ALTERNATIVES];
    uint32_t n_bytes;
    uint8_t
        bytes[16384]; /* one token releases at most what was held back: stop strings and pieces */
};
#define JOURNAL_RELEASE_BYTES_MAX 16384

/* Begins at the log's start. slot is read once; fails with ERR_BAD_FILE when an offset is out of bounds, ERR_NOT_FOUND when
 * the generation is another one or the slot is free. */
int journal_reader_init(struct journal_reader *r, const struct journal *j, uint32_t slot,
                        uint32_t generation, struct err *err);

/* The next committed record: 1 with a view, 0 when there is none yet, -1 when the log is damaged (ERR_BAD_FILE). */
int journal_read(struct journal_reader *r, struct journal_view *view, struct err *err);

/* Committed records, acquire order. */
uint64_t journal_committed(const struct journal_reader *r);

/* ---- writing a log: its owner ---- */
struct journal_writer {
    struct journal_reader at; /* walked to the end */
    uint32_t epoch;
};

/* Walks to the end of what is committed. The journal must be mapped writable. */
int journal_writer_init(struct journal_writer *w, const struct journal *j, uint32_t slot,
                        uint32_t generation, uint32_t epoch, struct err *err);

/* Writes and commits one record. In `record` only token, logprob, feedback, flags, end, code, n_alternatives, n_cached are
 * read.
 * ERR_FULL when the reserved room is not enough (a bug of the reservation: the caller ends the request). */
int journal_append(struct journal_writer *w, const struct journal_record *record,
                   const struct journal_alternative *alternatives, const void *bytes,
                   uint32_t n_bytes, struct err *err);

/* ---- reader pages: who sleeps is woken ---- */
struct journal_reader_page {
    _Atomic uint32_t
        waiting; /* the client sets it before it sleeps; the worker clears it and writes the eventfd */
    uint32_t reserved[15];
};
