/* hearth bench: what is asked, what comes back, and the two ways of measuring it. */
#pragma once

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
    uint32_t n_parallel;      /* sequences side by side */
    uint32_t n_repeats;       /* medians over so many */
    enum dtype k_type, v_type;
};

struct bench_result {
    double prefill_tps, decode_tps; /* tokens per second, all sequences together */
    double load_s, ttft_ms;         /* ttft: prompt of one sequence to its first logits */
    double
        bytes_per_token;  /* read for a generated token: the batch's share of the weights, own KV */
    double bandwidth_gbs; /* those bytes per second */
    double bandwidth_share; /* of what as many threads read in a plain loop; 0: not measured */
};

/* The engine in this process. */
int bench_direct(const struct bench_question *q, struct bench_result *r, struct err *err);

/* Through a running service; a build without the clients' library says ERR_UNSUPPORTED. */
int bench_service(const struct bench_question *q, struct bench_result *r, struct err *err);
