/* The weights segment: what a builder writes a reader finds, and a damaged manifest is refused. */
#include "tests/test.h"

#include <sys/mman.h>
#include <unistd.h>

#include "proto/weights.h"

static int build(void)
{
    struct err err = { 0 };
    struct weights_builder *b = weights_builder_create(&err);
    assert_non_null(b);
    uint32_t layers = 12;
    float eps = 1e-6f;
    int16_t signs[3] = { -1, 0, 1 };
    uint64_t ends[3] = { 1, 1, 4 };
    assert_ok(
        weights_builder_add(b, "a.block_count", 13, WEIGHTS_U32, WEIGHTS_U32, 1, &layers, &err),
        err);
    assert_ok(weights_builder_add(b, "a.eps", 5, WEIGHTS_F32, WEIGHTS_F32, 1, &eps, &err), err);
    assert_ok(weights_builder_add(b, "a.signs", 7, WEIGHTS_ARRAY, WEIGHTS_I16, 3, signs, &err),
              err);
    assert_ok(weights_builder_add_strings(b, "tokens", 6, WEIGHTS_ARRAY, 3, "xyzw", ends, &err),
              err);
    assert_ok(weights_builder_add_strings(b, "empty", 5, WEIGHTS_ARRAY, 0, NULL, NULL, &err), err);
    static const uint8_t packed[] = { 2, 0, 0, 0, 0, 0, 0, 0, 'h', 'i', 0, 0, 0, 0, 0, 0, 0, 0 };
    assert_ok(weights_builder_borrow(b, "borrowed", 8, WEIGHTS_ARRAY, WEIGHTS_STRING, 2, packed,
                                     sizeof packed, false, &err),
              err);
    uint64_t ne[2] = { 32, 4 };
    assert_ok(weights_builder_add_tensor(b, "w", 1, DTYPE_Q8_0, WEIGHTS_LAYOUT_FILE, 2, ne, 64, 136,
                                         &err),
              err);
    /* 64 bytes for 32 floats: the writer believes its caller, the reader does not. */
    assert_ok(
        weights_builder_add_tensor(b, "v", 1, DTYPE_F32, WEIGHTS_LAYOUT_FILE, 1, ne, 0, 64, &err),
        err);
    int fd = memfd_create("test", MFD_CLOEXEC);
    uint64_t data_off;
    assert_ok(weights_builder_write(b, fd, 4096 + 96, 200, 77, 3, &data_off, &err), err);
    assert_int_equal(data_off % WEIGHTS_PAGE, 96);
    weights_builder_destroy(&b);
    return fd;
}

static int build_good(void)
{
    int fd = build();
    uint64_t tensor_off;
    assert_int_equal(pread(fd, &tensor_off, 8, offsetof(struct weights_header, tensor_off)), 8);
    uint64_t ne = 16;
    off_t at = (off_t)(tensor_off + sizeof(struct weights_tensor_row) +
                       offsetof(struct weights_tensor_row, ne));
    assert_int_equal(pwrite(fd, &ne, 8, at), 8);
    return fd;
}

static void a_reader_finds_what_was_written(void **state)
{
    (void)state;
    int fd = build_good();
    struct weights w;
    struct err err = { 0 };
    assert_ok(weights_map(&w, fd, &err), err);
    uint64_t u;
    int64_t s;
    double f;
    const char *text;
    size_t len;
    assert_true(weights_kv_u64(weights_find_kv(&w, "a.block_count"), 0, &u));
    assert_int_equal(u, 12);
    assert_false(weights_kv_u64(weights_find_kv(&w, "a.block_count"), 1, &u));
    assert_false(weights_kv_u64(weights_find_kv(&w, "a.eps"), 0, &u));
    assert_true(weights_kv_f64(weights_find_kv(&w, "a.eps"), 0, &f));
    assert_true(f > 0.99e-6 && f < 1.01e-6);
    assert_false(weights_kv_u64(weights_find_kv(&w, "a.signs"), 0, &u));
    assert_true(weights_kv_i64(weights_find_kv(&w, "a.signs"), 0, &s));
    assert_int_equal(s, -1);
    const struct weights_kv *tokens = weights_find_kv(&w, "tokens");
    assert_true(weights_kv_str(tokens, 1, &text, &len));
    assert_int_equal(len, 0);
    assert_true(weights_kv_str(tokens, 2, &text, &len));
    assert_int_equal(len, 3);
    assert_memory_equal(text, "yzw", 3);
    assert_false(weights_kv_str(tokens, 3, &text, &len));
    assert_int_equal(weights_find_kv(&w, "empty")->n, 0);
    assert_true(weights_kv_str(weights_find_kv(&w, "borrowed"), 0, &text, &len));
    assert_memory_equal(text, "hi", 2);
    assert_null(weights_find_kv(&w, "nothing"));
    const struct weights_tensor *t = weights_find_tensor(&w, "w");
    assert_non_null(t);
    assert_int_equal(t->data_end, 200);
    assert_int_equal(t->ne[3], 1);
    assert_null(weights_find_tensor(&w, "x"));
    assert_int_equal(weights_watermark(&w), 0);
    weights_unmap(&w);
    weights_unmap(&w);
    close(fd);
}

static void a_wrong_size_is_refused(void **state)
{
    (void)state;
    int fd = build();
    struct weights w;
    struct err err = { 0 };
    assert_int_equal(weights_map(&w, fd, &err), -1);
    assert_int_equal(err.code, ERR_BAD_FILE);
    assert_non_null(strstr(err.text, "tensor v"));
    close(fd);
}

/* Every byte of the manifest in turn takes other values: refused, or all it says can be read. */
static void a_damaged_manifest_harms_nobody(void **state)
{
    (void)state;
    int fd = build_good();
    struct weights_header h;
    assert_int_equal(pread(fd, &h, sizeof h, 0), sizeof h);
    static const uint8_t values[] = { 0x00, 0xff, 0x80, 0x01 };
    size_t refused = 0;
    for (uint64_t at = 0; at < h.names_off + h.names_bytes;
         at += at == sizeof h - 1 ? 4096 - sizeof h + 1 : 1) {
        uint8_t old;
        assert_int_equal(pread(fd, &old, 1, (off_t)at), 1);
        for (size_t v = 0; v < sizeof values; v++) {
            struct err err = { 0 };
            struct weights w;
            assert_int_equal(pwrite(fd, &values[v], 1, (off_t)at), 1);
            if (weights_map(&w, fd, &err) < 0) {
                assert_int_equal(err.code, ERR_BAD_FILE);
                refused++;
                continue;
            }
            uint64_t sum = 0;
            for (size_t i = 0; i < w.n_kvs; i++) {
                const char *text;
                size_t len;
                for (uint64_t k = 0; k < w.kvs[i].n; k++) {
                    if (weights_kv_str(&w.kvs[i], k, &text, &len) && len) {
                        sum += (uint8_t)text[0] + (uint8_t)text[len - 1];
                    }
                }
            }
            for (size_t i = 0; i < w.n_tensors; i++) {
                sum += w.tensors[i].data[0] + w.tensors[i].data[w.tensors[i].size_bytes - 1];
            }
            assert_true(sum < UINT64_MAX);
            weights_unmap(&w);
        }
        assert_int_equal(pwrite(fd, &old, 1, (off_t)at), 1);
    }
    assert_true(refused > 100);
    close(fd);
}

static void names_that_stand_twice_are_refused(void **state)
{
    (void)state;
    struct err err = { 0 };
    struct weights_builder *b = weights_builder_create(&err);
    uint8_t one = 1;
    for (int i = 0; i < 2; i++) {
        assert_ok(weights_builder_add(b, "k", 1, WEIGHTS_U8, WEIGHTS_U8, 1, &one, &err), err);
    }
    int fd = memfd_create("test", MFD_CLOEXEC);
    uint64_t data_off;
    struct weights w;
    assert_ok(weights_builder_write(b, fd, 0, 0, 0, 3, &data_off, &err), err);
    assert_int_equal(weights_map(&w, fd, &err), -1);
    assert_non_null(strstr(err.text, "stands twice"));
    weights_builder_destroy(&b);
    weights_builder_destroy(&b);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reader_finds_what_was_written),
        cmocka_unit_test(a_wrong_size_is_refused),
        cmocka_unit_test(a_damaged_manifest_harms_nobody),
        cmocka_unit_test(names_that_stand_twice_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
