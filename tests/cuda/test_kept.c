/* Goal: a worker on a device keeps a model's weights, mapped and registered, until it is told to let go of them, and answers when nothing
 * of them is left; a worker on a CPU keeps nothing. */
#include "tests/worker/house.h"

#include <sys/stat.h>

#include "tests/cuda/emulate_counts.h"

#define SEGMENT 101u /* weights as a device wants them */

static struct house house;

/* How often weights are mapped here, beside the house's own. */
static uint32_t n_mapped(void)
{
    char line[512];
    uint32_t n = 0;
    FILE *f = fopen("/proc/self/maps", "re");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        n += strstr(line, "memfd:weights") != NULL;
    }
    fclose(f);
    return n - 1;
}

static int open_house(const char *device)
{
    static const char *const model = HEARTH_FIXTURES "/hearth-tiny.gguf";
    house_open_on(&house, model, device);
    house_deposit(&house, SEGMENT, house_load(model, WEIGHTS_LAYOUT_FILE), -1);
    house.weights_segment = SEGMENT;
    return 0;
}

static int open_device(void **state)
{
    (void)state;
    return open_house("cuda");
}

static int open_cpu(void **state)
{
    (void)state;
    return open_house("cpu");
}

static int close_house(void **state)
{
    (void)state;
    house_close(&house);
    assert_int_equal(emulate_counted().registered_bytes, 0);
    return 0;
}

static void unbind(void)
{
    Hearth__WorkerUnbind unbind = HEARTH__WORKER_UNBIND__INIT;
    uint32_t before = house.n_unbound;
    unbind.model = HOUSE_MODEL;
    house_say(&house, HEARTH__ENVELOPE__BODY_WORKER_UNBIND, &unbind);
    HOUSE_UNTIL(&house, house.n_unbound > before);
}

static void keep(void)
{
    Hearth__WorkerKeep keep = HEARTH__WORKER_KEEP__INIT;
    keep.segment = SEGMENT;
    house_say(&house, HEARTH__ENVELOPE__BODY_WORKER_KEEP, &keep);
}

static void forget(uint64_t segment)
{
    Hearth__WorkerForget forget = HEARTH__WORKER_FORGET__INIT;
    forget.segment = segment;
    house_say(&house, HEARTH__ENVELOPE__BODY_WORKER_FORGET, &forget);
}

static uint64_t segment_bytes(void)
{
    struct stat st;
    assert_int_equal(fstat(house_segment_fd(&house, SEGMENT), &st), 0);
    return (uint64_t)st.st_size;
}

/* While no model is bound, so that nothing else is registered. */
static void wait_for_all_of_it(void)
{
    HOUSE_UNTIL(&house, emulate_counted().registered_bytes >= segment_bytes());
    assert_int_equal(emulate_counted().registered_bytes, segment_bytes());
}

static void weights_stay_when_their_model_goes(void **state)
{
    (void)state;
    assert_true(house.keeps);
    house_bind(&house, 2, 0);
    assert_int_equal(n_mapped(), 1);
    assert_int_equal(emulate_counted().n_direct, 0); /* the first upload */
    unbind();
    wait_for_all_of_it();
    for (int swap = 0; swap < 2; swap++) {
        uint64_t direct = emulate_counted().n_direct, registered = emulate_counted().n_registered;
        house_bind(&house, 2, 0);
        assert_true(emulate_counted().n_direct > direct);
        assert_int_equal(n_mapped(), 1);
        unbind();
        assert_int_equal(n_mapped(), 1);
        wait_for_all_of_it();
        assert_true(emulate_counted().n_registered - registered <= 2); /* the state's mirror */
    }
    forget(SEGMENT);
    HOUSE_UNTIL(&house, house.n_forgot == 1);
    assert_int_equal(house.forgot, SEGMENT);
    assert_int_equal(n_mapped(), 0);
    assert_int_equal(emulate_counted().registered_bytes, 0);
}

static void a_hint_registers_ahead_of_the_bind(void **state)
{
    (void)state;
    keep();
    HOUSE_UNTIL(&house, n_mapped() == 1);
    wait_for_all_of_it();
    uint64_t direct = emulate_counted().n_direct;
    keep(); /* said again: nothing */
    house_bind(&house, 2, 0);
    assert_true(emulate_counted().n_direct > direct);
    assert_int_equal(n_mapped(), 1);
    forget(SEGMENT); /* in use: answered when it is not */
    for (int i = 0; i < 20; i++) {
        house_turn(&house);
    }
    assert_int_equal(house.n_forgot, 0);
    unbind();
    HOUSE_UNTIL(&house, house.n_forgot == 1);
    assert_int_equal(n_mapped(), 0);
    forget(SEGMENT); /* not here: answered at once */
    forget(77);
    HOUSE_UNTIL(&house, house.n_forgot == 3);
    assert_int_equal(house.forgot, 77);
}

/* Leaving is not stopped by a bind that comes: the segment is mapped once more, and nothing is said of the first mapping. */
static void what_leaves_may_come_back(void **state)
{
    (void)state;
    keep();
    wait_for_all_of_it();
    forget(SEGMENT);
    house_bind(&house, 2, 0);
    unbind();
    forget(SEGMENT);
    HOUSE_UNTIL(&house, house.n_forgot > 0 && n_mapped() == 0);
    assert_int_equal(emulate_counted().registered_bytes, 0);
}

static void a_new_broker_learns_what_is_here(void **state)
{
    (void)state;
    struct err err;
    struct channel_msg msg = { .magic = CHANNEL_MAGIC, .op = CHANNEL_BROKER_NEW, .value = 2 };
    assert_int_equal(house.n_kept, 0);
    keep();
    HOUSE_UNTIL(&house, n_mapped() == 1);
    link_close(&house.router);
    house_listen(&house);
    assert_ok(channel_send(house.channel[0], &msg, NULL, 0, &err), err);
    HOUSE_UNTIL(&house, house.n_hello == 2);
    assert_int_equal(house.n_kept, 1);
    assert_int_equal(house.kept, SEGMENT);
    forget(SEGMENT);
    HOUSE_UNTIL(&house, house.n_forgot == 1);
}

static void a_cpu_keeps_nothing(void **state)
{
    (void)state;
    assert_false(house.keeps);
    keep();
    forget(SEGMENT);
    HOUSE_UNTIL(&house, house.n_forgot == 1);
    assert_int_equal(n_mapped(), 0);
    house_bind(&house, 2, 0);
    assert_int_equal(n_mapped(), 1);
    unbind();
    assert_int_equal(n_mapped(), 0);
}

int main(void)
{
#define TEST(name, open) cmocka_unit_test_setup_teardown(name, open, close_house)
    const struct CMUnitTest tests[] = {
        TEST(weights_stay_when_their_model_goes, open_device),
        TEST(a_hint_registers_ahead_of_the_bind, open_device),
        TEST(what_leaves_may_come_back, open_device),
        TEST(a_new_broker_learns_what_is_here, open_device),
        TEST(a_cpu_keeps_nothing, open_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
