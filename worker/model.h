/* A model as the forward pass sees it: the architecture's row (arch.h) with this file's numbers, and every
 * weight bound by name, type and shape. model_bind reads the weights segment's metadata and tensor table;
 * tensor data is not touched but for a few small tables (rope factors). Worker, loop thread only.
 * Source: the architectures' pages behind arch.c; keys are named where they are read. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/weights.h"
#include "worker/arch.h"
#include "worker/backend.h"

#define MODEL_LAYERS_MAX 1024
#define MODEL_ROPES_MAX  4

/* Blocks until the data section is complete up to data_end (weights_tensor.data_end), or fails. */
struct model_wait {
    int (*wait)(void *arg, uint64_t data_end, struct err *err); /* NULL: the data is complete */
    void *arg;
};

struct spill;

struct model_options {
    enum dtype k_type, v_type; /* DTYPE_F16 normally; DTYPE_F32 with an exact backend */
    uint32_t ctx_len;          /* positions a sequence may reach; 0: the file's context_length */
    struct model_wait wait;
    const struct spill *spill; /* what goes to the host's memory (spill.h); NULL: nothing */
};

/* y = x W^T + bias; w.data NULL when absent. */
struct model_linear {
    struct matrix w;
    const float *bias;
};

/* A LoRA adapter's share in one matrix: y += scale * B (A x). */
struct low_rank {
    struct low_rank *next;
    struct matrix a, b; /* [k, rank], [rank, m] */
    float scale;
};

struct model_norm {
    const float *w, *b; /* NULL: not there */
    bool present;
};

struct model_rope {
    uint32_t n_pairs;
    double *freq; /* owned [n_pairs] */
    double mag;
};

enum model_mixer { MODEL_ATTENTION, MODEL_MLA, MODEL_DELTA_NET, MODEL_LINEAR_ONLY, MODEL_NO_MIXER };

struct model_layer {
    enum model_mixer mixer;
    uint32_t n_heads, n_kv_heads, k_dim, v_dim;
    uint32_t kv_layer; /* row of kv_layout that holds this layer's keys and values */
    bool writes_kv;    /* false: reads an earlier layer's */
    bool v_from_k;     /* gemma4 without attn_v */
    uint32_t window;   /* 0: none */
    int rope;          /* index of model.ropes, -1: none */
    float scale, softcap;
    struct model_norm attn_norm, q_norm, k_norm, post_attn_norm, ffn_norm, post_ffn_norm;
    struct model_linear q, k, v, qkv, o;
    const float *sinks;
    /* MLA */
    struct model_linear q_a, q_b, kv_a, kv_b;
    struct matrix k_b, v_b;
    struct model_norm q_a_norm, kv_a_norm;
    uint32_t nope_dim, latent_dim, mla_v_dim;
    /* gated delta net */
    struct model_linear gate, beta, alpha, ba, in, out;
    const float *conv, *dt_bias, *a_coef;
    struct model_norm ssm_norm;
    uint32_t conv_channels;
    uint64_t state_off; /* of this layer inside a sequence's state */
    /* feed-forward */
    bool has_ffn, fused;
    uint32_t ffn_dim;
    struct model_linear ffn_gate, ffn_up, ffn_down;
    /* experts */
    bool has_moe, merged;
    uint32_t expert_dim, shared_dim;
    struct model_linear router;
    struct matrix exp_gate, exp_up, exp_down;
    const uint8_t *
        *exp_places; /* owned: matrix.places of all three, when each expert has its tensors */
    const float *exp_gate_bias, *exp_up_bias, *exp_down_bias, *exp_down_scale, *choice_bias;
    const float *router_scale; /* gemma4 */
    struct model_linear shared_gate, shared_up, shared_down, shared_router;
    struct model_norm post_ffn_norm_1, pre_ffn_norm_2, post_ffn_norm_2;
    /* gemma4 */
    struct model_linear inp_gate, proj;
    struct model_norm post_norm;
    const float *out_scale; /* host pointer, one value */
    uint64_t data_end;      /* bytes of the data section this layer needs */
};

struct model {
    const struct weights *weights; /* borrowed */
    struct backend *backend;       /* borrowed */
    const struct arch *arch;
    uint32_t n_layers, dim, vocab_size, ctx_len, train_ctx_len;
    float norm_eps;
    float embed_scale, residual_scale, logit_scale, logit_softcap;
    bool causal; /* false: an encoder */
    struct model_wait wait;
    bool bound;  /* one of backend.n_models */
    int pooling; /* pooling_type: 0 none, 1 mean, 2 cls, 3 last, 4 rank */
    /* experts */
    uint32_t n_experts, n_experts_used, n_expert_groups, n_expert_groups_used;
    enum op_gating gating;
    bool expert_normalise;
    float expert_scale;
    /* position temperature (mistral3) */
    double temperature, temperature_ctx;
    /* gated delta net */
    uint32_t ssm_state_dim, ssm_k_heads, ssm_v_heads, ssm_conv;
    /* per-layer input (gemma4) */
    uint32_t per_layer_dim;
    struct matrix per_layer_embd;
    struct model_linear per_layer_proj;
    struct model_norm per_layer_norm;

    struct matrix token_embd, output, position_embd, token_types;
    const float *output_bias;
    struct model_norm output_norm, embd_norm;
    uint32_t n_ropes;
    struct model_rope ropes[MODEL_ROPES_MAX];
    struct model_layer *layers; /* owned [n_layers] */
    struct low_rank *low_ranks; /* owned */
    struct kv_layout kv;        /* what kvcache_* take */
    uint64_t embed_data_end, output_data_end;
};

/* Binds the weights to the backend's ops. w and backend are borrowed for the model's life.
 * Errors: ERR_UNSUPPORTED for an architecture, tensor type or feature this build does not do, ERR_BAD_FILE for a
 * missing key or tensor or a wrong shape (named with type and shape), ERR_NO_MEMORY. */
struct model *model_bind(const struct weights *w, struct backend *backend,
                         const struct model_options *options, struct err *err);

/* Accepts NULL inside. */
void model_destroy(struct model **m);
