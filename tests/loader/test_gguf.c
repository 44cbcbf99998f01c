/* The GGUF reader: what is right is read, what is wrong is named. */
#include "tests/test.h"

#include "tests/loader/make_gguf.h"
#include "tests/loader/try_gguf.h"

/* Two keys, two tensors of 64 floats; the smallest file that has one of everything. */
static void make_small(struct maker *m)
{
    make_head(m, 2, 3);
    make_kv_str(m, "general.architecture", "demo");
    make_kv_u32(m, "demo.block_count", 7);
    make_str(m, "demo.list");
    make_u32(m, WEIGHTS_ARRAY);
    make_u32(m, WEIGHTS_STRING);
    make_u64(m, 2);
    make_str(m, "one");
    make_str(m, "");
    make_tensor(m, "a", DTYPE_F32, 32, 2, 0);
    make_tensor(m, "b", DTYPE_Q8_0, 32, 2, 256);
    make_pad(m, 32);
    make_data(m, 256 + 68, 1);
}

static void reads_what_was_written(void **state)
{
    (void)state;
    struct maker m;
    make_small(&m);
    struct head head;
    struct gguf g;
    struct err err = { 0 };
    head_init_bytes(&head, m.data, m.size);
    assert_ok(gguf_parse(&g, &head, &err), err);
    assert_int_equal(g.n_kvs, 3);
    assert_int_equal(g.n_tensors, 2);
    assert_int_equal(g.data_bytes, 256 + 68);
    uint64_t value;
    assert_true(gguf_kv_u64(gguf_find(&g, "demo.block_count"), &value));
    assert_int_equal(value, 7);
    assert_null(gguf_find(&g, "demo.none"));
    assert_int_equal(g.tensors[1].size_bytes, 68);
    gguf_clear(&g);
}

static void refuses(const struct maker *m, const char *words)
{
    struct err err;
    if (try_gguf(m->data, m->size, &err) == 0) {
        fail_msg("accepted, wanted: %s", words);
    }
    assert_int_equal(err.code, ERR_BAD_FILE);
    if (!strstr(err.text, words) || !strstr(err.text, "byte ") || strchr(err.text, '\n')) {
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
    }
}

static void names_what_is_wrong(void **state)
{
    (void)state;
    struct maker m;
    make_small(&m);
    memcpy(m.data, "GGML", 4);
    refuses(&m, "magic");
    make_small(&m);
    memcpy(m.data + 4, "\0\0\0\3", 4);
    refuses(&m, "big-endian");

    make_head(&m, 0, 2);
    make_kv_u32(&m, "a.b", 1);
    make_kv_u32(&m, "a.b", 1);
    refuses(&m, "a.b stands twice");
    make_head(&m, 0, 1);
    make_kv_u32(&m, "", 1);
    refuses(&m, "key of 0 bytes");
    make_head(&m, 0, 1);
    make_kv_u32(&m, "a\xff", 1);
    refuses(&m, "UTF-8");
    make_head(&m, 0, 1);
    make_kv_u32(&m, "a\nb", 1);
    refuses(&m, "printable");
    make_head(&m, 0, 1);
    make_str(&m, "nested");
    make_u32(&m, WEIGHTS_ARRAY);
    make_u32(&m, WEIGHTS_ARRAY);
    make_u64(&m, 1);
    make_u64(&m, 0);
    refuses(&m, "array of arrays");

    static const uint32_t alignments[] = { 0, 1, 3, 4, 48, 1u << 21, 1u << 31 };
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++) {
        make_head(&m, 0, 1);
        make_kv_u32(&m, "general.alignment", alignments[i]);
        refuses(&m, "alignment");
    }
    make_head(&m, 0, 1);
    make_kv_str(&m, "general.alignment", "32");
    refuses(&m, "general.alignment: a string");

    struct {
        uint32_t type;
        uint64_t ne0, ne1, off;
        const char *words;
    } tensors[] = {
        { DTYPE_F32, 0, 1, 0, "without values" },
        { DTYPE_F32, UINT64_MAX, 1, 0, "63 bits" },
        { DTYPE_F32, 1ull << 40, 1ull << 40, 0, "2^63" },
        { DTYPE_F32, 1ull << 61, 1, 0, "63 bits" },
        { DTYPE_Q4_K, 32, 1, 0, "whole blocks" },
        { 4, 32, 1, 0, "removed" },
        { 200, 32, 1, 0, "not known" },
        { UINT32_MAX, 32, 1, 0, "not known" },
        { DTYPE_F32, 32, 1, 16, "alignment" },
        { DTYPE_F32, 32, 1, 96, "are missing" },
        { DTYPE_F32, 32, 1, UINT64_MAX - 31, "64 bits" },
    };
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        make_head(&m, 1, 0);
        make_tensor(&m, "t", tensors[i].type, tensors[i].ne0, tensors[i].ne1, tensors[i].off);
        make_pad(&m, 32);
        make_data(&m, 128, 1);
        refuses(&m, tensors[i].words);
    }
    make_head(&m, 2, 0);
    make_tensor(&m, "t", DTYPE_F32, 32, 1, 0);
    make_tensor(&m, "t", DTYPE_F32, 32, 1, 128);
    make_pad(&m, 32);
    make_data(&m, 256, 1);
    refuses(&m, "tensor t stands twice");
    make_head(&m, 2, 0);
    make_tensor(&m, "t", DTYPE_F32, 32, 1, 0);
    make_tensor(&m, "u", DTYPE_F32, 32, 1, 96);
    make_pad(&m, 32);
    make_data(&m, 256, 1);
    refuses(&m, "lies inside of t");
    make_head(&m, 1, 0);
    char name[65] = { 0 };
    memset(name, 'n', 64);
    make_tensor(&m, name, DTYPE_F32, 32, 1, 0);
    make_data(&m, 256, 1);
    refuses(&m, "tensor name of 64 bytes");
}

static uint8_t *fixture(size_t *size)
{
    uint8_t *data = try_read(HEARTH_FIXTURES "/four-kib.bin", size);
    if (!data) {
        static struct maker m;
        make_small(&m);
        data = malloc(m.size);
        memcpy(data, m.data, m.size);
        *size = m.size;
    }
    return data;
}

static void judge(int rc, const struct err *err)
{
    if (rc < 0) {
        assert_int_equal(err->code, ERR_BAD_FILE);
        assert_non_null(strstr(err->text, "byte "));
        assert_null(strchr(err->text, '\n'));
    }
}

static void refuses_every_prefix(void **state)
{
    (void)state;
    size_t size;
    uint8_t *data = fixture(&size);
    struct err err;
    assert_ok(try_gguf(data, size, &err), err);
    size_t accepted = 0;
    for (size_t n = 0; n < size; n++) {
        int rc = try_gguf(data, n, &err);
        judge(rc, &err);
        accepted += rc == 0;
    }
    /* Only padding behind the last tensor may be missing. */
    assert_true(accepted < 32);
    free(data);
}

static void survives_ten_thousand_bit_flips(void **state)
{
    (void)state;
    size_t size;
    uint8_t *data = fixture(&size);
    uint64_t seed = 42;
    size_t refused = 0;
    for (int i = 0; i < 10000; i++) {
        uint64_t bit = make_random(&seed) % (size * 8);
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        struct err err;
        int rc = try_gguf(data, size, &err);
        judge(rc, &err);
        refused += rc < 0;
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_true(refused > 100);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_was_written),
        cmocka_unit_test(names_what_is_wrong),
        cmocka_unit_test(refuses_every_prefix),
        cmocka_unit_test(survives_ten_thousand_bit_flips),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
