/* The weights segment: one model's metadata, tensor table and tensor data in one shared memory object.
 * Written once by the loading process (weights_build_*), read by the text service and the worker
 * (weights_map), in the same way by clients/direct over an anonymous memfd.
 *
 *   header            struct weights_header, 4 KiB
 *   metadata          every key of the file: name, type, value (strings and arrays included)
 *   tensor table      struct weights_tensor_row, by file order, and a string pool for the names
 *   (gap)             the segment keeps the file's offsets modulo 4 KiB, for direct reads
 *   data              tensor data; tensor i starts at its data_off
 *
 * Offsets are bytes from the segment's start; no pointers. The reader checks every bound once at map time
 * and trusts nothing else. `watermark` in the header counts the bytes of the *data section* that are complete, in the
 * order in which they are read (loader/order.h); each tensor says what it must reach. It only grows, stored with release order. `layout` says how rows stand (file or rows16).
 * Segment life: created empty, built, sealed against resizing and writing of size after the header is known,
 * announced, filled behind the watermark. */
#pragma once

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/dtype.h"
#include "proto/err.h"

/* Kernels are compiled as C++, which has no _Atomic; they read tensors, never a header. */
#ifdef __cplusplus
#define WEIGHTS_ATOMIC volatile
#else
#include <stdatomic.h>
#define WEIGHTS_ATOMIC _Atomic
#endif

#define WEIGHTS_MAGIC    0x3157485448524548ull /* "HERTHHW1" as bytes */
#define WEIGHTS_VERSION  3
#define WEIGHTS_DIMS_MAX 4
#define WEIGHTS_PAGE     4096 /* what direct reads want file and memory offsets to share */

/* Bounds of a manifest; the reader refuses more before it allocates. */
#define WEIGHTS_KVS_MAX    65536u       /* keys; real files have a few hundred at most */
#define WEIGHTS_KEY_MAX    65535u       /* bytes of a key, the bound of GGUF */
#define WEIGHTS_NAME_MAX   255u         /* bytes of a tensor name; files hold 63 */
#define WEIGHTS_VALUES_MAX (1ull << 30) /* elements of one array */
#define WEIGHTS_TENSORS_MAX                                                                        \
    65536u /* tensors; a 100-layer model with many parts has some thousands */

/* GGUF metadata value types, by their numbers in the file. */
enum weights_type {
    WEIGHTS_U8 = 0,
    WEIGHTS_I8 = 1,
    WEIGHTS_U16 = 2,
    WEIGHTS_I16 = 3,
    WEIGHTS_U32 = 4,
    WEIGHTS_I32 = 5,
    WEIGHTS_F32 = 6,
    WEIGHTS_BOOL = 7,
    WEIGHTS_STRING = 8,
    WEIGHTS_ARRAY = 9,
    WEIGHTS_U64 = 10,
    WEIGHTS_I64 = 11,
    WEIGHTS_F64 = 12,
    WEIGHTS_N_TYPES = 13,
};

/* How a tensor's rows stand in memory. */
enum weights_layout {
    WEIGHTS_LAYOUT_FILE = 0,   /* as in the file: row after row of blocks */
    WEIGHTS_LAYOUT_ROWS16 = 1, /* re-laid in groups of 16 rows, see proto/rows16.h; same size */
};

struct weights_header {
    uint64_t magic;
    uint32_t version;
    uint32_t header_bytes;  /* sizeof this */
    uint64_t segment_bytes; /* whole segment */
    uint64_t kv_off, kv_bytes;
    uint64_t n_kv;
    uint64_t tensor_off; /* struct weights_tensor_row [n_tensors] */
    uint64_t n_tensors;
    uint64_t names_off, names_bytes; /* tensor names, each with a NUL */
    uint64_t data_off, data_bytes;
    uint64_t digest;       /* of the file's header and tensor table: which model this is */
    uint32_t file_version; /* 2 or 3 */
    uint32_t reserved;
    WEIGHTS_ATOMIC uint64_t watermark; /* bytes of data complete; data_bytes when done */
    /* Loaded by a window (loader/window.h): at most so many bytes of data stand here at once, what was uploaded is gone,
     * and only the worker that it was loaded for ever reads it. 0: all of it stays. */
    uint64_t window;
    WEIGHTS_ATOMIC uint64_t wants; /* the loader waits until so many are uploaded; 0: it does not */
};

struct weights_tensor_row {
    uint64_t name_off; /* within names */
    uint32_t dtype;
    uint32_t layout;
    uint32_t n_dims;
    uint32_t reserved;
    uint64_t ne[WEIGHTS_DIMS_MAX]; /* ne[0] is the row length; unused dims are 1 */
    uint64_t data_off;             /* from the segment's start */
    uint64_t size_bytes;
    uint64_t ready; /* the tensor is complete when the watermark has reached this */
};

/* One key in the metadata: this, the key with its NUL, the values, for strings their ends; then to 8 bytes. */
struct weights_kv_record {
    uint32_t key_len;
    uint32_t type;
    uint32_t elem;
    uint32_t reserved;
    uint64_t n;
    uint64_t size_bytes; /* of the values */
};
static_assert(sizeof(struct weights_kv_record) == 32, "the segment's key record");

/* One metadata key as the reader sees it; pointers into the mapping, borrowed while it lives. */
struct weights_kv {
    const char *key; /* NUL-terminated */
    enum weights_type type;
    enum weights_type elem; /* arrays: type of the elements (never ARRAY); scalars: equal to type */
    uint64_t n;             /* elements; 1 for a scalar */
    const uint8_t
        *data; /* packed little-endian values; for strings the bytes of all, one after another */
    uint64_t size_bytes; /* of data, without the ends */
    const uint8_t *ends; /* strings only: uint64_t[n] of end offsets into data, unaligned */
};

struct weights_tensor {
    const char *name;
    enum dtype dtype;
    enum weights_layout layout;
    uint32_t n_dims;
    uint64_t ne[WEIGHTS_DIMS_MAX];
    uint64_t size_bytes;
    uint64_t data_off;   /* within the data section, as in the file */
    uint64_t data_end;   /* what the watermark must reach for this tensor to be there */
    const uint8_t *data; /* in the mapping; complete only when the watermark says so */
};

/* A mapped segment; zero it, then map. Readers of one mapping may run on any thread. */
struct weights {
    const uint8_t *base;
    size_t size;
    const struct weights_header *header;
    struct weights_kv *kvs; /* owned table, n_kvs */
    size_t n_kvs;
    struct weights_tensor *tensors; /* owned table, n_tensors */
    size_t n_tensors;
    uint32_t *kv_index, *tensor_index; /* owned; indexes sorted by key and by name */
    char *text; /* owned copies of keys and names: the writer may still live, a NUL must stay one */
};

/* Maps a finished or still filling segment read-only and checks every bound. fd is borrowed.
 * Errors: ERR_BAD_FILE naming the field, ERR_IO, ERR_NO_MEMORY. */
int weights_map(struct weights *w, int fd, struct err *err);

/* Unmaps and clears; accepts a zeroed one. */
void weights_unmap(struct weights *w);

/* The key or tensor, or NULL. */
const struct weights_kv *weights_find_kv(const struct weights *w, const char *key);
const struct weights_tensor *weights_find_tensor(const struct weights *w, const char *name);

/* Element i of an array (or i = 0 of a scalar) as a number: integers of any width, bool, floats convert.
 * false when i is out of range, the type is a string, or the value does not fit. */
bool weights_kv_u64(const struct weights_kv *kv, uint64_t i, uint64_t *out);
bool weights_kv_i64(const struct weights_kv *kv, uint64_t i, int64_t *out);
bool weights_kv_f64(const struct weights_kv *kv, uint64_t i, double *out);

/* String i, borrowed, with its length; not NUL-terminated. false when it is none. */
bool weights_kv_str(const struct weights_kv *kv, uint64_t i, const char **text, size_t *len);

/* Bytes of one value of a type; 0 for strings, arrays and unknown types. */
size_t weights_type_size(enum weights_type type);

/* "u32", "string"; "?" for an unknown one. */
const char *weights_type_name(enum weights_type type);

/* Bytes of data complete so far (acquire order). */
uint64_t weights_watermark(const struct weights *w);

/* ---- building (the loading process) ---- */

/* Collects keys and tensors in memory, then lays the segment out. What the add functions take is copied.
 * Errors of all: ERR_BAD_FILE (a bound, a name twice), ERR_NO_MEMORY, ERR_IO. One thread. */
struct weights_builder;
struct weights_builder *weights_builder_create(struct err *err);
void weights_builder_destroy(struct weights_builder **b);

/* One key. elem and n as in struct weights_kv; data: n packed values (not for strings). */
int weights_builder_add(struct weights_builder *b, const char *key, size_t key_len,
                        enum weights_type type, enum weights_type elem, uint64_t n,
                        const void *data, struct err *err);

/* One string or array of strings: texts one after another in data, ends[n] their end offsets. */
int weights_builder_add_strings(struct weights_builder *b, const char *key, size_t key_len,
                                enum weights_type type, uint64_t n, const void *data,
                                const uint64_t *ends, struct err *err);

/* One key whose value is borrowed until the builder is written or destroyed, as GGUF packs it: n values, or
 * n times a 64-bit length and that many bytes (checked again here). For large arrays: nothing is copied.
 * key is borrowed as well. With spend, the values lie in private anonymous memory whose whole pages are given
 * back once they are written, so that large metadata never stands in memory twice. */
int weights_builder_borrow(struct weights_builder *b, const char *key, size_t key_len,
                           enum weights_type type, enum weights_type elem, uint64_t n,
                           const uint8_t *packed, uint64_t packed_bytes, bool spend,
                           struct err *err);

/* One tensor; off is its offset in the data section. */
int weights_builder_add_tensor(struct weights_builder *b, const char *name, size_t name_len,
                               enum dtype dtype, enum weights_layout layout, uint32_t n_dims,
                               const uint64_t *ne, uint64_t off, uint64_t size_bytes,
                               struct err *err);

/* What the watermark must reach for the tensor that was added last; without this call, the tensor's end. */
void weights_builder_ready(struct weights_builder *b, uint64_t ready);

/* The data will be there by a window of so many bytes only. */
void weights_builder_window(struct weights_builder *b, uint64_t bytes);

/* Sizes fd (a memfd), writes header, metadata and table. data_bytes is the size of the data section; its start
 * is congruent to file_data_off modulo 4 KiB. Returns through *data_off where data begins.
 * fd is borrowed; the caller seals it (F_SEAL_SHRINK | F_SEAL_GROW) afterwards. */
int weights_builder_write(struct weights_builder *b, int fd, uint64_t file_data_off,
                          uint64_t data_bytes, uint64_t digest, uint32_t file_version,
                          uint64_t *data_off, struct err *err);

/* Says in a writable mapping of the header what the loader waits for; 0: nothing. */
void weights_want(struct weights_header *header, uint64_t uploaded);

/* Advances the watermark of a writable mapping of the header; release order. */
void weights_advance(struct weights_header *header, uint64_t watermark);
