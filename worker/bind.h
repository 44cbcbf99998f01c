/* Binding, inside model.c and its parts: a file's keys as numbers and its tensors as matrices, every one checked by name,
 * type and shape. model.c tells the story, bind_layer.c binds one layer, bind_rope.c the rotary tables. Loop thread;
 * errors go to b->err and name the key or tensor. Source: GGUF metadata and tensor names. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "worker/model.h"

#define BIND_NAME_BYTES 128
#define BIND_DIM_MAX                                                                               \
    (1u << 24)                /* any width of a model: far beyond what exists, far below overflow */
#define BIND_EXPERTS_MAX 1024 /* of one layer; the largest seen has 512 */
#define BIND_REQUIRED    UINT64_MAX /* as a fallback: the key must be there */

struct bind {
    const struct weights *w;
    struct backend *backend;
    const struct model_options *options;
    struct model *m;
    struct err *err;
    uint64_t data_end; /* of the tensors bound since it was last reset */
    bool adapted;      /* the segment holds an adapter too */
    double lora_scale, lora_alpha;
};

/* ---- keys; names without the architecture's prefix ---- */

const struct weights_kv *bind_find_key(struct bind *b, const char *name);
/* Element i of a key that may be a scalar (the same for every i) or an array. */
int bind_u32_at(struct bind *b, const char *name, uint64_t i, uint64_t fallback, uint32_t *out);
int bind_u32(struct bind *b, const char *name, uint64_t fallback, uint32_t *out);
int bind_f64(struct bind *b, const char *name, double fallback, double *out);
int bind_f32(struct bind *b, const char *name, double fallback, float *out);
bool bind_key_is(struct bind *b, const char *name, const char *text);

/* ---- tensors ---- */

enum want { WANT_OPTIONAL, WANT_REQUIRED };

/* A matrix [k, m, n_experts]; m or n_experts 0: whatever the file has. */
int bind_matrix(struct bind *b, const char *name, uint32_t k, uint32_t m, uint32_t n_experts,
                enum want want, struct matrix *out);
/* A matrix that is only looked up by rows. */
int bind_table(struct bind *b, const char *name, uint32_t k, uint32_t m, struct matrix *out);
/* n f32 values in any shape. */
int bind_vector(struct bind *b, const char *name, uint64_t n, enum want want, const float **out);
void bind_name(char out[BIND_NAME_BYTES], const char *format, ...)
    __attribute__((format(printf, 2, 3)));
bool bind_has(struct bind *b, uint32_t i, const char *part);
int bind_layer_matrix(struct bind *b, uint32_t i, const char *part, uint32_t k, uint32_t m,
                      uint32_t n_experts, enum want want, struct matrix *out);
/* Tensors "blk.I.PART.E.weight" [k, m], one for each of n experts, as one matrix; places: [n], for its life. */
int bind_layer_experts(struct bind *b, uint32_t i, const char *part, uint32_t k, uint32_t m,
                       uint32_t n_experts, const uint8_t **places, struct matrix *out);
int bind_layer_vector(struct bind *b, uint32_t i, const char *part, uint64_t n, enum want want,
                      const float **out);
/* What the adapter adds to a matrix that has been bound, if it does. */
int bind_low_rank(struct bind *b, struct matrix *w);
/* A matrix with its optional bias and low ranks. */
int bind_layer_linear(struct bind *b, uint32_t i, const char *part, uint32_t k, uint32_t m,
                      enum want want, struct model_linear *out);
int bind_norm(struct bind *b, const char *name, uint64_t n, enum want want, struct model_norm *out);
int bind_layer_norm(struct bind *b, uint32_t i, const char *part, uint64_t n, enum want want,
                    struct model_norm *out);

/* ---- parts ---- */

/* The tables of a model: [0] for full layers, [1] for window layers where these differ. */
int bind_ropes(struct bind *b, uint32_t k_dim, int ropes[2]);
int bind_layer(struct bind *b, uint32_t i, const int ropes[2]);
/* Before and after all matrices: is there an adapter; was all of it bound? */
int bind_adapter(struct bind *b);
int bind_adapter_end(struct bind *b);
