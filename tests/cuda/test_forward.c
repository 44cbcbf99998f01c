/* Goal: a whole model on the emulated device says what it says on the CPU, and a token decoded alone has the same bits as
 * among others. */
#include "tests/cuda/rig.h"

static void models_agree_with_the_cpu(void **state)
{
    (void)state;
    static const struct {
        enum dtype weights, kv;
        uint32_t n_experts, window;
        bool single_experts;
    } forms[] = {
        { DTYPE_Q8_0, DTYPE_F16, 0, 0, false },
        { DTYPE_F16, DTYPE_Q8_0, 0, 20, false },
        { DTYPE_Q8_0, DTYPE_BF16, 4, 0, false },
        { DTYPE_Q8_0, DTYPE_BF16, 4, 0, true },
    };
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        struct tiny t = tiny_default;
        float *logits[2];
        t.dtype = forms[i].weights;
        t.n_experts = forms[i].n_experts;
        t.window = forms[i].window;
        t.single_experts = forms[i].single_experts;
        for (int cuda = 0; cuda < 2; cuda++) {
            struct rig r;
            rig_start(&r, &t, cuda, forms[i].kv);
            uint32_t seq = rig_begin(&r, 1);
            logits[cuda] = calloc(3 * t.vocab_size, sizeof(float));
            assert_non_null(logits[cuda]);
            rig_step(&r, &seq, 1, 0, 30, logits[cuda]);
            rig_step(&r, &seq, 1, 30, 31, logits[cuda] + t.vocab_size);
            rig_step(&r, &seq, 1, 31, 35, logits[cuda] + 2 * t.vocab_size);
            rig_stop(&r);
        }
        twins_compare(logits[1], logits[0], 3 * t.vocab_size, 3e-2, "logits");
        free(logits[0]);
        free(logits[1]);
    }
}

static void the_exact_setting_agrees_with_the_cpus(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    float *logits[2];
    t.dtype = DTYPE_Q8_0;
    t.n_experts = 4;
    for (int cuda = 0; cuda < 2; cuda++) {
        struct rig r;
        struct err err = { 0 };
        const struct backend_options options = { .n_threads = 1, .exact = true };
        struct backend *b = backend_open(cuda ? "cuda:0" : "cpu", &options, &err);
        assert_ok(b ? 0 : -1, err);
        rig_start_on(&r, &t, b, DTYPE_F32);
        r.borrowed = false;
        uint32_t seq = rig_begin(&r, 1);
        logits[cuda] = calloc(2 * t.vocab_size, sizeof(float));
        assert_non_null(logits[cuda]);
        rig_step(&r, &seq, 1, 0, 30, logits[cuda]);
        rig_step(&r, &seq, 1, 30, 31, logits[cuda] + t.vocab_size);
        rig_stop(&r);
    }
    twins_compare(logits[1], logits[0], 2 * t.vocab_size, 1e-5, "logits");
    free(logits[0]);
    free(logits[1]);
}

static void a_token_has_the_same_bits_in_a_crowd(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    t.dtype = DTYPE_Q8_0;
    float *crowd = calloc(3 * t.vocab_size, sizeof *crowd), *alone = calloc(t.vocab_size, 4);
    uint32_t seqs[3];
    struct rig r;
    assert_true(crowd && alone);
    rig_start(&r, &t, true, DTYPE_F16);
    for (uint32_t s = 0; s < 3; s++) {
        seqs[s] = rig_begin(&r, s + 1);
        rig_step(&r, &seqs[s], 1, 0, 20, alone);
    }
    rig_step(&r, seqs, 3, 20, 21, crowd);
    for (uint32_t s = 0; s < 3; s++) {
        struct err err = { 0 };
        assert_ok(kvcache_truncate(&r.kv, seqs[s], 20, &err), err);
        rig_step(&r, &seqs[s], 1, 20, 21, alone);
        assert_memory_equal(alone, crowd + (size_t)s * t.vocab_size, t.vocab_size * sizeof *alone);
    }
    rig_stop(&r);
    free(crowd);
    free(alone);
}

/* One order of sums for products, experts and attention: however a sequence came to its position, its logits are the
 * same. So a step of one sequence's token and another's prompt gives both what they get alone. */
static void decode_beside_a_prompt_has_its_own_bits(void **state)
{
    (void)state;
    static const struct {
        enum dtype weights, kv;
        uint32_t n_experts;
    } forms[] = { { DTYPE_Q8_0, DTYPE_F16, 4 }, { DTYPE_F16, DTYPE_Q8_0, 0 } };
    enum { AT = 24 };
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        struct tiny t = tiny_default;
        struct rig r;
        struct err err = { 0 };
        t.dtype = forms[i].weights;
        t.n_experts = forms[i].n_experts;
        uint32_t vocab = t.vocab_size, n = 0;
        float *alone = calloc(2ull * vocab, sizeof *alone);
        float *crowd = calloc(2ull * vocab, sizeof *crowd);
        assert_true(alone && crowd);
        rig_start(&r, &t, true, forms[i].kv);
        const uint32_t seqs[2] = { rig_begin(&r, 1), rig_begin(&r, 2) };
        rig_step(&r, &seqs[0], 1, 0, AT, alone);
        rig_step(&r, &seqs[0], 1, AT, AT + 1, alone);
        for (uint32_t p = 0; p < AT; p++) { /* token by token */
            rig_step(&r, &seqs[1], 1, p, p + 1, alone + vocab);
        }
        assert_ok(kvcache_truncate(&r.kv, seqs[0], AT, &err), err);
        assert_ok(kvcache_truncate(&r.kv, seqs[1], 0, &err), err);
        int32_t tokens[AT + 1];
        uint32_t rows[AT + 1];
        int64_t positions[AT + 1];
        uint8_t flags[AT + 1] = { 0 };
        for (uint32_t s = 0; s < 2; s++) {
            for (uint32_t p = s == 0 ? AT : 0; p < (s == 0 ? AT + 1 : AT); p++, n++) {
                tokens[n] = (int32_t)((p * 29 + seqs[s] * 7 + 3) % vocab);
                rows[n] = seqs[s];
                positions[n] = p;
            }
            flags[n - 1] = FORWARD_LOGITS;
        }
        const struct forward_batch batch = { n, tokens, rows, positions, flags, NULL };
        assert_ok(forward_step(r.f, &r.kv, &batch, crowd, NULL, &err), err);
        assert_memory_equal(crowd, alone, 2ull * vocab * sizeof *alone);
        rig_stop(&r);
        free(alone);
        free(crowd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_agree_with_the_cpu),
        cmocka_unit_test(the_exact_setting_agrees_with_the_cpus),
        cmocka_unit_test(a_token_has_the_same_bits_in_a_crowd),
        cmocka_unit_test(decode_beside_a_prompt_has_its_own_bits),
    };
    setenv("HEARTH_EMULATED_LAZY", "1", 1); /* a wait that is missing shows */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
