/* Command-line options by table, for every program a person starts: parsing, --help, --version, the man page and the
 * words for completion come from one list. Libc only; used once at the start of main. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_kind {
    OPTION_END = 0,
    OPTION_FLAG,    /* bool: set to true */
    OPTION_STRING,  /* const char *, borrowed from argv */
    OPTION_STRINGS, /* struct option_list: may come again and again */
    OPTION_INT,     /* int64_t; set to what was given */
    OPTION_FLOAT,   /* double */
    OPTION_SIZE,    /* uint64_t bytes: 512M, 4G, 1.5GiB */
    OPTION_GROUP,   /* no option: a heading for the help */
};

#define OPTION_LIST_MAX 64
struct option_list {
    const char *items[OPTION_LIST_MAX];
    int n;
};

struct option {
    const char *name; /* without the dashes */
    char letter;      /* 0: none */
    enum option_kind kind;
    void *target;
    const char *value; /* what the value is called in the help: "FILE"; NULL for flags */
    const char *help;
    bool *given; /* set when it came; may be NULL */
};

struct program {
    const char *verb;     /* "ask" */
    const char *synopsis; /* "[OPTIONS] PROMPT" */
    const char *purpose;  /* one line */
    const char *text;     /* paragraphs for the man page; may be NULL */
};

/* Parses argv in place: options may stand anywhere, "--" ends them, values follow as the next word or after '='; negative
 * numbers are values. Returns the number of positional arguments, which argv[0..n-1] then are. Does not return after --help,
 * --version, --man, --words (exit 0) or a wrong option (one line on stderr, exit 2). */
int options_parse(const struct program *program, const struct option *table, int argc, char **argv);

/* "hearth ask: what" on stderr, then exit 2. */
_Noreturn void options_fail(const struct program *program, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
