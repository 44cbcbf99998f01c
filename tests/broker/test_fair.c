/* Fairness as a whole: admission, route and queue with requests whose tokens the test commits; two sequences. What is measured is
 * tokens, never time. */
#include "tests/broker/rig.h"

static struct model *m;
static struct client *clients[4];

static void begin(struct rig *r)
{
    struct err err = { 0 };
    rig_open(r);
    rig_model(r, "a", 1000);
    rig_turns(r);
    rig_worker_hello(r);
    for (uint8_t i = 0; i < 4; i++) {
        clients[i] = rig_client(r, i + 1);
    }
    m = models_get(r->b, "a", NULL, &err);
    struct post_to to = { 0 };
    models_load(r->b, &to, m, false, true);
    rig_turns(r);
    rig_loaded(r, 4096);
    rig_bound(r, m);
}

/* One token of every request that runs, the last one with its end; who was asked to give its log back does. Returns tokens of
 * the flow, prompts of those that ended included. */
static void step(struct rig *r, uint64_t served[4])
{
    struct broker *b = r->b;
    struct err err = { 0 };
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *q = b->requests.list[i];
        if (!q->worker || q->gone || request_ended(q)) {
            continue;
        }
        if (q->releasing) {
            request_return(b, q, "released");
            continue;
        }
        const struct journal_slot *slot = request_slot(q);
        bool last = request_committed(q) + 1 >= slot->params.n_max;
        struct journal_writer w;
        struct journal_record record = { .token = 7,
                                         .flags = last ? JOURNAL_ENDED : 0,
                                         .end = last ? JOURNAL_END_LENGTH : 0 };
        assert_ok(
            journal_writer_init(&w, &q->shard->journal, q->slot, q->generation, q->worker, &err),
            err);
        assert_ok(journal_append(&w, &record, NULL, "x", 1, &err), err);
        served[q->flow - 1] += 1 + (request_committed(q) == 1 ? slot->n_prompt : 0);
        if (last) {
            request_return(b, q, "finished");
            request_free(b, q);
        }
    }
    rig_turns(r);
}

static struct request *submit(struct rig *r, uint8_t flow, uint8_t id, uint32_t n_prompt,
                              uint32_t n_max, uint8_t priority)
{
    struct request *q = rig_submit(r, clients[flow], id, "a", n_prompt, n_max);
    assert_non_null(q);
    q->priority = priority;
    return q;
}

static uint32_t waiting_of(const struct rig *r, uint64_t flow)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->b->requests.n; i++) {
        const struct request *q = r->b->requests.list[i];
        n += q->flow == flow && !q->gone && !request_ended(q) && q->worker == 0;
    }
    return n;
}

/* Two flows that always have work: tokens go by weight (interactive pays 1, normal 4), within 5 %. */
static void tokens_go_by_weight(void **state)
{
    (void)state;
    struct rig r;
    uint64_t served[4] = { 0 };
    uint8_t id = 0;
    uint32_t seed = 5;
    begin(&r);
    for (int i = 0; i < 3000; i++) {
        for (uint8_t flow = 0; flow < 2; flow++) {
            while (waiting_of(&r, flow + 1u) < 2) {
                seed = seed * 1664525 + 1013904223;
                submit(&r, flow, ++id ? id : ++id, 1 + (seed >> 24) % 8, 1 + (seed >> 16) % 24,
                       flow == 0 ? QUEUE_INTERACTIVE : QUEUE_NORMAL);
            }
        }
        step(&r, served);
    }
    double ratio = (double)served[0] / (double)served[1];
    if (ratio < 4 * 0.95 || ratio > 4 * 1.05) {
        fail_msg("%llu and %llu tokens: %.2f to 1, not 4", (unsigned long long)served[0],
                 (unsigned long long)served[1], ratio);
    }
    rig_close(&r);
}

/* Every sequence has an endless request of a flow of its own: who comes then waits a quantum, not for their end; and those that
 * were set aside come back, so that in the end all have had the same. */
static void endless_answers_take_turns(void **state)
{
    (void)state;
    struct rig r;
    uint64_t served[4] = { 0 };
    begin(&r);
    submit(&r, 0, 1, 4, 1900, QUEUE_NORMAL);
    submit(&r, 1, 2, 4, 1900, QUEUE_NORMAL);
    rig_turns(&r);
    step(&r, served);
    struct request *late = submit(&r, 2, 3, 4, 1900, QUEUE_NORMAL);
    int waited = 0;
    for (; !late->worker; waited++) {
        step(&r, served);
        assert_true(waited <= QUEUE_QUANTUM / 4 + 2);
    }
    assert_true(waited >= QUEUE_QUANTUM / 8);
    for (int i = 0; i < 1800; i++) {
        step(&r, served);
    }
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 3; k++) {
            uint64_t more = served[i] > served[k] ? served[i] - served[k] : 0;
            assert_true(more <= QUEUE_QUANTUM / 4 + 16);
        }
    }
    rig_close(&r);
}

/* What the worker was given first is answered: no rows, as a perplexity has none. Returns its flow; 0: it has none. */
static uint64_t answer_first(struct rig *r)
{
    struct eval *first = NULL;
    for (struct eval *e = r->b->evals.first; e; e = e->next) {
        if (e->state == EVAL_RUNNING && (!first || e->segment < first->segment)) {
            first = e; /* segments are numbered as they are made */
        }
    }
    uint64_t flow = first ? first->flow : 0;
    if (first) {
        Hearth__WorkerEvaluated done = HEARTH__WORKER_EVALUATED__INIT;
        done.work = first->number;
        evals_done(r->b, first->worker, &done);
        rig_turns(r);
    }
    return flow;
}

/* Evaluations count in their flow: one question comes right behind what the worker has already, not behind twenty others. Charged
 * are ids, once, and a named flow is the same for its evaluations and its generations. */
static void evaluations_have_flows(void **state)
{
    (void)state;
    struct rig r;
    begin(&r);
    struct post_to to = { 0 };
    int32_t ids[3] = { 1, 2, 3 };
    Hearth__Evaluate ask = HEARTH__EVALUATE__INIT;
    ask.kind = HEARTH__EVAL_KIND__PERPLEXITY;
    for (int i = 0; i < 20; i++) {
        evals_ask(r.b, &to, clients[0], m, &ask, ids, sizeof ids);
    }
    rig_turns(&r);
    assert_int_equal(evals_running(r.b, m), EVALS_AT_ONCE);
    ask.flow = message_str("other");
    evals_ask(r.b, &to, clients[0], m, &ask, ids, sizeof ids);
    uint64_t other = clients_flow_named(clients[0], ask.flow);
    assert_int_not_equal(other, clients[0]->flow);
    rig_turns(&r);
    int before = 0;
    while (answer_first(&r) != other) {
        assert_in_range(++before, 1, EVALS_AT_ONCE);
    }
    while (answer_first(&r)) {
    }
    assert_null(r.b->evals.first);
    assert_int_equal(queue_served(&r.b->queue, clients[0]->flow) - queue_served(&r.b->queue, other),
                     4 * 3 * (20 - (int)EVALS_AT_ONCE - 1));
    rig_close(&r);
}

/* Counters know tokens, not time: where a token takes long, who waits has a place after its age, from one of its priority or a
 * lower one that has had it for a while. */
static void age_goes_before_counters(void **state)
{
    (void)state;
    struct rig r;
    uint64_t served[4] = { 0 };
    begin(&r);
    struct request *first = submit(&r, 0, 1, 4, 1900, QUEUE_NORMAL);
    struct request *second = submit(&r, 1, 2, 4, 1900, QUEUE_NORMAL);
    rig_turns(&r);
    submit(&r, 2, 3, 4, 1900, QUEUE_BATCH);
    r.b->now_ms += queue_aged_ms(QUEUE_BATCH);
    rig_turns(&r);
    assert_false(first->releasing || second->releasing); /* they are of a higher priority */
    struct request *late = submit(&r, 3, 4, 4, 1900, QUEUE_NORMAL);
    r.b->now_ms += queue_aged_ms(QUEUE_NORMAL) - 1;
    rig_turns(&r);
    assert_false(first->releasing || second->releasing);
    r.b->now_ms += 1;
    rig_turns(&r);
    assert_true(first->releasing != second->releasing);
    step(&r, served);
    assert_true(late->worker);
    r.b->now_ms += QUEUE_PLACE_MS;
    rig_turns(&r);
    assert_false(late->releasing); /* who gave its place up has waited for a moment only */
    rig_close(&r);
}

/* Many in a model's small cache: who had a place in its turn and no page has waited on. */
static void a_turn_without_a_token_costs_no_age(void **state)
{
    (void)state;
    struct rig r;
    uint64_t served[4] = { 0 };
    begin(&r);
    struct request *idle = submit(&r, 0, 1, 4, 1900, QUEUE_NORMAL);
    rig_turns(&r);
    uint64_t since = idle->waits_ms;
    assert_true(idle->worker);
    r.b->now_ms += 3ull * QUEUE_PLACE_MS;
    request_return(r.b, idle, "its model left");
    assert_int_equal(idle->waits_ms, since);
    rig_turns(&r);
    assert_true(idle->worker);
    step(&r, served);
    r.b->now_ms += 10;
    request_return(r.b, idle, "its model left");
    assert_int_equal(idle->waits_ms, r.b->now_ms);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(evaluations_have_flows),
        cmocka_unit_test(tokens_go_by_weight),
        cmocka_unit_test(endless_answers_take_turns),
        cmocka_unit_test(age_goes_before_counters),
        cmocka_unit_test(a_turn_without_a_token_costs_no_age),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
