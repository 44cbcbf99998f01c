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
    bool ignore_eos;
    struct option_list stops, logit_biases;
    struct hearth_bias biases[OPTION_LIST_MAX];
};

#define SAMPLING_ROW(s, flag, field, kind, value, help)                                            \
    {                                                                                              \
        flag, 0, kind, &(s).field, value, help, &(s).has_##field                                   \
    }

#define SAMPLING_OPTIONS(s)                                                                        \
    { NULL, 0, OPTION_GROUP, NULL, NULL, "Sampling", NULL },                                       \
        { "n-predict",   'n', OPTION_INT, &(s).n_max, "MAX", "tokens to generate at most",         \
          &(s).has_n_max },                                                                        \
        SAMPLING_ROW(s, "temp", temp, OPTION_FLOAT, "T", "temperature; 0 is greedy"),              \
        SAMPLING_ROW(s, "top-k", top_k, OPTION_INT, "K", "only the K likeliest; 0: all"),          \
        SAMPLING_ROW(s, "top-p", top_p, OPTION_FLOAT, "P",                                         \
                     "only the likeliest up to mass P; 1: all"),                                   \
        SAMPLING_ROW(s, "min-p", min_p, OPTION_FLOAT, "P",                                         \
                     "only those of P times the best; 0: all"),                                    \
        SAMPLING_ROW(s, "typical-p", typical_p, OPTION_FLOAT, "P",                                 \
                     "locally typical mass; 1: off"),                                              \
        SAMPLING_ROW(s, "repeat-penalty", repeat_penalty, OPTION_FLOAT, "R", "1: none"),           \
        SAMPLING_ROW(s, "repeat-last-n", repeat_last_n, OPTION_INT, "N",                           \
                     "tokens the penalties look at; -1: the context"),                             \
        SAMPLING_ROW(s, "presence-penalty", presence_penalty, OPTION_FLOAT, "R", "0: none"),       \
        SAMPLING_ROW(s, "frequency-penalty", frequency_penalty, OPTION_FLOAT, "R", "0: none"),     \
        SAMPLING_ROW(s, "seed", seed, OPTION_INT, "N", "the same seed gives the same answer"),     \
        SAMPLING_ROW(s, "logprobs", logprobs, OPTION_INT, "N",                                     \
                     "log-probabilities and N alternatives"),                                      \
        { "stop", 0, OPTION_STRINGS, &(s).stops, "STRING", "end before this text", NULL },         \
        { "logit-bias", 0, OPTION_STRINGS, &(s).logit_biases, "ID=B", "add B to a token's logit",  \
          NULL },                                                                                  \
    {                                                                                              \
        "ignore-eos", 0, OPTION_FLAG, &(s).ignore_eos, NULL, "go on after an end token", NULL      \
    }

/* Checks ranges (exit 2) and fills the request's fields; pointers into s stay borrowed. */
void sampling_fill(struct verb *v, struct sampling_options *s, struct hearth_ask *ask);
