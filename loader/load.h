/* The story of a load: a path becomes open files, their heads become a manifest, their data fills a segment.
 *
 *   load_open      every file of the model, before a byte is parsed (the last step that needs rights)
 *   load_parse     heads checked, parts agree, the plan of the segment made
 *   load_publish   the segment sized, its manifest written, sealed: readers may map it
 *   load_fill      the data, behind the watermark, in the order of order.h
 *
 * A model cut into parts is opened by the name of any of them: the names of all follow from it.
 * Where memory is short, load_window between parse and publish: then the data is never there as a whole (window.h).
 * One thread. clients/direct uses the two functions at the end instead. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "loader/source.h"
#include "proto/err.h"
#include "proto/uploaded.h"
#include "proto/weights.h"

struct load; /* opaque */

/* What a model is, for the request that pins it: the same numbers mean the same file. */
struct load_identity {
    uint64_t device, inode, size_bytes; /* of the first part; size of all together */
    int64_t mtime_ns;
    uint64_t digest; /* of the heads: header, keys and tensor infos; 0 before load_parse */
};

/* Opens all parts. direct: with O_DIRECT too, for io_uring. NULL: ERR_NOT_FOUND, ERR_IO, ERR_BAD_FILE. */
struct load *load_open(const char *path, bool direct, struct err *err);
void load_close(struct load **l);

/* One more file, an adapter whose share is multiplied by scale; between load_open and load_parse. */
int load_open_adapter(struct load *l, const char *path, float scale, bool direct, struct err *err);

/* The open files, for source_open; borrowed. */
const struct source_file *load_files(const struct load *l, uint32_t *n_files);

/* Parses and checks the heads and plans the segment. ERR_BAD_FILE, ERR_NO_MEMORY, ERR_IO. */
int load_parse(struct load *l, enum weights_layout layout, struct err *err);

/* Beyond a sound container: is this a model whose blocks we know? Refuses adapters, projectors, importance
 * matrices and block formats of another version. ERR_UNSUPPORTED, ERR_BAD_FILE. Between load_parse and load_publish,
 * which gives the values' memory back. */
int load_check_model(const struct load *l, struct err *err);

/* general.architecture, cut to fit and with '?' for what is no plain character; "" when it is missing. As load_check_model. */
void load_architecture(const struct load *l, char *out, size_t size);

/* Bytes of all tensor data, gaps included. After load_parse. */
uint64_t load_data_bytes(const struct load *l);

/* Size of the whole segment. After load_publish. */
uint64_t load_segment_bytes(const struct load *l);

void load_identity(const struct load *l, struct load_identity *id);

/* One tensor of the files, for programs that look at a single one. */
struct load_tensor {
    enum dtype dtype;
    uint32_t n_dims;
    uint64_t ne[WEIGHTS_DIMS_MAX];
    uint64_t size_bytes;
    uint32_t file_idx;
    uint64_t file_off;
};

/* After load_parse. ERR_NOT_FOUND. */
int load_find_tensor(const struct load *l, const char *name, struct load_tensor *t,
                     struct err *err);

/* Bytes [off, off + size_bytes) of a tensor, which the caller keeps inside of it. ERR_IO, ERR_BAD_FILE. */
int load_read_tensor(const struct load *l, const struct load_tensor *t, uint64_t off, void *to,
                     uint64_t size_bytes, struct err *err);

/* The least window (window.h) by which it can be loaded. 0 with an error: ERR_NO_MEMORY. After load_parse. */
uint64_t load_window_least(struct load *l, struct err *err);

/* The data will never be there as a whole, but by a window of so many bytes, at least the least. uploaded: the worker's word,
 * borrowed. Only in the file's layout. Between load_window_least and load_publish. */
void load_window(struct load *l, uint64_t bytes, const struct uploaded *uploaded);

/* Of the segment's bytes those that stay there when all has been uploaded. After load_publish. */
uint64_t load_kept_bytes(const struct load *l);

/* Makes fd (an empty memfd, borrowed, kept open by the caller) the segment. */
int load_publish(struct load *l, int fd, struct err *err);

/* From now on no more than so many bytes a second, in small steps: a slow disk, for tests. 0: as fast as it goes. */
void load_limit(struct load *l, uint64_t bytes_per_s);

/* Fills it from an open source. ERR_BAD_FILE, ERR_IO, ERR_NO_MEMORY. */
int load_fill(struct load *l, struct source *s, struct err *err);

/* ---- in one process: clients/direct, tests ---- */

/* Reads a whole model into an anonymous segment by the pread pool and maps it. out is unmapped by the caller. */
int loader_load_direct(const char *path, enum weights_layout layout, struct weights *out,
                       struct err *err);

/* Only header, keys and tensor table; the data section has its size and no bytes (watermark 0). Files without
 * tensors and without a known architecture are fine. */
int loader_open_manifest(const char *path, struct weights *out, struct err *err);
