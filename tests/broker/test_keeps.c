/* Goal: weights that a worker may have mapped leave RAM only by its word or its death, and neither a lost letter nor a new broker changes
 * that. */
#include "tests/broker/rig.h"

static void ready(struct rig *r, bool keeps)
{
    rig_open(r);
    r->keeps = keeps;
    rig_model(r, "a", 8192);
    rig_turns(r);
    rig_worker_hello(r);
    rig_turns(r);
}

static struct keeps *keeps_of(struct rig *r)
{
    return &r->b->workers.list[0].keeps;
}

static struct model *load(struct rig *r, bool resident)
{
    struct err err = { 0 };
    struct post_to to = { 0 };
    struct model *m = models_get(r->b, "a", NULL, &err);
    models_load(r->b, &to, m, false, resident);
    rig_turns(r);
    rig_loaded(r, 8192);
    if (resident) {
        rig_bound(r, m);
    }
    return m;
}

/* Unloads; the worker lets the model go and, as far as its weights are concerned, says nothing yet. */
static void unload(struct rig *r, struct model *m)
{
    struct err err = { 0 };
    assert_ok(models_unload(r->b, m, &err), err);
    rig_turns(r);
    if (m->bind == BIND_LEAVING) {
        models_on_unbound(r->b, m->worker, m->number);
        rig_turns(r);
    }
}

static void pass(struct rig *r, uint64_t ms)
{
    for (uint64_t t = 0; t < ms; t += WATCH_TURN_MS) {
        r->b->now_ms += WATCH_TURN_MS;
        rig_turns(r);
    }
}

static void weights_go_when_the_worker_has_let_go(void **state)
{
    (void)state;
    struct rig r;
    ready(&r, true);
    struct model *m = load(&r, true);
    uint64_t segment = m->segment;
    assert_true(keeps_has(&r.b->workers.list[0], segment));
    unload(&r, m);
    assert_int_equal(m->segment, segment); /* its room is still taken */
    assert_true(swap_used(r.b) >= 8192 && keeps_of(&r)->list[0].asked);
    uint64_t said = r.b->n_said;
    pass(&r, 10000);
    assert_int_equal(r.b->n_said, said);                      /* asked once */
    keeps_on_forgot(r.b, &r.b->workers.list[0], segment + 1); /* of another: nothing */
    rig_turns(&r);
    assert_int_equal(m->segment, segment);
    keeps_on_forgot(r.b, &r.b->workers.list[0], segment);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD);
    assert_int_equal(swap_used(r.b), 0);
    keeps_on_forgot(r.b, &r.b->workers.list[0], segment); /* said twice */
    rig_close(&r);
}

static void its_death_is_an_answer(void **state)
{
    (void)state;
    struct rig r;
    ready(&r, true);
    struct model *m = load(&r, true);
    unload(&r, m);
    assert_int_equal(m->state, MODEL_DRAINING);
    rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGKILL);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD);
    rig_close(&r);
}

static void one_that_does_not_answer_is_hung(void **state)
{
    (void)state;
    struct rig r;
    ready(&r, true);
    struct model *m = load(&r, true);
    unload(&r, m);
    pass(&r, WATCH_BIND_MS - 2000);
    assert_false(r.children[rig_child(&r, HERITAGE_WORKER) - 2].killed);
    pass(&r, 4000);
    assert_true(r.children[rig_child(&r, HERITAGE_WORKER) - 2].killed);
    rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGKILL);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD);
    rig_close(&r);
}

/* It greets anew: the question may have died with the link, and its answer too. */
static void a_lost_question_is_asked_again(void **state)
{
    (void)state;
    struct rig r;
    ready(&r, true);
    struct model *m = load(&r, true);
    unload(&r, m);
    uint64_t said = r.b->n_said;
    rig_worker_hello(&r); /* without the segment: it let go, and its word was lost */
    rig_turns(&r);
    assert_true(r.b->n_said > said && keeps_of(&r)->list[0].asked);
    keeps_on_forgot(r.b, &r.b->workers.list[0], m->segment);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD);
    rig_close(&r);
}

static void a_warm_model_is_hinted_at_once(void **state)
{
    (void)state;
    struct rig r;
    ready(&r, true);
    struct model *m = load(&r, false);
    assert_int_equal(m->state, MODEL_WARM);
    assert_true(keeps_of(&r)->n == 1 && keeps_of(&r)->list[0].told);
    uint64_t said = r.b->n_said;
    pass(&r, 5000);
    assert_int_equal(r.b->n_said, said);
    unload(&r, m);
    assert_int_equal(m->state, MODEL_WARM);
    assert_true(keeps_of(&r)->list[0].asked);
    keeps_on_forgot(r.b, &r.b->workers.list[0], m->segment);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD);
    rig_close(&r);
}

/* A bind comes first: the upload does not wait for a registration. */
static void no_hint_overtakes_a_bind(void **state)
{
    (void)state;
    struct rig r;
    struct err err = { 0 };
    struct post_to to = { 0 };
    ready(&r, true);
    struct model *m = models_get(r.b, "a", NULL, &err);
    models_load(r.b, &to, m, false, true);
    rig_turns(&r);
    rig_loaded(&r, 8192);
    assert_int_equal(m->bind, BIND_ASKED);
    assert_true(keeps_of(&r)->n == 1 && !keeps_of(&r)->list[0].told);
    rig_bound(&r, m);
    assert_false(keeps_of(&r)->list[0].told); /* by itself, it registers what it has bound */
    rig_close(&r);
}

static void nothing_is_said_to_a_worker_that_keeps_nothing(void **state)
{
    (void)state;
    struct rig r;
    ready(&r, false);
    struct model *m = load(&r, true);
    assert_int_equal(keeps_of(&r)->n, 0);
    unload(&r, m);
    assert_int_equal(m->state, MODEL_COLD);
    m = load(&r, false);
    assert_int_equal(keeps_of(&r)->n, 0);
    unload(&r, m);
    assert_int_equal(m->state, MODEL_COLD);
    rig_close(&r);
}

static void a_new_broker_does_not_believe_that_nothing_is_kept(void **state)
{
    (void)state;
    struct rig r;
    ready(&r, true);
    struct model *m = load(&r, false);
    struct worker *w = &r.b->workers.list[0];
    uint64_t segment = m->segment;
    /* As a broker finds it that has just adopted the worker. */
    w->keeps = (struct keeps){ .unknown = true };
    w->state = WORKER_BORN;
    unload(&r, m);
    assert_int_equal(m->segment, segment);
    r.kept = segment;
    rig_worker_hello(&r);
    rig_turns(&r);
    assert_int_equal(m->segment, segment);
    assert_true(keeps_of(&r)->list[0].asked);
    keeps_on_forgot(r.b, w, segment);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD);
    /* And what no model has is asked back. */
    r.kept = 4711;
    rig_worker_hello(&r);
    rig_turns(&r);
    assert_true(keeps_of(&r)->n == 1 && keeps_of(&r)->list[0].asked);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_go_when_the_worker_has_let_go),
        cmocka_unit_test(its_death_is_an_answer),
        cmocka_unit_test(one_that_does_not_answer_is_hung),
        cmocka_unit_test(a_lost_question_is_asked_again),
        cmocka_unit_test(a_warm_model_is_hinted_at_once),
        cmocka_unit_test(no_hint_overtakes_a_bind),
        cmocka_unit_test(nothing_is_said_to_a_worker_that_keeps_nothing),
        cmocka_unit_test(a_new_broker_does_not_believe_that_nothing_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
