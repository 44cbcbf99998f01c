/* What tokenize and detokenize share: which vocabulary, standard input as a whole or line by line, errors and exit
 * codes, bytes in JSON. A program is its options, one function for each form of request, and text_program_run. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "clients/direct/vocabulary.h"
#include "clients/options.h"
#include "proto/err.h"
#include "proto/json.h"

#define TEXT_PROGRAM_INPUT_MAX                                                                     \
    (256u << 20) /* bytes of standard input, or of one line: what a tokenizer takes */

struct text_program {
    const struct program *program;
    const char *run, *model, *file, *pre; /* options; NULL where not given */
    bool jsonl;
    /* Writes the answer to all of standard input. */
    int (*answer)(struct vocabulary *v, const char *input, size_t len, struct err *err);
    /* Writes the answer to one line's object, without the newline. */
    int (*answer_line)(struct vocabulary *v, const struct json *line, struct err *err);
};

/* Opens the vocabulary, reads, answers. Returns the program's exit code; errors are one line on stderr. */
int text_program_run(const struct text_program *p);

/* Bytes of member "text" or "text_b64", malloc'd. NULL: ERR_BAD_INPUT. */
char *text_of_line(const struct json *line, size_t *len, struct err *err);

/* Member key, or otherwise what the command line said. */
bool flag_of_line(const struct json *line, const char *key, bool otherwise);

/* Writes bytes as base64, without quotes. */
void put_base64(FILE *out, const char *bytes, size_t len);

/* Writes {"text":...}, or {"text_b64":...} for bytes that are no UTF-8 or hold a NUL. */
void put_text_object(FILE *out, const char *bytes, size_t len);
