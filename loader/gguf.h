/* GGUF, versions 2 and 3: the container of models. Header, typed keys, tensor infos; every field is checked against
 * the file's size before anything is allocated or multiplied, so nothing here believes the file.
 *
 *   magic, version, counts | keys with values | tensor infos | padding | tensor data
 *
 * No field is aligned. Refused beyond the specification's own rules: big-endian files, arrays of arrays, tensors
 * without values, alignments below 8 (kernels read whole floats), keys and names that are not UTF-8 or hold
 * control characters (they are printed in one line), more keys or tensors than a weights segment holds.
 * Loader's main thread. Errors are ERR_BAD_FILE: "byte 1234: what is wrong with which field". */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "loader/head.h"
#include "proto/dtype.h"
#include "proto/err.h"
#include "proto/weights.h"

#define GGUF_ALIGNMENT_DEFAULT 32
#define GGUF_ALIGNMENT_MAX     (1u << 20) /* a larger one only wastes memory */
#define GGUF_KEY_MAX           65535u
#define GGUF_NAME_MAX          63u /* bytes of a tensor's name */

struct gguf_kv {
    const char *key; /* not NUL-terminated; in the head's memory */
    uint32_t key_len;
    enum weights_type type, elem; /* equal but for arrays */
    uint64_t n;
    const uint8_t *data; /* as the file packs it: strings with their 64-bit lengths */
    uint64_t size_bytes;
    uint64_t off; /* of the key in the file */
};

struct gguf_tensor {
    const char *name;
    uint32_t name_len;
    uint32_t n_dims;
    uint64_t ne[WEIGHTS_DIMS_MAX]; /* unused ones are 1 */
    enum dtype dtype;
    uint64_t data_off; /* within the data section */
    uint64_t size_bytes;
    uint64_t off; /* of its info in the file */
};

struct gguf {
    uint32_t version;
    uint32_t alignment;
    struct gguf_kv *kvs; /* owned tables; texts and values are the head's */
    uint64_t n_kvs;
    struct gguf_tensor *tensors;
    uint64_t n_tensors;
    uint64_t head_bytes; /* up to the end of the tensor infos */
    uint64_t data_off;   /* of the data section in the file */
    uint64_t data_bytes; /* up to the last tensor's end */
    uint64_t digest;     /* of the head_bytes: which model this is */
};

/* Parses the head of a file. What g points to lives as long as head does. */
int gguf_parse(struct gguf *g, struct head *head, struct err *err);
void gguf_clear(struct gguf *g);

/* The key, or NULL. */
const struct gguf_kv *gguf_find(const struct gguf *g, const char *key);

/* A scalar integer of any width; false when it is none or negative. */
bool gguf_kv_u64(const struct gguf_kv *kv, uint64_t *out);

/* A scalar string, borrowed; false when it is none. */
bool gguf_kv_str(const struct gguf_kv *kv, const char **text, uint64_t *len);
