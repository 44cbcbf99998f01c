/* Fairness: whose flow was served least is next. */
#include "broker/queue.h"
#include "tests/test.h"

static void queue_serves_the_flow_with_the_smallest_counter(void **state)
{
    (void)state;
    struct queue q = { 0 };
    queue_enter(&q, 1);
    queue_enter(&q, 2);
    queue_charge(&q, 1, QUEUE_NORMAL, 100);
    struct queue_place a = { 1, QUEUE_NORMAL, 1 }, b = { 2, QUEUE_NORMAL, 2 };
    assert_true(queue_before(&q, &b, &a));
    queue_charge(&q, 2, QUEUE_NORMAL, 101);
    assert_true(queue_before(&q, &a, &b));
    queue_clear(&q);
}

static void queue_orders_one_flow_by_priority_then_admission(void **state)
{
    (void)state;
    struct queue q = { 0 };
    struct queue_place early = { 1, QUEUE_NORMAL, 1 }, late = { 1, QUEUE_NORMAL, 2 },
                       urgent = { 1, QUEUE_INTERACTIVE, 3 }, batch = { 1, QUEUE_BATCH, 0 };
    assert_true(queue_before(&q, &early, &late));
    assert_true(queue_before(&q, &urgent, &early));
    assert_true(queue_before(&q, &late, &batch));
    queue_clear(&q);
}

static void queue_charges_batch_more(void **state)
{
    (void)state;
    struct queue q = { 0 };
    queue_charge(&q, 1, QUEUE_INTERACTIVE, 10);
    queue_charge(&q, 2, QUEUE_NORMAL, 10);
    queue_charge(&q, 3, QUEUE_BATCH, 10);
    assert_true(queue_served(&q, 1) < queue_served(&q, 2));
    assert_true(queue_served(&q, 2) < queue_served(&q, 3));
    queue_clear(&q);
}

/* Who was away does not come back with credit for the time. */
static void queue_gives_no_credit_for_absence(void **state)
{
    (void)state;
    struct queue q = { 0 };
    queue_enter(&q, 1);
    queue_charge(&q, 1, QUEUE_NORMAL, 1000);
    queue_enter(&q, 2);
    assert_true(queue_served(&q, 2) == queue_served(&q, 1));
    queue_leave(&q, 2);
    queue_charge(&q, 1, QUEUE_NORMAL, 1000);
    queue_enter(&q, 2);
    assert_true(queue_served(&q, 2) == queue_served(&q, 1));
    queue_clear(&q);
}

/* One flow with forty long requests, one with a short one: the short one is second at the latest. */
static void queue_does_not_starve_a_single_request(void **state)
{
    (void)state;
    struct queue q = { 0 };
    for (int i = 0; i < 40; i++) {
        queue_enter(&q, 1);
    }
    struct queue_place many = { 1, QUEUE_NORMAL, 1 }, one = { 2, QUEUE_NORMAL, 41 };
    queue_charge(&q, 1, QUEUE_NORMAL, 5000);
    queue_enter(&q, 2);
    assert_true(queue_before(&q, &one, &many)); /* level with a crowd that is charged nothing yet */
    queue_charge(&q, 1, QUEUE_NORMAL, 1);
    assert_true(queue_before(&q, &one, &many));
    queue_clear(&q);
}

static void queue_makes_room_by_forgetting_idle_flows(void **state)
{
    (void)state;
    struct queue q = { 0 };
    for (uint64_t i = 1; i <= 3 * QUEUE_FLOWS_MAX; i++) {
        queue_enter(&q, i);
        queue_leave(&q, i);
    }
    assert_true(q.n <= QUEUE_FLOWS_MAX);
    queue_clear(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(queue_serves_the_flow_with_the_smallest_counter),
        cmocka_unit_test(queue_orders_one_flow_by_priority_then_admission),
        cmocka_unit_test(queue_charges_batch_more),
        cmocka_unit_test(queue_gives_no_credit_for_absence),
        cmocka_unit_test(queue_does_not_starve_a_single_request),
        cmocka_unit_test(queue_makes_room_by_forgetting_idle_flows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
