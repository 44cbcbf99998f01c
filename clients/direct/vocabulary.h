/* What tokenize and detokenize ask: text to ids, ids to text, the bytes of a token. Answered in this process from a
 * file's vocabulary (--file, no service needed), or by a running service's text process (-m). One thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

struct vocabulary; /* opaque to the callers */

#define VOCABULARY_ADD_SPECIAL     1u /* encode */
#define VOCABULARY_PARSE_SPECIAL   2u
#define VOCABULARY_REMOVE_SPECIAL  4u /* decode */
#define VOCABULARY_UNPARSE_SPECIAL 8u

/* One way of answering. Results are borrowed until the next call on the same vocabulary. */
struct vocabulary_ops {
    int (*encode)(struct vocabulary *v, const char *text, size_t len, unsigned flags,
                  const int32_t **ids, size_t *n, struct err *err);
    int (*decode)(struct vocabulary *v, const int32_t *ids, size_t n, unsigned flags,
                  const char **text, size_t *len, struct err *err);
    int (*piece)(struct vocabulary *v, int32_t id, const char **bytes, size_t *len,
                 struct err *err);
    void (*close)(struct vocabulary *v);
};

struct vocabulary {
    const struct vocabulary_ops *ops;
};

/* The vocabulary of a GGUF file: any architecture, no tensors needed. pre: replaces tokenizer.ggml.pre, or NULL.
 * NULL: ERR_BAD_FILE, ERR_UNSUPPORTED, ERR_NOT_FOUND, ERR_IO, ERR_NO_MEMORY. */
struct vocabulary *vocabulary_open_file(const char *path, const char *pre, struct err *err);

/* The same of a model that a running service has. run: its runtime directory, NULL for the usual places; model: NULL for the
 * default. NULL: as libhearth says. */
struct vocabulary *vocabulary_open_model(const char *run, const char *model, struct err *err);

void vocabulary_close(struct vocabulary **v);
