/* The chat-template engine: a Jinja subset of our own, rendered as Hugging Face's environment does it
 * (trim_blocks, lstrip_blocks, loop controls, tojson, raise_exception, strftime_now).
 * Used by the text service and by hearth-template. One thread per template or per render; a compiled
 * template is read-only and may be shared.
 *
 * Templates come from model files and are hostile until shown otherwise: source, steps, depth, memory
 * and output are bounded (bounds.h), and every end is one error that names the template's line.
 *
 * Trust. The output comes in spans: `trusted` text was written by the template itself (its literal
 * text and constants, numbers, true/false/none, JSON punctuation, the clock) or is one of the
 * context's top-level strings bos_token, eos_token, unk_token, pad_token. Everything that began as a
 * string or a key of the context is untrusted, through every operation: concatenation, slices,
 * split, replace, strip and join keep the mark of each piece; an operation that cannot tell (from_json,
 * urlencode, a number format) marks its whole result untrusted when any part of its input was. Special
 * tokens may be recognised inside trusted spans alone. A caller who lets a request set the four token
 * names gives that request the template's own voice: it must not. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/json.h"

struct template;

/* Why a render ended; the names are the `kind` of hearth-template's JSON. */
enum template_failure {
    TEMPLATE_OK,
    TEMPLATE_RAISED,    /* raise_exception: the template refuses this conversation (ERR_TEMPLATE) */
    TEMPLATE_UNDEFINED, /* an operation on an undefined value (ERR_BAD_INPUT) */
    TEMPLATE_RUNTIME,   /* type errors, division by zero, unpacking (ERR_BAD_INPUT) */
    TEMPLATE_MISUSE, /* unknown filter or test reached, assignment to a non-namespace (ERR_BAD_FILE) */
    TEMPLATE_SANDBOX, /* a mutating method that templates may not call (ERR_BAD_FILE) */
    TEMPLATE_COMPILE, /* syntax (ERR_BAD_FILE) */
    TEMPLATE_LIMIT,   /* a bound of bounds.h (ERR_BAD_FILE), or no memory (ERR_NO_MEMORY) */
    TEMPLATE_N_FAILURES,
};

struct template_span {
    size_t off, len; /* bytes of the text; spans are in order and cover it without gaps */
    bool trusted;
};

struct template_output {
    char *text; /* len bytes and a NUL behind */
    size_t len;
    struct template_span *spans; /* neighbours differ in trust */
    size_t n_spans;
    enum template_failure failure;
    char
        *message; /* of a failure, whole and verbatim (err's text is cut and one line); else NULL */
    int line;     /* of the template where it failed, from 1; 0 unknown */
};

/* Compiles UTF-8 text (borrowed for the call). NULL: ERR_BAD_FILE "template line N: ..." or
 * ERR_NO_MEMORY. Owned by the caller. */
struct template *template_compile(const char *text, size_t len, struct err *err);
void template_destroy(struct template **t);

/* Renders with context (an object: every variable; NULL is empty; borrowed, unchanged). now_epoch: what
 * strftime_now shows, seconds since 1970, in the process's local time. Fills out (also on failure:
 * failure, message, line); the caller clears it either way. */
int template_render(const struct template *t, const struct json *context, int64_t now_epoch,
                    struct template_output *out, struct err *err);
void template_output_clear(struct template_output *out);

/* "raise_exception", "undefined", ...; "" for TEMPLATE_OK. */
const char *template_failure_name(enum template_failure failure);
