/* Models come and go with the work that wants them; the keeper and the worker are the test's. */
#include "tests/broker/rig.h"

static struct model *named(struct rig *r, const char *name)
{
    struct err err = { 0 };
    struct model *m = models_get(r->b, name, NULL, &err);
    if (!m) {
        fail_msg("%s", err.text);
    }
    return m;
}

static void load(struct rig *r, struct model *m, bool pin)
{
    struct post_to to = { 0 };
    models_load(r->b, &to, m, pin, true);
    rig_turns(r);
}

/* From nothing to a resident model. */
static void bring(struct rig *r, struct model *m, uint64_t bytes)
{
    load(r, m, false);
    assert_int_equal(m->state, MODEL_LOADING);
    rig_loaded(r, bytes);
    rig_bound(r, m);
}

static void ready(struct rig *r)
{
    rig_turns(r);
    rig_worker_hello(r);
    rig_turns(r);
}

static void model_goes_from_cold_to_resident_when_wanted(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    rig_model(&r, "a", 1000);
    ready(&r);
    struct model *m = named(&r, "a");
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD); /* nobody wants it */
    bring(&r, m, 4096);
    assert_int_equal(r.b->models.n_asks, 0); /* answered */
    assert_int_equal(rig_births(&r, HERITAGE_TEXT), 1);
    assert_true(models_used(&r.b->models) == 4096 + (1 << 20));
    rig_close(&r);
}

/* What a device has no room for counts as long as its worker holds it. */
static void weights_in_a_workers_memory_are_counted(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    rig_model(&r, "a", 1000);
    ready(&r);
    struct model *m = named(&r, "a");
    r.spilled_bytes = 5000;
    bring(&r, m, 4096);
    assert_true(models_used(&r.b->models) == 4096 + (1 << 20) + 5000);
    assert_true(swap_used(r.b) == 4096 + (1 << 20) + 5000);
    models_worker_died(r.b, m->worker, false);
    assert_true(models_used(&r.b->models) == 4096 + (1 << 20));
    rig_close(&r);
}

static void outside_kill_of_a_loader_begins_again_and_an_error_is_told(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    rig_model(&r, "a", 1000);
    ready(&r);
    struct model *m = named(&r, "a");
    load(&r, m, false);
    for (int i = 0; i < 5; i++) {
        rig_died(&r, rig_child(&r, HERITAGE_LOADER), SIGKILL);
        rig_turns(&r);
        assert_int_equal(m->state, MODEL_LOADING);
    }
    assert_int_equal(rig_births(&r, HERITAGE_LOADER), 6);
    /* A fault: one retry, then it fails. */
    rig_died(&r, rig_child(&r, HERITAGE_LOADER), SIGSEGV);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_LOADING);
    rig_died(&r, rig_child(&r, HERITAGE_LOADER), SIGSEGV);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD);
    assert_int_equal(rig_births(&r, HERITAGE_LOADER), 7);
    assert_int_equal(r.b->models.n_asks, 0);
    /* A bad file is bad the second time too. */
    load(&r, m, false);
    rig_note(&r, rig_child(&r, HERITAGE_LOADER), CHANNEL_NOTE_FAILED, ERR_BAD_FILE, "a: no magic");
    rig_died(&r, rig_child(&r, HERITAGE_LOADER), 7 << 8);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD);
    assert_int_equal(m->error.code, ERR_BAD_FILE);
    assert_int_equal(rig_births(&r, HERITAGE_LOADER), 8);
    rig_close(&r);
}

/* A file that no worker computes is refused at its head; a whole name counts. */
static void unknown_architecture_is_refused_before_its_data_is_read(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    rig_model(&r, "a", 1000);
    ready(&r);
    struct model *m = named(&r, "a");
    static const char *const unknown[] = { "mamba9", "qwen2", "moe", "llama2" };
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        char text[64];
        snprintf(text, sizeof text, "digest=1 arch=%s", unknown[i]);
        load(&r, m, false);
        uint32_t loader = rig_child(&r, HERITAGE_LOADER);
        rig_note(&r, loader, CHANNEL_NOTE_HEADER, 4096, text);
        rig_turns(&r);
        assert_int_equal(m->state, MODEL_COLD);
        assert_int_equal(m->error.code, ERR_UNSUPPORTED);
        assert_non_null(strstr(m->error.text, unknown[i]));
        assert_int_equal(r.b->models.n_asks, 0);
        assert_true(models_used(&r.b->models) == 0);
        rig_died(&r, loader, SIGKILL);
        rig_turns(&r);
        assert_int_equal(m->state, MODEL_COLD);
    }
    load(&r, m, false);
    rig_note(&r, rig_child(&r, HERITAGE_LOADER), CHANNEL_NOTE_HEADER, 4096,
             "digest=1 arch=qwen2moe");
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_LOADING);
    rig_close(&r);
}

/* What the worker cannot bind for the file's sake keeps no RAM. */
static void model_that_cannot_be_bound_leaves(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    rig_model(&r, "a", 1000);
    ready(&r);
    struct model *m = named(&r, "a");
    load(&r, m, false);
    rig_loaded(&r, 4096);
    assert_int_equal(m->bind, BIND_ASKED);
    Hearth__WorkerBound bound = HEARTH__WORKER_BOUND__INIT;
    bound.model = m->number;
    bound.has_code = bound.has_text = true;
    bound.code = message_str(err_name(ERR_BAD_FILE));
    bound.text = message_str("tensor output_norm.weight is missing");
    models_on_bound(r.b, m->worker, &bound);
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_COLD);
    assert_int_equal(m->error.code, ERR_BAD_FILE);
    assert_true(models_used(&r.b->models) == 0);
    rig_close(&r);
}

static void least_recently_used_model_makes_room(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    r.b->config.ram_budget = 12u << 20;
    rig_model(&r, "a", 4 << 20);
    rig_model(&r, "b", 4 << 20);
    rig_model(&r, "c", 4 << 20);
    ready(&r);
    struct model *a = named(&r, "a"), *b = named(&r, "b"), *c = named(&r, "c");
    bring(&r, a, 4 << 20);
    r.b->now_ms += 10;
    bring(&r, b, 4 << 20);
    assert_int_equal(a->state, MODEL_RESIDENT); /* side by side */
    r.b->now_ms += 10;
    load(&r, c, false);
    assert_int_equal(a->state, MODEL_DRAINING);
    assert_int_equal(a->bind, BIND_LEAVING);
    assert_int_equal(c->state, MODEL_COLD);
    models_on_unbound(r.b, a->worker, a->number);
    rig_turns(&r);
    assert_int_equal(a->state, MODEL_COLD);
    assert_int_equal(b->state, MODEL_RESIDENT);
    assert_int_equal(c->state, MODEL_LOADING);
    rig_close(&r);
}

static void what_never_fits_is_refused_with_both_numbers(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    rig_model(&r, "a", 8 << 20);
    ready(&r);
    r.b->config.ram_budget = 4u << 20;
    struct model *m = named(&r, "a");
    load(&r, m, false);
    assert_int_equal(m->state, MODEL_COLD);
    assert_int_equal(m->error.code, ERR_NO_FIT);
    assert_non_null(strstr(m->error.text, "8.0 MiB"));
    assert_non_null(strstr(m->error.text, "4.0 MiB"));
    r.b->config.ram_budget = 64u << 20;
    r.mem_available = 2u << 20;
    load(&r, m, false);
    assert_int_equal(m->error.code, ERR_NO_FIT);
    assert_non_null(strstr(m->error.text, "2.0 MiB are available"));
    rig_close(&r);
}

/* The bug this guards against: an evaluation waited for ever, because its worker was killed and nobody wanted the model
 * after resident -> warm. */
static void evaluation_wants_its_model_again_after_a_death(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    rig_model(&r, "a", 1000);
    ready(&r);
    struct model *m = named(&r, "a");
    struct client *c = rig_client(&r, 5);
    Hearth__Evaluate ask = HEARTH__EVALUATE__INIT;
    int32_t ids[3] = { 1, 2, 3 };
    struct post_to to = { .peer = c->peer };
    evals_ask(r.b, &to, c, m, &ask, ids, sizeof ids);
    rig_turns(&r);
    rig_loaded(&r, 4096);
    rig_bound(&r, m);
    struct eval *e = r.b->evals.first;
    assert_non_null(e);
    assert_int_equal(e->state, EVAL_RUNNING);
    for (int i = 0; i < 4; i++) {
        rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGKILL);
        assert_int_equal(m->state, MODEL_WARM);
        assert_int_equal(e->state, EVAL_WAITING);
        rig_turns(&r);
        rig_worker_hello(&r);
        rig_turns(&r);
        assert_true(m->want_resident);
        assert_int_equal(m->bind, BIND_ASKED);
        rig_bound(&r, m);
        assert_int_equal(e->state, EVAL_RUNNING);
        assert_false(m->state_fresh); /* killed from outside: its state is believed */
    }
    rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGSEGV);
    rig_turns(&r);
    assert_int_equal(m->state_segment, 0); /* after a fault it is not */
    rig_close(&r);
}

static void three_faults_in_a_minute_mark_the_device_down(void **state)
{
    (void)state;
    struct rig r;
    struct err why;
    rig_open(&r);
    rig_turns(&r);
    for (int i = 0; i < WORKERS_STRIKES; i++) {
        assert_false(workers_all_down(&r.b->workers, &why));
        rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGABRT);
        r.b->now_ms += WORKERS_BACKOFF_MAX;
        rig_turns(&r);
    }
    assert_true(workers_all_down(&r.b->workers, &why));
    assert_non_null(strstr(why.text, "device cpu is down"));
    uint32_t births = rig_births(&r, HERITAGE_WORKER);
    assert_int_equal(births, WORKERS_STRIKES);
    r.b->now_ms += WORKERS_STRIKE_MS;
    rig_turns(&r);
    assert_int_equal(rig_births(&r, HERITAGE_WORKER), births + 1);
    rig_close(&r);
}

static struct err end_of(const struct request *q)
{
    struct journal_record end;
    struct err err = { 0 };
    assert_int_equal(q->state, REQUEST_FAILED);
    assert_int_equal(request_find_end(q, &end), 1);
    assert_int_equal(end.end, JOURNAL_END_ERROR);
    err.code = (enum err_code)end.code;
    return err;
}

/* As if it had been on a device before, so that requests are admitted while it is not. */
static void known(struct model *m)
{
    m->info = (struct model_info){ .known = true,
                                   .ctx = 2048,
                                   .n_vocab = 1000,
                                   .n_sequences = 2,
                                   .piece_bytes_max = 16,
                                   .generates = true };
}

/* Born, and dead before a word: each birth later than the last, and who waits hears why. */
static void worker_that_dies_at_every_start_is_backed_off_and_its_requests_end(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    rig_model(&r, "a", 1000);
    rig_turns(&r);
    known(named(&r, "a"));
    struct request *q = rig_submit(&r, rig_client(&r, 5), 1, "a", 3, 4);
    assert_non_null(q);
    for (uint32_t i = 0; i < WORKERS_STRIKES; i++) {
        assert_int_equal(rig_births(&r, HERITAGE_WORKER), i + 1);
        assert_int_equal(q->state, REQUEST_QUEUED);
        rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGABRT);
        if (i + 1 < WORKERS_STRIKES) {
            uint64_t wait = (uint64_t)WORKERS_BACKOFF_MIN << i;
            r.b->now_ms += wait - 1;
            rig_turns(&r);
            assert_int_equal(rig_births(&r, HERITAGE_WORKER), i + 1); /* not yet */
            r.b->now_ms += 1;
        }
        rig_turns(&r);
    }
    assert_int_equal(rig_births(&r, HERITAGE_WORKER), WORKERS_STRIKES);
    assert_int_equal(end_of(q).code, ERR_FAILED);
    assert_int_equal(request_slot(q)->deaths, 0); /* it never ran */
    rig_close(&r);
}

/* A model under whose bind the worker dies: its requests end after two such deaths; who runs on another model is not blamed for
 * them, however often clients ask for the bad one, and runs on. */
static void worker_that_dies_at_every_bind_fails_that_model_alone(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    rig_model(&r, "bad", 1000);
    rig_model(&r, "good", 1000);
    ready(&r);
    struct model *good = named(&r, "good"), *bad = named(&r, "bad");
    struct client *c = rig_client(&r, 5);
    known(bad);
    bring(&r, good, 4096);
    struct request *runs = rig_submit(&r, c, 1, "good", 3, 40);
    rig_turns(&r);
    assert_int_equal(runs->state, REQUEST_PREFILL);
    for (uint8_t ask = 0; ask < 2; ask++) {
        struct request *q = rig_submit(&r, c, (uint8_t)(10 + ask), "bad", 3, 40);
        assert_non_null(q);
        rig_turns(&r);
        if (bad->state == MODEL_LOADING) {
            rig_loaded(&r, 4096);
        }
        for (uint32_t i = 0; i < MODELS_BIND_DEATHS_MAX; i++) {
            assert_int_equal(bad->bind, BIND_ASKED);
            assert_int_equal(q->state, REQUEST_QUEUED);
            rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGSEGV);
            rig_turns(&r);
            rig_worker_hello(&r);
            rig_turns(&r);
            rig_bound(&r, good);
        }
        assert_int_equal(end_of(q).code, ERR_FAILED);
        assert_non_null(strstr(bad->error.text, "while it took model bad"));
        assert_int_equal(runs->state, REQUEST_PREFILL);
    }
    assert_int_equal(request_slot(runs)->deaths, 0);
    struct err why;
    assert_false(workers_all_down(&r.b->workers, &why));
    rig_close(&r);
}

static void outside_kills_never_delay_a_worker(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    rig_turns(&r);
    for (uint32_t i = 0; i < 20; i++) {
        assert_int_equal(rig_births(&r, HERITAGE_WORKER), i + 1);
        if (i % 2) {
            rig_worker_hello(&r);
        }
        rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGKILL);
        rig_turns(&r);
    }
    rig_close(&r);
}

/* The letters of a bind, up to so many, and the model's worker greets by another link: what was said to the old one is gone. */
static void a_worker_that_greets_again_is_asked_again(void **state)
{
    (void)state;
    for (int said = 0; said < 3; said++) {
        struct rig r;
        rig_open(&r);
        rig_model(&r, "a", 1000);
        ready(&r);
        struct model *m = named(&r, "a");
        load(&r, m, false);
        rig_loaded(&r, 4096);
        assert_int_equal(m->bind, BIND_ASKED);
        if (said > 0) {
            Hearth__WorkerNeed need = HEARTH__WORKER_NEED__INIT;
            need.model = m->number;
            need.state_bytes = 1 << 20;
            need.fingerprint = message_str("f16-2048");
            models_on_need(r.b, m->worker, &need);
            assert_int_equal(m->bind, BIND_NEEDS);
        }
        if (said > 1) {
            rig_turns(&r);
            assert_int_equal(m->bind, BIND_STATE);
        }
        rig_worker_hello(&r);
        rig_turns(&r);
        rig_bound(&r, m);
        /* And as it leaves. */
        struct err err = { 0 };
        assert_ok(models_unload(r.b, m, &err), err);
        rig_turns(&r);
        assert_int_equal(m->bind, BIND_LEAVING);
        rig_worker_hello(&r);
        rig_turns(&r);
        assert_int_equal(m->state, MODEL_COLD);
        rig_close(&r);
    }
}

/* It has the model of weights that are gone, and the next have no size yet: it is not told to bind those. */
static void weights_without_a_head_are_not_bound(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    rig_model(&r, "a", 1000);
    ready(&r);
    struct model *m = named(&r, "a");
    load(&r, m, false);
    assert_int_equal(m->state, MODEL_LOADING);
    uint32_t worker = rig_child(&r, HERITAGE_WORKER);
    uint64_t said = r.b->n_said;
    models_worker_has(r.b, worker, m->number);
    rig_turns(&r);
    assert_int_equal(m->bind, BIND_NONE);
    assert_int_equal(r.b->n_said, said + 1); /* to let go */
    rig_note(&r, rig_child(&r, HERITAGE_LOADER), CHANNEL_NOTE_HEADER, 4096, "");
    rig_turns(&r);
    assert_int_equal(m->bind, BIND_ASKED);
    rig_close(&r);
}

static void text_service_that_cannot_start_fails_text_work_only(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r);
    rig_model(&r, "a", 1000);
    ready(&r);
    struct model *m = named(&r, "a");
    bring(&r, m, 4096);
    for (int i = 0; i < MODELS_TEXT_TRIES; i++) {
        uint32_t child = rig_child(&r, HERITAGE_TEXT);
        rig_note(&r, child, CHANNEL_NOTE_FAILED, ERR_FAILED, "no vocabulary");
        rig_died(&r, child, 1 << 8);
        r.b->now_ms += WORKERS_BACKOFF_MAX;
        rig_turns(&r);
    }
    assert_int_equal(m->text.failed.code, ERR_FAILED);
    struct client *c = rig_client(&r, 5);
    struct request *q = rig_submit(&r, c, 1, "a", 3, 4);
    rig_turns(&r);
    assert_non_null(q);
    assert_int_equal(q->state, REQUEST_PREFILL); /* ids need no text service */
    Hearth__TextAsk ask = HEARTH__TEXT_ASK__INIT;
    struct post_to to = { 0 };
    texts_ask(r.b, &to, m, NULL, &ask, "x", 1);
    rig_turns(&r);
    assert_int_equal(r.b->texts.n, 0); /* failed at once */
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_goes_from_cold_to_resident_when_wanted),
        cmocka_unit_test(weights_in_a_workers_memory_are_counted),
        cmocka_unit_test(outside_kill_of_a_loader_begins_again_and_an_error_is_told),
        cmocka_unit_test(unknown_architecture_is_refused_before_its_data_is_read),
        cmocka_unit_test(model_that_cannot_be_bound_leaves),
        cmocka_unit_test(least_recently_used_model_makes_room),
        cmocka_unit_test(what_never_fits_is_refused_with_both_numbers),
        cmocka_unit_test(evaluation_wants_its_model_again_after_a_death),
        cmocka_unit_test(three_faults_in_a_minute_mark_the_device_down),
        cmocka_unit_test(worker_that_dies_at_every_start_is_backed_off_and_its_requests_end),
        cmocka_unit_test(worker_that_dies_at_every_bind_fails_that_model_alone),
        cmocka_unit_test(outside_kills_never_delay_a_worker),
        cmocka_unit_test(a_worker_that_greets_again_is_asked_again),
        cmocka_unit_test(weights_without_a_head_are_not_bound),
        cmocka_unit_test(text_service_that_cannot_start_fails_text_work_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
