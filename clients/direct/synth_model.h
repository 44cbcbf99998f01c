/* Models with random weights of true shapes: for benchmarks and tests where no real file is at hand. Written to a
 * file (hearth synth) or laid into memory as a load would (hearth bench synth:ARCH:PRESET:TYPE).
 * The weights are tame: each matrix has zero mean and a spread of 1 / sqrt(row length), so activations keep their
 * size; norms are near 1. The same arguments give the same bytes. The vocabulary is byte-level and valid, with a chat
 * template; tensor types follow the recipes of published files (formats/gguf.md section 5). One thread. */
#pragma once

#include <stdint.h>

#include "proto/dtype.h"
#include "proto/err.h"
#include "proto/weights.h"

struct synth_tensor {
    char name[64];
    enum dtype dtype;
    uint32_t n_dims;
    uint64_t ne[WEIGHTS_DIMS_MAX];
    uint64_t data_off; /* within the data section */
    uint64_t size_bytes;
};

struct synth {
    struct synth_tensor *tensors; /* owned, in the file's order */
    size_t n_tensors;
    char *head; /* owned: header, keys, tensor infos, padded: what stands before the data */
    size_t head_bytes;
    uint64_t data_bytes;
};

/* The plan of a model. arch: llama, qwen2, qwen3, qwen3moe, gemma2, gemma3; preset: tiny, 1b, 8b, 27b, 30b-a3b, 32b,
 * 70b; type: a file type's name. NULL: ERR_USAGE with what there is, ERR_NO_MEMORY. */
struct synth *synth_create(const char *arch, const char *preset, const char *type, struct err *err);
void synth_destroy(struct synth **s);

/* Pools of random blocks, one per type and row length. */
struct synth_filler;
struct synth_filler *synth_filler_create(struct err *err);
void synth_filler_destroy(struct synth_filler **f);

/* The next n_rows rows of tensor t into `to`, in the file's layout; tensors in their order, rows from the first to
 * the last. ERR_NO_MEMORY. */
int synth_fill(struct synth_filler *f, const struct synth_tensor *t, uint64_t n_rows, uint8_t *to,
               struct err *err);

/* The model in an anonymous segment, mapped: as loader_load_direct, without a file. */
int synth_load(const char *arch, const char *preset, const char *type, enum weights_layout layout,
               struct weights *out, struct err *err);

/* The same without its data, as loader_open_manifest: any size on any machine. */
int synth_open_manifest(const char *arch, const char *preset, const char *type, struct weights *out,
                        struct err *err);

/* The names, for help and errors. */
extern const char synth_archs[], synth_presets[], synth_types[];
