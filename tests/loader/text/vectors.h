/* Reading the conformance directory's files: JSON lines, base64, vocabularies. Tests only. */
#pragma once

#include <stdbool.h>
#include <stdio.h>

#include "proto/json.h"
#include "proto/weights.h"

/* A file of one JSON object a line. */
struct vectors {
    FILE *file;
    char *line;
    size_t cap;
    size_t number; /* of the line that next() gave */
};

/* false when there is no such file. */
bool vectors_open(struct vectors *v, const char *path);

/* The next object, owned by the caller, or NULL at the end. Fails the test on a broken line. */
struct json *vectors_next(struct vectors *v);
void vectors_close(struct vectors *v);

/* Bytes of member "key", or of "key_b64"; owned by the caller (free), NULL when there is neither. */
char *vectors_text(const struct json *object, const char *key, size_t *len);

/* Maps DIR/vocabs/NAME.gguf or unpacks NAME.gguf.gz first. Fails the test when it cannot. */
void vectors_vocabulary(struct weights *w, const char *dir, const char *name);
