/* The life of a request: moves, admission, who is taken next, blame, ends. */
#include "tests/broker/rig.h"

static struct model *m;
static struct client *c;

static void open_resident(struct rig *r)
{
    struct err err = { 0 };
    rig_open(r);
    rig_model(r, "a", 1000);
    rig_turns(r);
    rig_worker_hello(r);
    c = rig_client(r, 5);
    m = models_get(r->b, "a", NULL, &err);
    struct post_to to = { 0 };
    models_load(r->b, &to, m, false, true);
    rig_turns(r);
    rig_loaded(r, 4096);
    rig_bound(r, m);
}

/* The worker commits one record. */
static void commit(struct rig *r, struct request *q, unsigned flags, enum journal_end end)
{
    struct journal_writer w;
    struct err err = { 0 };
    struct journal_record record = { .token = 7, .flags = (uint16_t)flags, .end = (uint16_t)end };
    assert_ok(journal_writer_init(&w, &q->shard->journal, q->slot, q->generation, q->worker, &err),
              err);
    assert_ok(journal_append(&w, &record, NULL, "x", 1, &err), err);
    rig_turns(r);
}

static void only_the_moves_of_the_diagram_are_allowed(void **state)
{
    (void)state;
    static const char *const want[REQUEST_N_STATES] = {
        /* N R Q P D  done cancelled failed */
        [REQUEST_NEW] = "01000001",       [REQUEST_RENDERING] = "00100011",
        [REQUEST_QUEUED] = "00010111",    [REQUEST_PREFILL] = "00101011",
        [REQUEST_DECODE] = "00100111",    [REQUEST_DONE] = "00000000",
        [REQUEST_CANCELLED] = "00000000", [REQUEST_FAILED] = "00000000",
    };
    for (int from = 0; from < REQUEST_N_STATES; from++) {
        for (int to = 0; to < REQUEST_N_STATES; to++) {
            if (request_may_move((enum request_state)from, (enum request_state)to) !=
                (want[from][to] == '1')) {
                fail_msg("%s -> %s", request_state_name((enum request_state)from),
                         request_state_name((enum request_state)to));
            }
        }
    }
}

static void request_runs_to_its_end_and_is_freed(void **state)
{
    (void)state;
    struct rig r;
    open_resident(&r);
    struct request *q = rig_submit(&r, c, 1, "a", 3, 4);
    rig_turns(&r);
    assert_int_equal(q->state, REQUEST_PREFILL);
    struct journal_slot *slot = request_slot(q);
    assert_int_equal(journal_get_state(slot), JOURNAL_PREFILL);
    assert_true(atomic_load(&slot->owner) == rig_child(&r, HERITAGE_WORKER));
    assert_true(slot->params.n_max == 4 && slot->params.seed != 0);
    commit(&r, q, JOURNAL_TOKEN, JOURNAL_END_NONE);
    assert_int_equal(q->state, REQUEST_DECODE);
    commit(&r, q, JOURNAL_ENDED, JOURNAL_END_STOP);
    request_return(r.b, q, "finished");
    assert_int_equal(q->state, REQUEST_DONE);
    assert_int_equal(journal_get_state(slot), JOURNAL_DONE);
    assert_true(atomic_load(&slot->owner) == 0);
    /* Kept until it expires. */
    rig_turns(&r);
    assert_int_equal(r.b->requests.n, 1);
    r.b->now_ms += r.b->config.keep_s * 1000ull;
    rig_turns(&r);
    assert_int_equal(r.b->requests.n, 0);
    assert_int_equal(journal_get_state(slot), JOURNAL_FREE);
    rig_close(&r);
}

/* The bug this guards against: a client that reads the end in the journal acknowledges it before the worker's word comes; its
 * slot was then kept for ten minutes, and a client with many requests ran out of slots. */
static void an_end_acknowledged_before_the_workers_word_is_freed(void **state)
{
    (void)state;
    struct rig r;
    open_resident(&r);
    struct request *q = rig_submit(&r, c, 1, "a", 3, 4);
    rig_turns(&r);
    struct journal_slot *slot = request_slot(q);
    commit(&r, q, JOURNAL_TOKEN, JOURNAL_END_NONE);
    slot->acked = 1;
    rig_turns(&r);
    assert_int_equal(r.b->requests.n, 1); /* it is the worker's still */
    commit(&r, q, JOURNAL_ENDED, JOURNAL_END_STOP);
    request_return(r.b, q, "finished");
    rig_turns(&r);
    assert_int_equal(r.b->requests.n, 0);
    assert_int_equal(journal_get_state(slot), JOURNAL_FREE);
    rig_close(&r);
}

static void the_same_id_is_the_same_request_or_refused(void **state)
{
    (void)state;
    struct rig r;
    open_resident(&r);
    struct request *q = rig_submit(&r, c, 1, "a", 3, 4);
    assert_ptr_equal(rig_submit(&r, c, 1, "a", 3, 4), q);
    assert_ptr_equal(rig_submit(&r, c, 1, "a", 3, 5), q); /* refused: the first stays as it is */
    assert_int_equal(r.b->requests.n, 1);
    assert_int_equal(request_slot(q)->params.n_max, 4);
    rig_close(&r);
}

static void what_does_not_fit_the_context_is_refused(void **state)
{
    (void)state;
    struct rig r;
    open_resident(&r);
    assert_null(rig_submit(&r, c, 1, "a", 3, 2046));
    assert_null(rig_submit(&r, c, 2, "a", 2048, 0));
    assert_non_null(rig_submit(&r, c, 3, "a", 3, 2045));
    struct request *open_end = rig_submit(&r, c, 4, "a", 3, 0);
    assert_non_null(open_end);
    assert_true(request_slot(open_end)->params.n_max <= 2045);
    m->info.generates = false;
    assert_null(rig_submit(&r, c, 5, "a", 3, 4));
    rig_close(&r);
}

static void full_journal_is_busy_and_recovers(void **state)
{
    (void)state;
    struct rig r;
    open_resident(&r);
    uint8_t id = 1;
    while (rig_submit(&r, c, id, "a", 3, 2045)) {
        id++;
        assert_true(id < 250);
    }
    rig_turns(&r);
    assert_true(r.b->requests.n >= 8);
    for (uint32_t i = 0; i < r.b->requests.n; i++) {
        struct err why;
        err_set(&why, ERR_CANCELLED, "cancelled");
        if (r.b->requests.list[i]->worker == 0) {
            request_cancel(r.b, r.b->requests.list[i], &why);
            request_free(r.b, r.b->requests.list[i]);
        }
    }
    assert_non_null(rig_submit(&r, c, 251, "a", 3, 2045));
    rig_close(&r);
}

static void worker_death_brings_requests_back_and_outside_kills_blame_nobody(void **state)
{
    (void)state;
    struct rig r;
    open_resident(&r);
    struct request *q = rig_submit(&r, c, 1, "a", 3, 40);
    rig_turns(&r);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(q->state, REQUEST_PREFILL);
        rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGKILL);
        assert_int_equal(q->state, REQUEST_QUEUED);
        assert_true(atomic_load(&request_slot(q)->owner) == 0);
        rig_turns(&r);
        rig_worker_hello(&r);
        rig_turns(&r);
        rig_bound(&r, m);
    }
    assert_int_equal(request_slot(q)->deaths, 0);
    rig_close(&r);
}

/* Two deaths by a fault without a token: it runs alone; the third fails it, and nobody else. */
static void poison_runs_alone_and_fails_at_the_third_death(void **state)
{
    (void)state;
    struct rig r;
    open_resident(&r);
    struct request *bad = rig_submit(&r, c, 1, "a", 3, 40);
    struct request *good = rig_submit(&r, c, 2, "a", 3, 40);
    rig_turns(&r);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(bad->state, REQUEST_PREFILL);
        commit(&r, good, JOURNAL_TOKEN, JOURNAL_END_NONE);
        rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGSEGV);
        r.b->now_ms += WORKERS_BACKOFF_MAX;
        rig_turns(&r);
        rig_worker_hello(&r);
        rig_turns(&r);
        rig_bound(&r, m);
    }
    assert_int_equal(request_slot(good)->deaths, 0);
    assert_int_equal(request_slot(bad)->deaths, 2);
    /* One of the two runs; when it is the suspect, it is alone. */
    if (good->worker) {
        assert_int_equal(bad->worker, 0);
        assert_true(good->releasing);
        request_return(r.b, good, "given back");
        rig_turns(&r);
    }
    assert_true(bad->worker != 0);
    assert_int_equal(good->worker, 0);
    rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGSEGV);
    assert_int_equal(bad->state, REQUEST_FAILED);
    struct journal_record end;
    assert_int_equal(request_find_end(bad, &end), 1);
    assert_int_equal(end.code, ERR_POISON);
    assert_int_equal(good->state, REQUEST_QUEUED);
    struct err why;
    assert_false(workers_all_down(&r.b->workers, &why)); /* the device is not to blame */
    rig_close(&r);
}

/* Two sequences, taken by one flow; another flow's request gets one of them. */
static void flow_that_has_several_gives_one_to_a_flow_that_has_none(void **state)
{
    (void)state;
    struct rig r;
    open_resident(&r);
    struct request *first = rig_submit(&r, c, 1, "a", 3, 40);
    struct request *second = rig_submit(&r, c, 2, "a", 3, 40);
    struct request *third = rig_submit(&r, c, 3, "a", 3, 40);
    rig_turns(&r);
    assert_true(first->worker && second->worker && !third->worker);
    assert_false(first->releasing || second->releasing); /* a flow does not push itself */
    struct client *other = rig_client(&r, 6);
    struct request *short_one = rig_submit(&r, other, 4, "a", 3, 4);
    commit(&r, first, JOURNAL_TOKEN, JOURNAL_END_NONE); /* the first flow was served more now */
    assert_true(second->releasing);
    assert_false(first->releasing);
    request_return(r.b, second, "given back");
    rig_turns(&r);
    assert_true(short_one->worker != 0);
    assert_int_equal(second->state, REQUEST_QUEUED);
    rig_close(&r);
}

/* One client with twenty long prompts, another with a short question now and then: the question is the next to be taken, every
 * time, however many wait before it. */
static void a_short_question_is_served_between_twenty_long_prompts(void **state)
{
    (void)state;
    struct rig r;
    struct request *longs[20];
    open_resident(&r);
    for (uint8_t i = 0; i < 20; i++) {
        longs[i] = rig_submit(&r, c, (uint8_t)(i + 1), "a", 500, 10);
        assert_non_null(longs[i]);
    }
    rig_turns(&r);
    struct client *other = rig_client(&r, 6);
    for (uint8_t round = 0; round < 3; round++) {
        struct request *q = rig_submit(&r, other, (uint8_t)(100 + round), "a", 1, 4);
        assert_non_null(q);
        rig_turns(&r);
        assert_int_equal(q->state, REQUEST_QUEUED);
        struct request *runs = longs[0]->worker && !longs[0]->releasing ? longs[0] : longs[1];
        for (int i = 0; i < 3; i++) { /* some steps of the others: more than a question costs */
            commit(&r, runs, JOURNAL_TOKEN, JOURNAL_END_NONE);
        }
        struct request *victim = NULL;
        uint32_t n_waiting = 0;
        for (int i = 0; i < 20; i++) {
            victim = longs[i]->releasing ? longs[i] : victim;
            n_waiting += longs[i]->state == REQUEST_QUEUED;
        }
        assert_int_equal(n_waiting, 18);
        assert_non_null(victim);
        victim->releasing = false;
        request_return(r.b, victim, "released");
        rig_turns(&r);
        assert_int_equal(q->state, REQUEST_PREFILL);     /* before all of them */
        assert_int_equal(victim->state, REQUEST_QUEUED); /* without loss: it waits */
        commit(&r, q, JOURNAL_TOKEN | JOURNAL_ENDED, JOURNAL_END_STOP);
        request_return(r.b, q, "finished");
        rig_turns(&r);
        assert_int_equal(q->state, REQUEST_DONE);
    }
    rig_close(&r);
}

static void cancel_and_deadline_end_a_waiting_request(void **state)
{
    (void)state;
    struct rig r;
    struct err why;
    open_resident(&r);
    for (uint8_t i = 1; i <= 4; i++) {
        rig_submit(&r, c, i, "a", 3, 4);
    }
    rig_turns(&r);
    struct request *waiting = r.b->requests.list[3];
    assert_int_equal(waiting->state, REQUEST_QUEUED);
    err_set(&why, ERR_CANCELLED, "cancelled");
    request_cancel(r.b, waiting, &why);
    assert_int_equal(waiting->state, REQUEST_CANCELLED);
    struct request *late = r.b->requests.list[2];
    late->deadline_unix_ms = 1;
    rig_turns(&r);
    assert_int_equal(late->state, REQUEST_FAILED);
    struct journal_record end;
    assert_int_equal(request_find_end(late, &end), 1);
    assert_int_equal(end.code, ERR_TIMEOUT);
    /* Who runs is ended by its owner. */
    struct request *running = r.b->requests.list[0];
    request_cancel(r.b, running, &why);
    assert_true(running->ending && running->worker != 0);
    assert_true(atomic_load(&request_slot(running)->cancel) == 1);
    rig_close(&r);
}

/* Letters that went to a worker's old link are said again, whatever they were: a release, and an end that has a reason. */
static void what_a_worker_was_told_before_it_greets_again_is_repeated(void **state)
{
    (void)state;
    struct rig r;
    struct err late;
    open_resident(&r);
    struct request *q = rig_submit(&r, c, 1, "a", 20, 5), *p = rig_submit(&r, c, 2, "a", 20, 5);
    rig_turns(&r);
    assert_true(q->worker && q->told && p->worker);
    err_set(&late, ERR_TIMEOUT, "its deadline has passed");
    request_cancel(r.b, p, &late);
    assert_true(p->ending);
    models_evict(r.b, m, true, "room is needed for another model");
    rig_turns(&r);
    assert_int_equal(m->state, MODEL_DRAINING);
    assert_true(q->releasing);
    Hearth__Hello hello = HEARTH__HELLO__INIT;
    uint64_t here[] = { m->number };
    struct worker *w = workers_find(&r.b->workers, m->worker);
    struct link_peer peer = { .len = 1, .id = { 99 } };
    hello.role = HEARTH__ROLE__WORKER;
    hello.token = message_bytes(w->token, sizeof w->token);
    hello.child = w->child;
    hello.n_models = 1;
    hello.models = here;
    uint64_t said = r.b->n_said;
    assert_true(workers_on_hello(r.b, &peer, &hello));
    assert_false(q->releasing || p->ending || q->told || p->told);
    request_cancel(r.b, p, &late); /* its deadline still is */
    rig_turns(&r);
    assert_true(q->releasing && p->ending);
    assert_true(r.b->n_said >= said + 2);
    rig_close(&r);
}

static void file_that_changed_fails_the_requests_that_began_with_it(void **state)
{
    (void)state;
    struct rig r;
    open_resident(&r);
    struct request *q = rig_submit(&r, c, 1, "a", 3, 40);
    rig_turns(&r);
    rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGKILL);
    request_slot(q)->model.mtime_ns++;
    rig_turns(&r);
    rig_worker_hello(&r);
    rig_turns(&r);
    rig_bound(&r, m);
    assert_int_equal(q->state, REQUEST_FAILED);
    struct journal_record end;
    assert_int_equal(request_find_end(q, &end), 1);
    assert_int_equal(end.code, ERR_CHANGED);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_the_moves_of_the_diagram_are_allowed),
        cmocka_unit_test(request_runs_to_its_end_and_is_freed),
        cmocka_unit_test(an_end_acknowledged_before_the_workers_word_is_freed),
        cmocka_unit_test(the_same_id_is_the_same_request_or_refused),
        cmocka_unit_test(what_does_not_fit_the_context_is_refused),
        cmocka_unit_test(full_journal_is_busy_and_recovers),
        cmocka_unit_test(worker_death_brings_requests_back_and_outside_kills_blame_nobody),
        cmocka_unit_test(poison_runs_alone_and_fails_at_the_third_death),
        cmocka_unit_test(flow_that_has_several_gives_one_to_a_flow_that_has_none),
        cmocka_unit_test(a_short_question_is_served_between_twenty_long_prompts),
        cmocka_unit_test(cancel_and_deadline_end_a_waiting_request),
        cmocka_unit_test(what_a_worker_was_told_before_it_greets_again_is_repeated),
        cmocka_unit_test(file_that_changed_fails_the_requests_that_began_with_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
