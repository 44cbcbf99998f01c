/* Same bits: one pass, pieces, token by token, in a crowd, on any number of threads and instruction set, after a
 * takeover. And: what a caller gets wrong is refused and changes nothing. */
#include <stdbool.h>

#include "tests/test.h"
#include "tests/worker/tiny.h"
#include "worker/forward.h"

#define CTX      256
#define N_IDS    150
#define SEQS     16
#define PAGES    (SEQS * 4)
#define MAX_ROWS 160

struct rig {
    struct weights w;
    struct backend *backend;
    struct model *m;
    struct forward *f;
    struct kvcache kv;
    void *memory;
    size_t memory_bytes;
};

struct setting {
    bool exact;
    enum dtype kv;
    uint32_t n_threads;
    const char *isa; /* NULL: the best */
};

static int32_t ids[SEQS][N_IDS];

static void make_ids(uint32_t vocab)
{
    uint64_t random = 7;
    for (uint32_t s = 0; s < SEQS; s++) {
        for (uint32_t i = 0; i < N_IDS; i++) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            ids[s][i] = (int32_t)((random >> 33) % vocab);
        }
    }
}

static void rig_start(struct rig *r, const struct tiny *t, const struct setting *s)
{
    struct err err = { 0 };
    const struct backend_options backend = { .exact = s->exact, .n_threads = s->n_threads };
    const struct model_options model = { .k_type = s->kv, .v_type = s->kv, .ctx_len = CTX };
    *r = (struct rig){ 0 };
    tiny_map(t, &r->w);
    if (s->isa) {
        setenv("HEARTH_ISA", s->isa, 1);
    } else {
        unsetenv("HEARTH_ISA");
    }
    r->backend = backend_open("cpu", &backend, &err);
    r->m = r->backend ? model_bind(&r->w, r->backend, &model, &err) : NULL;
    r->f = r->m ? forward_create(r->m, r->backend, MAX_ROWS, 8, &err) : NULL;
    if (!r->f) {
        fail_msg("%s", err.text);
    }
    r->memory_bytes = kvcache_size(&r->m->kv, PAGES, SEQS, CTX);
    r->memory = aligned_alloc(4096, (r->memory_bytes + 4095) / 4096 * 4096);
    assert_non_null(r->memory);
    /* Pages start with garbage: nothing that was never written may reach a result. */
    memset(r->memory, 0xff, r->memory_bytes);
    assert_ok(kvcache_init(&r->kv, &r->m->kv, r->memory, r->memory_bytes, PAGES, SEQS, CTX, &err),
              err);
    make_ids(t->vocab_size);
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

static uint32_t begin(struct rig *r, uint64_t tag)
{
    struct err err = { 0 };
    uint32_t seq;
    assert_ok(kvcache_begin(&r->kv, (struct kvcache_tag){ .lo = tag }, 0, &seq, &err), err);
    return seq;
}

/* Rows of a step under construction. */
struct rows {
    uint32_t n;
    int32_t tokens[MAX_ROWS];
    uint32_t seqs[MAX_ROWS];
    int64_t positions[MAX_ROWS];
    uint8_t flags[MAX_ROWS];
};

static void add_rows(struct rows *b, uint32_t seq, uint32_t which, uint32_t from, uint32_t n,
                     uint8_t flags)
{
    for (uint32_t i = from; i < from + n; i++, b->n++) {
        b->tokens[b->n] = ids[which][i];
        b->seqs[b->n] = seq;
        b->positions[b->n] = i;
        b->flags[b->n] = flags;
    }
}

static int step(struct rig *r, const struct rows *b, float *logits, struct err *err)
{
    const struct forward_batch batch = { b->n, b->tokens, b->seqs, b->positions, b->flags, NULL };
    return forward_step(r->f, &r->kv, &batch, logits, NULL, err);
}

/* Logits of positions from .. to of sequence `which`, in pieces. */
static void run(struct rig *r, uint32_t seq, uint32_t which, uint32_t from, uint32_t to,
                uint32_t piece, float *logits)
{
    struct err err = { 0 };
    for (uint32_t at = from; at < to; at += piece) {
        struct rows b = { 0 };
        add_rows(&b, seq, which, at, to - at < piece ? to - at : piece, FORWARD_LOGITS);
        assert_ok(step(r, &b, logits + (size_t)at * r->m->vocab_size, &err), err);
    }
}

static float *new_logits(const struct rig *r)
{
    float *logits = calloc((size_t)N_IDS * r->m->vocab_size, sizeof *logits);
    assert_non_null(logits);
    return logits;
}

static void expect_same(const struct rig *r, const float *a, const float *b, const char *what)
{
    if (memcmp(a, b, (size_t)N_IDS * r->m->vocab_size * sizeof *a) != 0) {
        fail_msg("%s: other bits", what);
    }
}

static void check_pieces(struct rig *r, const float *whole, float *other)
{
    const uint32_t pieces[] = { 1, 7, 64 };
    for (int i = 0; i < 3; i++) {
        uint32_t seq = begin(r, 1);
        run(r, seq, 0, 0, N_IDS, pieces[i], other);
        expect_same(r, whole, other, "in pieces");
        kvcache_end(&r->kv, seq);
    }
}

/* Sixteen at a time: the others are at other positions, one of them still in its prompt. */
static void check_crowd(struct rig *r, const float *whole, float *other)
{
    struct err err = { 0 };
    uint32_t seqs[SEQS];
    for (uint32_t i = 0; i < SEQS; i++) {
        seqs[i] = begin(r, 100 + i);
        struct rows b = { 0 };
        add_rows(&b, seqs[i], i, 0, 3 * i, 0);
        if (i > 0) {
            assert_ok(step(r, &b, NULL, &err), err);
        }
    }
    for (uint32_t at = 0; at < N_IDS; at++) {
        struct rows b = { 0 };
        for (uint32_t i = SEQS - 1; i > 0; i--) {
            uint32_t pos = (uint32_t)kvcache_pos(&r->kv, seqs[i]), n = i == 3 ? 9 : 1;
            add_rows(&b, seqs[i], i, pos, pos + n > N_IDS ? 0 : n, 0);
        }
        add_rows(&b, seqs[0], 0, at, 1, FORWARD_LOGITS);
        assert_ok(step(r, &b, other + (size_t)at * r->m->vocab_size, &err), err);
    }
    expect_same(r, whole, other, "in a batch of 16");
    for (uint32_t i = 0; i < SEQS; i++) {
        kvcache_end(&r->kv, seqs[i]);
    }
}

/* The next worker goes on where this one died; then a prefix is shared, and rewound. */
static void check_cache(struct rig *r, const float *whole, float *other)
{
    struct err err = { 0 };
    uint32_t seq = begin(r, 5), shared, n;
    struct kvcache adopted;
    run(r, seq, 0, 0, 70, 70, other);
    assert_ok(kvcache_adopt(&adopted, &r->m->kv, r->memory, r->memory_bytes, &err), err);
    kvcache_clear(&r->kv);
    r->kv = adopted;
    seq = (uint32_t)kvcache_find(&r->kv, (struct kvcache_tag){ .lo = 5 });
    run(r, seq, 0, 70, N_IDS, 13, other);
    expect_same(r, whole, other, "after a takeover");

    shared = begin(r, 6);
    assert_ok(kvcache_copy_prefix(&r->kv, shared, seq, 130, &n, &err), err);
    assert_int_equal(n, 128);
    run(r, shared, 0, n, N_IDS, 5, other);
    assert_ok(kvcache_truncate(&r->kv, shared, 100, &err), err);
    run(r, shared, 0, 100, N_IDS, 11, other);
    expect_same(r, whole, other, "with a shared prefix, rewound");
}

/* All the ways to feed one sequence; returns the logits of one pass. */
static float *check_ways(const struct tiny *t, const struct setting *s)
{
    struct rig r;
    rig_start(&r, t, s);
    float *whole = new_logits(&r), *other = new_logits(&r);
    uint32_t seq = begin(&r, 1);
    run(&r, seq, 0, 0, N_IDS, N_IDS, whole);
    for (size_t i = 0; i < (size_t)N_IDS * r.m->vocab_size; i++) {
        assert_true(whole[i] == whole[i]);
    }
    kvcache_end(&r.kv, seq);
    check_pieces(&r, whole, other);
    check_crowd(&r, whole, other);
    check_cache(&r, whole, other);
    free(other);
    rig_stop(&r);
    return whole;
}

static bool have_isa(const char *isa)
{
#if defined __x86_64__
    return !isa || strcmp(isa, "avx2") != 0 ||
           (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
            __builtin_cpu_supports("f16c"));
#else
    return !isa || strcmp(isa, "portable") == 0;
#endif
}

static void check_model(const struct tiny *t, bool exact, enum dtype kv)
{
    struct setting s = { .exact = exact, .kv = kv, .n_threads = 1 };
    float *one = check_ways(t, &s);
    const struct setting others[] = {
        { exact, kv, 2, NULL },
        { exact, kv, 4, NULL },
        { exact, kv, 1, "portable" },
        { exact, kv, 2, "avx2" },
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        struct rig r;
        if (!have_isa(others[i].isa)) {
            continue;
        }
        rig_start(&r, t, &others[i]);
        float *again = new_logits(&r);
        run(&r, begin(&r, 1), 0, 0, N_IDS, 50, again);
        expect_same(&r, one, again, others[i].isa ? others[i].isa : "other threads");
        free(again);
        rig_stop(&r);
    }
    free(one);
}

static void forward_gives_the_same_bits_in_the_exact_setting(void **state)
{
    (void)state;
    check_model(&tiny_default, true, DTYPE_F32);
}

static void forward_gives_the_same_bits_with_quantised_weights(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    t.dtype = DTYPE_Q8_0;
    check_model(&t, false, DTYPE_F16);
}

static void forward_gives_the_same_bits_with_quantised_keys(void **state)
{
    (void)state;
    check_model(&tiny_default, false, DTYPE_Q8_0);
    check_model(&tiny_default, false, DTYPE_Q4_0);
}

static void forward_gives_the_same_bits_with_experts(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    t.dtype = DTYPE_F16;
    t.n_experts = 4;
    check_model(&t, false, DTYPE_BF16);
}

/* Files of before April 2024: a tensor for each expert, wherever it lies. */
static void forward_gives_the_same_bits_with_single_experts(void **state)
{
    (void)state;
    const enum dtype types[] = { DTYPE_F32, DTYPE_F16, DTYPE_Q8_0 };
    for (int i = 0; i < 6; i++) {
        struct tiny t = tiny_default;
        const struct setting s = { i < 3, i < 3 ? DTYPE_F32 : DTYPE_F16, 2, NULL };
        float *logits[2];
        struct rig r;
        t.dtype = types[i % 3];
        t.n_experts = 4;
        for (int single = 0; single < 2; single++) {
            t.single_experts = single;
            rig_start(&r, &t, &s);
            logits[single] = new_logits(&r);
            run(&r, begin(&r, 1), 0, 0, N_IDS, 50, logits[single]);
            if (single) {
                expect_same(&r, logits[0], logits[1], "experts in tensors of their own");
            }
            rig_stop(&r);
        }
        free(logits[0]);
        free(logits[1]);
    }
}

static void forward_gives_the_same_bits_through_a_window(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    t.arch = "phi3"; /* windows on every layer */
    t.window = 37;
    check_model(&t, false, DTYPE_F16);
}

static void forward_gives_the_same_bits_with_an_adapter(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    t.adapted = true;
    check_model(&t, true, DTYPE_F32);
    t.dtype = DTYPE_Q8_0;
    check_model(&t, false, DTYPE_F16);
}

static float *logits_of(const struct tiny *t)
{
    const struct setting s = { false, DTYPE_F16, 2, NULL };
    struct rig r;
    rig_start(&r, t, &s);
    float *logits = new_logits(&r);
    run(&r, begin(&r, 1), 0, 0, N_IDS, 50, logits);
    rig_stop(&r);
    return logits;
}

/* The text of a model that also reads images is its text model's. */
static void forward_gives_the_text_model_where_images_could_be(void **state)
{
    (void)state;
    static const char *const pairs[][2] = { { "qwen2", "qwen2vl" }, { "qwen3", "qwen3vl" } };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        struct tiny t = tiny_default;
        t.biases = strncmp(pairs[i][0], "qwen2", 5) == 0;
        t.arch = pairs[i][0];
        float *text = logits_of(&t);
        t.arch = pairs[i][1];
        float *both = logits_of(&t);
        assert_memory_equal(text, both, (size_t)N_IDS * t.vocab_size * sizeof *text);
        free(text);
        free(both);
    }
}

static void forward_refuses_and_changes_nothing(void **state)
{
    (void)state;
    const struct setting s = { true, DTYPE_F32, 1, NULL };
    struct rig r;
    struct err err = { 0 };
    rig_start(&r, &tiny_default, &s);
    uint32_t seq = begin(&r, 1);
    struct rows b = { 0 };
    add_rows(&b, seq, 0, 0, 4, 0);
    b.tokens[2] = (int32_t)r.m->vocab_size;
    assert_int_equal(step(&r, &b, NULL, &err), -1);
    assert_int_equal(err.code, ERR_BAD_INPUT);
    b.tokens[2] = -1;
    assert_int_equal(step(&r, &b, NULL, &err), -1);
    b.tokens[2] = 0;
    b.positions[0] = 1; /* the sequence is at 0 */
    assert_int_equal(step(&r, &b, NULL, &err), -1);
    b.positions[0] = 0;
    b.seqs[0] = SEQS;
    assert_int_equal(step(&r, &b, NULL, &err), -1);
    b.n = 0;
    assert_int_equal(step(&r, &b, NULL, &err), -1);
    assert_int_equal(kvcache_pos(&r.kv, seq), 0);
    b.n = 4;
    b.seqs[0] = seq;
    assert_ok(step(&r, &b, NULL, &err), err);
    assert_int_equal(kvcache_pos(&r.kv, seq), 4);
    rig_stop(&r);
}

/* The watchdog's word moves with every layer. */
static void forward_counts_its_progress(void **state)
{
    (void)state;
    const struct setting s = { true, DTYPE_F32, 1, NULL };
    struct rig r;
    struct err err = { 0 };
    _Atomic uint32_t progress = 0;
    rig_start(&r, &tiny_default, &s);
    forward_set_progress(r.f, &progress);
    struct rows b = { 0 };
    add_rows(&b, begin(&r, 1), 0, 0, 4, 0);
    assert_ok(step(&r, &b, NULL, &err), err);
    assert_int_equal(atomic_load(&progress), r.m->n_layers);
    rig_stop(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_gives_the_same_bits_in_the_exact_setting),
        cmocka_unit_test(forward_gives_the_same_bits_with_quantised_weights),
        cmocka_unit_test(forward_gives_the_same_bits_with_quantised_keys),
        cmocka_unit_test(forward_gives_the_same_bits_with_experts),
        cmocka_unit_test(forward_gives_the_same_bits_with_single_experts),
        cmocka_unit_test(forward_gives_the_same_bits_through_a_window),
        cmocka_unit_test(forward_gives_the_same_bits_with_an_adapter),
        cmocka_unit_test(forward_gives_the_text_model_where_images_could_be),
        cmocka_unit_test(forward_refuses_and_changes_nothing),
        cmocka_unit_test(forward_counts_its_progress),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
