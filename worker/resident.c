#include "worker/resident.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "proto/log.h"
#include "proto/shm.h"
#include "worker/prefix.h"

/* ---- to the device and back ---- */

int resident_open(struct resident *r, const struct resident_options *options,
                  struct backend *backend, int weights_fd, struct err *err)
{
    *r = (struct resident){ .options = *options, .backend = backend };
    if (r->options.n_sequences == 0) {
        r->options.n_sequences = RESIDENT_SEQUENCES;
    }
    if (r->options.n_sequences > LIMIT_WORKER_SEQUENCES) {
        r->options.n_sequences = LIMIT_WORKER_SEQUENCES;
    }
    if (weights_map(&r->weights, weights_fd, err) < 0) {
        *r = (struct resident){ 0 };
        return -1;
    }
    r->phase = RESIDENT_READING;
    return 0;
}

/* Data that is not there yet is not waited for: the loop has others to serve. */
static int no_wait(void *arg, uint64_t data_end, struct err *err)
{
    struct resident *r = arg;
    if (weights_watermark(&r->weights) >= data_end) {
        return 0;
    }
    r->data_wanted = data_end;
    return err_set(err, ERR_BUSY, "its data is still being read");
}

static bool all_read(const struct resident *r)
{
    return weights_watermark(&r->weights) >= r->weights.header->data_bytes;
}

static bool wants_data(const struct resident *r)
{
    return r->data_wanted > weights_watermark(&r->weights);
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
    hash = mix(hash, r->weights.header->digest);
    hash = mix(hash, r->weights.header->data_bytes);
    hash = mix(hash, r->model->kv.fingerprint);
    for (const char *c = r->backend->name; *c; c++) {
        hash = mix(hash, (uint64_t)*c);
    }
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
    if (strcmp(r->backend->name, "cpu") != 0) {
        return 0;
    }
    hash = mix(hash, r->weights.header->digest);
    hash = mix(hash, r->weights.header->data_bytes);
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
    };
    return model_bind(&r->weights, r->backend, &options, err);
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
    if (plan_compute(&r->weights, r->backend, &q, &plan, err) < 0) {
        return -1;
    }
    r->shape = plan.shape;
    log_info("model %" PRIu64 ": %.2f of %.2f GiB on the device, %u positions", r->options.model,
             (double)plan.total_bytes / (1u << 30), (double)plan.room_bytes / (1u << 30),
             plan.shape.ctx_len);
    return 0;
}

/* What has been read goes to the device while the rest is still on its way. */
static int upload_read(struct resident *r, struct err *err)
{
    const struct weights *w = &r->weights;
    return r->backend->ops->arrived(r->backend, w->base, w->size, weights_watermark(w), err);
}

int resident_bind(struct resident *r, struct err *err)
{
    assert(r->phase == RESIDENT_READING);
    if (wants_data(r)) {
        return 0;
    }
    r->data_wanted = 0;
    bool device = r->backend->ops->mirror != NULL;
    if (!r->model && (!device || fit_device(r, err) == 0)) {
        r->model = bind_model(r, device ? r->shape.ctx_len : r->options.ctx_len, err);
    }
    if (!r->model) {
        return r->data_wanted ? 0 : -1;
    }
    if (device && !all_read(r)) {
        return upload_read(r, err); /* it answers the golden prompt first, for which it needs all */
    }
    uint32_t n = r->options.n_sequences;
    if (!device &&
        state_fit(&r->model->kv, n, r->model->ctx_len, state_bytes_max(r), &r->shape, err) < 0) {
        return -1;
    }
    if (r->shape.ctx_len < r->model->ctx_len) {
        /* Some models choose their rotation by the context's length, so it is bound anew. */
        model_destroy(&r->model);
        r->model = bind_model(r, r->shape.ctx_len, err);
        if (!r->model) {
            return r->data_wanted ? 0 : -1;
        }
    }
    if (pieces_build(&r->pieces, &r->weights, err) < 0) {
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
    r->rows_max = plan_rows_max(r->model, r->shape.ctx_len);
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
    return 0;
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
    weights_unmap(&r->weights);
    *r = (struct resident){ 0 };
}

/* ---- requests ---- */

/* The step that was set aside is forgotten when one of its sequences is: nothing of it is committed. */
static void abandon_step(struct resident *r)
{
    if (r->batch.set_aside) {
        r->batch.set_aside = false;
        forward_abandon(r->forward);
    }
}

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
    abandon_step(r);
    if (s->kv != SEQUENCE_NO_KV) {
        state_idle(&r->state, (uint32_t)s->kv);
        r->room_freed = true;
    }
    sequence_close(s);
}

/* ---- conversations that leave and come back ---- */

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

/* The next piece of the file that is being read; its request is seated when that has come to an end, well or not. */
static void fetch_piece(struct resident *r)
{
    struct err err;
    int got = park_read(&r->reading, &err);
    if (got < 0) {
        log_warn("a parked conversation is not believed: %s", err.text);
    }
    for (uint32_t i = 0; got && i < r->options.n_sequences; i++) {
        r->sequences[i].fetching = false;
    }
}

/* One file at a time: somebody's who waits for a seat. What is here already is not read. */
static void fetch(struct resident *r, struct sequence **order, uint32_t n)
{
    struct err err;
    for (uint32_t i = 0; i < n && !r->reading.state; i++) {
        struct sequence *s = order[i];
        if (s->parked_fd < 0 || s->kv != SEQUENCE_NO_KV) {
            continue;
        }
        uint32_t have = prefix_have(&r->state, s->name.shard, s->tag, s->tokens, s->n_tokens);
        int64_t will = park_read_begin(&r->reading, &r->state, s->name.shard, r->park_key,
                                       s->tokens, s->n_tokens, have, s->parked_fd, &err);
        s->parked_fd = -1;
        s->fetching = will > 0;
        if (will < 0) {
            log_warn("a parked conversation is not used: %s", err.text);
        }
    }
    if (r->reading.state) {
        fetch_piece(r);
    }
}

/* ---- a step ---- */

static bool runs(const struct sequence *s)
{
    return s->open && !s->ended;
}

/* Ends a request by an error of its own; if even that has no room in the log, the log is given back as it is. */
static void fail(struct sequence *s, enum err_code code, const char *reason)
{
    struct err err;
    if (!s->ended && sequence_end(s, JOURNAL_END_ERROR, code, reason, &err) < 0) {
        log_error("request in slot %u: its end cannot be written: %s", s->name.slot, err.text);
        s->ended = s->lost = true;
    }
}

static void hear_cancels(struct resident *r)
{
    struct err err;
    for (uint32_t i = 0; i < r->options.n_sequences; i++) {
        struct sequence *s = &r->sequences[i];
        if (runs(s) && sequence_cancelled(s) &&
            sequence_end(s, JOURNAL_END_CANCELLED, ERR_CANCELLED, NULL, &err) < 0) {
            fail(s, err.code, err.text);
        }
    }
}

/* Those that run, the oldest first. */
static uint32_t by_arrival(struct resident *r, struct sequence **order)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->options.n_sequences; i++) {
        struct sequence *s = &r->sequences[i];
        if (!runs(s)) {
            continue;
        }
        uint32_t at = n++;
        for (; at > 0 && order[at - 1]->arrival > s->arrival; at--) {
            order[at] = order[at - 1];
        }
        order[at] = s;
    }
    return n;
}

/* Gives sequences without a place in the cache one. Those that had to leave come back when room was freed, or when nobody
 * else is there. */
static void seat(struct resident *r, struct sequence **order, uint32_t n)
{
    bool anybody = false;
    struct err err;
    for (uint32_t i = 0; i < n; i++) {
        anybody |= order[i]->kv != SEQUENCE_NO_KV;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct sequence *s = order[i];
        if (s->kv != SEQUENCE_NO_KV || s->fetching || s->parked_fd >= 0 ||
            (s->parked && anybody && !r->room_freed)) {
            continue;
        }
        uint32_t seq, n_cached;
        if (prefix_begin(&r->state, s->name.shard, s->tag, s->tokens, s->n_tokens, &seq, &n_cached,
                         &err) < 0) {
            break; /* an evaluation has the last one; later */
        }
        s->kv = seq;
        s->n_cached = n_cached < s->n_prompt ? n_cached : s->n_prompt;
        if (s->parked) {
            s->parked = false;
            break; /* one at a time: it may need all that was freed */
        }
        anybody = true;
    }
    r->room_freed = false;
}

static void park(struct resident *r, struct sequence *s)
{
    state_drop(&r->state, (uint32_t)s->kv);
    s->kv = SEQUENCE_NO_KV;
    s->parked = true;
}

/* Pages for this step's rows of sequence i: from the free ones, from idle sequences, from younger ones. The oldest can
 * always go on: the pool holds at least one whole context. */
static void make_pages(struct resident *r, struct sequence **order, struct batch_item *items,
                       uint32_t n, uint32_t i)
{
    struct err err;
    while (kvcache_reserve(&r->state.kv, (uint32_t)order[i]->kv, items[i].n_rows, &err) < 0) {
        if (err.code == ERR_FULL && state_evict(&r->state)) {
            continue;
        }
        uint32_t victim = n - 1;
        while (victim > i && order[victim]->kv == SEQUENCE_NO_KV) {
            victim--;
        }
        if (err.code != ERR_FULL || (victim == i && i == 0 && r->n_evaluations == 0)) {
            fail(order[i], ERR_NO_FIT, err.text);
            items[i].n_rows = 0;
            return;
        }
        park(r, order[victim]);
        items[victim].n_rows = 0;
        if (victim == i) {
            return;
        }
    }
}

/* Fills the step's arrays; returns its rows. */
static uint32_t fill(struct resident *r, struct sequence **order, const struct batch_item *items,
                     uint32_t n)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct sequence *s = order[i];
        if (items[i].n_rows == 0) {
            continue;
        }
        int64_t pos = kvcache_pos(&r->state.kv, (uint32_t)s->kv);
        int32_t *kept = state_tokens(&r->state, (uint32_t)s->kv);
        for (uint32_t k = 0; k < items[i].n_rows; k++, pos++, rows++) {
            r->tokens[rows] = kept[pos] = s->tokens[pos];
            r->seqs[rows] = (uint32_t)s->kv;
            r->positions[rows] = pos;
            r->flags[rows] = pos + 1 == s->n_tokens ? FORWARD_LOGITS : 0;
        }
    }
    return rows;
}

/* After tokens were taken back: the logits of the last one that stays are needed again, so it is fed again. */
static void rewind_cache(struct resident *r, struct sequence *s)
{
    struct err err;
    s->rewound = false;
    if (kvcache_truncate(&r->state.kv, (uint32_t)s->kv, s->n_tokens - 1, &err) < 0) {
        /* A recurrent state does not go back: begun anew, from what others may hold of it. */
        state_drop(&r->state, (uint32_t)s->kv);
        s->kv = SEQUENCE_NO_KV;
        r->room_freed = true;
    }
}

static void answer(struct resident *r, struct sequence *s, const float *logits)
{
    struct sampler_choice choice;
    struct err err;
    uint32_t at = s->n_tokens;
    do {
        s->rewound = false;
        struct sampler_refused refused = sequence_refused(s);
        if (sampler_choose(r->sampling, &s->sampler, logits, s->tokens, s->n_tokens, &refused,
                           &choice, &err) < 0 ||
            sequence_accept(s, &choice, &err) < 0) {
            fail(s, err.code, err.text);
            return;
        }
    } while (s->rewound && s->n_tokens == at); /* another token from the same logits */
    if (s->rewound) {
        rewind_cache(r, s);
    }
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Sequences that ended keep what they computed, as idle ones. */
static void leave_seats(struct resident *r)
{
    for (uint32_t i = 0; i < r->options.n_sequences; i++) {
        struct sequence *s = &r->sequences[i];
        if (s->open && s->ended && s->kv != SEQUENCE_NO_KV) {
            state_idle(&r->state, (uint32_t)s->kv);
            s->kv = SEQUENCE_NO_KV;
            r->room_freed = true;
        }
    }
}

/* Chooses what steps now: r->batch and the step's arrays. */
static void plan_step(struct resident *r)
{
    struct resident_batch *b = &r->batch;
    b->n = by_arrival(r, b->order);
    b->n_decode = 0;
    fetch(r, b->order, b->n);
    seat(r, b->order, b->n);
    for (uint32_t i = 0; i < b->n; i++) {
        b->items[i] = (struct batch_item){ 0 };
        if (b->order[i]->kv != SEQUENCE_NO_KV) {
            b->items[i].n_left = b->order[i]->n_tokens -
                                 (uint32_t)kvcache_pos(&r->state.kv, (uint32_t)b->order[i]->kv);
            b->n_decode += b->items[i].n_left == 1;
        }
    }
    b->shared = b->n_decode > 0 || r->n_evaluations > 0;
    batch_plan(b->items, b->n, batch_budget(&r->pace, b->shared), r->rows_max);
    for (uint32_t i = 0; i < b->n; i++) {
        if (b->items[i].n_rows > 0) {
            make_pages(r, b->order, b->items, b->n, i);
        }
    }
    b->n_rows = fill(r, b->order, b->items, b->n);
}

static int generate(struct resident *r, struct err *err)
{
    struct resident_batch *b = &r->batch;
    bool goes_on = b->set_aside;
    if (!goes_on) {
        plan_step(r);
    }
    b->set_aside = false;
    if (b->n_rows == 0) {
        leave_seats(r);
        return 0;
    }
    const struct forward_batch batch = { .n_tokens = b->n_rows,
                                         .tokens = r->tokens,
                                         .seqs = r->seqs,
                                         .positions = r->positions,
                                         .flags = r->flags };
    double before = now_s();
    r->data_wanted = 0;
    if (forward_step(r->forward, &r->state.kv, &batch, r->logits, NULL, err) < 0) {
        b->set_aside = r->data_wanted > 0;
        return b->set_aside ? 0 : err_wrap(err, "a step of %u rows", batch.n_tokens);
    }
    if (!goes_on) {
        batch_observe(&r->pace, b->shared, batch.n_tokens - b->n_decode, now_s() - before);
    }
    const float *row = r->logits;
    for (uint32_t i = 0; i < b->n; i++) {
        if (b->items[i].n_rows > 0 && b->items[i].n_rows == b->items[i].n_left) {
            answer(r, b->order[i], row);
            row += r->model->vocab_size;
        }
    }
    leave_seats(r);
    return 0;
}

/* ---- evaluations ---- */

int resident_evaluate(struct resident *r, uint64_t work, enum evaluate_kind kind,
                      const uint32_t *lens, uint32_t n_lens, int64_t start, int bulk_fd,
                      uint64_t ids_bytes, uint64_t n_ids, struct err *err)
{
    assert(r->phase == RESIDENT_READY);
    if (r->n_evaluations == RESIDENT_EVALUATIONS) {
        return err_set(err, ERR_BUSY, "%d evaluations wait already", RESIDENT_EVALUATIONS);
    }
    struct resident_evaluation *v = &r->evaluations[r->n_evaluations];
    *v = (struct resident_evaluation){ .work = work };
    v->bulk = shm_map(bulk_fd, true, &v->bulk_bytes, err);
    if (!v->bulk) {
        return -1;
    }
    if (ids_bytes % sizeof(float) || ids_bytes > v->bulk_bytes ||
        n_ids > ids_bytes / sizeof(int32_t)) {
        err_set(err, ERR_BAD_INPUT, "%" PRIu64 " ids in %" PRIu64 " bytes of %zu", n_ids, ids_bytes,
                v->bulk_bytes);
        goto fail;
    }
    if (evaluate_init(&v->e, r->model, kind, v->bulk, n_ids, lens, n_lens, start, r->shape.ctx_len,
                      r->rows_max, err) < 0) {
        goto fail;
    }
    uint64_t room = (v->bulk_bytes - ids_bytes) / sizeof(float);
    if (v->e.n_rows > 0 && v->e.n_rows > room / v->e.n_cols) {
        err_set(err, ERR_NO_FIT, "%" PRIu64 " rows of %" PRIu64 " values, the segment has %" PRIu64,
                v->e.n_rows, v->e.n_cols, room);
        evaluate_clear(&v->e);
        goto fail;
    }
    v->e.out = (float *)(void *)((uint8_t *)v->bulk + ids_bytes);
    r->n_evaluations++;
    return 0;
fail:
    shm_unmap(v->bulk, v->bulk_bytes);
    *v = (struct resident_evaluation){ 0 };
    return -1;
}

void resident_evaluation_close(struct resident *r, uint32_t i)
{
    assert(i < r->n_evaluations);
    struct resident_evaluation *v = &r->evaluations[i];
    if (v->e.seq >= 0) {
        state_drop(&r->state, (uint32_t)v->e.seq);
        r->room_freed = true;
    }
    evaluate_clear(&v->e);
    shm_unmap(v->bulk, v->bulk_bytes);
    r->n_evaluations--;
    memmove(v, v + 1, (r->n_evaluations - i) * sizeof *v);
}

/* One piece of the first evaluation that has not ended. */
static void evaluate(struct resident *r, bool shared)
{
    struct resident_evaluation *v = NULL;
    for (uint32_t i = 0; i < r->n_evaluations && !v; i++) {
        v = r->evaluations[i].ended ? NULL : &r->evaluations[i];
    }
    if (!v) {
        return;
    }
    struct evaluate *e = &v->e;
    struct kvcache_tag tag = { .hi = UINT64_MAX, .lo = v->work };
    uint32_t seq, rows = batch_budget(&r->pace, shared);
    if (e->seq < 0) {
        if (state_begin(&r->state, STATE_SHARD_NONE, tag, e->start, &seq, &v->error) < 0) {
            v->ended = true;
            return;
        }
        e->seq = seq;
    }
    rows = evaluate_rows(e, r->model, rows < r->rows_max ? rows : r->rows_max);
    while (kvcache_reserve(&r->state.kv, (uint32_t)e->seq, rows, &v->error) < 0) {
        if (v->error.code == ERR_FULL && state_evict(&r->state)) {
            continue;
        }
        if (v->error.code == ERR_FULL && shared) {
            v->error.code = ERR_NONE;
            return; /* those who generate will leave pages */
        }
        v->ended = true;
        return;
    }
    v->error = (struct err){ 0 };
    if (evaluate_step(e, r->model, r->forward, &r->state.kv, rows, &v->error) < 0) {
        v->ended = true;
        return;
    }
    if (e->seq_ended) {
        state_drop(&r->state, (uint32_t)e->seq);
        e->seq = -1;
        e->seq_ended = false;
        r->room_freed = true;
    }
    v->ended = evaluate_done(e);
}

/* ---- the loop's view ---- */

static bool generates_now(const struct resident *r)
{
    for (uint32_t i = 0; i < r->options.n_sequences; i++) {
        if (runs(&r->sequences[i])) {
            return true;
        }
    }
    return false;
}

/* An evaluation is not set aside half-way: it begins when all is there. */
static bool evaluates_now(const struct resident *r)
{
    return r->n_evaluations > 0 && all_read(r);
}

bool resident_has_work(const struct resident *r)
{
    return r->phase == RESIDENT_READY &&
           (evaluates_now(r) || r->reading.state || (generates_now(r) && !wants_data(r)));
}

bool resident_waits(struct resident *r)
{
    bool waits = r->phase == RESIDENT_READY && !all_read(r) &&
                 (r->n_evaluations > 0 || (generates_now(r) && wants_data(r)));
    if (waits) {
        hear_cancels(r);
        atomic_fetch_add_explicit(&r->state.header->progress, 1, memory_order_relaxed);
    }
    return waits;
}

int resident_step(struct resident *r, struct err *err)
{
    assert(r->phase == RESIDENT_READY);
    hear_cancels(r);
    for (uint32_t i = 0; i < r->batch.n; i++) {
        if (r->batch.set_aside && !runs(r->batch.order[i])) {
            abandon_step(r);
        }
    }
    leave_seats(r);
    bool shared = generates_now(r);
    if (evaluates_now(r) && !r->batch.set_aside && (r->evaluate_next || !shared)) {
        r->evaluate_next = false;
        evaluate(r, shared);
        return 0;
    }
    r->evaluate_next = true;
    return generate(r, err);
}
