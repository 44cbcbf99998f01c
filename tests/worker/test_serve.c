/* The worker's loop against a broker, a keeper and a journal of the test's own. */
#include "tests/worker/house.h"
#include "worker/evaluate.h"

static struct house house;

static int open_house(void **state)
{
    (void)state;
    house_open(&house, HEARTH_FIXTURES "/hearth-tiny.gguf");
    return 0;
}

static int close_house(void **state)
{
    (void)state;
    house_close(&house);
    return 0;
}

static void prompt_of(int32_t *prompt, uint32_t n, uint32_t seed)
{
    for (uint32_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        prompt[i] = (int32_t)((seed >> 8) % 300 + 20);
    }
}

static bool ended(int slot)
{
    static struct answer a;
    house_read(&house, slot, &a);
    return a.ended;
}

/* Runs one request to its end, alone. */
static void run(uint32_t n_prompt, uint32_t seed, const struct journal_params *params,
                const char *stop, struct answer *a)
{
    static int32_t prompt[512];
    prompt_of(prompt, n_prompt, seed);
    int slot = house_admit(&house, prompt, n_prompt, params, stop, HOUSE_CHILD);
    uint32_t before = house.n_finished;
    house_give(&house, slot);
    HOUSE_UNTIL(&house, house.n_finished > before);
    house_read(&house, slot, a);
    assert_true(a->ended);
    house_free(&house, slot);
}

/* One request end to end: taken, answered in the journal, its reader woken, its end told. */
static void one_request_is_answered(void **state)
{
    (void)state;
    static struct answer a;
    house_bind(&house, 4, 0);
    assert_int_equal(house.ctx, 512);
    assert_true(house.generates);
    house.page->waiting = 1;
    struct journal_params params = house_params(20);
    run(17, 1, &params, NULL, &a);
    assert_int_equal(a.n_tokens, 20);
    assert_int_equal(a.end, JOURNAL_END_LENGTH);
    assert_true(a.n_bytes > 0);
    uint64_t wakes = 0;
    assert_int_equal(sizeof wakes, read(house.event_fd, &wakes, sizeof wakes));
    assert_int_equal(wakes, 1); /* only the first record found a sleeper */
    assert_int_equal(house.page->waiting, 0);
}

#define MANY 16

/* Sixteen at once, of every kind of sampling, give what each gives alone. */
static void sixteen_at_once_equal_each_alone(void **state)
{
    (void)state;
    static struct answer alone[MANY], together;
    static int32_t prompt[512];
    struct journal_params params[MANY];
    int slots[MANY];
    house_bind(&house, MANY, 0);
    for (uint32_t i = 0; i < MANY; i++) {
        params[i] = house_params(12 + i);
        params[i].seed = 1000 + i;
        params[i].temp = i % 2 ? 0.9f : 0;
        params[i].top_k = i % 4 == 1 ? 40 : 0;
        params[i].top_p = i % 4 == 3 ? 0.9f : 1;
        params[i].repeat_penalty = i % 3 == 0 ? 1.2f : 1;
        params[i].repeat_last_n = 64;
        params[i].logprobs = 1;
        params[i].n_alternatives = 3;
        run(5 + 11 * i, 100 + i, &params[i], NULL, &alone[i]);
    }
    uint32_t before = house.n_finished;
    for (uint32_t i = 0; i < MANY; i++) {
        prompt_of(prompt, 5 + 11 * i, 100 + i);
        slots[i] = house_admit(&house, prompt, 5 + 11 * i, &params[i], NULL, HOUSE_CHILD);
        house_give(&house, slots[i]);
    }
    HOUSE_UNTIL(&house, house.n_finished == before + MANY);
    for (uint32_t i = 0; i < MANY; i++) {
        house_read(&house, slots[i], &together);
        assert_int_equal(together.n_tokens, alone[i].n_tokens);
        assert_memory_equal(together.tokens, alone[i].tokens, alone[i].n_tokens * sizeof(int32_t));
        assert_string_equal(together.text, alone[i].text);
        assert_memory_equal(&together.logprob, &alone[i].logprob, sizeof(float));
    }
}

static void cancel(int slot)
{
    Hearth__WorkerCancel ask = HEARTH__WORKER_CANCEL__INIT;
    ask.shard = HOUSE_SHARD;
    ask.slot = (uint32_t)slot;
    ask.generation = journal_slot_at(&house.journal, (uint32_t)slot)->generation;
    house_say(&house, HEARTH__ENVELOPE__BODY_WORKER_CANCEL, &ask);
}

/* A cancel ends a request wherever it is, by message or by the word in the slot, and frees its place. */
static void a_cancel_ends_a_request(void **state)
{
    (void)state;
    static struct answer a;
    static int32_t prompt[512];
    struct journal_params params = house_params(400);
    house_bind(&house, 1, 0);
    prompt_of(prompt, 100, 3);
    int slot = house_admit(&house, prompt, 100, &params, NULL, HOUSE_CHILD);
    cancel(slot); /* not taken yet: nothing happens */
    house_give(&house, slot);
    HOUSE_UNTIL(&house, (house_read(&house, slot, &a), a.n_tokens >= 3));
    cancel(slot);
    HOUSE_UNTIL(&house, house.n_finished == 1);
    house_read(&house, slot, &a);
    assert_int_equal(a.end, JOURNAL_END_CANCELLED);
    house_free(&house, slot);
    slot = house_admit(&house, prompt, 100, &params, NULL, HOUSE_CHILD);
    house_give(&house, slot);
    HOUSE_UNTIL(&house, (house_read(&house, slot, &a), a.n_tokens >= 1));
    journal_slot_at(&house.journal, (uint32_t)slot)->cancel = 1;
    HOUSE_UNTIL(&house, house.n_finished == 2);
    house_read(&house, slot, &a);
    assert_int_equal(a.end, JOURNAL_END_CANCELLED);
    assert_true(a.n_tokens < 400);
    run(9, 4, &(struct journal_params){ .n_max = 2, .n_ctx = 512 }, NULL, &a);
    assert_true(a.ended);
}

/* The bug this guards against: a model that was bound anew with a shorter context ended a request there as if its answer had its
 * length. */
static void a_context_that_shrank_is_told(void **state)
{
    (void)state;
    static struct answer a;
    struct journal_params params = house_params(400);
    house_bind(&house, 4, 0);
    params.n_ctx = 4096;
    run(500, 5, &params, NULL, &a);
    assert_true(a.ended && a.n_tokens < 400);
    assert_int_equal(a.end, JOURNAL_END_ERROR);
}

/* A worker that dies after any number of tokens is continued by the next to the same answer, whether the state
 * that it left is believed or not, and what the state holds is not computed again. stop as house_admit has it. */
static void goes_on(const struct journal_params *params, const char *stop, struct answer *whole)
{
    static struct answer a;
    static int32_t prompt[512];
    house_bind(&house, 4, 0);
    run(150, 5, params, stop, whole);
    uint32_t child = HOUSE_CHILD;
    for (int round = 0; round < 2; round++) {
        prompt_of(prompt, 150, 5);
        int slot = house_admit(&house, prompt, 150, params, stop, child);
        house_give(&house, slot);
        for (uint32_t at = 1; at < params->n_max; at += 13) {
            HOUSE_UNTIL(&house, (house_read(&house, slot, &a), a.n_tokens >= at || a.ended));
            if (a.ended) {
                break;
            }
            serve_destroy(&house.serve); /* says and saves nothing, as a kill would */
            journal_slot_at(&house.journal, (uint32_t)slot)->owner = ++child;
            if (round % 2) {
                house.state_segment = 0; /* not believed */
            }
            uint32_t hellos = house.n_hello;
            house_start_worker(&house, child);
            HOUSE_UNTIL(&house, house.n_hello > hellos);
            house_bind(&house, 4, 0);
            house_give(&house, slot);
        }
        HOUSE_UNTIL(&house, ended(slot));
        house_read(&house, slot, &a);
        assert_int_equal(a.n_tokens, whole->n_tokens);
        assert_memory_equal(a.tokens, whole->tokens, whole->n_tokens * sizeof(int32_t));
        assert_string_equal(a.text, whole->text);
        assert_int_equal(a.n_cached, round % 2 ? 0 : 150);
        uint32_t before = house.n_finished;
        HOUSE_UNTIL(&house, house.n_finished > before || house.n_finished > 0);
        house_free(&house, slot);
        house_turn(&house);
    }
}

static void a_new_worker_goes_on(void **state)
{
    (void)state;
    static struct answer whole;
    struct journal_params params = house_params(40);
    params.temp = 0.8f;
    params.top_p = 0.95f;
    params.frequency_penalty = 0.2f;
    params.repeat_last_n = -1;
    goes_on(&params, NULL, &whole);
}

/* What mirostat and adaptive-p carry on is in the log; the others keep nothing. */
static void mirostat_goes_on(void **state)
{
    (void)state;
    static struct answer whole;
    struct journal_params params = house_params(40);
    params.temp = 1;
    params.mirostat = 2;
    params.mirostat_tau = 3;
    params.mirostat_eta = 0.3f;
    goes_on(&params, NULL, &whole);
}

static void mirostat_one_and_dry_go_on(void **state)
{
    (void)state;
    static struct answer whole;
    struct journal_params params = house_params(40);
    params.temp = 1.2f;
    params.mirostat = 1;
    params.mirostat_tau = 4;
    params.mirostat_eta = 0.2f;
    params.dry_multiplier = 0.8f;
    params.dry_base = 1.75f;
    params.dry_allowed_length = 1;
    params.dry_penalty_last_n = -1;
    goes_on(&params, NULL, &whole);
}

static void adaptive_p_goes_on(void **state)
{
    (void)state;
    static struct answer whole;
    struct journal_params params = house_params(40);
    params.temp = 1;
    params.adaptive_p = 1;
    params.adaptive_target = 0.2f;
    params.adaptive_decay = 0.95f;
    goes_on(&params, NULL, &whole);
}

static void xtc_and_the_others_go_on(void **state)
{
    (void)state;
    static struct answer whole;
    struct journal_params params = house_params(40);
    params.temp = 1;
    params.dynatemp_range = 0.5f;
    params.dynatemp_exponent = 1;
    params.top_n_sigma = 2;
    params.xtc_probability = 0.5f;
    params.xtc_threshold = 0.05f;
    goes_on(&params, NULL, &whole);
}

/* Each piece of an answer that is banned does not come, nothing before it changes, and death changes nothing. */
static void banned_strings_go_on(void **state)
{
    (void)state;
    static struct answer plain, whole;
    struct journal_params params = house_params(40);
    params.temp = 0.8f;
    params.seed = 11;
    house_bind(&house, 4, 0);
    run(150, 5, &params, NULL, &plain);
    params.n_banned = 1;
    for (uint32_t at = 3; at + 6 < plain.n_bytes && at < 40; at += 17) {
        char banned[7];
        snprintf(banned, sizeof banned, "%s", plain.text + at);
        close_house(state); /* its worker is a later child now */
        open_house(state);
        goes_on(&params, banned, &whole);
        assert_null(strcasestr(whole.text, banned));
        const char *first = strcasestr(plain.text, banned);
        assert_true(whole.n_tokens > 0 && first);
        /* The token in which it began may have begun earlier by a few bytes. */
        size_t same = (size_t)(first - plain.text);
        same = same > 16 ? same - 16 : 0;
        assert_memory_equal(whole.text, plain.text, same);
    }
}

/* A broker that restarts hears what is held, and ends that it has not taken back are told until it has. */
static void a_new_broker_is_told(void **state)
{
    (void)state;
    struct err err;
    static struct answer a;
    static int32_t prompt[512];
    /* Long enough to be running still when the second broker is greeted, on a machine with much else to do. */
    struct journal_params params = house_params(480), few = house_params(3);
    house_bind(&house, 4, 0);
    prompt_of(prompt, 20, 7);
    int running = house_admit(&house, prompt, 20, &params, NULL, HOUSE_CHILD);
    int done = house_admit(&house, prompt, 10, &few, NULL, HOUSE_CHILD);
    house_give(&house, running);
    house_give(&house, done);
    HOUSE_UNTIL(&house, house.n_finished == 1);
    for (int brokers = 1; brokers < 3; brokers++) {
        link_close(&house.router);
        house_listen(&house);
        struct channel_msg msg = { .magic = CHANNEL_MAGIC, .op = CHANNEL_BROKER_NEW, .value = 2 };
        assert_ok(channel_send(house.channel[0], &msg, NULL, 0, &err), err);
        /* By its own name: on a busy machine the other one may end meanwhile. */
        uint32_t bound = house.n_bound, hellos = house.n_hello;
        uint32_t finished = house.n_finished_of[done];
        HOUSE_UNTIL(&house, house.n_hello > hellos && house.n_bound > bound);
        if (brokers == 1) {
            HOUSE_UNTIL(&house, house.n_finished_of[done] > finished);
            assert_int_equal(house.n_held, 2);
            house_free(&house, done); /* taken back now */
        } else {
            assert_int_equal(house.n_held, 1);
            assert_int_equal(house.n_finished_of[done], finished);
        }
    }
    HOUSE_UNTIL(&house, ended(running));
    house_read(&house, running, &a);
    assert_int_equal(a.n_tokens, 480);
    assert_int_equal(a.end, JOURNAL_END_LENGTH);
}

/* With pages for little more than one context, eight long requests all end, and as they would alone. */
static void few_pages_serve_all_in_the_end(void **state)
{
    (void)state;
    enum { N = 6 };
    static struct answer alone[N], a;
    static int32_t prompt[512];
    int slots[N];
    struct journal_params params = house_params(150);
    params.temp = 0.7f;
    house_bind(&house, 8, 0);
    for (uint32_t i = 0; i < N; i++) {
        run(60, 20 + i, &params, NULL, &alone[i]);
    }
    Hearth__WorkerUnbind ask = HEARTH__WORKER_UNBIND__INIT;
    ask.model = HOUSE_MODEL;
    house_say(&house, HEARTH__ENVELOPE__BODY_WORKER_UNBIND, &ask);
    house.state_segment = 0;
    house_bind(&house, 8, 700u << 10);
    assert_true(house.ctx >= 256);
    for (uint32_t i = 0; i < N; i++) {
        prompt_of(prompt, 60, 20 + i);
        slots[i] = house_admit(&house, prompt, 60, &params, NULL, HOUSE_CHILD);
        house_give(&house, slots[i]);
    }
    for (uint32_t i = 0; i < N; i++) {
        HOUSE_UNTIL(&house, ended(slots[i]));
        house_read(&house, slots[i], &a);
        assert_int_equal(a.n_tokens, alone[i].n_tokens);
        assert_memory_equal(a.tokens, alone[i].tokens, a.n_tokens * sizeof(int32_t));
    }
}

/* Newcomers take the places of those that end, and there are pages for one context: who was set aside begins again before them, so
 * nobody waits longer than those that came before him take, one after another. */
static void newcomers_do_not_overtake_who_was_set_aside(void **state)
{
    (void)state;
    enum { SEATS = 8, ALL = 24, PROMPT = 60, TOKENS = 150 };
    struct {
        int slot;
        uint32_t n, since;
    } open[SEATS];
    static int32_t prompt[512];
    struct journal_params params = house_params(TOKENS);
    uint32_t turn = 0, longest = 0, begun = 0, n_open = 0;
    params.temp = 0.7f;
    house_bind(&house, SEATS, 700u << 10);
    while (begun < ALL || n_open > 0) {
        while (n_open < SEATS && begun < ALL) {
            prompt_of(prompt, PROMPT, 100 + begun++);
            int slot = house_admit(&house, prompt, PROMPT, &params, NULL, HOUSE_CHILD);
            house_give(&house, slot);
            open[n_open].slot = slot;
            open[n_open].n = 0;
            open[n_open++].since = turn;
        }
        house_turn(&house);
        turn++;
        for (uint32_t i = 0; i < n_open; i++) {
            static struct answer a;
            house_read(&house, open[i].slot, &a);
            open[i].since = a.n_tokens > open[i].n ? turn : open[i].since;
            open[i].n = a.n_tokens;
            longest = turn - open[i].since > longest ? turn - open[i].since : longest;
            assert_true(turn - open[i].since < SEATS * (TOKENS + PROMPT));
            if (a.ended && house.n_finished_of[open[i].slot] > 0) {
                assert_int_equal(a.n_tokens, TOKENS);
                house_free(&house, open[i].slot);
                house.n_finished_of[open[i].slot] = 0;
                open[i--] = open[--n_open];
            }
        }
    }
    printf("info %d requests through pages for one: %u turns, the longest wait %u\n", ALL, turn,
           longest);
}

/* A prompt that begins as an earlier one of the same principal does is not computed again as far as it agrees. */
static void a_common_prefix_is_reused(void **state)
{
    (void)state;
    static struct answer first, again;
    struct journal_params params = house_params(10);
    house_bind(&house, 4, 0);
    run(200, 9, &params, NULL, &first);
    assert_int_equal(first.n_cached, 0);
    run(200, 9, &params, NULL, &again);
    assert_int_equal(again.n_cached, 192); /* whole pages */
    assert_memory_equal(first.tokens, again.tokens, 10 * sizeof(int32_t));
    run(70, 9, &params, NULL, &again);
    assert_int_equal(again.n_cached, 64);
    run(200, 10, &params, NULL, &again);
    assert_int_equal(again.n_cached, 0);
}

/* A stop string ends an answer and is not part of it. */
static void a_stop_string_is_not_shown(void **state)
{
    (void)state;
    static struct answer whole, a;
    struct journal_params params = house_params(60);
    house_bind(&house, 4, 0);
    run(30, 11, &params, NULL, &whole);
    assert_true(whole.n_bytes > 30);
    char stop[8] = { 0 };
    memcpy(stop, whole.text + 20, 5);
    const char *at = strstr(whole.text, stop);
    run(30, 11, &params, stop, &a);
    assert_int_equal(a.end, JOURNAL_END_STOP);
    assert_int_equal(a.n_bytes, at - whole.text);
    assert_memory_equal(a.text, whole.text, a.n_bytes);
}

static void evaluate(enum evaluate_kind kind, const int32_t *ids, uint64_t n_ids, uint64_t bytes,
                     float *out)
{
    struct err err;
    Hearth__WorkerEvaluate ask = HEARTH__WORKER_EVALUATE__INIT;
    uint32_t before = house.n_evaluated, lens[2] = { 10, (uint32_t)n_ids - 10 };
    uint64_t ids_bytes = (n_ids * 4 + 63) / 64 * 64;
    size_t mapped;
    int fd = shm_create("bulk", ids_bytes + bytes, true, &err);
    uint8_t *bulk = shm_map(fd, true, &mapped, &err);
    memcpy(bulk, ids, n_ids * 4);
    ask.segment = ++house.next_segment;
    house_deposit(&house, ask.segment, fd, -1);
    ask.work = ask.segment;
    ask.model = HOUSE_MODEL;
    ask.kind = (Hearth__EvalKind)kind;
    ask.lens = lens;
    ask.n_lens = 2;
    ask.ids_bytes = ids_bytes;
    ask.n_ids = n_ids;
    house_say(&house, HEARTH__ENVELOPE__BODY_WORKER_EVALUATE, &ask);
    HOUSE_UNTIL(&house, house.n_evaluated > before);
    if (house.evaluated_ok && out) {
        memcpy(out, bulk + ids_bytes, bytes);
    }
    shm_unmap(bulk, mapped);
}

/* Evaluations give the same beside answers as alone; a bad one is refused with its reason. */
static void evaluations_are_answered(void **state)
{
    (void)state;
    static float alone[100 * 4096], beside[100 * 4096], mean[2 * 1024];
    static int32_t ids[100], prompt[512];
    static struct answer a;
    struct journal_params params = house_params(200);
    house_bind(&house, 4, 0);
    prompt_of(ids, 100, 30);
    evaluate(EVALUATE_LOGITS, ids, 100, sizeof alone, alone);
    assert_true(house.evaluated_ok);
    assert_int_equal(house.n_rows, 100);
    uint64_t vocab = house.n_cols;
    prompt_of(prompt, 50, 31);
    int slot = house_admit(&house, prompt, 50, &params, NULL, HOUSE_CHILD);
    house_give(&house, slot);
    HOUSE_UNTIL(&house, (house_read(&house, slot, &a), a.n_tokens >= 1));
    evaluate(EVALUATE_LOGITS, ids, 100, sizeof beside, beside);
    assert_memory_equal(alone, beside, 100 * vocab * sizeof(float));
    evaluate(EVALUATE_EMBED_MEAN, ids, 100, sizeof mean, mean);
    assert_int_equal(house.n_rows, 2);
    evaluate(EVALUATE_PERPLEXITY, ids, 100, 64, NULL);
    assert_true(house.perplexity > 1);
    evaluate(EVALUATE_LOGITS, ids, 100, 4096, NULL); /* no room for the result */
    assert_false(house.evaluated_ok);
    assert_string_equal(house.code, err_name(ERR_NO_FIT));
    ids[3] = -5;
    evaluate(EVALUATE_LOGITS, ids, 100, sizeof alone, NULL);
    assert_string_equal(house.code, err_name(ERR_BAD_INPUT));
    HOUSE_UNTIL(&house, ended(slot));
}

/* What cannot run is ended or given back with its reason; the worker lives on. */
static void bad_requests_end_with_a_reason(void **state)
{
    (void)state;
    static struct answer a;
    static int32_t prompt[512];
    struct err err;
    struct journal_params params = house_params(5);
    prompt_of(prompt, 20, 40);
    int slot = house_admit(&house, prompt, 20, &params, NULL, HOUSE_CHILD);
    house_give(&house, slot);
    HOUSE_UNTIL(&house, house.n_released == 1); /* no model is bound */
    assert_string_equal(house.code, err_name(ERR_BUSY));
    house_bind(&house, 2, 0);
    journal_slot_at(&house.journal, (uint32_t)slot)->owner = HOUSE_CHILD + 1;
    house_give(&house, slot);
    HOUSE_UNTIL(&house, house.n_released == 2); /* not ours */
    assert_string_equal(house.code, err_name(ERR_REFUSED));
    prompt[7] = 1 << 30;
    run(0, 0, &params, NULL, &a); /* no tokens at all */
    assert_int_equal(a.code, ERR_BAD_INPUT);
    slot = house_admit(&house, prompt, 20, &params, NULL, HOUSE_CHILD);
    uint32_t before = house.n_finished;
    house_give(&house, slot);
    HOUSE_UNTIL(&house, house.n_finished > before);
    house_read(&house, slot, &a);
    assert_int_equal(a.end, JOURNAL_END_ERROR);
    assert_int_equal(a.code, ERR_BAD_INPUT);
    assert_non_null(strstr(a.text, "position 7"));
    /* Bytes that are no message, and a message for others. */
    assert_ok(link_send(house.router, &house.peer, "nonsense", 8, NULL, 0, &err), err);
    Hearth__Ack ack = HEARTH__ACK__INIT;
    ack.id = message_str("id");
    house_say(&house, HEARTH__ENVELOPE__BODY_ACK, &ack);
    run(8, 41, &params, NULL, &a);
    assert_int_equal(a.n_tokens, 5);
}

/* Unbinding gives unfinished requests back; bound again, they go on where they were. */
static void unbinding_gives_requests_back(void **state)
{
    (void)state;
    static struct answer whole, a;
    static int32_t prompt[512];
    struct journal_params params = house_params(200);
    house_bind(&house, 2, 0);
    run(20, 50, &params, NULL, &whole);
    prompt_of(prompt, 20, 50);
    int slot = house_admit(&house, prompt, 20, &params, NULL, HOUSE_CHILD);
    house_give(&house, slot);
    HOUSE_UNTIL(&house, (house_read(&house, slot, &a), a.n_tokens >= 5));
    Hearth__WorkerUnbind ask = HEARTH__WORKER_UNBIND__INIT;
    ask.model = HOUSE_MODEL;
    house_say(&house, HEARTH__ENVELOPE__BODY_WORKER_UNBIND, &ask);
    HOUSE_UNTIL(&house, house.n_released == 1);
    house_read(&house, slot, &a);
    assert_false(a.ended);
    house_bind(&house, 2, 0);
    house_give(&house, slot);
    HOUSE_UNTIL(&house, ended(slot));
    house_read(&house, slot, &a);
    assert_memory_equal(a.tokens, whole.tokens, whole.n_tokens * sizeof(int32_t));
    assert_int_equal(a.n_cached, 20);
}

/* The keeper's end is the worker's end. */
static void a_closed_channel_means_exit(void **state)
{
    (void)state;
    close(house.channel[0]);
    house.channel[0] = dup(house.channel[1]);
    int going = 1;
    for (int i = 0; i < 100 && going > 0; i++) {
        going = house_turn(&house);
    }
    assert_int_equal(going, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_house, close_house)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_context_that_shrank_is_told),
        TEST(one_request_is_answered),
        TEST(sixteen_at_once_equal_each_alone),
        TEST(a_cancel_ends_a_request),
        TEST(a_new_worker_goes_on),
        TEST(mirostat_goes_on),
        TEST(mirostat_one_and_dry_go_on),
        TEST(adaptive_p_goes_on),
        TEST(xtc_and_the_others_go_on),
        TEST(banned_strings_go_on),
        TEST(a_new_broker_is_told),
        TEST(few_pages_serve_all_in_the_end),
        TEST(newcomers_do_not_overtake_who_was_set_aside),
        TEST(a_common_prefix_is_reused),
        TEST(a_stop_string_is_not_shown),
        TEST(evaluations_are_answered),
        TEST(bad_requests_end_with_a_reason),
        TEST(unbinding_gives_requests_back),
        TEST(a_closed_channel_means_exit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
