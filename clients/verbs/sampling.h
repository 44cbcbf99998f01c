/* The sampling options with the field's names, shared by ask, complete and chat. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "clients/hearth.h"
#include "clients/options.h"
#include "clients/verbs/verb.h"

struct sampling_options {
    double temp, top_p, min_p, typical_p, repeat_penalty, presence_penalty, frequency_penalty;
    int64_t top_k, repeat_last_n, seed, logprobs, n_max;
    bool has_temp, has_top_p, has_min_p, has_typical_p, has_repeat_penalty, has_presence_penalty,
        has_frequency_penalty, has_top_k, has_repeat_last_n, has_seed, has_logprobs, has_n_max;
    double dynatemp_range, dynatemp_exponent, top_n_sigma, xtc_probability, xtc_threshold,
        dry_multiplier, dry_base, mirostat_tau, mirostat_eta, adaptive_target, adaptive_decay;
    int64_t dry_allowed_length, dry_penalty_last_n, mirostat;
    bool has_dynatemp_range, has_dynatemp_exponent, has_top_n_sigma, has_xtc_probability,
        has_xtc_threshold, has_dry_multiplier, has_dry_base, has_dry_allowed_length,
        has_dry_penalty_last_n, has_mirostat, has_mirostat_tau, has_mirostat_eta,
        has_adaptive_target, has_adaptive_decay;
    const char *samplers, *priority, *flow;
    double deadline;
    bool has_deadline;
    bool ignore_eos;
    struct option_list stops, logit_biases, dry_breakers, banned_strings, banned_tokens;
    struct hearth_bias biases[OPTION_LIST_MAX];
    int32_t banned[OPTION_LIST_MAX];
};

#define SAMPLING_ROW(s, flag, field, kind, value, help)                                            \
    {                                                                                              \
        flag, 0, kind, &(s).field, value, help, &(s).has_##field                                   \
    }

#define SAMPLING_OPTIONS(s)                                                                         \
    { NULL, 0, OPTION_GROUP, NULL, NULL, "Sampling", NULL },                                        \
        { "n-predict",   'n', OPTION_INT, &(s).n_max, "MAX", "tokens to generate at most",          \
          &(s).has_n_max },                                                                         \
        SAMPLING_ROW(s, "temp", temp, OPTION_FLOAT, "T", "temperature; 0 is greedy"),               \
        SAMPLING_ROW(s, "top-k", top_k, OPTION_INT, "K", "only the K likeliest; 0: all"),           \
        SAMPLING_ROW(s, "top-p", top_p, OPTION_FLOAT, "P",                                          \
                     "only the likeliest up to mass P; 1: all"),                                    \
        SAMPLING_ROW(s, "min-p", min_p, OPTION_FLOAT, "P",                                          \
                     "only those of P times the best; 0: all"),                                     \
        SAMPLING_ROW(s, "typical-p", typical_p, OPTION_FLOAT, "P",                                  \
                     "locally typical mass; 1: off"),                                               \
        SAMPLING_ROW(s, "repeat-penalty", repeat_penalty, OPTION_FLOAT, "R", "1: none"),            \
        SAMPLING_ROW(s, "repeat-last-n", repeat_last_n, OPTION_INT, "N",                            \
                     "tokens the penalties look at; -1: the context"),                              \
        SAMPLING_ROW(s, "presence-penalty", presence_penalty, OPTION_FLOAT, "R", "0: none"),        \
        SAMPLING_ROW(s, "frequency-penalty", frequency_penalty, OPTION_FLOAT, "R", "0: none"),      \
        SAMPLING_ROW(s, "dynatemp-range", dynatemp_range, OPTION_FLOAT, "R",                        \
                     "temperature within R of --temp, by the entropy; 0: off"),                     \
        SAMPLING_ROW(s, "dynatemp-exponent", dynatemp_exponent, OPTION_FLOAT, "E",                  \
                     "its exponent; 1"),                                                            \
        SAMPLING_ROW(s, "top-n-sigma", top_n_sigma, OPTION_FLOAT, "N",                              \
                     "only logits within N deviations of the best; -1: off"),                       \
        SAMPLING_ROW(s, "xtc-probability", xtc_probability, OPTION_FLOAT, "P",                      \
                     "how often the top choices are left out; 0: never"),                           \
        SAMPLING_ROW(s, "xtc-threshold", xtc_threshold, OPTION_FLOAT, "P",                          \
                     "what is a top choice; 0.1"),                                                  \
        SAMPLING_ROW(s, "dry-multiplier", dry_multiplier, OPTION_FLOAT, "M",                        \
                     "against repetitions: M * base^(length - allowed); 0: off"),                   \
        SAMPLING_ROW(s, "dry-base", dry_base, OPTION_FLOAT, "B", "1.75"),                           \
        SAMPLING_ROW(s, "dry-allowed-length", dry_allowed_length, OPTION_INT, "N", "2"),            \
        SAMPLING_ROW(s, "dry-penalty-last-n", dry_penalty_last_n, OPTION_INT, "N",                  \
                     "tokens that it looks at, 64; -1: the context"),                               \
        { "dry-sequence-breaker",                                                                   \
          0,                                                                                        \
          OPTION_STRINGS,                                                                           \
          &(s).dry_breakers,                                                                        \
          "STRING",                                                                                 \
          "no repetition reaches over it; '': none (line end, colon, quote, asterisk)",             \
          NULL },                                                                                   \
        SAMPLING_ROW(s, "mirostat", mirostat, OPTION_INT, "V",                                      \
                     "1 or 2: steady surprise in place of the filters; 0: off"),                    \
        SAMPLING_ROW(s, "mirostat-tau", mirostat_tau, OPTION_FLOAT, "T", "its surprise; 5"),        \
        SAMPLING_ROW(s, "mirostat-eta", mirostat_eta, OPTION_FLOAT, "E", "how fast; 0.1"),          \
        SAMPLING_ROW(s, "adaptive-target", adaptive_target, OPTION_FLOAT, "P",                      \
                     "draw tokens of about this probability; -1: off"),                             \
        SAMPLING_ROW(s, "adaptive-decay", adaptive_decay, OPTION_FLOAT, "D",                        \
                     "how long it remembers, to 0.99; 0.9"),                                        \
        { "samplers",                                                                               \
          0,                                                                                        \
          OPTION_STRING,                                                                            \
          &(s).samplers,                                                                            \
          "A;B;...",                                                                                \
          "their order: "                                                                           \
          "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature;adaptive_p",           \
          NULL },                                                                                   \
        { "banned-string",                                                                          \
          0,                                                                                        \
          OPTION_STRINGS,                                                                           \
          &(s).banned_strings,                                                                      \
          "STRING",                                                                                 \
          "text that must not come, in either case",                                                \
          NULL },                                                                                   \
        { "banned-token",                                                                           \
          0,                                                                                        \
          OPTION_STRINGS,                                                                           \
          &(s).banned_tokens,                                                                       \
          "ID",                                                                                     \
          "token that must not come",                                                               \
          NULL },                                                                                   \
        SAMPLING_ROW(s, "seed", seed, OPTION_INT, "N", "the same seed gives the same answer"),      \
        SAMPLING_ROW(s, "logprobs", logprobs, OPTION_INT, "N",                                      \
                     "log-probabilities and N alternatives"),                                       \
        { "priority", 0, OPTION_STRING, &(s).priority, "P", "interactive, normal or batch", NULL }, \
        SAMPLING_ROW(s, "deadline", deadline, OPTION_FLOAT, "SECONDS",                              \
                     "fail when it takes longer"),                                                  \
        { "flow",    0,      OPTION_STRING,                                                         \
          &(s).flow, "NAME", "who this is to count for when turns are shared",                      \
          NULL },                                                                                   \
        { "stop", 0, OPTION_STRINGS, &(s).stops, "STRING", "end before this text", NULL },          \
        { "logit-bias", 0, OPTION_STRINGS, &(s).logit_biases, "ID=B", "add B to a token's logit",   \
          NULL },                                                                                   \
    {                                                                                               \
        "ignore-eos", 0, OPTION_FLAG, &(s).ignore_eos, NULL, "go on after an end token", NULL       \
    }

/* Checks ranges (exit 2) and fills the request's fields; pointers into s stay borrowed. */
void sampling_fill(struct verb *v, struct sampling_options *s, struct hearth_ask *ask);
