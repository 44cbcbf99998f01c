/* The state segment: what a successor believes, whose it is, what goes first. No model: positions are committed by hand. */
#include "tests/test.h"

#include <sys/stat.h>
#include <unistd.h>

#include "proto/shm.h"
#include "worker/prefix.h"
#include "worker/state.h"

#define CTX 256

static struct kv_layer layer = { .n_kv_heads = 1, .k_dim = 32, .v_dim = 32 };
static struct kv_layout layout;
static const struct state_shape shape = { .max_seqs = 4, .ctx_len = CTX, .n_pages = 8 };
static void *memory;
static size_t bytes;
static struct state state;

static int open_state(void **unused)
{
    (void)unused;
    struct err err;
    layout = (struct kv_layout){ .k_type = DTYPE_F16,
                                 .v_type = DTYPE_F16,
                                 .n_layers = 1,
                                 .page_bytes = 8192,
                                 .fingerprint = 5,
                                 .layer = &layer };
    bytes = state_size(&layout, &shape);
    memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    memset(memory, 0, bytes);
    return state_init(&state, &layout, &shape, 77, memory, bytes, &err);
}

static int close_state(void **unused)
{
    (void)unused;
    state_clear(&state);
    free(memory);
    return 0;
}

static struct kvcache_tag tag(uint64_t n)
{
    return (struct kvcache_tag){ .hi = n, .lo = n };
}

/* Feeds tokens to a request as a step would; returns its slot. */
static uint32_t feed(uint64_t shard, uint64_t name, const int32_t *tokens, uint32_t n,
                     uint32_t *n_cached)
{
    struct err err;
    uint32_t seq;
    assert_ok(prefix_begin(&state, shard, tag(name), tokens, n, &seq, n_cached, &err), err);
    int64_t pos = kvcache_pos(&state.kv, seq);
    assert_int_equal(pos, *n_cached);
    uint32_t left = n - (uint32_t)pos;
    while (kvcache_reserve(&state.kv, seq, left, &err) < 0) {
        assert_int_equal(err.code, ERR_FULL);
        assert_true(state_evict(&state));
    }
    memcpy(state_tokens(&state, seq) + pos, tokens + pos, left * sizeof *tokens);
    kvcache_commit(&state.kv, seq, left);
    return seq;
}

static const int32_t *text(uint32_t variant, uint32_t from)
{
    static int32_t tokens[8][CTX];
    for (uint32_t i = 0; i < CTX; i++) {
        tokens[variant][i] = (int32_t)(i < from ? i : i + 1000 * (variant + 1));
    }
    return tokens[variant];
}

static void a_prefix_is_shared_by_whole_pages_inside_a_shard(void **unused)
{
    (void)unused;
    uint32_t n;
    uint32_t a = feed(1, 1, text(0, CTX), 150, &n);
    assert_int_equal(n, 0);
    uint32_t b = feed(2, 2, text(0, CTX), 150, &n); /* another principal */
    assert_int_equal(n, 0);
    state_drop(&state, b);
    b = feed(1, 3, text(0, CTX), 150, &n); /* the first is still in use: its pages are shared */
    assert_int_equal(n, 128);
    assert_int_not_equal(a, b);
    assert_int_equal(kvcache_table(&state.kv, a)[1], kvcache_table(&state.kv, b)[1]);
    assert_int_not_equal(kvcache_table(&state.kv, a)[2], kvcache_table(&state.kv, b)[2]);
}

static void a_conversation_goes_on_where_it_was(void **unused)
{
    (void)unused;
    uint32_t n;
    uint32_t a = feed(1, 1, text(0, CTX), 100, &n);
    state_idle(&state, a);
    uint32_t b = feed(1, 2, text(0, CTX), 140, &n);
    assert_int_equal(b, a); /* taken over, in the middle of a page */
    assert_int_equal(n, 100);
    state_idle(&state, b);
    b = feed(1, 3, text(0, CTX), 140, &n); /* the last token is always fed: its logits are wanted */
    assert_int_equal(n, 128);
    b = feed(1, 4, text(1, 70), 90, &n); /* differs from 70 on: the old one is kept */
    assert_int_equal(n, 64);
    assert_int_equal(kvcache_pos(&state.kv, a), 140);
}

static void a_successor_believes_what_was_committed(void **unused)
{
    (void)unused;
    struct err err;
    uint32_t n;
    uint32_t a = feed(1, 1, text(0, CTX), 100, &n);
    /* A step that never ended: tokens and pages are there, the commit is not. */
    assert_ok(kvcache_reserve(&state.kv, a, 60, &err), err);
    memcpy(state_tokens(&state, a) + 100, text(3, 0) + 100, 60 * sizeof(int32_t));
    uint32_t eval;
    assert_ok(state_begin(&state, STATE_SHARD_NONE, tag(9), 0, &eval, &err), err);
    state_clear(&state);
    assert_ok(state_adopt(&state, &layout, &shape, 77, memory, bytes, &err), err);
    assert_false(state_in_use(&state, eval)); /* nobody's */
    uint32_t b = feed(1, 1, text(0, CTX), 101, &n);
    assert_int_equal(b, a);
    assert_int_equal(n, 100);
    /* It died after the step and before the record: the last token is fed again. */
    state_clear(&state);
    assert_ok(state_adopt(&state, &layout, &shape, 77, memory, bytes, &err), err);
    b = feed(1, 1, text(0, CTX), 101, &n);
    assert_int_equal(b, a);
    assert_int_equal(n, 100);
    state_clear(&state);
    assert_int_equal(-1, state_adopt(&state, &layout, &shape, 78, memory, bytes, &err));
    assert_int_equal(err.code, ERR_CHANGED);
    assert_ok(state_init(&state, &layout, &shape, 77, memory, bytes, &err), err);
    feed(1, 1, text(0, CTX), 101, &n);
    assert_int_equal(n, 0);
}

static void the_least_recently_used_goes_first(void **unused)
{
    (void)unused;
    struct err err;
    uint32_t n, seq[4];
    for (uint32_t i = 0; i < 4; i++) {
        seq[i] = feed(1, i + 1, text(i, 0), 70, &n);
    }
    uint32_t none;
    assert_int_equal(-1, state_begin(&state, 1, tag(9), 0, &none, &err)); /* all are busy */
    assert_int_equal(err.code, ERR_FULL);
    assert_false(state_evict(&state));
    state_idle(&state, seq[2]);
    state_idle(&state, seq[0]);
    assert_ok(state_begin(&state, 1, tag(9), 0, &none, &err), err);
    assert_int_equal(none, seq[2]);
    assert_true(state_in_use(&state, seq[0]));
    assert_true(state_evict(&state));
    assert_false(state_in_use(&state, seq[0]));
}

static void a_shape_fits_what_is_allowed(void **unused)
{
    (void)unused;
    struct err err;
    struct state_shape s;
    assert_ok(state_fit(&layout, 4, 1024, 1 << 30, &s, &err), err);
    assert_int_equal(s.ctx_len, 1024);
    assert_int_equal(s.n_pages, 64);
    assert_ok(state_fit(&layout, 4, 1024, 400 << 10, &s, &err), err);
    assert_int_equal(s.ctx_len, 1024);
    assert_in_range(s.n_pages, 16, 63);
    assert_true(state_size(&layout, &s) <= 400 << 10);
    assert_ok(state_fit(&layout, 4, 1 << 20, 400 << 10, &s, &err), err);
    assert_true(s.ctx_len < 4096 && s.ctx_len >= 512);
    assert_true(state_size(&layout, &s) <= 400 << 10);
    assert_int_equal(-1, state_fit(&layout, 4, 1024, 4096, &s, &err));
    assert_int_equal(err.code, ERR_NO_FIT);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_state, close_state)

/* A segment of gigabytes costs nothing until sequences grow into it. */
static void memory_comes_with_the_pages_taken(void **unused)
{
    (void)unused;
    struct err err;
    struct state s;
    struct stat st;
    uint32_t seq;
    const struct state_shape wide = { .max_seqs = 2, .ctx_len = 1 << 17, .n_pages = 4096 };
    uint64_t size = state_size(&layout, &wide);
    int fd = shm_create_sparse("state", size, &err);
    assert_true(fd >= 0);
    size_t mapped;
    void *base = shm_map(fd, true, &mapped, &err);
    assert_non_null(base);
    assert_ok(state_init(&s, &layout, &wide, 77, base, mapped, &err), err);
    assert_int_equal(fstat(fd, &st), 0);
    uint64_t before = (uint64_t)st.st_blocks * 512;
    assert_true(before < size / 8);
    assert_ok(state_begin(&s, 1, tag(1), 0, &seq, &err), err);
    assert_ok(kvcache_reserve(&s.kv, seq, 1000, &err), err);
    assert_int_equal(fstat(fd, &st), 0);
    uint64_t pages = kvcache_pages_for(1000) * layout.page_bytes, tokens = (1 << 17) * 4;
    assert_true((uint64_t)st.st_blocks * 512 >= before + pages);
    assert_true((uint64_t)st.st_blocks * 512 <= before + pages + tokens + 16384);
    state_clear(&s);
    shm_unmap(base, mapped);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_prefix_is_shared_by_whole_pages_inside_a_shard),
        TEST(a_conversation_goes_on_where_it_was),
        TEST(a_successor_believes_what_was_committed),
        TEST(the_least_recently_used_goes_first),
        cmocka_unit_test(memory_comes_with_the_pages_taken),
        TEST(a_shape_fits_what_is_allowed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
