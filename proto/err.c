#include "proto/err.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int exit_code;
    int http_status;
} table[ERR_N_CODES] = {
    [ERR_NONE] = { "ok", 0, 200 },
    [ERR_FAILED] = { "failed", 1, 500 },
    [ERR_USAGE] = { "usage", 2, 400 },
    [ERR_BAD_INPUT] = { "bad_input", 1, 400 },
    [ERR_UNREACHABLE] = { "unreachable", 3, 503 },
    [ERR_NOT_FOUND] = { "not_found", 4, 404 },
    [ERR_NO_FIT] = { "no_fit", 5, 400 },
    [ERR_NO_MEMORY] = { "no_memory", 5, 507 },
    [ERR_BUSY] = { "busy", 6, 429 },
    [ERR_TIMEOUT] = { "timeout", 6, 504 },
    [ERR_BAD_FILE] = { "bad_file", 7, 500 },
    [ERR_UNSUPPORTED] = { "unsupported", 7, 501 },
    [ERR_REFUSED] = { "refused", 8, 403 },
    [ERR_CANCELLED] = { "cancelled", 1, 499 },
    [ERR_INTERRUPTED] = { "interrupted", 130, 499 },
    [ERR_IO] = { "io", 1, 500 },
    [ERR_FULL] = { "full", 6, 503 },
    [ERR_CLOSED] = { "closed", 3, 503 },
    [ERR_TEMPLATE] = { "template", 1, 400 },
    [ERR_CHANGED] = { "model_changed", 1, 409 },
    [ERR_POISON] = { "poison", 1, 500 },
};

__attribute__((format(printf, 2, 0))) static void set_text(struct err *err, const char *format,
                                                           va_list args)
{
    vsnprintf(err->text, sizeof err->text, format, args);
    /* One line per error, whatever stands in a file's names. */
    for (char *c = err->text; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            *c = '?';
        }
    }
}

int err_set(struct err *err, enum err_code code, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        err->code = code;
        set_text(err, format, args);
        va_end(args);
    }
    return -1;
}

int err_set_errno(struct err *err, enum err_code code, const char *format, ...)
{
    int saved = errno;
    if (err) {
        va_list args;
        va_start(args, format);
        err->code = code;
        set_text(err, format, args);
        va_end(args);
        size_t len = strlen(err->text);
        snprintf(err->text + len, sizeof err->text - len, ": %s", strerror(saved));
    }
    return -1;
}

int err_wrap(struct err *err, const char *format, ...)
{
    if (err) {
        char inner[ERR_TEXT_MAX];
        memcpy(inner, err->text, sizeof inner);
        va_list args;
        va_start(args, format);
        set_text(err, format, args);
        va_end(args);
        size_t len = strlen(err->text);
        snprintf(err->text + len, sizeof err->text - len, ": %s", inner);
    }
    return -1;
}

const char *err_name(enum err_code code)
{
    return (unsigned)code < ERR_N_CODES ? table[code].name : table[ERR_FAILED].name;
}

int err_exit_code(enum err_code code)
{
    return (unsigned)code < ERR_N_CODES ? table[code].exit_code : 1;
}

int err_http_status(enum err_code code)
{
    return (unsigned)code < ERR_N_CODES ? table[code].http_status : 500;
}

enum err_code err_code_of_name(const char *name)
{
    for (int code = 0; code < ERR_N_CODES; code++) {
        if (strcmp(table[code].name, name) == 0) {
            return (enum err_code)code;
        }
    }
    return ERR_FAILED;
}
