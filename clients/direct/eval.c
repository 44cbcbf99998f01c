/* hearth-eval --direct FILE: token ids in, logits, embeddings or perplexity out, the engine in this process. The judge's
 * tool: conformance runs and comparisons between settings go through it. One thread drives the engine. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "clients/direct/eval.h"
#include "clients/options.h"
#include "loader/load.h"
#include "proto/bytes.h"
#include "proto/err.h"
#include "worker/forward.h"

#define CHUNK_DEFAULT 256
#define OUTPUTS_MAX   64 /* rows of logits at a time: 64 * 256k words is 64 MiB */
#define LENS_MAX      65536

static const struct program program = {
    .verb = "eval",
    .synopsis = "(-m MODEL | --direct FILE) --tokens IDS.i32 (--logits OUT | --embed POOLING OUT | "
                "--perplexity)",
    .purpose = "logits, embeddings or perplexity of given token ids",
    .text = "IDS.i32 holds little-endian 32-bit token ids; --lens cuts them into sequences that "
            "each begin "
            "with an empty cache at position --start. Logits are little-endian f32, (tokens, "
            "vocabulary); "
            "embeddings one row a token (none) or a sequence (mean, cls, last).",
};

enum pooling { POOLING_NONE, POOLING_MEAN, POOLING_CLS, POOLING_LAST };
static const char *const pooling_names[] = { "none", "mean", "cls", "last" };

struct eval {
    const char *run, *model, *direct, *tokens, *lens, *kv, *device, *logits, *embed, *out_path;
    int64_t start, ctx, chunk, threads;
    bool exact, perplexity, json;
    /* derived */
    enum pooling pooling;
    enum dtype k_type, v_type;
    int32_t *ids;
    uint32_t n_ids, *len, n_lens, longest;
    FILE *out;
    double nll;
    uint64_t n_scored;
    /* the engine */
    struct weights weights;
    struct backend *backend;
    struct model *m;
    struct forward *f;
    struct kvcache kv_cache;
    void *memory;
    size_t memory_bytes;
    float *rows; /* (chunk, vocab or dim) */
    double *pooled;
    int64_t *positions;
    uint32_t *seqs;
    uint8_t *flags;
};

/* ---- input ---- */

static int read_tokens(struct eval *e, struct err *err)
{
    bool piped = strcmp(e->tokens, "-") == 0;
    FILE *in = piped ? stdin : fopen(e->tokens, "rb");
    size_t room = 0, n = 0;
    if (!in) {
        return err_set_errno(err, ERR_IO, "open %s", e->tokens);
    }
    for (;;) {
        if (n == room) {
            size_t more = room ? 2 * room : 65536;
            int32_t *ids = more > UINT32_MAX / 4 ? NULL : realloc(e->ids, more * sizeof *ids);
            if (!ids) {
                err_set(err, ERR_NO_MEMORY, "%s: %zu tokens", e->tokens, more);
                break;
            }
            e->ids = ids;
            room = more;
        }
        size_t bytes = fread(e->ids + n, 1, (room - n) * sizeof *e->ids, in);
        n += bytes / sizeof *e->ids;
        if (bytes % sizeof *e->ids) {
            err_set(err, ERR_BAD_INPUT, "%s: not whole 32-bit token ids", e->tokens);
            break;
        }
        if (bytes == 0) {
            if (ferror(in)) {
                err_set_errno(err, ERR_IO, "read %s", e->tokens);
            } else if (n == 0) {
                err_set(err, ERR_BAD_INPUT, "%s: no tokens", e->tokens);
            }
            break;
        }
    }
    if (!piped) {
        fclose(in);
    }
    e->n_ids = (uint32_t)n;
    return err->code == ERR_NONE ? 0 : -1;
}

static int cut_sequences(struct eval *e, struct err *err)
{
    uint64_t total = 0;
    e->len = calloc(LENS_MAX, sizeof *e->len);
    if (!e->len) {
        return err_set(err, ERR_NO_MEMORY, "--lens");
    }
    if (!e->lens) {
        e->len[e->n_lens++] = e->n_ids;
        total = e->n_ids;
    }
    for (const char *at = e->lens; at && *at;) {
        char *end;
        errno = 0;
        unsigned long value = strtoul(at, &end, 10);
        if (end == at || errno || value == 0 || value > e->n_ids || (*end && *end != ',') ||
            e->n_lens == LENS_MAX) {
            return err_set(err, ERR_USAGE, "--lens %s: lengths of 1 to %u, by commas", e->lens,
                           e->n_ids);
        }
        e->len[e->n_lens++] = (uint32_t)value;
        total += value;
        at = *end ? end + 1 : end;
    }
    if (total != e->n_ids) {
        return err_set(err, ERR_USAGE, "--lens: %llu tokens, the file has %u",
                       (unsigned long long)total, e->n_ids);
    }
    for (uint32_t i = 0; i < e->n_lens; i++) {
        e->longest = e->len[i] > e->longest ? e->len[i] : e->longest;
    }
    return 0;
}

/* "q8_0", or keys and values apart: "q8_0,q4_0". */
static int read_kv_types(struct eval *e, struct err *err)
{
    char text[32];
    e->k_type = e->v_type = e->exact ? DTYPE_F32 : DTYPE_F16;
    if (!e->kv) {
        return 0;
    }
    int n = snprintf(text, sizeof text, "%s", e->kv);
    char *comma = strchr(text, ',');
    if (comma) {
        *comma = 0;
    }
    int k = dtype_of_name(text), v = comma ? dtype_of_name(comma + 1) : k;
    if (n < 0 || (size_t)n >= sizeof text || k < 0 || v < 0) {
        return err_set(err, ERR_USAGE, "--kv %s: f32, f16, bf16, q8_0 or q4_0", e->kv);
    }
    e->k_type = (enum dtype)k;
    e->v_type = (enum dtype)v;
    return 0;
}

/* ---- the engine ---- */

static int open_engine(struct eval *e, struct err *err)
{
    const struct backend_options backend = { .exact = e->exact, .n_threads = (uint32_t)e->threads };
    if (loader_load_direct(e->direct, e->exact ? WEIGHTS_LAYOUT_FILE : WEIGHTS_LAYOUT_ROWS16,
                           &e->weights, err) < 0) {
        return -1;
    }
    e->backend = backend_open(backend_choose(e->device), &backend, err);
    if (!e->backend) {
        return -1;
    }
    uint64_t reach = (uint64_t)e->start + e->longest;
    uint64_t ctx = e->ctx ? (uint64_t)e->ctx : reach;
    if (ctx > UINT32_MAX / 2 || reach > ctx) {
        return err_set(err, ERR_NO_FIT, "position %llu, the context is %llu",
                       (unsigned long long)reach, (unsigned long long)ctx);
    }
    const struct model_options options = { .k_type = e->k_type,
                                           .v_type = e->v_type,
                                           .ctx_len = (uint32_t)ctx };
    e->m = model_bind(&e->weights, e->backend, &options, err);
    if (!e->m) {
        return err_wrap(err, "model %s", e->direct);
    }
    uint32_t step = e->m->causal && e->chunk < e->longest ? (uint32_t)e->chunk : e->longest;
    if (!e->m->causal && e->longest > FORWARD_TOKENS_MAX) {
        return err_set(err, ERR_NO_FIT, "%u tokens at once, at most %d", e->longest,
                       FORWARD_TOKENS_MAX);
    }
    e->chunk = step;
    e->f = forward_create(e->m, e->backend, step, OUTPUTS_MAX, err);
    if (!e->f) {
        return -1;
    }
    uint32_t n_pages = kvcache_pages_for(e->longest) + 1;
    uint32_t n_host_pages = e->backend->ops->mirror ? 0 : n_pages; /* nobody takes over */
    e->memory_bytes = kvcache_mirror_size(&e->m->kv, n_host_pages, 1, (uint32_t)ctx);
    e->memory = mmap(NULL, e->memory_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (e->memory == MAP_FAILED) {
        e->memory = NULL;
        return err_set(err, ERR_NO_MEMORY, "%zu bytes of keys and values", e->memory_bytes);
    }
    if (kvcache_init_mirror(&e->kv_cache, &e->m->kv, e->memory, e->memory_bytes, n_pages,
                            n_host_pages, 1, (uint32_t)ctx, err) < 0 ||
        kvcache_place(&e->kv_cache, e->backend, err) < 0) {
        return -1;
    }
    size_t width = e->embed ? e->m->dim : e->m->vocab_size;
    e->rows = malloc(step * width * sizeof *e->rows);
    e->pooled = calloc(e->m->dim, sizeof *e->pooled);
    e->positions = calloc(step, sizeof *e->positions);
    e->seqs = calloc(step, sizeof *e->seqs);
    e->flags = malloc(step);
    if (!e->rows || !e->pooled || !e->positions || !e->seqs || !e->flags) {
        return err_set(err, ERR_NO_MEMORY, "%zu floats of output", step * width);
    }
    memset(e->flags, e->embed ? FORWARD_EMBED : FORWARD_LOGITS, step);
    return 0;
}

static void close_all(struct eval *e)
{
    kvcache_clear(&e->kv_cache);
    if (e->memory) {
        munmap(e->memory, e->memory_bytes);
    }
    forward_destroy(&e->f);
    model_destroy(&e->m);
    backend_close(&e->backend);
    weights_unmap(&e->weights);
    if (e->out && e->out != stdout) {
        fclose(e->out);
    }
    free(e->rows);
    free(e->pooled);
    free(e->positions);
    free(e->seqs);
    free(e->flags);
    free(e->ids);
    free(e->len);
}

/* ---- output ---- */

static int put(struct eval *e, const float *values, size_t n, struct err *err)
{
    if (fwrite(values, sizeof *values, n, e->out) != n) {
        return err_set_errno(err, ERR_IO, "write %s", e->out_path);
    }
    return 0;
}

/* Adds -log p(next token) of every row whose next token is in the sequence. */
static void score(struct eval *e, const int32_t *ids, uint32_t n, uint32_t left)
{
    uint32_t vocab = e->m->vocab_size;
    for (uint32_t i = 0; i < n && i + 1 < left; i++) {
        const float *row = e->rows + (size_t)i * vocab;
        float max = row[0];
        for (uint32_t j = 1; j < vocab; j++) {
            max = row[j] > max ? row[j] : max;
        }
        double sum = 0.0;
        for (uint32_t j = 0; j < vocab; j++) {
            sum += exp((double)row[j] - (double)max);
        }
        e->nll += log(sum) + (double)max - (double)row[ids[i + 1]];
        e->n_scored++;
    }
}

/* Embedding rows of one chunk: written, or gathered into `pooled`; done is how many came before. */
static int pool(struct eval *e, uint32_t done, uint32_t n, uint32_t len, struct err *err)
{
    uint32_t dim = e->m->dim;
    if (e->pooling == POOLING_NONE) {
        return put(e, e->rows, (size_t)n * dim, err);
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = done + i;
        bool wanted = e->pooling == POOLING_MEAN || (e->pooling == POOLING_CLS && at == 0) ||
                      (e->pooling == POOLING_LAST && at + 1 == len);
        for (uint32_t j = 0; wanted && j < dim; j++) {
            e->pooled[j] += (double)e->rows[(size_t)i * dim + j];
        }
    }
    if (done + n < len) {
        return 0;
    }
    double divisor = e->pooling == POOLING_MEAN ? len : 1.0;
    for (uint32_t j = 0; j < dim; j++) {
        e->rows[j] = (float)(e->pooled[j] / divisor);
        e->pooled[j] = 0.0;
    }
    return put(e, e->rows, dim, err);
}

static int run_sequence(struct eval *e, const int32_t *ids, uint32_t len, struct err *err)
{
    uint32_t seq;
    if (kvcache_begin(&e->kv_cache, (struct kvcache_tag){ .lo = 1 }, e->start, &seq, err) < 0) {
        return -1;
    }
    for (uint32_t done = 0; done < len;) {
        uint32_t n = len - done < e->chunk ? len - done : (uint32_t)e->chunk;
        for (uint32_t i = 0; i < n; i++) {
            e->positions[i] = e->start + done + i;
            e->seqs[i] = seq;
        }
        const struct forward_batch batch = { .n_tokens = n,
                                             .tokens = ids + done,
                                             .seqs = e->seqs,
                                             .positions = e->positions,
                                             .flags = e->flags };
        if (forward_step(e->f, &e->kv_cache, &batch, e->embed ? NULL : e->rows,
                         e->embed ? e->rows : NULL, err) < 0) {
            return -1;
        }
        if (e->logits && put(e, e->rows, (size_t)n * e->m->vocab_size, err) < 0) {
            return -1;
        }
        if (e->embed && pool(e, done, n, len, err) < 0) {
            return -1;
        }
        if (e->perplexity) {
            score(e, ids + done, n, len - done);
        }
        done += n;
    }
    kvcache_end(&e->kv_cache, seq);
    return 0;
}

static int open_out(struct eval *e, struct err *err)
{
    if (!e->out_path) {
        return 0;
    }
    e->out = strcmp(e->out_path, "-") == 0 ? stdout : fopen(e->out_path, "wb");
    return e->out ? 0 : err_set_errno(err, ERR_IO, "open %s", e->out_path);
}

static int close_out(struct eval *e, struct err *err)
{
    FILE *out = e->out;
    e->out = NULL;
    if (out && (fflush(out) != 0 || (out != stdout && fclose(out) != 0))) {
        return err_set_errno(err, ERR_IO, "write %s", e->out_path);
    }
    return 0;
}

static void print_perplexity(const struct eval *e, double value, uint64_t n_scored)
{
    if (e->json) {
        printf("{\"perplexity\":%.6f,\"tokens\":%llu}\n", value, (unsigned long long)n_scored);
    } else {
        printf("%.6f\n", value);
    }
}

static int run_direct(struct eval *e, struct err *err)
{
    if (open_engine(e, err) < 0 || open_out(e, err) < 0) {
        return -1;
    }
    const int32_t *ids = e->ids;
    for (uint32_t i = 0; i < e->n_lens; ids += e->len[i], i++) {
        if (run_sequence(e, ids, e->len[i], err) < 0) {
            return err_wrap(err, "sequence %u", i);
        }
    }
    if (e->perplexity) {
        print_perplexity(e, e->n_scored ? exp(e->nll / (double)e->n_scored) : 1.0, e->n_scored);
    }
    return close_out(e, err);
}

/* Returns the exit code, or -1 with err. */
static int run_service(struct eval *e, struct err *err)
{
    double perplexity = 0.0;
    if (open_out(e, err) < 0) {
        return -1;
    }
    const struct eval_question question = {
        .run = e->run,
        .model = e->model,
        .kind = e->perplexity ? EVAL_PERPLEXITY
                : e->embed    ? (enum eval_kind)(EVAL_EMBED_NONE + (int)e->pooling)
                              : EVAL_LOGITS,
        .ids = e->ids,
        .n_ids = e->n_ids,
        .lens = e->len,
        .n_lens = e->n_lens,
        .start = (uint32_t)e->start,
        .ctx = (uint32_t)e->ctx,
        .out = e->out,
    };
    int rc = eval_service(&question, &perplexity);
    if (rc == 0 && e->perplexity) {
        print_perplexity(e, perplexity, e->n_ids - e->n_lens);
    }
    return rc ? rc : close_out(e, err);
}

static void check_options(struct eval *e, int n, char **argv)
{
    if (!e->model == !e->direct) {
        options_fail(&program, "either -m MODEL or --direct FILE");
    }
    if (!e->tokens) {
        options_fail(&program, "--tokens IDS.i32 is needed");
    }
    if (!!e->logits + !!e->embed + e->perplexity != 1) {
        options_fail(&program, "one of --logits, --embed and --perplexity");
    }
    if (n != (e->embed ? 1 : 0)) {
        options_fail(&program,
                     e->embed ? "--embed POOLING wants one OUT.f32" : "'%s' is one word too many",
                     n ? argv[n - 1] : "");
    }
    if (e->start < 0 || e->start > UINT32_MAX / 2 || e->ctx < 0 || e->ctx > UINT32_MAX / 2 ||
        e->chunk < 1 || e->chunk > FORWARD_TOKENS_MAX || e->threads < 0 || e->threads > 256) {
        options_fail(&program, "--start, --ctx, --chunk or --threads is out of range");
    }
    if (e->model && (e->exact || e->kv || e->device || e->threads || e->chunk != CHUNK_DEFAULT)) {
        options_fail(&program, "--exact, --chunk, --kv, --device and --threads go with --direct");
    }
    if (e->embed) {
        for (e->pooling = POOLING_NONE; e->pooling <= POOLING_LAST; e->pooling++) {
            if (strcmp(e->embed, pooling_names[e->pooling]) == 0) {
                break;
            }
        }
        if (e->pooling > POOLING_LAST) {
            options_fail(&program, "--embed %s: none, mean, cls or last", e->embed);
        }
    }
    e->out_path = e->embed ? argv[0] : e->logits;
}

int main(int argc, char **argv)
{
    struct eval e = { .chunk = CHUNK_DEFAULT };
    const struct option table[] = {
        { "model", 'm', OPTION_STRING, &e.model, "MODEL", "a model of the running service", NULL },
        { "direct", 0, OPTION_STRING, &e.direct, "FILE", "a model file, computed in this process",
          NULL },
        { "tokens", 0, OPTION_STRING, &e.tokens, "IDS.i32", "token ids; - is stdin", NULL },
        { "lens", 0, OPTION_STRING, &e.lens, "N,N,...", "lengths of the sequences in it", NULL },
        { "start", 0, OPTION_INT, &e.start, "POS", "position of each first token", NULL },
        { "ctx", 0, OPTION_INT, &e.ctx, "N", "context length; default: as long as needed", NULL },
        { "chunk", 0, OPTION_INT, &e.chunk, "N", "tokens of one step", NULL },
        { "exact", 0, OPTION_FLAG, &e.exact, NULL, "f32 activations, f32 keys and values", NULL },
        { "kv", 0, OPTION_STRING, &e.kv, "TYPE", "f16, bf16, q8_0, q4_0, f32; K,V apart by a comma",
          NULL },
        { "device", 0, OPTION_STRING, &e.device, "D", "auto, cpu, cuda:N; default: cpu", NULL },
        { "threads", 0, OPTION_INT, &e.threads, "N", "compute threads; default: all cores", NULL },
        { "logits", 0, OPTION_STRING, &e.logits, "OUT.f32", "write logits", NULL },
        { "embed", 0, OPTION_STRING, &e.embed, "POOLING",
          "write embeddings to OUT.f32: none, mean, cls, last", NULL },
        { "perplexity", 0, OPTION_FLAG, &e.perplexity, NULL, "print the perplexity", NULL },
        { "json", 0, OPTION_FLAG, &e.json, NULL, "print it as an object", NULL },
        { "run", 0, OPTION_STRING, &e.run, "DIR", "the runtime directory, with -m", NULL },
        { 0 },
    };
    struct err err = { 0 };
    int n = options_parse(&program, table, argc, argv);
    check_options(&e, n, argv);
    int rc = read_tokens(&e, &err);
    if (rc == 0 && (cut_sequences(&e, &err) < 0 || read_kv_types(&e, &err) < 0)) {
        rc = -1;
    }
    if (rc == 0) {
        rc = e.direct ? run_direct(&e, &err) : run_service(&e, &err);
    }
    if (rc < 0) {
        fprintf(stderr, "hearth eval: %s\n", err.text);
    }
    close_all(&e);
    return rc < 0 ? err_exit_code(err.code) : rc;
}
