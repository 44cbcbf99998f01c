/* The engine in this process, timed: the figure that the service's overhead is judged against. Tokens are a fixed
 * pattern, nothing is sampled: what is timed is forward_step. A device that chooses tokens itself generates as it does in the
 * service: drawn there, fed there, a step ahead (forward_leave). One thread drives. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "clients/direct/bench.h"
#include "clients/direct/synth_model.h"
#include "loader/load.h"
#include "worker/cpu/ceiling.h"
#include "worker/cpu/team.h"
#include "worker/forward.h"
#include "worker/plan.h"

#define CHUNK        512 /* tokens of a prefill step, where the plan has nothing against it */
#define COPIED       512 /* positions that are computed where a depth is made of copies */
#define PROBE_BYTES  (1u << 30) /* of weights read to learn the machine's bandwidth, at most */
#define PROBE_PIECE  (1u << 20) /* one thread's turn of it */
#define PROBE_ROUNDS 5
#define PIN_QUIET_S  2.0 /* without another piece of weights registered: no more will be */

struct bench {
    const struct bench_question *q; /* the one that is measured; model and device are everybody's */
    uint32_t n_seqs, n_pages, ctx_len; /* the most that any needs */
    uint32_t chunk;                    /* tokens of a prefill step */
    struct spill spill;                /* weights that the device has no room for */
    struct weights weights;
    struct backend *backend;
    struct model *model;
    struct forward *forward;
    struct kvcache kv;
    void *memory;
    size_t memory_bytes;
    float *logits; /* (n_parallel, vocab_size) */
    int32_t *tokens;
    uint32_t *seqs;
    int64_t *positions;
    uint8_t *flags;
    uint32_t *slots; /* [n_parallel] */
    struct op_pick picks[OP_PICK_ROWS_MAX];
    struct op_picked picked[2][OP_PICK_ROWS_MAX];
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* synth:ARCH:PRESET:TYPE or a file. */
static int load(struct bench *b, struct err *err)
{
    const char *name = b->q->model;
    enum weights_layout layout = b->backend->ops->mirror ? WEIGHTS_LAYOUT_FILE
                                                         : WEIGHTS_LAYOUT_ROWS16;
    char text[128], *save = NULL;
    if (strncmp(name, "synth:", 6) != 0) {
        return loader_load_direct(name, layout, &b->weights, err);
    }
    if (strlen(name) >= sizeof text) {
        return err_set(err, ERR_USAGE, "%.40s...: synth:ARCH:PRESET:TYPE", name);
    }
    strcpy(text, name + 6);
    const char *arch = strtok_r(text, ":", &save), *preset = strtok_r(NULL, ":", &save);
    const char *type = strtok_r(NULL, ":", &save);
    if (!arch || !preset || !type) {
        return err_set(err, ERR_USAGE, "%s: synth:ARCH:PRESET:TYPE", name);
    }
    return synth_load(arch, preset, type, layout, &b->weights, err);
}

/* Binds the model and brings its weights to a device that has memory of its own; GB/s of that. */
static int bind_model(struct bench *b, double *gbs, struct err *err)
{
    const struct model_options options = {
        .k_type = b->q->k_type, .v_type = b->q->v_type, .ctx_len = b->ctx_len, .spill = &b->spill
    };
    b->model = model_bind(&b->weights, b->backend, &options, err);
    if (!b->model) {
        return err_wrap(err, "model %s", b->q->model);
    }
    double start = now();
    if (b->backend->ops->arrived &&
        (b->backend->ops->arrived(b->backend, b->weights.base, b->weights.size, UINT64_MAX, err) <
             0 ||
         (b->backend->ops->finish && b->backend->ops->finish(b->backend, err) < 0))) {
        return -1;
    }
    *gbs = b->backend->ops->arrived ? (double)b->weights.header->data_bytes / (now() - start) / 1e9
                                    : 0;
    return 0;
}

/* As a worker does with weights that stay in RAM: a swap finds them registered. GB/s of that, 0 when it comes to a stop. */
static double pin_weights(struct bench *b)
{
    const struct backend_ops *ops = b->backend->ops;
    const struct timespec pause = { .tv_nsec = 1000000 };
    double start = now(), moved = start;
    if (!ops->pin) {
        return 0;
    }
    ops->pin(b->backend, b->weights.base, b->weights.size);
    for (uint64_t done = 0, is; done < b->weights.size; done = is) {
        is = ops->pinned(b->backend, b->weights.base);
        moved = is > done ? now() : moved;
        if (now() - moved > PIN_QUIET_S) {
            return 0;
        }
        nanosleep(&pause, NULL);
    }
    return (double)b->weights.size / (now() - start) / 1e9;
}

/* What n questions need together. */
static void size(struct bench *b, const struct bench_question *questions, uint32_t n)
{
    b->ctx_len = b->n_seqs = b->n_pages = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct bench_question *q = &questions[i];
        uint32_t length = q->depth + q->n_prompt + q->n_gen;
        uint32_t pages = (kvcache_pages_for(length) + 1) * q->n_parallel;
        b->ctx_len = length > b->ctx_len ? length : b->ctx_len;
        b->n_seqs = q->n_parallel > b->n_seqs ? q->n_parallel : b->n_seqs;
        b->n_pages = pages > b->n_pages ? pages : b->n_pages;
    }
}

/* Where the weights go, on a device with memory of its own. */
static int place(struct bench *b, struct bench_result *r, struct err *err)
{
    const struct plan_question q = { .ctx_len = b->ctx_len,
                                     .k_type = b->q->k_type,
                                     .v_type = b->q->v_type,
                                     .n_sequences = b->n_seqs,
                                     .state_bytes_max = UINT64_MAX / 2, /* nothing is mirrored */
                                     .n_pages_least = b->n_pages };
    struct plan plan;
    b->chunk = CHUNK;
    b->spill = (struct spill){ 0 };
    if (!b->backend->ops->mirror) {
        return 0;
    }
    if (plan_compute(&b->weights, b->backend, &q, &plan, err) < 0) {
        return err_wrap(err, "model %s", b->q->model);
    }
    b->chunk = plan.rows_max < CHUNK ? plan.rows_max : CHUNK;
    b->spill = plan.spill;
    r->host_weights_bytes = (double)plan.host_weights_bytes;
    r->streamed_bytes = (double)plan.streamed_bytes;
    return 0;
}

static int open_engine(struct bench *b, struct bench_result *r, struct err *err)
{
    uint32_t n_seqs = b->n_seqs, length = b->ctx_len;
    uint32_t rows = b->chunk > n_seqs ? b->chunk : n_seqs;
    if (bind_model(b, &r->upload_gbs, err) < 0) {
        return -1;
    }
    if (b->backend->ops->arrived) {
        model_destroy(&b->model);
        r->register_gbs = r->register_gbs > 0 ? r->register_gbs : pin_weights(b);
        if (bind_model(b, &r->swap_gbs, err) < 0) {
            return -1;
        }
    }
    if (!b->model->causal) {
        return err_set(err, ERR_UNSUPPORTED, "model %s: an encoder does not generate", b->q->model);
    }
    b->forward = forward_create(b->model, b->backend, rows, n_seqs, err);
    if (!b->forward) {
        return -1;
    }
    uint32_t n_pages = b->n_pages;
    uint32_t n_host_pages = b->backend->ops->mirror ? 0 : n_pages; /* nobody takes over */
    b->memory_bytes = kvcache_mirror_size(&b->model->kv, n_host_pages, n_seqs, length);
    b->memory = mmap(NULL, b->memory_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (b->memory == MAP_FAILED) {
        b->memory = NULL;
        return err_set(err, ERR_NO_MEMORY, "%zu bytes of keys and values", b->memory_bytes);
    }
    if (kvcache_init_mirror(&b->kv, &b->model->kv, b->memory, b->memory_bytes, n_pages,
                            n_host_pages, n_seqs, length, err) < 0 ||
        kvcache_place(&b->kv, b->backend, err) < 0) {
        return -1;
    }
    b->logits = malloc((size_t)n_seqs * b->model->vocab_size * sizeof *b->logits);
    b->tokens = calloc(rows, sizeof *b->tokens);
    b->seqs = calloc(rows, sizeof *b->seqs);
    b->positions = calloc(rows, sizeof *b->positions);
    b->flags = calloc(rows, 1);
    b->slots = calloc(n_seqs, sizeof *b->slots);
    if (!b->logits || !b->tokens || !b->seqs || !b->positions || !b->flags || !b->slots) {
        return err_set(err, ERR_NO_MEMORY, "work space for %u sequences", n_seqs);
    }
    return 0;
}

/* Everything but the device and the weights in memory. */
static void close_engine(struct bench *b)
{
    kvcache_clear(&b->kv);
    if (b->memory) {
        munmap(b->memory, b->memory_bytes);
    }
    forward_destroy(&b->forward);
    model_destroy(&b->model);
    free(b->logits);
    free(b->tokens);
    free(b->seqs);
    free(b->positions);
    free(b->flags);
    free(b->slots);
    b->kv = (struct kvcache){ 0 };
    b->memory = NULL;
    b->logits = NULL;
    b->tokens = NULL;
    b->seqs = b->slots = NULL;
    b->positions = NULL;
    b->flags = NULL;
}

static void close_all(struct bench *b)
{
    close_engine(b);
    backend_close(&b->backend);
    weights_unmap(&b->weights);
}

/* Some id for a position: spread over the vocabulary, the same each time. */
static int32_t token_at(const struct bench *b, int64_t pos, uint32_t i)
{
    uint64_t x = ((uint64_t)pos * 1024 + i + 1) * 0x9e3779b97f4a7c15ull;
    return (int32_t)((x >> 32) % b->model->vocab_size);
}

static int step(struct bench *b, uint32_t n, bool logits, struct err *err)
{
    const struct forward_batch batch = { .n_tokens = n,
                                         .tokens = b->tokens,
                                         .seqs = b->seqs,
                                         .positions = b->positions,
                                         .flags = b->flags };
    return forward_step(b->forward, &b->kv, &batch, logits ? b->logits : NULL, NULL, err);
}

/* n more tokens of sequence i, in chunks; logits of the last one when asked for. */
static int prefill(struct bench *b, uint32_t i, uint32_t n, bool logits, struct err *err)
{
    for (uint32_t done = 0; done < n;) {
        uint32_t rows = n - done < b->chunk ? n - done : b->chunk;
        int64_t pos = kvcache_pos(&b->kv, b->slots[i]);
        for (uint32_t r = 0; r < rows; r++) {
            b->tokens[r] = token_at(b, pos + r, i);
            b->seqs[r] = b->slots[i];
            b->positions[r] = pos + r;
            b->flags[r] = 0;
        }
        done += rows;
        bool last = logits && done == n;
        b->flags[rows - 1] = last ? FORWARD_LOGITS : 0;
        if (step(b, rows, last, err) < 0) {
            return -1;
        }
    }
    return 0;
}

/* The positions before the prompt. As copies their pages are those of the first, byte for byte and each in memory of its own:
 * steps after them read as much, and what they compute nobody looks at. */
static int fill_depth(struct bench *b, uint32_t i, struct err *err)
{
    const struct bench_question *q = b->q;
    if (!q->copied || q->depth <= COPIED) {
        return prefill(b, i, q->depth, false, err);
    }
    if (b->backend->ops->mirror || b->kv.layout->state_bytes > 0) {
        return err_set(err, ERR_UNSUPPORTED, "--copied: on the cpu and without recurrent state");
    }
    uint32_t slot = b->slots[i], rest = q->depth - COPIED;
    if (prefill(b, i, COPIED, false, err) < 0 || kvcache_reserve(&b->kv, slot, rest, err) < 0) {
        return -1;
    }
    const uint32_t *table = kvcache_table(&b->kv, slot);
    uint64_t page_bytes = b->kv.layout->page_bytes;
    for (uint32_t p = COPIED / KV_PAGE_TOKENS; p < kvcache_pages_for(q->depth); p++) {
        memcpy(kvcache_pages(&b->kv) + table[p] * page_bytes,
               kvcache_pages(&b->kv) + table[p % (COPIED / KV_PAGE_TOKENS)] * page_bytes,
               page_bytes);
    }
    kvcache_commit(&b->kv, slot, rest);
    return 0;
}

/* The n-th token of every sequence, while the one before is still computed. */
static int decode_ahead(struct bench *b, uint32_t n, struct err *err)
{
    const struct forward_sample sample = { .picks = b->picks, .picked = b->picked[n % 2] };
    const struct forward_batch batch = { .n_tokens = b->q->n_parallel,
                                         .tokens = b->tokens,
                                         .seqs = b->seqs,
                                         .positions = b->positions,
                                         .flags = b->flags,
                                         .sample = &sample };
    for (uint32_t i = 0; i < b->q->n_parallel; i++) {
        uint64_t draw = (b->positions[i] * 1024ull + i) * 0x9e3779b97f4a7c15ull;
        b->picks[i] = (struct op_pick){
            .slot = i, .n_ids = b->model->vocab_size, .scale = 1, .repeat = 1, .draw = draw
        };
        b->flags[i] = FORWARD_SAMPLE;
        b->tokens[i] = n > 0 ? FORWARD_FED(i) : b->tokens[i];
    }
    return forward_leave(b->forward, &b->kv, &batch, err);
}

static bool runs_ahead(const struct bench *b)
{
    return b->backend->ops->leave && b->q->n_parallel <= OP_PICK_ROWS_MAX;
}

/* One token of every sequence, the n-th. */
static int decode(struct bench *b, uint32_t n, struct err *err)
{
    for (uint32_t i = 0; i < b->q->n_parallel; i++) {
        b->positions[i] = kvcache_pos(&b->kv, b->slots[i]);
        b->tokens[i] = token_at(b, b->positions[i], i);
        b->seqs[i] = b->slots[i];
        b->flags[i] = FORWARD_LOGITS;
    }
    return runs_ahead(b) ? decode_ahead(b, n, err) : step(b, b->q->n_parallel, true, err);
}

/* Seconds of: all prompts, one prompt, all generated tokens. */
static int measure(struct bench *b, double *all, double *first, double *gen, struct err *err)
{
    const struct bench_question *q = b->q;
    *all = 0;
    for (uint32_t i = 0; i < q->n_parallel; i++) {
        const struct kvcache_tag tag = { .hi = 1, .lo = i + 1 };
        if (kvcache_begin(&b->kv, tag, 0, &b->slots[i], err) < 0 || fill_depth(b, i, err) < 0) {
            return -1;
        }
        double start = now();
        if (prefill(b, i, q->n_prompt, true, err) < 0) {
            return -1;
        }
        double took = now() - start;
        *first = i == 0 ? took : *first;
        *all += took;
    }
    double start = now();
    for (uint32_t i = 0; i < q->n_gen; i++) {
        if (decode(b, i, err) < 0) {
            return -1;
        }
    }
    if (runs_ahead(b) && b->backend->ops->finish(b->backend, err) < 0) {
        return -1;
    }
    *gen = now() - start;
    for (uint32_t i = 0; i < q->n_parallel; i++) {
        kvcache_end(&b->kv, b->slots[i]);
    }
    return 0;
}

/* ---- bytes ---- */

/* Keys and values that a token in the middle of the generated ones reads. */
static double kv_bytes(const struct bench *b)
{
    const struct model *m = b->model;
    double sum = 0, length = b->q->depth + b->q->n_prompt + b->q->n_gen / 2.0;
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const struct model_layer *l = &m->layers[i];
        if (l->mixer == MODEL_ATTENTION || l->mixer == MODEL_MLA) {
            const struct kv_layer *k = &m->kv.layer[l->kv_layer];
            double n = l->window > 0 && l->window < length ? l->window : length;
            sum += n * k->n_kv_heads * (k->k_row_bytes + k->v_row_bytes);
        }
    }
    return sum;
}

struct probe {
    const uint8_t *data;
    uint64_t sums[TEAM_THREADS_MAX];
};

static void probe_job(void *arg, size_t begin, size_t end, unsigned member)
{
    struct probe *p = arg;
    uint64_t s[8] = { 0 };
    for (size_t i = begin; i < end; i++) {
        const uint8_t *at = p->data + i * PROBE_PIECE;
        for (size_t off = 0; off < PROBE_PIECE; off += 64) {
            uint64_t v[8];
            memcpy(v, at + off, sizeof v);
            for (int j = 0; j < 8; j++) {
                s[j] ^= v[j];
            }
        }
    }
    p->sums[member] ^= s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6] ^ s[7];
}

/* GB/s that the same number of threads read of the weights, the best of a few rounds; 0: too little to tell. */
static double probe_bandwidth(const struct bench *b, volatile uint64_t *sink)
{
    uint64_t data_bytes = b->weights.header->data_bytes;
    size_t n = (data_bytes < PROBE_BYTES ? data_bytes : PROBE_BYTES) / PROBE_PIECE;
    struct probe p = { .data = b->weights.base + b->weights.header->data_off };
    struct err err;
    struct team *team = n >= 64 ? team_create(b->q->n_threads, &err) : NULL;
    double best = 0;
    if (!team) {
        return 0;
    }
    for (int round = 0; round < PROBE_ROUNDS; round++) {
        double start = now();
        team_run(team, probe_job, &p, n, 4);
        double speed = (double)(n * PROBE_PIECE) / (now() - start) / 1e9;
        best = speed > best ? speed : best;
    }
    *sink = p.sums[0];
    team_destroy(&team);
    return best;
}

/* The best of a few rounds, as above; 0: not this machine's. */
static double probe_multiply(const struct bench *b)
{
    struct err err;
    struct team *team = team_create(b->q->n_threads, &err);
    double best = 0;
    for (int round = 0; team && round < PROBE_ROUNDS; round++) {
        double speed = cpu_ceiling_gmacs(team, b->q->n_threads);
        best = speed > best ? speed : best;
    }
    team_destroy(&team);
    return best;
}

static int by_value(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x < y ? -1 : x > y;
}

static double median(double *values, uint32_t n)
{
    qsort(values, n, sizeof *values, by_value);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* The medians of one question. */
static int measure_all(struct bench *b, double machine, double gmacs, struct bench_result *r,
                       struct err *err)
{
    const struct bench_question *q = b->q;
    double all[BENCH_REPEATS_MAX], first[BENCH_REPEATS_MAX], gen[BENCH_REPEATS_MAX];
    for (uint32_t i = 0; i < q->n_repeats; i++) {
        if (measure(b, &all[i], &first[i], &gen[i], err) < 0) {
            return -1;
        }
    }
    double steps = q->n_gen / median(gen, q->n_repeats);
    r->prefill_tps = (double)q->n_prompt * q->n_parallel / median(all, q->n_repeats);
    r->decode_tps = steps * q->n_parallel;
    r->ttft_ms = median(first, q->n_repeats) * 1e3;
    r->bytes_per_token = plan_step_bytes(&b->weights, b->model) / q->n_parallel + kv_bytes(b);
    r->bandwidth_gbs = r->bytes_per_token * r->decode_tps / 1e9;
    r->bandwidth_share = machine > 0 ? r->bandwidth_gbs / machine : 0;
    /* Only a prompt's last token meets the output. */
    const struct matrix *out = &b->model->output;
    double macs = r->flops_per_token / 2 - (double)out->m * out->k;
    r->integer_share = gmacs > 0 ? macs * r->prefill_tps / 1e9 / gmacs : 0;
    return 0;
}

/* Multiplications and additions of a token's products: two for each weight that it meets. */
static double flops(const struct bench *b)
{
    const struct model *m = b->model;
    double sum = 0;
    for (size_t i = 0; i < b->weights.n_tensors; i++) {
        const struct weights_tensor *t = &b->weights.tensors[i];
        double n = (double)t->ne[0] * (double)t->ne[1] * (double)t->ne[2];
        bool look_up = t == weights_find_tensor(&b->weights, "token_embd.weight") &&
                       weights_find_tensor(&b->weights, "output.weight");
        if (t->n_dims == 3 && m->n_experts > 0 && t->ne[2] == m->n_experts) {
            n *= (double)m->n_experts_used / (double)m->n_experts;
        }
        sum += look_up || t->n_dims < 2 ? 0 : 2 * n;
    }
    return sum;
}

static int run(struct bench *b, uint32_t n, struct bench_result *r,
               void (*said)(const struct bench_question *, const struct bench_result *),
               struct err *err)
{
    const struct bench_question *first_q = b->q;
    const struct backend_options options = { .n_threads = first_q->n_threads,
                                             .budget_bytes = first_q->vram_budget };
    volatile uint64_t sink = 0;
    size(b, first_q, n);
    const char *device = backend_choose(first_q->device, NULL, NULL);
    b->backend = backend_open(device, &options, err);
    if (!b->backend) {
        return -1;
    }
    double start = now();
    if (load(b, err) < 0) {
        return -1;
    }
    r->load_s = now() - start;
    /* What all of them together have room for is loaded once; else each with what it needs itself. */
    bool together = place(b, r, err) == 0 && !b->spill.tables;
    if (together && open_engine(b, r, err) < 0) {
        return -1;
    }
    bool cpu = strcmp(device, "cpu") == 0;
    double machine = cpu ? probe_bandwidth(b, &sink) : 0;
    double gmacs = cpu ? probe_multiply(b) : 0;
    for (uint32_t i = 0; i < n; i++) {
        b->q = &first_q[i];
        if (!together) {
            close_engine(b);
            size(b, b->q, 1);
            if (place(b, r, err) < 0 || open_engine(b, r, err) < 0) {
                return -1;
            }
        }
        r->flops_per_token = flops(b);
        if (measure_all(b, machine, gmacs, r, err) < 0) {
            return -1;
        }
        said(b->q, r);
    }
    return 0;
}

int bench_direct(const struct bench_question *q, uint32_t n, struct bench_result *r,
                 void (*said)(const struct bench_question *, const struct bench_result *),
                 struct err *err)
{
    struct bench b = { .q = q };
    int rc = run(&b, n, r, said, err);
    close_all(&b);
    return rc;
}
