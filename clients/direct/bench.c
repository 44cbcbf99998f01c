/* hearth bench: tokens per second of a model, in this process (--direct) or through the service (-m), as medians. */
#include <stdio.h>
#include <string.h>

#include "clients/direct/bench.h"
#include "clients/options.h"

static const struct program program = {
    .verb = "bench",
    .synopsis = "(--direct FILE|synth:ARCH:PRESET:TYPE | -m MODEL) [OPTIONS]",
    .purpose = "measure prefill, decode and load of a model",
    .text = "--direct runs the engine in this process, without broker and loader; synth: fills the "
            "weights in memory with random values of true shapes. Figures are medians over -r "
            "repeats; the bandwidth's share is of what as many threads read of the weights in a "
            "plain loop, the products' of what they multiply and add in registers.",
};

/* "q8_0", or keys and values apart: "q8_0,q4_0". */
static int read_kv(const char *text, enum dtype *k, enum dtype *v)
{
    char name[32];
    if (strlen(text) >= sizeof name) {
        return -1;
    }
    strcpy(name, text);
    char *comma = strchr(name, ',');
    if (comma) {
        *comma = 0;
    }
    int first = dtype_of_name(name), second = comma ? dtype_of_name(comma + 1) : first;
    if (first < 0 || second < 0) {
        return -1;
    }
    *k = (enum dtype)first;
    *v = (enum dtype)second;
    return 0;
}

static void print_json(const struct bench_question *q, const struct bench_result *r)
{
    printf("{\"n_prompt\":%u,\"depth\":%u,\"n_gen\":%u,\"parallel\":%u,", q->n_prompt, q->depth,
           q->n_gen, q->n_parallel);
    if (r->upload_gbs > 0) {
        printf("\"upload_gbs\":%.2f,\"register_gbs\":%.2f,\"swap_gbs\":%.2f,", r->upload_gbs,
               r->register_gbs, r->swap_gbs);
    }
    if (r->host_weights_bytes > 0) {
        printf("\"host_weights_bytes\":%.0f,\"streamed_bytes\":%.0f,", r->host_weights_bytes,
               r->streamed_bytes);
    }
    if (r->flops_per_token > 0) {
        printf("\"flops_per_token\":%.0f,", r->flops_per_token);
    }
    if (r->integer_share > 0) {
        printf("\"integer_share\":%.3f,", r->integer_share);
    }
    printf("\"prefill_tps\":%.2f,\"decode_tps\":%.2f,\"load_s\":%.3f,\"ttft_ms\":%.2f,"
           "\"bytes_per_token\":%.0f,\"bandwidth_gbs\":%.2f,\"bandwidth_share\":%.3f}\n",
           r->prefill_tps, r->decode_tps, r->load_s, r->ttft_ms, r->bytes_per_token,
           r->bandwidth_gbs, r->bandwidth_share);
}

static void print_text(const struct bench_question *q, const struct bench_result *r)
{
    if (q->in_a_row) {
        printf("-- prompt %u after %u, %u side by side\n", q->n_prompt, q->depth, q->n_parallel);
    }
    printf("prefill    %10.2f tokens/s\n", r->prefill_tps);
    printf("decode     %10.2f tokens/s\n", r->decode_tps);
    if (r->integer_share > 0) {
        printf("products   %10.0f %% of this machine's 8-bit multiply-adds, in prefill\n",
               r->integer_share * 100);
    }
    printf("load       %10.3f s\n", r->load_s);
    if (r->upload_gbs > 0) {
        printf("upload     %10.2f GB/s, registered at %.2f GB/s, then %.2f GB/s\n", r->upload_gbs,
               r->register_gbs, r->swap_gbs);
    }
    if (r->host_weights_bytes > 0) {
        printf("streamed   %10.2f MB in every step, %.2f MB of weights in memory\n",
               r->streamed_bytes / 1e6, r->host_weights_bytes / 1e6);
    }
    printf("first      %10.2f ms\n", r->ttft_ms);
    if (r->bytes_per_token <= 0) {
        return; /* a client does not see what the worker reads */
    }
    printf("read       %10.2f MB a token, %.2f GB/s", r->bytes_per_token / 1e6, r->bandwidth_gbs);
    if (r->bandwidth_share > 0) {
        printf(", %.0f %% of this machine", r->bandwidth_share * 100);
    }
    printf("\n");
}

static void put_case(const struct bench_question *q, int64_t n_prompt, int64_t depth, int64_t n_gen,
                     int64_t parallel, struct bench_question *cases, uint32_t *n)
{
    if (n_prompt < 1 || n_prompt > 1 << 20 || n_gen < 1 || n_gen > 1 << 20 || depth < 0 ||
        depth > 1 << 24 || parallel < 1 || parallel > 1024 || *n == BENCH_CASES_MAX) {
        options_fail(&program, "-p, -n, -d, --parallel or --also is out of range");
    }
    struct bench_question *c = &cases[(*n)++];
    *c = *q;
    c->n_prompt = (uint32_t)n_prompt;
    c->depth = (uint32_t)depth;
    c->n_gen = (uint32_t)n_gen;
    c->n_parallel = (uint32_t)parallel;
}

int main(int argc, char **argv)
{
    const char *direct = NULL, *model = NULL, *device = NULL, *kv = NULL, *run = NULL;
    int64_t threads = 0, n_prompt = 512, n_gen = 64, depth = 0, parallel = 1, repeats = 3;
    uint64_t vram_budget = 0;
    struct option_list also = { .n = 0 };
    bool json = false, copied = false;
    const struct option table[] = {
        { "direct", 0, OPTION_STRING, &direct, "FILE", "a model file, or synth:ARCH:PRESET:TYPE",
          NULL },
        { "model", 'm', OPTION_STRING, &model, "MODEL", "a model of the running service", NULL },
        { "device", 0, OPTION_STRING, &device, "D", "auto, cpu, cuda:N; default: cpu", NULL },
        { "threads", 0, OPTION_INT, &threads, "N", "compute threads; default: all cores", NULL },
        { "prompt", 'p', OPTION_INT, &n_prompt, "N", "tokens of the prompt; default 512", NULL },
        { "gen", 'n', OPTION_INT, &n_gen, "N", "tokens generated; default 64", NULL },
        { "depth", 'd', OPTION_INT, &depth, "N", "tokens before the prompt, not measured", NULL },
        { "copied", 0, OPTION_FLAG, &copied, NULL,
          "all but the first 512 of these as copies: decode reads as much, sooner", NULL },
        { "kv", 0, OPTION_STRING, &kv, "TYPE", "f16, bf16, q8_0, q4_0, f32; K,V apart by a comma",
          NULL },
        { "parallel", 0, OPTION_INT, &parallel, "N", "sequences side by side", NULL },
        { "repeats", 'r', OPTION_INT, &repeats, "N", "medians over so many; default 3", NULL },
        { "json", 0, OPTION_FLAG, &json, NULL, "one object", NULL },
        { "vram-budget", 0, OPTION_SIZE, &vram_budget, "SIZE", "device memory to use", NULL },
        { "also", 0, OPTION_STRINGS, &also, "P,D,N,B",
          "another prompt, depth, gen and number side by side, on the same loaded model", NULL },
        { "run", 0, OPTION_STRING, &run, "DIR", "the runtime directory, with -m", NULL },
        { 0 },
    };
    int n = options_parse(&program, table, argc, argv);
    struct bench_question q = { .run = run, .k_type = DTYPE_F16, .v_type = DTYPE_F16 };
    if (n > 0) {
        options_fail(&program, "'%s' is one word too many", argv[0]);
    }
    if (!direct == !model) {
        options_fail(&program, "either --direct FILE or -m MODEL");
    }
    if (threads < 0 || threads > 256 || repeats < 1 || repeats > BENCH_REPEATS_MAX) {
        options_fail(&program, "--threads or -r is out of range");
    }
    if (kv && read_kv(kv, &q.k_type, &q.v_type) < 0) {
        options_fail(&program, "--kv %s: f32, f16, bf16, q8_0 or q4_0", kv);
    }
    q.model = direct ? direct : model;
    q.device = device;
    q.n_threads = (uint32_t)threads;
    q.n_repeats = (uint32_t)repeats;
    q.vram_budget = vram_budget;
    q.copied = copied;
    q.in_a_row = also.n > 0;
    struct bench_question cases[BENCH_CASES_MAX];
    uint32_t n_cases = 0;
    put_case(&q, n_prompt, depth, n_gen, parallel, cases, &n_cases);
    for (int i = 0; i < also.n; i++) {
        long long c[4];
        if (sscanf(also.items[i], "%lld,%lld,%lld,%lld", &c[0], &c[1], &c[2], &c[3]) != 4) {
            options_fail(&program, "--also %s: PROMPT,DEPTH,GEN,PARALLEL", also.items[i]);
        }
        put_case(&q, c[0], c[1], c[2], c[3], cases, &n_cases);
    }
    if (n_cases > 1 && !direct) {
        options_fail(&program, "--also goes with --direct");
    }
    struct err err = { 0 };
    struct bench_result r = { 0 };
    void (*said)(const struct bench_question *, const struct bench_result *) = json ? print_json
                                                                                    : print_text;
    int rc = direct ? bench_direct(cases, n_cases, &r, said, &err)
                    : bench_service(&cases[0], &r, &err);
    if (rc < 0) {
        fprintf(stderr, "hearth bench: %s\n", err.text);
        return err_exit_code(err.code);
    }
    if (!direct) {
        said(&cases[0], &r);
    }
    return 0;
}
