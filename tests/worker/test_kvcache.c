/* Pages: reserving, sharing, rewinding, and taking over what a dead worker left. */
#include "tests/test.h"
#include "worker/kvcache.h"

#define PAGES  6
#define SEQS   3
#define CTX    256
#define HALF   (KV_PAGE_TOKENS / 2)
#define TAG(n) ((struct kvcache_tag){ .hi = 7, .lo = (n) })

static struct kv_layer layer = {
    .n_kv_heads = 1, .k_dim = 16, .v_dim = 16, .k_row_bytes = 32, .v_row_bytes = 32, .v_off = 2048
};

struct fixture {
    struct kv_layout layout;
    void *memory;
    size_t size;
    struct kvcache kv;
};

static void start(struct fixture *f, uint64_t state_bytes)
{
    struct err err = { 0 };
    f->layout = (struct kv_layout){ .k_type = DTYPE_F16,
                                    .v_type = DTYPE_F16,
                                    .n_layers = 1,
                                    .page_bytes = 4096,
                                    .state_bytes = state_bytes,
                                    .fingerprint = 99,
                                    .layer = &layer };
    f->size = kvcache_size(&f->layout, PAGES, SEQS, CTX);
    f->memory = aligned_alloc(4096, (f->size + 4095) / 4096 * 4096);
    assert_non_null(f->memory);
    memset(f->memory, 0, f->size);
    assert_ok(kvcache_init(&f->kv, &f->layout, f->memory, f->size, PAGES, SEQS, CTX, &err), err);
}

static void stop(struct fixture *f)
{
    kvcache_clear(&f->kv);
    free(f->memory);
}

static uint32_t begin(struct fixture *f, uint64_t tag)
{
    struct err err = { 0 };
    uint32_t seq;
    assert_ok(kvcache_begin(&f->kv, TAG(tag), 0, &seq, &err), err);
    return seq;
}

static void grow(struct fixture *f, uint32_t seq, uint32_t n)
{
    struct err err = { 0 };
    assert_ok(kvcache_reserve(&f->kv, seq, n, &err), err);
    kvcache_commit(&f->kv, seq, n);
}

static uint8_t *page(struct fixture *f, uint32_t seq, uint32_t i)
{
    return f->kv.pages + kvcache_table(&f->kv, seq)[i] * f->layout.page_bytes;
}

static void kvcache_counts_pages_and_gives_them_back(void **state)
{
    (void)state;
    struct fixture f;
    start(&f, 0);
    uint32_t a = begin(&f, 1);
    grow(&f, a, 1);
    assert_int_equal(f.kv.n_free, PAGES - 1);
    grow(&f, a, KV_PAGE_TOKENS - 1);
    assert_int_equal(f.kv.n_free, PAGES - 1);
    grow(&f, a, 1);
    assert_int_equal(f.kv.n_free, PAGES - 2);
    assert_int_equal(kvcache_pos(&f.kv, a), KV_PAGE_TOKENS + 1);
    assert_int_equal(kvcache_find(&f.kv, TAG(1)), a);
    kvcache_end(&f.kv, a);
    assert_int_equal(f.kv.n_free, PAGES);
    assert_int_equal(kvcache_find(&f.kv, TAG(1)), -1);
    stop(&f);
}

/* Full is an answer, and it changes nothing. */
static void kvcache_says_when_it_is_full(void **state)
{
    (void)state;
    struct fixture f;
    struct err err = { 0 };
    uint32_t extra;
    start(&f, 0);
    uint32_t a = begin(&f, 1), b = begin(&f, 2);
    assert_int_equal(kvcache_reserve(&f.kv, a, CTX + 1, &err), -1);
    assert_int_equal(err.code, ERR_NO_FIT);
    grow(&f, a, CTX);
    assert_int_equal(kvcache_reserve(&f.kv, b, 3 * KV_PAGE_TOKENS, &err), -1);
    assert_int_equal(err.code, ERR_FULL);
    assert_int_equal(f.kv.n_free, 2);
    grow(&f, b, 2 * KV_PAGE_TOKENS);
    begin(&f, 3);
    assert_int_equal(kvcache_begin(&f.kv, TAG(4), 0, &extra, &err), -1);
    assert_int_equal(err.code, ERR_FULL);
    stop(&f);
}

/* A shared prefix is written to by nobody: whoever rewinds into it gets a copy. */
static void kvcache_copies_a_shared_page_before_writing(void **state)
{
    (void)state;
    struct fixture f;
    struct err err = { 0 };
    uint32_t n;
    start(&f, 0);
    uint32_t a = begin(&f, 1), b = begin(&f, 2);
    grow(&f, a, KV_PAGE_TOKENS + HALF);
    memset(page(&f, a, 0), 0x5a, 4096);
    assert_ok(kvcache_copy_prefix(&f.kv, b, a, KV_PAGE_TOKENS + HALF, &n, &err), err);
    assert_int_equal(n, KV_PAGE_TOKENS);
    assert_int_equal(kvcache_pos(&f.kv, b), KV_PAGE_TOKENS);
    assert_ptr_equal(page(&f, a, 0), page(&f, b, 0));
    assert_ok(kvcache_truncate(&f.kv, b, HALF, &err), err);
    grow(&f, b, 1);
    assert_ptr_not_equal(page(&f, a, 0), page(&f, b, 0));
    assert_memory_equal(page(&f, a, 0), page(&f, b, 0), 4096);
    kvcache_end(&f.kv, a);
    kvcache_end(&f.kv, b);
    assert_int_equal(f.kv.n_free, PAGES);
    stop(&f);
}

static void kvcache_is_taken_over_by_the_next_worker(void **state)
{
    (void)state;
    struct fixture f;
    struct err err = { 0 };
    struct kvcache next;
    start(&f, 0);
    uint32_t a = begin(&f, 1), b = begin(&f, 2);
    grow(&f, a, KV_PAGE_TOKENS + 3);
    assert_ok(kvcache_reserve(&f.kv, a, 2 * KV_PAGE_TOKENS, &err),
              err); /* a step that never ended */
    grow(&f, b, 5);
    assert_ok(kvcache_adopt(&next, &f.layout, f.memory, f.size, &err), err);
    assert_int_equal(kvcache_find(&next, TAG(1)), a);
    assert_int_equal(kvcache_pos(&next, a), KV_PAGE_TOKENS + 3);
    assert_int_equal(kvcache_pos(&next, b), 5);
    assert_int_equal(next.n_free, PAGES - 3);
    kvcache_clear(&next);

    /* A page that is not there: b is lost, a stays. */
    f.kv.tables[b * f.kv.header->pages_per_seq] = PAGES;
    assert_ok(kvcache_adopt(&next, &f.layout, f.memory, f.size, &err), err);
    assert_int_equal(kvcache_find(&next, TAG(2)), -1);
    assert_int_equal(kvcache_find(&next, TAG(1)), a);
    kvcache_clear(&next);

    f.layout.fingerprint++;
    assert_int_equal(kvcache_adopt(&next, &f.layout, f.memory, f.size, &err), -1);
    assert_int_equal(err.code, ERR_CHANGED);
    stop(&f);
}

/* Recurrent state has two copies; a commit switches them, so an unfinished step leaves the old one. */
static void kvcache_switches_recurrent_state_with_the_position(void **state)
{
    (void)state;
    struct fixture f;
    struct err err = { 0 };
    uint32_t n;
    start(&f, 128);
    uint32_t a = begin(&f, 1), b = begin(&f, 2);
    memset(kvcache_state(&f.kv, a, true), 0x11, 128);
    assert_int_equal(kvcache_state(&f.kv, a, false)[0], 0);
    grow(&f, a, KV_PAGE_TOKENS);
    assert_int_equal(kvcache_state(&f.kv, a, false)[0], 0x11);
    assert_int_equal(kvcache_truncate(&f.kv, a, 1, &err), -1);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    assert_ok(kvcache_copy_prefix(&f.kv, b, a, KV_PAGE_TOKENS, &n, &err), err);
    assert_int_equal(n, 0);
    assert_ok(kvcache_truncate(&f.kv, a, 0, &err), err);
    assert_int_equal(kvcache_state(&f.kv, a, false)[0], 0);
    stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kvcache_counts_pages_and_gives_them_back),
        cmocka_unit_test(kvcache_says_when_it_is_full),
        cmocka_unit_test(kvcache_copies_a_shared_page_before_writing),
        cmocka_unit_test(kvcache_is_taken_over_by_the_next_worker),
        cmocka_unit_test(kvcache_switches_recurrent_state_with_the_position),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
