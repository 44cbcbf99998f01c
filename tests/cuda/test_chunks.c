/* Goal: how a long prompt is cut changes no bit on a device either: 560 positions as 512 + 48 (what DESIGN.md section 8 calls canonical
 * chunks), as one step and by hundreds give the same logits, the same keys and values and the same next token's logits. */
#define RIG_CTX   768
#define RIG_ROWS  560
#define RIG_PAGES 12
#include "tests/cuda/rig.h"

enum { N_PROMPT = 560, VOCAB_MAX = 512 };

struct outcome {
    float prompt[VOCAB_MAX], next[VOCAB_MAX];
    uint8_t *pages; /* the prompt's */
    size_t bytes;
};

static void prefill(const struct tiny *t, enum dtype kv, uint32_t chunk, struct outcome *out)
{
    struct rig r;
    struct err err;
    rig_start(&r, t, true, kv);
    uint32_t seq = rig_begin(&r, 1), n_pages = kvcache_pages_for(N_PROMPT);
    for (uint32_t from = 0; from < N_PROMPT; from += chunk) {
        rig_step(&r, &seq, 1, from, from + chunk < N_PROMPT ? from + chunk : N_PROMPT, out->prompt);
    }
    uint64_t page_bytes = r.m->kv.page_bytes;
    out->bytes = n_pages * page_bytes;
    out->pages = calloc(1, out->bytes);
    assert_non_null(out->pages);
    for (uint32_t i = 0; i < n_pages; i++) {
        const uint8_t *page = kvcache_pages(&r.kv) + kvcache_table(&r.kv, seq)[i] * page_bytes;
        assert_ok(r.backend->ops->download(r.backend, out->pages + i * page_bytes, page, page_bytes,
                                           &err),
                  err);
    }
    rig_step(&r, &seq, 1, N_PROMPT, N_PROMPT + 1, out->next);
    rig_stop(&r);
}

static void any_cut_gives_the_same_bits(void **state)
{
    (void)state;
    static const struct {
        enum dtype weights, kv;
        uint32_t n_experts;
    } forms[] = { { DTYPE_Q8_0, DTYPE_F16, 0 }, { DTYPE_F16, DTYPE_Q8_0, 0 } };
    static const uint32_t chunks[] = { 512, N_PROMPT, 100 };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        static struct outcome outcomes[3];
        struct tiny t = tiny_default;
        t.n_layers = 1;
        t.n_heads = 2;
        t.n_kv_heads = 1;
        t.ffn_dim = 32;
        t.dtype = forms[i].weights;
        t.n_experts = forms[i].n_experts;
        assert_true(t.vocab_size <= VOCAB_MAX);
        for (int k = 0; k < 3; k++) {
            prefill(&t, forms[i].kv, chunks[k], &outcomes[k]);
        }
        for (int k = 1; k < 3; k++) {
            assert_memory_equal(outcomes[k].prompt, outcomes[0].prompt,
                                t.vocab_size * sizeof(float));
            assert_memory_equal(outcomes[k].next, outcomes[0].next, t.vocab_size * sizeof(float));
            assert_memory_equal(outcomes[k].pages, outcomes[0].pages, outcomes[0].bytes);
        }
        for (int k = 0; k < 3; k++) {
            free(outcomes[k].pages);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_cut_gives_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
