/* hearth bench: what is asked, what comes back, and the two ways of measuring it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/dtype.h"
#include "proto/err.h"

#define BENCH_REPEATS_MAX 100

struct bench_question {
    const char *run;          /* the runtime directory, with a service */
    const char *model;        /* FILE or synth:ARCH:PRESET:TYPE, or a model of the service */
    const char *device;       /* NULL: cpu */
    uint32_t n_threads;       /* 0: all cores */
    uint32_t n_prompt, n_gen; /* tokens of the prompt, tokens generated after it */
    uint32_t depth;           /* tokens that stand before the prompt, not measured */
    bool copied;              /* most of the depth as copies of its first positions */
    uint32_t n_parallel;      /* sequences side by side */
    uint32_t n_repeats;       /* medians over so many */
    enum dtype k_type, v_type;
    uint64_t vram_budget; /* bytes of device memory; 0: all */
    bool in_a_row;        /* one of several */
};

struct bench_result {
    double prefill_tps, decode_tps; /* tokens per second, all sequences together */
    double load_s, ttft_ms;         /* ttft: prompt of one sequence to its first logits */
    double
        bytes_per_token;  /* read for a generated token: the batch's share of the weights, own KV */
    double bandwidth_gbs; /* those bytes per second */
    double bandwidth_share; /* of what as many threads read in a plain loop; 0: not measured */
    double upload_gbs,
        swap_gbs; /* weights to a device: the first time, and again as after a swap; 0: they stay */
    double register_gbs; /* how fast they were registered for that; 0: not, or not all */
    double host_weights_bytes,
        streamed_bytes;     /* weights in the host's memory; of these, over the bus in every step */
    double flops_per_token; /* of the products, attention apart */
    double
        integer_share; /* prefill's multiply-adds, of what as many threads do in a plain 8-bit loop; 0: not measured */
};

#define BENCH_CASES_MAX 32

/* The engine in this process, n questions about one model, loaded once; they differ in prompt, depth, gen and parallel.
 * said is called after each. */
int bench_direct(const struct bench_question *q, uint32_t n, struct bench_result *r,
                 void (*said)(const struct bench_question *, const struct bench_result *),
                 struct err *err);

/* Through a running service; a build without the clients' library says ERR_UNSUPPORTED. */
int bench_service(const struct bench_question *q, struct bench_result *r, struct err *err);
