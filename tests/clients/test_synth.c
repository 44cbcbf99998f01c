/* Synthetic models: sizes of published files to the byte, the same bytes each time, sound containers, tame numbers. */
#include "tests/test.h"

#include <math.h>

#include "clients/direct/synth_model.h"
#include "worker/quant.h"

/* Sizes of published files, tensor data only (formats/gguf.md section 6). */
static const struct {
    const char *arch, *preset, *type;
    uint64_t bytes;
} published[] = {
    { "llama", "70b", "IQ3_M", 31929172224 },   { "llama", "70b", "Q8_0", 74967187712 },
    { "llama", "70b", "Q6_K", 57880281344 },    { "llama", "70b", "Q5_K_M", 49941954816 },
    { "llama", "70b", "Q4_K_M", 42512531712 },  { "llama", "70b", "Q4_K_S", 40339357952 },
    { "llama", "70b", "IQ4_XS", 37894799616 },  { "llama", "70b", "Q3_K_M", 34259632384 },
    { "llama", "70b", "IQ3_S", 30904189184 },   { "llama", "70b", "IQ3_XS", 29299867904 },
    { "llama", "70b", "IQ3_XXS", 27461632256 }, { "llama", "70b", "IQ2_M", 24111431936 },
    { "llama", "70b", "IQ2_S", 22234480896 },   { "llama", "70b", "IQ2_XS", 21134246144 },
    { "llama", "70b", "IQ2_XXS", 19089522944 }, { "llama", "70b", "IQ1_M", 16743334144 },
    { "llama", "70b", "IQ1_S", 15335620864 },   { "qwen2", "32b", "Q8_0", 34814906368 },
    { "qwen2", "32b", "Q6_K", 26880176128 },    { "qwen2", "32b", "Q5_K_M", 23256178688 },
    { "qwen2", "32b", "Q4_K_M", 19845357568 },  { "qwen2", "32b", "Q4_K_S", 18778431488 },
    { "qwen2", "32b", "IQ4_XS", 17687175168 },  { "qwen2", "32b", "IQ3_M", 14804144128 },
    { "qwen2", "32b", "IQ3_S", 14430916608 },   { "qwen2", "32b", "IQ3_XXS", 12833292288 },
    { "qwen2", "32b", "IQ2_M", 11258462208 },   { "qwen2", "32b", "IQ2_XXS", 9022271488 },
};

static void sizes_are_those_of_published_files(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        struct err err = { 0 };
        struct synth *s = synth_create(published[i].arch, published[i].preset, published[i].type,
                                       &err);
        assert_ok(!s, err);
        uint64_t bytes = 0;
        for (size_t t = 0; t < s->n_tensors; t++) {
            bytes += s->tensors[t].size_bytes;
        }
        if (bytes != published[i].bytes) {
            fail_msg("%s %s %s: %llu bytes, published %llu", published[i].arch, published[i].preset,
                     published[i].type, (unsigned long long)bytes,
                     (unsigned long long)published[i].bytes);
        }
        synth_destroy(&s);
    }
}

static void every_type_is_tame_and_repeats(void **state)
{
    (void)state;
    static const char *const archs[] = {
        "llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3"
    };
    static const char *const types[] = { "F32",    "F16",     "BF16",  "Q4_0",   "Q4_1",
                                         "Q5_0",   "Q5_1",    "Q8_0",  "Q6_K",   "Q5_K_M",
                                         "Q4_K_M", "Q3_K_M",  "Q2_K",  "IQ4_XS", "IQ4_NL",
                                         "IQ3_M",  "IQ3_XXS", "IQ2_M", "IQ2_XS", "IQ2_XXS",
                                         "IQ1_M",  "IQ1_S",   "TQ1_0", "TQ2_0",  "MXFP4_MOE" };
    float values[256 * 16];
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct err err = { 0 };
        struct weights a, b;
        const char *arch = strcmp(types[i], "MXFP4_MOE") == 0 ? "qwen3moe" : archs[i % 6];
        assert_ok(synth_load(arch, "tiny", types[i], WEIGHTS_LAYOUT_FILE, &a, &err), err);
        assert_ok(synth_load(arch, "tiny", types[i], WEIGHTS_LAYOUT_FILE, &b, &err), err);
        assert_int_equal(a.size, b.size);
        assert_memory_equal(a.base, b.base, a.size);
        assert_int_equal(weights_watermark(&a), a.header->data_bytes);
        for (size_t t = 0; t < a.n_tensors; t++) {
            const struct weights_tensor *w = &a.tensors[t];
            if (w->n_dims < 2) {
                continue;
            }
            uint64_t n = w->ne[0] * 16 < 256 * 16 ? w->ne[0] * 8 : 256 * 8;
            quant_dequantise(w->dtype, w->data, n, values);
            double squares = 0;
            for (uint64_t k = 0; k < n; k++) {
                squares += (double)values[k] * values[k];
            }
            double spread = sqrt(squares / (double)n) * sqrt((double)w->ne[0]);
            if (!(spread > 0.5 && spread < 2)) {
                fail_msg("%s %s %s: spread %g", arch, types[i], w->name, spread);
            }
        }
        weights_unmap(&a);
        weights_unmap(&b);
    }
}

static void unknown_names_are_answered_with_the_list(void **state)
{
    (void)state;
    struct err err = { 0 };
    assert_null(synth_create("gpt9", "tiny", "Q8_0", &err));
    assert_int_equal(err.code, ERR_USAGE);
    assert_non_null(strstr(err.text, "qwen3moe"));
    assert_null(synth_create("llama", "9b", "Q8_0", &err));
    assert_non_null(strstr(err.text, "30b-a3b"));
    assert_null(synth_create("llama", "tiny", "Q9", &err));
    assert_non_null(strstr(err.text, "IQ3_M"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_those_of_published_files),
        cmocka_unit_test(every_type_is_tame_and_repeats),
        cmocka_unit_test(unknown_names_are_answered_with_the_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
