/* Goal: what a device computed survives its worker: the next one finds it in the mirror, a few tokens short at most, and
 * goes on with the same bits; what has not arrived is never believed. */
#include "tests/cuda/rig.h"

#include "worker/mirror.h"

#define VOCAB 80

/* What a worker that was killed leaves: nothing of the device, and the memory as it is. */
static void kill_and_adopt(struct rig *r)
{
    struct err err = { 0 };
    void *left = aligned_alloc(4096, (r->memory_bytes + 4095) / 4096 * 4096);
    assert_non_null(left);
    memcpy(left, r->memory, r->memory_bytes); /* before anything else can arrive */
    kvcache_clear(&r->kv);
    free(r->memory);
    r->memory = left;
    assert_ok(kvcache_adopt(&r->kv, &r->m->kv, r->memory, r->memory_bytes, &err), err);
    assert_ok(kvcache_place(&r->kv, r->backend, &err), err);
}

static void a_successor_goes_on_with_the_same_bits(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    struct rig r;
    float straight[VOCAB], after[VOCAB];
    t.dtype = DTYPE_Q8_0;
    rig_start(&r, &t, true, DTYPE_Q8_0);
    uint32_t seq = rig_begin(&r, 1);
    rig_step(&r, &seq, 1, 0, 40, straight);
    for (uint32_t i = 40; i < 100; i++) {
        rig_step(&r, &seq, 1, i, i + 1, straight);
    }
    kill_and_adopt(&r);
    int64_t found = kvcache_find(&r.kv, (struct kvcache_tag){ .lo = 1 });
    assert_int_equal(found, seq);
    int64_t pos = kvcache_pos(&r.kv, seq);
    assert_true(pos >= 100 - 3 * KV_TILE && pos <= 100);
    for (uint32_t i = (uint32_t)pos; i < 100; i++) {
        rig_step(&r, &seq, 1, i, i + 1, after);
    }
    assert_memory_equal(straight, after, sizeof after);
    rig_stop(&r);
}

static void nothing_is_believed_before_it_arrives(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    struct rig r;
    struct err err = { 0 };
    float logits[VOCAB];
    rig_start(&r, &t, true, DTYPE_F16);
    uint32_t seq = rig_begin(&r, 1);
    rig_step(&r, &seq, 1, 0, 40, logits); /* sent, and lies in the queue */
    assert_int_equal(kvcache_pos(&r.kv, seq), 40);
    assert_int_equal(atomic_load(&r.kv.seqs[seq].committed), 0);
    assert_ok(kvcache_send(&r.kv, seq, true, &err), err);
    assert_int_equal(atomic_load(&r.kv.seqs[seq].committed) >> 1, 40);
    rig_step(&r, &seq, 1, 40, 60, logits);
    assert_ok(kvcache_truncate(&r.kv, seq, 30, &err), err);
    assert_int_equal(atomic_load(&r.kv.seqs[seq].committed) >> 1, 30);
    kill_and_adopt(&r);
    assert_int_equal(kvcache_pos(&r.kv, seq), 30);
    rig_stop(&r);
}

static void shared_prefixes_survive(void **state)
{
    (void)state;
    struct tiny t = tiny_default;
    struct rig r;
    struct err err = { 0 };
    float straight[VOCAB], after[VOCAB];
    uint32_t n;
    rig_start(&r, &t, true, DTYPE_F16);
    uint32_t a = rig_begin(&r, 1);
    for (uint32_t i = 0; i < 80; i += 40) {
        rig_step(&r, &a, 1, i, i + 40, straight);
    }
    uint32_t b = rig_begin(&r, 2);
    assert_ok(kvcache_copy_prefix(&r.kv, b, a, 80, &n, &err), err);
    assert_int_equal(n, 64);
    assert_int_equal(atomic_load(&r.kv.seqs[b].committed) >> 1, 64);
    /* back into the shared page: it is copied, here and there */
    assert_ok(kvcache_truncate(&r.kv, b, 50, &err), err);
    rig_step(&r, &b, 1, 50, 70, straight);
    assert_ok(kvcache_send(&r.kv, b, true, &err), err);
    kill_and_adopt(&r);
    assert_int_equal(kvcache_pos(&r.kv, b), 70);
    assert_ok(kvcache_truncate(&r.kv, b, 69, &err), err);
    rig_step(&r, &b, 1, 69, 70, after);
    /* decode and prefill of the position differ by rounding */
    twins_compare(after, straight, VOCAB, 2e-2, "logits");
    rig_stop(&r);
}

/* One sequence of a layout with states, on a device, as bytes. */
struct bare {
    struct kv_layer layer;
    struct kv_layout layout;
    struct backend *backend;
    struct kvcache kv;
    uint8_t *memory;
    size_t size;
};

static void bare_start(struct bare *b, uint64_t state_bytes, uint32_t n_host_pages)
{
    struct err err = { 0 };
    const struct backend_options options = { .n_threads = 1 };
    *b = (struct bare){ .layer = { .n_kv_heads = 2,
                                   .k_dim = 16,
                                   .v_dim = 16,
                                   .k_row_bytes = 32,
                                   .v_row_bytes = 32,
                                   .v_off = 4096 } };
    b->layout = (struct kv_layout){ .k_type = DTYPE_F16,
                                    .v_type = DTYPE_F16,
                                    .n_layers = 1,
                                    .page_bytes = 8192,
                                    .state_bytes = state_bytes,
                                    .fingerprint = 5,
                                    .layer = &b->layer };
    b->backend = cuda_open("cuda", &options, &err);
    assert_non_null(b->backend);
    b->size = kvcache_mirror_size(&b->layout, n_host_pages, 2, 1024);
    b->memory = aligned_alloc(4096, (b->size + 4095) / 4096 * 4096);
    assert_non_null(b->memory);
    assert_ok(kvcache_init_mirror(&b->kv, &b->layout, b->memory, b->size, 16, n_host_pages, 2, 1024,
                                  &err),
              err);
    assert_ok(kvcache_place(&b->kv, b->backend, &err), err);
}

static void bare_stop(struct bare *b)
{
    kvcache_clear(&b->kv);
    backend_close(&b->backend);
    free(b->memory);
}

/* A step of n positions whose pages and state are filled with its number. */
static void fill(struct bare *b, uint32_t seq, uint32_t n, int value)
{
    struct err err = { 0 };
    uint8_t bytes[8192];
    memset(bytes, value, sizeof bytes);
    assert_ok(kvcache_reserve(&b->kv, seq, n, &err), err);
    const uint32_t *table = kvcache_table(&b->kv, seq);
    for (int64_t page = kvcache_pos(&b->kv, seq) / KV_PAGE_TOKENS;
         page * KV_PAGE_TOKENS < kvcache_pos(&b->kv, seq) + n; page++) {
        assert_ok(b->backend->ops->upload(b->backend, kvcache_pages(&b->kv) + table[page] * 8192ull,
                                          bytes, sizeof bytes, &err),
                  err);
    }
    if (b->layout.state_bytes) {
        assert_ok(b->backend->ops->upload(b->backend, kvcache_state(&b->kv, seq, true), bytes,
                                          b->layout.state_bytes, &err),
                  err);
    }
    kvcache_commit(&b->kv, seq, n);
    assert_ok(kvcache_send(&b->kv, seq, false, &err), err);
}

static void a_recurrent_state_comes_with_its_position(void **state)
{
    (void)state;
    struct bare b;
    struct err err = { 0 };
    struct kvcache next;
    uint8_t bytes[128];
    uint32_t seq;
    bare_start(&b, 128, 16);
    assert_ok(kvcache_begin(&b.kv, (struct kvcache_tag){ .lo = 9 }, 0, &seq, &err), err);
    fill(&b, seq, 100, 1);
    assert_int_equal(atomic_load(&b.kv.seqs[seq].committed) >> 1, 0); /* not worth sending yet */
    fill(&b, seq, MIRROR_STATE_TOKENS - 100, 2);
    fill(&b, seq, 10, 3);
    fill(&b, seq, 10, 4);
    assert_ok(kvcache_send(&b.kv, seq, false, &err), err);
    assert_int_equal(kvcache_pos(&b.kv, seq), MIRROR_STATE_TOKENS + 20);
    uint8_t *left = aligned_alloc(4096, (b.size + 4095) / 4096 * 4096);
    assert_non_null(left);
    memcpy(left, b.memory, b.size);
    assert_ok(kvcache_adopt(&next, &b.layout, left, b.size, &err), err);
    assert_ok(kvcache_place(&next, b.backend, &err), err);
    assert_int_equal(kvcache_pos(&next, seq), MIRROR_STATE_TOKENS);
    assert_ok(b.backend->ops->download(b.backend, bytes, kvcache_state(&next, seq, false),
                                       sizeof bytes, &err),
              err);
    assert_int_equal(bytes[0], 2);
    assert_int_equal(bytes[127], 2);
    kvcache_clear(&next);
    free(left);
    /* at rest the last one goes, too */
    assert_ok(kvcache_send(&b.kv, seq, true, &err), err);
    assert_int_equal(atomic_load(&b.kv.seqs[seq].committed) >> 1, MIRROR_STATE_TOKENS + 20);
    bare_stop(&b);
}

static void a_step_in_vain_is_taken_back(void **state)
{
    (void)state;
    for (uint64_t state_bytes = 0; state_bytes <= 128; state_bytes += 128) {
        struct bare b;
        struct err err = { 0 };
        uint8_t bytes[128];
        uint32_t seq;
        bare_start(&b, state_bytes, 16);
        assert_ok(kvcache_begin(&b.kv, (struct kvcache_tag){ .lo = 9 }, 0, &seq, &err), err);
        fill(&b, seq, KV_PAGE_TOKENS, 1);
        uint32_t n_free = b.kv.n_free;
        for (int value = 2; value < 4; value++) {
            fill(&b, seq, 1, value); /* on a page of its own */
            assert_int_equal(b.kv.n_free, n_free - 1);
            assert_ok(kvcache_take_back(&b.kv, seq, &err), err);
            assert_int_equal(b.kv.n_free, n_free);
            assert_int_equal(kvcache_pos(&b.kv, seq), KV_PAGE_TOKENS);
            if (state_bytes) {
                assert_ok(b.backend->ops->download(b.backend, bytes,
                                                   kvcache_state(&b.kv, seq, false), 128, &err),
                          err);
                assert_int_equal(bytes[127], 1);
            }
        }
        assert_ok(kvcache_send(&b.kv, seq, true, &err), err);
        assert_int_equal(atomic_load(&b.kv.seqs[seq].committed) >> 1, KV_PAGE_TOKENS);
        bare_stop(&b);
    }
}

static void a_mirror_keeps_what_its_budget_holds(void **state)
{
    (void)state;
    struct bare b;
    struct err err = { 0 };
    uint32_t seq;
    bare_start(&b, 0, 2);
    assert_ok(kvcache_begin(&b.kv, (struct kvcache_tag){ .lo = 9 }, 0, &seq, &err), err);
    for (int i = 1; i <= 5; i++) {
        fill(&b, seq, KV_PAGE_TOKENS, i);
    }
    assert_ok(kvcache_send(&b.kv, seq, true, &err), err);
    assert_int_equal(kvcache_pos(&b.kv, seq), 5 * KV_PAGE_TOKENS);
    assert_int_equal(atomic_load(&b.kv.seqs[seq].committed) >> 1, 2 * KV_PAGE_TOKENS);
    assert_int_equal(b.kv.pages[8192], 2);
    bare_stop(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_successor_goes_on_with_the_same_bits),
        cmocka_unit_test(nothing_is_believed_before_it_arrives),
        cmocka_unit_test(shared_prefixes_survive),
        cmocka_unit_test(a_recurrent_state_comes_with_its_position),
        cmocka_unit_test(a_step_in_vain_is_taken_back),
        cmocka_unit_test(a_mirror_keeps_what_its_budget_holds),
    };
    setenv("HEARTH_EMULATED_LAZY", "1", 1); /* a wait that is missing shows */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
