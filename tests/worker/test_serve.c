/* The worker's loop against a broker, a keeper and a journal of the test's own. */
#include "tests/worker/house.h"

static struct house house;

static int open_house(void **state)
{
    (void)state;
    house_open(&house, HEARTH_FIXTURES "/hearth-tiny.gguf");
    return 0;
}

static int close_house(void **state)
{
    (void)state;
    house_close(&house);
    return 0;
}

static void prompt_of(int32_t *prompt, uint32_t n, uint32_t seed)
{
    for (uint32_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        prompt[i] = (int32_t)((seed >> 8) % 300 + 20);
    }
}

static bool __attribute__((unused)) ended(int slot)
{
    static struct answer a;
    house_read(&house, slot, &a);
    return a.ended;
}

/* Runs one request to its end, alone. */
static void run(uint32_t n_prompt, uint32_t seed, const struct journal_params *params,
                const char *stop, struct answer *a)
{
    static int32_t prompt[512];
    prompt_of(prompt, n_prompt, seed);
    int slot = house_admit(&house, prompt, n_prompt, params, stop, HOUSE_CHILD);
    uint32_t before = house.n_finished;
    house_give(&house, slot);
    HOUSE_UNTIL(&house, house.n_finished > before);
    house_read(&house, slot, a);
    assert_true(a->ended);
    house_free(&house, slot);
}

/* One request end to end: taken, answered in the journal, its reader woken, its end told. */
static void one_request_is_answered(void **state)
{
    (void)state;
    static struct answer a;
    house_bind(&house, 4, 0);
    assert_int_equal(house.ctx, 512);
    assert_true(house.generates);
    house.page->waiting = 1;
    struct journal_params params = house_params(20);
    run(17, 1, &params, NULL, &a);
    assert_int_equal(a.n_tokens, 20);
    assert_int_equal(a.end, JOURNAL_END_LENGTH);
    assert_true(a.n_bytes > 0);
    uint64_t wakes = 0;
    assert_int_equal(sizeof wakes, read(house.event_fd, &wakes, sizeof wakes));
    assert_int_equal(wakes, 1); /* only the first record found a sleeper */
    assert_int_equal(house.page->waiting, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_request_is_answered, open_house, close_house),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
