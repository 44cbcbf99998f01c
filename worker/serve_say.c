/* What the worker says to the broker: Hello with all it holds, ends, needs; kept until the link takes it. */
#include "worker/serve_parts.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "proto/log.h"

/* Packs and queues a message; it leaves in order, now or when the line takes it. */
void serve_say(struct serve *s, Hearth__Envelope__BodyCase which, void *body)
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

void serve_outbox_pop(struct serve *s)
{
    free(s->outbox[s->out_first].data);
    s->out_first = (s->out_first + 1) % SERVE_OUTBOX_MAX;
    s->n_out--;
}

void serve_outbox_flush(struct serve *s)
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
        serve_outbox_pop(s);
    }
}

/* The names of the table's rows, a space behind each: the broker refuses other models before they are read. */
static const char *architectures(void)
{
    static char names[LIMIT_ARCH_NAMES_BYTES];
    size_t n = 0;
    for (uint32_t i = 0; arch_at(i); i++) {
        n += (size_t)snprintf(names + n, sizeof names - n, "%s ", arch_at(i)->name);
        assert(n < sizeof names);
    }
    return names;
}

static const char *isa_name(void)
{
    const char *fixed = getenv("HEARTH_ISA");
    if (fixed) {
        return fixed;
    }
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512vbmi")) {
        return "avx512";
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return "avx2";
    }
#endif
    return "portable";
}

/* Who we are and what we hold, ends that were not taken back included. */
void serve_say_hello(struct serve *s)
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
    uint64_t kept[KEPT_MAX];
    hello.has_keeps = true;
    hello.keeps = s->backend->ops->pin != NULL;
    hello.n_kept = kept_list(&s->kept, kept);
    hello.kept = kept;
    hello.has_architectures = true;
    hello.architectures = message_str(architectures());
    hello.has_own_memory = true;
    hello.own_memory = s->backend->ops->mirror != NULL;
    serve_say(s, HEARTH__ENVELOPE__BODY_HELLO, &hello);
}

void serve_say_bound(struct serve *s, uint64_t model, const struct resident *r,
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
        bound.has_spilled_bytes = true;
        bound.spilled_bytes = r->spilled_bytes;
        bound.arch = message_str(m->arch->name);
        bound.generates = resident_generates(r);
        bound.n_embd = m->dim;
        bound.pooling = message_str(m->pooling >= 0 && m->pooling < 5 ? poolings[m->pooling]
                                                                      : "none");
        bound.piece_bytes_max = r->pieces.bytes_max;
        bound.has_golden = r->golden[0] != 0;
        bound.golden = message_str(r->golden);
        bound.has_segment = true;
        bound.segment = r->options.segment;
        bound.has_park_key = true;
        bound.park_key = r->park_key;
        bound.has_token_bytes = true;
        bound.token_bytes = m->kv.page_bytes / KV_PAGE_TOKENS;
    }
    serve_say(s, HEARTH__ENVELOPE__BODY_WORKER_BOUND, &bound);
}

void serve_say_need(struct serve *s, const struct resident *r)
{
    Hearth__WorkerNeed need = HEARTH__WORKER_NEED__INIT;
    need.model = r->options.model;
    need.state_bytes = r->state_bytes;
    need.has_spilled_bytes = true;
    need.spilled_bytes = r->spilled_bytes;
    need.fingerprint = message_str(r->fingerprint_text);
    serve_say(s, HEARTH__ENVELOPE__BODY_WORKER_NEED, &need);
}

void serve_say_released(struct serve *s, struct sequence_name name, const struct err *why)
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
    serve_say(s, HEARTH__ENVELOPE__BODY_WORKER_RELEASED, &released);
}

void serve_say_finished(struct serve *s, struct sequence_name name)
{
    Hearth__WorkerFinished finished = HEARTH__WORKER_FINISHED__INIT;
    finished.shard = name.shard;
    finished.slot = name.slot;
    finished.generation = name.generation;
    serve_say(s, HEARTH__ENVELOPE__BODY_WORKER_FINISHED, &finished);
}

void serve_say_evaluated(struct serve *s, uint64_t work, const struct evaluate *e,
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
    serve_say(s, HEARTH__ENVELOPE__BODY_WORKER_EVALUATED, &done);
}

void serve_say_forgot(struct serve *s, uint64_t segment)
{
    Hearth__WorkerForgot forgot = HEARTH__WORKER_FORGOT__INIT;
    forgot.segment = segment;
    serve_say(s, HEARTH__ENVELOPE__BODY_WORKER_FORGOT, &forgot);
}

void serve_say_parked(struct serve *s, uint64_t model, uint64_t segment, uint64_t shard,
                      const struct err *error)
{
    Hearth__WorkerParked parked = HEARTH__WORKER_PARKED__INIT;
    parked.model = model;
    parked.segment = segment;
    parked.has_shard = shard != 0;
    parked.shard = shard;
    if (error) {
        parked.has_code = parked.has_text = true;
        parked.code = message_str(err_name(error->code));
        parked.text = message_str(error->text);
    }
    serve_say(s, HEARTH__ENVELOPE__BODY_WORKER_PARKED, &parked);
}
