/* The small tools of proto/: errors, types, half floats, checksums, UTF-8, base64, shared memory, tokens of birth. */
#include "tests/test.h"

#include <errno.h>
#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/base64.h"
#include "proto/bytes.h"
#include "proto/crc32c.h"
#include "proto/dtype.h"
#include "proto/err.h"
#include "proto/heritage.h"
#include "proto/shm.h"
#include "proto/utf8.h"

static void errors_read_from_outside_in(void **state)
{
    (void)state;
    struct err err = { 0 };
    assert_int_equal(err_set(&err, ERR_BAD_FILE, "type %d is not known", 99), -1);
    err_wrap(&err, "tensor %s", "blk.0");
    err_wrap(&err, "model %s", "x.gguf");
    assert_string_equal(err.text, "model x.gguf: tensor blk.0: type 99 is not known");
    assert_int_equal(err.code, ERR_BAD_FILE);
    errno = ENOENT;
    err_set_errno(&err, ERR_IO, "open %s", "a\nb");
    assert_string_equal(err.text, "open a?b: No such file or directory");
}

static void every_code_has_its_numbers(void **state)
{
    (void)state;
    assert_int_equal(err_exit_code(ERR_UNREACHABLE), 3);
    assert_int_equal(err_exit_code(ERR_NOT_FOUND), 4);
    assert_int_equal(err_exit_code(ERR_NO_FIT), 5);
    assert_int_equal(err_exit_code(ERR_BAD_FILE), 7);
    assert_int_equal(err_exit_code(ERR_INTERRUPTED), 130);
    for (int code = 0; code < ERR_N_CODES; code++) {
        assert_int_equal(err_code_of_name(err_name((enum err_code)code)), code);
    }
    assert_int_equal(err_code_of_name("nonsense"), ERR_FAILED);
}

static void types_know_their_sizes(void **state)
{
    (void)state;
    struct err err = { 0 };
    uint64_t bytes;
    assert_null(dtype_find(4));
    assert_null(dtype_find(31));
    assert_null(dtype_find(43));
    assert_null(dtype_find(UINT32_MAX));
    assert_int_equal(dtype_of_name("q4_k"), DTYPE_Q4_K);
    assert_int_equal(dtype_of_name("Q9_9"), -1);
    assert_ok(dtype_size(DTYPE_Q6_K, 512, &bytes, &err), err);
    assert_int_equal(bytes, 420);
    assert_int_equal(dtype_size(DTYPE_Q6_K, 100, &bytes, &err), -1);
    assert_int_equal(dtype_size(DTYPE_F32, UINT64_MAX / 2, &bytes, &err), -1);
}

static void half_floats_go_there_and_back(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        float value = dtype_f32_of_f16((uint16_t)bits);
        if (isnan(value)) {
            assert_true(isnan(dtype_f32_of_f16(dtype_f16_of_f32(value))));
        } else {
            assert_int_equal(dtype_f16_of_f32(value), bits);
        }
    }
    assert_int_equal(dtype_f16_of_f32(1.0f + 0x1p-11f), 0x3c00); /* a tie goes to even */
    assert_int_equal(dtype_f16_of_f32(1.0f + 3 * 0x1p-11f), 0x3c02);
    assert_int_equal(dtype_f16_of_f32(65519.0f), 0x7bff);
    assert_int_equal(dtype_f16_of_f32(65520.0f), 0x7c00);
    assert_int_equal(dtype_f16_of_f32(0x1p-25f), 0);
    assert_int_equal(dtype_f16_of_f32(0x1.8p-25f), 1);
}

static void checksums_are_castagnoli(void **state)
{
    (void)state;
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xe3069283u);
    assert_int_equal(crc32c(0, NULL, 0), 0);
}

static void utf8_is_judged_strictly(void **state)
{
    (void)state;
    static const char *const good[] = {
        "", "a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf"
    };
    static const char *const bad[] = { "\x80",
                                       "\xc0\x80",
                                       "\xc3",
                                       "\xe0\x80\x80",
                                       "\xed\xa0\x80",
                                       "\xf4\x90\x80\x80",
                                       "\xf5\x80\x80\x80",
                                       "\xe2\x82",
                                       "a\xff" };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(utf8_valid(good[i], strlen(good[i])));
        assert_int_equal(utf8_complete(good[i], strlen(good[i])), strlen(good[i]));
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(utf8_valid(bad[i], strlen(bad[i])));
    }
    static const struct {
        const char *text;
        size_t complete;
    } rows[] = { { "", 0 },
                 { "\xc3", 0 },
                 { "a\xc3", 1 },
                 { "ab\xe2\x82", 2 },
                 { "ab\xf0\x9f\x98", 2 },
                 { "\xf0\x9f\x98\x80", 4 },
                 { "a\xe2", 1 },
                 { "ab\xff", 3 },
                 { "\x80\x80\x80", 3 },
                 { "a\x80\x80\x80\x80", 5 },
                 { "\xe0\x80", 2 } /* overlong: it can never become whole */ };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(utf8_complete(rows[i].text, strlen(rows[i].text)), rows[i].complete);
    }
}

static void base64_goes_there_and_back(void **state)
{
    (void)state;
    for (size_t n = 0; n < 40; n++) {
        uint8_t data[40];
        for (size_t i = 0; i < n; i++) {
            data[i] = (uint8_t)(i * 77 + n);
        }
        char *text = base64_encode(data, n);
        size_t len;
        uint8_t *back = base64_decode(text, strlen(text), &len);
        assert_non_null(back);
        assert_int_equal(len, n);
        assert_memory_equal(back, data, n);
        free(text);
        free(back);
    }
    size_t len;
    assert_null(base64_decode("a*b=", 4, &len));
    assert_null(base64_decode("a", 1, &len));
}

static void cursors_stop_at_the_end(void **state)
{
    (void)state;
    uint8_t data[] = { 1, 0, 0, 0, 2 };
    struct bytes b = bytes_of(data, sizeof data);
    assert_int_equal(bytes_u32(&b), 1);
    assert_int_equal(bytes_u16(&b), 0);
    assert_true(b.failed);
    assert_int_equal(bytes_u8(&b), 0); /* a failed cursor stays failed */
    uint64_t out;
    assert_false(size_mul(UINT64_MAX, 2, &out));
    assert_false(size_add(UINT64_MAX, 1, &out));
}

static void shared_memory_is_sealed_and_reopened_read_only(void **state)
{
    (void)state;
    struct err err = { 0 };
    size_t bytes;
    int fd = shm_create("test", 8192, true, &err);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 4096), -1);
    assert_int_equal(ftruncate(fd, 16384), -1);
    char *writable = shm_map(fd, true, &bytes, &err);
    assert_non_null(writable);
    assert_int_equal(bytes, 8192);
    strcpy(writable, "hello");
    int copy = shm_reopen_readonly(fd, &err);
    assert_true(copy >= 0);
    assert_null(shm_map(copy, true, &bytes, &err));
    const char *readable = shm_map(copy, false, &bytes, &err);
    assert_string_equal(readable, "hello");
    shm_unmap(writable, bytes);
    shm_unmap(readable, bytes);
    close(fd);
    close(copy);
    assert_int_equal(shm_create("test", 1ull << 60, false, &err), -1);
    assert_int_equal(err.code, ERR_NO_MEMORY);
}

static void heritage_is_checked(void **state)
{
    (void)state;
    struct err err = { 0 };
    struct heritage h;
    uint8_t token[LIMIT_TOKEN_BYTES], back[LIMIT_TOKEN_BYTES];
    char hex[2 * LIMIT_TOKEN_BYTES + 1];
    for (int i = 0; i < LIMIT_TOKEN_BYTES; i++) {
        token[i] = (uint8_t)(i * 9);
    }
    heritage_token_hex(token, hex);
    assert_ok(heritage_token_of_hex(hex, back, &err), err);
    assert_memory_equal(token, back, sizeof token);
    assert_int_equal(heritage_token_of_hex("12", back, &err), -1);
    hex[3] = 'x';
    assert_int_equal(heritage_token_of_hex(hex, back, &err), -1);
    unsetenv("HEARTH_TOKEN");
    assert_int_equal(heritage_read(&h, &err), -1);
    assert_int_equal(err.code, ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_read_from_outside_in),
        cmocka_unit_test(every_code_has_its_numbers),
        cmocka_unit_test(types_know_their_sizes),
        cmocka_unit_test(half_floats_go_there_and_back),
        cmocka_unit_test(checksums_are_castagnoli),
        cmocka_unit_test(utf8_is_judged_strictly),
        cmocka_unit_test(base64_goes_there_and_back),
        cmocka_unit_test(cursors_stop_at_the_end),
        cmocka_unit_test(shared_memory_is_sealed_and_reopened_read_only),
        cmocka_unit_test(heritage_is_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
