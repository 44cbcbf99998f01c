/* The contract between the forward pass and a device: a dozen coarse ops, each with its formula, shapes,
 * aliasing rules and tolerance. A backend is one table of them (cpu/cpu.c; cuda/cuda.cu). forward.c is the
 * only caller; loop thread only: an op may use the backend's own compute threads and returns when its
 * output is complete in the backend's order (a CPU op: when it is written).
 *
 * All activations are f32, row-major; a row is one token (or one (token, head), (token, slot) pair where
 * the op says so). `*_stride` counts floats from one row to the next. Pointers are in the backend's memory
 * (backend_alloc), except where "host" is said. Output and inputs never overlap unless the op says it.
 *
 * Determinism (DESIGN.md section 8). The bits of an output row depend on that row's inputs alone: not on
 * n_rows, on its index, on threads, on what other rows hold. So no reduction is ever split by load; it runs
 * in index order, with an fma where fmaf is written, or in a fixed tree that every instruction set shares.
 * exp, tanh, sin, cos come from vmath.h, the same bits on every instruction set.
 *
 * Tolerances: relative to the largest magnitude of the exact (double) output row, `exact` backend 1e-5;
 * otherwise 1e-5 for everything but a matmul of quantised weights (int8 activations: 2e-2) and attention
 * over quantised K/V (2e-2; f16, bf16: 2e-3 against the unrounded K and V, 1e-5 against the stored). */
#pragma once

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/dtype.h"
#include "proto/err.h"
#include "proto/weights.h"

/* ---- weights as ops see them ---- */

/* A matrix, or n_experts matrices of one shape: row i of expert e is k consecutive weights.
 * WEIGHTS_LAYOUT_FILE: row i of expert e is at data + e * expert_bytes + i * row_bytes.
 * WEIGHTS_LAYOUT_ROWS16: the same bytes re-laid in groups of 16 rows inside each expert (proto/rows16.h); rows past the
 * last whole group stand as in the file. */
struct matrix {
    const char *name; /* tensor's name, for errors; borrowed from the mapping */
    enum dtype dtype;
    enum weights_layout layout;
    uint32_t k;         /* row length: inputs; whole blocks of dtype */
    uint32_t m;         /* rows: outputs */
    uint32_t n_experts; /* 1 for a plain matrix */
    uint64_t row_bytes, expert_bytes;
    const uint8_t *data; /* NULL: the tensor is absent */
    const uint8_t *const
        *places; /* [n_experts] where each expert begins; NULL: expert_bytes apart */
    const struct low_rank *low_rank; /* what an adapter adds to its products (layer.h); or NULL */
    /* The backend's: it comes to data when a product needs it; NULL: it stands there. */
    void *streamed;
};

/* Where a tensor stands that a device has no room for: in the host's memory, re-laid as on the device (spill.h). */
struct backend_spilled {
    const uint8_t *base; /* of its segment: what one model streams shares slots */
    uint64_t slot_bytes; /* of each slot; 0: rows are read where they stand, by embed alone */
    uint32_t turn;       /* among the streamed ones, in the order in which a step needs them */
};

#define BACKEND_SLOTS 2 /* while one is read the other is filled */

/* Where the rows of an expert begin. */
static inline const uint8_t *matrix_expert(const struct matrix *w, uint32_t e)
{
    return w->places ? w->places[e] : w->data + e * w->expert_bytes;
}

/* ---- keys and values ---- */

/* Types that K and V may be stored in: DTYPE_F32 (the exact setting), F16, BF16, Q8_0, Q4_0.
 *
 * A page holds KV_PAGE_TOKENS positions of one sequence, absolute position p in page p / KV_PAGE_TOKENS, all layers.
 * Inside, for every layer one K area and one V area; inside an area head after head; inside a head tile after tile of
 * KV_TILE positions. A tile of K takes KV_TILE * k_row_bytes:
 *   f32, f16, bf16   K: [k_dim][KV_TILE], component-major: a SIMD lane is a key
 *                    V: [KV_TILE][v_dim], position-major: a SIMD lane is a component
 *   q8_0, q4_0       arranged by cpu/attention.c (said there), same size; dims are padded with zeros to 32
 * The arrangement is part of the fingerprint. Positions never written hold zeros or garbage: an op must not let them
 * reach a result (mask by position, and multiply no NaN in: V beyond the row's range is not read). */
#define KV_PAGE_TOKENS 64
#define KV_TILE        16
#define KV_PAGE_NONE   UINT32_MAX

struct kv_layer {
    uint32_t n_kv_heads;
    uint32_t k_dim, v_dim;             /* values of one head; 0: this layer keeps nothing */
    uint32_t k_row_bytes, v_row_bytes; /* one position of one head */
    uint64_t k_off, v_off;             /* of the areas inside a page, 64-byte aligned */
};

struct kv_layout {
    enum dtype k_type, v_type;
    uint32_t n_layers;
    uint64_t page_bytes; /* multiple of 4 KiB */
    uint64_t
        state_bytes; /* recurrent state of one sequence; 0 for pure attention. Multiple of 64 */
    uint64_t fingerprint;   /* of all this and of KV_FORMAT */
    struct kv_layer *layer; /* [n_layers]; owned by the model */
};

/* Address of the tile that holds position-in-page `at` of one head's K (or V). */
static inline uint8_t *kv_k_tile(const struct kv_layer *l, uint8_t *page, uint32_t head,
                                 uint32_t at)
{
    return page + l->k_off +
           ((uint64_t)head * (KV_PAGE_TOKENS / KV_TILE) + at / KV_TILE) * KV_TILE * l->k_row_bytes;
}

static inline uint8_t *kv_v_tile(const struct kv_layer *l, uint8_t *page, uint32_t head,
                                 uint32_t at)
{
    return page + l->v_off +
           ((uint64_t)head * (KV_PAGE_TOKENS / KV_TILE) + at / KV_TILE) * KV_TILE * l->v_row_bytes;
}

/* Where one row's sequence stands. pages: host array, page number of page index i (or KV_PAGE_NONE);
 * the sequence holds positions first_pos..; this row is position pos. */
struct kv_row {
    const uint32_t *pages;
    int64_t first_pos;
    int64_t pos;
    int64_t
        end_pos; /* one past the last position that may be read: pos + 1 when causal, the sequence's end when not */
};

/* ---- the ops ---- */

enum op_norm_kind { OP_NORM_RMS, OP_NORM_LAYER };

/* y_i = scale * W[ids_i], any dtype. y (n_rows, W.k), no alias. ids host, checked by the caller. An id below 0 is the token
 * that op_sample left in fed[-1 - id]; only where there is such an op. */
struct op_embed {
    const struct matrix *w;
    const int32_t *ids;
    const int32_t *fed;
    uint32_t n_rows;
    float scale;
    float *y;
};

/* RMS: y_j = x_j / sqrt(mean x^2 + eps) * w_j.   LAYER: y_j = (x_j - mean) / sqrt(var + eps) * w_j + b_j.
 * Sums in double, index order. Rows: n_rows tokens, each of n_groups vectors of `width` side by side (heads; 1
 * otherwise). w, b: NULL or [width], or [n_groups][width] when w_per_group. y may be x.
 * sum given: x + plus_scale * plus comes first, as op_add does it, goes there (x_stride; may be x) and is what is normed
 * (n_groups 1). */
struct op_norm {
    enum op_norm_kind kind;
    uint32_t n_rows, n_groups, width;
    const float *x;
    uint32_t x_stride;
    const float *w, *b;
    bool w_per_group;
    float *sum; /* or NULL */
    const float *plus;
    uint32_t plus_stride;
    float plus_scale;
    float eps;
    float *y;
    uint32_t y_stride;
};

/* One product of a group that shares x: y(n_rows, m) = x(n_rows, k) W(m, k)^T + bias(m). */
struct op_product {
    const struct matrix *w;
    const float *bias; /* [m] or NULL */
    float *y;
    uint32_t y_stride;
};

/* Up to OP_PRODUCTS_MAX products over one x, so that activations are quantised once and threads meet once.
 * exact: weights dequantised to f32, products summed in double or in f32 index order.
 * Otherwise: quantised weights meet x quantised to int8 per block (32, or 256 for K and IQ types), int32 sums
 * inside a block, block sums added in index order by fmaf; float weights meet f32 x, fmaf in index order
 * of a fixed number of interleaved partial sums that depends on k alone.
 * act given: it follows, over the products' y as its g and u; products 0 and 1 are up and gate where there are both. What is
 * not its result need not be written then. */
#define OP_PRODUCTS_MAX 4
struct op_act;
struct op_matmul {
    const float *x;
    uint32_t x_stride, n_rows, k;
    uint32_t n_products;
    struct op_product products[OP_PRODUCTS_MAX];
    const struct op_act *act; /* or NULL */
};

/* Rows with a matrix of their own: y_r = x[r / x_share] W[expert_r]^T (+ bias[expert_r]), then times
 * scale[expert_r] when scale is given. n_rows rows of y; x has ceil(n_rows / x_share) rows. experts: [n_rows], in the
 * backend's memory as moe_route writes them; values below W.n_experts. bias (n_experts, m) or NULL. */
struct op_matmul_experts {
    const struct matrix *w;
    const float *bias, *scale;
    const int32_t *experts;
    const float *x;
    uint32_t x_stride, x_share, n_rows;
    float *y;
    uint32_t y_stride;
};

/* cs(n_rows, n_rot / 2, 2) = cos, sin of pos_i * freq_j, times mag. Angle, cosine and sine in double. pos, freq host. */
struct op_rope_table {
    const int64_t *pos;
    const double *freq;
    uint32_t n_rows, n_pairs;
    double mag;
    float *cs;
};

/* Rotates the first 2 * n_pairs of each head in place: neox pairs (j, j + n_pairs), else (2j, 2j + 1).
 * x (n_rows, n_heads, head_dim), x_stride between tokens. row_scale: NULL or [n_rows] (host), multiplies the whole
 * row afterwards. */
struct op_rope {
    float *x;
    uint32_t x_stride, n_rows, n_heads, head_dim, n_pairs;
    bool neox;
    const float *cs;
    const float *row_scale;
};

/* Writes k (n_rows, n_kv_heads, k_dim) and v (.., v_dim) of the rows into their pages, rounded to the KV types.
 * Rows of one sequence come in order of position. page_base: page i starts at page_base + i * layout->page_bytes.
 * What is given of the norms and turns comes first, in place: q's are any queries of the same rows; k's and v's are of op.k and
 * op.v, or of a part of each head, and those need not be left so. v may be the first part of k (latent attention). */
struct op_kv_store {
    const struct kv_layout *layout;
    uint32_t layer;
    uint8_t *page_base;
    const struct kv_row *rows; /* host [n_rows] */
    uint32_t n_rows;
    const float *k, *v;
    uint32_t k_stride, v_stride;
    const struct op_norm *q_norm, *k_norm, *v_norm; /* each or NULL */
    const struct op_rope *q_rope, *k_rope;
};

/* o_t,h = sum_u a_u v_u over first_pos <= u < end_pos_t (and, when window > 0, pos_t - u < window);
 * s_u = scale q_t,h . k_u,h'; softcap > 0: s = softcap tanh(s / softcap);
 * a = exp(s - max) / (sum exp(s - max) [+ exp(sink_h - max)]), h' = h / (n_heads / n_kv_heads).
 * Keys are taken in tiles of KV_TILE at absolute positions, in order; a lane is a key (scores) or a component (values);
 * partial results over spans of KV_SPAN absolute positions may run on different threads and are merged in span order.
 * q (n_rows, n_heads, k_dim), o (n_rows, n_heads, v_dim). */
#define KV_SPAN 512
struct op_attention {
    const struct kv_layout *layout;
    uint32_t layer;
    const uint8_t *page_base;
    const struct kv_row *rows; /* host [n_rows] */
    uint32_t n_rows, n_heads;
    const float *q;
    uint32_t q_stride;
    float *o;
    uint32_t o_stride;
    float scale, softcap;
    uint32_t window;    /* 0: none */
    const float *sinks; /* [n_heads] or NULL */
};

/* The activation between the products of a feed-forward, elementwise over (n_rows, width):
 *   OP_ACT_SILU, GELU (tanh form), RELU2:  y = act(g) * u, or act(g) when u is NULL
 *   OP_ACT_SWIGLU_CLAMP:  g' = min(g, 7), u' = clamp(u, -7, 7): y = g' sigmoid(1.702 g') (u' + 1)
 *   OP_ACT_SIGMOID:  y = sigmoid(g) * u
 * g_width 1 with OP_ACT_SIGMOID: one g for the row. y may be g or u with the same stride. */
enum op_act_kind {
    OP_ACT_SILU,
    OP_ACT_GELU,
    OP_ACT_RELU2,
    OP_ACT_SWIGLU_CLAMP,
    OP_ACT_SIGMOID,
};
struct op_act {
    enum op_act_kind kind;
    uint32_t n_rows, width;
    const float *g, *u;
    uint32_t g_stride, u_stride, g_width; /* g_width: width or 1 */
    float *y;
    uint32_t y_stride;
};

/* Router: logits (n_rows, n_experts) -> experts and weights (n_rows, n_used), best first, ties to the lower
 * index. Score p = softmax(l), sigmoid(l) or l itself; choice by p + choice_bias; grouped choice when n_groups > 1
 * (architectures.md 5.5). weights = p of the chosen; softmax_chosen: softmax over them; normalise: divided by their
 * sum; times scale. */
enum op_gating { OP_GATING_SOFTMAX, OP_GATING_SIGMOID, OP_GATING_LOGITS };
struct op_moe_route {
    const float *logits;
    uint32_t logits_stride, n_rows, n_experts, n_used, n_groups, n_groups_used;
    enum op_gating gating;
    bool normalise, softmax_chosen;
    float scale;
    const float *choice_bias; /* [n_experts] or NULL */
    int32_t *experts;         /* [n_rows * n_used] */
    float *weights;
};

/* y_i = sum_s weights_i,s x_(i,s), slot order, fmaf. x (n_rows * n_used, width). */
struct op_moe_sum {
    const float *x;
    uint32_t x_stride, n_rows, n_used, width;
    const float *weights;
    float *y;
    uint32_t y_stride;
};

/* y = y_scale * (a + b_scale * b), elementwise; b NULL: y = y_scale * a. y may be a or b. b_rows 1: the same b for all rows.
 * softcap > 0 afterwards: y = softcap tanh(y / softcap). */
struct op_add {
    uint32_t n_rows, width;
    const float *a, *b;
    uint32_t a_stride, b_stride, b_rows; /* b_rows: n_rows or 1 */
    float b_scale, y_scale, softcap;
    float *y;
    uint32_t y_stride;
};

/* y_i = x[index_i], rows of width; index host. No alias. */
struct op_gather {
    const float *x;
    uint32_t x_stride, n_rows, width;
    const uint32_t *index;
    float *y;
    uint32_t y_stride;
};

/* One gated delta net over rows of one or many sequences (architectures.md 9.1): convolution, silu, norms,
 * recurrence, output norm and gate. u (n_rows, 2 Hk ds + Hv ds), z (n_rows, Hv ds), b and a (n_rows, Hv).
 * Rows of a sequence stand together, in order. Recurrent state of row i's sequence (host arrays of pointers into the
 * backend's memory): the first row of a sequence (from[i] not NULL) reads from[i], all leave their result in
 * state[i]: S (Hv, ds, ds) f32, then the last conv_taps - 1 rows of u, oldest first. */
struct op_delta_net {
    uint32_t n_rows, n_k_heads, n_v_heads, state_dim, conv_taps;
    bool interleaved; /* value head h reads key head h mod Hk, else h / (Hv / Hk) */
    const float *u, *z, *b, *a;
    uint32_t u_stride, z_stride, b_stride, a_stride;
    const float *conv;             /* (channels, conv_taps), last tap is the current token */
    const float *dt_bias, *a_coef; /* [Hv] */
    const float *norm;             /* [ds] */
    float eps;
    const float *const *from;
    float *const *state;
    float *y; /* (n_rows, Hv ds) */
    uint32_t y_stride;
};

/* ---- tokens ---- */

/* How the token of one row is chosen: worker/sampler.h, less what only the host does. Only integers are summed (mass.h), so the
 * token is the host's, whatever the order of sums. `scale` is the temperature where a filter stands. */
enum op_pick_kind {
    OP_PICK_TOP_K, /* value: k > 0 */
    OP_PICK_TOP_P, /* value: p < 1 */
    OP_PICK_MIN_P, /* value: at most so much is added to the best logit (in double): scale * ln p, 0 or less */
};

struct op_pick_filter {
    enum op_pick_kind kind;
    float scale;
    double value;
};

/* logit += add (-infinity: it cannot come); then, when count > 0, the penalties for that many times in the window. */
struct op_pick_change {
    int32_t token;
    float add;
    uint32_t count;
};

#define OP_PICK_FILTERS_MAX 4
#define OP_PICK_CHANGES_MAX 500 /* of one row, each token once */
#define OP_PICK_ROWS_MAX    64  /* of one op */

struct op_pick {
    uint32_t row;   /* of logits */
    uint32_t slot;  /* of fed: where its token goes, no two alike */
    uint32_t n_ids; /* may be chosen; below MASS_TOKENS_MAX */
    bool greedy;    /* the best, after the changes */
    bool follows;   /* what the slot holds before stands in the window once more */
    bool weigh;     /* max and mass are wanted */
    float scale;    /* of the draw */
    uint64_t draw;  /* mass_draw of a number in [0, 1) */
    float repeat, presence, frequency;
    uint32_t n_filters;
    struct op_pick_filter filters[OP_PICK_FILTERS_MAX]; /* one after another */
    uint32_t first_change, n_changes;
};

struct op_picked {
    int32_t token; /* -1: no logit is a finite number */
    float logit;   /* of the model, as max and mass: before any change; mass at scale 1 */
    float max;
    uint64_t mass;
};

/* picked_i = the token of logits[picks_i.row], also in fed[slot] for the next step. logits (rows, stride) are lost. picks, changes
 * host; picked host: written when the step has been waited for (finish, or leave of the next one), and the caller's till then. */
struct op_sample {
    float *logits;
    uint32_t stride, n_rows, n_changes;
    const struct op_pick *picks;
    const struct op_pick_change *changes;
    int32_t *fed;
    struct op_picked *picked;
};

/* ---- a backend ---- */

/* The largest shapes that ops will be asked for, so that no op allocates. */
struct backend_limits {
    uint32_t max_rows;      /* tokens of one step */
    uint32_t max_rows_wide; /* rows of matmul_experts: tokens * experts used (or heads) */
    uint32_t max_k, max_m;
    uint32_t max_k_act; /* of x of products that end in an activation */
    uint32_t max_heads, max_k_dim, max_v_dim;
    uint32_t max_experts;
    uint32_t ctx_len;
};

/* Bytes on the device and the place that they are copied to: `height` pieces of `width`, `pitch` apart on both sides.
 * Device addresses, widths and pitches are multiples of 16. */
struct backend_run {
    void *host;
    const void *device;
    uint64_t width, pitch;
    uint32_t height;
};

/* The wider of two in every field: work space serves all models that are bound. */
static inline void backend_limits_widen(struct backend_limits *all, const struct backend_limits *l)
{
    uint32_t *to = &all->max_rows;
    const uint32_t *from = &l->max_rows;
    static_assert(sizeof *all % sizeof *to == 0, "fields of one type");
    for (size_t i = 0; i < sizeof *all / sizeof *to; i++) {
        to[i] = from[i] > to[i] ? from[i] : to[i];
    }
}

#define BACKEND_PINS_MAX 32 /* mappings that are pinned at a time; more are not */

struct backend;

struct backend_ops {
    int (*embed)(struct backend *, const struct op_embed *, struct err *);
    int (*norm)(struct backend *, const struct op_norm *, struct err *);
    int (*matmul)(struct backend *, const struct op_matmul *, struct err *);
    int (*matmul_experts)(struct backend *, const struct op_matmul_experts *, struct err *);
    int (*rope_table)(struct backend *, const struct op_rope_table *, struct err *);
    int (*rope)(struct backend *, const struct op_rope *, struct err *);
    int (*kv_store)(struct backend *, const struct op_kv_store *, struct err *);
    int (*attention)(struct backend *, const struct op_attention *, struct err *);
    int (*act)(struct backend *, const struct op_act *, struct err *);
    int (*moe_route)(struct backend *, const struct op_moe_route *, struct err *);
    int (*moe_sum)(struct backend *, const struct op_moe_sum *, struct err *);
    int (*add)(struct backend *, const struct op_add *, struct err *);
    int (*gather)(struct backend *, const struct op_gather *, struct err *);
    int (*delta_net)(struct backend *, const struct op_delta_net *, struct err *);

    /* Is there a kernel for this matrix, for these KV types? Else ERR_UNSUPPORTED naming them. Bind time only. */
    int (*check_matrix)(struct backend *, const struct matrix *, struct err *);
    int (*check_kv)(struct backend *, enum dtype k_type, enum dtype v_type, struct err *);
    /* Names a place where ops will find the tensor and fills m; a CPU points into the mapping. f32 vectors too. The data may
     * not be there yet. */
    int (*import)(struct backend *, const struct weights_tensor *, struct matrix *, struct err *);
    /* The same for n experts in tensors of their own, all of one type, layout and shape, as one matrix of n. places: the caller's
     * [n], for the matrix's life; only a backend that cannot move weights fills it. */
    int (*import_experts)(struct backend *, const struct weights_tensor *const *, uint32_t n,
                          const uint8_t **places, struct matrix *, struct err *);
    /* The same for a tensor that goes to the host's memory; NULL where there is one memory. A streamed one is for matmul alone,
     * no two of one op in slots of the same number (turn % BACKEND_SLOTS). */
    int (*import_spilled)(struct backend *, const struct weights_tensor *,
                          const struct backend_spilled *, struct matrix *, struct err *);
    int (*reserve)(struct backend *, const struct backend_limits *, struct err *);
    void *(*alloc)(struct backend *, size_t size_bytes, struct err *); /* zeroed, 64-byte aligned */
    void (*free)(struct backend *, void *);
    int (*upload)(struct backend *, void *device, const void *host, size_t size_bytes,
                  struct err *);
    /* Device memory to host; a CPU copies. */
    int (*download)(struct backend *, void *host, const void *device, size_t size_bytes,
                    struct err *);
    /* Each of the rest but close may be NULL, as on a CPU. */

    /* Weights. arrived: the segment mapped at base holds its first data_end bytes of data, so tensors imported from it may be
     * fetched: when it returns they have been, and the bytes there may go (a load by a window: weights.h). release: the model is gone, and what was imported from these size_bytes with it. */
    int (*arrived)(struct backend *, const uint8_t *base, size_t size_bytes, uint64_t data_end,
                   struct err *);
    void (*release)(struct backend *, const uint8_t *base, size_t size_bytes);
    /* A device that reads the host's memory by itself. pin: this mapping of a whole segment may be made ready for that; it is done in
     * the background, piece by piece, and what fails costs speed alone. unpin: it is to be unmapped, and what was imported from it is released: true when the device
     * has let go of it, false: not yet, ask again. pinned: bytes that are ready. */
    void (*pin)(struct backend *, const uint8_t *base, size_t size_bytes);
    bool (*unpin)(struct backend *, const uint8_t *base);
    uint64_t (*pinned)(struct backend *, const uint8_t *base);

    /* Keys, values and states in the device's memory (mirror.h), all in the order of ops. copy and clear: inside of it.
     * lend: host memory that mirror will write to, until unlend. mirror: runs to host memory, behind all that ops were asked for, not waited for; with `hold` later ops begin after
     * it. mirrored: 1 when all up to this ticket have arrived, 0 when not yet and not `wait`, -1. */
    int (*copy)(struct backend *, void *to, const void *from, size_t size_bytes, struct err *);
    int (*clear)(struct backend *, void *memory, size_t size_bytes, struct err *);
    int (*lend)(struct backend *, void *memory, size_t size_bytes, struct err *);
    void (*unlend)(struct backend *, void *memory);
    int (*mirror)(struct backend *, const struct backend_run *, uint32_t n_runs, bool hold,
                  uint64_t *ticket, struct err *);
    int (*mirrored)(struct backend *, uint64_t ticket, bool wait, struct err *);

    /* Bytes that used_bytes may reach now: the budget, or what the device still gives. */
    uint64_t (*room)(struct backend *);

    /* A step's ops lie between step and finish, so that a device may take them as one launch; `key` names steps of one
     * shape, 0 those that will hardly come again. finish: waits until all that ops were asked for is done. leave: ends the step
     * too, but waits only for the step that was left before it, so that the device always has one more to do. */
    int (*step)(struct backend *, uint64_t key, struct err *);
    int (*finish)(struct backend *, struct err *);
    int (*leave)(struct backend *, struct err *);
    int (*sample)(struct backend *, const struct op_sample *, struct err *); /* with leave */
    void (*close)(struct backend *);
};

/* The head of every backend; cpu/cpu.h and cuda/ extend it. */
struct backend {
    const struct backend_ops *ops;
    const char *name; /* "cpu", "cuda" */
    uint64_t
        fingerprint; /* of what of the device decides bits, beside its name; 0: its state is not for files */
    bool exact; /* f32 activations everywhere, see op_matmul; KV should be f32 then */
    uint64_t
        used_bytes; /* of its memory: alloc, import (a CPU's weights stand in the mapping), reserve */
    uint64_t spilled_bytes; /* of the host's memory: import_spilled */
    uint64_t budget_bytes;  /* of used_bytes; 0: what the device has. More is ERR_NO_MEMORY */
    uint32_t n_models;      /* that are bound, not only counted */
    uint64_t margin_bytes;  /* a plan leaves so much of the room free */
    bool dry;               /* plan.c: all that takes memory is only counted, nothing is moved */
};

/* What comes before a store, op by op: for backends that have no kernel for all of it. */
static inline int backend_before_store(struct backend *b, const struct op_kv_store *op,
                                       struct err *err)
{
    const struct op_norm *const norms[] = { op->q_norm, op->k_norm, op->v_norm };
    const struct op_rope *const ropes[] = { op->q_rope, op->k_rope };
    for (int i = 0; i < 3; i++) {
        if (norms[i] && b->ops->norm(b, norms[i], err) < 0) {
            return -1;
        }
    }
    for (int i = 0; i < 2; i++) {
        if (ropes[i] && b->ops->rope(b, ropes[i], err) < 0) {
            return -1;
        }
    }
    return 0;
}

struct backend_options {
    bool exact;
    uint32_t n_threads;    /* CPU compute threads; 0: all cores the process may use */
    uint64_t budget_bytes; /* of device memory; 0: all of it */
};

/* What an option --device means. "auto": the best backend of this build that `judge` takes (NULL: that the machine has), with
 * one line in the log for each better one and the reason that judge left in err; NULL: "cpu"; any other name: itself. */
const char *backend_choose(const char *name,
                           bool (*judge)(void *arg, const char *device, struct err *err),
                           void *arg);

/* Opens "cpu" (or a name that this build has: "cuda:0"). The owner is the loop thread.
 * Errors: ERR_USAGE for a name that is not in the table, ERR_FAILED where its device is missing, ERR_NO_MEMORY,
 * ERR_BAD_INPUT for HEARTH_ISA. */
struct backend *backend_open(const char *name, const struct backend_options *options,
                             struct err *err);

/* Closes and clears; accepts NULL inside. */
void backend_close(struct backend **b);
