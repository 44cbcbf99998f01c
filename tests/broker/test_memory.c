/* Any allocation of the broker may fail. A small life of three models and a dozen requests, once for each of its allocations, which then
 * fails: every request has its typed end, what could not be had is said, and the next life goes on as ever. */
#include "proto/log.h"
#include "tests/broker/world.h"

static struct world world;
static uint64_t n_allocations, fail_at; /* 0: none */

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

static bool fails(void)
{
    return world_in_broker && ++n_allocations == fail_at;
}

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return fails() ? NULL : __real_realloc(p, n);
}

static void live(void)
{
    struct world *w = &world;
    world_open(w, 5);
    n_allocations = 0;
    for (int i = 0; i < 12; i++) {
        client_asks(w, i % 4, i % 3, 10, 5, 0);
    }
    uint32_t open = 1;
    for (int i = 0; i < 6000 && open > 0; i++) {
        world_step(w, false);
        open = 0;
        for (uint32_t k = 0; k < w->n_asks; k++) {
            open += !w->asks[k].ended;
        }
    }
    for (uint32_t i = 0; i < w->n_asks; i++) {
        const struct ask *a = &w->asks[i];
        bool refused = a->end == JOURNAL_END_ERROR && fail_at > 0 &&
                       (a->code == ERR_NO_MEMORY || a->code == ERR_BUSY);
        if (!a->ended || (a->end != JOURNAL_END_LENGTH && !refused)) {
            world_fail(w, "allocation %llu: request %u: %s, code %s", (unsigned long long)fail_at,
                       i, a->ended ? journal_end_name(a->end) : "no end", err_name(a->code));
        }
    }
    world_close(w);
}

static void any_allocation_may_fail(void **state)
{
    (void)state;
    fail_at = 0;
    live();
    uint64_t all = n_allocations;
    assert_true(all > 20);
    uint64_t first = getenv("ONLY") ? strtoull(getenv("ONLY"), NULL, 10) : 1;
    for (fail_at = first; fail_at <= all; fail_at++) {
        live();
    }
    printf("info %llu allocations failed, one in each life\n", (unsigned long long)all);
}

int main(void)
{
    setenv("HEARTH_LOG", "error", 0);
    log_init("memory");
    const struct CMUnitTest tests[] = { cmocka_unit_test(any_allocation_may_fail) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
