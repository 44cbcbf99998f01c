/* A new broker goes on where the last one was: from the journal and the keeper's list. */
#include "broker/recover.h"

#include <sys/resource.h>

#include "tests/broker/rig.h"

/* A shard as a dead broker left it: one request in each state, owned by the given child where it ran. */
static void leave_shard(struct rig *r, uint32_t owner, bool ended_in_log)
{
    struct err err = { 0 };
    struct shard *shard = shards_get(r->b, getuid(), &err);
    assert_non_null(shard);
    struct journal *j = &shard->journal;
    struct catalog_file file;
    char path[128];
    snprintf(path, sizeof path, "%s/a.gguf", r->dir);
    assert_ok(catalog_stat(path, &file, &err), err);
    static const enum journal_state states[] = { JOURNAL_QUEUED, JOURNAL_PREFILL, JOURNAL_DECODE,
                                                 JOURNAL_DONE };
    for (uint8_t i = 0; i < 4; i++) {
        int at = journal_reserve(j, 3, 0, journal_log_need(10, 16, 0), &err);
        assert_true(at >= 0);
        struct journal_slot *slot = journal_slot_at(j, (uint32_t)at);
        slot->id[0] = (uint8_t)(i + 1);
        slot->flow = 9;
        slot->admit_seq = i + 1u;
        slot->attached = 55;
        slot->params.n_ctx = 1000u * (i + 1u);
        slot->state_bytes = 100000u * (i + 1u);
        slot->model = (struct journal_model){ .device = file.device,
                                              .inode = file.inode,
                                              .size = file.size_bytes,
                                              .mtime_ns = file.mtime_ns,
                                              .name = "a" };
        journal_publish(slot);
        journal_set_state(slot, states[i]);
        if (states[i] == JOURNAL_PREFILL || states[i] == JOURNAL_DECODE) {
            atomic_store(&slot->owner, owner);
        }
        if (states[i] == JOURNAL_DECODE) {
            struct journal_writer w;
            struct journal_record token = { .token = 1, .flags = JOURNAL_TOKEN };
            struct journal_record end = { .flags = JOURNAL_ENDED, .end = JOURNAL_END_STOP };
            assert_ok(journal_writer_init(&w, j, (uint32_t)at, slot->generation, owner, &err), err);
            assert_ok(journal_append(&w, &token, NULL, "x", 1, &err), err);
            if (ended_in_log) {
                assert_ok(journal_append(&w, &end, NULL, NULL, 0, &err), err);
            }
        }
    }
    /* Reserved, and then the broker died. */
    assert_true(journal_reserve(j, 3, 0, 1000, &err) >= 0);
    shards_close(&r->b->shards, r->dir, false);
    strcpy(r->b->shards.dir, r->dir);
}

static void list_child(struct rig *r, uint32_t child, uint32_t role, const char *tag)
{
    struct channel_msg msg = { .op = CHANNEL_CHILD, .child = child, .role = role, .pid = 4000 };
    memset(msg.token, (int)child, sizeof msg.token);
    strcpy(msg.tag, tag);
    recover_row(r->b, &msg);
}

static void list_segment(struct rig *r, uint64_t segment, const char *tag)
{
    struct channel_msg msg = { .op = CHANNEL_SEGMENT, .segment = segment, .bytes = 4096 };
    strcpy(msg.tag, tag);
    recover_row(r->b, &msg);
}

static void begin(struct rig *r)
{
    rig_open(r);
    rig_model(r, "a", 1000);
    r->b->heritage.broker_epoch = 2;
    r->b->listed = false;
    /* Children are counted up to the last one that the list names. */
    r->n_children = 40;
    recover_begin(r->b);
}

static struct request *by_id(struct rig *r, uint8_t id)
{
    bool many;
    return requests_find(&r->b->requests, shards_find(&r->b->shards, getuid()), &id, 1, &many);
}

static void everything_comes_back_when_nobody_else_lives(void **state)
{
    (void)state;
    struct rig r;
    begin(&r);
    leave_shard(&r, 31, false);
    recover_end(r.b);
    assert_int_equal(r.b->requests.n, 4);
    for (uint8_t i = 1; i <= 3; i++) {
        assert_int_equal(by_id(&r, i)->state, REQUEST_QUEUED);
        assert_true(atomic_load(&request_slot(by_id(&r, i))->owner) == 0);
        assert_non_null(by_id(&r, i)->model);
    }
    assert_int_equal(by_id(&r, 4)->state, REQUEST_DONE);
    assert_int_equal(r.b->last_admit, 4);
    /* The half made slot is free again. */
    struct journal *j = &r.b->shards.list[0].journal;
    uint64_t held = 0;
    for (uint32_t i = 0; i < j->header.n_slots; i++) {
        held += journal_slot_at(j, i)->extent_bytes != 0;
    }
    assert_int_equal(held, 4);
    /* Its model is wanted at once; clients that do not come back in time end theirs. */
    rig_turns(&r);
    assert_int_equal(by_id(&r, 1)->model->state, MODEL_LOADING);
    r.b->now_ms += LIMIT_COME_BACK_S * 1000ull;
    rig_turns(&r);
    assert_int_equal(by_id(&r, 1)->state, REQUEST_CANCELLED);
    rig_close(&r);
}

static void running_requests_stay_with_a_worker_that_lives(void **state)
{
    (void)state;
    struct rig r;
    begin(&r);
    leave_shard(&r, 31, false);
    list_child(&r, 31, HERITAGE_WORKER, "worker 0 cpu");
    list_segment(&r, 77, "shard 99999");
    char tag[LIMIT_TAG_BYTES];
    snprintf(tag, sizeof tag, "shard %u", (unsigned)getuid());
    list_segment(&r, 78, tag);
    recover_end(r.b);
    struct shard *shard = shards_find(&r.b->shards, getuid());
    assert_true(shard->segment == 78 && shard->deposited);
    assert_int_equal(by_id(&r, 2)->state, REQUEST_PREFILL);
    assert_int_equal(by_id(&r, 3)->state, REQUEST_DECODE);
    assert_int_equal(by_id(&r, 3)->worker, 31);
    rig_turns(&r);
    assert_int_equal(rig_births(&r, HERITAGE_WORKER), 0); /* it has one */
    /* It dies after all: they come back. */
    rig_died(&r, 31, SIGKILL);
    assert_int_equal(by_id(&r, 3)->state, REQUEST_QUEUED);
    rig_close(&r);
}

static void an_end_that_nobody_told_is_found_in_the_log(void **state)
{
    (void)state;
    struct rig r;
    begin(&r);
    leave_shard(&r, 31, true);
    recover_end(r.b);
    assert_int_equal(by_id(&r, 3)->state, REQUEST_DONE);
    assert_int_equal(journal_get_state(request_slot(by_id(&r, 3))), JOURNAL_DONE);
    rig_close(&r);
}

static void weights_and_loaders_are_taken_over(void **unused)
{
    (void)unused;
    struct rig r;
    struct err err = { 0 };
    char tag[LIMIT_TAG_BYTES];
    begin(&r);
    uint64_t number = models_get(r.b, "a", NULL, &err)->number;
    models_clear(&r.b->models);
    snprintf(tag, sizeof tag, "weights %016llx a", (unsigned long long)number);
    char state[LIMIT_TAG_BYTES];
    snprintf(state, sizeof state, "state %016llx f16-2048", (unsigned long long)number);
    list_segment(&r, 92, state); /* rows are used again: they stand in no order */
    list_segment(&r, 91, tag);
    list_segment(&r, 93, "weights 0000000000000001 gone");
    list_segment(&r, 94, "bulk 12");
    snprintf(tag, sizeof tag, "text %016llx a", (unsigned long long)number);
    list_child(&r, 32, HERITAGE_TEXT, tag);
    recover_end(r.b);
    rig_turns(&r);
    struct model *m = models_find_number(&r.b->models, number);
    assert_non_null(m);
    assert_int_equal(m->state, MODEL_WARM); /* without a loader: it was whole */
    assert_int_equal(m->text.child, 32);
    assert_string_equal(m->fingerprint, "f16-2048");
    assert_int_equal(m->state_want, 4096); /* still, when it has left */
    assert_int_equal(rig_births(&r, HERITAGE_LOADER), 0);
    assert_int_equal(r.n_drops, 2);
    rig_close(&r);
}

/* The bug this guards against: that its client had read the end was in the dead broker's memory alone, so the log was kept until it
 * expired. */
static void what_was_acknowledged_does_not_come_back(void **state)
{
    (void)state;
    for (int lives = 0; lives < 2; lives++) {
        struct rig r;
        struct err err = { 0 };
        begin(&r);
        leave_shard(&r, 31, true);
        assert_ok(shards_scan(&r.b->shards, &err), err);
        struct journal_slot *slot = journal_slot_at(&r.b->shards.list[0].journal, 2);
        slot->acked = 1;
        if (lives) {
            list_child(&r, 31, HERITAGE_WORKER, "worker 0 cpu");
        }
        recover_end(r.b);
        rig_turns(&r);
        slot = journal_slot_at(&r.b->shards.list[0].journal, 2);
        if (lives) { /* it is the worker's until that is told of a broker, or dies */
            assert_int_equal(journal_get_state(slot), JOURNAL_DECODE);
            rig_died(&r, 31, SIGKILL);
            rig_turns(&r);
        }
        assert_int_equal(journal_get_state(slot), JOURNAL_FREE);
        assert_null(by_id(&r, 3));
        rig_close(&r);
    }
}

/* The bug this guards against: worker and broker died together while the model was away, the next one gave it a smaller state, and
 * what had been admitted to the larger context ended short. */
static void what_was_promised_is_wanted_again(void **state)
{
    (void)state;
    struct rig r;
    begin(&r);
    leave_shard(&r, 31, false);
    recover_end(r.b);
    const struct model *m = by_id(&r, 1)->model;
    assert_int_equal(m->state_want, 300000); /* the fourth has ended: nothing hangs on it */
    assert_int_equal(m->ctx_want, 3000);
    rig_close(&r);
    /* Another file under the old name promised nothing. */
    begin(&r);
    leave_shard(&r, 31, false);
    rig_model(&r, "a", 1001);
    recover_end(r.b);
    assert_int_equal(by_id(&r, 1)->model->state_want, 0);
    rig_close(&r);
}

static void damaged_slots_do_not_stop_it(void **state)
{
    (void)state;
    struct rig r;
    begin(&r);
    leave_shard(&r, 31, false);
    struct err err = { 0 };
    assert_ok(shards_scan(&r.b->shards, &err), err);
    struct journal *j = &r.b->shards.list[0].journal;
    journal_slot_at(j, 0)->log_off = UINT64_MAX - 8;
    journal_slot_at(j, 1)->extent_bytes = UINT64_MAX;
    atomic_store(&journal_slot_at(j, 2)->state, 1000u);
    shards_close(&r.b->shards, r.dir, false);
    strcpy(r.b->shards.dir, r.dir);
    recover_end(r.b);
    assert_int_equal(r.b->requests.n, 1);
    rig_close(&r);
}

/* The bug this guards against: a broker that was short of descriptors took a sound journal for a damaged one and made a new one
 * in its place. */
static void a_journal_that_cannot_be_opened_is_left_alone(void **state)
{
    (void)state;
    struct rig r;
    struct err err = { 0 };
    struct rlimit before, none;
    char path[128];
    begin(&r);
    leave_shard(&r, 31, false);
    snprintf(path, sizeof path, "%s/shard-%u", r.dir, (unsigned)getuid());
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    for (int spare = 0; spare < 2;
         spare++) { /* none for the directory; one for it and none for the shard */
        int next = dup(0);
        close(next);
        none = before;
        none.rlim_cur = (rlim_t)(next + spare);
        setrlimit(RLIMIT_NOFILE, &none);
        int status = shards_scan(&r.b->shards, &err);
        setrlimit(RLIMIT_NOFILE, &before);
        assert_int_equal(status, -1);
        assert_int_equal(access(path, F_OK), 0);
        shards_close(&r.b->shards, r.dir, false);
        strcpy(r.b->shards.dir, r.dir);
    }
    recover_end(r.b);
    assert_int_equal(r.b->requests.n, 4);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_comes_back_when_nobody_else_lives),
        cmocka_unit_test(running_requests_stay_with_a_worker_that_lives),
        cmocka_unit_test(an_end_that_nobody_told_is_found_in_the_log),
        cmocka_unit_test(weights_and_loaders_are_taken_over),
        cmocka_unit_test(what_was_acknowledged_does_not_come_back),
        cmocka_unit_test(what_was_promised_is_wanted_again),
        cmocka_unit_test(damaged_slots_do_not_stop_it),
        cmocka_unit_test(a_journal_that_cannot_be_opened_is_left_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
