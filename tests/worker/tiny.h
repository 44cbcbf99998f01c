/* A model of a few kilobytes, built in code: weights from a fixed random sequence, any of the architectures whose layers
 * look like llama's. Tests bend it by leaving tensors out or by giving them wrong shapes. */
#pragma once

#include <stdbool.h>

#include "proto/weights.h"

struct tiny {
    const char *arch; /* NULL: llama */
    uint32_t n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab_size, n_experts, window;
    enum dtype dtype;     /* of matrices: F32, F16, Q8_0 */
    bool biases;          /* on attn_q, attn_k, attn_v */
    bool adapted;         /* with low ranks on attn_q and ffn_down */
    bool untied;          /* with an output matrix of its own */
    bool single_experts;  /* each expert in tensors of its own, unevenly spaced; the same weights */
    const char *omit;     /* tensor that is left out */
    const char *bend;     /* tensor whose rows are one too few */
    const char *omit_key; /* without the architecture's prefix */
};

extern const struct tiny tiny_default; /* 3 layers, dim 64, 4 heads over 2, F32 */

/* Builds and maps it; the memfd is closed again. Fails the test on errors. */
void tiny_map(const struct tiny *t, struct weights *w);
