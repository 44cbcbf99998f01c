/* Goal: a step sent as one graph gives the bits of its kernels launched one by one, whatever changed since the graph was
 * made, and where no graph can be had steps go on. */
#include "tests/cuda/rig.h"

#define STEPS 80 /* beyond one page: its tables change on the way */

/* The cache anew, at other addresses on the device: every launch that names its pages changes. */
#define BLOCKS 64

struct in_the_way {
    void *blocks[BLOCKS];
    int n;
};

static void move_pages(struct rig *r, struct in_the_way *in)
{
    struct err err = { 0 };
    for (uint32_t s = 0; s < 2; s++) {
        assert_ok(kvcache_send(&r->kv, s, true, &err), err);
    }
    size_t size = r->kv.header->n_pages * r->kv.header->page_bytes;
    void *old = kvcache_pages(&r->kv);
    kvcache_clear(&r->kv);
    do { /* until the old place is taken */
        in->blocks[in->n] = r->backend->ops->alloc(r->backend, size, &err);
        assert_non_null(in->blocks[in->n]);
    } while (in->blocks[in->n++] != old && in->n < BLOCKS);
    assert_ok(kvcache_adopt(&r->kv, &r->m->kv, r->memory, r->memory_bytes, &err), err);
    assert_ok(kvcache_place(&r->kv, r->backend, &err), err);
    assert_ptr_not_equal(kvcache_pages(&r->kv), old);
}

static void decode(struct rig *r, uint32_t n_seqs, float *logits)
{
    uint32_t seqs[2], vocab = tiny_default.vocab_size;
    struct in_the_way in_the_way = { .n = 0 };
    for (uint32_t s = 0; s < n_seqs; s++) {
        seqs[s] = rig_begin(r, s + 1);
        rig_step(r, &seqs[s], 1, 0, 5 + s, logits);
    }
    for (uint32_t i = 0; i < STEPS; i++) {
        for (uint32_t s = 0; s < n_seqs; s++) { /* one by one, and every third together */
            if (i % 3 != 2) {
                rig_step(r, &seqs[s], 1, 5 + s + i, 6 + s + i, logits + (i * 2ull + s) * vocab);
            }
        }
        if (i % 3 == 2) {
            rig_step_at(r, seqs, n_seqs, 5 + i, logits + i * 2ull * vocab);
        }
        if (i == STEPS / 2) {
            move_pages(r, &in_the_way);
        }
    }
    for (int i = 0; i < in_the_way.n; i++) {
        r->backend->ops->free(r->backend, in_the_way.blocks[i]);
    }
}

static void graphs_give_the_bits_of_launches(void **state)
{
    (void)state;
    size_t n = 2ull * STEPS * tiny_default.vocab_size;
    float *logits[2] = { calloc(n, sizeof(float)), calloc(n, sizeof(float)) };
    assert_true(logits[0] && logits[1]);
    for (int graphs = 0; graphs < 2; graphs++) {
        struct tiny t = tiny_default;
        struct rig r;
        t.dtype = DTYPE_Q8_0;
        setenv("HEARTH_EMULATED_GRAPHS", graphs ? "1" : "0", 1);
        rig_start(&r, &t, true, DTYPE_F16);
        decode(&r, 2, logits[graphs]);
        struct cuda_step_counts counts = cuda_step_counted(r.backend);
        if (graphs) {
            assert_true(counts.n_graphs >= 2);
            assert_true(counts.n_launched > STEPS);
            assert_true(counts.n_plain <= 12); /* what was seen once, and the first step's pieces */
            assert_true(counts.n_nodes_set > 0);
        } else {
            assert_int_equal(counts.n_launched, 0);
        }
        rig_stop(&r);
    }
    setenv("HEARTH_EMULATED_GRAPHS", "1", 1);
    assert_memory_equal(logits[0], logits[1], n * sizeof(float));
    free(logits[0]);
    free(logits[1]);
}

/* A second model on the device takes more work space: graphs of the first must not point at the old one. */
static void a_second_model_leaves_the_first_ones_graphs_right(void **state)
{
    (void)state;
    struct tiny t = tiny_default, large = tiny_default;
    struct rig first, second;
    uint32_t vocab = t.vocab_size;
    float *alone = calloc(vocab, sizeof *alone), *beside = calloc(vocab, sizeof *beside);
    assert_true(alone && beside);
    t.dtype = large.dtype = DTYPE_Q8_0;
    large.ffn_dim *= 4;
    rig_start(&first, &t, true, DTYPE_F16);
    uint32_t seq = rig_begin(&first, 1);
    for (uint32_t i = 0; i < 8; i++) {
        rig_step(&first, &seq, 1, i, i + 1, alone);
    }
    uint64_t used = first.backend->used_bytes;
    rig_start_on(&second, &large, first.backend, DTYPE_F16);
    assert_true(first.backend->used_bytes > used);
    struct err err = { 0 };
    assert_ok(kvcache_truncate(&first.kv, seq, 7, &err), err);
    rig_step(&first, &seq, 1, 7, 8, beside);
    assert_memory_equal(alone, beside, vocab * sizeof *alone);
    rig_stop(&second);
    assert_ok(kvcache_truncate(&first.kv, seq, 7, &err), err);
    rig_step(&first, &seq, 1, 7, 8, beside);
    assert_memory_equal(alone, beside, vocab * sizeof *alone);
    rig_stop(&first);
    free(alone);
    free(beside);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(graphs_give_the_bits_of_launches),
        cmocka_unit_test(a_second_model_leaves_the_first_ones_graphs_right),
    };
    setenv("HEARTH_EMULATED_LAZY", "1", 1); /* a wait that is missing shows */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
