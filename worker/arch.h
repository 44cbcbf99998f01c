/* The table of architectures: what each one is, as data. One row for each value of general.architecture that
 * this build runs; a new one is a row here and, rarely, a new op. forward.c never asks for a name, only for
 * these fields. Any thread; constant.
 * Source: the architecture pages the project keeps, sections 6 to 10. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "worker/backend.h"

/* The residual stream of one block (a = attention or another mixer, f = feed-forward):
 *   SEQ   x += r a(norm x);  x += r f(norm x)          SAND  x += norm(a(norm x));  x += norm(f(norm x))
 *   POST  x += norm(a x);  x += norm(f x)              PAR   h = norm x;  x += a h + f h
 *   ENC   x = norm(x + a x);  x = norm(x + f x) */
enum arch_block { ARCH_SEQ, ARCH_SAND, ARCH_POST, ARCH_PAR, ARCH_ENC };

/* Which layers see only a window. */
enum arch_window {
    ARCH_WINDOW_NONE,
    ARCH_WINDOW_ALL,    /* when the key is there */
    ARCH_WINDOW_EVEN,   /* layers 0, 2, 4, ... */
    ARCH_WINDOW_PERIOD, /* (i + 1) mod window_period != 0; the file's key may replace the period */
    ARCH_WINDOW_ARRAY,  /* attention.sliding_window_pattern, required */
    ARCH_WINDOW_PERIOD_KEY, /* as PERIOD, when attention.sliding_window is there at all */
};

enum arch_rope { ARCH_ROPE_NORM, ARCH_ROPE_NEOX, ARCH_ROPE_LEARNED /* a position table */ };

/* Routing of experts. */
enum arch_moe {
    ARCH_MOE_NORMALISED,     /* softmax, the chosen divided by their sum */
    ARCH_MOE_PLAIN,          /* softmax, as they are */
    ARCH_MOE_SIGMOID,        /* sigmoid unless the key says softmax; normalised by key */
    ARCH_MOE_BY_KEY,         /* softmax unless the key says sigmoid; normalised by key */
    ARCH_MOE_SOFTMAX_CHOSEN, /* softmax over the chosen logits */
};

#define ARCH_QKV_BIAS_REQUIRED 0x1
#define ARCH_MLA               0x2 /* deepseek2 */
#define ARCH_HYBRID            0x4 /* gated delta net layers and gated attention */
#define ARCH_GEMMA4            0x8
#define ARCH_EMBED_SQRT_DIM    0x10 /* x = embedding * sqrt(dim) */
#define ARCH_SCALES            0x20 /* granite's four */
#define ARCH_LOGIT_SCALE       0x40 /* logits * logit_scale */
#define ARCH_QK_NORM_WHOLE     0x80 /* rms over the whole projected vector */
#define ARCH_POST_ATTN_IS_FFN                                                                      \
    0x100 /* the norm before the feed-forward is called post_attention_norm */
#define ARCH_FFN_FUSED         0x200 /* ffn_up holds gate and up when there is no ffn_gate */
#define ARCH_SINKS             0x400
#define ARCH_TEMPERATURE       0x800   /* mistral3 */
#define ARCH_NO_ROPE_FULL      0x1000  /* full layers do not turn (cohere2) */
#define ARCH_NO_ROPE_4TH       0x2000  /* every fourth layer does not turn (smollm3) */
#define ARCH_INTERLEAVED_HEADS 0x4000  /* delta net: key head = h mod Hk */
#define ARCH_LOCAL_ROPE        0x8000  /* window layers: rope.freq_base_swa, unscaled */
#define ARCH_QK_NORM_PER_HEAD  0x10000 /* weights [d, H]: each head has its own */
#define ARCH_ROPE_FULL_SCALED  0x20000 /* scaling only on full layers (olmo 3) */
#define ARCH_IMROPE            0x40000 /* rope.dimension_sections: interleaved axes, the last one still */

struct arch {
    const char *name; /* general.architecture */
    enum arch_block block;
    enum op_norm_kind norm;
    enum arch_rope rope;
    enum op_act_kind act;
    enum arch_window window;
    uint32_t window_period,
        window_default; /* default of attention.sliding_window; 0: the key decides */
    enum arch_moe moe;
    float attn_softcap, logit_softcap; /* defaults of the two keys; 0: the architecture has none */
    uint32_t big_layers; /* block_count with score scale 1/sqrt(dim / n_heads); 0: none */
    uint32_t flags;
};

/* The row of a name, or NULL. */
const struct arch *arch_find(const char *name, uint64_t len);

/* Row i, or NULL past the end: for lists of what this build runs. */
const struct arch *arch_at(uint32_t i);
