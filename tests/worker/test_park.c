/* Conversations in files: what comes back is what left, and nothing else is ever believed. No model: positions are committed by
 * hand. */
#include "tests/test.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/park.h"
#include "worker/prefix.h"

#define CTX   512
#define KEY   42u
#define SHARD 9u
#define N     150u

static struct kv_layer layer = { .n_kv_heads = 1, .k_dim = 32, .v_dim = 32 };
static const struct state_shape shape = { .max_seqs = 4, .ctx_len = CTX, .n_pages = 8 };

struct house {
    struct kv_layout layout;
    struct state state;
    void *memory;
    uint32_t seq; /* a conversation of N tokens, idle */
};

static int32_t tokens[CTX];

static void open_state(struct house *h, uint64_t state_bytes)
{
    struct err err;
    h->layout = (struct kv_layout){ .k_type = DTYPE_F16,
                                    .v_type = DTYPE_F16,
                                    .n_layers = 1,
                                    .page_bytes = 8192,
                                    .state_bytes = state_bytes,
                                    .fingerprint = 5,
                                    .layer = &layer };
    size_t bytes = (state_size(&h->layout, &shape) + 4095) / 4096 * 4096;
    h->memory = aligned_alloc(4096, bytes);
    memset(h->memory, 0, bytes);
    assert_ok(state_init(&h->state, &h->layout, &shape, 77, h->memory, bytes, &err), err);
}

static uint8_t *page(const struct state *s, uint32_t seq, uint32_t i)
{
    return s->kv.pages + kvcache_table(&s->kv, seq)[i] * s->kv.header->page_bytes;
}

static void begin(struct house *h, uint64_t state_bytes)
{
    struct err err;
    uint32_t n_cached;
    open_state(h, state_bytes);
    for (int i = 0; i < CTX; i++) {
        tokens[i] = 7 * i + 1;
    }
    const struct kvcache_tag tag = { 1, 2 };
    assert_ok(prefix_begin(&h->state, SHARD, tag, tokens, N + 1, &h->seq, &n_cached, &err), err);
    assert_ok(kvcache_reserve(&h->state.kv, h->seq, N, &err), err);
    memcpy(state_tokens(&h->state, h->seq), tokens, N * sizeof *tokens);
    for (uint32_t i = 0; i < kvcache_pages_for(N); i++) {
        for (uint32_t k = 0; k < 8192; k++) {
            page(&h->state, h->seq, i)[k] = (uint8_t)(i * 31 + k * 7);
        }
    }
    if (state_bytes) {
        memset(kvcache_state(&h->state.kv, h->seq, true), 0x5a, state_bytes);
    }
    kvcache_commit(&h->state.kv, h->seq, N);
    state_idle(&h->state, h->seq);
}

static void end(struct house *h)
{
    state_clear(&h->state);
    free(h->memory);
}

/* The conversation as a file. */
static int parked(struct house *h)
{
    struct err err;
    struct park park = { 0 };
    int fd = memfd_create("parked", MFD_CLOEXEC), done;
    assert_int_equal(park_next(&h->state), h->seq);
    assert_ok(park_write_begin(&park, &h->state, h->seq, KEY, dup(fd), &err), err);
    while ((done = park_write(&park, &err)) == 0) {
    }
    assert_int_equal(done, 1);
    assert_int_equal(park_next(&h->state), -1); /* nothing has changed since */
    return fd;
}

/* Reads the file back for a request of n tokens into an empty state: positions that stand, or minus the error. */
static int64_t fetched(struct house *h, int fd, uint64_t key, const int32_t *want, uint32_t n,
                       uint32_t have)
{
    struct err err = { 0 };
    struct park park = { 0 };
    int64_t got = park_read_begin(&park, &h->state, SHARD, key, want, n, have, dup(fd), &err);
    int done = 0;
    while (got > 0 && (done = park_read(&park, &err)) == 0) {
    }
    assert_null(park.state);
    return got < 0 || done < 0 ? -(int64_t)err.code : got;
}

static void what_comes_back_is_what_left(void **unused)
{
    (void)unused;
    for (uint64_t state_bytes = 0; state_bytes <= 128; state_bytes += 128) {
        struct house a, b;
        begin(&a, state_bytes);
        int fd = parked(&a);
        open_state(&b, state_bytes);
        assert_int_equal(fetched(&b, fd, KEY, tokens, N + 20, 0), N);
        const struct kvcache_tag other = { 3, 4 };
        uint32_t seq, n_cached;
        struct err err;
        assert_ok(prefix_begin(&b.state, SHARD, other, tokens, N + 20, &seq, &n_cached, &err), err);
        assert_int_equal(n_cached, N);
        for (uint32_t i = 0; i < kvcache_pages_for(N); i++) {
            assert_memory_equal(page(&a.state, a.seq, i), page(&b.state, seq, i), 8192);
        }
        if (state_bytes) {
            assert_memory_equal(kvcache_state(&a.state.kv, a.seq, false),
                                kvcache_state(&b.state.kv, seq, false), state_bytes);
        }
        assert_int_equal(park_next(&b.state), -1);
        close(fd);
        end(&a);
        end(&b);
    }
}

static void only_the_common_beginning_is_read(void **unused)
{
    (void)unused;
    struct house a, b;
    static int32_t other[CTX];
    begin(&a, 0);
    int fd = parked(&a);
    memcpy(other, tokens, sizeof other);
    other[100] = 5;
    open_state(&b, 0);
    assert_int_equal(fetched(&b, fd, KEY, other, 140, 0), 100);
    assert_int_equal(fetched(&b, fd, KEY, other, 140, 64), 0); /* hardly more than is here */
    assert_int_equal(fetched(&b, fd, KEY, other, 40, 0), 0);
    close(fd);
    end(&a);
    end(&b);
    begin(&a, 128);
    fd = parked(&a);
    open_state(&b, 128);
    assert_int_equal(fetched(&b, fd, KEY, other, 140, 0), 0); /* recurrent: all or nothing */
    close(fd);
    end(&a);
    end(&b);
}

/* Every byte of the head and index, and one of each page, damaged; every length cut. */
static void a_damaged_file_is_not_believed(void **unused)
{
    (void)unused;
    struct house a, b;
    struct stat st;
    begin(&a, 128);
    int fd = parked(&a);
    assert_int_equal(fstat(fd, &st), 0);
    open_state(&b, 128);
    for (off_t at = 0; at < st.st_size; at += at < 800 ? 1 : 211) {
        uint8_t byte, bad;
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        bad = byte ^ 0x10;
        assert_int_equal(pwrite(fd, &bad, 1, at), 1);
        int64_t got = fetched(&b, fd, KEY, tokens, N + 20, 0);
        if (got > 0) { /* between the parts there are bytes that mean nothing */
            struct parked file;
            struct err err;
            assert_ok(parked_read(&file, fd, &err), err);
            assert_true((uint64_t)at >= 88 + 4 * 8 + N * 4 &&
                        (uint64_t)at < parked_page_off(&file.head, 0));
            parked_clear(&file);
            state_evict(&b.state);
        }
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        assert_int_equal(b.state.kv.n_free, shape.n_pages); /* nothing of it is left */
    }
    for (off_t len = st.st_size - 1; len >= 0; len -= 97) {
        assert_int_equal(ftruncate(fd, len), 0);
        assert_true(fetched(&b, fd, KEY, tokens, N + 20, 0) < 0);
    }
    close(fd);
    end(&a);
    end(&b);
}

static void a_foreign_file_is_not_believed(void **unused)
{
    (void)unused;
    struct house a, b;
    begin(&a, 0);
    int fd = parked(&a);
    open_state(&b, 0);
    assert_int_equal(fetched(&b, fd, KEY + 1, tokens, N + 20, 0), -(int64_t)ERR_CHANGED);
    end(&b);
    open_state(&b, 128);
    assert_int_equal(fetched(&b, fd, KEY, tokens, N + 20, 0), -(int64_t)ERR_CHANGED);
    close(fd);
    end(&a);
    end(&b);
}

static void who_comes_back_ends_the_writing(void **unused)
{
    (void)unused;
    struct house h;
    struct err err;
    struct park park = { 0 };
    begin(&h, 0);
    int fd = memfd_create("parked", MFD_CLOEXEC);
    assert_ok(park_write_begin(&park, &h.state, h.seq, KEY, dup(fd), &err), err);
    state_resume(&h.state, h.seq, (struct kvcache_tag){ 1, 2 });
    assert_int_equal(park_write(&park, &err), -1);
    assert_int_equal(err.code, ERR_CHANGED);
    state_idle(&h.state, h.seq);
    assert_int_equal(park_next(&h.state), h.seq); /* it has changed: later */
    struct parked file;
    assert_int_equal(parked_read(&file, fd, &err), -1);
    close(fd);
    end(&h);
}

static void a_full_disk_is_an_error_of_the_file(void **unused)
{
    (void)unused;
    struct house h;
    struct err err;
    struct park park = { 0 };
    begin(&h, 0);
    int fd = memfd_create("parked", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), 0); /* it cannot grow, like a full disk */
    assert_ok(park_write_begin(&park, &h.state, h.seq, KEY, dup(fd), &err), err);
    assert_int_equal(park_write(&park, &err), -1);
    assert_int_equal(err.code, ERR_IO);
    assert_null(park.state);
    close(fd);
    end(&h);
}

/* What is being read goes away with its reader, and gives its pages back. */
static void a_half_read_file_leaves_nothing(void **unused)
{
    (void)unused;
    struct house a, b;
    struct err err;
    struct park park = { 0 };
    begin(&a, 0);
    int fd = parked(&a);
    open_state(&b, 0);
    assert_int_equal(park_read_begin(&park, &b.state, SHARD, KEY, tokens, N + 1, 0, dup(fd), &err),
                     N);
    park_clear(&park);
    assert_int_equal(b.state.kv.n_free, shape.n_pages);
    close(fd);
    end(&a);
    end(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_comes_back_is_what_left),
        cmocka_unit_test(only_the_common_beginning_is_read),
        cmocka_unit_test(a_damaged_file_is_not_believed),
        cmocka_unit_test(a_foreign_file_is_not_believed),
        cmocka_unit_test(who_comes_back_ends_the_writing),
        cmocka_unit_test(a_full_disk_is_an_error_of_the_file),
        cmocka_unit_test(a_half_read_file_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
