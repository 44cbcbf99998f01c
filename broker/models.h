/* The life of a model.
 *
 *   COLD -> LOADING -> WARM (in RAM) -> RESIDENT (on a device) -> DRAINING -> WARM | COLD
 *
 * The worker binds it while it is LOADING, as soon as its header is accepted, and computes behind the reads; it is RESIDENT when all
 * is there.
 *
 * Whether a model is wanted is a function of all waiting and running work (requests, evaluations, text works, pins,
 * questions to load it), computed anew every turn: an event that gets lost, or a worker that dies at the wrong moment,
 * cannot leave work waiting for a model that nobody wants any more.
 * RAM is a cache under ram_budget; who leaves for whom is said in swap.h. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "broker/catalog.h"
#include "broker/parks.h"
#include "broker/swap.h"
#include "broker/watch.h"
#include "proto/err.h"
#include "proto/journal.h"
#include "proto/link.h"
#include "proto/message.h"

struct broker;
struct post_to;

#define MODELS_MAX        256 /* ever wanted by this broker */
#define MODELS_LOAD_TRIES 2   /* after a fault or an error one retry */
#define MODELS_KILLS_MAX                                                                           \
    50 /* loaders killed from outside, one after another, before it counts as an error */
#define MODELS_BIND_DEATHS_MAX 2  /* workers that died by a fault while they bound it */
#define MODELS_TEXT_TRIES      2  /* text services that ended by an error before they served */
#define MODELS_ASKS_MAX        64 /* questions to load that wait */
#define WINDOW_BYTES           (1ull << 30)  /* of weights, or a quarter of what RAM there is */
#define WINDOW_MANIFEST        (64ull << 20) /* at most, as long as the loader has not said it */
#define MODELS_FINGERPRINT     72 /* bytes of a state's fingerprint, with its NUL; fits a tag */

enum model_state {
    MODEL_COLD,
    MODEL_LOADING,
    MODEL_WARM,
    MODEL_RESIDENT,
    MODEL_DRAINING,
    MODEL_N_STATES,
};

const char *model_state_name(enum model_state state);

/* How far the worker is with it. */
enum model_bind {
    BIND_NONE,
    BIND_ASKED, /* WorkerBind is out */
    BIND_NEEDS, /* it said what state pages it needs; they are being made */
    BIND_STATE, /* WorkerState is out */
    BIND_BOUND,
    BIND_LEAVING, /* WorkerUnbind is out */
};

/* What the worker said about it; stays true while the file is the same. */
struct model_info {
    bool known;
    uint32_t ctx, ctx_train, n_vocab, n_sequences, n_embd, piece_bytes_max;
    uint64_t token_bytes; /* of state, for one position */
    bool generates;
    char arch[64], pooling[16];
    char golden
        [48]; /* what the device answered when the model first ran (WorkerBound); empty: not asked */
};

/* Its weights pass through a window of RAM to a device with memory of its own (models_window.c). */
struct model_window {
    bool on;
    uint64_t bytes; /* of weights that may be in RAM at once: asked for, then as the loader says */
    uint64_t kept;  /* of the segment, that stay there; 0: not known yet */
    uint64_t segment; /* the worker's word (proto/uploaded.h); 0: none */
    int fd;           /* of that segment; 0: none */
};

/* Its text service. */
struct model_text {
    uint32_t child;
    int32_t pid;
    uint64_t born_ms, next_ms; /* next_ms: not born again before */
    bool spawning, ready;
    struct link_peer peer;
    uint8_t token[LIMIT_TOKEN_BYTES];
    uint32_t restarts, tries;
    struct err failed; /* it cannot serve this model: why */
    struct err noted;  /* what the one that lives said */
};

/* Its file has changed while it is here: the new one's head is looked at before the old one goes. */
struct model_check {
    bool spawning;
    uint32_t child;
    struct catalog_file file;    /* being looked at */
    struct catalog_file refused; /* looked at, and no model */
    struct err noted;
    uint64_t stale_ms; /* it was accepted then; who runs has a while to end */
};

struct model {
    uint64_t number; /* of file and KV types: the same under the next broker */
    struct catalog_file file;
    char kv_k[CONFIG_WORD_BYTES], kv_v[CONFIG_WORD_BYTES];
    char lora[CONFIG_PATH_BYTES]; /* an adapter beside the file, PATH:SCALE; empty: none */
    enum model_state state;
    bool pinned, unload; /* unload: it leaves RAM as soon as it can */
    bool policy_pin;     /* the configuration pins it: no client lets it go */
    uint32_t ttl_s;
    struct err error; /* why the last attempt failed */

    /* weights */
    uint64_t segment, segment_bytes; /* 0: none */
    uint64_t digest;
    bool header;   /* the loader accepted the file's header */
    bool adopting; /* a segment that the last broker left is being looked at */
    uint32_t loader;
    int32_t loader_pid;
    bool loader_spawning;
    uint64_t loader_born_ms, next_load_ms;
    uint32_t load_tries, load_kills, loader_restarts;
    struct err load_noted;

    struct model_window window;
    struct model_check check;
    struct model_text text;

    /* device */
    uint32_t worker; /* child that binds or bound it */
    enum model_bind bind;
    uint64_t bind_segment; /* the weights that it was told to bind */
    uint64_t state_segment, state_bytes;
    uint64_t spilled_bytes; /* of weights in its worker's memory: models_spilled */
    uint64_t state_want;    /* what it took the last time: admitted requests rely on that context */
    uint32_t ctx_want;      /* the longest that the last broker promised to requests that live */
    bool state_made, state_fresh;
    char fingerprint[MODELS_FINGERPRINT];
    uint32_t bind_deaths;
    uint64_t next_bind_ms;
    struct model_info info;

    struct watch_model watch;
    struct swap_model swap;
    struct parks_model parks;

    /* this turn's wishes */
    bool want_warm, want_resident;
    uint32_t n_waiting, n_running;
    uint64_t oldest_ms; /* of who waits; 0: nobody */
    uint64_t claim;     /* bytes that are being freed for it */
    uint64_t used_ms;
};

/* Somebody waits for a model to be there. */
struct models_ask {
    struct model *model;
    struct link_peer peer;
    bool has_cookie, resident;
    uint64_t cookie;
    uint64_t born_ms;
};

struct models {
    struct model *list[MODELS_MAX]; /* owned; never moved: others hold pointers */
    uint32_t n;
    struct model *first; /* of those that wait for room: only this one may send others away */
    struct models_ask asks[MODELS_ASKS_MAX];
    uint32_t n_asks;
    uint64_t (*mem_available)(void); /* NULL: the machine's; tests give their own */
    uint64_t load_rate;              /* bytes per second that the last loader measured */
    uint64_t n_swaps;                /* models sent away for another's sake */
};

/* The model of a name (empty: the default one), looked up in the catalog, which is read again when the name is unknown.
 * alias, when not NULL, gets the alias's options. NULL: ERR_NOT_FOUND, ERR_BUSY. */
struct model *models_get(struct broker *b, const char *name, const struct config_alias **alias,
                         struct err *err);
struct model *models_find_number(const struct models *m, uint64_t number);

/* The same file, by the name that a request's slot pins. */
bool models_same_file(const struct model *m, const struct journal_model *pinned);

/* What a journalled slot was promised is kept, by whatever state its model is bound the next time. */
void models_promised(struct model *m, const struct journal_slot *slot);

/* Pins and ttl as the configuration says now, of all models that are known. */
void models_policy(struct broker *b);

/* Load and unload as asked; answered when it is done. Unload: ERR_REFUSED when the configuration pins it. */
void models_load(struct broker *b, const struct post_to *to, struct model *m, bool pin,
                 bool resident);
int models_unload(struct broker *b, struct model *m, struct err *err);

/* Segments and children that the last broker left. */
void models_adopt_segment(struct broker *b, uint64_t segment, uint64_t bytes, const char *tag);
void models_adopt_child(struct broker *b, uint32_t role, uint32_t child, int32_t pid,
                        const uint8_t token[LIMIT_TOKEN_BYTES], const char *tag);
/* After all of them. */
void models_adopted(struct broker *b);

/* The keeper's answers and reports. err.code ERR_NONE: it worked. */
void models_on_loader(struct broker *b, uint64_t number, uint32_t child, int32_t pid,
                      const struct err *err);
void models_on_check(struct broker *b, uint64_t number, uint32_t child, const struct err *err);
void models_on_text(struct broker *b, uint64_t number, uint32_t child, int32_t pid,
                    const struct err *err);
void models_on_state(struct broker *b, uint64_t number, uint64_t segment, const struct err *err);
void models_on_weights(struct broker *b, uint64_t number, uint64_t segment, int fd,
                       const struct err *err);
/* A note of a loader or text service; false when the child is nobody's. */
bool models_on_note(struct broker *b, uint32_t child, uint32_t code, uint64_t value,
                    const char *text);
/* A loader or text service died; false when the child is nobody's. */
bool models_on_died(struct broker *b, uint32_t child, int status);

/* A text service said Hello: false when its token is not one of ours. */
bool models_on_hello(struct broker *b, const struct link_peer *peer, const Hearth__Hello *hello);

/* The worker's answers. */
void models_on_need(struct broker *b, uint32_t child, const Hearth__WorkerNeed *need);
void models_on_bound(struct broker *b, uint32_t child, const Hearth__WorkerBound *bound);
void models_on_unbound(struct broker *b, uint32_t child, uint64_t number);
/* The worker is gone: what it had bound is only warm. */
void models_worker_died(struct broker *b, uint32_t child, bool by_fault);
/* A worker says Hello, and these are all that it has bound: what it was asked before came to nothing, and is asked again. */
void models_worker_lacks(struct broker *b, uint32_t child, const uint64_t *has, size_t n_has);
/* A worker that outlived the last broker has it bound: it is asked for the facts again. */
void models_worker_has(struct broker *b, uint32_t child, uint64_t number);

/* Everything that waits for this model fails. */
void models_fail_waiting(struct broker *b, struct model *m, const struct err *why);

/* Bytes of RAM that its weights take, or will. */
uint64_t models_ram_bytes(const struct model *m);

/* Whether weights can, or shall, be loaded by a window. */
enum window_may {
    WINDOW_NO,
    WINDOW_UNKNOWN /* no worker has said Hello */,
    WINDOW_MAY,
    WINDOW_MUST
};
enum window_may window_may(const struct broker *b);

/* m is to be loaded by one: decides how large it is. */
void window_choose(struct broker *b, struct model *m);

/* Its loader waits for the worker; *uploaded: bytes that this one has taken. */
bool window_awaits_worker(const struct model *m, uint64_t *uploaded);

/* The keeper gave the word's segment: fd (taken; -1: none). */
void models_on_uploaded(struct broker *b, uint64_t number, uint64_t segment, int fd);

/* Bytes of RAM that models take. */
uint64_t models_used(const struct models *m);

/* Bytes that the machine can give. */
uint64_t models_available(const struct models *m);

/* Weights that a device left to its worker's memory, beside the segment, as long as it has the model. */
static inline uint64_t models_spilled(const struct model *m)
{
    return m->worker && m->bind != BIND_NONE ? m->spilled_bytes : 0;
}

/* Gets a model out of RAM, now or in the turns to come; for_room: for another's sake, so perhaps only its state goes. */
void models_evict(struct broker *b, struct model *m, bool for_room, const char *why);

/* The text service whose child this is, or NULL. */
struct model *models_find_text(const struct models *m, uint32_t child);

void models_act(struct broker *b);
void models_clear(struct models *m);

/* A death's kind, for everybody who watches children. */
bool models_fault_of(int status);
void models_status_text(int status, char *out, size_t size);
