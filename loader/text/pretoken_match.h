/* The alternatives that pre-tokenizers are made of, one function for each regex part: how many code points match
 * at p within the piece [s->start, s->end), 0 for none. Each costs O(length of what it consumes) in the long
 * run: runs that would be looked at again and again are remembered in the splitter. Private to pretoken.c. */
#pragma once

#include "loader/text/pretoken.h"

struct range {
    uint32_t first, last; /* code points, both included */
};

#define MATCHES_MAX 10 /* alternatives of one pass */

struct pretoken_pass {
    size_t (*alternatives[MATCHES_MAX])(struct splitter *s,
                                        size_t p); /* tried in order; then NULL */
};

/* The passes of every family; "_ref" where the reference cuts otherwise. */
/* clang-format off */
#define PRETOKEN_FAMILIES(X)                                                                       \
    X(gpt2) X(starcoder) X(llama_bpe) X(qwen2) X(qwen35) X(gpt4o) X(gpt4o_ref) X(tekken)           \
    X(tekken_ref) X(deepseek_llm) X(deepseek_coder) X(deepseek_v3) X(deepseek_v3_ref) X(falcon)    \
    X(basic) X(bloom) X(viking) X(chameleon) X(jais2) X(youtu) X(youtu_ref) X(tiny_aya)            \
    X(tiny_aya_ref) X(kimi_k2) X(kimi_k2_ref) X(bailingmoe) X(seed_coder) X(afmoe) X(afmoe_ref)    \
    X(exaone_moe) X(superbpe) X(gemma4)
/* clang-format on */

#define DECLARE(name) extern const struct pretoken_pass *const pretoken_##name[];
PRETOKEN_FAMILIES(DECLARE)
#undef DECLARE
