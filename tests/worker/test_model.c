/* Binding: what a file may say wrongly is refused by name. */
#include "tests/test.h"
#include "tests/worker/tiny.h"
#include "worker/model.h"

static const struct model_options exact = { .k_type = DTYPE_F32, .v_type = DTYPE_F32 };

static struct model *bind_tiny(const struct tiny *t, struct weights *w, struct backend **backend,
                               struct err *err)
{
    const struct backend_options options = { .exact = true, .n_threads = 1 };
    tiny_map(t, w);
    *backend = backend_open("cpu", &options, err);
    assert_non_null(*backend);
    return model_bind(w, *backend, &exact, err);
}

static void expect_refusal(const struct tiny *t, enum err_code code, const char *words)
{
    struct weights w = { 0 };
    struct backend *backend;
    struct err err = { 0 };
    struct model *m = bind_tiny(t, &w, &backend, &err);
    assert_null(m);
    assert_int_equal(err.code, code);
    if (!strstr(err.text, words)) {
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
    }
    backend_close(&backend);
    weights_unmap(&w);
}

static void model_binds_a_small_llama(void **state)
{
    (void)state;
    struct weights w = { 0 };
    struct backend *backend;
    struct err err = { 0 };
    struct model *m = bind_tiny(&tiny_default, &w, &backend, &err);
    if (!m) {
        fail_msg("%s", err.text);
    }
    assert_int_equal(m->n_layers, 3);
    assert_int_equal(m->vocab_size, 80);
    assert_int_equal(m->ctx_len, 512);
    assert_ptr_equal(m->output.data, m->token_embd.data); /* tied */
    assert_int_equal(m->kv.layer[2].k_row_bytes, 32 * 4);
    assert_int_equal(m->kv.page_bytes % 4096, 0);
    model_destroy(&m);
    assert_null(m);
    model_destroy(&m);
    backend_close(&backend);
    weights_unmap(&w);
}

static void model_names_what_is_missing(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    t.omit = "blk.1.attn_k.weight";
    expect_refusal(&t, ERR_BAD_FILE, "blk.1.attn_k.weight is missing");
    t.omit = "output_norm.weight";
    expect_refusal(&t, ERR_BAD_FILE, "output_norm.weight");
    t.omit = NULL;
    t.omit_key = "block_count";
    expect_refusal(&t, ERR_BAD_FILE, "llama.block_count is missing");
}

static void model_names_type_and_shape_of_a_wrong_tensor(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    t.bend = "blk.2.ffn_down.weight";
    expect_refusal(&t, ERR_BAD_FILE,
                   "blk.2.ffn_down.weight: F32 [96, 63, 1], expected [96, 64, 1]");
}

static void model_names_an_expert_that_is_not_like_the_others(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    t.n_experts = 3;
    t.single_experts = true;
    t.omit = "blk.1.ffn_up.2.weight";
    expect_refusal(&t, ERR_BAD_FILE, "blk.1.ffn_up.2.weight is missing");
    t.omit = NULL;
    t.bend = "blk.2.ffn_down.1.weight";
    expect_refusal(&t, ERR_UNSUPPORTED,
                   "blk.2.ffn_down.1.weight: F32 [96, 63, 1], expert 0 is F32 [96, 64, 1]");
}

static void model_refuses_an_adapter_that_does_not_fit(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    t.adapted = true;
    t.bend = "blk.1.ffn_down.weight.lora_b";
    expect_refusal(&t, ERR_BAD_FILE,
                   "blk.1.ffn_down.weight.lora_b: F16 [20, 63, 1], expected [20, 64, 1]");
    t.bend = NULL;
    t.omit = "blk.1.ffn_down.weight.lora_b";
    expect_refusal(&t, ERR_BAD_FILE, "blk.1.ffn_down.weight.lora_b is missing");
    t.omit = "blk.1.ffn_down.weight.lora_a";
    expect_refusal(&t, ERR_UNSUPPORTED, "blk.1.ffn_down.weight.lora_b");
    t.omit = NULL;
    t.n_experts = 2; /* ffn_down is none of its matrices */
    expect_refusal(&t, ERR_UNSUPPORTED, "blk.0.ffn_down.weight.lora_a");
}

static void model_refuses_numbers_that_make_no_sense(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    t.n_heads = 3; /* over 2 key/value heads */
    expect_refusal(&t, ERR_BAD_FILE, "heads");
    t = tiny_default;
    t.n_layers = 0;
    expect_refusal(&t, ERR_BAD_FILE, "blocks");
}

static void model_refuses_an_unknown_architecture(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    t.arch = "mamba9";
    expect_refusal(&t, ERR_UNSUPPORTED, "mamba9");
}

/* A cache made under other numbers must not be taken over. */
static void model_fingerprint_follows_the_layout(void **state)
{
    (void)state;
    struct weights w = { 0 };
    struct backend *backend;
    struct err err = { 0 };
    struct model *m = bind_tiny(&tiny_default, &w, &backend, &err);
    assert_non_null(m);
    const struct model_options half = { .k_type = DTYPE_F16, .v_type = DTYPE_F32 };
    struct model *other = model_bind(&w, backend, &half, &err);
    struct model *same = model_bind(&w, backend, &exact, &err);
    assert_non_null(other);
    assert_non_null(same);
    assert_true(m->kv.fingerprint != other->kv.fingerprint);
    assert_true(m->kv.fingerprint == same->kv.fingerprint);
    model_destroy(&m);
    model_destroy(&other);
    model_destroy(&same);
    backend_close(&backend);
    weights_unmap(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_binds_a_small_llama),
        cmocka_unit_test(model_names_what_is_missing),
        cmocka_unit_test(model_names_type_and_shape_of_a_wrong_tensor),
        cmocka_unit_test(model_names_an_expert_that_is_not_like_the_others),
        cmocka_unit_test(model_refuses_an_adapter_that_does_not_fit),
        cmocka_unit_test(model_refuses_numbers_that_make_no_sense),
        cmocka_unit_test(model_refuses_an_unknown_architecture),
        cmocka_unit_test(model_fingerprint_follows_the_layout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
