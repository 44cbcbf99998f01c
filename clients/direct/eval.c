/* hearth-eval: token ids in, logits, embeddings or perplexity out; of a running service (eval_service.c), or with the
 * engine in this process (eval_direct.c). The judge's tool: conformance runs and comparisons between settings go through it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/direct/eval.h"
#include "clients/options.h"
#include "proto/err.h"
#include "worker/forward.h"

#define CHUNK_DEFAULT 256
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

static const char *const pooling_names[] = { "none", "mean", "cls", "last" };

struct eval {
    const char *run, *model, *direct, *tokens, *lens, *kv, *device, *logits, *embed, *out_path;
    int64_t start, ctx, chunk, threads;
    bool exact, perplexity, json;
    /* derived */
    enum eval_kind kind;
    enum dtype k_type, v_type;
    int32_t *ids;
    uint32_t n_ids, *len, n_lens;
    FILE *out;
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

/* ---- output ---- */

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

/* Returns the exit code, or -1 with err. */
static int run(struct eval *e, struct err *err)
{
    double perplexity = 1.0;
    if (open_out(e, err) < 0) {
        return -1;
    }
    const struct eval_question question = {
        .run = e->run,
        .model = e->model ? e->model : e->direct,
        .kind = e->kind,
        .ids = e->ids,
        .n_ids = e->n_ids,
        .lens = e->len,
        .n_lens = e->n_lens,
        .start = (uint32_t)e->start,
        .ctx = (uint32_t)e->ctx,
        .out = e->out,
    };
    const struct eval_engine engine = {
        .device = e->device,
        .exact = e->exact,
        .n_threads = (uint32_t)e->threads,
        .chunk = (uint32_t)e->chunk,
        .k_type = e->k_type,
        .v_type = e->v_type,
    };
    int rc = e->direct ? eval_direct(&question, &engine, &perplexity, err)
                       : eval_service(&question, &perplexity);
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
    e->kind = e->perplexity ? EVAL_PERPLEXITY : EVAL_LOGITS;
    if (e->embed) {
        for (e->kind = EVAL_EMBED_NONE; e->kind <= EVAL_EMBED_LAST; e->kind++) {
            if (strcmp(e->embed, pooling_names[e->kind - EVAL_EMBED_NONE]) == 0) {
                break;
            }
        }
        if (e->kind > EVAL_EMBED_LAST) {
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
        rc = run(&e, &err);
    }
    if (rc < 0) {
        fprintf(stderr, "hearth eval: %s\n", err.text);
    }
    if (e.out && e.out != stdout) {
        fclose(e.out);
    }
    free(e.ids);
    free(e.len);
    return rc < 0 ? err_exit_code(err.code) : rc;
}
