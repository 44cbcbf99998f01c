/* Parked conversations: idle state of models as files (proto/parked.h), which outlive worker, model, swap and, in a directory
 * on disk, everything. The worker writes and reads them by descriptors that it is given; here they get their names, their
 * budget and their owners, and a request is told of the one that its prompt begins like.
 *
 * Where: --state-dir; without it beside the journal in memory, where they end with a clean stop. A file is named
 * KEY-UID-RANDOM.kv (KEY: engine and model, and which file that model was); it is written under another name and renamed when it is whole. Which file fits is decided by content: the key (model,
 * KV types, engine), the principal and the tokens. A longer file of the same conversation replaces the shorter one; beyond the
 * budget the one used longest ago goes. What is in memory never takes more than the models leave of ram_budget, so it
 * is the first to go when room is needed.
 *
 * When: a model that has been quiet for a moment, or busy for a minute, parks what changed; one that leaves its device
 * and a service that stops wait for that, each a bounded time. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/message.h"

struct broker;
struct model;
struct request;
struct worker;

#define PARKS_FILES_MAX 1024
#define PARKS_HELD_MAX                                                                             \
    64 /* files whose descriptor the keeper holds: the worker takes them without a delay */
#define PARKS_TOKENS_MIN  64           /* in common, for a file to be worth its reading */
#define PARKS_QUIET_MS    1000         /* after a model's last request */
#define PARKS_BUSY_MS     60000        /* a model that is never quiet parks so often */
#define PARKS_LEAVE_MS    1000         /* a model that leaves its device waits so long for it */
#define PARKS_STOP_MS     2500         /* all of them at a stop; less than the keeper's patience */
#define PARKS_RETRY_MS    30000        /* after a disk said no */
#define PARKS_DISK_BUDGET (8ull << 30) /* when nobody says; in memory an eighth of ram_budget */

struct parks_file {
    uint64_t engine, key, name;
    uid_t uid;
    uint64_t tag_hi, tag_lo; /* the request that computed it last */
    int32_t *tokens;         /* owned */
    uint32_t n_tokens;
    uint64_t bytes;
    uint64_t used_s;  /* unix; the file's mtime */
    uint64_t segment; /* the keeper's number for it; 0: not held there */
};

struct parks {
    bool on, in_memory;
    char dir[4096];
    struct parks_file *list; /* owned [PARKS_FILES_MAX] */
    uint32_t n;
    uint64_t bytes;
    uint64_t stop_until_ms;
    uint64_t n_parked, n_offered; /* ever, by this broker */
};

/* A model's part. */
struct parks_model {
    uint64_t engine;            /* the key that the worker says, in its files; 0: none fit */
    uint64_t key;               /* of this very file by that engine, in their names */
    bool dirty;                 /* something ended since the worker had nothing more to park */
    uint64_t since_ms, last_ms; /* of that: the first and the last time */
    uint64_t segment, temp;     /* being written; 0: nothing is */
    uint64_t not_before_ms;
    uint32_t child; /* by this worker */
    bool told;
    int fd;                  /* owned while segment is set */
    uint64_t leave_until_ms; /* it leaves and is waited for until then; 0: not */
};

/* Finds the directory and what is in it; without one there is no parking, and the log says why. */
void parks_open(struct broker *b);
/* With remove, files in memory go, and their directory. */
void parks_close(struct broker *b, bool remove);

/* A model is bound (its key as the worker says), or its worker is gone. */
void parks_bound(struct broker *b, struct model *m, uint64_t key);
void parks_unbound(struct broker *b, struct model *m);

/* A request of this model left the worker: there may be something to park. */
void parks_touched(struct broker *b, struct model *m);

/* Whether a model that is to leave its device should wait a little; asked every turn. */
bool parks_holds(struct broker *b, struct model *m);

/* Before a worker takes a request: finds a file for it and gets it there. False: not yet, a turn will come. r->parked is the
 * segment to tell the worker, or 0. */
bool parks_ready(struct broker *b, struct request *r, struct worker *w);

/* The worker wrote one, or had none to write, or failed. */
void parks_on_parked(struct broker *b, uint32_t child, const Hearth__WorkerParked *msg);

/* Bytes of memory that files take now: 0 when they are on a disk. */
uint64_t parks_memory(const struct broker *b);

/* Bytes that files may take now. */
uint64_t parks_budget(const struct broker *b);

/* Removes all files: their memory is wanted. */
void parks_drop_all(struct broker *b);

/* At a stop: nothing more is to be waited for. */
bool parks_settled(struct broker *b);

void parks_act(struct broker *b);
