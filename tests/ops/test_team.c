/* Goal: a team does every item once, whatever the sizes, and comes and goes cleanly. */
#include "tests/test.h"

#include <stdatomic.h>
#include <time.h>

#include "worker/cpu/team.h"

static void count(void *arg, size_t begin, size_t end, unsigned member)
{
    _Atomic unsigned *seen = arg;
    (void)member;
    for (size_t i = begin; i < end; i++) {
        atomic_fetch_add(&seen[i], 1);
    }
}

static void each_item_is_done_once(void **state)
{
    (void)state;
    static _Atomic unsigned seen[1000];
    struct err err;
    for (unsigned n_threads = 1; n_threads <= 4; n_threads++) {
        struct team *team = team_create(n_threads, &err);
        assert_non_null(team);
        assert_int_equal(team_size(team), n_threads);
        for (unsigned job = 1; job <= 200; job++) {
            size_t n = (job * 37) % 1000, grain = 1 + job % 7;
            for (size_t i = 0; i < 1000; i++) {
                atomic_store(&seen[i], 0);
            }
            team_run(team, count, seen, n, grain);
            for (size_t i = 0; i < 1000; i++) {
                assert_int_equal(atomic_load(&seen[i]), i < n);
            }
        }
        team_destroy(&team);
        assert_null(team);
    }
}

/* Plain memory both ways, so that ThreadSanitizer sees a hand-over that does not order it. */
struct copy {
    unsigned in[64], out[64];
};

static void copy_items(void *arg, size_t begin, size_t end, unsigned member)
{
    struct copy *c = arg;
    (void)member;
    for (size_t i = begin; i < end; i++) {
        c->out[i] = c->in[i];
    }
}

static void members_see_the_owner_and_the_owner_sees_them(void **state)
{
    (void)state;
    static struct copy copy;
    const struct timespec pause = { .tv_nsec = 1000000 }; /* members that wait go to sleep */
    struct err err;
    for (unsigned n_threads = 2; n_threads <= 4; n_threads++) {
        struct team *team = team_create(n_threads, &err);
        assert_non_null(team);
        for (unsigned job = 1; job <= 300; job++) {
            for (unsigned i = 0; i < 64; i++) {
                copy.in[i] = job * 64 + i;
            }
            team_run(team, copy_items, &copy, 64, 1);
            assert_memory_equal(copy.in, copy.out, sizeof copy.in);
            if (job % 10 == 0) {
                nanosleep(&pause, NULL);
            }
        }
        team_destroy(&team);
    }
}

static void a_team_of_all_cores_exists(void **state)
{
    (void)state;
    struct err err;
    struct team *team = team_create(0, &err);
    assert_non_null(team);
    assert_true(team_size(team) >= 1);
    assert_true(team_grain(team, 0, 4) == 1);
    team_destroy(&team);
    team_destroy(&team);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_item_is_done_once),
        cmocka_unit_test(members_see_the_owner_and_the_owner_sees_them),
        cmocka_unit_test(a_team_of_all_cores_exists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
