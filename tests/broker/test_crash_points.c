/* The journal survives a death at every store, and a second one at every store of the recovery from the first. Broker and
 * worker do what they do in a life of requests: admission, taking, records, a worker's death, cancels, ends, freeing, a slot used again. Before each
 * store into the shard the recovery of a new broker runs on a copy; before each store of that, on a copy of the copy. */
#include "tests/store_points.h"

#include "broker/recover.h"
#include "proto/log.h"
#include "tests/broker/rig.h"

#if STORE_POINTS

#define SHARD_BYTES (4096 + LIMIT_SHARD_SLOTS * JOURNAL_SLOT_BYTES + 64 * 1024)
#define SLOTS_USED  8 /* the rest stays empty: it is not copied */
#define N_REQUESTS  5
#define N_TOKENS    6
#define N_PROMPT    3

/* What is true of a request now, whatever the moment: the promises that were made. */
static struct promise {
    bool published; /* its client was told Accepted */
    bool freed;     /* it was acknowledged: it may be gone */
    uint64_t said;  /* records that the client has seen */
} promises[N_REQUESTS];

static struct {
    struct rig first, second; /* who dies; who recovers */
    uint8_t *shard;           /* the first one's */
    uint8_t *once, *twice;    /* copies: recovered from the first death; and from the second */
    struct journal *recovered;
    bool pairs;
    uint64_t n_points, n_pairs, n_wrong;
    char what[256];
} t;

static void wrong(const char *what, uint64_t at)
{
    if (t.n_wrong++ == 0) {
        snprintf(t.what, sizeof t.what, "%s (%llu) at point %llu", what, (unsigned long long)at,
                 (unsigned long long)t.n_points);
    }
}

/* The token at n of request id, and the byte that it releases. */
static int32_t token_of(uint8_t id, uint64_t n)
{
    return (int32_t)(id * 100 + n);
}

/* ---- what must hold after a recovery ---- */

/* Reads a log as a client would; false when a record is not the one it must be. */
static bool read_log(const struct journal *j, uint32_t slot, uint64_t *n, bool *ended)
{
    static struct journal_view view;
    struct journal_reader reader;
    struct err err;
    const struct journal_slot *s = journal_slot_at(j, slot);
    int got = journal_reader_init(&reader, j, slot, s->generation, &err);
    *n = 0;
    *ended = false;
    while (got == 0 && (got = journal_read(&reader, &view, &err)) > 0) {
        bool token = view.record.flags & JOURNAL_TOKEN;
        if (*ended || (token && (view.record.token != token_of(s->id[0], *n) || view.n_bytes != 3 ||
                                 memcmp(view.bytes, "abc", 3) != 0))) {
            return false;
        }
        *n += 1;
        *ended = view.record.flags & JOURNAL_ENDED;
        got = 0;
    }
    return got == 0;
}

static int find_id(const struct journal *j, uint8_t id)
{
    for (uint32_t i = 0; i < SLOTS_USED; i++) {
        const struct journal_slot *s = journal_slot_at(j, i);
        if (journal_get_state(s) != JOURNAL_FREE && s->id[0] == id) {
            return (int)i;
        }
    }
    return -1;
}

/* No extent is shared or out of bounds, none is held by nobody, and what nobody holds is scrubbed. */
static void check_arena(const struct journal *j)
{
    const uint8_t *arena = j->base + j->header.arena_off;
    static bool held[64 * 1024 / 4096];
    memset(held, 0, sizeof held);
    for (uint32_t i = 0; i < SLOTS_USED; i++) {
        const struct journal_slot *s = journal_slot_at(j, i);
        if (journal_get_state(s) == JOURNAL_FREE && s->extent_bytes) {
            wrong("a free slot holds an extent", i);
        }
        for (uint64_t at = 0; s->extent_bytes && at < s->extent_bytes; at += 4096) {
            uint64_t page = (s->extent_off + at - j->header.arena_off) / 4096;
            if (page >= sizeof held || held[page]) {
                wrong("an extent is shared", i);
                return;
            }
            held[page] = true;
        }
    }
    for (uint64_t page = 0; page < sizeof held; page++) {
        static const uint8_t zeros[4096];
        if (!held[page] && memcmp(arena + page * 4096, zeros, 4096) != 0) {
            wrong("a page of nobody is not scrubbed", page);
        }
    }
}

/* The worker of a next epoch goes on: the rest of the tokens, and the end. */
static void go_on(struct journal *j, uint32_t slot)
{
    struct journal_writer w;
    struct err err;
    struct journal_slot *s = journal_slot_at(j, slot);
    if (journal_writer_init(&w, j, slot, s->generation, 99, &err) < 0) {
        wrong("nobody can go on", slot);
        return;
    }
    const int32_t *prompt = journal_prompt(j, s);
    for (int i = 0; i < N_PROMPT; i++) {
        if (prompt[i] != i % 1000) {
            wrong("the prompt changed", slot);
        }
    }
    bool ended;
    uint64_t n;
    for (uint64_t i = w.at.seq; i < N_TOKENS; i++) {
        struct journal_record r = { .token = token_of(s->id[0], i), .flags = JOURNAL_TOKEN };
        r.flags |= i + 1 == N_TOKENS ? JOURNAL_ENDED : 0u;
        r.end = i + 1 == N_TOKENS ? JOURNAL_END_LENGTH : JOURNAL_END_NONE;
        if (journal_append(&w, &r, NULL, "abc", 3, &err) < 0) {
            wrong("its log is full", slot);
        }
    }
    if (!read_log(j, slot, &n, &ended) || n != N_TOKENS || !ended) {
        wrong("the rest is not right", n);
    }
}

static void check(struct rig *r, struct journal *j)
{
    uint32_t n_slots = 0;
    for (uint32_t i = 0; i < SLOTS_USED; i++) {
        const struct journal_slot *s = journal_slot_at(j, i);
        enum journal_state state = journal_get_state(s);
        bool ended;
        uint64_t n;
        if (state == JOURNAL_FREE) {
            continue;
        }
        n_slots++;
        uint8_t id = s->id[0];
        if (id == 0 || id > N_REQUESTS) {
            wrong("a slot of nobody", i);
            continue;
        }
        if (!read_log(j, i, &n, &ended)) {
            wrong("a log is damaged", i);
        } else if (n < promises[id - 1].said) {
            wrong("tokens are lost", id);
        }
        if (atomic_load(&s->owner) != 0) {
            wrong("a dead worker owns a log", id);
        }
        if (ended != (state >= JOURNAL_DONE) && !promises[id - 1].freed) {
            wrong("state and log do not agree about the end", id);
        }
    }
    for (uint8_t id = 1; id <= N_REQUESTS; id++) {
        int at = find_id(j, id);
        if (promises[id - 1].published && !promises[id - 1].freed && at < 0) {
            wrong("an accepted request is gone", id);
        }
    }
    if (r->b->requests.n != n_slots) {
        wrong("the broker knows other requests than the journal", r->b->requests.n);
    }
    check_arena(j);
    for (uint32_t i = 0; i < SLOTS_USED; i++) {
        enum journal_state state = journal_get_state(journal_slot_at(j, i));
        if (state == JOURNAL_QUEUED || state == JOURNAL_PREFILL || state == JOURNAL_DECODE) {
            go_on(j, i);
        }
    }
}

/* ---- dying ---- */

/* All that can differ: header, the slots in use, the arena. */
static void copy_shard(uint8_t *to, const uint8_t *from)
{
    uint64_t arena = 4096 + LIMIT_SHARD_SLOTS * JOURNAL_SLOT_BYTES;
    memcpy(to, from, 4096 + SLOTS_USED * JOURNAL_SLOT_BYTES);
    memcpy(to + arena, from + arena, SHARD_BYTES - arena);
}

/* A new broker over this shard: what it makes of it. */
static void recover(uint8_t *shard)
{
    struct broker *b = t.second.b;
    requests_clear(&b->requests);
    queue_clear(&b->queue);
    b->shards.n = 1;
    b->shards.list[0] = (struct shard){
        .uid = getuid(),
        .fd = -1,
        .fd_readonly = -1,
        .segment = 99,
        .deposited = true,
        .journal = { .base = shard,
                     .size = SHARD_BYTES,
                     .header = t.first.b->shards.list[0].journal.header,
                     .writable = true },
    };
    recover_end(b);
}

static void on_second(void *arg, uint64_t k)
{
    (void)arg, (void)k;
    t.n_pairs++;
    copy_shard(t.twice, t.once);
    /* The second broker is in the middle of its recovery: a third one, on the same tables, then the second's anew. */
    struct broker *b = t.second.b;
    struct broker saved = *b;
    b->requests = (struct requests){ 0 };
    b->queue = (struct queue){ 0 };
    recover(t.twice);
    check(&t.second, &b->shards.list[0].journal);
    requests_clear(&b->requests);
    queue_clear(&b->queue);
    *b = saved;
}

static void on_first(void *arg, uint64_t k)
{
    (void)arg, (void)k;
    t.n_points++;
    copy_shard(t.once, t.shard);
    if (t.pairs) {
        store_points_begin(t.once, SHARD_BYTES, on_second, NULL);
    }
    recover(t.once);
    if (t.pairs) {
        store_points_end(t.once);
    }
    check(&t.second, &t.second.b->shards.list[0].journal);
}

/* ---- the life ---- */

static struct model *m;

/* A worker's commit; too_early is the mutation: the count before the record. */
static void commit(struct request *q, unsigned flags, enum journal_end end, bool too_early)
{
    struct journal_writer w;
    struct err err = { 0 };
    struct rig *r = &t.first;
    assert_ok(journal_writer_init(&w, &q->shard->journal, q->slot, q->generation, q->worker, &err),
              err);
    struct journal_record record = { .token = token_of(q->id[0], w.at.seq),
                                     .flags = (uint16_t)flags,
                                     .end = (uint16_t)end };
    if (too_early) {
        struct journal_log *log = (void *)(q->shard->journal.base + w.at.log_off);
        atomic_store(&log->committed, w.at.seq + 1);
    }
    assert_ok(journal_append(&w, &record, NULL, "abc", 3, &err), err);
    promises[q->id[0] - 1].said = w.at.seq;
    rig_turns(r);
}

static struct request *submit(struct client *c, uint8_t id)
{
    struct request *q = rig_submit(&t.first, c, id, "a", N_PROMPT, N_TOKENS);
    assert_non_null(q);
    promises[id - 1].published = true;
    rig_turns(&t.first);
    return q;
}

static void finish(struct request *q, bool too_early)
{
    uint64_t n = request_committed(q);
    for (; n < N_TOKENS; n++) {
        bool last = n + 1 == N_TOKENS;
        commit(q, JOURNAL_TOKEN | (last ? JOURNAL_ENDED : 0u),
               last ? JOURNAL_END_LENGTH : JOURNAL_END_NONE, too_early);
    }
    request_return(t.first.b, q, "finished");
}

static void acknowledge(struct request *q)
{
    promises[q->id[0] - 1].freed = true;
    request_free(t.first.b, q);
    rig_turns(&t.first);
}

/* A device with its model. */
static void a_worker_is_born(struct rig *r)
{
    struct err err = { 0 };
    rig_turns(r);
    rig_worker_hello(r);
    m = models_get(r->b, "a", NULL, &err);
    struct post_to to = { 0 };
    models_load(r->b, &to, m, false, true);
    rig_turns(r);
    if (m->state != MODEL_WARM && !m->segment) {
        rig_loaded(r, 4096);
    } else if (m->state == MODEL_LOADING) {
        rig_loaded(r, 4096);
    }
    rig_bound(r, m);
}

static void live(bool too_early)
{
    struct rig *r = &t.first;
    struct err why = { .code = ERR_CANCELLED, .text = "cancelled" };
    struct client *c = rig_client(r, 5);
    t.shard = r->b->shards.list[0].journal.base;
    store_points_begin(t.shard, SHARD_BYTES, on_first, NULL);
    struct request *one = submit(c, 1);
    commit(one, JOURNAL_TOKEN, JOURNAL_END_NONE, too_early);
    struct request *two = submit(c, 2);
    commit(one, JOURNAL_TOKEN, JOURNAL_END_NONE, false);
    commit(two, JOURNAL_TOKEN, JOURNAL_END_NONE, false);
    /* The worker falls; the next one goes on with both. */
    rig_died(r, rig_child(r, HERITAGE_WORKER), SIGKILL);
    rig_turns(r);
    rig_worker_hello(r);
    rig_turns(r);
    rig_bound(r, m);
    rig_turns(r);
    assert_int_equal(one->state, REQUEST_PREFILL);
    finish(one, too_early);
    /* Cancelled while it runs; cancelled while it waits; a slot used again. */
    request_cancel(r->b, two, &why);
    commit(two, JOURNAL_ENDED, JOURNAL_END_CANCELLED, false);
    request_return(r->b, two, "finished");
    acknowledge(one);
    struct request *three = submit(c, 3), *four = submit(c, 4);
    struct request *five = submit(c, 5);
    assert_int_equal(five->state, REQUEST_QUEUED); /* two sequences */
    request_cancel(r->b, five, &why);
    promises[4].said = 1;
    acknowledge(two);
    finish(three, false);
    acknowledge(three);
    finish(four, false);
    acknowledge(four);
    acknowledge(five);
    t.n_points = store_points_end(t.shard);
}

static void run(bool pairs, bool too_early)
{
    memset(&t, 0, sizeof t);
    memset(promises, 0, sizeof promises);
    t.pairs = pairs;
    struct err err;
    rig_open(&t.second);
    rig_model(&t.second, "a", 1000);
    /* Known from the start: what on_second allocates in these tables would be forgotten when it puts them back. */
    assert_non_null(models_get(t.second.b, "a", NULL, &err));
    rig_open(&t.first);
    rig_model(&t.first, "a", 1000);
    t.first.b->config.journal_bytes = SHARD_BYTES;
    t.once = mmap(NULL, SHARD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    t.twice = mmap(NULL, SHARD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(t.once != MAP_FAILED && t.twice != MAP_FAILED);
    a_worker_is_born(&t.first);
    live(too_early);
    munmap(t.once, SHARD_BYTES);
    munmap(t.twice, SHARD_BYTES);
    t.second.b->shards.n = 0;
    rig_close(&t.first);
    rig_now = &t.second;
    rig_close(&t.second);
}

static void a_death_at_every_store_and_again_in_every_recovery_loses_nothing(void **state)
{
    (void)state;
    run(true, false);
    printf("info journal: %llu points, %llu pairs, %llu violations\n",
           (unsigned long long)t.n_points, (unsigned long long)t.n_pairs,
           (unsigned long long)t.n_wrong);
    if (t.n_wrong) {
        fail_msg("%llu violations, the first: %s", (unsigned long long)t.n_wrong, t.what);
    }
    assert_true(t.n_points > 200 && t.n_pairs > t.n_points);
}

static void a_writer_that_commits_before_it_writes_is_caught(void **state)
{
    (void)state;
    run(false, true);
    assert_true(t.n_wrong > 0);
}
#endif

int main(int argc, char **argv)
{
    (void)argc;
#if STORE_POINTS
    store_points_init(argv);
    setenv("HEARTH_LOG", "error", 1);
    log_init("test");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_death_at_every_store_and_again_in_every_recovery_loses_nothing),
        cmocka_unit_test(a_writer_that_commits_before_it_writes_is_caught),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
#else
    (void)argv;
    puts("skipped: stores are caught one by one on x86-64 only");
    return 0;
#endif
}
