/* What every verb does the same way: options all have, opening the connection, one error line, signals, the terminal. */
#pragma once

#include <stdbool.h>
#include <stdio.h>

#include "clients/hearth.h"
#include "clients/options.h"

struct verb {
    const struct program *program;
    const char *run, *color;
    bool json;
    int signal_fd; /* readable after Ctrl-C or SIGTERM */
    struct hearth *h;
};

/* The rows every verb ends its option table with. */
#define VERB_OPTIONS(verb)                                                                         \
    { "json", 0, OPTION_FLAG, &(verb).json, NULL, "print JSON: one object, or one a line", NULL }, \
        { "run", 0, OPTION_STRING, &(verb).run, "DIR", "the runtime directory", NULL },            \
        { "color", 0, OPTION_STRING, &(verb).color, "WHEN", "auto, always or never", NULL },       \
    {                                                                                              \
        0                                                                                          \
    }

/* Blocks the signals, checks --color, opens the connection; exits with the error's code when that fails. */
void verb_open(struct verb *v);

/* Prints "hearth VERB: text" and exits with the error's code. */
_Noreturn void verb_fail(struct verb *v, const struct hearth_error *error);

/* With --json: {"WHAT": NAME, "DONE": true} on a line, NAME as it may be. */
void verb_say_done(const struct verb *v, const char *what, const char *name, const char *done);

/* Closes and returns the exit code. */
int verb_close(struct verb *v, int exit_code);

/* Blocks SIGINT and SIGTERM and opens v->signal_fd. */
void verb_signals(struct verb *v);

/* Reads the signal that made signal_fd readable, so that later waits are not cut short. */
void verb_take_signal(struct verb *v);

/* Colour is wanted on this stream. */
bool verb_colored(const struct verb *v, FILE *stream);

/* The prompt of ask and complete: piped stdin first, then the arguments, joined by a space or an empty line; "-" is stdin.
 * malloc'd; exits with code 2 when there is none. */
char *verb_prompt(struct verb *v, int n_args, char **args, size_t *len);
