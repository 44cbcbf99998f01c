/* Limits of a principal: what is refused, with which numbers, and that nobody else is touched. */
#include "tests/broker/rig.h"

static struct model *m;

static void begin(struct rig *r)
{
    struct err err = { 0 };
    rig_open(r);
    rig_model(r, "a", 1000);
    rig_turns(r);
    rig_worker_hello(r);
    m = models_get(r->b, "a", NULL, &err);
    struct post_to to = { 0 };
    models_load(r->b, &to, m, false, true);
    rig_turns(r);
    rig_loaded(r, 4096);
    rig_bound(r, m);
}

/* Two run, two wait, the fifth is refused; when one has ended there is a place again. */
static void waiting_requests_are_limited(void **state)
{
    (void)state;
    struct rig r;
    struct err err = { 0 };
    begin(&r);
    r.b->config.limits.waiting = 2;
    struct client *c = rig_client(&r, 1);
    struct request *first = NULL;
    for (uint8_t id = 1; id <= 4; id++) {
        struct request *q = rig_submit(&r, c, id, "a", 4, 5);
        assert_non_null(q);
        first = first ? first : q;
        rig_turns(&r);
    }
    assert_null(rig_submit(&r, c, 5, "a", 4, 5));
    assert_int_equal(quota_request(r.b, c->shard, m, &err), -1);
    assert_int_equal(err.code, ERR_BUSY);
    assert_int_equal(r.b->quota.position, 3);
    assert_true(r.b->quota.retry_ms >= QUOTA_RETRY_MIN_MS);
    assert_non_null(strstr(err.text, "try again in"));
    /* The same id again is the same request, not another one. */
    assert_non_null(rig_submit(&r, c, 4, "a", 4, 5));
    err_set(&err, ERR_CANCELLED, "cancelled");
    request_return(r.b, first, "released");
    request_cancel(r.b, first, &err);
    rig_turns(&r);
    assert_non_null(rig_submit(&r, c, 6, "a", 4, 5));
    rig_close(&r);
}

static void tokens_in_flight_are_limited(void **state)
{
    (void)state;
    struct rig r;
    struct err err = { 0 };
    begin(&r);
    r.b->config.limits.tokens = 100;
    struct client *c = rig_client(&r, 1);
    assert_non_null(rig_submit(&r, c, 1, "a", 20, 40));
    assert_null(rig_submit(&r, c, 2, "a", 20, 40));
    assert_non_null(rig_submit(&r, c, 3, "a", 20, 20));
    assert_int_equal(quota_tokens(r.b, c->shard, 1, &err), -1);
    assert_int_equal(err.code, ERR_BUSY);
    assert_int_equal(quota_tokens(r.b, c->shard, 101, &err), -1);
    assert_int_equal(err.code, ERR_NO_FIT); /* waiting would not help */
    rig_close(&r);
}

static void a_user_of_the_configuration_has_limits_of_its_own(void **state)
{
    (void)state;
    struct rig r;
    struct err err = { 0 };
    char path[128];
    begin(&r);
    snprintf(path, sizeof path, "%s/hearth.conf", r.dir);
    FILE *f = fopen(path, "we");
    fprintf(f, "[hearth]\nwaiting_max = 9\nclients_max = 3\n[user %u]\nclients_max = 1\n",
            (unsigned)getuid());
    fclose(f);
    assert_ok(config_read(&r.b->config, path, &err), err);
    assert_int_equal(quota_limits(r.b, getuid())->clients, 1);
    assert_int_equal(quota_limits(r.b, getuid())->waiting, 9);
    assert_int_equal(quota_limits(r.b, getuid() + 1)->clients, 3);
    assert_ok(quota_client(r.b, getuid(), &err), err);
    rig_client(&r, 1)->uid = getuid();
    assert_int_equal(quota_client(r.b, getuid(), &err), -1);
    assert_int_equal(err.code, ERR_BUSY);
    assert_ok(quota_client(r.b, getuid() + 1, &err), err);
    rig_close(&r);
}

/* The deadline counts from a request's arrival: it may pass while its model is loading. */
static void a_deadline_passes_in_the_middle_of_a_load(void **state)
{
    (void)state;
    struct rig r;
    begin(&r);
    rig_model(&r, "b", 1000);
    struct client *c = rig_client(&r, 1);
    struct request *q = rig_submit(&r, c, 1, "b", 4, 5);
    assert_non_null(q);
    rig_turns(&r);
    assert_int_equal(q->state, REQUEST_RENDERING);
    q->deadline_unix_ms = broker_unix_ms() - 1;
    uint64_t said = r.b->n_said;
    rig_turns(&r);
    bool many;
    assert_null(requests_find(&r.b->requests, c->shard, (const uint8_t[16]){ 1 }, 16, &many));
    assert_true(r.b->n_said > said);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(waiting_requests_are_limited),
        cmocka_unit_test(tokens_in_flight_are_limited),
        cmocka_unit_test(a_user_of_the_configuration_has_limits_of_its_own),
        cmocka_unit_test(a_deadline_passes_in_the_middle_of_a_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
