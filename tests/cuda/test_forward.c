/* Goal: a whole model on the emulated device says what it says on the CPU, and a token decoded alone has the same bits as
 * among others. */
#include "tests/cuda/twins.h"

#include "tests/worker/tiny.h"
#include "worker/forward.h"

#define CTX   256
#define N_IDS 40
#define PAGES 16

struct rig {
    struct weights w;
    struct backend *backend;
    struct model *m;
    struct forward *f;
    struct kvcache kv;
    void *memory;
};

static void rig_start(struct rig *r, const struct tiny *t, bool cuda, enum dtype kv)
{
    struct err err = { 0 };
    const struct backend_options options = { .n_threads = 1 };
    const struct model_options model = { .k_type = kv, .v_type = kv, .ctx_len = CTX };
    *r = (struct rig){ 0 };
    tiny_map(t, &r->w);
    r->backend = cuda ? cuda_open("cuda", &options, &err) : backend_open("cpu", &options, &err);
    r->m = r->backend ? model_bind(&r->w, r->backend, &model, &err) : NULL;
    r->f = r->m ? forward_create(r->m, r->backend, N_IDS, 8, &err) : NULL;
    if (!r->f) {
        fail_msg("%s", err.text);
    }
    size_t bytes = kvcache_size(&r->m->kv, PAGES, 4, CTX);
    r->memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    assert_non_null(r->memory);
    memset(r->memory, 0xff, bytes);
    assert_ok(kvcache_init(&r->kv, &r->m->kv, r->memory, bytes, PAGES, 4, CTX, &err), err);
}

static void rig_stop(struct rig *r)
{
    kvcache_clear(&r->kv);
    free(r->memory);
    forward_destroy(&r->f);
    model_destroy(&r->m);
    backend_close(&r->backend);
    weights_unmap(&r->w);
}

/* Positions from .. to of n_seqs sequences in one step; logits of each sequence's last row. */
static void step(struct rig *r, const uint32_t *seqs, uint32_t n_seqs, uint32_t from, uint32_t to,
                 uint32_t vocab, float *logits)
{
    int32_t tokens[4 * N_IDS];
    uint32_t rows[4 * N_IDS], n = 0;
    int64_t positions[4 * N_IDS];
    uint8_t flags[4 * N_IDS];
    struct err err = { 0 };
    for (uint32_t s = 0; s < n_seqs; s++) {
        for (uint32_t i = from; i < to; i++, n++) {
            tokens[n] = (int32_t)((i * 29 + seqs[s] * 7 + 3) % vocab);
            rows[n] = seqs[s];
            positions[n] = i;
            flags[n] = i + 1 == to ? FORWARD_LOGITS : 0;
        }
    }
    const struct forward_batch batch = { n, tokens, rows, positions, flags };
    assert_ok(forward_step(r->f, &r->kv, &batch, logits, NULL, &err), err);
}

static uint32_t begin(struct rig *r, uint64_t tag)
{
    struct err err = { 0 };
    uint32_t seq;
    assert_ok(kvcache_begin(&r->kv, (struct kvcache_tag){ .lo = tag }, 0, &seq, &err), err);
    return seq;
}

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
            uint32_t seq = begin(&r, 1);
            logits[cuda] = calloc(3 * t.vocab_size, sizeof(float));
            assert_non_null(logits[cuda]);
            step(&r, &seq, 1, 0, 30, t.vocab_size, logits[cuda]);
            step(&r, &seq, 1, 30, 31, t.vocab_size, logits[cuda] + t.vocab_size);
            step(&r, &seq, 1, 31, 35, t.vocab_size, logits[cuda] + 2 * t.vocab_size);
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
        seqs[s] = begin(&r, s + 1);
        step(&r, &seqs[s], 1, 0, 20, t.vocab_size, alone);
    }
    step(&r, seqs, 3, 20, 21, t.vocab_size, crowd);
    for (uint32_t s = 0; s < 3; s++) {
        struct err err = { 0 };
        assert_ok(kvcache_truncate(&r.kv, seqs[s], 20, &err), err);
        step(&r, &seqs[s], 1, 20, 21, t.vocab_size, alone);
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
    return cmocka_run_group_tests(tests, NULL, NULL);
}
