/* One answer on stdout as its tokens come: as text, as ids, or as JSON lines; Ctrl-C cancels it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "clients/verbs/verb.h"

struct answer_style {
    bool json;
    bool ids;      /* one id a line instead of text */
    bool whole;    /* nothing before the end */
    bool logprobs; /* JSON tokens carry them */
};

struct answer {
    int exit_code; /* 0; 1 when it failed; 130 when interrupted; ... */
    char *text;    /* what came, malloc'd; for chat's history */
    size_t len;
};

/* Submits and prints until the end. Errors are printed here. text is the caller's to free. */
struct answer answer_print(struct verb *v, const struct hearth_ask *ask, struct answer_style style);

/* The same for a request that exists (attach). */
struct answer answer_follow(struct verb *v, struct hearth_request *r, struct answer_style style,
                            double started_ms);

/* Submits it detached and prints its id; exits when it is refused. */
void answer_detach(struct verb *v, struct hearth_ask *ask);

double answer_now_ms(void);
