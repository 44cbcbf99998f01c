/* What went wrong, once, for every dialect: an HTTP status, OpenAI's type, the parameter's name, a code, a sentence. */
#pragma once

#include <stdbool.h>

#include "clients/hearth.h"
#include "proto/json.h"

struct exchange;

struct problem {
    unsigned status;
    char type[40];  /* "invalid_request_error" */
    char code[48];  /* "model_not_found"; empty: null */
    char param[80]; /* empty: null */
    char text[600];
    bool retry;               /* the same again may work ... */
    unsigned retry_s;         /* ... after so long; 0: a second */
    unsigned n_prompt, n_ctx; /* of a prompt that is too long; 0: not that */
};

/* Fills it and returns -1. param and code may be NULL. */
int problem_set(struct problem *p, unsigned status, const char *param, const char *code,
                const char *format, ...) __attribute__((format(printf, 5, 6)));

/* libhearth's error as one; returns -1. */
int problem_of_error(struct problem *p, const struct hearth_error *error);

/* {"error":{"message","type","param","code"}}, and n_prompt_tokens and n_ctx of a prompt that is too long. */
struct json *problem_json(const struct problem *p);

/* The exchange's answer: with its status, or as the last event of a stream that has begun. */
void problem_reply(struct exchange *x, const struct problem *p);
