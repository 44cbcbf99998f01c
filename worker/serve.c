#include "worker/serve.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "proto/channel.h"
#include "proto/link.h"
#include "proto/log.h"
#include "proto/message.h"
#include "worker/resident.h"

static_assert((int)EVALUATE_LOGITS == (int)HEARTH__EVAL_KIND__LOGITS &&
                  (int)EVALUATE_PERPLEXITY == (int)HEARTH__EVAL_KIND__PERPLEXITY,
              "the kinds have one numbering");

struct out_message {
    size_t len;
    uint8_t *data;
};

struct finished {
    struct sequence_name name;
    const struct journal_slot *slot; /* in a mapped shard */
};

struct serve {
    struct serve_options options;
    struct backend *backend;
    struct link *link;
    struct message_arena arena;
    uint8_t packed[LIMIT_ENVELOPE_BYTES];
    struct shards shards;
    struct readers readers;
    struct resident resident[SERVE_RESIDENTS_MAX];
    uint32_t turn; /* whose step comes next */
    struct finished finished[SERVE_FINISHED_MAX];
    uint32_t n_finished;
    struct out_message outbox[SERVE_OUTBOX_MAX]; /* a ring */
    uint32_t out_first, n_out;
    uint32_t epoch;   /* the broker's, 0 before Welcome */
    uint64_t n_heard; /* messages from the broker */
    bool broker_new, stop;
};

/* ---- saying things ---- */

/* Packs and queues a message; it leaves in order, now or when the line takes it. */
static void say(struct serve *s, Hearth__Envelope__BodyCase which, void *body)
{
    struct err err;
    Hearth__Envelope envelope = message_envelope(which, body);
    size_t len = message_pack(&envelope, s->packed, &err);
    if (len == 0 || s->n_out == SERVE_OUTBOX_MAX) {
        log_error("%s to the broker is lost: %s", message_name(which),
                  len == 0 ? err.text : "too many wait");
        return;
    }
    struct out_message *out = &s->outbox[(s->out_first + s->n_out) % SERVE_OUTBOX_MAX];
    out->data = malloc(len);
    if (!out->data) {
        log_error("%s to the broker is lost: no memory", message_name(which));
        return;
    }
    memcpy(out->data, s->packed, len);
    out->len = len;
    s->n_out++;
}

static void outbox_pop(struct serve *s)
{
    free(s->outbox[s->out_first].data);
    s->out_first = (s->out_first + 1) % SERVE_OUTBOX_MAX;
    s->n_out--;
}

static void outbox_flush(struct serve *s)
{
    struct err err;
    while (s->n_out > 0) {
        const struct out_message *out = &s->outbox[s->out_first];
        if (link_send(s->link, NULL, out->data, out->len, NULL, 0, &err) < 0) {
            if (err.code != ERR_FULL) {
                log_warn("to the broker: %s", err.text);
            }
            return;
        }
        outbox_pop(s);
    }
}

static const char *isa_name(void)
{
    const char *fixed = getenv("HEARTH_ISA");
    if (fixed) {
        return fixed;
    }
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni")) {
        return "avx512";
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return "avx2";
    }
#endif
    return "portable";
}

/* Who we are and what we hold, ends that were not taken back included. */
static void say_hello(struct serve *s)
{
    enum { HELD_MAX = SERVE_RESIDENTS_MAX * LIMIT_WORKER_SEQUENCES + SERVE_FINISHED_MAX };
    static Hearth__HeldRequest held[HELD_MAX];
    static Hearth__HeldRequest *held_at[HELD_MAX];
    uint64_t models[SERVE_RESIDENTS_MAX];
    Hearth__Hello hello = HEARTH__HELLO__INIT;
    struct sysinfo info;
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        const struct resident *r = &s->resident[i];
        if (r->phase != RESIDENT_READY) {
            continue;
        }
        models[hello.n_models++] = r->options.model;
        for (uint32_t k = 0; k < r->options.n_sequences; k++) {
            const struct sequence *seq = &r->sequences[k];
            if (seq->open) {
                Hearth__HeldRequest *h = &held[hello.n_held];
                hearth__held_request__init(h);
                h->shard = seq->name.shard;
                h->slot = seq->name.slot;
                h->generation = seq->name.generation;
                held_at[hello.n_held++] = h;
            }
        }
    }
    for (uint32_t i = 0; i < s->n_finished; i++) {
        Hearth__HeldRequest *h = &held[hello.n_held];
        hearth__held_request__init(h);
        h->shard = s->finished[i].name.shard;
        h->slot = s->finished[i].name.slot;
        h->generation = s->finished[i].name.generation;
        held_at[hello.n_held++] = h;
    }
    hello.role = HEARTH__ROLE__WORKER;
    hello.has_token = hello.has_child = hello.has_device = hello.has_pid = true;
    hello.token = message_bytes(s->options.token, sizeof s->options.token);
    hello.child = s->options.child;
    hello.pid = (uint32_t)getpid();
    hello.device = message_str(s->options.device);
    hello.has_memory_bytes = sysinfo(&info) == 0;
    hello.memory_bytes = hello.has_memory_bytes ? (uint64_t)info.totalram * info.mem_unit : 0;
    hello.held = held_at;
    hello.models = models;
    hello.has_isa = hello.has_threads = true;
    hello.isa = message_str(isa_name());
    hello.threads = s->options.threads;
    say(s, HEARTH__ENVELOPE__BODY_HELLO, &hello);
}

static void say_bound(struct serve *s, uint64_t model, const struct resident *r,
                      const struct err *error)
{
    static const char *const poolings[] = { "none", "mean", "cls", "last", "rank" };
    Hearth__WorkerBound bound = HEARTH__WORKER_BOUND__INIT;
    bound.model = model;
    if (error) {
        bound.has_code = bound.has_text = true;
        bound.code = message_str(err_name(error->code));
        bound.text = message_str(error->text);
        log_warn("model %" PRIu64 ": %s", model, error->text);
    } else {
        const struct model *m = r->model;
        bound.has_ctx = bound.has_ctx_train = bound.has_n_vocab = bound.has_n_sequences = true;
        bound.has_state_bytes = bound.has_arch = bound.has_generates = bound.has_n_embd = true;
        bound.has_pooling = bound.has_piece_bytes_max = true;
        bound.ctx = r->shape.ctx_len;
        bound.ctx_train = m->train_ctx_len;
        bound.n_vocab = m->vocab_size;
        bound.n_sequences = r->options.n_sequences;
        bound.state_bytes = r->state_bytes;
        bound.arch = message_str(m->arch->name);
        bound.generates = resident_generates(r);
        bound.n_embd = m->dim;
        bound.pooling = message_str(m->pooling >= 0 && m->pooling < 5 ? poolings[m->pooling]
                                                                      : "none");
        bound.piece_bytes_max = r->pieces.bytes_max;
    }
    say(s, HEARTH__ENVELOPE__BODY_WORKER_BOUND, &bound);
}

static void say_need(struct serve *s, const struct resident *r)
{
    Hearth__WorkerNeed need = HEARTH__WORKER_NEED__INIT;
    need.model = r->options.model;
    need.state_bytes = r->state_bytes;
    need.fingerprint = message_str(r->fingerprint_text);
    say(s, HEARTH__ENVELOPE__BODY_WORKER_NEED, &need);
}

static void say_released(struct serve *s, struct sequence_name name, const struct err *why)
{
    Hearth__WorkerReleased released = HEARTH__WORKER_RELEASED__INIT;
    released.shard = name.shard;
    released.slot = name.slot;
    released.generation = name.generation;
    if (why) {
        released.has_code = released.has_text = true;
        released.code = message_str(err_name(why->code));
        released.text = message_str(why->text);
        log_warn("request in slot %u is given back: %s", name.slot, why->text);
    }
    say(s, HEARTH__ENVELOPE__BODY_WORKER_RELEASED, &released);
}

static void say_finished(struct serve *s, struct sequence_name name)
{
    Hearth__WorkerFinished finished = HEARTH__WORKER_FINISHED__INIT;
    finished.shard = name.shard;
    finished.slot = name.slot;
    finished.generation = name.generation;
    say(s, HEARTH__ENVELOPE__BODY_WORKER_FINISHED, &finished);
}

static void say_evaluated(struct serve *s, uint64_t work, const struct evaluate *e,
                          const struct err *error)
{
    Hearth__WorkerEvaluated done = HEARTH__WORKER_EVALUATED__INIT;
    done.work = work;
    if (error) {
        done.has_code = done.has_text = true;
        done.code = message_str(err_name(error->code));
        done.text = message_str(error->text);
    } else {
        done.has_n_rows = done.has_n_cols = true;
        done.n_rows = e->n_rows;
        done.n_cols = e->n_cols;
        done.has_perplexity = e->kind == EVALUATE_PERPLEXITY;
        done.perplexity = done.has_perplexity ? evaluate_perplexity(e) : 0;
    }
    say(s, HEARTH__ENVELOPE__BODY_WORKER_EVALUATED, &done);
}

/* ---- finding things ---- */

static bool same_name(struct sequence_name a, struct sequence_name b)
{
    return a.shard == b.shard && a.slot == b.slot && a.generation == b.generation;
}

static struct resident *find_resident(struct serve *s, uint64_t model)
{
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        if (s->resident[i].phase != RESIDENT_FREE && s->resident[i].options.model == model) {
            return &s->resident[i];
        }
    }
    return NULL;
}

static struct sequence *find_sequence(struct serve *s, struct sequence_name name,
                                      struct resident **owner)
{
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        struct resident *r = &s->resident[i];
        struct sequence *seq = r->phase == RESIDENT_READY ? resident_find(r, name) : NULL;
        if (seq) {
            *owner = r;
            return seq;
        }
    }
    return NULL;
}

static bool is_finished(const struct serve *s, struct sequence_name name)
{
    for (uint32_t i = 0; i < s->n_finished; i++) {
        if (same_name(s->finished[i].name, name)) {
            return true;
        }
    }
    return false;
}

static bool shard_in_use(void *arg, uint64_t segment)
{
    const struct serve *s = arg;
    for (uint32_t i = 0; i < s->n_finished; i++) {
        if (s->finished[i].name.shard == segment) {
            return true;
        }
    }
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        const struct resident *r = &s->resident[i];
        for (uint32_t k = 0; r->sequences && k < r->options.n_sequences; k++) {
            if (r->sequences[k].open && r->sequences[k].name.shard == segment) {
                return true;
            }
        }
    }
    return false;
}

/* ---- ends ---- */

/* The broker took a log back when it is no longer ours by name. */
static void sweep_finished(struct serve *s)
{
    for (uint32_t i = 0; i < s->n_finished;) {
        const struct journal_slot *slot = s->finished[i].slot;
        if (atomic_load_explicit(&slot->owner, memory_order_acquire) == s->options.child &&
            slot->generation == s->finished[i].name.generation) {
            i++;
        } else {
            s->finished[i] = s->finished[--s->n_finished];
        }
    }
}

static void finish(struct serve *s, struct resident *r, struct sequence *seq)
{
    const struct finished done = { .name = seq->name, .slot = seq->slot };
    bool lost = seq->lost;
    resident_release(r, seq);
    if (lost) {
        struct err why;
        err_set(&why, ERR_FAILED, "its end does not fit its log");
        say_released(s, done.name, &why);
        return;
    }
    if (s->n_finished == SERVE_FINISHED_MAX) {
        log_warn("%u ends were not taken back by the broker: the oldest is not repeated",
                 s->n_finished);
        memmove(s->finished, s->finished + 1, --s->n_finished * sizeof *s->finished);
    }
    s->finished[s->n_finished++] = done;
    say_finished(s, done.name);
}

/* After a step, or anything that may have written: wakes readers, reports ends. */
static void collect(struct serve *s, struct resident *r)
{
    for (uint32_t i = 0; i < r->options.n_sequences; i++) {
        struct sequence *seq = &r->sequences[i];
        if (seq->open && seq->spoke) {
            seq->spoke = false;
            readers_wake(&s->readers,
                         atomic_load_explicit(&seq->slot->reader, memory_order_acquire));
        }
        if (seq->open && seq->ended) {
            finish(s, r, seq);
        }
    }
    for (uint32_t i = 0; i < r->n_evaluations;) {
        struct resident_evaluation *v = &r->evaluations[i];
        if (!v->ended) {
            i++;
            continue;
        }
        say_evaluated(s, v->work, &v->e, v->error.code != ERR_NONE ? &v->error : NULL);
        resident_evaluation_close(r, i);
    }
}

/* ---- what the broker says ---- */

static int take_segment(struct serve *s, uint64_t segment, int *fd, struct err *err)
{
    int fds[2] = { -1, -1 };
    if (s->options.segments.take(s->options.segments.arg, segment, fds, err) < 0) {
        return err_wrap(err, "segment %" PRIu64, segment);
    }
    if (fds[1] >= 0) {
        close(fds[1]);
    }
    *fd = fds[0];
    return 0;
}

/* Everything in flight on a model goes back; then the model goes. */
static void unbind(struct serve *s, struct resident *r)
{
    if (r->phase == RESIDENT_READY) {
        collect(s, r);
        for (uint32_t i = 0; i < r->options.n_sequences; i++) {
            struct sequence *seq = &r->sequences[i];
            if (seq->open) {
                struct sequence_name name = seq->name;
                resident_release(r, seq);
                say_released(s, name, NULL);
            }
        }
        struct err gone;
        err_set(&gone, ERR_BUSY, "the model leaves the device");
        while (r->n_evaluations > 0) {
            say_evaluated(s, r->evaluations[0].work, NULL, &gone);
            resident_evaluation_close(r, 0);
        }
    }
    log_info("model %" PRIu64 ": unbound", r->options.model);
    resident_close(r);
}

static int read_kv_type(bool has, ProtobufCBinaryData name, enum dtype *type, struct err *err)
{
    char text[16];
    *type = DTYPE_F16;
    if (!has || name.len == 0) {
        return 0;
    }
    int found = message_copy(text, sizeof text, name) ? dtype_of_name(text) : -1;
    if (found < 0) {
        return err_set(err, ERR_BAD_INPUT, "KV type %s is not known", text);
    }
    *type = (enum dtype)found;
    return 0;
}

static void on_bind(struct serve *s, const Hearth__WorkerBind *bind)
{
    struct err err;
    struct resident *r = find_resident(s, bind->model);
    if (r && r->options.segment == bind->segment) {
        if (r->phase == RESIDENT_READY) {
            say_bound(s, bind->model, r, NULL);
        } else if (r->phase == RESIDENT_NEEDING) {
            say_need(s, r);
        }
        return;
    }
    if (r) {
        unbind(s, r);
    }
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX && !r; i++) {
        r = s->resident[i].phase == RESIDENT_FREE ? &s->resident[i] : NULL;
    }
    if (!r) {
        err_set(&err, ERR_FULL, "%d models are bound already", SERVE_RESIDENTS_MAX);
        say_bound(s, bind->model, NULL, &err);
        return;
    }
    struct resident_options options = {
        .model = bind->model,
        .segment = bind->segment,
        .ctx_len = bind->has_ctx ? bind->ctx : 0,
        .n_sequences = bind->has_n_sequences ? bind->n_sequences : 0,
        .state_bytes_max = bind->has_state_bytes_max ? bind->state_bytes_max : 0,
    };
    message_copy(options.name, sizeof options.name, bind->name);
    int fd = -1;
    if (read_kv_type(bind->has_kv_k, bind->kv_k, &options.k_type, &err) < 0 ||
        read_kv_type(bind->has_kv_v, bind->kv_v, &options.v_type, &err) < 0 ||
        take_segment(s, bind->segment, &fd, &err) < 0 ||
        resident_open(r, &options, s->backend, fd, &err) < 0) {
        say_bound(s, bind->model, NULL, &err);
    } else {
        log_info("model %" PRIu64 ": %s: binding", bind->model, options.name);
    }
    if (fd >= 0) {
        close(fd);
    }
}

static void fail_resident(struct serve *s, struct resident *r, const struct err *why)
{
    uint64_t model = r->options.model;
    resident_close(r);
    say_bound(s, model, NULL, why);
}

static void on_state(struct serve *s, const Hearth__WorkerState *state)
{
    struct err err;
    struct resident *r = find_resident(s, state->model);
    int fd = -1;
    if (!r || r->phase != RESIDENT_NEEDING) {
        return;
    }
    if (take_segment(s, state->segment, &fd, &err) < 0 ||
        resident_start(r, fd, state->fresh, &err) < 0) {
        fail_resident(s, r, &err);
    } else {
        log_info("model %" PRIu64 ": ready, context %u, %u sequences, state %" PRIu64 " MiB%s",
                 r->options.model, r->shape.ctx_len, r->options.n_sequences, r->state_bytes >> 20,
                 state->fresh ? "" : ", taken over");
        say_bound(s, r->options.model, r, NULL);
    }
    if (fd >= 0) {
        close(fd);
    }
}

static void on_take(struct serve *s, const Hearth__WorkerTake *take)
{
    struct err err;
    struct resident *owner;
    const struct sequence_name name = { take->shard, take->slot, take->generation };
    sweep_finished(s);
    if (find_sequence(s, name, &owner)) {
        return;
    }
    if (is_finished(s, name)) {
        say_finished(s, name);
        return;
    }
    struct resident *r = find_resident(s, take->model);
    if (!r || r->phase != RESIDENT_READY) {
        /* Busy, not an error of the request: it can go on when the model is here. */
        err_set(&err, ERR_BUSY, "model %" PRIu64 " is not bound", take->model);
        say_released(s, name, &err);
        return;
    }
    const struct journal *journal = shards_get(&s->shards, take->shard, shard_in_use, s, &err);
    struct sequence *seq = journal ? resident_take(r, journal, name, s->options.child, &err) : NULL;
    if (!seq) {
        say_released(s, name, &err);
        return;
    }
    seq->spoke = true; /* a predecessor may have died before it woke the reader */
    log_debug("request in slot %u: taken, %u + %u tokens", name.slot, seq->n_prompt,
              sequence_generated(seq));
}

static void on_cancel(struct serve *s, const Hearth__WorkerCancel *cancel)
{
    struct err err;
    struct resident *owner;
    const struct sequence_name name = { cancel->shard, cancel->slot, cancel->generation };
    struct sequence *seq = find_sequence(s, name, &owner);
    if (!seq) {
        if (is_finished(s, name)) {
            say_finished(s, name);
        }
        return;
    }
    char code[32] = "", text[LIMIT_REASON_BYTES];
    if (cancel->has_code) {
        message_copy(code, sizeof code, cancel->code);
    }
    message_copy(text, sizeof text, cancel->has_text ? cancel->text : message_str(code));
    enum err_code why = code[0] ? err_code_of_name(code) : ERR_CANCELLED;
    enum journal_end end = why == ERR_CANCELLED ? JOURNAL_END_CANCELLED : JOURNAL_END_ERROR;
    if (!seq->ended && sequence_end(seq, end, why, text, &err) < 0) {
        log_error("request in slot %u: its end cannot be written: %s", name.slot, err.text);
        seq->ended = seq->lost = true;
    }
    collect(s, owner);
}

static void on_release(struct serve *s, const Hearth__WorkerRelease *release)
{
    struct resident *owner;
    const struct sequence_name name = { release->shard, release->slot, release->generation };
    struct sequence *seq = find_sequence(s, name, &owner);
    if (seq && seq->ended) {
        collect(s, owner);
        return;
    }
    if (!seq && is_finished(s, name)) {
        say_finished(s, name);
        return;
    }
    if (seq) {
        resident_release(owner, seq);
    }
    say_released(s, name, NULL);
}

static void on_evaluate(struct serve *s, const Hearth__WorkerEvaluate *ask)
{
    struct err err;
    struct resident *r = find_resident(s, ask->model);
    int fd = -1;
    if (!r || r->phase != RESIDENT_READY) {
        err_set(&err, ERR_NOT_FOUND, "model %" PRIu64 " is not bound", ask->model);
        say_evaluated(s, ask->work, NULL, &err);
        return;
    }
    for (uint32_t i = 0; i < r->n_evaluations; i++) {
        if (r->evaluations[i].work == ask->work) {
            return;
        }
    }
    if (take_segment(s, ask->segment, &fd, &err) < 0 ||
        resident_evaluate(r, ask->work, (enum evaluate_kind)ask->kind, ask->lens,
                          (uint32_t)ask->n_lens, ask->has_start ? ask->start : 0, fd,
                          ask->ids_bytes, ask->n_ids, &err) < 0) {
        say_evaluated(s, ask->work, NULL, &err);
    }
    if (fd >= 0) {
        close(fd);
    }
}

static void on_unbind(struct serve *s, const Hearth__WorkerUnbind *ask)
{
    struct resident *r = find_resident(s, ask->model);
    if (r) {
        unbind(s, r);
    }
    Hearth__WorkerUnbound unbound = HEARTH__WORKER_UNBOUND__INIT;
    unbound.model = ask->model;
    say(s, HEARTH__ENVELOPE__BODY_WORKER_UNBOUND, &unbound);
}

/* A broker that is new learns what is bound and what has ended; the first one knows of nothing. */
static void on_welcome(struct serve *s, const Hearth__Welcome *welcome)
{
    s->epoch = welcome->epoch;
    sweep_finished(s);
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        if (s->resident[i].phase == RESIDENT_READY) {
            say_bound(s, s->resident[i].options.model, &s->resident[i], NULL);
        }
    }
    for (uint32_t i = 0; i < s->n_finished; i++) {
        say_finished(s, s->finished[i].name);
    }
}

static void on_message(struct serve *s, const Hearth__Envelope *e)
{
    switch (e->body_case) {
    case HEARTH__ENVELOPE__BODY_WELCOME:
        on_welcome(s, e->welcome);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_BIND:
        on_bind(s, e->worker_bind);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_STATE:
        on_state(s, e->worker_state);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_UNBIND:
        on_unbind(s, e->worker_unbind);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_TAKE:
        on_take(s, e->worker_take);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_CANCEL:
        on_cancel(s, e->worker_cancel);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_RELEASE:
        on_release(s, e->worker_release);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_EVALUATE:
        on_evaluate(s, e->worker_evaluate);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_READER:
        if (e->worker_reader->has_gone && e->worker_reader->gone) {
            readers_forget(&s->readers, e->worker_reader->reader);
        } else {
            readers_know(&s->readers, e->worker_reader->reader);
        }
        break;
    case HEARTH__ENVELOPE__BODY_FAILED:
        log_warn("the broker refuses: %.*s", (int)e->failed->text.len,
                 (const char *)e->failed->text.data);
        break;
    default:
        log_warn("%s from the broker: not for a worker", message_name(e->body_case));
    }
}

/* Up to a bound, so that a flood does not stop the device. Returns false when there may be more. */
static bool drain_link(struct serve *s)
{
    struct link_msg msg;
    struct err err;
    for (int i = 0; i < SERVE_MESSAGES_MAX; i++) {
        int got = link_recv(s->link, &msg, &err);
        if (got == 0) {
            return true;
        }
        const Hearth__Envelope *e = got > 0 ? message_unpack(&s->arena, msg.envelope,
                                                             msg.envelope_len, &err)
                                            : NULL;
        if (!e) {
            log_warn("from the broker: %s", err.text);
            continue;
        }
        s->n_heard++;
        on_message(s, e);
    }
    return false;
}

/* ---- the keeper and the signals ---- */

static void note_channel(void *context, const struct channel_msg *msg)
{
    struct serve *s = context;
    if (msg->op == CHANNEL_BROKER_NEW) {
        s->broker_new = true;
    } else if (msg->op == CHANNEL_TERM) {
        s->stop = true;
    }
}

static void drain_channel(struct serve *s)
{
    struct channel_msg msg;
    int fds[CHANNEL_FDS_MAX];
    struct err err;
    for (int i = 0; i < SERVE_MESSAGES_MAX; i++) {
        int got = channel_recv(s->options.channel_fd, &msg, fds, false, &err);
        if (got == 0) {
            return;
        }
        if (got < 0) {
            if (err.code == ERR_CLOSED || err.code == ERR_IO) {
                log_info("the keeper is gone");
                s->stop = true;
                return;
            }
            continue;
        }
        for (int k = 0; k < CHANNEL_FDS_MAX; k++) {
            if (fds[k] >= 0) {
                close(fds[k]);
            }
        }
        note_channel(s, &msg);
    }
}

static int take_from_keeper(void *arg, uint64_t segment, int fds[2], struct err *err)
{
    struct serve *s = arg;
    return channel_take(s->options.channel_fd, segment, fds, note_channel, s, err);
}

static void drain_signals(struct serve *s)
{
    struct signalfd_siginfo info;
    while (s->options.signal_fd >= 0 &&
           read(s->options.signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        s->stop |= info.ssi_signo == SIGTERM;
    }
}

/* A new broker knows nothing of what was asked and not yet answered: it asks again. */
static int reconnect(struct serve *s, struct err *err)
{
    s->broker_new = false;
    link_close(&s->link);
    while (s->n_out > 0) {
        outbox_pop(s);
    }
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        struct resident *r = &s->resident[i];
        if (r->phase == RESIDENT_READY) {
            collect(s, r);
            while (r->n_evaluations > 0) {
                resident_evaluation_close(r, 0);
            }
        } else {
            resident_close(r);
        }
    }
    while (s->n_out > 0) {
        outbox_pop(s); /* ends are told after Welcome */
    }
    sweep_finished(s);
    s->link = link_connect(s->options.endpoint, err);
    if (!s->link) {
        return -1;
    }
    if (s->epoch > 0) {
        log_info("a new broker: %u ends and what runs are told again", s->n_finished);
    }
    say_hello(s);
    return 0;
}

/* ---- the loop ---- */

struct serve *serve_create(const struct serve_options *options, struct backend *backend,
                           struct err *err)
{
    struct serve *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(err, ERR_NO_MEMORY, "no memory for the worker's loop");
        return NULL;
    }
    s->options = *options;
    s->backend = backend;
    if (!s->options.segments.take) {
        s->options.segments = (struct segments){ .take = take_from_keeper, .arg = s };
    }
    s->shards.from = &s->options.segments;
    s->readers.from = &s->options.segments;
    if (reconnect(s, err) < 0) {
        serve_destroy(&s);
    }
    return s;
}

void serve_destroy(struct serve **servep)
{
    struct serve *s = *servep;
    if (!s) {
        return;
    }
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        resident_close(&s->resident[i]);
    }
    while (s->n_out > 0) {
        outbox_pop(s);
    }
    shards_clear(&s->shards);
    readers_clear(&s->readers);
    link_close(&s->link);
    free(s);
    *servep = NULL;
}

/* Moves on what is being bound. Returns true when something is still being read. */
static bool bind_residents(struct serve *s)
{
    bool reading = false;
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        struct resident *r = &s->resident[i];
        if (r->phase != RESIDENT_READING) {
            continue;
        }
        struct err err;
        int bound = resident_bind(r, &err);
        if (bound < 0) {
            fail_resident(s, r, &err);
        } else if (bound > 0) {
            say_need(s, r);
        } else {
            reading = true;
        }
    }
    return reading;
}

/* A step of one model that has work, in turn. */
static int step(struct serve *s, struct err *err)
{
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        struct resident *r = &s->resident[(s->turn + i) % SERVE_RESIDENTS_MAX];
        if (!resident_has_work(r)) {
            continue;
        }
        s->turn = (s->turn + i + 1) % SERVE_RESIDENTS_MAX;
        if (resident_step(r, err) < 0) {
            return err_wrap(err, "model %" PRIu64, r->options.model);
        }
        collect(s, r);
        return 0;
    }
    return 0;
}

static bool has_work(const struct serve *s)
{
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        if (resident_has_work(&s->resident[i])) {
            return true;
        }
    }
    return false;
}

/* Ends of requests that were over before their first step. */
static void collect_all(struct serve *s)
{
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        if (s->resident[i].phase == RESIDENT_READY) {
            collect(s, &s->resident[i]);
        }
    }
}

static int wait_for_events(struct serve *s, int timeout_ms, struct err *err)
{
    struct pollfd fds[] = {
        { .fd = link_fd(s->link), .events = POLLIN },
        { .fd = s->options.channel_fd, .events = POLLIN },
        { .fd = s->options.signal_fd, .events = POLLIN },
    };
    if (poll(fds, sizeof fds / sizeof fds[0], timeout_ms) < 0 && errno != EINTR) {
        return err_set_errno(err, ERR_IO, "poll");
    }
    return 0;
}

int serve_turn(struct serve *s, int timeout_ms, struct err *err)
{
    drain_signals(s);
    drain_channel(s);
    bool drained = drain_link(s);
    if (s->broker_new && reconnect(s, err) < 0) {
        return -1;
    }
    if (s->stop) {
        return 0;
    }
    bool reading = bind_residents(s);
    if (step(s, err) < 0) {
        return -1;
    }
    collect_all(s);
    outbox_flush(s);
    /* Sending may have swallowed the descriptor's edge: what has come since is looked for before sleeping. */
    uint64_t n_heard = s->n_heard;
    drained = drained && drain_link(s);
    drained = drained &&
              n_heard == s->n_heard; /* what has just come is acted on by a turn, not by sleeping */
    outbox_flush(s);
    int most = !drained || s->broker_new || has_work(s) || s->n_out > 0 ? 0
               : reading                                                ? SERVE_READING_MS
                                                                        : SERVE_IDLE_MS;
    if (s->n_out > 0 && !has_work(s)) {
        most = SERVE_READING_MS; /* the line is full: not in a hurry */
    }
    return wait_for_events(s, timeout_ms >= 0 && timeout_ms < most ? timeout_ms : most, err) < 0
               ? -1
               : 1;
}
