/* Inside world.h: its tables, letters under way, the keeper and the children that it bears. */
#pragma once

#include "broker/door.h"
#include "broker/recover.h"
#include "proto/progress.h"
#include "proto/uploaded.h"
#include "tests/broker/rig.h"
#include "worker/batch.h"

#define WORLD_MODELS   3
#define WORLD_CLIENTS  30
#define WORLD_ASKS     2000 /* requests in a life */
#define WORLD_HELD     64
#define WORLD_SEGMENTS 256
#define WORLD_LETTERS  4096
#define WORLD_CHILDREN 4096
#define WORLD_KEPT     32
#define WORLD_WINDOW   (1u << 20)

struct letter {
    bool to_broker;
    struct link_peer peer;
    uint64_t at_ms;
    size_t len;
    uint8_t *data, *payload; /* owned */
    size_t payload_len;
};

struct world_child {
    uint32_t number, role;
    bool lives;
    uint8_t token[LIMIT_TOKEN_BYTES];
    char tag[LIMIT_TAG_BYTES];
    uint64_t born_ms, work_ms; /* a loader: so long */
    bool headed;               /* it has accepted the file's header */
    uint64_t segment;          /* a loader: what it fills */
    uint64_t window_of;        /* a loader that reads by a window: the weights' segment */
};

struct world_segment {
    uint64_t number, bytes;
    char tag[LIMIT_TAG_BYTES];
    bool whole;        /* weights that were read to the end */
    bool windowed;     /* weights that pass through, once */
    uint32_t taken_by; /* the worker that was told to take them */
};

/* What a state of so many bytes holds: one sequence of so many positions. */
#define WORLD_STATE_MIN        (2u << 20) /* half the weights: every budget here has them */
#define WORLD_CTX(state_bytes) ((uint32_t)((state_bytes) / 512))
#define WORLD_PAGE             64 /* positions, as in worker/kvcache.h */

struct world_held {
    uint64_t shard;
    uint32_t slot, generation, n; /* tokens of its log */
    bool open, finished;
    bool seated, parked; /* has a place in the cache; had to give it to an older one */
    uint64_t arrival;
    int model;
};

struct world_bound {
    uint64_t number; /* 0: not here */
    bool asked, needing, ready;
    bool uploaded; /* weights by a window: all of them are here */
    bool room_freed;
    uint64_t until_ms; /* reading or starting: so long */
    uint64_t since_ms, state_bytes, segment;
};

struct ask {
    uint8_t id[LIMIT_REQUEST_ID_BYTES];
    int client, model;
    uint32_t n_prompt, n_max, n_read;
    int priority;
    bool accepted, ended, acked, cancelled;
    enum journal_end end;
    enum err_code code;
    uint32_t slot, generation;
    uint64_t asked_ms, accepted_ms, first_ms, ended_ms, again_ms;
    uint64_t last_ms, gap_ms; /* when something came last; the longest that nothing came */
};

struct world {
    uint64_t seed, chance, now_ms;
    struct broker *b;
    uint32_t epoch;
    bool broken;           /* the broker ends by itself */
    int line, broker_line; /* the two ends; the broker borrows its own */
    char dir[64];
    struct journal journal; /* the one shard, mapped for worker and clients */
    int shard_fd;
    struct world_child children[WORLD_CHILDREN];
    uint32_t n_children;
    struct world_segment segments[WORLD_SEGMENTS];
    uint32_t n_segments;
    struct letter letters[WORLD_LETTERS];
    uint32_t n_letters;
    /* the worker */
    struct world_held held[WORLD_HELD];
    struct world_bound bound[WORLD_MODELS];
    struct {
        uint64_t model, used;
        uint32_t generation, n; /* tokens that state pages hold, whoever computed them */
    } fed[LIMIT_SHARD_SLOTS];
    uint64_t arrivals;
    uint32_t cache;  /* positions of a model's state pages; 0: enough for all */
    uint32_t worker; /* child number, 0: none lives */
    bool keeps;      /* its device reads weights by itself: they stay mapped until WorkerForget */
    struct {
        uint64_t segment; /* 0: free */
        bool leaving;     /* when it is unbound */
    } kept[WORLD_KEPT];
    uint32_t link;     /* its connection, anew for each broker it hears of */
    uint64_t hears_ms; /* when it hears of the broker that it has greeted already; 0: it has */
    uint64_t silent_until_ms, broker_silent_until_ms;
    uint8_t *progress_page;
    _Atomic uint32_t *progress;
    int progress_fd;
    uint32_t rows; /* prompt tokens and decode tokens of one step */
    uint32_t n_sequences;
    uint64_t ram_budget;
    /* clients */
    struct {
        bool here;
        uint64_t number, flow;
    } clients[WORLD_CLIENTS];
    bool one_flow; /* FIFO: everybody is the same flow */
    struct ask asks[WORLD_ASKS];
    uint32_t n_asks;
    uint64_t served[WORLD_CLIENTS]; /* tokens, prompts too */
    /* how it goes */
    uint64_t load_ms, step_ms, bind_ms;
    uint32_t n_loads_lost; /* so many loaders will die before they have done their work */
    uint64_t trouble_ms;   /* when the last fault's own pause was over */
    uint64_t bound_ms; /* no unfinished request goes without a token for longer; 0: not looked at */
    uint64_t most_ms;  /* the same in the midst of faults */
    uint64_t longest_ms;   /* that one went */
    uint64_t unix_jump_ms; /* what somebody did to the wall clock; wraps */
    uint32_t n_swaps, n_worker_deaths, n_broker_deaths;
};

static struct world *world_now;
/* The device has memory of its own, and weights go there by a window; and it has room for one model. */
static bool world_by_window, world_one_fits;
static bool world_in_broker; /* the broker's own code runs: where a test lets allocations fail */

#define world_fail(w, ...)                                                                         \
    do {                                                                                           \
        printf("seed %llu, %llu ms: ", (unsigned long long)(w)->seed,                              \
               (unsigned long long)((w)->now_ms - 1000000));                                       \
        printf(__VA_ARGS__);                                                                       \
        printf("\nreplay: test_broker_simulation %llu\n", (unsigned long long)(w)->seed);          \
        fflush(stdout);                                                                            \
        abort();                                                                                   \
    } while (0)

static inline uint64_t draw(struct world *w, uint64_t below)
{
    w->chance = w->chance * 6364136223846793005ull + 1442695040888963407ull;
    return (w->chance >> 33) % below;
}

static inline int32_t token_at(const uint8_t *id, uint64_t n)
{
    return (int32_t)((id[0] + id[1] * 251u + n * 7919u) % 1000);
}

/* ---- letters ---- */

/* On its way: per peer and direction in order, each takes 0 to 4 ms. */
static inline void post(struct world *w, bool to_broker, const struct link_peer *peer,
                        const void *data, size_t len, const void *payload, size_t payload_len)
{
    assert_true(w->n_letters < WORLD_LETTERS);
    uint64_t at = w->now_ms + draw(w, 5);
    for (uint32_t i = 0; i < w->n_letters; i++) {
        const struct letter *l = &w->letters[i];
        if (l->to_broker == to_broker && link_peer_equal(&l->peer, peer) && l->at_ms > at) {
            at = l->at_ms;
        }
    }
    struct letter *l = &w->letters[w->n_letters++];
    *l = (struct letter){ .to_broker = to_broker, .peer = *peer, .at_ms = at, .len = len };
    l->data = malloc(len);
    memcpy(l->data, data, len);
    if (payload_len) {
        l->payload = malloc(payload_len);
        l->payload_len = payload_len;
        memcpy(l->payload, payload, payload_len);
    }
}

static inline void say(struct world *w, const struct link_peer *peer,
                       Hearth__Envelope__BodyCase which, void *body, const void *payload,
                       size_t payload_len)
{
    static uint8_t packed[LIMIT_ENVELOPE_BYTES];
    struct err err;
    Hearth__Envelope e = message_envelope(which, body);
    e.has_cookie = true;
    e.cookie = 1;
    size_t len = message_pack(&e, packed, &err);
    assert_true(len > 0);
    post(w, true, peer, packed, len, payload, payload_len);
}

static inline void lose_letters(struct world *w, const struct link_peer *peer)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < w->n_letters; i++) {
        struct letter *l = &w->letters[i];
        if (!peer || link_peer_equal(&l->peer, peer)) {
            free(l->data);
            free(l->payload);
        } else {
            w->letters[kept++] = *l;
        }
    }
    w->n_letters = kept;
}

static inline struct link_peer peer_of(uint8_t kind, uint32_t number)
{
    struct link_peer p = { .len = 5, .id = { kind } };
    memcpy(p.id + 1, &number, sizeof number);
    return p;
}

/* As the broker knows the worker that lives. */
static inline struct link_peer worker_peer(const struct world *w)
{
    return peer_of('W', w->worker + (w->link << 16));
}

int __wrap_link_send(struct link *link, const struct link_peer *peer, const void *envelope,
                     size_t len, const void *payload, size_t payload_len, struct err *err);
void __wrap_link_close(struct link **link);
uint64_t __wrap_broker_unix_ms(void);

int __wrap_link_send(struct link *link, const struct link_peer *peer, const void *envelope,
                     size_t len, const void *payload, size_t payload_len, struct err *err)
{
    (void)link, (void)err;
    bool in_broker = world_in_broker;
    world_in_broker = false;
    post(world_now, false, peer, envelope, len, payload, payload_len);
    world_in_broker = in_broker;
    return 0;
}

void __wrap_link_close(struct link **link)
{
    *link = NULL;
}

uint64_t __wrap_broker_unix_ms(void)
{
    return 1800000000000ull + world_now->now_ms + world_now->unix_jump_ms;
}

/* ---- the keeper ---- */

static inline struct world_child *child_of(struct world *w, uint32_t number)
{
    for (uint32_t i = 0; i < w->n_children; i++) {
        if (w->children[i].number == number) {
            return &w->children[i];
        }
    }
    return NULL;
}

static inline void tell_line(struct world *w, struct channel_msg *msg, int fd)
{
    struct err err;
    assert_ok(channel_send(w->line, msg, &fd, fd >= 0, &err), err);
}

static inline void die(struct world *w, struct world_child *c, int status)
{
    struct channel_msg died = { .op = CHANNEL_DIED, .child = c->number, .status = status };
    struct link_peer peer = worker_peer(w);
    if (!c->lives) {
        return;
    }
    c->lives = false;
    if (c->number == w->worker) {
        w->worker = 0;
        w->hears_ms = 0;
        w->n_worker_deaths++;
        memset(w->held, 0, sizeof w->held);
        memset(w->bound, 0, sizeof w->bound);
        memset(w->kept, 0, sizeof w->kept);
        lose_letters(w, &peer);
    }
    tell_line(w, &died, -1);
}

/* A loader that finds no room in what it was told of the budget fails its model: that is the broker's own to have seen. */
static inline void check_room(struct world *w, const struct channel_msg *spawn)
{
    for (uint32_t at = 0; at < spawn->argv_bytes; at += (uint32_t)strlen(spawn->text + at) + 1) {
        const char *next = spawn->text + at + strlen(spawn->text + at) + 1;
        uint64_t least = world_by_window ? WORLD_WINDOW : 4u << 20;
        if (strcmp(spawn->text + at, "--ram-budget") == 0 && strtoull(next, NULL, 10) < least) {
            world_fail(w, "%s: a loader is born with room for %s bytes", spawn->tag, next);
        }
    }
}

/* Weights that were whole are dropped when no worker has them mapped any more: else their memory would not be free. */
static inline void check_drop(struct world *w, const struct world_segment *s)
{
    for (int i = 0; i < WORLD_KEPT && s->whole && !w->b->stopping; i++) {
        if (w->kept[i].segment == s->number) {
            world_fail(w, "%s: dropped while the worker has it", s->tag);
        }
    }
}

static inline struct world_segment *segment_of(struct world *w, uint64_t number)
{
    for (uint32_t i = 0; i < w->n_segments; i++) {
        if (w->segments[i].number == number) {
            return &w->segments[i];
        }
    }
    return NULL;
}

/* A loader that reads by a window says so on its weights: they pass through once. */
static inline void note_window(struct world *w, struct world_child *c,
                               const struct channel_msg *spawn)
{
    struct world_segment *weights = segment_of(w, spawn->grants[0].segment);
    if (c->role == HERITAGE_LOADER && spawn->n_grants == 2 && weights) {
        struct world_segment *word = segment_of(w, spawn->grants[1].segment);
        if (!word || word->bytes != UPLOADED_SEGMENT_BYTES || weights->taken_by) {
            world_fail(w, "%s: a window without a word of its own", spawn->tag);
        }
        weights->windowed = true;
        c->window_of = weights->number;
    }
}

static inline void worker_hello(struct world *w);
static inline bool worker_takes_all(struct world *w, uint64_t segment);

static inline void keeper_answer(struct world *w, const struct channel_msg *msg)
{
    struct channel_msg answer = { .op = CHANNEL_DONE,
                                  .cookie = msg->cookie,
                                  .segment = msg->segment };
    struct world_child *c;
    int fd = -1;
    switch (msg->op) {
    case CHANNEL_LIST:
        for (uint32_t i = 0; i < w->n_children; i++) {
            c = &w->children[i];
            struct channel_msg row = { .op = CHANNEL_CHILD, .child = c->number, .role = c->role };
            row.pid = (int32_t)c->number + 1000;
            memcpy(row.token, c->token, LIMIT_TOKEN_BYTES);
            memcpy(row.tag, c->tag, LIMIT_TAG_BYTES);
            if (c->lives) {
                tell_line(w, &row, -1);
            }
        }
        for (uint32_t i = 0; i < w->n_segments; i++) {
            struct channel_msg row = { .op = CHANNEL_SEGMENT,
                                       .segment = w->segments[i].number,
                                       .bytes = w->segments[i].bytes };
            memcpy(row.tag, w->segments[i].tag, LIMIT_TAG_BYTES);
            tell_line(w, &row, -1);
        }
        break;
    case CHANNEL_SPAWN:
        assert_true(w->n_children < WORLD_CHILDREN);
        check_room(w, msg);
        c = &w->children[w->n_children++];
        *c = (struct world_child){ .number = w->n_children + 1,
                                   .role = msg->role,
                                   .lives = true,
                                   .born_ms = w->now_ms,
                                   .work_ms = w->load_ms + draw(w, w->load_ms + 1) };
        c->segment = msg->n_grants ? msg->grants[0].segment : 0;
        memcpy(c->token, msg->token, LIMIT_TOKEN_BYTES);
        memcpy(c->tag, msg->tag, LIMIT_TAG_BYTES);
        note_window(w, c, msg);
        answer.child = c->number;
        answer.pid = (int32_t)c->number + 1000;
        break;
    case CHANNEL_KILL:
        c = child_of(w, msg->child);
        tell_line(w, &answer, -1);
        if (c) {
            die(w, c, SIGKILL);
        }
        return;
    case CHANNEL_CREATE:
    case CHANNEL_DEPOSIT:
        assert_true(w->n_segments < WORLD_SEGMENTS);
        w->segments[w->n_segments] = (struct world_segment){ .number = msg->segment,
                                                             .bytes = msg->bytes };
        memcpy(w->segments[w->n_segments++].tag, msg->tag, LIMIT_TAG_BYTES);
        break;
    case CHANNEL_DROP:
        for (uint32_t i = 0; i < w->n_segments; i++) {
            if (w->segments[i].number == msg->segment) {
                check_drop(w, &w->segments[i]);
                w->segments[i] = w->segments[--w->n_segments];
            }
        }
        break;
    case CHANNEL_TAKE:
        fd = -1;
        for (uint32_t i = 0; i < w->n_segments; i++) {
            if (w->segments[i].number == msg->segment) {
                bool state = strncmp(w->segments[i].tag, "state", 5) == 0;
                bool word = strncmp(w->segments[i].tag, "window", 6) == 0;
                const struct rig like = { .weights_bytes = 4u << 20,
                                          .window = w->segments[i].windowed ? WORLD_WINDOW : 0 };
                fd = state || word ? dup(w->progress_fd) : rig_weights(&like);
            }
        }
        answer.status = fd < 0 ? ERR_NOT_FOUND : 0;
        break;
    default:
        break;
    }
    tell_line(w, &answer, fd);
    if (fd >= 0) {
        close(fd);
    }
}

/* Questions and answers until the line is quiet. */
static inline void work_line(struct world *w)
{
    static struct channel_msg msg;
    int fds[CHANNEL_FDS_MAX];
    struct err err;
    for (bool quiet = false; !quiet;) {
        quiet = true;
        if (keeper_line_flush(w->b->keeper, &err) < 0) {
            w->broken = true; /* as the broker's loop: it ends, its successor begins anew */
            return;
        }
        while (channel_recv(w->line, &msg, fds, false, &err) > 0) {
            for (int i = 0; i < CHANNEL_FDS_MAX; i++) {
                if (fds[i] >= 0) {
                    close(fds[i]);
                }
            }
            keeper_answer(w, &msg);
            quiet = false;
        }
        broker_drain_keeper(w->b);
    }
}

/* Loaders come to their end; workers wake up and say Hello. */
static inline void work_children(struct world *w, bool fallible)
{
    for (uint32_t i = 0; i < w->n_children; i++) {
        struct world_child *c = &w->children[i];
        struct channel_msg note = { .op = CHANNEL_NOTE, .child = c->number };
        if (c->lives && c->role == HERITAGE_LOADER && !c->headed &&
            w->now_ms >= c->born_ms + c->work_ms / 2) {
            c->headed = true;
            note.code = CHANNEL_NOTE_HEADER;
            note.value = 4u << 20;
            tell_line(w, &note, -1);
        }
        if (!c->lives || w->now_ms < c->born_ms + c->work_ms) {
            continue;
        }
        if (c->role == HERITAGE_LOADER) {
            if (fallible && (w->n_loads_lost > 0 || draw(w, 10) == 0)) {
                w->n_loads_lost -= w->n_loads_lost > 0;
                die(w, c, SIGKILL);
                continue;
            }
            if (c->window_of && !worker_takes_all(w, c->window_of)) {
                continue; /* it waits for a worker, for ever if need be */
            }
            for (uint32_t k = 0; k < w->n_segments; k++) {
                w->segments[k].whole |= w->segments[k].number == c->segment && !c->window_of;
            }
            note.code = CHANNEL_NOTE_LOADED;
            note.value = 100000000;
            tell_line(w, &note, -1);
            c->lives = false;
            struct channel_msg died = { .op = CHANNEL_DIED, .child = c->number, .status = 0 };
            tell_line(w, &died, -1);
        } else if (c->role == HERITAGE_WORKER && w->worker == 0) {
            w->worker = c->number;
            w->link++;
            worker_hello(w);
        }
    }
}
