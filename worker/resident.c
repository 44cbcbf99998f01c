#include "worker/resident_parts.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "proto/log.h"
#include "proto/shm.h"
#include "worker/prefix.h"

/* ---- to the device and back ---- */

void resident_open(struct resident *r, const struct resident_options *options,
                   struct backend *backend, const struct weights *weights)
{
    *r = (struct resident){ .options = *options, .backend = backend, .weights = weights };
    if (r->options.n_sequences == 0) {
        r->options.n_sequences = RESIDENT_SEQUENCES;
    }
    if (r->options.n_sequences > LIMIT_WORKER_SEQUENCES) {
        r->options.n_sequences = LIMIT_WORKER_SEQUENCES;
    }
    r->windowed = weights->header->window != 0;
    r->phase = RESIDENT_READING;
}

/* Data that is not there yet is not waited for: the loop has others to serve. */
static int no_wait(void *arg, uint64_t data_end, struct err *err)
{
    struct resident *r = arg;
    if (weights_watermark(r->weights) >= data_end) {
        return 0;
    }
    r->data_wanted = data_end;
    return err_set(err, ERR_BUSY, "its data is still being read");
}

static uint64_t state_bytes_max(const struct resident *r)
{
    struct sysinfo info;
    if (r->options.state_bytes_max > 0) {
        return r->options.state_bytes_max;
    }
    return sysinfo(&info) == 0 ? (uint64_t)info.totalram * info.mem_unit / 4 : 1ull << 30;
}

static uint64_t mix(uint64_t hash, uint64_t value)
{
    for (int i = 0; i < 8; i++) { /* FNV-1a, byte by byte */
        hash = (hash ^ ((value >> 8 * i) & 0xff)) * 0x100000001b3ull;
    }
    return hash;
}

/* Of all that decides what the bits in the state mean: file, layout, device, shape, build, instruction set. */
static uint64_t fingerprint_of(const struct resident *r)
{
    uint64_t hash = 0xcbf29ce484222325ull;
    hash = mix(hash, r->weights->header->digest);
    hash = mix(hash, r->weights->header->data_bytes);
    hash = mix(hash, r->model->kv.fingerprint);
    for (const char *c = r->backend->name; *c; c++) {
        hash = mix(hash, (uint64_t)*c);
    }
    hash = mix(hash, r->backend->fingerprint);
    hash = mix(hash, (uint64_t)r->shape.max_seqs << 32 | r->shape.n_pages);
    hash = mix(hash, (uint64_t)r->shape.ctx_len << 32 | STATE_VERSION);
    hash = mix(hash, r->shape.n_unmirrored);
    const char *isa = getenv("HEARTH_ISA");
    for (const char *c = HEARTH_VERSION; *c; c++) {
        hash = mix(hash, (uint64_t)*c);
    }
    for (const char *c = isa ? isa : ""; *c; c++) {
        hash = mix(hash, (uint64_t)*c);
    }
    return hash;
}

/* As above, but for the shape: a conversation fits whatever pool has room. A context's length counts only by what it does to
 * the rotation. */
static uint64_t park_key_of(const struct resident *r)
{
    uint64_t hash = park_engine();
    if (r->backend->fingerprint == 0) {
        return 0;
    }
    hash = mix(hash, parked_sum(r->backend->name, strlen(r->backend->name)));
    hash = mix(hash, r->backend->fingerprint);
    hash = mix(hash, r->weights->header->digest);
    hash = mix(hash, r->weights->header->data_bytes);
    hash = mix(hash, r->model->kv.fingerprint);
    hash = mix(hash, r->backend->exact);
    for (uint32_t i = 0; i < r->model->n_ropes; i++) {
        const struct model_rope *rope = &r->model->ropes[i];
        hash = mix(hash, parked_sum(rope->freq, rope->n_pairs * sizeof *rope->freq));
        hash = mix(hash, parked_sum(&rope->mag, sizeof rope->mag));
    }
    return hash ? hash : 1;
}

static struct model *bind_model(struct resident *r, uint32_t ctx_len, struct err *err)
{
    const struct model_options options = {
        .k_type = r->options.k_type,
        .v_type = r->options.v_type,
        .ctx_len = ctx_len,
        .wait = { .wait = no_wait, .arg = r },
        .spill = &r->spill,
    };
    return model_bind(r->weights, r->backend, &options, err);
}

/* A device with memory of its own is asked for all of it at once, before anything is taken. */
static int fit_device(struct resident *r, struct err *err)
{
    const struct plan_question q = {
        .ctx_len = r->options.ctx_len,
        .k_type = r->options.k_type,
        .v_type = r->options.v_type,
        .n_sequences = r->options.n_sequences,
        .state_bytes_max = state_bytes_max(r),
        .wait = { .wait = no_wait, .arg = r },
    };
    struct plan plan;
    if (plan_compute(r->weights, r->backend, &q, &plan, err) < 0) {
        return -1;
    }
    r->shape = plan.shape;
    r->spill = plan.spill;
    r->spilled_bytes = plan.host_weights_bytes;
    log_info("model %" PRIu64 ": %.2f of %.2f GiB on the device, %u positions", r->options.model,
             (double)plan.total_bytes / (1u << 30), (double)plan.room_bytes / (1u << 30),
             plan.shape.ctx_len);
    if (plan.host_weights_bytes) {
        log_info("model %" PRIu64 ": %.2f GiB of weights in the host's memory, %.2f GiB of them "
                 "streamed in every step",
                 r->options.model, (double)plan.host_weights_bytes / (1u << 30),
                 (double)plan.streamed_bytes / (1u << 30));
    }
    return 0;
}

/* What has been read goes to the device while the rest is still on its way. */
static int upload_read(struct resident *r, struct err *err)
{
    const struct weights *w = r->weights;
    uint64_t upto = weights_watermark(w);
    if (r->backend->ops->arrived(r->backend, w->base, w->size, upto, err) < 0) {
        return -1;
    }
    resident_tell_uploaded(r, upto);
    return 0;
}

int resident_bind(struct resident *r, struct err *err)
{
    assert(r->phase == RESIDENT_READING);
    if (resident_wants_data(r)) {
        return 0;
    }
    r->data_wanted = 0;
    bool device = r->backend->ops->mirror != NULL;
    if (resident_check_window(r, err) < 0) {
        return -1;
    }
    if (!r->model && (!device || fit_device(r, err) == 0)) {
        r->model = bind_model(r, device ? r->shape.ctx_len : r->options.ctx_len, err);
    }
    if (!r->model) {
        return r->data_wanted ? 0 : -1;
    }
    bool all = resident_all_read(r);
    if (device && (!all || r->windowed) && upload_read(r, err) < 0) {
        return -1;
    }
    if (device && !all) {
        return 0; /* it answers the golden prompt first, for which it needs all */
    }
    uint32_t n = r->options.n_sequences;
    if (!device &&
        state_fit(&r->model->kv, n, r->model->ctx_len, state_bytes_max(r), &r->shape, err) < 0) {
        return -1;
    }
    if (r->shape.ctx_len < r->model->ctx_len && r->windowed) {
        return err_set(err, ERR_FAILED, "a context of %u was planned, %u is bound",
                       r->shape.ctx_len, r->model->ctx_len);
    }
    if (r->shape.ctx_len < r->model->ctx_len) {
        /* Some models choose their rotation by the context's length, so it is bound anew. */
        model_destroy(&r->model);
        r->model = bind_model(r, r->shape.ctx_len, err);
        if (!r->model) {
            return r->data_wanted ? 0 : -1;
        }
    }
    if (pieces_build(&r->pieces, r->weights, err) < 0) {
        return -1;
    }
    if (r->pieces.bytes_max > LIMIT_PIECE_BYTES) {
        return err_set(err, ERR_UNSUPPORTED, "a token of %u bytes, at most %d are served",
                       r->pieces.bytes_max, LIMIT_PIECE_BYTES);
    }
    r->fingerprint = fingerprint_of(r);
    snprintf(r->fingerprint_text, sizeof r->fingerprint_text, "%016" PRIx64, r->fingerprint);
    r->state_bytes = state_size(&r->model->kv, &r->shape);
    r->park_key = park_key_of(r);
    r->phase = RESIDENT_NEEDING;
    return 1;
}

bool resident_generates(const struct resident *r)
{
    return r->model->causal;
}

static int make_room(struct resident *r, struct err *err)
{
    uint32_t n = r->options.n_sequences;
    r->rows_max = plan_rows_max(r->model, r->shape.ctx_len, &r->spill);
    r->tokens = calloc(r->rows_max, sizeof *r->tokens);
    r->seqs = calloc(r->rows_max, sizeof *r->seqs);
    r->positions = calloc(r->rows_max, sizeof *r->positions);
    r->flags = calloc(r->rows_max, 1);
    r->sequences = calloc(n, sizeof *r->sequences);
    r->evaluations = calloc(RESIDENT_EVALUATIONS, sizeof *r->evaluations);
    r->logits = calloc((size_t)n * r->model->vocab_size, sizeof *r->logits);
    if (!r->tokens || !r->seqs || !r->positions || !r->flags || !r->sequences || !r->evaluations ||
        !r->logits) {
        return err_set(err, ERR_NO_MEMORY, "no memory for steps of %u rows", r->rows_max);
    }
    for (uint32_t i = 0; i < n; i++) {
        r->sequences[i].kv = SEQUENCE_NO_KV;
    }
    r->sampling = sampler_work_create(r->model->vocab_size, r->shape.ctx_len, &r->pieces, err);
    if (!r->sampling) {
        return -1;
    }
    r->forward = forward_create(r->model, r->backend, r->rows_max, n, err);
    if (!r->forward || kvcache_place(&r->state.kv, r->backend, err) < 0) {
        return -1;
    }
    forward_set_progress(r->forward, &r->state.header->progress);
    batch_pace_init(&r->pace);
    return ahead_create(r, err);
}

/* A device of its own may have come back from a fault wrong: then nothing of it is believed, and this process with it. */
static int check_device(struct resident *r, struct err *err)
{
    if (!r->backend->ops->mirror) {
        return 0;
    }
    if (golden_compute(r->forward, r->model, &r->state, park_engine(), r->golden, err) < 0) {
        return -1;
    }
    if (golden_differs(r->options.golden, r->golden)) {
        log_error("model %s: the device does not answer as it did when the model first ran on it",
                  r->options.name);
        _exit(err_exit_code(ERR_FAILED));
    }
    return 0;
}

int resident_start(struct resident *r, int state_fd, bool fresh, struct err *err)
{
    assert(r->phase == RESIDENT_NEEDING);
    r->state_map = shm_map(state_fd, true, &r->state_map_bytes, err);
    if (!r->state_map) {
        return -1;
    }
    struct err why;
    const struct kv_layout *layout = &r->model->kv;
    int adopted = fresh ? -1
                        : state_adopt(&r->state, layout, &r->shape, r->fingerprint, r->state_map,
                                      r->state_map_bytes, &why);
    if (!fresh && adopted < 0) {
        log_warn("model %" PRIu64 ": %s: begun anew", r->options.model, why.text);
    }
    if (adopted < 0 && state_init(&r->state, layout, &r->shape, r->fingerprint, r->state_map,
                                  r->state_map_bytes, err) < 0) {
        return -1;
    }
    if (make_room(r, err) < 0 || check_device(r, err) < 0) {
        return -1;
    }
    r->phase = RESIDENT_READY;
    return 0;
}

void resident_close(struct resident *r)
{
    if (r->phase == RESIDENT_FREE) {
        return;
    }
    ahead_destroy(r);
    for (uint32_t i = 0; r->sequences && i < r->options.n_sequences; i++) {
        sequence_close(&r->sequences[i]);
    }
    while (r->n_evaluations > 0) {
        resident_evaluation_close(r, 0);
    }
    free(r->evaluations);
    free(r->sequences);
    free(r->logits);
    free(r->tokens);
    free(r->seqs);
    free(r->positions);
    free(r->flags);
    sampler_work_destroy(&r->sampling);
    forward_destroy(&r->forward);
    park_clear(&r->writing);
    park_clear(&r->reading);
    state_clear(&r->state);
    shm_unmap(r->state_map, r->state_map_bytes);
    pieces_clear(&r->pieces);
    model_destroy(&r->model);
    uploaded_unmap(r->word);
    *r = (struct resident){ 0 };
}

/* ---- requests ---- */

struct sequence *resident_find(struct resident *r, struct sequence_name name)
{
    for (uint32_t i = 0; r->sequences && i < r->options.n_sequences; i++) {
        struct sequence *s = &r->sequences[i];
        if (s->open && s->name.shard == name.shard && s->name.slot == name.slot &&
            s->name.generation == name.generation) {
            return s;
        }
    }
    return NULL;
}

struct sequence *resident_take(struct resident *r, const struct journal *journal,
                               struct sequence_name name, uint32_t epoch, struct err *err)
{
    assert(r->phase == RESIDENT_READY);
    if (!resident_generates(r)) {
        err_set(err, ERR_UNSUPPORTED, "model %s gives embeddings, not answers", r->options.name);
        return NULL;
    }
    for (uint32_t i = 0; i < r->options.n_sequences; i++) {
        struct sequence *s = &r->sequences[i];
        if (s->open) {
            continue;
        }
        if (sequence_open(s, journal, name, epoch, &r->pieces, r->model->vocab_size,
                          r->shape.ctx_len, err) < 0) {
            return NULL;
        }
        s->arrival = ++r->arrivals;
        return s;
    }
    err_set(err, ERR_BUSY, "all %u sequences are taken", r->options.n_sequences);
    return NULL;
}

void resident_release(struct resident *r, struct sequence *s)
{
    resident_abandon_step(r);
    if (s->kv != SEQUENCE_NO_KV) {
        state_idle(&r->state, (uint32_t)s->kv);
        r->room_freed = true;
    }
    sequence_close(s);
}

/* ---- conversations that leave ---- */

int resident_park(struct resident *r, uint64_t segment, int fd, struct err *err)
{
    assert(r->phase == RESIDENT_READY && !r->writing.state);
    int64_t seq = r->park_key ? park_next(&r->state) : -1;
    if (seq < 0) {
        close(fd);
        return 0;
    }
    r->park_segment = segment;
    return park_write_begin(&r->writing, &r->state, (uint32_t)seq, r->park_key, fd, err) < 0 ? -1
                                                                                             : 1;
}
