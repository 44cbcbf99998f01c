/* libhearth: the client door. A connection to a running hearth, requests whose tokens are read straight from the shared
 * journal, and questions. A broker that dies and comes back is not an error here: the connection is made anew, requests
 * are resumed after the last token that the caller has, nothing is lost and nothing comes twice.
 *
 *   struct hearth *h = hearth_open(NULL, "my program", &error);
 *   struct hearth_ask ask = { .prompt = "Hello", .prompt_len = 5, .kind = HEARTH_TEXT };
 *   struct hearth_request *r = hearth_submit(h, &ask, &error);
 *   while ((got = hearth_next(r, &token, -1, &error)) == HEARTH_TOKEN)
 *       fwrite(token.bytes, 1, token.n_bytes, stdout);
 *   hearth_end(&r);
 *   hearth_close(&h);
 *
 * One connection belongs to one thread. Pointers in results are the library's, valid until the next call on the same
 * object, unless a comment says otherwise. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hearth_error {
    int exit_code;  /* as CLI.md lists them: 3 unreachable, 4 model not found, 5 does not fit ... */
    char code[24];  /* "not_found" */
    char text[512]; /* one line */
    unsigned retry_after_ms; /* "busy": when a place is likely to be free; 0: not known */
    unsigned queue_position; /* the place that the request would have had; 0: not known */
    unsigned n_prompt,
        n_ctx; /* "no_fit": tokens of a prompt that is too long, and of the context; 0: not that */
};

struct hearth;         /* a connection */
struct hearth_request; /* one generation */

/* run: the runtime directory, NULL for the usual places. program: who asks, shown by `hearth ps`. Waits up to 10 s for a broker
 * that is coming back while its keeper lives; NULL at once when nobody holds the runtime directory. */
struct hearth *hearth_open(const char *run, const char *program, struct hearth_error *error);
void hearth_close(struct hearth **h);

/* A descriptor (a signalfd, say) that ends every wait when it is readable: calls then return HEARTH_INTERRUPTED or fail with
 * code "interrupted". -1: none. Borrowed; not read. Returns the one before. */
int hearth_interrupt_fd(struct hearth *h, int fd);

/* Looks after a connection that was idle: comes back to a new broker, waiting as hearth_open does. -1: there is no way back. */
int hearth_check(struct hearth *h, struct hearth_error *error);

/* The runtime directory in use. */
const char *hearth_run(const struct hearth *h);

/* ---- generations ---- */

enum hearth_kind {
    HEARTH_TEXT = 0, /* raw text */
    HEARTH_MESSAGES, /* JSON: {"messages": [{"role": ..., "content": ...}, ...], ...}, the template's context */
    HEARTH_TOKENS, /* int32 little-endian ids */
    HEARTH_INFILL, /* JSON: {"prefix": ..., "suffix": ...}; for models that were trained to fill in the middle */
};

struct hearth_bias {
    int32_t token;
    float bias;
};

/* Zero means "the model's default" for every field of sampling whose has_ flag is false. */
struct hearth_sampling {
    bool has_temp, has_top_k, has_top_p, has_min_p, has_typical_p, has_repeat_penalty,
        has_repeat_last_n, has_presence_penalty, has_frequency_penalty, has_seed, has_logprobs;
    float temp, top_p, min_p, typical_p, repeat_penalty, presence_penalty, frequency_penalty;
    int32_t top_k, repeat_last_n;
    uint64_t seed;
    uint32_t logprobs; /* alternatives beside each token */
    bool ignore_eos;
    const struct hearth_bias *biases; /* borrowed for the call */
    size_t n_biases;

    bool has_dynatemp_range, has_dynatemp_exponent, has_top_n_sigma, has_xtc_probability,
        has_xtc_threshold, has_dry_multiplier, has_dry_base, has_dry_allowed_length,
        has_dry_penalty_last_n, has_mirostat, has_mirostat_tau, has_mirostat_eta,
        has_adaptive_target, has_adaptive_decay;
    float dynatemp_range, dynatemp_exponent, top_n_sigma, xtc_probability, xtc_threshold,
        dry_multiplier, dry_base, mirostat_tau, mirostat_eta, adaptive_target, adaptive_decay;
    int32_t dry_allowed_length, dry_penalty_last_n;
    uint32_t mirostat; /* 0, 1, 2 */
    /* Texts and lists, borrowed for the call. */
    const char *samplers; /* the order, "penalties;dry;..."; NULL: the built-in one */
    const char *const *dry_sequence_breakers; /* none: the built-in ones; one "": no breaker */
    size_t n_dry_sequence_breakers;
    const char *const *banned_strings;
    size_t n_banned_strings;
    const int32_t *banned_tokens;
    size_t n_banned_tokens;
};

struct hearth_ask {
    const char *model; /* NULL: the default */
    enum hearth_kind kind;
    const void *prompt; /* borrowed for the call */
    size_t prompt_len;  /* bytes */
    struct hearth_sampling sampling;
    bool has_n_max;
    uint32_t n_max;
    const char *const *stops;
    const size_t *stop_lens; /* NULL: strlen */
    size_t n_stops;
    int priority;   /* 0 normal, 1 interactive, 2 batch */
    bool detach;    /* goes on when this client leaves */
    const char *id; /* 32 hex digits: the same id again is the same request; NULL: a random one */
    uint32_t deadline_ms; /* 0: none */
    const char *flow;     /* fairness counts flows; NULL: this connection */
};

struct hearth_info {
    char id[33]; /* hex */
    char model[256];
    uint32_t n_prompt, n_max, ctx;
    uint64_t seed;
};

struct hearth_alternative {
    int32_t token;
    float logprob;
};

struct hearth_token {
    uint64_t seq;
    bool has_token; /* false: an end without a token of its own */
    int32_t id;
    float logprob;
    const char *bytes; /* what this token released */
    size_t n_bytes;
    const struct hearth_alternative *alternatives;
    size_t n_alternatives;
    uint32_t n_cached;         /* prompt tokens that were not computed again */
    uint64_t time_us;          /* CLOCK_MONOTONIC of its commit */
    bool ended;                /* this is the last one */
    const char *finish_reason; /* with ended: "stop", "length", "cancelled", "error" */
    struct hearth_error error; /* with finish_reason "error" */
};

enum hearth_result {
    HEARTH_FAILED = -1,
    HEARTH_TIMEOUT = 0,
    HEARTH_TOKEN = 1, /* look at token->ended */
    HEARTH_INTERRUPTED = 2,
};

/* Submits and waits until the request is admitted (its model may have to be loaded first). */
struct hearth_request *hearth_submit(struct hearth *h, const struct hearth_ask *ask,
                                     struct hearth_error *error);

/* Picks up a request by its id (hex, or a prefix of at least 4 digits), after sequence number `from`. */
struct hearth_request *hearth_attach(struct hearth *h, const char *id, uint64_t from,
                                     struct hearth_error *error);

const struct hearth_info *hearth_info(const struct hearth_request *r);

/* The next token, waiting at most timeout_ms (-1: for ever). */
enum hearth_result hearth_next(struct hearth_request *r, struct hearth_token *token, int timeout_ms,
                               struct hearth_error *error);

/* The next token of any of n requests of one connection; *which says whose it is (or whose error), and is where the
 * search begins: 0 at first. Those that ended must not be among them. */
enum hearth_result hearth_next_of(struct hearth_request *const *requests, size_t n, size_t *which,
                                  struct hearth_token *token, int timeout_ms,
                                  struct hearth_error *error);

/* Asks for the request's end; its tokens up to then, and its end, still come. */
int hearth_cancel(struct hearth_request *r, struct hearth_error *error);

/* Frees the request. One that ended is acknowledged; one that did not is cancelled, unless it was submitted with detach. */
void hearth_end(struct hearth_request **r);

/* Frees the object alone: the request goes on, or is kept, as if this client had died. */
void hearth_leave(struct hearth_request **r);

/* Cancels by id from outside. */
int hearth_cancel_id(struct hearth *h, const char *id, struct hearth_error *error);

/* ---- questions; JSON texts are malloc'd, the caller's to free ---- */

/* {"version","ready","processes":[],"device":{},"models":[],"requests":[],...} as CLI.md has it. all: cold models too. */
char *hearth_status(struct hearth *h, bool all, struct hearth_error *error);
/* The same with "ledger": [{"kind","name","bytes","used_bytes"}]: where the memory is. */
char *hearth_ledger(struct hearth *h, struct hearth_error *error);

/* Waits until the model is loaded (resident on the device). */
int hearth_load(struct hearth *h, const char *model, bool pin, struct hearth_error *error);
/* The same in two steps, so that the caller may look around meanwhile. next: HEARTH_TIMEOUT while it loads, HEARTH_TOKEN
 * when it is loaded. One load at a time on a connection. */
int hearth_load_begin(struct hearth *h, const char *model, bool pin, struct hearth_error *error);
enum hearth_result hearth_load_next(struct hearth *h, int timeout_ms, struct hearth_error *error);
int hearth_unload(struct hearth *h, const char *model, struct hearth_error *error);

/* Lends memory to another application: bytes (UINT64_MAX: all, 0: takes it back), for seconds (0: until it is taken back). Returns
 * when it is free. *left, *of (may be NULL): what models may take now, and otherwise. */
int hearth_yield(struct hearth *h, uint64_t bytes, uint32_t seconds, uint64_t *left, uint64_t *of,
                 struct hearth_error *error);

enum hearth_text_op {
    HEARTH_TOKENIZE = 0, /* text -> int32 ids */
    HEARTH_DETOKENIZE,   /* int32 ids -> bytes */
    HEARTH_RENDER,       /* JSON context -> text */
    HEARTH_PIECES,       /* int32 ids -> {uint32 length, bytes} each */
    HEARTH_PARSE =
        5, /* JSON {"text", "tools", ...} -> JSON {"content", "reasoning_content", "tool_calls", ...} */
};

struct hearth_text {
    const char *model;
    enum hearth_text_op op;
    bool add_special, parse_special, remove_special, unparse_special;
    uint64_t now; /* RENDER: the clock, epoch UTC; 0: now */
    const void *input;
    size_t input_len;
};

/* The text service's answer, malloc'd (a NUL follows it). */
void *hearth_text(struct hearth *h, const struct hearth_text *ask, size_t *len,
                  struct hearth_error *error);

enum hearth_eval_kind {
    HEARTH_LOGITS = 0,
    HEARTH_EMBED_NONE,
    HEARTH_EMBED_MEAN,
    HEARTH_EMBED_CLS,
    HEARTH_EMBED_LAST,
    HEARTH_PERPLEXITY,
    HEARTH_EMBED, /* by the model's own pooling, the mean where it names none */
};

struct hearth_evaluation {
    const char *model;
    enum hearth_eval_kind kind;
    const int32_t *ids; /* sequences one after another */
    size_t n_ids;
    const uint32_t *lens; /* NULL: one sequence */
    size_t n_lens;
    uint32_t start;
    uint32_t ctx;
    const char *flow; /* fairness counts flows; NULL: this connection */
};

struct hearth_matrix {
    const float *data; /* (n_rows, n_cols), in a mapping; hearth_matrix_free */
    uint64_t n_rows, n_cols;
    double perplexity;
    void *mapping;
    size_t mapping_bytes;
};

int hearth_evaluate(struct hearth *h, const struct hearth_evaluation *ask,
                    struct hearth_matrix *out, struct hearth_error *error);
void hearth_matrix_free(struct hearth_matrix *m);

#ifdef __cplusplus
}
#endif
