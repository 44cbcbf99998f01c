/* Goal: every tensor type decodes to the exact value of its format, to the bit, and its encoders give the reference's
 * bytes. Vectors: tests/fixtures/quants (a few blocks of each type) and the whole set under HEARTH_CONFORMANCE. */
#include "worker/quant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/test.h"

static void *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        return NULL;
    }
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    void *data = malloc(*size + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *size, file), *size);
    fclose(file);
    return data;
}

/* Decodes DIR/NAME.blocks and compares with DIR/NAME.f32; false when there is no such vector. */
static bool check_vector(const char *dir, enum dtype dtype, const char *set)
{
    char path[512];
    size_t n_blocks_bytes, n_bytes;
    const struct dtype_info *info = dtype_get(dtype);
    snprintf(path, sizeof path, "%s/%s%s.blocks", dir, info->name, set);
    uint8_t *blocks = read_file(path, &n_blocks_bytes);
    if (!blocks) {
        return false;
    }
    snprintf(path, sizeof path, "%s/%s%s.f32", dir, info->name, set);
    float *want = read_file(path, &n_bytes);
    assert_non_null(want);
    size_t n = n_bytes / sizeof *want;
    assert_int_equal(n / info->block_values * info->block_bytes, n_blocks_bytes);
    float *got = malloc(n_bytes);
    assert_non_null(got);
    quant_dequantise(dtype, blocks, n, got);
    for (size_t i = 0; i < n; i++) {
        if (!(got[i] == want[i])) {
            fail_msg("%s%s: value %zu is %a, not %a", info->name, set, i, (double)got[i],
                     (double)want[i]);
        }
    }
    struct err err;
    assert_int_equal(quant_validate(dtype, blocks, n, &err), 0);
    free(got);
    free(want);
    free(blocks);
    return true;
}

static int check_all(const char *dir)
{
    static const char *const sets[] = { "", ".random", ".cover" };
    int n = 0;
    for (int id = 0; id < DTYPE_N; id++) {
        for (size_t s = 0; dtype_find((uint32_t)id) && s < sizeof sets / sizeof *sets; s++) {
            n += check_vector(dir, (enum dtype)id, sets[s]);
        }
    }
    return n;
}

static void fixture_blocks_decode_exactly(void **state)
{
    (void)state;
    assert_true(check_all(HEARTH_FIXTURES "/quants") >= 25);
}

static void conformance_blocks_decode_exactly(void **state)
{
    (void)state;
    const char *root = getenv("HEARTH_CONFORMANCE");
    if (!root) {
        print_message("HEARTH_CONFORMANCE is not set: the long vectors are not here\n");
        skip();
    }
    char dir[512];
    snprintf(dir, sizeof dir, "%s/quants", root);
    assert_true(check_all(dir) >= 60);
}

static void conformance_encoders_give_reference_bytes(void **state)
{
    (void)state;
    static const enum dtype types[] = { DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0 };
    const char *root = getenv("HEARTH_CONFORMANCE");
    if (!root) {
        print_message("HEARTH_CONFORMANCE is not set: no reference bytes here\n");
        skip();
    }
    char path[512];
    size_t size, n_want;
    snprintf(path, sizeof path, "%s/quants/input.f32", root);
    float *x = read_file(path, &size);
    assert_non_null(x);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct err err;
        snprintf(path, sizeof path, "%s/quants/%s.blocks", root, dtype_get(types[i])->name);
        uint8_t *want = read_file(path, &n_want), *got = malloc(n_want);
        assert_non_null(want);
        assert_int_equal(quant_encode(types[i], x, size / sizeof *x, got, &err), 0);
        assert_memory_equal(got, want, n_want);
        free(want);
        free(got);
    }
    free(x);
}

static void plain_types_decode(void **state)
{
    (void)state;
    struct err err;
    float out[2];
    const int16_t i16[2] = { -3, 7 };
    const double f64[2] = { 1.0 / 3, -2 };
    quant_dequantise(DTYPE_I16, i16, 2, out);
    assert_true(out[0] == -3 && out[1] == 7);
    quant_dequantise(DTYPE_F64, f64, 2, out);
    assert_true(out[0] == (float)(1.0 / 3) && out[1] == -2);
    const float bad[2] = { 1, INFINITY };
    assert_int_equal(quant_validate(DTYPE_F32, bad, 2, &err), -1);
    assert_int_equal(err.code, ERR_BAD_FILE);
    uint8_t mx[17] = { 255 }, q4[144] = { [3] = 0x7c };
    assert_int_equal(quant_validate(DTYPE_MXFP4, mx, 32, &err), -1);
    assert_int_equal(quant_validate(DTYPE_Q4_K, q4, 256, &err), -1);
    assert_int_equal(quant_encode(DTYPE_Q4_K, bad, 2, q4, &err), -1);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
}

/* Values that no format can hold must not become undefined conversions. */
static void encoders_take_infinities(void **state)
{
    (void)state;
    struct err err;
    float x[32] = { INFINITY, -INFINITY, NAN, 1e38f, 1e-45f };
    uint8_t out[128];
    for (int id = 0; id < DTYPE_N; id++) {
        if (dtype_find((uint32_t)id) && quant_can_encode((enum dtype)id)) {
            assert_int_equal(quant_encode((enum dtype)id, x, 32, out, &err), 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fixture_blocks_decode_exactly),
        cmocka_unit_test(conformance_blocks_decode_exactly),
        cmocka_unit_test(conformance_encoders_give_reference_bytes),
        cmocka_unit_test(plain_types_decode),
        cmocka_unit_test(encoders_take_infinities),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
