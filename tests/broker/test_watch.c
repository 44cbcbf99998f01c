/* Children that live and do nothing: time passes by the test's hand. The rig's segments hold a word that never moves. */
#include <sys/wait.h>

#include "tests/broker/rig.h"

static void ready(struct rig *r)
{
    rig_open(r);
    rig_model(r, "a", 1000);
    rig_turns(r);
    rig_worker_hello(r);
    rig_turns(r);
}

/* A resident model and a request that the worker has. */
static struct request *working(struct rig *r, struct model **model)
{
    struct err err = { 0 };
    struct post_to to = { 0 };
    struct client *c = rig_client(r, 1);
    struct model *m = *model = models_get(r->b, "a", NULL, &err);
    models_load(r->b, &to, m, false, true);
    rig_turns(r);
    rig_loaded(r, 8192);
    rig_bound(r, m);
    struct request *q = rig_submit(r, c, 1, "a", 20, 5);
    assert_non_null(q);
    rig_turns(r);
    assert_true(q->worker != 0 && q->told);
    return q;
}

static bool killed(const struct rig *r, uint32_t role)
{
    return r->children[rig_child(r, role) - 2].killed;
}

/* Looks once every half second for so long. */
static void pass(struct rig *r, uint64_t ms)
{
    for (uint64_t t = 0; t < ms; t += WATCH_TURN_MS) {
        r->b->now_ms += WATCH_TURN_MS;
        rig_turns(r);
    }
}

static void a_worker_that_stands_still_with_work_is_killed_and_blamed(void **state)
{
    (void)state;
    struct rig r;
    struct model *m;
    ready(&r);
    struct request *q = working(&r, &m);
    pass(&r, WATCH_QUIET_MS - 1000);
    assert_false(killed(&r, HERITAGE_WORKER));
    pass(&r, 2500);
    assert_true(killed(&r, HERITAGE_WORKER));
    rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGKILL);
    rig_turns(&r);
    assert_int_equal(request_slot(q)->deaths, 1); /* by our own watch: it counts */
    assert_int_equal(m->watch.segment, 0);        /* a state that is dropped is let go */
    assert_int_equal(rig_births(&r, HERITAGE_WORKER), 2);
    rig_close(&r);
}

static void a_word_that_moves_keeps_it_alive(void **state)
{
    (void)state;
    struct rig r;
    struct model *m;
    ready(&r);
    working(&r, &m);
    for (int i = 0; i < 10; i++) {
        pass(&r, 2000);
        r.b->workers.list[0].watch.seen--; /* as if it had counted one on */
    }
    assert_false(killed(&r, HERITAGE_WORKER));
    /* Layers of two seconds were seen: fifty of them are its patience now. */
    pass(&r, 30000);
    assert_false(killed(&r, HERITAGE_WORKER));
    rig_close(&r);
}

static void a_broker_that_was_stopped_itself_accuses_nobody(void **state)
{
    (void)state;
    struct rig r;
    struct model *m;
    ready(&r);
    working(&r, &m);
    pass(&r, 1000);
    r.b->now_ms += 3600 * 1000;
    rig_turns(&r);
    assert_false(killed(&r, HERITAGE_WORKER));
    rig_close(&r);
}

static void a_worker_that_never_answers_a_bind_is_killed(void **state)
{
    (void)state;
    struct rig r;
    ready(&r);
    rig_submit(&r, rig_client(&r, 1), 1, "a", 20, 5);
    rig_turns(&r);
    rig_loaded(&r, 8192);
    pass(&r, WATCH_BIND_MS - 2000);
    assert_false(killed(&r, HERITAGE_WORKER));
    pass(&r, 4000);
    assert_true(killed(&r, HERITAGE_WORKER));
    rig_close(&r);
}

static void a_loader_that_reads_nothing_is_tried_once_more_and_then_named(void **state)
{
    (void)state;
    struct rig r;
    struct err err = { 0 };
    ready(&r);
    rig_submit(&r, rig_client(&r, 1), 1, "a", 20, 5);
    rig_turns(&r);
    rig_note(&r, rig_child(&r, HERITAGE_LOADER), CHANNEL_NOTE_HEADER, 8192, "");
    pass(&r, WATCH_LOADER_MS - 2000);
    assert_false(killed(&r, HERITAGE_LOADER));
    pass(&r, 4000);
    assert_true(killed(&r, HERITAGE_LOADER));
    rig_died(&r, rig_child(&r, HERITAGE_LOADER), SIGKILL);
    rig_turns(&r);
    assert_int_equal(rig_births(&r, HERITAGE_LOADER), 2);
    pass(&r, WATCH_LOADER_MS + 2000);
    assert_true(killed(&r, HERITAGE_LOADER));
    rig_died(&r, rig_child(&r, HERITAGE_LOADER), SIGKILL);
    rig_turns(&r);
    struct model *m = models_get(r.b, "a", NULL, &err);
    assert_int_equal(m->state, MODEL_COLD);
    assert_non_null(strstr(m->error.text, "hung"));
    rig_close(&r);
}

/* Before its Hello a worker opens its device, which may take long; but not while it is stopped. A loader the same, and a worker that
 * binds. */
static void a_child_that_is_stopped_is_killed_whatever_it_was_about(void **state)
{
    (void)state;
    struct rig r;
    int status;
    struct err err = { 0 };
    struct post_to to = { 0 };
    pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    assert_true(pid > 0);
    rig_open(&r);
    rig_model(&r, "a", 1000);
    rig_turns(&r);
    struct worker *w = &r.b->workers.list[0];
    assert_int_equal(w->state, WORKER_BORN);
    w->pid = pid;
    pass(&r, 3 * WATCH_QUIET_MS);
    assert_false(killed(&r, HERITAGE_WORKER));
    assert_int_equal(kill(pid, SIGSTOP), 0);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    pass(&r, WATCH_QUIET_MS - 1000);
    assert_false(killed(&r, HERITAGE_WORKER));
    pass(&r, 2500);
    assert_true(killed(&r, HERITAGE_WORKER));
    rig_died(&r, rig_child(&r, HERITAGE_WORKER), SIGKILL);
    pass(&r, 1000);
    rig_worker_hello(&r);
    struct model *m = models_get(r.b, "a", NULL, &err);
    models_load(r.b, &to, m, false, true);
    rig_turns(&r);
    m->loader_pid = pid;
    pass(&r, WATCH_QUIET_MS - 1000);
    assert_false(killed(&r, HERITAGE_LOADER));
    pass(&r, 2500);
    assert_true(killed(&r, HERITAGE_LOADER));
    rig_died(&r, rig_child(&r, HERITAGE_LOADER), SIGKILL);
    rig_turns(&r);
    m->loader_pid = 0;
    rig_loaded(&r, 8192);
    assert_int_equal(m->bind, BIND_ASKED);
    pass(&r, 2 * WATCH_QUIET_MS);
    assert_false(killed(&r, HERITAGE_WORKER));
    w->pid = pid;
    pass(&r, WATCH_QUIET_MS + 1500);
    assert_true(killed(&r, HERITAGE_WORKER));
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_worker_that_stands_still_with_work_is_killed_and_blamed),
        cmocka_unit_test(a_word_that_moves_keeps_it_alive),
        cmocka_unit_test(a_broker_that_was_stopped_itself_accuses_nobody),
        cmocka_unit_test(a_worker_that_never_answers_a_bind_is_killed),
        cmocka_unit_test(a_loader_that_reads_nothing_is_tried_once_more_and_then_named),
        cmocka_unit_test(a_child_that_is_stopped_is_killed_whatever_it_was_about),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
