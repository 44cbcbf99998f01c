/* One error type for every room. A function that can fail returns 0 or -1 (or NULL) and fills `err`,
 * its last argument. The deepest function names the thing and the value, callers put the place before
 * it, once each: "model llama.gguf: tensor blk.3.attn_q.weight: type 99 is not known".
 * Any thread; an err belongs to its caller. */
#pragma once

#include <stdarg.h>

#define ERR_TEXT_MAX 512 /* bytes of one error line with its NUL: a screen's width five times */

enum err_code {
    ERR_NONE = 0,
    ERR_FAILED,      /* anything without a name of its own */
    ERR_USAGE,       /* options or arguments */
    ERR_BAD_INPUT,   /* a frame, a parameter, a prompt that cannot be understood */
    ERR_UNREACHABLE, /* no broker, or it went away */
    ERR_NOT_FOUND,   /* model, request */
    ERR_NO_FIT,      /* does not fit context or memory */
    ERR_NO_MEMORY,   /* an allocation or a tmpfs refused */
    ERR_BUSY,        /* a queue, a table or a quota is full; later it may not be */
    ERR_TIMEOUT,     /* waited long enough */
    ERR_BAD_FILE,    /* malformed or damaged model file, template, vocabulary */
    ERR_UNSUPPORTED, /* a well-formed thing that this build does not do: type, architecture, op */
    ERR_REFUSED,     /* key, role, owner */
    ERR_CANCELLED,   /* by its client */
    ERR_INTERRUPTED, /* Ctrl-C */
    ERR_IO,          /* a system call failed; the text has errno's words */
    ERR_FULL,        /* a bounded container of our own is full */
    ERR_CLOSED,      /* the peer closed the line */
    ERR_TEMPLATE,    /* a chat template raised an exception of its own */
    ERR_CHANGED,     /* the model file is not the one the request began with */
    ERR_POISON,      /* the request killed its worker again and again */
    ERR_N_CODES,
};

struct err {
    enum err_code code;
    char text[ERR_TEXT_MAX];
};

/* Fills err and returns -1, so that `return err_set(...)` reads as one line. err may be NULL. */
int err_set(struct err *err, enum err_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same with ": " and errno's text behind. */
int err_set_errno(struct err *err, enum err_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "where: " before the text that stands; returns -1. */
int err_wrap(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* One table: a code's name on the wire and in logs, its exit code (CLI.md) and its HTTP status. */
const char *err_name(enum err_code code);
int err_exit_code(enum err_code code);
int err_http_status(enum err_code code);

/* The code of a name; ERR_FAILED for an unknown one. */
enum err_code err_code_of_name(const char *name);
