/* What the broker says to the worker: models to bind and let go, requests to take, cancel and give back, evaluations. */
#include "worker/serve_parts.h"

#include <inttypes.h>
#include <unistd.h>

#include "proto/log.h"

static_assert((int)EVALUATE_LOGITS == (int)HEARTH__EVAL_KIND__LOGITS &&
                  (int)EVALUATE_PERPLEXITY == (int)HEARTH__EVAL_KIND__PERPLEXITY,
              "the kinds have one numbering");

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

/* The weights of a segment: as they are here, else taken from the keeper and mapped. */
static const struct weights *take_weights(struct serve *s, uint64_t segment, struct err *err)
{
    const struct weights *w = kept_find(&s->kept, segment);
    int fd;
    if (!w && take_segment(s, segment, &fd, err) == 0) {
        w = kept_map(&s->kept, segment, fd, err);
        close(fd);
    }
    return w;
}

/* Everything in flight on a model goes back; then the model goes. */
static void unbind(struct serve *s, struct resident *r)
{
    if (r->phase == RESIDENT_READY) {
        serve_collect(s, r);
        for (uint32_t i = 0; i < r->options.n_sequences; i++) {
            struct sequence *seq = &r->sequences[i];
            if (seq->open) {
                struct sequence_name name = seq->name;
                resident_release(r, seq);
                serve_say_released(s, name, NULL);
            }
        }
        struct err gone;
        err_set(&gone, ERR_BUSY, "the model leaves the device");
        while (r->n_evaluations > 0) {
            serve_say_evaluated(s, r->evaluations[0].work, NULL, &gone);
            resident_evaluation_close(r, 0);
        }
    }
    log_info("model %" PRIu64 ": unbound", r->options.model);
    serve_close_resident(s, r);
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

static int open_window(struct serve *s, struct resident *r, uint64_t segment, struct err *err)
{
    int fd;
    if (take_segment(s, segment, &fd, err) < 0) {
        return -1;
    }
    int rc = resident_open_window(r, fd, err);
    close(fd);
    return rc;
}

static void on_bind(struct serve *s, const Hearth__WorkerBind *bind)
{
    struct err err;
    struct resident *r = serve_find_resident(s, bind->model);
    if (r && r->options.segment == bind->segment) {
        if (r->phase == RESIDENT_READY) {
            serve_say_bound(s, bind->model, r, NULL);
        } else if (r->phase == RESIDENT_NEEDING) {
            serve_say_need(s, r);
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
        serve_say_bound(s, bind->model, NULL, &err);
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
    if (bind->has_golden) {
        message_copy(options.golden, sizeof options.golden, bind->golden);
    }
    const struct weights *w = NULL;
    if (read_kv_type(bind->has_kv_k, bind->kv_k, &options.k_type, &err) == 0 &&
        read_kv_type(bind->has_kv_v, bind->kv_v, &options.v_type, &err) == 0) {
        w = take_weights(s, bind->segment, &err);
    }
    if (!w) {
        serve_say_bound(s, bind->model, NULL, &err);
        return;
    }
    kept_use(&s->kept, w);
    resident_open(r, &options, s->backend, w);
    if (bind->has_uploaded && open_window(s, r, bind->uploaded, &err) < 0) {
        serve_fail_resident(s, r, &err);
        return;
    }
    log_info("model %" PRIu64 ": %s: binding", bind->model, options.name);
}

void serve_fail_resident(struct serve *s, struct resident *r, const struct err *why)
{
    uint64_t model = r->options.model;
    serve_close_resident(s, r);
    serve_say_bound(s, model, NULL, why);
}

static void on_state(struct serve *s, const Hearth__WorkerState *state)
{
    struct err err;
    struct resident *r = serve_find_resident(s, state->model);
    int fd = -1;
    if (!r || r->phase != RESIDENT_NEEDING) {
        return;
    }
    if (take_segment(s, state->segment, &fd, &err) < 0 ||
        resident_start(r, fd, state->fresh, &err) < 0) {
        serve_fail_resident(s, r, &err);
    } else {
        log_info("model %" PRIu64 ": ready, context %u, %u sequences, state %" PRIu64 " MiB%s",
                 r->options.model, r->shape.ctx_len, r->options.n_sequences, r->state_bytes >> 20,
                 state->fresh ? "" : ", taken over");
        serve_say_bound(s, r->options.model, r, NULL);
        kept_pin(&s->kept, r->weights); /* the next upload is quicker */
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* A hint: nothing is said when it cannot be. */
static void on_keep(struct serve *s, const Hearth__WorkerKeep *ask)
{
    struct err err;
    const struct weights *w = s->backend->ops->pin ? take_weights(s, ask->segment, &err) : NULL;
    if (w) {
        kept_pin(&s->kept, w);
    }
}

static void on_forget(struct serve *s, const Hearth__WorkerForget *ask)
{
    if (!kept_forget(&s->kept, ask->segment)) {
        serve_say_forgot(s, ask->segment);
    }
}

static void on_take(struct serve *s, const Hearth__WorkerTake *take)
{
    struct err err;
    struct resident *owner;
    const struct sequence_name name = { take->shard, take->slot, take->generation };
    serve_sweep_finished(s);
    if (serve_find_sequence(s, name, &owner)) {
        return;
    }
    if (serve_is_finished(s, name)) {
        serve_say_finished(s, name);
        return;
    }
    struct resident *r = serve_find_resident(s, take->model);
    if (!r || r->phase != RESIDENT_READY) {
        /* Busy, not an error of the request: it can go on when the model is here. */
        err_set(&err, ERR_BUSY, "model %" PRIu64 " is not bound", take->model);
        serve_say_released(s, name, &err);
        return;
    }
    const struct journal *journal = shards_get(&s->shards, take->shard, serve_shard_in_use, s,
                                               &err);
    struct sequence *seq = journal ? resident_take(r, journal, name, s->options.child, &err) : NULL;
    if (!seq) {
        serve_say_released(s, name, &err);
        return;
    }
    if (take->has_parked && take->parked && r->park_key &&
        take_segment(s, take->parked, &seq->parked_fd, &err) < 0) {
        log_warn("a parked conversation is not used: %s", err.text);
        seq->parked_fd = -1;
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
    struct sequence *seq = serve_find_sequence(s, name, &owner);
    if (!seq) {
        if (serve_is_finished(s, name)) {
            serve_say_finished(s, name);
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
    serve_collect(s, owner);
}

static void on_release(struct serve *s, const Hearth__WorkerRelease *release)
{
    struct resident *owner;
    const struct sequence_name name = { release->shard, release->slot, release->generation };
    struct sequence *seq = serve_find_sequence(s, name, &owner);
    if (seq && seq->ended) {
        serve_collect(s, owner);
        return;
    }
    if (!seq && serve_is_finished(s, name)) {
        serve_say_finished(s, name);
        return;
    }
    if (seq) {
        resident_release(owner, seq);
    }
    serve_say_released(s, name, NULL);
}

static void on_evaluate(struct serve *s, const Hearth__WorkerEvaluate *ask)
{
    struct err err;
    struct resident *r = serve_find_resident(s, ask->model);
    int fd = -1;
    if (!r || r->phase != RESIDENT_READY) {
        err_set(&err, ERR_NOT_FOUND, "model %" PRIu64 " is not bound", ask->model);
        serve_say_evaluated(s, ask->work, NULL, &err);
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
        serve_say_evaluated(s, ask->work, NULL, &err);
    }
    if (fd >= 0) {
        close(fd);
    }
}

static void on_park(struct serve *s, const Hearth__WorkerPark *ask)
{
    struct err err;
    struct resident *r = serve_find_resident(s, ask->model);
    int fd = -1;
    if (r && r->phase == RESIDENT_READY && r->writing.state) {
        return; /* asked twice: one answer comes */
    }
    if (!r || r->phase != RESIDENT_READY) {
        serve_say_parked(s, ask->model, ask->segment, 0, NULL);
        return;
    }
    int begun = take_segment(s, ask->segment, &fd, &err) < 0
                    ? -1
                    : resident_park(r, ask->segment, fd, &err);
    if (begun <= 0) {
        serve_say_parked(s, ask->model, ask->segment, 0, begun < 0 ? &err : NULL);
    }
}

static void on_unbind(struct serve *s, const Hearth__WorkerUnbind *ask)
{
    struct resident *r = serve_find_resident(s, ask->model);
    if (r) {
        unbind(s, r);
    }
    Hearth__WorkerUnbound unbound = HEARTH__WORKER_UNBOUND__INIT;
    unbound.model = ask->model;
    serve_say(s, HEARTH__ENVELOPE__BODY_WORKER_UNBOUND, &unbound);
}

/* A broker that is new learns what is bound and what has ended; the first one knows of nothing. */
static void on_welcome(struct serve *s, const Hearth__Welcome *welcome)
{
    s->epoch = welcome->epoch;
    serve_sweep_finished(s);
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        if (s->resident[i].phase == RESIDENT_READY) {
            serve_say_bound(s, s->resident[i].options.model, &s->resident[i], NULL);
        }
    }
    for (uint32_t i = 0; i < s->n_finished; i++) {
        serve_say_finished(s, s->finished[i].name);
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
    case HEARTH__ENVELOPE__BODY_WORKER_KEEP:
        on_keep(s, e->worker_keep);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_FORGET:
        on_forget(s, e->worker_forget);
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
    case HEARTH__ENVELOPE__BODY_WORKER_PARK:
        on_park(s, e->worker_park);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_EVALUATE:
        on_evaluate(s, e->worker_evaluate);
        break;
    case HEARTH__ENVELOPE__BODY_WORKER_READER:
        if (e->worker_reader->has_gone && e->worker_reader->gone) {
            readers_forget(&s->readers, e->worker_reader->reader);
        } else {
            readers_know(&s->readers, e->worker_reader->reader);
            /* It may sleep over what was committed while we could not wake it: a client that came back to a new broker. */
            readers_wake(&s->readers, e->worker_reader->reader);
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
bool serve_drain_link(struct serve *s)
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
