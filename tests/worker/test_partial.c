/* Weights that are still being read: a model binds at once, a step waits before the layer that is not there, and the answer has
 * the bits of one that waited for all. What has not arrived is rubbish, so computing with it would show. */
#include "tests/worker/house.h"

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

#define N_PROMPT 40

static int admit(uint32_t seed, uint32_t n_max)
{
    int32_t prompt[N_PROMPT];
    for (uint32_t i = 0; i < N_PROMPT; i++) {
        seed = seed * 1664525u + 1013904223u;
        prompt[i] = (int32_t)((seed >> 8) % 300 + 20);
    }
    struct journal_params params = house_params(n_max);
    return house_admit(&house, prompt, N_PROMPT, &params, NULL, HOUSE_CHILD);
}

/* The segment of a loader that has just begun. */
struct loading {
    int fd;
    uint8_t *base;
    size_t bytes;
};

static void begin_loading(struct loading *l)
{
    struct err err;
    *l = (struct loading){ .fd = shm_create("loading", house.weights.size, true, &err) };
    assert_true(l->fd >= 0);
    l->base = shm_map(l->fd, true, &l->bytes, &err);
    assert_non_null(l->base);
    uint64_t data_off = house.weights.header->data_off;
    memcpy(l->base, house.weights.base, (size_t)data_off);
    memset(l->base + data_off, 0xa5, l->bytes - (size_t)data_off);
    ((struct weights_header *)(void *)l->base)->watermark = 0;
    house.weights_segment = ++house.next_segment;
    house_deposit(&house, house.weights_segment, l->fd, -1);
}

/* Brings every tensor that a watermark covers, then announces it. */
static void bring(struct loading *l, uint64_t watermark)
{
    for (size_t i = 0; i < house.weights.n_tensors; i++) {
        const struct weights_tensor *t = &house.weights.tensors[i];
        if (t->data_end <= watermark) {
            memcpy(l->base + (t->data - house.weights.base), t->data, (size_t)t->size_bytes);
        }
    }
    weights_advance((struct weights_header *)(void *)l->base, watermark);
}

static uint64_t next_mark(uint64_t after)
{
    uint64_t next = house.weights.header->data_bytes;
    for (size_t i = 0; i < house.weights.n_tensors; i++) {
        uint64_t end = house.weights.tensors[i].data_end;
        next = end > after && end < next ? end : next;
    }
    return next;
}

static void unbind(void)
{
    Hearth__WorkerUnbind ask = HEARTH__WORKER_UNBIND__INIT;
    ask.model = HOUSE_MODEL;
    house_say(&house, HEARTH__ENVELOPE__BODY_WORKER_UNBIND, &ask);
    house.state_segment = 0;
}

static void finish(const int *slots, int n, struct answer *answers)
{
    for (int i = 0; i < n; i++) {
        do {
            house_turn(&house);
            house_read(&house, slots[i], &answers[i]);
        } while (!answers[i].ended);
    }
}

static void a_prompt_begins_before_the_last_layer_is_in(void **state)
{
    (void)state;
    static struct answer warm[2], cold[2];
    struct loading l;
    int slots[2];
    house_bind(&house, 4, 0);
    for (int i = 0; i < 2; i++) {
        slots[i] = admit(7 + (uint32_t)i, 12);
        house_give(&house, slots[i]);
    }
    finish(slots, 2, warm);
    unbind();

    begin_loading(&l);
    house_bind(&house, 4, 0); /* bound, and not a byte is there */
    for (int i = 0; i < 2; i++) {
        slots[i] = admit(7 + (uint32_t)i, 12);
        house_give(&house, slots[i]);
    }
    int gone = admit(99, 12); /* in the same step; it is cancelled while the step waits */
    house_give(&house, gone);
    const uint64_t all = house.weights.header->data_bytes;
    uint32_t marks = 0;
    for (uint64_t mark = 0; mark < all; mark = next_mark(mark), marks++) {
        bring(&l, mark);
        for (int turn = 0; turn < 4; turn++) {
            house_turn(&house);
        }
        if (marks == 12) {
            journal_slot_at(&house.journal, (uint32_t)gone)->cancel = 1;
        }
        house_read(&house, slots[0], &cold[0]);
        assert_int_equal(cold[0].n_tokens, 0);
    }
    assert_true(marks > 20);
    bring(&l, all);
    finish(slots, 2, cold);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(cold[i].n_tokens, warm[i].n_tokens);
        assert_memory_equal(cold[i].tokens, warm[i].tokens, warm[i].n_tokens * sizeof(int32_t));
        assert_true(memcmp(&cold[i].logprob, &warm[i].logprob, sizeof(float)) == 0);
    }
    static struct answer cancelled;
    house_read(&house, gone, &cancelled);
    assert_int_equal(cancelled.end, JOURNAL_END_CANCELLED);
    assert_int_equal(cancelled.n_tokens, 0);
    unbind();
    shm_unmap(l.base, l.bytes);
}

/* Its loader dies half-way: the model leaves, the request goes back unharmed, and is answered from the next segment. */
static void a_load_that_dies_gives_its_requests_back(void **state)
{
    (void)state;
    static struct answer warm, again;
    struct loading l;
    house.weights_segment = HOUSE_WEIGHTS;
    house_bind(&house, 4, 0);
    int slot = admit(3, 9);
    house_give(&house, slot);
    finish(&slot, 1, &warm);
    unbind();

    begin_loading(&l);
    house_bind(&house, 4, 0);
    slot = admit(3, 9);
    house_give(&house, slot);
    bring(&l, house.weights.header->data_bytes / 2);
    for (int turn = 0; turn < 10; turn++) {
        house_turn(&house);
    }
    uint32_t before = house.n_released;
    unbind();
    HOUSE_UNTIL(&house, house.n_released > before);
    house_read(&house, slot, &again);
    assert_int_equal(again.n_tokens, 0);
    shm_unmap(l.base, l.bytes);

    house.weights_segment = HOUSE_WEIGHTS;
    house_bind(&house, 4, 0);
    house_give(&house, slot);
    finish(&slot, 1, &again);
    assert_int_equal(again.n_tokens, warm.n_tokens);
    assert_memory_equal(again.tokens, warm.tokens, warm.n_tokens * sizeof(int32_t));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_begins_before_the_last_layer_is_in),
        cmocka_unit_test(a_load_that_dies_gives_its_requests_back),
    };
    return cmocka_run_group_tests(tests, open_house, close_house);
}
