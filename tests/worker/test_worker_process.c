/* The worker as a process, confined as in service: kill -9 at any moment under eight answers loses and changes nothing, and
 * a new broker is found again from inside the sandbox. The house is the test's; the keeper is its other socket. */
#include "tests/worker/house.h"

#include <signal.h>
#include <sys/wait.h>

#define ANSWERS 8
#define KILLS   12

static struct house house;
static pid_t worker;
static uint32_t child = HOUSE_CHILD;

static void start_worker(void)
{
    char number[16], token[2 * LIMIT_TOKEN_BYTES + 1], run[64];
    memset(token, 'a', sizeof token - 1);
    token[sizeof token - 1] = 0;
    snprintf(number, sizeof number, "%u", child);
    snprintf(run, sizeof run, "%s", house.dir);
    assert_int_equal(0, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, house.channel));
    worker = fork();
    if (worker == 0) {
        dup2(house.channel[1], HERITAGE_CHANNEL_FD);
        setenv("HEARTH_TOKEN", token, 1);
        setenv("HEARTH_CHILD", number, 1);
        setenv("HEARTH_RUN", run, 1);
        setenv("HEARTH_LOG", "warn", 1);
        execl(HEARTH_BIN "/hearth-worker", "hearth-worker", "--threads", "1", (char *)NULL);
        _exit(127);
    }
    close(house.channel[1]);
}

static void end_worker(int signal)
{
    int status;
    kill(worker, signal);
    assert_int_equal(worker, waitpid(worker, &status, 0));
    if (signal == SIGTERM) {
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    close(house.channel[0]);
}

/* Hands segments out, as the keeper does, and hears what the worker says. */
static void turn(int timeout_ms)
{
    struct err err;
    struct channel_msg msg;
    struct link_msg heard;
    int fds[CHANNEL_FDS_MAX];
    struct pollfd polled[] = { { .fd = house.channel[0], .events = POLLIN },
                               { .fd = link_fd(house.router), .events = POLLIN } };
    poll(polled, 2, timeout_ms);
    while (channel_recv(house.channel[0], &msg, fds, false, &err) > 0) {
        if (msg.op == CHANNEL_TAKE) {
            struct channel_msg done = { .op = CHANNEL_DONE, .cookie = msg.cookie };
            int given[2] = { -1, -1 };
            if (house_take(&house, msg.segment, given, &err) < 0) {
                done.status = ERR_NOT_FOUND;
            }
            channel_send(house.channel[0], &done, given,
                         given[0] < 0   ? 0
                         : given[1] < 0 ? 1
                                        : 2,
                         &err);
            for (int i = 0; i < 2; i++) {
                if (given[i] >= 0) {
                    close(given[i]);
                }
            }
        }
    }
    while (link_recv(house.router, &heard, &err) > 0) {
        house_hear(&house, &heard);
    }
}

#define UNTIL(condition)                                                                           \
    do {                                                                                           \
        for (int turns_ = 0; !(condition); turns_++) {                                             \
            if (turns_ > 30000) {                                                                  \
                fail_msg("never: %s", #condition);                                                 \
            }                                                                                      \
            turn(10);                                                                              \
        }                                                                                          \
    } while (0)

static void begin(void)
{
    uint32_t hellos = house.n_hello, bound = house.n_bound;
    start_worker();
    UNTIL(house.n_hello > hellos);
    Hearth__WorkerBind bind = HEARTH__WORKER_BIND__INIT;
    bind.model = HOUSE_MODEL;
    bind.segment = HOUSE_WEIGHTS;
    bind.name = message_str("tiny");
    bind.has_ctx = true;
    bind.ctx = 512;
    bind.has_n_sequences = true;
    bind.n_sequences = ANSWERS;
    house_say(&house, HEARTH__ENVELOPE__BODY_WORKER_BIND, &bind);
    UNTIL(house.n_bound > bound);
    assert_true(house.bound_ok);
}

static int slots[ANSWERS];
static struct answer answer;

static void admit_all(void)
{
    static int32_t prompt[512];
    for (int i = 0; i < ANSWERS; i++) {
        uint32_t n_prompt = 10 + 30 * (uint32_t)i, seed = (uint32_t)i + 1;
        for (uint32_t k = 0; k < n_prompt; k++) {
            seed = seed * 1664525u + 1013904223u;
            prompt[k] = (int32_t)((seed >> 8) % 300 + 20);
        }
        struct journal_params params = house_params(200);
        params.temp = i % 2 ? 0.8f : 0;
        params.repeat_penalty = 1.1f;
        params.repeat_last_n = 64;
        slots[i] = house_admit(&house, prompt, n_prompt, &params, i == 3 ? " the" : NULL, child);
    }
}

static bool give_all(void)
{
    bool left = false;
    for (int i = 0; i < ANSWERS; i++) {
        house_read(&house, slots[i], &answer);
        journal_slot_at(&house.journal, (uint32_t)slots[i])->owner = answer.ended ? 0 : child;
        if (!answer.ended) {
            house_give(&house, slots[i]);
            left = true;
        }
    }
    return left;
}

static bool all_ended(void)
{
    for (int i = 0; i < ANSWERS; i++) {
        house_read(&house, slots[i], &answer);
        if (!answer.ended) {
            return false;
        }
    }
    return true;
}

static void kills_lose_nothing(void **state)
{
    (void)state;
    static struct answer whole[ANSWERS];
    begin();
    admit_all();
    give_all();
    UNTIL(all_ended());
    for (int i = 0; i < ANSWERS; i++) {
        house_read(&house, slots[i], &whole[i]);
        house_free(&house, slots[i]);
    }
    admit_all();
    uint32_t seed = 12345, n_kills = 0;
    while (n_kills < KILLS && give_all()) {
        seed = seed * 1664525u + 1013904223u;
        usleep(seed >> 8 & 0x7fff); /* the moment is what varies; nothing depends on it */
        turn(0);
        end_worker(SIGKILL);
        n_kills++;
        child++;
        begin();
    }
    give_all();
    UNTIL(all_ended());
    for (int i = 0; i < ANSWERS; i++) {
        house_read(&house, slots[i], &answer);
        assert_int_equal(answer.n_tokens, whole[i].n_tokens);
        assert_memory_equal(answer.tokens, whole[i].tokens, answer.n_tokens * sizeof(int32_t));
        assert_string_equal(answer.text, whole[i].text);
        assert_int_equal(answer.end, whole[i].end);
        house_free(&house, slots[i]);
    }
    print_message("%u kills\n", n_kills);
    end_worker(SIGTERM);
}

static void a_confined_worker_finds_a_new_broker(void **state)
{
    (void)state;
    struct err err;
    child++;
    begin();
    for (int i = 0; i < 3; i++) {
        uint32_t hellos = house.n_hello, bound = house.n_bound;
        link_close(&house.router);
        house_listen(&house);
        struct channel_msg msg = { .op = CHANNEL_BROKER_NEW, .value = 2 };
        assert_ok(channel_send(house.channel[0], &msg, NULL, 0, &err), err);
        UNTIL(house.n_hello > hellos && house.n_bound > bound);
    }
    admit_all();
    give_all();
    UNTIL(all_ended());
    close(house.channel[0]); /* the keeper is gone: so is the worker */
    int status;
    assert_int_equal(worker, waitpid(worker, &status, 0));
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    house.channel[0] = house.channel[1] = -1;
}

int main(void)
{
    house_furnish(&house, HEARTH_FIXTURES "/hearth-tiny.gguf");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kills_lose_nothing),
        cmocka_unit_test(a_confined_worker_finds_a_new_broker),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    house_close(&house);
    return failed;
}
