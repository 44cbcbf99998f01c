/* A broker without processes: its keeper is the other end of a socket pair, worked by the test, and what it says by
 * ZeroMQ is only counted. rig_turns() lets it act and answers every question to the keeper, until nothing moves. */
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "broker/submit.h"
#include "proto/uploaded.h"
#include "proto/weights.h"
#include "tests/test.h"

#define RIG_CHILDREN 64

struct rig {
    struct broker *b;
    int keeper; /* our end of the line */
    char dir[64];
    struct {
        uint32_t number, role;
        bool killed;
        uint8_t token[LIMIT_TOKEN_BYTES];
        char tag[LIMIT_TAG_BYTES];
    } children[RIG_CHILDREN]; /* as born */
    uint32_t n_children;
    uint32_t n_creates, n_drops;
    enum err_code spawn_error; /* births fail with it */
    uint64_t mem_available, weights_bytes, spilled_bytes;
    bool keeps; /* the worker's Hello: it keeps weights, this segment among them (0: none) */
    uint64_t kept;
    bool own_memory; /* the worker's Hello */
    uint64_t window; /* of weights that the keeper gives: they go by one ... */
    uint64_t wants;  /* ... their loader waits for this, and so much is uploaded */
    uint64_t uploaded, word;
};

static struct rig *rig_now; /* for the memory hook, which has no argument */

static inline uint64_t rig_memory(void)
{
    return rig_now->mem_available;
}

static inline void rig_model(struct rig *r, const char *name, off_t bytes)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s.gguf", r->dir, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0 && ftruncate(fd, bytes) == 0);
    close(fd);
}

static inline void rig_open(struct rig *r)
{
    int pair[2];
    struct err err = { 0 };
    *r = (struct rig){ .mem_available = 1ull << 40, .weights_bytes = 4096 };
    rig_now = r;
    strcpy(r->dir, "/tmp/hearth-rig-XXXXXX");
    assert_non_null(mkdtemp(r->dir));
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    r->keeper = pair[1];
    r->b = calloc(1, sizeof *r->b);
    struct broker *b = r->b;
    b->heritage.broker_epoch = 1;
    strcpy(b->heritage.run, r->dir);
    config_init(&b->config);
    strcpy(b->config.device, "cpu");
    strcpy(b->config.dirs[0], r->dir);
    b->config.n_dirs = 1;
    b->config.ram_budget = 1ull << 30;
    b->config.journal_bytes = 8u << 20;
    b->keeper = keeper_line_create(pair[0], &err);
    b->models.mem_available = rig_memory;
    b->now_ms = 1000000;
    b->records.eventfd = -1;
    strcpy(b->shards.dir, r->dir);
    workers_init(b);
    b->listed = true;
}

static inline void rig_close(struct rig *r)
{
    char command[128];
    r->b->stopping = true;
    broker_close(r->b);
    free(r->b);
    close(r->keeper);
    snprintf(command, sizeof command, "rm -rf %s", r->dir);
    assert_int_equal(system(command), 0);
}

/* A segment that the broker takes: weights that say they are whole, or a state whose word never moves. */
static inline int rig_weights(const struct rig *r)
{
    struct weights_header header = { .magic = WEIGHTS_MAGIC,
                                     .segment_bytes = r->weights_bytes,
                                     .window = r->window,
                                     .wants = r->wants,
                                     .digest = 7 };
    int fd = memfd_create("weights", MFD_CLOEXEC);
    assert_int_equal(write(fd, &header, sizeof header), (int)sizeof header);
    assert_int_equal(ftruncate(fd, 8192), 0); /* pages that the watch can map */
    return fd;
}

static inline int rig_word(const struct rig *r)
{
    int fd = memfd_create("word", MFD_CLOEXEC);
    assert_int_equal(write(fd, &r->uploaded, sizeof r->uploaded), (int)sizeof r->uploaded);
    assert_int_equal(ftruncate(fd, UPLOADED_SEGMENT_BYTES), 0);
    return fd;
}

static inline bool rig_answer(struct rig *r)
{
    static struct channel_msg msg;
    int fds[CHANNEL_FDS_MAX];
    struct err err = { 0 };
    if (channel_recv(r->keeper, &msg, fds, false, &err) <= 0) {
        return false;
    }
    struct channel_msg answer = { .op = CHANNEL_DONE,
                                  .cookie = msg.cookie,
                                  .segment = msg.segment };
    int fd = -1;
    switch (msg.op) {
    case CHANNEL_LIST:
        return true; /* its end is the test's to tell */
    case CHANNEL_SPAWN:
        answer.status = (int32_t)r->spawn_error;
        strcpy(answer.text, r->spawn_error ? "no such program" : "");
        if (!r->spawn_error) {
            assert_true(r->n_children < RIG_CHILDREN);
            uint32_t i = r->n_children++;
            r->children[i].number = answer.child = i + 2;
            r->children[i].role = msg.role;
            answer.pid = (int32_t)i + 1000;
            memcpy(r->children[i].token, msg.token, LIMIT_TOKEN_BYTES);
            memcpy(r->children[i].tag, msg.tag, LIMIT_TAG_BYTES);
        }
        break;
    case CHANNEL_KILL:
        r->children[msg.child - 2].killed = true;
        break;
    case CHANNEL_CREATE:
        r->n_creates++;
        r->word = strncmp(msg.tag, "window ", 7) == 0 ? msg.segment : r->word;
        break;
    case CHANNEL_DROP:
        r->n_drops++;
        break;
    case CHANNEL_TAKE:
        fd = msg.segment == r->word ? rig_word(r) : rig_weights(r);
        break;
    default:
        break;
    }
    for (int i = 0; i < CHANNEL_FDS_MAX; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    assert_int_equal(channel_send(r->keeper, &answer, &fd, fd >= 0, &err), 0);
    if (fd >= 0) {
        close(fd);
    }
    return true;
}

static inline void rig_turns(struct rig *r)
{
    struct err err = { 0 };
    for (int i = 0; i < 20; i++) {
        broker_act(r->b);
        assert_ok(keeper_line_flush(r->b->keeper, &err), err);
        while (rig_answer(r)) {
        }
        broker_drain_keeper(r->b);
    }
}

/* The youngest child of a role, or 0. */
static inline uint32_t rig_child(const struct rig *r, uint32_t role)
{
    for (uint32_t i = r->n_children; i-- > 0;) {
        if (r->children[i].role == role) {
            return r->children[i].number;
        }
    }
    return 0;
}

static inline uint32_t rig_births(const struct rig *r, uint32_t role)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n_children; i++) {
        n += r->children[i].role == role;
    }
    return n;
}

static inline void rig_note(struct rig *r, uint32_t child, uint32_t code, uint64_t value,
                            const char *text)
{
    struct err err = { 0 };
    struct channel_msg msg = { .op = CHANNEL_NOTE, .child = child, .code = code, .value = value };
    strcpy(msg.text, text);
    assert_ok(channel_send(r->keeper, &msg, NULL, 0, &err), err);
    broker_drain_keeper(r->b);
}

/* status as of waitpid: a signal's number, or an exit code << 8. */
static inline void rig_died(struct rig *r, uint32_t child, int status)
{
    struct err err = { 0 };
    struct channel_msg msg = { .op = CHANNEL_DIED, .child = child, .status = status };
    assert_ok(channel_send(r->keeper, &msg, NULL, 0, &err), err);
    broker_drain_keeper(r->b);
}

static inline void rig_worker_hello(struct rig *r)
{
    uint32_t child = rig_child(r, HERITAGE_WORKER);
    struct link_peer peer = { .len = 1, .id = { (uint8_t)child } };
    Hearth__Hello hello = HEARTH__HELLO__INIT;
    hello.role = HEARTH__ROLE__WORKER;
    hello.has_token = true;
    hello.token = message_bytes(r->children[child - 2].token, LIMIT_TOKEN_BYTES);
    hello.has_child = true;
    hello.child = child;
    hello.has_architectures = true;
    hello.architectures = message_str("llama qwen2moe ");
    hello.has_own_memory = true;
    hello.own_memory = r->own_memory;
    hello.has_keeps = true;
    hello.keeps = r->keeps;
    hello.kept = &r->kept;
    hello.n_kept = r->kept != 0;
    assert_true(workers_on_hello(r->b, &peer, &hello));
}

/* The loader of a model does its work. */
static inline void rig_loaded(struct rig *r, uint64_t bytes)
{
    uint32_t child = rig_child(r, HERITAGE_LOADER);
    r->weights_bytes = bytes;
    rig_note(r, child, CHANNEL_NOTE_HEADER, bytes, "");
    rig_note(r, child, CHANNEL_NOTE_LOADED, 1000000, "");
    rig_died(r, child, 0);
    rig_turns(r);
}

/* The worker takes the model it was told of. */
static inline void rig_bound(struct rig *r, struct model *m)
{
    Hearth__WorkerNeed need = HEARTH__WORKER_NEED__INIT;
    assert_int_equal(m->bind, BIND_ASKED);
    need.model = m->number;
    need.state_bytes = 1 << 20;
    need.has_spilled_bytes = r->spilled_bytes > 0;
    need.spilled_bytes = r->spilled_bytes;
    need.fingerprint = message_str("f16-2048");
    models_on_need(r->b, m->worker, &need);
    rig_turns(r);
    assert_int_equal(m->bind, BIND_STATE);
    Hearth__WorkerBound bound = HEARTH__WORKER_BOUND__INIT;
    bound.model = m->number;
    bound.has_spilled_bytes = r->spilled_bytes > 0;
    bound.spilled_bytes = r->spilled_bytes;
    bound.has_ctx = bound.has_n_vocab = bound.has_n_sequences = bound.has_piece_bytes_max = true;
    bound.ctx = 2048;
    bound.n_vocab = 1000;
    bound.n_sequences = 2;
    bound.piece_bytes_max = 16;
    bound.has_generates = bound.generates = true;
    models_on_bound(r->b, m->worker, &bound);
    rig_turns(r);
    assert_int_equal(m->state, MODEL_RESIDENT);
}

/* A client that is attached, without a line. */
static inline struct client *rig_client(struct rig *r, uint64_t flow)
{
    struct err err = { 0 };
    struct clients *t = &r->b->clients;
    if (!t->list) {
        t->list = calloc(16, sizeof(struct client *));
        t->room = 16;
    }
    struct client *c = t->list[t->n++] = calloc(1, sizeof *c);
    *c = (struct client){ .number = flow,
                          .flow = flow,
                          .line = -1,
                          .eventfd = -1,
                          .state = CLIENT_ATTACHED,
                          .reader = 77000 + flow };
    c->peer = (struct link_peer){ .len = 2, .id = { 200, (uint8_t)flow } };
    c->shard = shards_get(r->b, getuid(), &err);
    assert_non_null(c->shard);
    shards_deposit(r->b, c->shard);
    t->n_attached++;
    return c;
}

/* Submits a prompt of token ids; the request when it lives on. */
static inline struct request *rig_submit(struct rig *r, struct client *c, uint8_t id,
                                         const char *model, uint32_t n_prompt, uint32_t n_max)
{
    int32_t ids[4096];
    uint8_t name[LIMIT_REQUEST_ID_BYTES] = { id };
    struct link_msg msg = { .peer = c->peer };
    (void)msg;
    for (uint32_t i = 0; i < n_prompt; i++) {
        ids[i] = (int32_t)i % 1000;
    }
    Hearth__Submit submit = HEARTH__SUBMIT__INIT;
    submit.id = message_bytes(name, sizeof name);
    submit.has_model = true;
    submit.model = message_str(model);
    submit.kind = HEARTH__PROMPT_KIND__TOKENS;
    submit.has_n_max = n_max != 0;
    submit.n_max = n_max;
    struct post_to to = { .peer = c->peer };
    submit_take(r->b, &to, c, &submit, ids, n_prompt * sizeof *ids);
    bool many;
    return requests_find(&r->b->requests, c->shard, name, sizeof name, &many);
}
