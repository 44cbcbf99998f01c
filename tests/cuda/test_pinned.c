/* Goal: weights that stay in RAM are registered with the device once, and every bind after that moves them without the host: the
 * same bits, no further registration; what is refused takes the host's ring; nothing is unmapped before it is given back. */
#include "tests/cuda/rig.h"

#include "tests/cuda/emulate_counts.h"

#define VOCAB 80
#define PIECE 16384u /* pinned.cu, as it is compiled for tests */

static const struct tiny *large(enum dtype dtype)
{
    static struct tiny t;
    t = tiny_default;
    t.ffn_dim = 256;
    t.dtype = dtype;
    return &t;
}

/* One bind and a few steps; what is counted in it. */
static struct emulate_counts bind_and_answer(struct rig *r, float *logits)
{
    struct emulate_counts before = emulate_counted(), after;
    rig_bind(r, DTYPE_F16);
    uint32_t seq = rig_begin(r, 1);
    rig_step(r, &seq, 1, 0, 20, logits);
    rig_step(r, &seq, 1, 20, 21, logits);
    rig_unbind(r);
    after = emulate_counted();
    after.n_registered -= before.n_registered;
    after.n_direct -= before.n_direct;
    after.direct_bytes -= before.direct_bytes;
    return after;
}

static void open_rig(struct rig *r, const struct tiny *t)
{
    struct err err = { 0 };
    const struct backend_options options = { .n_threads = 1 };
    *r = (struct rig){ .backend = cuda_open("cuda", &options, &err) };
    assert_non_null(r->backend);
    tiny_map(t, &r->w);
}

/* Bytes of all tensors. */
static uint64_t tensor_bytes(const struct weights *w)
{
    uint64_t n = 0;
    for (size_t i = 0; i < w->n_tensors; i++) {
        n += w->tensors[i].size_bytes;
    }
    return n;
}

static void a_swap_registers_nothing_and_has_the_same_bits(void **state)
{
    (void)state;
    static const enum dtype dtypes[] = { DTYPE_Q8_0, DTYPE_F16, DTYPE_F32 };
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        struct rig r;
        float by_ring[VOCAB], direct[VOCAB];
        open_rig(&r, large(dtypes[d]));
        uint64_t pieces = (r.w.size + PIECE - 1) / PIECE;
        assert_true(pieces > 3);
        assert_int_equal(bind_and_answer(&r, by_ring).n_direct, 0); /* the first one */
        uint64_t before = emulate_counted().n_registered,
                 mirrors = emulate_counted().registered_bytes;
        rig_pin(&r, r.w.size);
        assert_int_equal(emulate_counted().n_registered - before, pieces);
        for (int swap = 0; swap < 3; swap++) {
            rig_pin(&r, r.w.size); /* said again: nothing */
            struct emulate_counts n = bind_and_answer(&r, direct);
            assert_int_equal(n.direct_bytes, tensor_bytes(&r.w));
            assert_memory_equal(direct, by_ring, sizeof direct);
            before = emulate_counted().n_registered;
        }
        rig_unpin(&r);
        assert_int_equal(emulate_counted().registered_bytes, mirrors);
        assert_int_equal(bind_and_answer(&r, direct).n_direct, 0);
        assert_memory_equal(direct, by_ring, sizeof direct);
        backend_close(&r.backend);
        weights_unmap(&r.w);
    }
}

/* While the registration is under way, and where it is refused in the middle: each tensor goes the way that is open to it. */
static void what_is_not_registered_takes_the_ring(void **state)
{
    (void)state;
    struct rig r;
    float by_ring[VOCAB], mixed[VOCAB];
    open_rig(&r, large(DTYPE_Q8_0));
    (void)bind_and_answer(&r, by_ring);
    setenv("HEARTH_EMULATED_REGISTER", "70000", 1);
    rig_pin(&r, 4 * PIECE);
    struct emulate_counts n = bind_and_answer(&r, mixed);
    assert_true(n.direct_bytes > 0 && n.direct_bytes < tensor_bytes(&r.w));
    assert_memory_equal(mixed, by_ring, sizeof mixed);
    assert_int_equal(r.backend->ops->pinned(r.backend, r.w.base), 4 * PIECE);
    unsetenv("HEARTH_EMULATED_REGISTER");
    rig_unpin(&r);
    for (int i = 0; i < 20; i++) { /* at any moment of it */
        r.backend->ops->pin(r.backend, r.w.base, r.w.size);
        (void)bind_and_answer(&r, mixed);
        assert_memory_equal(mixed, by_ring, sizeof mixed);
        rig_unpin(&r);
    }
    assert_int_equal(emulate_counted().registered_bytes, 0);
    backend_close(&r.backend);
    weights_unmap(&r.w);
}

/* Rows as a CPU wants them go through the host, which picks them out. */
static void rows_of_a_cpu_take_the_ring(void **state)
{
    (void)state;
    struct rig r;
    float before[VOCAB], after[VOCAB];
    open_rig(&r, large(DTYPE_Q8_0));
    rig_pin(&r, r.w.size);
    (void)bind_and_answer(&r, before);
    for (size_t i = 0; i < r.w.n_tensors; i++) {
        struct weights_tensor *t = &r.w.tensors[i];
        t->layout = t->ne[1] < 16 ? WEIGHTS_LAYOUT_ROWS16
                                  : t->layout; /* no whole group: the rows stand as they did */
    }
    struct emulate_counts n = bind_and_answer(&r, after);
    assert_true(n.direct_bytes > 0 && n.direct_bytes < tensor_bytes(&r.w));
    assert_memory_equal(before, after, sizeof before);
    backend_close(&r.backend); /* gives back by itself */
    weights_unmap(&r.w);
    assert_int_equal(emulate_counted().registered_bytes, 0);
}

/* Copies that happen late read the segment then: nothing may have let go of it. */
static void late_copies_find_what_they_read(void **state)
{
    for (int i = 0; i < 2; i++) {
        setenv("HEARTH_EMULATED_LAZY", i ? "2" : "1",
               1); /* 2: a copy runs as far ahead as it may */
        a_swap_registers_nothing_and_has_the_same_bits(state);
        what_is_not_registered_takes_the_ring(state);
    }
    unsetenv("HEARTH_EMULATED_LAZY");
}

/* Uploads beside a registration that begins, grows and ends. No kernel runs here, so that the thread sanitizer can look on (it cannot
 * follow the emulation's threads): build with it, and name this test. */
static void two_threads_agree(void **state)
{
    (void)state;
    struct rig r;
    struct err err = { 0 };
    const struct model_options options = { .k_type = DTYPE_F16,
                                           .v_type = DTYPE_F16,
                                           .ctx_len = 64 };
    open_rig(&r, large(DTYPE_F32));
    for (int i = 0; i < 200; i++) {
        r.backend->ops->pin(r.backend, r.w.base, r.w.size);
        r.m = model_bind(&r.w, r.backend, &options, &err);
        assert_non_null(r.m);
        assert_ok(r.backend->ops->arrived(r.backend, r.w.base, r.w.size, UINT64_MAX, &err), err);
        assert_ok(r.backend->ops->finish(r.backend, &err), err);
        model_destroy(&r.m);
        if (i % 3) {
            rig_unpin(&r);
        }
    }
    backend_close(&r.backend);
    weights_unmap(&r.w);
    assert_int_equal(emulate_counted().registered_bytes, 0);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_swap_registers_nothing_and_has_the_same_bits),
        cmocka_unit_test(what_is_not_registered_takes_the_ring),
        cmocka_unit_test(rows_of_a_cpu_take_the_ring),
        cmocka_unit_test(late_copies_find_what_they_read),
        cmocka_unit_test(two_threads_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
