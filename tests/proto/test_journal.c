/* The journal: what is committed is read, in order, by everybody, whatever died meanwhile. */
#include "tests/test.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/journal.h"
#include "proto/shm.h"

#define SHARD (1u << 20)

struct fixture {
    char path[64];
    int fd;
    struct journal j;
};

static int open_shard(void **state)
{
    static struct fixture f;
    struct err err = { 0 };
    snprintf(f.path, sizeof f.path, "/dev/shm/hearth-test-journal-%d", (int)getpid());
    unlink(f.path);
    f.fd = journal_create(f.path, SHARD, 1000, &err);
    if (f.fd < 0 || journal_map(&f.j, f.fd, true, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    *state = &f;
    return 0;
}

static int close_shard(void **state)
{
    struct fixture *f = *state;
    journal_unmap(&f->j);
    close(f->fd);
    unlink(f->path);
    return 0;
}

/* A published request with room for n_max tokens. */
static uint32_t make_request(struct journal *j, uint32_t n_prompt, uint32_t n_max)
{
    struct err err = { 0 };
    int i = journal_reserve(j, n_prompt, 0, journal_log_need(n_max, 16, 0), &err);
    if (i < 0) {
        fail_msg("%s", err.text);
    }
    struct journal_slot *slot = journal_slot_at(j, (uint32_t)i);
    slot->id[0] = (uint8_t)(i + 1);
    journal_publish(slot);
    return (uint32_t)i;
}

static int append(struct journal_writer *w, int32_t token, const char *text, struct err *err)
{
    struct journal_record r = { .token = token, .flags = JOURNAL_TOKEN };
    return journal_append(w, &r, NULL, text, (uint32_t)strlen(text), err);
}

static void records_come_back_in_order(void **state)
{
    struct fixture *f = *state;
    struct err err = { 0 };
    uint32_t i = make_request(&f->j, 5, 100), generation = journal_slot_at(&f->j, i)->generation;
    struct journal_writer w;
    struct journal_reader r;
    struct journal_view view;
    assert_ok(journal_writer_init(&w, &f->j, i, generation, 7, &err), err);
    assert_ok(journal_reader_init(&r, &f->j, i, generation, &err), err);
    assert_int_equal(journal_read(&r, &view, &err), 0);
    for (int n = 0; n < 100; n++) {
        char text[16];
        snprintf(text, sizeof text, "piece %d", n);
        assert_ok(append(&w, n * 3, text, &err), err);
        assert_int_equal(journal_read(&r, &view, &err), 1);
        assert_int_equal(view.record.seq, n + 1);
        assert_int_equal(view.record.token, n * 3);
        assert_int_equal(view.record.epoch, 7);
        assert_int_equal(view.n_bytes, strlen(text));
        assert_memory_equal(view.bytes, text, view.n_bytes);
    }
    struct journal_record end = { .flags = JOURNAL_ENDED, .end = JOURNAL_END_LENGTH };
    assert_ok(journal_append(&w, &end, NULL, NULL, 0, &err), err);
    assert_int_equal(journal_read(&r, &view, &err), 1);
    assert_true(view.record.flags & JOURNAL_ENDED);
    assert_int_equal(journal_read(&r, &view, &err), 0);
}

static void alternatives_are_kept(void **state)
{
    struct fixture *f = *state;
    struct err err = { 0 };
    int i = journal_reserve(&f->j, 1, 0, journal_log_need(4, 16, 3), &err);
    assert_true(i >= 0);
    journal_publish(journal_slot_at(&f->j, (uint32_t)i));
    struct journal_writer w;
    struct journal_view view;
    uint32_t generation = journal_slot_at(&f->j, (uint32_t)i)->generation;
    assert_ok(journal_writer_init(&w, &f->j, (uint32_t)i, generation, 1, &err), err);
    struct journal_alternative three[3] = { { 1, -0.5f }, { 2, -1.5f }, { 3, -2.5f } };
    struct journal_record record = { .token = 1, .flags = JOURNAL_TOKEN, .n_alternatives = 3 };
    assert_ok(journal_append(&w, &record, three, "x", 1, &err), err);
    struct journal_reader r;
    assert_ok(journal_reader_init(&r, &f->j, (uint32_t)i, generation, &err), err);
    assert_int_equal(journal_read(&r, &view, &err), 1);
    assert_memory_equal(view.alternatives, three, sizeof three);
}

static void the_reserved_room_is_enough_and_no_more_is_written(void **state)
{
    struct fixture *f = *state;
    struct err err = { 0 };
    uint32_t i = make_request(&f->j, 1, 10), generation = journal_slot_at(&f->j, i)->generation;
    struct journal_writer w;
    assert_ok(journal_writer_init(&w, &f->j, i, generation, 1, &err), err);
    for (int n = 0; n < 10; n++) {
        assert_ok(append(&w, n, "sixteen bytes...", &err), err);
    }
    char reason[LIMIT_REASON_BYTES];
    memset(reason, 'r', sizeof reason);
    struct journal_record end = { .flags = JOURNAL_ENDED,
                                  .end = JOURNAL_END_ERROR,
                                  .code = ERR_IO };
    assert_ok(journal_append(&w, &end, NULL, reason, sizeof reason, &err), err);
    int refused = 0;
    for (int n = 0; n < 100 && !refused; n++) {
        refused = append(&w, n, "sixteen bytes...", &err) <
                  0; /* the last page's rest, then no more */
    }
    assert_true(refused);
    assert_int_equal(err.code, ERR_FULL);
}

static void a_writer_goes_on_after_the_last_commit(void **state)
{
    struct fixture *f = *state;
    struct err err = { 0 };
    uint32_t i = make_request(&f->j, 1, 50), generation = journal_slot_at(&f->j, i)->generation;
    for (uint32_t epoch = 1; epoch <= 5; epoch++) {
        struct journal_writer w;
        assert_ok(journal_writer_init(&w, &f->j, i, generation, epoch, &err), err);
        assert_int_equal(w.at.seq, (epoch - 1) * 4);
        for (int n = 0; n < 4; n++) {
            assert_ok(append(&w, (int32_t)epoch, "ab", &err), err);
        }
    }
    struct journal_reader r;
    struct journal_view view;
    assert_ok(journal_reader_init(&r, &f->j, i, generation, &err), err);
    for (uint32_t n = 0; n < 20; n++) {
        assert_int_equal(journal_read(&r, &view, &err), 1);
        assert_int_equal(view.record.epoch, n / 4 + 1);
    }
}

static void damage_is_found(void **state)
{
    struct fixture *f = *state;
    struct err err = { 0 };
    uint32_t i = make_request(&f->j, 1, 10), generation = journal_slot_at(&f->j, i)->generation;
    struct journal_writer w;
    assert_ok(journal_writer_init(&w, &f->j, i, generation, 1, &err), err);
    assert_ok(append(&w, 42, "hello", &err), err);
    struct journal_slot *slot = journal_slot_at(&f->j, i);
    uint8_t *record = f->j.base + slot->log_off + sizeof(struct journal_log);
    for (size_t at = 0; at < sizeof(struct journal_record) + 5; at++) {
        struct journal_reader r;
        struct journal_view view;
        record[at] ^= 0x41;
        assert_ok(journal_reader_init(&r, &f->j, i, generation, &err), err);
        assert_int_equal(journal_read(&r, &view, &err), -1);
        assert_int_equal(err.code, ERR_BAD_FILE);
        record[at] ^= 0x41;
    }
}

static void a_freed_slot_is_another_request(void **state)
{
    struct fixture *f = *state;
    struct err err = { 0 };
    uint32_t i = make_request(&f->j, 3, 10), generation = journal_slot_at(&f->j, i)->generation;
    struct journal_slot *slot = journal_slot_at(&f->j, i);
    journal_prompt(&f->j, slot)[2] = 77;
    uint64_t at = slot->prompt_off;
    journal_free(&f->j, slot);
    struct journal_reader r;
    assert_int_equal(journal_reader_init(&r, &f->j, i, generation, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    for (int n = 0; n < 12; n++) {
        assert_int_equal(f->j.base[at + (uint64_t)n], 0); /* prompts are scrubbed */
    }
    assert_int_equal(make_request(&f->j, 3, 10), i);
    assert_int_equal(journal_slot_at(&f->j, i)->generation, generation + 1);
}

static void extents_do_not_overlap_and_room_comes_back(void **state)
{
    struct fixture *f = *state;
    struct err err = { 0 };
    uint32_t n = 0, held[LIMIT_SHARD_SLOTS];
    uint64_t used = journal_used(&f->j);
    for (;;) {
        int i = journal_reserve(&f->j, 100 + n % 7 * 900, 0,
                                journal_log_need(10 + n % 5 * 40, 16, 0), &err);
        if (i < 0) {
            break;
        }
        journal_publish(journal_slot_at(&f->j, (uint32_t)i));
        held[n++] = (uint32_t)i;
    }
    assert_int_equal(err.code, ERR_BUSY);
    assert_true(n > 20);
    for (uint32_t a = 0; a < n; a++) {
        const struct journal_slot *x = journal_slot_at(&f->j, held[a]);
        assert_true(x->extent_off + x->extent_bytes <= f->j.header.bytes);
        for (uint32_t b = a + 1; b < n; b++) {
            const struct journal_slot *y = journal_slot_at(&f->j, held[b]);
            assert_true(x->extent_off + x->extent_bytes <= y->extent_off ||
                        y->extent_off + y->extent_bytes <= x->extent_off);
        }
    }
    assert_int_equal(journal_reserve(&f->j, 1, 0, 2 * SHARD, &err), -1);
    assert_int_equal(err.code, ERR_NO_FIT);
    for (uint32_t a = 0; a < n; a += 2) {
        journal_free(&f->j, journal_slot_at(&f->j, held[a]));
    }
    assert_true(journal_reserve(&f->j, 1, 0, journal_log_need(5, 16, 0), &err) >= 0);
    for (uint32_t a = 1; a < n; a += 2) {
        journal_free(&f->j, journal_slot_at(&f->j, held[a]));
    }
    assert_true(journal_used(&f->j) <= used + 4 * LIMIT_SHARD_PAGE);
}

static void other_files_are_refused(void **state)
{
    (void)state;
    struct err err = { 0 };
    struct journal j;
    int fd = shm_create("x", 2 * LIMIT_SHARD_PAGE, false, &err);
    assert_true(fd >= 0);
    assert_int_equal(journal_map(&j, fd, false, &err), -1);
    assert_int_equal(err.code, ERR_BAD_FILE);
    close(fd);
    assert_int_equal(journal_create("/nonexistent/shard", SHARD, 0, &err), -1);
    assert_int_equal(err.code, ERR_IO);
}

/* A writer killed at any instruction leaves whole records: what was committed before is all there and the next goes on. */
static void a_killed_writer_leaves_whole_records(void **state)
{
    struct fixture *f = *state;
    struct err err = { 0 };
    for (int round = 0; round < 20; round++) {
        uint32_t i = make_request(&f->j, 1, 2000),
                 generation = journal_slot_at(&f->j, i)->generation;
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            struct journal_writer w;
            journal_writer_init(&w, &f->j, i, generation, 1, &err);
            for (int n = 0; n < 2000; n++) {
                append(&w, n, "0123456789abcdef", &err);
            }
            _exit(0);
        }
        usleep((useconds_t)(round * 37));
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        struct journal_writer w;
        struct journal_view view;
        assert_ok(journal_writer_init(&w, &f->j, i, generation, 2, &err), err);
        if (w.at.seq < 2000) {
            assert_ok(append(&w, (int32_t)w.at.seq, "0123456789abcdef", &err), err);
        }
        struct journal_reader r;
        assert_ok(journal_reader_init(&r, &f->j, i, generation, &err), err);
        for (uint64_t n = 0; n < w.at.seq; n++) {
            assert_int_equal(journal_read(&r, &view, &err), 1);
            assert_int_equal(view.record.token, n);
        }
        journal_free(&f->j, journal_slot_at(&f->j, i));
    }
}

struct race {
    struct journal *j;
    uint32_t slot, generation;
    atomic_int bad;
};

#define RACE_TOKENS 3000

static void *read_all(void *context)
{
    struct race *race = context;
    struct journal_reader r;
    struct err err = { 0 };
    static _Thread_local struct journal_view view;
    if (journal_reader_init(&r, race->j, race->slot, race->generation, &err) < 0) {
        atomic_fetch_add(&race->bad, 1);
        return NULL;
    }
    while (r.seq < RACE_TOKENS) {
        int got = journal_read(&r, &view, &err);
        if (got < 0 || (got > 0 && view.record.token != (int32_t)r.seq - 1)) {
            atomic_fetch_add(&race->bad, 1);
            return NULL;
        }
        if (got == 0) {
            sched_yield();
        }
    }
    return NULL;
}

static void readers_see_only_whole_records_while_it_grows(void **state)
{
    struct fixture *f = *state;
    struct err err = { 0 };
    struct race race = { .j = &f->j, .slot = make_request(&f->j, 1, RACE_TOKENS) };
    race.generation = journal_slot_at(&f->j, race.slot)->generation;
    pthread_t threads[3];
    for (int n = 0; n < 3; n++) {
        assert_int_equal(pthread_create(&threads[n], NULL, read_all, &race), 0);
    }
    struct journal_writer w;
    assert_ok(journal_writer_init(&w, &f->j, race.slot, race.generation, 1, &err), err);
    for (int n = 0; n < RACE_TOKENS; n++) {
        assert_ok(append(&w, n, "some text", &err), err);
    }
    for (int n = 0; n < 3; n++) {
        pthread_join(threads[n], NULL);
    }
    assert_int_equal(atomic_load(&race.bad), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, open_shard, close_shard)
    const struct CMUnitTest tests[] = {
        TEST(records_come_back_in_order),
        TEST(alternatives_are_kept),
        TEST(the_reserved_room_is_enough_and_no_more_is_written),
        TEST(a_writer_goes_on_after_the_last_commit),
        TEST(damage_is_found),
        TEST(a_freed_slot_is_another_request),
        TEST(extents_do_not_overlap_and_room_comes_back),
        TEST(other_files_are_refused),
        TEST(a_killed_writer_leaves_whole_records),
        TEST(readers_see_only_whole_records_while_it_grows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
