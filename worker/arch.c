#include "worker/arch.h"

#include <string.h>

#define SAND_GEMMA  .block = ARCH_SAND, .rope = ARCH_ROPE_NEOX, .act = OP_ACT_GELU
#define ENCODER     .block = ARCH_ENC, .norm = OP_NORM_LAYER
#define QWEN_HYBRID .rope = ARCH_ROPE_NEOX, .flags = ARCH_HYBRID | ARCH_POST_ATTN_IS_FFN

/* Zero means: sequential pre-norm blocks, RMS norms, adjacent-pair RoPE, gated silu, no window, softmax experts
 * whose weights are normalised. A row says only where it differs. */
static const struct arch table[] = {
    { .name = "llama" },
    { .name = "deci" },
    { .name = "mistral3", .flags = ARCH_TEMPERATURE },
    { .name = "smollm3", .flags = ARCH_NO_ROPE_4TH },
    { .name = "ernie4_5" },
    { .name = "ernie4_5-moe" },
    { .name = "granite", .flags = ARCH_SCALES },
    { .name = "granitemoe", .flags = ARCH_SCALES },
    { .name = "qwen2", .rope = ARCH_ROPE_NEOX, .flags = ARCH_QKV_BIAS_REQUIRED },
    { .name = "qwen2vl", /* its text: MROPE's axes agree there (sections cover all pairs) */
      .rope = ARCH_ROPE_NEOX,
      .flags = ARCH_QKV_BIAS_REQUIRED },
    { .name = "qwen2moe",
      .rope = ARCH_ROPE_NEOX,
      .moe = ARCH_MOE_PLAIN,
      .flags = ARCH_QKV_BIAS_REQUIRED },
    { .name = "qwen3", .rope = ARCH_ROPE_NEOX },
    { .name = "qwen3moe", .rope = ARCH_ROPE_NEOX },
    { .name = "qwen3vl", .rope = ARCH_ROPE_NEOX, .flags = ARCH_IMROPE }, /* its text */
    { .name = "qwen3vlmoe", .rope = ARCH_ROPE_NEOX, .flags = ARCH_IMROPE },
    { .name = "seed_oss",
      .rope = ARCH_ROPE_NEOX,
      .flags = ARCH_QKV_BIAS_REQUIRED | ARCH_POST_ATTN_IS_FFN },
    { .name = "gemma", .rope = ARCH_ROPE_NEOX, .act = OP_ACT_GELU, .flags = ARCH_EMBED_SQRT_DIM },
    { .name = "gemma2",
      SAND_GEMMA,
      .window = ARCH_WINDOW_EVEN,
      .window_default = 4096,
      .attn_softcap = 50.0f,
      .logit_softcap = 30.0f,
      .big_layers = 46,
      .flags = ARCH_EMBED_SQRT_DIM },
    { .name = "gemma3",
      SAND_GEMMA,
      .window = ARCH_WINDOW_PERIOD,
      .window_period = 6,
      .big_layers = 62,
      .flags = ARCH_EMBED_SQRT_DIM | ARCH_LOCAL_ROPE },
    { .name = "gemma4",
      SAND_GEMMA,
      .window = ARCH_WINDOW_ARRAY,
      .logit_softcap = 30.0f,
      .flags = ARCH_EMBED_SQRT_DIM | ARCH_GEMMA4 },
    { .name = "phi3", .rope = ARCH_ROPE_NEOX, .window = ARCH_WINDOW_ALL, .flags = ARCH_FFN_FUSED },
    { .name = "glm4", .block = ARCH_SAND, .flags = ARCH_FFN_FUSED },
    { .name = "chatglm", .flags = ARCH_FFN_FUSED },
    { .name = "glm4moe",
      .rope = ARCH_ROPE_NEOX,
      .moe = ARCH_MOE_SIGMOID,
      .flags = ARCH_QKV_BIAS_REQUIRED | ARCH_POST_ATTN_IS_FFN },
    { .name = "gpt-oss",
      .rope = ARCH_ROPE_NEOX,
      .act = OP_ACT_SWIGLU_CLAMP,
      .window = ARCH_WINDOW_EVEN,
      .window_default = 128,
      .moe = ARCH_MOE_SOFTMAX_CHOSEN,
      .flags = ARCH_QKV_BIAS_REQUIRED | ARCH_POST_ATTN_IS_FFN | ARCH_SINKS },
    { .name = "deepseek2", .moe = ARCH_MOE_BY_KEY, .flags = ARCH_MLA },
    { .name = "command-r",
      .block = ARCH_PAR,
      .norm = OP_NORM_LAYER,
      .flags = ARCH_LOGIT_SCALE | ARCH_QK_NORM_PER_HEAD },
    { .name = "cohere2",
      .block = ARCH_PAR,
      .norm = OP_NORM_LAYER,
      .window = ARCH_WINDOW_PERIOD,
      .window_period = 4,
      .flags = ARCH_LOGIT_SCALE | ARCH_NO_ROPE_FULL },
    { .name = "olmo2",
      .block = ARCH_POST,
      .rope = ARCH_ROPE_NEOX,
      .window = ARCH_WINDOW_PERIOD_KEY,
      .window_period = 4,
      .flags = ARCH_QK_NORM_WHOLE | ARCH_ROPE_FULL_SCALED },
    { .name = "starcoder2",
      .norm = OP_NORM_LAYER,
      .rope = ARCH_ROPE_NEOX,
      .act = OP_ACT_GELU,
      .flags = ARCH_QKV_BIAS_REQUIRED },
    { .name = "nemotron", .norm = OP_NORM_LAYER, .rope = ARCH_ROPE_NEOX, .act = OP_ACT_RELU2 },
    { .name = "qwen3next", QWEN_HYBRID },
    { .name = "qwen35", QWEN_HYBRID | ARCH_INTERLEAVED_HEADS | ARCH_IMROPE },
    { .name = "qwen35moe", QWEN_HYBRID | ARCH_INTERLEAVED_HEADS | ARCH_IMROPE },
    { .name = "bert",
      ENCODER,
      .rope = ARCH_ROPE_LEARNED,
      .act = OP_ACT_GELU,
      .flags = ARCH_QKV_BIAS_REQUIRED },
    { .name = "nomic-bert", ENCODER, .rope = ARCH_ROPE_NEOX },
};

#define N_ARCHS (sizeof table / sizeof table[0])

const struct arch *arch_find(const char *name, uint64_t len)
{
    for (size_t i = 0; i < N_ARCHS; i++) {
        if (strlen(table[i].name) == len && memcmp(table[i].name, name, len) == 0) {
            return &table[i];
        }
    }
    return NULL;
}

const struct arch *arch_at(uint32_t i)
{
    return i < N_ARCHS ? &table[i] : NULL;
}
