/* Goal: the plan is what loading then takes, to the byte, on either backend; what does not fit is told before anything is
 * taken, and who is there already stays. */
#include "tests/cuda/rig.h"

#include "worker/plan.h"

#define SEQUENCES 3

static struct backend *open_backend(bool cuda, uint64_t budget)
{
    struct err err = { 0 };
    const struct backend_options options = { .n_threads = 1, .budget_bytes = budget };
    struct backend *b = cuda ? cuda_open("cuda", &options, &err)
                             : backend_open("cpu", &options, &err);
    assert_non_null(b);
    return b;
}

static struct plan_question question(uint32_t ctx, uint64_t state_bytes)
{
    return (struct plan_question){ .ctx_len = ctx,
                                   .k_type = DTYPE_F16,
                                   .v_type = DTYPE_F16,
                                   .n_sequences = SEQUENCES,
                                   .state_bytes_max = state_bytes };
}

/* What a worker does with a plan. Returns what the backend then uses; *host: the state's bytes. */
static uint64_t load(struct backend *b, const struct weights *w, const struct plan *p,
                     uint64_t *host)
{
    struct err err = { 0 };
    const struct model_options options = { .k_type = DTYPE_F16,
                                           .v_type = DTYPE_F16,
                                           .ctx_len = p->shape.ctx_len };
    struct state s;
    struct model *m = model_bind(w, b, &options, &err);
    assert_non_null(m);
    *host = state_size(&m->kv, &p->shape);
    void *memory = aligned_alloc(4096, (*host + 4095) / 4096 * 4096);
    assert_non_null(memory);
    memset(memory, 0, *host);
    assert_ok(state_init(&s, &m->kv, &p->shape, 1, memory, *host, &err), err);
    struct forward *f = forward_create(m, b, p->rows_max, SEQUENCES, &err);
    assert_non_null(f);
    assert_ok(kvcache_place(&s.kv, b, &err), err);
    uint64_t used = b->used_bytes;
    forward_destroy(&f);
    state_clear(&s);
    model_destroy(&m);
    free(memory);
    return used;
}

static void the_plan_is_what_loading_takes(void **state)
{
    (void)state;
    for (int cuda = 0; cuda < 2; cuda++) {
        for (uint32_t n_experts = 0; n_experts <= 4; n_experts += 4) {
            struct tiny t = tiny_default;
            struct weights w;
            struct plan p;
            struct err err = { 0 };
            uint64_t host;
            t.dtype = DTYPE_Q8_0;
            t.n_experts = n_experts;
            tiny_map(&t, &w);
            struct backend *b = open_backend(cuda, 0);
            uint64_t before = b->used_bytes;
            const struct plan_question q = question(200, 1 << 20);
            assert_ok(plan_compute(&w, b, &q, &p, &err), err);
            assert_int_equal(b->used_bytes, before); /* nothing was taken */
            assert_int_equal(p.bytes[PLAN_BEFORE], before);
            uint64_t used = load(b, &w, &p, &host);
            assert_int_equal(host, p.host_bytes);
            if (cuda) {
                assert_int_equal(used + p.bytes[PLAN_MARGIN], p.total_bytes);
            } else { /* weights stand in the segment, keys and values in the state's */
                assert_int_equal(used - before, p.bytes[PLAN_WORKSPACE]);
                assert_int_equal(w.header->data_bytes, p.bytes[PLAN_WEIGHTS]);
                assert_int_equal(host, p.bytes[PLAN_KV]);
            }
            backend_close(&b);
            weights_unmap(&w);
        }
    }
}

static void a_budget_shortens_the_context_and_then_refuses(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    struct weights w;
    struct plan whole, less, none;
    struct err err = { 0 };
    uint64_t host;
    tiny_map(&t, &w);
    struct backend *b = open_backend(true, 0);
    const struct plan_question q = question(4096, 64 << 20);
    assert_ok(plan_compute(&w, b, &q, &whole, &err), err);
    assert_int_equal(whole.shape.ctx_len, 4096);
    b->budget_bytes = whole.total_bytes - whole.bytes[PLAN_KV] * 5 / 6;
    assert_ok(plan_compute(&w, b, &q, &less, &err), err);
    assert_true(less.shape.ctx_len < 4096 && less.shape.ctx_len >= KV_PAGE_TOKENS);
    assert_true(less.total_bytes <= b->budget_bytes);
    assert_int_equal(load(b, &w, &less, &host) + less.bytes[PLAN_MARGIN], less.total_bytes);
    b->budget_bytes = whole.bytes[PLAN_BEFORE] + whole.bytes[PLAN_MARGIN]; /* nothing is left */
    assert_int_equal(plan_compute(&w, b, &q, &none, &err), -1);
    assert_int_equal(err.code, ERR_NO_FIT);
    /* a mirror's budget leaves pages out, not sequences */
    b->budget_bytes = 0;
    const struct plan_question narrow = question(4096, 1 << 20);
    assert_ok(plan_compute(&w, b, &narrow, &less, &err), err);
    assert_int_equal(less.shape.ctx_len, 4096);
    assert_true(less.shape.n_unmirrored > 0 && less.host_bytes <= 1 << 20);
    backend_close(&b);
    weights_unmap(&w);
}

/* The device's own word: a second model does not fit, the first goes on. */
static void running_out_of_memory_is_an_error_before_anything_is_lost(void **state)
{
    (void)state;
    struct tiny t = tiny_default, large = tiny_default;
    struct rig first;
    struct weights w;
    struct plan p;
    struct err err = { 0 };
    float before[80], after[80];
    large.ffn_dim *= 16;
    rig_start(&first, &t, true, DTYPE_F16);
    uint32_t seq = rig_begin(&first, 1);
    rig_step(&first, &seq, 1, 0, 20, before);
    tiny_map(&large, &w);
    first.backend->budget_bytes = first.backend->used_bytes + 4096;
    const struct plan_question q = question(256, 1 << 20);
    assert_int_equal(plan_compute(&w, first.backend, &q, &p, &err), -1);
    assert_int_equal(err.code, ERR_NO_FIT);
    const struct model_options options = { .k_type = DTYPE_F16, .v_type = DTYPE_F16 };
    assert_null(model_bind(&w, first.backend, &options, &err)); /* who does not ask is told, too */
    assert_int_equal(err.code, ERR_NO_MEMORY);
    assert_ok(kvcache_truncate(&first.kv, seq, 0, &err), err);
    rig_step(&first, &seq, 1, 0, 20, after);
    assert_memory_equal(before, after, sizeof after);
    weights_unmap(&w);
    rig_stop(&first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_plan_is_what_loading_takes),
        cmocka_unit_test(a_budget_shortens_the_context_and_then_refuses),
        cmocka_unit_test(running_out_of_memory_is_an_error_before_anything_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
