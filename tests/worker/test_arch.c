/* The table of architectures. */
#include "tests/test.h"
#include "worker/arch.h"

static void arch_finds_every_row_by_its_name(void **state)
{
    (void)state;
    uint32_t n = 0;
    for (const struct arch *a; (a = arch_at(n)) != NULL; n++) {
        assert_ptr_equal(arch_find(a->name, strlen(a->name)), a);
    }
    assert_true(n >= 30);
}

/* Names come from files: prefixes and longer ones are other names. */
static void arch_refuses_what_it_does_not_know(void **state)
{
    (void)state;
    assert_null(arch_find("llam", 4));
    assert_null(arch_find("llama4", 6));
    assert_null(arch_find("", 0));
}

/* A window needs a rule that can be followed. */
static void arch_periods_are_there_where_windows_repeat(void **state)
{
    (void)state;
    const struct arch *a;
    for (uint32_t i = 0; (a = arch_at(i)) != NULL; i++) {
        if (a->window == ARCH_WINDOW_PERIOD || a->window == ARCH_WINDOW_PERIOD_KEY) {
            assert_true(a->window_period > 1);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arch_finds_every_row_by_its_name),
        cmocka_unit_test(arch_refuses_what_it_does_not_know),
        cmocka_unit_test(arch_periods_are_there_where_windows_repeat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
