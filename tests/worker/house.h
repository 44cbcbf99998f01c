/* A worker without its house: the loop of serve.c in the test's own thread, a ROUTER where the broker would be, a table
 * where the keeper would be, and a journal shard of its own. For test_serve*.c. */
#pragma once

#include "tests/test.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loader/load.h"
#include "proto/channel.h"
#include "proto/heritage.h"
#include "proto/journal.h"
#include "proto/link.h"
#include "proto/message.h"
#include "proto/pieces.h"
#include "proto/shm.h"
#include "worker/serve.h"

#define HOUSE_CHILD       7u
#define HOUSE_WEIGHTS     100u
#define HOUSE_SHARD       200u
#define HOUSE_READER      300u
#define HOUSE_MODEL       1u
#define HOUSE_SEGMENTS    64
#define HOUSE_SHARD_BYTES (8u << 20)

#define HOUSE_SLOTS 64 /* whose ends are counted one by one */

struct house {
    char dir[32], endpoint[128], shard_path[128];
    struct {
        uint64_t number;
        int fd[2];
    } segments[HOUSE_SEGMENTS];
    uint32_t n_segments;
    uint64_t next_segment;
    uint64_t state_segment;
    uint64_t weights_segment; /* what house_bind names */
    struct segments from;
    int channel[2];
    struct link *router;
    struct link_peer peer;
    struct message_arena arena;
    struct journal journal;
    struct journal_reader_page *page;
    int event_fd;
    struct backend *backend;
    struct serve *serve;
    struct weights weights;
    struct pieces pieces;
    /* what was heard */
    uint32_t n_finished_of[HOUSE_SLOTS]; /* by slot */
    uint32_t n_hello, n_bound, n_unbound, n_forgot, n_released, n_finished, n_evaluated, n_held,
        n_need;
    bool bound_ok, evaluated_ok, generates;
    uint32_t ctx, n_sequences;
    double perplexity;
    uint64_t n_rows, n_cols;
    char code[32];
    uint64_t state_bytes_max;
    bool keeps;
    uint64_t kept, forgot; /* the last one named */
    uint32_t n_kept;
};

static inline int house_take(void *arg, uint64_t segment, int fds[2], struct err *err)
{
    struct house *h = arg;
    for (uint32_t i = 0; i < h->n_segments; i++) {
        if (h->segments[i].number == segment) {
            for (int k = 0; k < 2; k++) {
                fds[k] = h->segments[i].fd[k] >= 0 ? dup(h->segments[i].fd[k]) : -1;
            }
            return 0;
        }
    }
    return err_set(err, ERR_NOT_FOUND, "no segment %u", (unsigned)segment);
}

static inline void house_deposit(struct house *h, uint64_t number, int fd, int other)
{
    assert_true(h->n_segments < HOUSE_SEGMENTS);
    h->segments[h->n_segments].number = number;
    h->segments[h->n_segments].fd[0] = fd;
    h->segments[h->n_segments++].fd[1] = other;
}

static inline int house_segment_fd(struct house *h, uint64_t number)
{
    for (uint32_t i = 0; i < h->n_segments; i++) {
        if (h->segments[i].number == number) {
            return h->segments[i].fd[0];
        }
    }
    return -1;
}

static inline int house_load(const char *path, enum weights_layout layout)
{
    struct err err;
    struct load *l = load_open(path, false, &err);
    assert_non_null(l);
    assert_ok(load_parse(l, layout, &err), err);
    int fd = memfd_create("weights", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    assert_ok(load_publish(l, fd, &err), err);
    uint32_t n_files;
    const struct source_file *files = load_files(l, &n_files);
    struct source *source = source_open(SOURCE_PREAD, files, n_files, 0, &err);
    assert_non_null(source);
    assert_ok(load_fill(l, source, &err), err);
    source_close(&source);
    load_close(&l);
    return fd;
}

static inline void house_say(struct house *h, Hearth__Envelope__BodyCase which, void *body)
{
    static uint8_t packed[LIMIT_ENVELOPE_BYTES];
    struct err err;
    Hearth__Envelope e = message_envelope(which, body);
    size_t len = message_pack(&e, packed, &err);
    assert_true(len > 0);
    assert_ok(link_send(h->router, &h->peer, packed, len, NULL, 0, &err), err);
}

/* Answers as a broker would; counts what it heard. */
static inline void house_hear(struct house *h, const struct link_msg *msg)
{
    struct err err;
    Hearth__Envelope *e = message_unpack(&h->arena, msg->envelope, msg->envelope_len, &err);
    assert_non_null(e);
    switch (e->body_case) {
    case HEARTH__ENVELOPE__BODY_HELLO: {
        h->peer = msg->peer; /* the last words of the one before may come later */
        h->n_hello++;
        h->n_held = (uint32_t)e->hello->n_held;
        h->keeps = e->hello->keeps;
        h->n_kept = (uint32_t)e->hello->n_kept;
        h->kept = h->n_kept ? e->hello->kept[h->n_kept - 1] : 0;
        Hearth__Welcome welcome = HEARTH__WELCOME__INIT;
        welcome.epoch = h->n_hello;
        house_say(h, HEARTH__ENVELOPE__BODY_WELCOME, &welcome);
        break;
    }
    case HEARTH__ENVELOPE__BODY_WORKER_NEED: {
        Hearth__WorkerState state = HEARTH__WORKER_STATE__INIT;
        h->n_need++;
        state.model = e->worker_need->model;
        state.fresh = h->state_segment == 0;
        if (state.fresh) {
            int fd = shm_create("state", e->worker_need->state_bytes, true, &err);
            assert_true(fd >= 0);
            h->state_segment = ++h->next_segment;
            house_deposit(h, h->state_segment, fd, -1);
        }
        state.segment = h->state_segment;
        house_say(h, HEARTH__ENVELOPE__BODY_WORKER_STATE, &state);
        break;
    }
    case HEARTH__ENVELOPE__BODY_WORKER_BOUND:
        h->n_bound++;
        h->bound_ok = !e->worker_bound->has_code;
        h->ctx = e->worker_bound->ctx;
        h->n_sequences = e->worker_bound->n_sequences;
        h->generates = e->worker_bound->generates;
        if (!h->bound_ok) {
            message_copy(h->code, sizeof h->code, e->worker_bound->code);
        }
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_UNBOUND:
        h->n_unbound++;
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_FORGOT:
        h->n_forgot++;
        h->forgot = e->worker_forgot->segment;
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_RELEASED:
        h->n_released++;
        h->code[0] = 0;
        if (e->worker_released->has_code) {
            message_copy(h->code, sizeof h->code, e->worker_released->code);
        }
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_FINISHED:
        h->n_finished++;
        h->n_finished_of[e->worker_finished->slot % HOUSE_SLOTS]++;
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_EVALUATED:
        h->n_evaluated++;
        h->evaluated_ok = !e->worker_evaluated->has_code;
        h->perplexity = e->worker_evaluated->perplexity;
        h->n_rows = e->worker_evaluated->n_rows;
        h->n_cols = e->worker_evaluated->n_cols;
        if (!h->evaluated_ok) {
            message_copy(h->code, sizeof h->code, e->worker_evaluated->code);
        }
        break;
    default:
        break;
    }
}

/* A turn of the worker, then everything that it said. */
static inline int house_turn(struct house *h)
{
    struct err err;
    struct link_msg msg;
    int going = serve_turn(h->serve, 2, &err);
    if (going < 0) {
        fail_msg("worker: %s", err.text);
    }
    while (link_recv(h->router, &msg, &err) > 0) {
        house_hear(h, &msg);
    }
    return going;
}

/* Turns until the condition holds; far more turns than any of these needs. */
#define HOUSE_UNTIL(h, condition)                                                                  \
    do {                                                                                           \
        int turns_ = 0;                                                                            \
        while (!(condition)) {                                                                     \
            if (++turns_ > 20000) {                                                                \
                fail_msg("never: %s", #condition);                                                 \
            }                                                                                      \
            house_turn(h);                                                                         \
        }                                                                                          \
    } while (0)

static inline void house_listen(struct house *h)
{
    struct err err;
    char path[64];
    snprintf(path, sizeof path, "%s/broker", h->dir);
    unlink(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un {
        sa_family_t family;
        char path[108];
    } address = { .family = AF_UNIX };
    snprintf(address.path, sizeof address.path, "%s", path);
    assert_int_equal(0, bind(fd, (struct sockaddr *)(void *)&address, sizeof address));
    assert_int_equal(0, listen(fd, 16));
    h->router = link_listen(h->endpoint, fd, &err);
    assert_non_null(h->router);
}

static inline void house_start_worker(struct house *h, uint32_t child)
{
    struct err err;
    struct serve_options options = {
        .endpoint = h->endpoint,
        .child = child,
        .device = "cpu",
        .threads = 1,
        .channel_fd = h->channel[1],
        .signal_fd = -1,
        .segments = h->from,
    };
    h->serve = serve_create(&options, h->backend, &err);
    assert_non_null(h->serve);
}

/* Everything but the worker and its channel. */
static inline void house_furnish(struct house *h, const char *model)
{
    struct err err;
    memset(h, 0, sizeof *h);
    snprintf(h->dir, sizeof h->dir, "/tmp/hearth-test-XXXXXX");
    assert_non_null(mkdtemp(h->dir));
    snprintf(h->endpoint, sizeof h->endpoint, "ipc://%s/broker", h->dir);
    snprintf(h->shard_path, sizeof h->shard_path, "%s/shard", h->dir);
    h->from = (struct segments){ .take = house_take, .arg = h };
    h->next_segment = 1000;
    h->weights_segment = HOUSE_WEIGHTS;
    house_listen(h);
    int fd = journal_create(h->shard_path, HOUSE_SHARD_BYTES, 0, &err);
    assert_true(fd >= 0);
    assert_ok(journal_map(&h->journal, fd, true, &err), err);
    house_deposit(h, HOUSE_SHARD, fd, -1);
    int page = shm_create("reader", 4096, true, &err);
    size_t bytes;
    h->page = shm_map(page, true, &bytes, &err);
    h->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    house_deposit(h, HOUSE_READER, page, h->event_fd);
    int weights = house_load(model, WEIGHTS_LAYOUT_ROWS16);
    house_deposit(h, HOUSE_WEIGHTS, weights, -1);
    assert_ok(weights_map(&h->weights, weights, &err), err);
    assert_ok(pieces_build(&h->pieces, &h->weights, &err), err);
}

static inline void house_open_on(struct house *h, const char *model, const char *device)
{
    struct err err;
    house_furnish(h, model);
    assert_int_equal(0, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, h->channel));
    const struct backend_options options = { .n_threads = 1 };
    h->backend = backend_open(device, &options, &err);
    assert_non_null(h->backend);
    house_start_worker(h, HOUSE_CHILD);
    HOUSE_UNTIL(h, h->n_hello == 1);
}

static inline void house_open(struct house *h, const char *model)
{
    house_open_on(h, model, "cpu");
}

static inline void house_close(struct house *h)
{
    char path[160];
    serve_destroy(&h->serve);
    backend_close(&h->backend);
    link_close(&h->router);
    pieces_clear(&h->pieces);
    weights_unmap(&h->weights);
    journal_unmap(&h->journal);
    munmap(h->page, 4096);
    for (uint32_t i = 0; i < h->n_segments; i++) {
        close(h->segments[i].fd[0]);
        if (h->segments[i].fd[1] >= 0) {
            close(h->segments[i].fd[1]);
        }
    }
    for (int i = 0; i < 2; i++) {
        if (h->channel[i] >= 0) {
            close(h->channel[i]);
        }
    }
    unlink(h->shard_path);
    snprintf(path, sizeof path, "%s/broker", h->dir);
    unlink(path);
    rmdir(h->dir);
}

static inline void house_bind(struct house *h, uint32_t n_sequences, uint64_t state_bytes_max)
{
    Hearth__WorkerBind bind = HEARTH__WORKER_BIND__INIT;
    uint32_t before = h->n_bound;
    bind.model = HOUSE_MODEL;
    bind.segment = h->weights_segment;
    bind.name = message_str("tiny");
    bind.has_ctx = true;
    bind.ctx = 512;
    bind.has_n_sequences = true;
    bind.n_sequences = n_sequences;
    bind.has_state_bytes_max = state_bytes_max > 0;
    bind.state_bytes_max = state_bytes_max;
    house_say(h, HEARTH__ENVELOPE__BODY_WORKER_BIND, &bind);
    HOUSE_UNTIL(h, h->n_bound > before);
    if (!h->bound_ok) {
        fail_msg("bind: %s", h->code);
    }
}

/* Admits a request as the broker does. stop: NULL or one stop string, with params->n_banned one banned string. */
static inline int house_admit(struct house *h, const int32_t *prompt, uint32_t n_prompt,
                              const struct journal_params *params, const char *stop, uint32_t owner)
{
    struct err err;
    static uint8_t ids;
    uint32_t stop_len = stop ? (uint32_t)strlen(stop) : 0;
    uint64_t log_bytes = journal_log_need(params->n_max, 64, params->n_alternatives);
    int slot_idx = journal_reserve(&h->journal, n_prompt, stop ? 4 + stop_len : 0, log_bytes, &err);
    assert_true(slot_idx >= 0);
    struct journal_slot *slot = journal_slot_at(&h->journal, (uint32_t)slot_idx);
    memcpy(journal_prompt(&h->journal, slot), prompt, n_prompt * sizeof *prompt);
    slot->params = *params;
    slot->params.n_stops = stop && params->n_banned == 0 ? 1 : 0;
    slot->id[0] = ++ids;
    slot->reader = HOUSE_READER;
    if (stop) {
        uint8_t *at = (uint8_t *)journal_extra_of(&h->journal, slot) + sizeof(struct journal_extra);
        memcpy(at, &stop_len, 4);
        memcpy(at + 4, stop, stop_len);
    }
    journal_publish(slot);
    slot->owner = owner;
    journal_set_state(slot, JOURNAL_PREFILL);
    return slot_idx;
}

static inline void house_give(struct house *h, int slot_idx)
{
    Hearth__WorkerTake take = HEARTH__WORKER_TAKE__INIT;
    take.shard = HOUSE_SHARD;
    take.slot = (uint32_t)slot_idx;
    take.generation = journal_slot_at(&h->journal, (uint32_t)slot_idx)->generation;
    take.model = HOUSE_MODEL;
    house_say(h, HEARTH__ENVELOPE__BODY_WORKER_TAKE, &take);
}

#define ANSWER_TOKENS_MAX 512

struct answer {
    uint32_t n_tokens;
    int32_t tokens[ANSWER_TOKENS_MAX];
    char text[16384];
    uint32_t n_bytes;
    bool ended;
    uint16_t end, code;
    uint32_t n_cached;
    float logprob; /* of the last token */
};

/* Everything committed so far. */
static inline void house_read(struct house *h, int slot_idx, struct answer *a)
{
    struct err err;
    struct journal_reader r;
    static struct journal_view view;
    int got;
    memset(a, 0, sizeof *a);
    uint32_t generation = journal_slot_at(&h->journal, (uint32_t)slot_idx)->generation;
    assert_ok(journal_reader_init(&r, &h->journal, (uint32_t)slot_idx, generation, &err), err);
    while ((got = journal_read(&r, &view, &err)) > 0) {
        assert_false(a->ended);
        if (view.record.flags & JOURNAL_TOKEN) {
            assert_true(a->n_tokens < ANSWER_TOKENS_MAX);
            a->tokens[a->n_tokens++] = view.record.token;
            a->logprob = view.record.logprob;
        }
        memcpy(a->text + a->n_bytes, view.bytes, view.n_bytes);
        a->n_bytes += view.n_bytes;
        a->text[a->n_bytes] = 0;
        a->n_cached = view.record.n_cached;
        if (view.record.flags & JOURNAL_ENDED) {
            a->ended = true;
            a->end = view.record.end;
            a->code = view.record.code;
        }
    }
    assert_int_equal(got, 0);
}

/* The broker takes an ended log back and frees the slot. */
static inline void house_free(struct house *h, int slot_idx)
{
    struct journal_slot *slot = journal_slot_at(&h->journal, (uint32_t)slot_idx);
    slot->owner = 0;
    journal_free(&h->journal, slot);
}

static inline struct journal_params house_params(uint32_t n_max)
{
    return (struct journal_params){ .top_p = 1,
                                    .typical_p = 1,
                                    .repeat_penalty = 1,
                                    .n_max = n_max,
                                    .n_ctx = 512,
                                    .ignore_eos = 1,
                                    .seed = 42 };
}
