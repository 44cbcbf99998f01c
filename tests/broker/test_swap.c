/* Turns: who is in RAM when not all fit. Sizes in MiB; the rig's state takes one, a model that was never bound is promised half
 * its weights for it. */
#include "tests/broker/rig.h"

#define MIB (1u << 20)

static struct model *a, *b, *c;

static struct model *named(struct rig *r, const char *name)
{
    struct err err = { 0 };
    struct model *m = models_get(r->b, name, NULL, &err);
    assert_non_null(m);
    return m;
}

static void load(struct rig *r, struct model *m)
{
    struct post_to to = { 0 };
    models_load(r->b, &to, m, false, true);
    rig_turns(r);
}

/* a is resident and has a request in flight; nothing of b and c is there. */
static void begin(struct rig *r, uint32_t budget)
{
    rig_open(r);
    r->b->config.ram_budget = (uint64_t)budget * MIB;
    r->b->config.min_residency_s = 10;
    r->b->config.swap_wait_max_s = 30;
    rig_model(r, "a", 4 * MIB);
    rig_model(r, "b", 4 * MIB);
    rig_model(r, "c", 4 * MIB);
    rig_turns(r);
    rig_worker_hello(r);
    rig_turns(r);
    a = named(r, "a");
    b = named(r, "b");
    c = named(r, "c");
    load(r, a);
    rig_loaded(r, 4 * MIB);
    rig_bound(r, a);
    assert_non_null(rig_submit(r, rig_client(r, 1), 1, "a", 20, 5));
    rig_turns(r);
    assert_int_equal(a->n_running, 1);
}

static void later(struct rig *r, uint64_t ms)
{
    r->b->now_ms += ms;
    rig_turns(r);
}

/* The worker lets a go: its request first, then the model. */
static void leave(struct rig *r, struct model *m)
{
    assert_int_equal(m->state, MODEL_DRAINING);
    for (uint32_t i = 0; i < r->b->requests.n; i++) {
        if (r->b->requests.list[i]->model == m && r->b->requests.list[i]->worker) {
            assert_true(r->b->requests.list[i]->releasing);
            request_return(r->b, r->b->requests.list[i], "released");
        }
    }
    rig_turns(r);
    assert_int_equal(m->bind, BIND_LEAVING);
    models_on_unbound(r->b, m->worker, m->number);
    rig_turns(r);
}

static void a_model_at_work_keeps_its_place_for_min_residency(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, 7);
    a->swap.served = SWAP_SERVED_MIN;
    load(&r, b);
    later(&r, 9000);
    assert_int_equal(a->state, MODEL_RESIDENT);
    assert_int_equal(b->state, MODEL_COLD);
    later(&r, 2000);
    leave(&r, a);
    assert_int_equal(a->state, MODEL_COLD);
    assert_int_equal(b->state, MODEL_LOADING);
    assert_true(a->want_resident); /* its request waits, without loss */
    rig_close(&r);
}

static void who_served_nothing_yet_is_not_sent_away(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, 7);
    r.b->config.min_residency_s = r.b->config.swap_wait_max_s = 0;
    load(&r, b);
    later(&r, SWAP_GRACE_MS / 2);
    assert_int_equal(a->state, MODEL_RESIDENT);
    a->swap.served = SWAP_SERVED_MIN;
    later(&r, 1);
    assert_int_equal(a->state, MODEL_DRAINING);
    rig_close(&r);
}

/* The bug this guards against: three models that were wanted sent each other away before any of them had served. */
static void only_the_first_in_line_sends_others_away(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, 7);
    a->swap.served = SWAP_SERVED_MIN;
    load(&r, b);
    later(&r, 10);
    load(&r, c);
    assert_ptr_equal(r.b->models.first, b);
    later(&r, 11000);
    leave(&r, a);
    assert_int_equal(b->state, MODEL_LOADING);
    assert_int_equal(c->state, MODEL_COLD);
    assert_ptr_equal(r.b->models.first, c); /* a waits behind it now */
    rig_loaded(&r, 4 * MIB);
    later(&r, 60000);
    assert_int_equal(b->state, MODEL_WARM); /* on its way: nobody takes its room */
    assert_int_equal(b->bind, BIND_ASKED);
    rig_close(&r);
}

static void one_that_fails_brings_back_who_left_for_it(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, 7);
    request_cancel(r.b, r.b->requests.list[0], &(struct err){ .code = ERR_CANCELLED });
    request_return(r.b, r.b->requests.list[0], "released");
    r.b->requests.list[0]->gone = true;
    rig_turns(&r);
    load(&r, b);
    leave(&r, a);
    assert_int_equal(b->state, MODEL_LOADING);
    rig_note(&r, rig_child(&r, HERITAGE_LOADER), CHANNEL_NOTE_FAILED, ERR_BAD_FILE, "b: no magic");
    rig_died(&r, rig_child(&r, HERITAGE_LOADER), 7 << 8);
    rig_turns(&r);
    assert_int_equal(b->state, MODEL_COLD);
    assert_int_equal(a->state, MODEL_LOADING); /* though nobody asks */
    rig_loaded(&r, 4 * MIB);
    rig_bound(&r, a);
    assert_false(a->swap.come_back);
    rig_close(&r);
}

static void the_next_file_is_read_while_the_other_computes(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, 10); /* 4 + 1 and 4: no room for b's state beside them */
    a->swap.served = SWAP_SERVED_MIN;
    load(&r, b);
    assert_int_equal(b->state, MODEL_LOADING);
    assert_int_equal(a->state, MODEL_RESIDENT);
    rig_loaded(&r, 4 * MIB);
    assert_int_equal(b->state, MODEL_WARM);
    assert_int_equal(b->bind, BIND_NONE);
    later(&r, 11000);
    leave(&r, a);
    assert_int_equal(a->state, MODEL_WARM); /* only its state had to go */
    assert_int_equal(a->state_segment, 0);
    assert_int_equal(b->bind, BIND_ASKED);
    r.b->now_ms += 1;
    load(&r, c);
    assert_ptr_equal(r.b->models.first, a);
    assert_int_equal(c->state, MODEL_COLD); /* reading ahead is for the first alone */
    rig_close(&r);
}

/* Somebody kills its loader, again and again: the room stays its own, and so does its place in the row. In a storm in which
 * hardly a load came to its end the others took the room each time, and ten streams of one model had nothing for a minute. */
static void a_killed_loader_costs_no_turn(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, 7);
    a->swap.served = SWAP_SERVED_MIN;
    load(&r, b);
    later(&r, 11000);
    leave(&r, a); /* it is wanted again, and stands before b in the table */
    for (int i = 0; i < 3; i++) {
        later(&r, 1000);
        assert_int_equal(b->state, MODEL_LOADING);
        assert_int_equal(a->state, MODEL_COLD);
        rig_died(&r, rig_child(&r, HERITAGE_LOADER), SIGKILL);
        assert_int_equal(b->state, MODEL_COLD);
        assert_true(swap_used(r.b) >= 4 * MIB);
        rig_turns(&r);
    }
    rig_loaded(&r, 4 * MIB);
    assert_int_equal(b->bind, BIND_ASKED);
    rig_close(&r);
    /* One that is read ahead stays the first. */
    begin(&r, 10);
    load(&r, b);
    later(&r, 10);
    load(&r, c);
    assert_ptr_equal(r.b->models.first, b);
    for (int i = 0; i < 3; i++) {
        later(&r, 1000);
        assert_int_equal(b->state, MODEL_LOADING);
        assert_int_equal(c->state, MODEL_COLD);
        rig_died(&r, rig_child(&r, HERITAGE_LOADER), SIGKILL);
        rig_turns(&r);
        assert_ptr_equal(r.b->models.first, b);
    }
    rig_close(&r);
    /* Nobody wants it any more: its room is the others'. */
    begin(&r, 7);
    a->swap.served = SWAP_SERVED_MIN;
    load(&r, b);
    later(&r, 11000);
    leave(&r, a);
    assert_int_equal(b->state, MODEL_LOADING);
    r.b->models.n_asks = 0;
    rig_died(&r, rig_child(&r, HERITAGE_LOADER), SIGKILL);
    rig_turns(&r);
    assert_false(b->swap.in_turn);
    rig_loaded(&r, 4 * MIB);
    rig_bound(&r, a);
    rig_close(&r);
}

/* A broker that follows another finds in the journal how long each model has waited: since its last token, else since its
 * oldest request came. */
static void a_wait_outlives_the_broker(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, 7);
    swap_recovered(c, 0, 3000);
    swap_recovered(c, 0, 2000);
    assert_true(c->swap.wants_since_ms == 2000);
    swap_recovered(c, 5000, 1000);
    swap_recovered(c, 4000, 1500);
    swap_recovered(c, 0, 1200);
    assert_true(c->swap.wants_since_ms == 5000);
    /* So does a turn: it began when the others' last token was, and some grace is left of it. */
    uint64_t now = r.b->now_ms;
    a->swap.turn_ms = 0;
    swap_adopted(r.b);
    assert_true(a->swap.turn_ms == now - SWAP_GRACE_MS / 2);
    c->swap.wants_since_ms = now - 300;
    swap_adopted(r.b);
    assert_true(a->swap.turn_ms == now - 300);
    c->swap.wants_since_ms = 5000;
    struct post_to to = { 0 };
    models_load(r.b, &to, b, false, true);
    models_load(r.b, &to, c, false, true);
    rig_turns(&r);
    assert_ptr_equal(r.b->models.first, c); /* b comes before it in the table */
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_at_work_keeps_its_place_for_min_residency),
        cmocka_unit_test(who_served_nothing_yet_is_not_sent_away),
        cmocka_unit_test(only_the_first_in_line_sends_others_away),
        cmocka_unit_test(one_that_fails_brings_back_who_left_for_it),
        cmocka_unit_test(the_next_file_is_read_while_the_other_computes),
        cmocka_unit_test(a_killed_loader_costs_no_turn),
        cmocka_unit_test(a_wait_outlives_the_broker),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
