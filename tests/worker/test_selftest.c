/* Goal: a device that computes as the CPU passes its self-test; one that gets a single op wrong does not, and is told where. */
#include "tests/test.h"

#include <math.h>

#include "worker/selftest.h"

static const struct backend_ops *sound; /* the CPU's own */

static struct backend *open_cpu(void)
{
    struct err err = { 0 };
    struct backend *b = backend_open("cpu", &(struct backend_options){ .n_threads = 1 }, &err);
    assert_ok(b ? 0 : -1, err);
    sound = b->ops;
    return b;
}

/* ---- ops that are a little wrong ---- */

/* One of the types is read with another's codebook. */
static int wrong_matmul(struct backend *b, const struct op_matmul *op, struct err *err)
{
    struct op_matmul other = *op;
    struct matrix w[OP_PRODUCTS_MAX];
    for (uint32_t i = 0; i < op->n_products; i++) {
        w[i] = *op->products[i].w;
        w[i].dtype = w[i].dtype == DTYPE_IQ4_NL ? DTYPE_Q4_0 : w[i].dtype;
        other.products[i].w = &w[i];
    }
    return sound->matmul(b, &other, err);
}

static int wrong_rope(struct backend *b, const struct op_rope *op, struct err *err)
{
    (void)b, (void)op, (void)err;
    return 0;
}

static int wrong_norm(struct backend *b, const struct op_norm *op, struct err *err)
{
    int rc = sound->norm(b, op, err);
    op->y[0] = NAN;
    return rc;
}

static void wrong_ops_are_found(void **state)
{
    (void)state;
    static const char *const names[] = { "matmul", "rope", "norm" };
    for (int i = 0; i < 3; i++) {
        struct backend *b = open_cpu();
        struct backend_ops ops = *sound;
        struct err err = { 0 };
        ops.matmul = i == 0 ? wrong_matmul : ops.matmul;
        ops.rope = i == 1 ? wrong_rope : ops.rope;
        ops.norm = i == 2 ? wrong_norm : ops.norm;
        b->ops = &ops;
        assert_int_equal(selftest_run(b, &err), -1);
        print_message("%s: %s\n", names[i], err.text);
        assert_int_equal(err.code, ERR_FAILED);
        assert_non_null(strstr(err.text, "it computes wrongly"));
        b->ops = sound;
        backend_close(&b);
    }
}

static void a_sound_device_passes(void **state)
{
    (void)state;
    struct backend *b = open_cpu();
    struct err err = { 0 };
    assert_ok(selftest_run(b, &err), err);
    backend_close(&b);
}

static void a_process_of_its_own_answers(void **state)
{
    (void)state;
    struct backend_options options = { .n_threads = 1 };
    struct err err = { 0 };
    assert_true(selftest_passes("cpu", &options, &err));
    assert_false(selftest_passes("abacus", &options, &err));
    assert_non_null(strstr(err.text, "abacus: "));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sound_device_passes),
        cmocka_unit_test(wrong_ops_are_found),
        cmocka_unit_test(a_process_of_its_own_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
