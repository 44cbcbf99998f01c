/* Who steps next: decode first, prompts share evenly, the pace follows the clock within its bounds. */
#include "tests/test.h"

#include "worker/batch.h"

static void decode_rows_come_first(void **state)
{
    (void)state;
    struct batch_item items[] = {
        { .n_left = 1000 }, { .n_left = 1 }, { .n_left = 0 }, { .n_left = 1 }
    };
    assert_int_equal(batch_plan(items, 4, 32, 512), 34);
    assert_int_equal(items[0].n_rows, 32);
    assert_int_equal(items[1].n_rows, 1);
    assert_int_equal(items[2].n_rows, 0);
    assert_int_equal(items[3].n_rows, 1);
}

static void prompts_share_evenly_and_short_ones_pass(void **state)
{
    (void)state;
    struct batch_item items[] = { { .n_left = 1000 }, { .n_left = 10 }, { .n_left = 500 } };
    assert_int_equal(batch_plan(items, 3, 100, 512), 100);
    assert_int_equal(items[1].n_rows, 10);
    assert_in_range(items[0].n_rows, 44, 46);
    assert_in_range(items[2].n_rows, 44, 46);
}

static void a_plan_never_exceeds_its_bounds(void **state)
{
    (void)state;
    uint32_t seed = 1;
    for (int round = 0; round < 2000; round++) {
        struct batch_item items[64];
        uint32_t n = 0, sum = 0, wanted = 0;
        for (; n < 64; n++) {
            seed = seed * 1664525u + 1013904223u;
            items[n].n_left = (seed >> 20) % 5 == 0 ? 1 : (seed >> 16) % 700;
        }
        uint32_t budget = 16 + round % 500, rows_max = 80 + round % 600;
        uint32_t rows = batch_plan(items, n, budget, rows_max), n_decode = 0;
        for (uint32_t i = 0; i < n; i++) {
            assert_true(items[i].n_rows <= items[i].n_left);
            sum += items[i].n_rows;
            wanted += items[i].n_left > 1 ? items[i].n_left : 0;
            n_decode += items[i].n_left == 1;
            assert_true(items[i].n_left != 1 || items[i].n_rows == 1);
        }
        assert_int_equal(sum, rows);
        assert_true(rows <= rows_max);
        uint32_t room = rows_max - n_decode < budget ? rows_max - n_decode : budget;
        assert_int_equal(rows - n_decode, wanted < room ? wanted : room); /* nothing is wasted */
    }
}

static void the_pace_follows_what_steps_take(void **state)
{
    (void)state;
    struct batch_pace pace;
    batch_pace_init(&pace);
    for (int i = 0; i < 20; i++) { /* a device of 1 ms a row */
        uint32_t rows = batch_budget(&pace, true);
        batch_observe(&pace, true, rows, 0.001 * rows);
    }
    assert_in_range(batch_budget(&pace, true), 45, 55);
    for (int i = 0; i < 20; i++) { /* a slow one */
        batch_observe(&pace, true, batch_budget(&pace, true), 10);
    }
    assert_int_equal(batch_budget(&pace, true), BATCH_ROWS_MIN);
    for (int i = 0; i < 20; i++) { /* a fast one, alone */
        batch_observe(&pace, false, batch_budget(&pace, false), 0.0001);
    }
    assert_int_equal(batch_budget(&pace, false), BATCH_ROWS_MAX);
    batch_observe(&pace, true, 3, 100); /* a step that was not full says nothing */
    assert_int_equal(batch_budget(&pace, false), BATCH_ROWS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_rows_come_first),
        cmocka_unit_test(prompts_share_evenly_and_short_ones_pass),
        cmocka_unit_test(a_plan_never_exceeds_its_bounds),
        cmocka_unit_test(the_pace_follows_what_steps_take),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
