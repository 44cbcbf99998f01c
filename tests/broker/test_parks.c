/* Parked conversations as the broker sees them: names, owners, budget, and who is told of which. The worker is the test, which
 * writes files by hand. */
#include "tests/broker/rig.h"

#include "proto/parked.h"

#define KEY 99u

static struct model *a;

static struct model *named(struct rig *r, const char *name)
{
    struct err err = { 0 };
    struct model *m = models_get(r->b, name, NULL, &err);
    assert_non_null(m);
    return m;
}

/* Model a is resident; files go to a directory on whatever the rig stands on. */
static void begin(struct rig *r)
{
    rig_open(r);
    snprintf(r->b->config.state_dir, sizeof r->b->config.state_dir, "%s/state", r->dir);
    r->b->config.state_budget = 1 << 20;
    parks_open(r->b);
    assert_true(r->b->parks.on);
    rig_model(r, "a", 1 << 20);
    rig_turns(r);
    rig_worker_hello(r);
    rig_turns(r);
    a = named(r, "a");
    struct post_to to = { 0 };
    models_load(r->b, &to, a, false, true);
    rig_turns(r);
    rig_loaded(r, 1 << 20);
    rig_bound(r, a);
    parks_bound(r->b, a, KEY);
}

static void later(struct rig *r, uint64_t ms)
{
    r->b->now_ms += ms;
    rig_turns(r);
}

/* What the worker says of the segment that it was told of; n_tokens 0: there was nothing to write. */
static void worker_says(struct rig *r, struct shard *shard, uint32_t n_tokens, int32_t first,
                        const char *code)
{
    struct err err = { 0 };
    Hearth__WorkerParked msg = HEARTH__WORKER_PARKED__INIT;
    assert_true(a->parks.segment != 0 && a->parks.told);
    msg.model = a->number;
    msg.segment = a->parks.segment;
    if (n_tokens) {
        struct parked file;
        assert_ok(parked_init(&file, KEY, n_tokens, 64, 4096, 0, &err), err);
        for (uint32_t i = 0; i < n_tokens; i++) {
            file.tokens[i] = i == 0 ? first : (int32_t)i % 1000;
        }
        assert_int_equal(ftruncate(a->parks.fd, (off_t)file.head.total_bytes), 0);
        assert_ok(parked_finish(&file, a->parks.fd, &err), err);
        parked_clear(&file);
        msg.has_shard = true;
        msg.shard = shard->segment;
    }
    if (code) {
        msg.has_code = msg.has_text = true;
        msg.code = msg.text = message_str(code);
    }
    parks_on_parked(r->b, a->parks.child, &msg);
    rig_turns(r);
}

/* One conversation is parked, and nothing more. first: its first token, which parts it from others. */
static void park(struct rig *r, struct shard *shard, uint32_t n_tokens, int32_t first)
{
    parks_touched(r->b, a);
    later(r, PARKS_QUIET_MS);
    worker_says(r, shard, n_tokens, first, NULL);
    assert_true(a->parks.segment != 0); /* asked for the next */
    worker_says(r, shard, 0, 0, NULL);
    assert_true(!a->parks.segment && !a->parks.dirty);
}

static uint32_t files_there(const struct rig *r)
{
    char command[160];
    snprintf(command, sizeof command, "ls %s/state | wc -l", r->dir);
    FILE *f = popen(command, "re");
    uint32_t n = 99;
    assert_int_equal(fscanf(f, "%u", &n), 1);
    pclose(f);
    return n;
}

static void a_quiet_model_parks_and_a_longer_file_replaces(void **unused)
{
    (void)unused;
    struct rig r;
    begin(&r);
    struct shard *mine = rig_client(&r, 1)->shard;
    later(&r, 0);
    park(&r, mine, 100, 0);
    park(&r, mine, 150, 0);
    assert_int_equal(r.b->parks.n, 1);
    assert_int_equal(r.b->parks.list[0].n_tokens, 150);
    park(&r, mine, 120, 7); /* another one */
    assert_int_equal(r.b->parks.n, 2);
    assert_int_equal(files_there(&r), 2);
    rig_close(&r);
}

static void the_next_broker_finds_them_and_the_oldest_goes_first(void **unused)
{
    (void)unused;
    struct rig r;
    begin(&r);
    struct shard *mine = rig_client(&r, 1)->shard;
    later(&r, 0);
    for (int32_t i = 0; i < 3; i++) {
        park(&r, mine, 100, 10 + i);
        r.b->parks.list[i].used_s = 1000 + (uint64_t)i;
    }
    uint64_t one = r.b->parks.list[0].bytes;
    r.b->config.state_budget = 2 * one;
    rig_turns(&r);
    assert_int_equal(r.b->parks.n, 2);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_not_equal(r.b->parks.list[i].tokens[0], 10);
    }
    parks_close(r.b, true); /* a clean stop: what is in a directory of its own stays */
    assert_int_equal(files_there(&r), 2);
    parks_open(r.b);
    assert_int_equal(r.b->parks.n, 2);
    assert_int_equal(r.b->parks.bytes, 2 * one);
    rig_close(&r);
}

static void a_request_is_told_of_its_principals_best(void **unused)
{
    (void)unused;
    struct rig r;
    begin(&r);
    struct client *c = rig_client(&r, 1);
    later(&r, 0);
    park(&r, c->shard, 70, 0);
    park(&r, c->shard, 200, 5);
    r.b->parks.list[1].uid++; /* somebody else's, and longer */
    r.b->parks.list[1].tokens[0] = 0;
    struct request *q = rig_submit(&r, c, 1, "a", 300, 5);
    rig_turns(&r);
    assert_int_not_equal(q->worker, 0);
    assert_int_equal(q->parked, r.b->parks.list[0].segment);
    assert_int_not_equal(q->parked, 0);
    struct request *brief = rig_submit(&r, c, 2, "a", 40, 5);
    rig_turns(&r);
    assert_int_not_equal(brief->worker, 0);
    assert_int_equal(brief->parked, 0); /* hardly anything in common */
    rig_close(&r);
}

/* Its worker dies, the disk is full, the conversation goes on meanwhile: nothing is left behind, and it is tried again. */
static void what_fails_is_tried_again(void **unused)
{
    (void)unused;
    struct rig r;
    begin(&r);
    struct client *c = rig_client(&r, 1);
    later(&r, 0);
    parks_touched(r.b, a);
    later(&r, PARKS_QUIET_MS);
    assert_int_equal(files_there(&r), 1); /* under its temporary name */
    worker_says(&r, c->shard, 0, 0, err_name(ERR_CHANGED));
    assert_int_equal(files_there(&r), 0);
    assert_true(a->parks.dirty);
    later(&r, PARKS_QUIET_MS);
    worker_says(&r, c->shard, 0, 0, err_name(ERR_IO));
    assert_int_equal(files_there(&r), 0);
    later(&r, PARKS_QUIET_MS);
    assert_int_equal(a->parks.segment, 0); /* not at once */
    parks_touched(r.b, a);
    later(&r, PARKS_RETRY_MS);
    assert_int_not_equal(a->parks.segment, 0);
    rig_died(&r, a->worker, SIGKILL);
    assert_int_equal(a->parks.segment, 0);
    assert_int_equal(files_there(&r), 0);
    rig_close(&r);
}

/* A worker that lies about what it wrote harms nobody. */
static void a_file_that_is_not_whole_is_refused(void **unused)
{
    (void)unused;
    struct rig r;
    begin(&r);
    struct client *c = rig_client(&r, 1);
    later(&r, 0);
    parks_touched(r.b, a);
    later(&r, PARKS_QUIET_MS);
    Hearth__WorkerParked msg = HEARTH__WORKER_PARKED__INIT;
    msg.model = a->number;
    msg.segment = a->parks.segment;
    msg.has_shard = true;
    msg.shard = c->shard->segment;
    parks_on_parked(r.b, a->parks.child, &msg);
    assert_int_equal(r.b->parks.n, 0);
    assert_int_equal(files_there(&r), 0);
    rig_close(&r);
}

static void a_model_that_leaves_waits_but_not_for_ever(void **unused)
{
    (void)unused;
    struct rig r;
    struct err err = { 0 };
    begin(&r);
    parks_touched(r.b, a);
    assert_ok(models_unload(r.b, a, &err), err);
    rig_turns(&r);
    assert_int_equal(a->state, MODEL_DRAINING);
    assert_int_equal(a->bind, BIND_BOUND);
    assert_true(a->parks.told);
    later(&r, PARKS_LEAVE_MS);
    assert_int_equal(a->bind, BIND_LEAVING);
    models_on_unbound(r.b, a->worker, a->number);
    rig_turns(&r);
    assert_int_equal(a->state, MODEL_COLD);
    assert_int_equal(files_there(&r), 0);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_quiet_model_parks_and_a_longer_file_replaces),
        cmocka_unit_test(the_next_broker_finds_them_and_the_oldest_goes_first),
        cmocka_unit_test(a_request_is_told_of_its_principals_best),
        cmocka_unit_test(what_fails_is_tried_again),
        cmocka_unit_test(a_file_that_is_not_whole_is_refused),
        cmocka_unit_test(a_model_that_leaves_waits_but_not_for_ever),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
