/* Weights by a window: who is loaded so, what RAM that counts, and what is left when one of the three dies. Sizes in MiB. */
#include "tests/broker/rig.h"

#define MIB (1ull << 20)

static struct model *named(struct rig *r, const char *name)
{
    struct err err = { 0 };
    struct model *m = models_get(r->b, name, NULL, &err);
    assert_non_null(m);
    return m;
}

static struct model *load(struct rig *r, const char *name)
{
    struct model *m = named(r, name);
    struct post_to to = { 0 };
    models_load(r->b, &to, m, false, true);
    rig_turns(r);
    return m;
}

/* A file of 64 and a budget of 40. */
static void begin(struct rig *r, bool own_memory)
{
    rig_open(r);
    r->own_memory = own_memory;
    r->window = 8 * MIB;
    r->b->config.ram_budget = 40 * MIB;
    rig_model(r, "a", 64 * MIB);
    rig_model(r, "b", 64 * MIB);
    rig_model(r, "small", 16 * MIB);
    rig_turns(r);
    rig_worker_hello(r);
    rig_turns(r);
}

static void head(struct rig *r)
{
    r->weights_bytes = 64 * MIB;
    rig_note(r, rig_child(r, HERITAGE_LOADER), CHANNEL_NOTE_HEADER, 64 * MIB,
             "device=1 digest=1 window=8388608 kept=1048576 arch=llama");
    rig_turns(r);
}

static void loaded(struct rig *r)
{
    rig_note(r, rig_child(r, HERITAGE_LOADER), CHANNEL_NOTE_LOADED, 1000000, "");
    rig_died(r, rig_child(r, HERITAGE_LOADER), 0);
    rig_turns(r);
}

static bool killed(const struct rig *r, uint32_t role)
{
    return r->children[rig_child(r, role) - 2].killed;
}

static void a_file_larger_than_the_budget_goes_by_a_window(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, true);
    struct model *m = load(&r, "a");
    assert_int_equal(m->state, MODEL_LOADING);
    assert_true(m->window.on && m->window.bytes == 10 * MIB); /* a quarter of the budget */
    assert_true(models_used(&r.b->models) == 14 * MIB);       /* and a guess at its manifest */
    head(&r);
    assert_true(models_used(&r.b->models) == 9 * MIB);
    assert_int_equal(m->bind, BIND_ASKED); /* the worker takes as the loader reads */
    loaded(&r);
    assert_int_equal(m->state, MODEL_WARM);
    assert_true(models_used(&r.b->models) == 1 * MIB);
    rig_bound(&r, m);
    assert_true(models_used(&r.b->models) == 2 * MIB);
    struct err err = { 0 };
    assert_ok(models_unload(r.b, m, &err), err);
    rig_turns(&r);
    assert_int_equal(m->bind, BIND_LEAVING);
    models_on_unbound(r.b, m->worker, m->number);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD);
    assert_true(models_used(&r.b->models) == 0);
    assert_int_equal(r.n_creates, r.n_drops);
    /* One that fits is read as a whole. */
    m = load(&r, "small");
    assert_true(m->state == MODEL_LOADING && !m->window.on);
    rig_close(&r);
}

static void refused(struct rig *r)
{
    struct model *m = load(r, "a");
    assert_int_equal(m->state, MODEL_COLD);
    assert_int_equal(m->error.code, ERR_NO_FIT);
    assert_non_null(strstr(m->error.text, "needs 64.0 MiB of RAM, the budget is 40.0 MiB"));
    assert_int_equal(rig_births(r, HERITAGE_LOADER), 0);
    rig_close(r);
}

static void without_a_memory_of_its_own_the_refusal_stays(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, false);
    refused(&r);
    begin(&r, true);
    r.b->config.load_window = CONFIG_WINDOW_OFF;
    refused(&r);
}

static void nobody_is_refused_before_the_device_is_known(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    r.own_memory = true;
    r.b->config.ram_budget = 40 * MIB;
    strcpy(r.b->workers.list[0].device, "auto");
    rig_model(&r, "a", 64 * MIB);
    rig_turns(&r);
    struct model *m = load(&r, "a");
    assert_true(m->state == MODEL_COLD && m->error.code == ERR_NONE);
    rig_worker_hello(&r);
    rig_turns(&r);
    assert_true(m->state == MODEL_LOADING && m->window.on);
    rig_close(&r);
}

static void a_window_can_be_had_by_configuration(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, true);
    r.b->config.load_window = 3 * MIB;
    struct model *m = load(&r, "small");
    assert_true(m->window.on && m->window.bytes == 3 * MIB);
    rig_close(&r);
    /* A window is no larger than what passes through it. */
    begin(&r, true);
    r.b->config.load_window = 1024 * MIB;
    m = load(&r, "small");
    assert_true(m->window.on && m->window.bytes == 16 * MIB);
    rig_close(&r);
}

static void lent_memory_is_not_waited_for(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, true);
    r.b->config.ram_budget = 100 * MIB;
    r.b->lend.bytes = 70 * MIB;
    struct model *m = load(&r, "a");
    assert_true(m->state == MODEL_LOADING && m->window.on);
    rig_close(&r);
}

/* Half of it is gone with the worker: the loader goes too, and when it is reaped another begins. */
static void a_worker_that_dies_in_the_midst_takes_the_load_along(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, true);
    struct model *m = load(&r, "a");
    head(&r);
    uint64_t segment = m->segment, word = m->window.segment;
    rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGKILL);
    rig_turns(&r);
    assert_true(killed(&r, HERITAGE_LOADER));
    assert_int_equal(m->state, MODEL_COLD);
    assert_true(m->swap.in_turn); /* nobody takes its place */
    assert_int_equal(rig_births(&r, HERITAGE_LOADER), 1);
    rig_died(&r, rig_child(&r, HERITAGE_LOADER), SIGKILL);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_LOADING);
    assert_int_equal(rig_births(&r, HERITAGE_LOADER), 2);
    assert_true(m->segment != segment && m->window.segment != word && m->window.on);
    /* The new worker is told of the new weights alone. */
    rig_worker_hello(&r);
    head(&r);
    assert_int_equal(m->bind, BIND_ASKED);
    assert_true(m->bind_segment == m->segment);
    rig_close(&r);
}

static void a_loader_that_dies_in_the_midst_is_begun_again(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, true);
    struct model *m = load(&r, "a");
    head(&r);
    rig_died(&r, rig_child(&r, HERITAGE_LOADER), SIGKILL);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_LOADING);
    assert_int_equal(m->bind, BIND_LEAVING); /* the worker lets go of the old ones first */
    head(&r);
    models_on_unbound(r.b, m->worker, m->number);
    rig_turns(&r);
    assert_int_equal(m->bind, BIND_ASKED);
    assert_true(m->bind_segment == m->segment);
    rig_close(&r);
}

static void a_resident_one_whose_worker_dies_is_read_again_and_keeps_its_state(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, true);
    struct model *m = load(&r, "a");
    head(&r);
    loaded(&r);
    rig_bound(&r, m);
    assert_non_null(rig_submit(&r, rig_client(&r, 1), 1, "a", 20, 5));
    rig_turns(&r);
    uint64_t pages = m->state_segment;
    rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGKILL);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_LOADING);
    assert_int_equal(rig_births(&r, HERITAGE_LOADER), 2);
    assert_true(m->state_segment == pages && pages);
    rig_worker_hello(&r);
    head(&r);
    loaded(&r);
    rig_bound(&r, m);
    assert_true(m->state_segment == pages && !m->state_fresh);
    /* Nobody wants it any more when the next one dies: nothing stays. */
    struct request *q = r.b->requests.list[0];
    request_cancel(r.b, q, &(struct err){ .code = ERR_CANCELLED });
    request_return(r.b, q, "released");
    q->gone = true;
    rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGKILL);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD);
    assert_int_equal(m->state_segment, 0);
    assert_true(models_used(&r.b->models) == 0);
    rig_close(&r);
}

/* Its loader would wait for a bind for ever. */
static void one_that_nobody_wants_is_given_up_before_it_is_bound(void **state)
{
    (void)state;
    struct rig r;
    begin(&r, true);
    rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGKILL); /* the next one has not said Hello */
    rig_turns(&r);
    struct request *q = rig_submit(&r, rig_client(&r, 1), 1, "a", 20, 5);
    rig_turns(&r);
    head(&r);
    struct model *m = named(&r, "a");
    assert_true(m->state == MODEL_LOADING && m->bind == BIND_NONE && q);
    q->gone = true;
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD);
    assert_true(killed(&r, HERITAGE_LOADER));
    rig_close(&r);
}

static void pass(struct rig *r, uint64_t ms)
{
    for (uint64_t t = 0; t < ms; t += WATCH_TURN_MS) {
        r->b->now_ms += WATCH_TURN_MS;
        rig_turns(r);
    }
}

static void only_the_one_who_is_awaited_is_hung(void **state)
{
    (void)state;
    struct rig r;
    /* The loader waits for bytes that nobody has uploaded: it is the worker's turn. */
    begin(&r, true);
    r.wants = 100;
    struct model *m = load(&r, "a");
    head(&r);
    assert_int_equal(m->bind, BIND_ASKED);
    pass(&r, WATCH_BIND_MS - 2000);
    assert_false(killed(&r, HERITAGE_LOADER) || killed(&r, HERITAGE_WORKER));
    pass(&r, 6000);
    assert_true(killed(&r, HERITAGE_WORKER));
    assert_false(killed(&r, HERITAGE_LOADER));
    rig_close(&r);
    /* They have been uploaded, and it does not go on. */
    begin(&r, true);
    r.wants = r.uploaded = 100;
    load(&r, "a");
    head(&r);
    pass(&r, WATCH_LOADER_MS + 3000);
    assert_true(killed(&r, HERITAGE_LOADER));
    assert_false(killed(&r, HERITAGE_WORKER));
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_larger_than_the_budget_goes_by_a_window),
        cmocka_unit_test(without_a_memory_of_its_own_the_refusal_stays),
        cmocka_unit_test(nobody_is_refused_before_the_device_is_known),
        cmocka_unit_test(a_window_can_be_had_by_configuration),
        cmocka_unit_test(lent_memory_is_not_waited_for),
        cmocka_unit_test(a_worker_that_dies_in_the_midst_takes_the_load_along),
        cmocka_unit_test(a_loader_that_dies_in_the_midst_is_begun_again),
        cmocka_unit_test(a_resident_one_whose_worker_dies_is_read_again_and_keeps_its_state),
        cmocka_unit_test(one_that_nobody_wants_is_given_up_before_it_is_bound),
        cmocka_unit_test(only_the_one_who_is_awaited_is_hung),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
