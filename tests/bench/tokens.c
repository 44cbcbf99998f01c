/* bench_tokens [READERS [TOKENS_PER_S [TOKENS [frames]]]]: what a token's way from worker to client costs. A synthetic worker appends records to
 * the journal as worker/sequence.c does and wakes readers as worker/serve.c does; each client is a process with a slot and a reader
 * page of its own. Awake: it looks at the log without a pause. Asleep: it sleeps in poll() as libhearth does. Frames: a process
 * between reads the logs as broker/records.c does and sends Records over ZeroMQ, to clients that map nothing.
 * Prints Markdown rows: clients, tokens/s, p50 and p99 of the microseconds from before the append to after the read, what arrived.
 * Every client checks that it got every token, in order. */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "proto/journal.h"
#include "proto/link.h"
#include "proto/message.h"
#include "proto/shm.h"
#include "worker/shards.h"

#define CLIENTS_MAX 64
#define PATIENCE_MS 20000

enum way { AWAKE, ASLEEP, FRAMES };
static const char *const way_names[] = { "awake", "asleep", "by frames" };

struct reader_side {
    struct journal_reader_page *page;
    int page_fd, event_fd, slot;
};

static struct reader_side sides[CLIENTS_MAX];
static struct journal journal;
static uint64_t *sent_ns; /* shared [tokens]: when the append of each began */
static uint32_t *took_ns; /* shared [readers][tokens] */
static atomic_uint *n_ready;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *shared(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE,
                   -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static int give(void *arg, uint64_t segment, int fds[2], struct err *err)
{
    (void)arg, (void)err;
    fds[0] = dup(sides[segment - 1].page_fd);
    fds[1] = dup(sides[segment - 1].event_fd);
    return 0;
}

static int read_all(unsigned idx, uint32_t n_tokens, bool sleeps)
{
    struct reader_side *side = &sides[idx];
    struct err err = { 0 };
    struct journal_reader r;
    static struct journal_view view;
    uint32_t generation = journal_slot_at(&journal, (uint32_t)side->slot)->generation;
    if (journal_reader_init(&r, &journal, (uint32_t)side->slot, generation, &err) < 0) {
        return 1;
    }
    atomic_fetch_add(n_ready, 1);
    for (uint32_t n = 0; n < n_tokens;) {
        int got = journal_read(&r, &view, &err);
        if (got == 0 && sleeps) {
            struct pollfd fd = { .fd = side->event_fd, .events = POLLIN };
            uint64_t count;
            atomic_store(&side->page->waiting, 1);
            if (journal_committed(&r) == r.seq && poll(&fd, 1, PATIENCE_MS) == 0) {
                return 2;
            }
            atomic_store(&side->page->waiting, 0);
            count = 0;
            ssize_t ignored = read(side->event_fd, &count, sizeof count);
            (void)ignored;
        } else if (got > 0) {
            took_ns[(size_t)idx * n_tokens + n] = (uint32_t)(now_ns() - sent_ns[n]);
            if (view.record.token != (int32_t)n) {
                return 3;
            }
            n++;
        } else if (got < 0) {
            return 4;
        }
    }
    return 0;
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* ---- by frames ---- */

static struct sockaddr_un place = { .sun_family = AF_UNIX };
static char endpoint[128];

static int listen_there(void)
{
    snprintf(place.sun_path, sizeof place.sun_path, "/dev/shm/hearth-bench-%d", (int)getpid());
    snprintf(endpoint, sizeof endpoint, "ipc://%s", place.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (bind(fd, (const struct sockaddr *)&place, sizeof place) < 0 || listen(fd, 64) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* What is new in client i's log, as one message. */
static int forward(struct link *link, const struct link_peer *peer, struct journal_reader *r,
                   struct err *err)
{
    static struct journal_view view;
    static uint8_t out[LIMIT_ENVELOPE_BYTES];
    struct journal_reader before = *r;
    while (r->off - before.off < (48u << 10) - sizeof view && journal_read(r, &view, err) > 0) {
    }
    if (r->off == before.off) {
        return 0;
    }
    Hearth__Records records = HEARTH__RECORDS__INIT;
    records.id = message_bytes("0123456789abcdef", 16);
    records.data = message_bytes(journal.base + before.log_off + before.off, r->off - before.off);
    Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_RECORDS, &records);
    size_t len = message_pack(&e, out, err);
    if (len == 0 || link_send(link, peer, out, len, NULL, 0, err) < 0) {
        *r = before; /* its queue is full: later */
        return 0;
    }
    return 1;
}

/* The process between; the first client's page and event are its own. */
static int relay(unsigned n_clients, int listening)
{
    struct err err = { 0 };
    struct link *link = link_listen(endpoint, listening, &err);
    struct link_peer peers[CLIENTS_MAX];
    struct journal_reader at[CLIENTS_MAX];
    struct link_msg msg;
    for (unsigned n = 0; link && n < n_clients;) {
        int got = link_recv(link, &msg, &err);
        if (got > 0 && msg.payload_len == 1 && msg.payload[0] < n_clients) {
            unsigned i = msg.payload[0];
            uint32_t slot = (uint32_t)sides[i].slot;
            peers[i] = msg.peer;
            journal_reader_init(&at[i], &journal, slot, journal_slot_at(&journal, slot)->generation,
                                &err);
            n++;
        } else if (got == 0 && link_wait(link, PATIENCE_MS, &err) <= 0) {
            return 5;
        }
    }
    atomic_fetch_add(n_ready, 1);
    for (;;) {
        struct pollfd fd = { .fd = sides[0].event_fd, .events = POLLIN };
        uint64_t count;
        ssize_t ignored = read(fd.fd, &count, sizeof count);
        int sent = 0;
        (void)ignored;
        atomic_store(&sides[0].page->waiting, 1);
        for (unsigned i = 0; i < n_clients; i++) {
            sent += forward(link, &peers[i], &at[i], &err);
        }
        while (link_recv(link, &msg, &err) > 0) {
            /* nobody says more; the descriptor's edge is taken */
        }
        if (!sent) {
            poll(&fd, 1, 20);
        }
    }
}

static int read_frames(unsigned idx, uint32_t n_tokens)
{
    static struct message_arena arena;
    struct err err = { 0 };
    struct link *link = NULL;
    link_connect(&link, endpoint, &err);
    Hearth__Done hello = HEARTH__DONE__INIT;
    Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_DONE, &hello);
    uint8_t out[256], name = (uint8_t)idx;
    size_t len = message_pack(&e, out, &err);
    if (!link || link_send(link, NULL, out, len, &name, 1, &err) < 0) {
        return 1;
    }
    atomic_fetch_add(n_ready, 1);
    for (uint32_t n = 0; n < n_tokens;) {
        struct link_msg msg;
        int got = link_recv(link, &msg, &err);
        if (got < 0 || (got == 0 && link_wait(link, PATIENCE_MS, &err) <= 0)) {
            return 2;
        }
        Hearth__Envelope *said = got ? message_unpack(&arena, msg.envelope, msg.envelope_len, &err)
                                     : NULL;
        if (got && (!said || said->body_case != HEARTH__ENVELOPE__BODY_RECORDS)) {
            return 4;
        }
        for (size_t off = 0; got && off < said->records->data.len;) {
            struct journal_record record;
            memcpy(&record, said->records->data.data + off, sizeof record);
            if (record.token != (int32_t)n || record.length < sizeof record || n == n_tokens) {
                return 3;
            }
            took_ns[(size_t)idx * n_tokens + n] = (uint32_t)(now_ns() - sent_ns[n]);
            off += record.length;
            n++;
        }
    }
    link_close(&link);
    return 0;
}

static int measure(unsigned n_readers, uint64_t rate, uint32_t n_tokens, enum way way)
{
    struct err err = { 0 };
    struct segments from = { .take = give };
    struct readers readers = { .from = &from };
    struct journal_writer writers[CLIENTS_MAX];
    pid_t children[CLIENTS_MAX], between = 0;
    int listening = way == FRAMES ? listen_there() : -1;
    atomic_store(n_ready, 0);
    for (unsigned i = 0; i < n_readers; i++) {
        struct reader_side *side = &sides[i];
        size_t bytes;
        side->page_fd = shm_create("reader", LIMIT_SHARD_PAGE, true, &err);
        side->page = side->page_fd < 0 ? NULL : shm_map(side->page_fd, true, &bytes, &err);
        side->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        side->slot = journal_reserve(&journal, 1, 0, journal_log_need(n_tokens, 8, 0), &err);
        if (!side->page || side->slot < 0) {
            goto fail;
        }
        struct journal_slot *slot = journal_slot_at(&journal, (uint32_t)side->slot);
        journal_publish(slot);
        if (journal_writer_init(&writers[i], &journal, (uint32_t)side->slot, slot->generation, 1,
                                &err) < 0) {
            goto fail;
        }
    }
    for (unsigned i = 0; i < n_readers; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            _exit(way == FRAMES ? read_frames(i, n_tokens) : read_all(i, n_tokens, way == ASLEEP));
        }
    }
    if (way == FRAMES && (between = fork()) == 0) {
        _exit(relay(n_readers, listening));
    }
    while (atomic_load(n_ready) < n_readers + (way == FRAMES)) {
        usleep(100);
    }
    usleep(20000);
    uint64_t start = now_ns();
    for (uint32_t n = 0; n < n_tokens; n++) {
        while (rate && now_ns() < start + n * (1000000000ull / rate)) {
            /* the compute thread's time: it is at work until the token is there */
        }
        struct journal_record record = { .token = (int32_t)n, .flags = JOURNAL_TOKEN };
        sent_ns[n] = now_ns();
        for (unsigned i = 0; i < n_readers; i++) {
            if (journal_append(&writers[i], &record, NULL, "token", 5, &err) < 0) {
                goto fail;
            }
            readers_wake(&readers, way == FRAMES ? 1 : i + 1);
        }
    }
    double seconds = (double)(now_ns() - start) * 1e-9;
    int lost = 0;
    for (unsigned i = 0; i < n_readers; i++) {
        int status;
        waitpid(children[i], &status, 0);
        lost += status != 0;
    }
    if (way == FRAMES) {
        kill(between, SIGKILL);
        waitpid(between, NULL, 0);
        close(listening);
        unlink(place.sun_path);
    }
    for (unsigned i = 0; i < n_readers; i++) {
        journal_free(&journal, journal_slot_at(&journal, (uint32_t)sides[i].slot));
        shm_unmap(sides[i].page, LIMIT_SHARD_PAGE);
        close(sides[i].page_fd);
        close(sides[i].event_fd);
    }
    readers_clear(&readers);
    size_t n = (size_t)n_readers * n_tokens;
    qsort(took_ns, n, sizeof *took_ns, ascending);
    printf("| %u %s | %.0f | %.1f | %.1f | %s |\n", n_readers, way_names[way], n_tokens / seconds,
           took_ns[n / 2] / 1e3, took_ns[n - 1 - n / 100] / 1e3, lost ? "NOT ALL" : "all");
    fflush(stdout);
    return lost ? -1 : 0;
fail:
    fprintf(stderr, "bench_tokens: %s\n", err.text);
    return -1;
}

int main(int argc, char **argv)
{
    unsigned n_readers = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
    uint64_t rate = argc > 2 ? strtoull(argv[2], NULL, 10) : 20000;
    uint32_t n_tokens = argc > 3 ? (uint32_t)atoi(argv[3]) : 20000;
    struct err err = { 0 };
    char path[] = "/dev/shm/hearth-bench-XXXXXX";
    n_readers = n_readers < 1 ? 1 : n_readers > CLIENTS_MAX ? CLIENTS_MAX : n_readers;
    sent_ns = shared(n_tokens * sizeof *sent_ns);
    took_ns = shared((size_t)n_readers * n_tokens * sizeof *took_ns);
    n_ready = shared(sizeof *n_ready);
    int name = mkstemp(path);
    unlink(path);
    close(name);
    uint64_t bytes = (4ull << 20) + n_readers * (journal_log_need(n_tokens, 8, 0) + (1u << 16));
    int fd = journal_create(path, bytes, 0, &err);
    if (!sent_ns || !took_ns || !n_ready || fd < 0 || journal_map(&journal, fd, true, &err) < 0) {
        fprintf(stderr, "bench_tokens: %s\n", err.text);
        return 1;
    }
    unlink(path);
    if (argc > 4 && strcmp(argv[4], "frames") == 0) {
        return measure(n_readers, rate, n_tokens, FRAMES) < 0;
    }
    /* More clients that never sleep than cores would only measure the scheduler. */
    bool awake = (long)n_readers < sysconf(_SC_NPROCESSORS_ONLN);
    return (awake && measure(n_readers, rate, n_tokens, AWAKE) < 0) ||
           measure(n_readers, rate, n_tokens, ASLEEP) < 0;
}
