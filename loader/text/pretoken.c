#include "loader/text/pretoken.h"

#include <stdlib.h>
#include <string.h>

#include "loader/text/grow.h"
#include "loader/text/pretoken_match.h"
#include "loader/text/unicode.h"

#define FAMILY(family)     .passes = pretoken_##family
#define FAMILY_REF(family) .passes = pretoken_##family, .reference = pretoken_##family##_ref
#define IM                 .ignore_merges = true
#define BOS                .add_bos = true
#define CS                 .clean_spaces = true
#define SEP                .add_sep = true

static const struct pretoken rows[] = {
    { "llama-bpe", FAMILY(llama_bpe), IM, BOS, CS },
    { "llama3", FAMILY(llama_bpe), IM, BOS, CS },
    { "llama-v3", FAMILY(llama_bpe), IM, BOS, CS },
    { "falcon3", FAMILY(llama_bpe), IM, BOS, CS },
    { "falcon-h1", FAMILY(llama_bpe), IM, BOS, CS },
    { "pixtral", FAMILY(llama_bpe), IM, BOS, CS },
    { "midm-2.0", FAMILY(llama_bpe), IM, BOS, CS },
    { "lfm2", FAMILY(llama_bpe), IM, BOS, CS },
    { "jina-v5-nano", FAMILY(llama_bpe), IM, BOS, CS },
    { "laguna", FAMILY(llama_bpe), IM, BOS, CS },
    { "dbrx", FAMILY(llama_bpe), CS },
    { "smaug-bpe", FAMILY(llama_bpe), CS },
    { "chatglm-bpe", FAMILY(llama_bpe), CS, .no_bos = true },
    { "glm4", FAMILY(llama_bpe), CS, .no_bos = true },
    { "qwen2", FAMILY(qwen2) },
    { "deepseek-r1-qwen", FAMILY(qwen2) },
    { "kormo", FAMILY(qwen2) },
    { "openpangu", FAMILY(qwen2) },
    { "f2llmv2", FAMILY(qwen2) },
    { "hunyuan", FAMILY(qwen2) },
    { "solar-open", FAMILY(qwen2) },
    { "grok-2", FAMILY(qwen2) },
    { "megrez", FAMILY(qwen2), CS },
    { "stablelm2", FAMILY(qwen2), CS },
    { "qwen35", FAMILY(qwen35) },
    { "gpt-4o", FAMILY_REF(gpt4o) },
    { "llama4", FAMILY_REF(gpt4o) },
    { "kanana2", FAMILY_REF(gpt4o) },
    { "minimax-m2", FAMILY_REF(gpt4o) },
    { "tekken", FAMILY_REF(tekken), IM, BOS },
    { "deepseek-llm", FAMILY(deepseek_llm) },
    { "deepseek-coder", FAMILY(deepseek_coder) },
    { "deepseek-v3", FAMILY_REF(deepseek_v3) },
    { "hunyuan-dense", FAMILY_REF(deepseek_v3) },
    { "joyai-llm", FAMILY_REF(deepseek_v3) },
    { "gpt-2", FAMILY(gpt2), CS },
    { "phi-2", FAMILY(gpt2), CS },
    { "gigachat", FAMILY(gpt2), CS },
    { "jina-es", FAMILY(gpt2), CS },
    { "jina-de", FAMILY(gpt2), CS },
    { "jina-v2-es", FAMILY(gpt2), CS },
    { "jina-v2-de", FAMILY(gpt2), CS },
    { "a.x-4.0", FAMILY(gpt2), CS },
    { "mellum", FAMILY(gpt2), CS },
    { "modern-bert", FAMILY(gpt2), CS },
    { "exaone4", FAMILY(gpt2), CS },
    { "mpt", FAMILY(gpt2), CS },
    { "olmo", FAMILY(gpt2), CS },
    { "jais", FAMILY(gpt2), CS },
    { "roberta-bpe", FAMILY(gpt2), CS, SEP },
    { "jina-v1-en", FAMILY(gpt2), CS, SEP },
    { "jina-v2-code", FAMILY(gpt2), CS, SEP },
    { "trillion", FAMILY(gpt2) },
    { "granite-docling", FAMILY(gpt2) },
    { "starcoder", FAMILY(starcoder), CS },
    { "refact", FAMILY(starcoder), CS },
    { "codeshell", FAMILY(starcoder), CS },
    { "exaone", FAMILY(starcoder), CS },
    { "minerva-7b", FAMILY(starcoder), CS },
    { "mellum2", FAMILY(starcoder), CS },
    { "command-r", FAMILY(starcoder) },
    { "cohere2_moe", FAMILY(starcoder) },
    { "smollm", FAMILY(starcoder) },
    { "falcon", FAMILY(falcon), CS },
    { "default", FAMILY(basic), CS },
    { "bloom", FAMILY(bloom), CS },
    { "gpt3-finnish", FAMILY(bloom), CS },
    { "poro-chat", FAMILY(bloom) },
    { "viking", FAMILY(viking) },
    { "chameleon", FAMILY(chameleon), BOS },
    { "jais-2", FAMILY(jais2), CS },
    { "youtu", FAMILY_REF(youtu), IM },
    { "tiny_aya", FAMILY_REF(tiny_aya) },
    { "kimi-k2", FAMILY_REF(kimi_k2) },
    { "bailingmoe", FAMILY(bailingmoe) },
    { "bailingmoe2", FAMILY(bailingmoe) },
    { "llada-moe", FAMILY(bailingmoe) },
    { "seed-coder", FAMILY(seed_coder) },
    { "afmoe", FAMILY_REF(afmoe) },
    { "exaone-moe", FAMILY(exaone_moe), CS },
    { "superbpe", FAMILY(superbpe) },
    { "gemma4", FAMILY(gemma4), BOS, CS },
};
#define N_ROWS (sizeof rows / sizeof *rows)

const struct pretoken *pretoken_at(size_t i)
{
    return i < N_ROWS ? &rows[i] : NULL;
}

const struct pretoken *pretoken_find(const char *name)
{
    for (size_t i = 0; i < N_ROWS; i++) {
        if (strcmp(rows[i].name, name) == 0) {
            return &rows[i];
        }
    }
    return NULL;
}

static size_t match(struct splitter *s, const struct pretoken_pass *pass, size_t p)
{
    for (size_t i = 0; i < MATCHES_MAX && pass->alternatives[i]; i++) {
        size_t n = pass->alternatives[i](s, p);
        if (n) {
            return n;
        }
    }
    return 0;
}

/* Scans one piece: matches become pieces, and what lies between two matches stays together. */
static void split_piece(struct splitter *s, const struct pretoken_pass *pass, size_t start,
                        size_t end)
{
    s->start = start;
    s->end = end;
    s->space_start = s->space_end = s->number_start = s->number_end = 0; /* runs end with pieces */
    size_t p = start;
    while (p < end) {
        size_t n = match(s, pass, p);
        if (n == 0) {
            p++;
            continue;
        }
        s->cuts[p] = 1;
        p += n;
        if (p < end) {
            s->cuts[p] = 1;
        }
    }
}

size_t splitter_piece_end(const struct splitter *s, size_t start)
{
    const uint8_t *next = start + 1 < s->n ? memchr(s->cuts + start + 1, 1, s->n - start - 1)
                                           : NULL;
    return next ? (size_t)(next - s->cuts) : s->n;
}

int splitter_run(struct splitter *s, const struct pretoken *pre, bool reference,
                 const uint8_t *text, size_t len, struct err *err)
{
    s->n = 0;
    if (len == 0) {
        return 0;
    }
    if (GROW(&s->codes, &s->codes_cap, len, err) < 0 ||
        GROW(&s->cats, &s->cats_cap, len, err) < 0 || GROW(&s->cuts, &s->cuts_cap, len, err) < 0) {
        return -1;
    }
    for (size_t i = 0; i < len;) {
        i += utf8_decode(text + i, len - i, &s->codes[s->n], NULL);
        s->cats[s->n] = (uint8_t)unicode_category(s->codes[s->n]);
        s->n++;
    }
    memset(s->cuts, 0, s->n);
    s->cuts[0] = 1;
    const struct pretoken_pass *const *pass = reference && pre->reference ? pre->reference
                                                                          : pre->passes;
    for (; *pass; pass++) {
        for (size_t start = 0; start < s->n;) {
            size_t end = splitter_piece_end(s, start);
            split_piece(s, *pass, start, end);
            start = end;
        }
    }
    return 0;
}

void splitter_clear(struct splitter *s)
{
    free(s->codes);
    free(s->cats);
    free(s->cuts);
    *s = (struct splitter){ 0 };
}
