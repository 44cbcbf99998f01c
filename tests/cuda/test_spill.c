/* Goal: weights in the host's memory give the bits that they give on the device, however many there are, in whatever order copies
 * and kernels run that the program allows (HEARTH_EMULATED_LAZY: as late as can be, as early as can be); the plan names them to
 * the byte, and what cannot be had is told before anything is taken. */
#include "tests/cuda/rig.h"

#include "worker/plan.h"

#define VOCAB     80
#define SEQUENCES 3
#define DECODED   4
#define PROMPT    18 /* more than a list takes */

/* Everything that a rig says, in one array: prompts in one step and in pieces, single tokens, several sequences at once. */
#define TALKERS 3
#define LOGITS  (2 + TALKERS * DECODED)

static void talk(struct rig *r, float *logits)
{
    uint32_t seqs[TALKERS], n = 0;
    for (uint32_t s = 0; s < TALKERS; s++) {
        seqs[s] = rig_begin(r, s + 1);
    }
    rig_step(r, seqs, 1, 0, PROMPT, logits + n++ * VOCAB);
    rig_step(r, seqs + 1, 2, 0, 3, logits + n * VOCAB); /* the next line is written over */
    n++;
    for (uint32_t i = 0; i < DECODED; i++) { /* a graph is warmed up, made, and sent */
        rig_step(r, seqs, 1, PROMPT + i, PROMPT + i + 1, logits + n++ * VOCAB);
        rig_step(r, seqs + 1, 2, 3 + i, 4 + i, logits + n * VOCAB);
        n += 2;
    }
    assert_int_equal(n, LOGITS);
    for (uint32_t s = 0; s < TALKERS; s++) {
        kvcache_end(&r->kv, seqs[s]);
    }
}

/* The matrices of this model that a device leaves to the host when it lacks so many bytes. */
static struct spill spill_of(const struct tiny *t, uint64_t wanted)
{
    struct err err = { 0 };
    struct weights w;
    struct spill_sizes *sizes = malloc(sizeof *sizes);
    struct spill s = { .tables = true };
    const struct backend_options options = { .n_threads = 1 };
    const struct model_options model = { .k_type = DTYPE_F16, .v_type = DTYPE_F16 };
    struct backend *b = cuda_open("cuda", &options, &err);
    assert_non_null(b);
    assert_non_null(sizes);
    tiny_map(t, &w);
    b->dry = true;
    struct model *m = model_bind(&w, b, &model, &err);
    assert_non_null(m);
    spill_measure(&w, b, m->n_layers, sizes);
    model_destroy(&m);
    b->dry = false;
    uint64_t bytes = spill_choose(sizes, wanted, UINT64_MAX, &s);
    assert_true(bytes >= wanted);
    backend_close(&b);
    weights_unmap(&w);
    free(sizes);
    return s;
}

static uint32_t n_streamed(const struct spill *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < MODEL_LAYERS_MAX; i++) {
        n += (uint32_t)__builtin_popcount(s->streamed[i]);
    }
    return n;
}

#define KINDS 4

static const struct tiny *kinds(uint32_t i)
{
    static struct tiny t[KINDS];
    static const enum dtype dtypes[KINDS] = { DTYPE_Q8_0, DTYPE_F16, DTYPE_F32, DTYPE_Q8_0 };
    t[i] = tiny_default;
    t[i].n_layers = 4;
    t[i].dtype = dtypes[i];
    t[i].adapted = i == 1;
    t[i].biases = i == 2;
    t[i].untied = i != 2;            /* else the table is the output, too: it stays */
    t[i].n_experts = i == 3 ? 4 : 0; /* these stay, attention is streamed */
    return &t[i];
}

static void the_same_bits(uint32_t kind, const struct spill *spill, const char *lazy,
                          const char *graphs, const float *want)
{
    struct rig r;
    float *got = calloc(LOGITS * VOCAB, sizeof *got);
    assert_non_null(got);
    setenv("HEARTH_EMULATED_LAZY", lazy, 1);
    setenv("HEARTH_EMULATED_GRAPHS", graphs, 1);
    rig_spill = spill;
    rig_start(&r, kinds(kind), true, DTYPE_F16);
    assert_int_equal(r.m->token_embd.data == r.m->output.data, kind == 2);
    talk(&r, got);
    talk(&r, got); /* once more, in graphs that were made with other slots filled */
    assert_memory_equal(got, want, LOGITS * VOCAB * sizeof *got);
    if (graphs[0] == '1') {
        struct cuda_step_counts counts = cuda_step_counted(r.backend);
        assert_true(counts.n_launched >= DECODED);
    }
    rig_stop(&r);
    rig_spill = NULL;
    setenv("HEARTH_EMULATED_GRAPHS", "1", 1);
    free(got);
}

static void streamed_weights_give_the_bits_of_resident_ones(void **state)
{
    (void)state;
    float *want = calloc(LOGITS * VOCAB, sizeof *want);
    assert_non_null(want);
    for (uint32_t kind = 0; kind < KINDS; kind++) {
        struct rig r;
        struct spill all = { .tables = true, .slot_bytes = 1 << 17 };
        memset(all.streamed, 15, kinds(kind)->n_layers);
        setenv("HEARTH_EMULATED_LAZY", "0", 1);
        rig_start(&r, kinds(kind), true, DTYPE_F16);
        talk(&r, want);
        rig_stop(&r);
        the_same_bits(kind, &all, "1", "1", want);
        the_same_bits(kind, &all, "2", "1", want);
        if (kind == 0) {
            const struct spill tables = { .tables = true }, few = spill_of(kinds(kind), 1),
                               some = spill_of(kinds(kind), 20000);
            assert_true(n_streamed(&few) >= 1 && n_streamed(&few) < n_streamed(&some));
            the_same_bits(kind, &tables, "1", "1", want);
            the_same_bits(kind, &few, "2", "1", want);
            the_same_bits(kind, &some, "0", "1", want);
            the_same_bits(kind, &some, "2", "0", want); /* launched line by line */
        }
    }
    free(want);
}

/* 1 to 16 columns, and more than a list takes: every sum of products over slots that change hands between them. */
static void any_number_of_columns_gives_the_same_bits(void **state)
{
    (void)state;
    static const uint32_t widths[] = { 1, 2, 3, 8, 9, 16, 17, 33 };
    const uint32_t n = sizeof widths / sizeof widths[0];
    float logits[2][16][VOCAB];
    const struct spill some = spill_of(kinds(0), 20000);
    for (int spilled = 0; spilled < 2; spilled++) {
        for (int lazy = 1; lazy <= 1 + spilled; lazy++) {
            struct rig r;
            const char name[2] = { (char)('0' + lazy), 0 };
            setenv("HEARTH_EMULATED_LAZY", name, 1);
            rig_spill = spilled ? &some : NULL;
            rig_start(&r, kinds(0), true, DTYPE_F16);
            for (int round = 0; round < 2 + spilled; round++) {
                for (uint32_t i = 0; i < n; i++) {
                    uint32_t seq = rig_begin(&r, 1);
                    rig_step(&r, &seq, 1, 0, widths[i], logits[spilled][i]);
                    kvcache_end(&r.kv, seq);
                }
            }
            rig_stop(&r);
            rig_spill = NULL;
            assert_memory_equal(logits[0], logits[spilled], n * sizeof logits[0][0]);
        }
    }
}

/* What was listed and never sent has filled no slot. */
static void a_step_that_fails_on_its_way_leaves_no_wrong_slot(void **state)
{
    (void)state;
    struct rig r;
    struct err err = { 0 };
    float *want = calloc(LOGITS * VOCAB, sizeof *want), *got = calloc(LOGITS * VOCAB, sizeof *got);
    const struct spill some = spill_of(kinds(0), 20000);
    assert_true(want && got);
    setenv("HEARTH_EMULATED_LAZY", "1", 1);
    rig_spill = &some;
    rig_start(&r, kinds(0), true, DTYPE_F16);
    talk(&r, want);
    float *x = r.backend->ops->alloc(r.backend, 4096, &err), *y = x + 512;
    assert_non_null(x);
    assert_ok(r.backend->ops->step(r.backend, 77, &err), err);
    for (uint32_t i = 0; i < r.m->n_layers; i++) {
        const struct matrix *w = &r.m->layers[i].o.w;
        const struct op_matmul op = { .x = x,
                                      .x_stride = w->k,
                                      .n_rows = 1,
                                      .k = w->k,
                                      .n_products = 1,
                                      .products = { { .w = w, .y = y, .y_stride = w->m } } };
        assert_ok(r.backend->ops->matmul(r.backend, &op, &err), err);
    }
    talk(&r, got);
    assert_memory_equal(got, want, LOGITS * VOCAB * sizeof *got);
    r.backend->ops->free(r.backend, x);
    rig_stop(&r);
    rig_spill = NULL;
    free(want);
    free(got);
}

/* Two models on one device: each has slots of its own, and steps take turns. */
static void two_models_stream_side_by_side(void **state)
{
    (void)state;
    struct tiny t[2] = { *kinds(0), *kinds(0) };
    struct spill spill[2];
    struct rig r[2];
    float *want[2], *got = calloc(LOGITS * VOCAB, sizeof *got);
    t[1].ffn_dim *= 2;
    setenv("HEARTH_EMULATED_LAZY", "2", 1);
    for (int i = 0; i < 2; i++) {
        want[i] = calloc(LOGITS * VOCAB, sizeof *want[i]);
        assert_true(want[i] && got);
        rig_start(&r[i], &t[i], true, DTYPE_F16);
        talk(&r[i], want[i]);
        rig_stop(&r[i]);
        spill[i] = spill_of(&t[i], 20000);
    }
    rig_spill = &spill[0];
    rig_start(&r[0], &t[0], true, DTYPE_F16);
    rig_spill = &spill[1];
    rig_start_on(&r[1], &t[1], r[0].backend, DTYPE_F16);
    for (int i = 0; i < 4; i++) {
        talk(&r[i % 2], got);
        assert_memory_equal(got, want[i % 2], LOGITS * VOCAB * sizeof *got);
    }
    uint64_t both = r[0].backend->spilled_bytes;
    rig_stop(&r[1]);
    assert_true(r[0].backend->spilled_bytes < both);
    talk(&r[0], got);
    assert_memory_equal(got, want[0], LOGITS * VOCAB * sizeof *got);
    struct backend *b = r[0].backend;
    r[0].borrowed = true;
    rig_stop(&r[0]);
    assert_int_equal(b->spilled_bytes, 0);
    backend_close(&b);
    rig_spill = NULL;
    free(want[0]);
    free(want[1]);
    free(got);
}

/* ---- the plan ---- */

static struct backend *open_with(uint64_t budget)
{
    struct err err = { 0 };
    const struct backend_options options = { .n_threads = 1, .budget_bytes = budget };
    struct backend *b = cuda_open("cuda", &options, &err);
    assert_non_null(b);
    return b;
}

/* Binds by the plan, on a device of its own (work space stays), and holds it to its word. */
static void load(uint64_t budget, const struct weights *w, const struct plan *p,
                 const struct plan_question *q)
{
    struct err err = { 0 };
    const struct model_options options = {
        .k_type = DTYPE_F16, .v_type = DTYPE_F16, .ctx_len = p->shape.ctx_len, .spill = &p->spill
    };
    struct state s;
    struct backend *b = open_with(budget);
    struct model *m = model_bind(w, b, &options, &err);
    if (!m) {
        fail_msg("%s", err.text);
    }
    void *memory = aligned_alloc(4096, (p->host_bytes + 4095) / 4096 * 4096);
    assert_non_null(memory);
    memset(memory, 0, p->host_bytes);
    assert_ok(state_init(&s, &m->kv, &p->shape, 1, memory, p->host_bytes, &err), err);
    struct forward *f = forward_create(m, b, p->rows_max, q->n_sequences, &err);
    assert_non_null(f);
    assert_ok(kvcache_place(&s.kv, b, &err), err);
    assert_int_equal(b->used_bytes + p->bytes[PLAN_MARGIN], p->total_bytes);
    assert_int_equal(b->spilled_bytes, p->host_weights_bytes);
    forward_destroy(&f);
    state_clear(&s);
    model_destroy(&m);
    assert_int_equal(b->spilled_bytes, 0);
    backend_close(&b);
    free(memory);
}

static void the_plan_spills_as_little_as_it_can(void **state)
{
    (void)state;
    struct err err = { 0 };
    struct weights w;
    struct plan whole, p;
    struct tiny t = tiny_default;
    const struct plan_question q = { .ctx_len = 64,
                                     .k_type = DTYPE_F16,
                                     .v_type = DTYPE_F16,
                                     .n_sequences = SEQUENCES,
                                     .state_bytes_max = 64 << 20 };
    uint64_t before = 0;
    uint32_t n_before = 0;
    t.n_layers = 12;
    t.untied = true;
    tiny_map(&t, &w);
    struct backend *b = open_with(0);
    assert_ok(plan_compute(&w, b, &q, &whole, &err), err);
    assert_int_equal(whole.host_weights_bytes, 0);
    assert_int_equal(whole.bytes[PLAN_RING], 0);
    load(b->budget_bytes, &w, &whole, &q);
    uint64_t page = whole.bytes[PLAN_KV] / whole.shape.n_pages;
    uint64_t least = whole.total_bytes - whole.bytes[PLAN_KV] + page; /* one context */
    uint64_t table = 4ull * t.dim * t.vocab_size, step = 16 << 10, seen = 0, saved = 0;
    for (uint64_t lacks = 0;;) {
        b->budget_bytes = least - lacks;
        if (plan_compute(&w, b, &q, &p, &err) < 0) {
            break;
        }
        saved = whole.bytes[PLAN_WORKSPACE] - p.bytes[PLAN_WORKSPACE];
        assert_true(p.total_bytes <= b->budget_bytes);
        assert_int_equal(p.shape.ctx_len, 64);
        assert_true(p.host_weights_bytes >= before); /* never less for a smaller device */
        assert_true(p.streamed_bytes <= whole.bytes[PLAN_WEIGHTS] / PLAN_STREAMED_SHARE);
        assert_int_equal(p.spill.tables, lacks > 0);
        assert_int_equal(p.spill.narrow, lacks > table);
        assert_int_equal(saved > 0, lacks > table);
        assert_int_equal(p.streamed_bytes > 0, lacks > table + saved);
        assert_int_equal(p.bytes[PLAN_RING], BACKEND_SLOTS * p.spill.slot_bytes);
        /* No more than is lacking, but for one matrix. */
        uint64_t gone = p.host_weights_bytes - p.bytes[PLAN_RING];
        assert_true(gone <= table || gone < lacks - saved + 2 * p.spill.slot_bytes);
        load(b->budget_bytes, &w, &p, &q);
        before = p.host_weights_bytes;
        n_before = n_streamed(&p.spill);
        lacks = lacks == 0              ? 1
                : lacks <= table        ? table + 1
                : lacks < table + saved ? table + saved + 1
                                        : lacks + step;
        seen++;
    }
    assert_true(seen > 8 && n_before > 4);
    assert_int_equal(err.code, ERR_NO_FIT); /* beyond a share that makes sense */
    backend_close(&b);
    weights_unmap(&w);
}

/* Beside another model it waits for its turn, and has the device to itself then. */
static void nothing_is_streamed_beside_another_model(void **state)
{
    (void)state;
    struct err err = { 0 };
    struct weights w;
    struct plan p;
    struct tiny t = tiny_default;
    const struct plan_question q = { .ctx_len = 64,
                                     .k_type = DTYPE_F16,
                                     .v_type = DTYPE_F16,
                                     .n_sequences = 1,
                                     .state_bytes_max = 64 << 20 };
    struct rig first;
    t.n_layers = 12;
    t.untied = true;
    rig_start(&first, kinds(0), true, DTYPE_F16);
    struct backend *b = first.backend;
    tiny_map(&t, &w);
    assert_ok(plan_compute(&w, b, &q, &p, &err), err);
    for (b->budget_bytes = p.total_bytes; plan_compute(&w, b, &q, &p, &err) == 0;
         b->budget_bytes -= 8192) {
        assert_int_equal(p.host_weights_bytes, 0);
    }
    assert_int_equal(err.code, ERR_NO_FIT);
    b->budget_bytes += first.m->kv.page_bytes; /* less than the other one takes */
    first.borrowed = true;
    rig_stop(&first);
    assert_ok(plan_compute(&w, b, &q, &p, &err), err);
    backend_close(&b);
    weights_unmap(&w);
}

static void a_context_is_shortened_before_weights_leave_and_not_below_what_is_useful(void **state)
{
    (void)state;
    struct err err = { 0 };
    struct weights w;
    struct plan whole, p;
    struct tiny t = tiny_default;
    struct plan_question q = { .ctx_len = 8192,
                               .k_type = DTYPE_F16,
                               .v_type = DTYPE_F16,
                               .n_sequences = 1,
                               .state_bytes_max = 64 << 20 };
    t.n_layers = 12;
    t.untied = true;
    t.dim = 512; /* weights large beside pages */
    t.ffn_dim = 2048;
    tiny_map(&t, &w);
    struct backend *b = open_with(0);
    assert_ok(plan_compute(&w, b, &q, &whole, &err), err);
    assert_int_equal(whole.shape.ctx_len, 8192);
    uint64_t position = whole.bytes[PLAN_KV] / 8192, fixed = whole.total_bytes - 8192 * position;
    b->budget_bytes = fixed + 4096 * position;
    assert_ok(plan_compute(&w, b, &q, &p, &err), err);
    assert_true(p.shape.ctx_len >= PLAN_CTX_LEAST && p.shape.ctx_len <= 4096);
    assert_int_equal(p.host_weights_bytes, 0);
    load(b->budget_bytes, &w, &p, &q);
    b->budget_bytes = fixed + 64 * position; /* today's worst: one page */
    assert_ok(plan_compute(&w, b, &q, &p, &err), err);
    assert_true(p.shape.ctx_len >= PLAN_CTX_LEAST && p.streamed_bytes > 0);
    load(b->budget_bytes, &w, &p, &q);
    q.ctx_len = 0; /* not asked for: not paid for */
    assert_ok(plan_compute(&w, b, &q, &p, &err), err);
    assert_int_equal(p.shape.ctx_len, p.train_ctx_len);
    backend_close(&b);
    weights_unmap(&w);
}

static void pinned_memory_that_is_refused_costs_nothing(void **state)
{
    (void)state;
    struct err err = { 0 };
    struct weights w;
    const struct spill some = spill_of(kinds(0), 20000);
    const struct model_options options = { .k_type = DTYPE_F16,
                                           .v_type = DTYPE_F16,
                                           .spill = &some };
    struct rig first;
    float before[VOCAB], after[VOCAB];
    setenv("HEARTH_EMULATED_LAZY", "1", 1);
    rig_start(&first, kinds(1), true, DTYPE_F16);
    uint32_t seq = rig_begin(&first, 1);
    rig_step(&first, &seq, 1, 0, 20, before);
    uint64_t used = first.backend->used_bytes;
    tiny_map(kinds(0), &w);
    setenv("HEARTH_EMULATED_HOST_BYTES", "40000000", 1); /* what is there, and some of it */
    struct model *m = NULL;
    for (uint64_t most = 1; !m; most += 16384) { /* every allocation in turn */
        char number[24];
        snprintf(number, sizeof number, "%llu", (unsigned long long)(38ull << 20) + most);
        setenv("HEARTH_EMULATED_HOST_BYTES", number, 1);
        m = model_bind(&w, first.backend, &options, &err);
        if (!m) {
            assert_int_equal(err.code, ERR_NO_MEMORY);
            assert_non_null(strstr(err.text, "pinned host memory"));
            assert_int_equal(first.backend->used_bytes, used);
            assert_int_equal(first.backend->spilled_bytes, 0);
        }
    }
    model_destroy(&m);
    unsetenv("HEARTH_EMULATED_HOST_BYTES");
    assert_ok(kvcache_truncate(&first.kv, seq, 0, &err), err);
    rig_step(&first, &seq, 1, 0, 20, after);
    assert_memory_equal(before, after, sizeof after);
    weights_unmap(&w);
    rig_stop(&first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streamed_weights_give_the_bits_of_resident_ones),
        cmocka_unit_test(any_number_of_columns_gives_the_same_bits),
        cmocka_unit_test(a_step_that_fails_on_its_way_leaves_no_wrong_slot),
        cmocka_unit_test(two_models_stream_side_by_side),
        cmocka_unit_test(nothing_is_streamed_beside_another_model),
        cmocka_unit_test(the_plan_spills_as_little_as_it_can),
        cmocka_unit_test(a_context_is_shortened_before_weights_leave_and_not_below_what_is_useful),
        cmocka_unit_test(pinned_memory_that_is_refused_costs_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
