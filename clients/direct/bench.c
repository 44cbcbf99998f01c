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
            "plain loop.",
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

static void print_json(const struct bench_result *r)
{
    printf("{\"prefill_tps\":%.2f,\"decode_tps\":%.2f,\"load_s\":%.3f,\"ttft_ms\":%.2f,"
           "\"bytes_per_token\":%.0f,\"bandwidth_gbs\":%.2f,\"bandwidth_share\":%.3f}\n",
           r->prefill_tps, r->decode_tps, r->load_s, r->ttft_ms, r->bytes_per_token,
           r->bandwidth_gbs, r->bandwidth_share);
}

static void print_text(const struct bench_result *r)
{
    printf("prefill    %10.2f tokens/s\n", r->prefill_tps);
    printf("decode     %10.2f tokens/s\n", r->decode_tps);
    printf("load       %10.3f s\n", r->load_s);
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

int main(int argc, char **argv)
{
    const char *direct = NULL, *model = NULL, *device = NULL, *kv = NULL, *run = NULL;
    int64_t threads = 0, n_prompt = 512, n_gen = 64, depth = 0, parallel = 1, repeats = 3;
    bool json = false;
    const struct option table[] = {
        { "direct", 0, OPTION_STRING, &direct, "FILE", "a model file, or synth:ARCH:PRESET:TYPE",
          NULL },
        { "model", 'm', OPTION_STRING, &model, "MODEL", "a model of the running service", NULL },
        { "device", 0, OPTION_STRING, &device, "D", "cpu, or another this build has", NULL },
        { "threads", 0, OPTION_INT, &threads, "N", "compute threads; default: all cores", NULL },
        { "prompt", 'p', OPTION_INT, &n_prompt, "N", "tokens of the prompt; default 512", NULL },
        { "gen", 'n', OPTION_INT, &n_gen, "N", "tokens generated; default 64", NULL },
        { "depth", 'd', OPTION_INT, &depth, "N", "tokens before the prompt, not measured", NULL },
        { "kv", 0, OPTION_STRING, &kv, "TYPE", "f16, bf16, q8_0, q4_0, f32; K,V apart by a comma",
          NULL },
        { "parallel", 0, OPTION_INT, &parallel, "N", "sequences side by side", NULL },
        { "repeats", 'r', OPTION_INT, &repeats, "N", "medians over so many; default 3", NULL },
        { "json", 0, OPTION_FLAG, &json, NULL, "one object", NULL },
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
    if (threads < 0 || threads > 256 || n_prompt < 1 || n_prompt > 1 << 20 || n_gen < 1 ||
        n_gen > 1 << 20 || depth < 0 || depth > 1 << 24 || parallel < 1 || parallel > 1024 ||
        repeats < 1 || repeats > BENCH_REPEATS_MAX) {
        options_fail(&program, "--threads, -p, -n, -d, --parallel or -r is out of range");
    }
    if (kv && read_kv(kv, &q.k_type, &q.v_type) < 0) {
        options_fail(&program, "--kv %s: f32, f16, bf16, q8_0 or q4_0", kv);
    }
    q.model = direct ? direct : model;
    q.device = device;
    q.n_threads = (uint32_t)threads;
    q.n_prompt = (uint32_t)n_prompt;
    q.n_gen = (uint32_t)n_gen;
    q.depth = (uint32_t)depth;
    q.n_parallel = (uint32_t)parallel;
    q.n_repeats = (uint32_t)repeats;
    struct err err = { 0 };
    struct bench_result r = { 0 };
    if ((direct ? bench_direct : bench_service)(&q, &r, &err) < 0) {
        fprintf(stderr, "hearth bench: %s\n", err.text);
        return err_exit_code(err.code);
    }
    (json ? print_json : print_text)(&r);
    return 0;
}
