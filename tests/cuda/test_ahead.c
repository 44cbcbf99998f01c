/* Answers with tokens fed on the (emulated) device from step to step are those of steps that wait for the host: alone, in a crowd, with
 * requests that need the host in between, cancelled ones, and a worker that goes and one that comes. The emulated streams are
 * queues here (HEARTH_EMULATED_LAZY), so that nothing is there before it was waited for. HEARTH_LONG with HEARTH_CONFORMANCE: the same with
 * recurrent states, half a minute more. */
#include "tests/worker/house.h"

#include "worker/plan.h"
#include "worker/serve_parts.h"

#define N_REQUESTS 8
#define N_PROMPT   5
#define N_TOKENS   12

static struct house house;
static uint32_t child;
static uint64_t budget; /* of device memory; 0: all */
static const char *model = HEARTH_FIXTURES "/hearth-tiny.gguf";

static void leave(void)
{
    serve_destroy(&house.serve);
    backend_close(&house.backend);
}

/* A worker on a device of its own; 1: it runs ahead. */
static void come(int ahead)
{
    struct err err;
    const struct backend_options options = { .n_threads = 1, .budget_bytes = budget };
    uint32_t n_hello = house.n_hello;
    setenv("HEARTH_AHEAD", ahead ? "1" : "0", 1);
    house.backend = backend_open("cuda", &options, &err);
    assert_non_null(house.backend);
    house_start_worker(&house, ++child);
    HOUSE_UNTIL(&house, house.n_hello == n_hello + 1);
    house_bind(&house, 6, 0);
    assert_int_equal(house.serve->resident[0].spill.slot_bytes > 0, budget > 0);
}

/* Requests of every kind. What is not NULL is a stop string. */
static struct journal_params params_of(uint32_t i)
{
    struct journal_params p = house_params(N_TOKENS - i % 5);
    p.seed = i / 4;
    p.temp = i % 3 == 0 ? 0 : 0.9f;
    p.top_k = i % 4 == 1 ? 8 : 0;
    p.top_p = i % 4 == 2 ? 0.8f : 1;
    p.min_p = i % 5 == 3 ? 0.05f : 0;
    p.repeat_last_n = 64;
    p.repeat_penalty = i % 2 ? 1.3f : 1;
    p.frequency_penalty = i % 4 == 3 ? 0.4f : 0;
    p.logprobs = i % 2;
    p.ignore_eos = i % 3 != 1;
    return p;
}

static int admit(uint32_t i, uint32_t n_prompt)
{
    int32_t prompt[200];
    struct journal_params p = params_of(i);
    for (uint32_t k = 0; k < n_prompt; k++) {
        prompt[k] = (int32_t)((i * 7 + k * 13) % 200 + 20);
    }
    return house_admit(&house, prompt, n_prompt, &p, i % 6 == 5 ? "e" : NULL, child);
}

static void finish(int slot, struct answer *a)
{
    do {
        house_turn(&house);
        house_read(&house, slot, a);
    } while (!a->ended);
    house_free(&house, slot);
}

static void same(const struct answer *a, const struct answer *b)
{
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_memory_equal(a->tokens, b->tokens, a->n_tokens * sizeof(int32_t));
    assert_memory_equal(&a->logprob, &b->logprob, sizeof a->logprob);
    assert_int_equal(a->end, b->end);
    assert_string_equal(a->text, b->text);
}

static struct answer waited[N_REQUESTS];

static void the_host_says_what_is_right(void **state)
{
    (void)state;
    uint32_t n_early = 0;
    come(0);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        int slot = admit(i, N_PROMPT + i % 3);
        house_give(&house, slot);
        finish(slot, &waited[i]);
        n_early += waited[i].end == JOURNAL_END_STOP;
    }
    assert_true(n_early > 0 || strstr(model, "conf")); /* some end where nobody could know it */
    leave();
}

static void alone_they_are_the_same(void **state)
{
    (void)state;
    static struct answer a;
    house.state_segment = 0;
    come(1);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        int slot = admit(i, N_PROMPT + i % 3);
        house_give(&house, slot);
        finish(slot, &a);
        same(&a, &waited[i]);
    }
    leave();
}

/* Six at a time, a long prompt among them, one that wants alternatives now and then, one that is cancelled; the worker leaves
 * half-way through, and another one goes on. */
static void in_a_crowd_and_over_a_death_they_are_the_same(void **state)
{
    (void)state;
    static struct answer a;
    int slots[N_REQUESTS];
    house.state_segment = 0;
    come(1);
    for (uint32_t begin = 0; begin < N_REQUESTS; begin += 4) {
        for (uint32_t i = begin; i < begin + 4; i++) {
            slots[i] = admit(i, N_PROMPT + i % 3);
            house_give(&house, slots[i]);
        }
        struct journal_params p = params_of(0);
        int32_t prompt[120] = { 30, 31, 32 };
        p.n_alternatives = begin == 4 ? 3 : 0;
        p.logprobs = 1;
        int other = house_admit(&house, prompt, 120, &p, NULL, child);
        int gone = admit(3, 9);
        house_give(&house, other);
        house_give(&house, gone);
        do {
            house_turn(&house);
            house_read(&house, slots[begin], &a);
        } while (a.n_tokens < 4 && !a.ended);
        journal_slot_at(&house.journal, (uint32_t)gone)->cancel = 1;
        if (begin == 4) {
            leave(); /* the logs are taken over where they are */
            for (uint32_t i = begin; i < begin + 4; i++) {
                journal_slot_at(&house.journal, (uint32_t)slots[i])->owner = child + 1;
            }
            journal_slot_at(&house.journal, (uint32_t)other)->owner = child + 1;
            journal_slot_at(&house.journal, (uint32_t)gone)->owner = child + 1;
            come(1);
            for (uint32_t i = begin; i < begin + 4; i++) {
                house_give(&house, slots[i]);
            }
            house_give(&house, other);
            house_give(&house, gone);
        }
        for (uint32_t i = begin; i < begin + 4; i++) {
            finish(slots[i], &a);
            same(&a, &waited[i]);
        }
        finish(other, &a);
        finish(gone, &a);
        assert_true(a.end == JOURNAL_END_CANCELLED || a.n_tokens == waited[3].n_tokens);
    }
    leave();
}

/* The most with which weights of this model are streamed. */
static uint64_t too_little(void)
{
    struct err err;
    struct plan plan;
    const struct backend_options options = { .n_threads = 1 };
    const struct plan_question q = { .ctx_len = 512,
                                     .k_type = DTYPE_F16,
                                     .v_type = DTYPE_F16,
                                     .n_sequences = 6,
                                     .state_bytes_max = 1ull << 30 };
    struct backend *b = backend_open("cuda", &options, &err);
    assert_non_null(b);
    assert_ok(plan_compute(&house.weights, b, &q, &plan, &err), err);
    for (b->budget_bytes = plan.total_bytes; plan.streamed_bytes == 0; b->budget_bytes -= 100000) {
        assert_ok(plan_compute(&house.weights, b, &q, &plan, &err), err);
    }
    uint64_t found = b->budget_bytes;
    backend_close(&b);
    return found;
}

/* With weights that come over the bus in every step: the next step's first are on their way when it is handed over. */
static void with_streamed_weights_they_are_the_same(void **state)
{
    budget = too_little();
    in_a_crowd_and_over_a_death_they_are_the_same(state);
    budget = 0;
}

static int open_house(void **state)
{
    (void)state;
    setenv("HEARTH_EMULATED_LAZY", "1", 1);
    setenv("HEARTH_EMULATED_BYTES", "268435456", 1);
    house_furnish(&house, model);
    child = HOUSE_CHILD;
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, house.channel);
}

static int close_house(void **state)
{
    (void)state;
    house_close(&house);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_host_says_what_is_right),
        cmocka_unit_test(alone_they_are_the_same),
        cmocka_unit_test(in_a_crowd_and_over_a_death_they_are_the_same),
        cmocka_unit_test(with_streamed_weights_they_are_the_same),
    };
    int failed = cmocka_run_group_tests(tests, open_house, close_house);
    if (getenv("HEARTH_LONG") &&
        test_conformance()) { /* with recurrent states, which are taken back too */
        char path[512];
        snprintf(path, sizeof path, "%s/models/qwen35/model.gguf", test_conformance());
        model = path;
        failed += cmocka_run_group_tests_name("recurrent", tests, open_house, close_house);
    }
    return failed;
}
