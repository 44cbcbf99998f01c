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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_agree_with_the_cpu),
        cmocka_unit_test(a_token_has_the_same_bits_in_a_crowd),
    };
    setenv("HEARTH_EMULATED_LAZY", "1", 1); /* a wait that is missing shows */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
