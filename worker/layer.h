/* The inside of the forward pass: its work space, and one layer's mixer and feed-forward as layer.c computes them for
 * forward.c. Not for others. Loop thread only. */
#pragma once

#include "worker/forward.h"

struct forward {
    const struct model *m; /* borrowed, as the backend */
    struct backend *backend;
    uint64_t number; /* of this one among all that this process made */
    uint32_t max_tokens, max_outputs;
    _Atomic uint32_t *progress; /* borrowed or NULL */
    bool all_ready;             /* every tensor has been waited for */
    bool paused;                /* a step stopped before next_layer, whose weights are not there */
    uint32_t next_layer;
    bool owed; /* t, times owed_scale, to x: layer_owe */
    float owed_scale;

    /* Activations in the backend's memory, each max_tokens rows unless said. */
    float *x;           /* dim: the residual stream */
    float *h;           /* dim: normed input of a branch */
    float *t, *t2;      /* dim: output of a branch, of a second one */
    float *t3;          /* dim: gemma4's experts beside its dense branch */
    float *qkv;         /* widest q + k + v, side by side */
    float *q2;          /* queries in another shape (gated, latent) */
    float *att;         /* widest output of all heads */
    float *low, *low_y; /* an adapter's: widest rank, widest output */
    float *wide;        /* widest intermediate of latent attention and delta nets */
    float *g, *u;       /* widest feed-forward; g twice, for fused gate and up */
    float *router;      /* experts */
    float *weights;
    int32_t *experts;
    float *eg, *eu, *ed; /* (tokens * experts used, ..) */
    float *per_layer, *per_layer_table;
    float *cs[MODEL_ROPES_MAX];
    float *out, *logits; /* max_outputs rows: dim, vocab_size */
    int32_t *fed; /* OP_PICK_ROWS_MAX: the last token of each slot; NULL: nothing is sampled here */
    int32_t *head_idx; /* max_tokens * heads: h of each (token, head) row */

    /* Host arrays. */
    struct kv_row *rows;
    uint32_t *head_token; /* token of each (token, head) row */
    uint32_t *out_rows;
    int32_t *zeros, *ids;
    float *temperature;
    float *out_scales; /* [n_layers]: gemma4's, NaN until it was read */
    const float **state_from;
    float **state;
};

/* One step in flight. */
struct pass {
    struct forward *f;
    const struct model *m;
    struct backend *b;
    const struct backend_ops *ops;
    struct kvcache *kv;
    const struct forward_batch *batch;
    uint32_t n; /* rows */
    struct err *err;
};

/* y = mixer(x): attention, latent attention, delta net, or one product. x, y: (n, dim), no alias. */
int layer_mix(struct pass *p, uint32_t i, const float *x, float *y);

/* y = feed-forward(x), dense or experts with shared ones. y: (n, dim), no alias. */
int layer_ffn(struct pass *p, const struct model_layer *l, const float *x, float *y);
int layer_moe(struct pass *p, const struct model_layer *l, const float *x, const float *router_x,
              float *y);

/* Small ops with the pass's row count: y = norm(x), y = a + scale b (a NULL b: copy), y = W x. */
int layer_norm_to(struct pass *p, const struct model_norm *norm, const float *x, float *y);
int layer_add(struct pass *p, float *x, const float *branch, float scale);
/* f->x += scale f->t, with the norm that reads f->x next, or by layer_settle before any other reader. Until then
 * neither may be written. */
void layer_owe(struct pass *p, float scale);
int layer_settle(struct pass *p);
int layer_matmul(struct pass *p, const struct op_matmul *op); /* with what an adapter adds */
int layer_linear_to(struct pass *p, const struct model_linear *w, const float *x, float *y);
