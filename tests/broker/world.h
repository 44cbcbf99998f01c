/* A world for the broker: keeper, loaders, a worker and clients that live in this process by a virtual clock and one seed. The
 * broker's own files run as they are; link_send is wrapped (CMakeLists.txt), so what it says by ZeroMQ becomes letters that arrive later, or never
 * when somebody died. What is left out: text services (prompts are ids) and the bytes of weights.
 *
 *   world_open(&w, seed); ... world_step(&w, ms) ...; world_close(&w)
 *
 * Every step checks: a worker writes only logs that it owns, a client reads the token that comes next and one end. A breach ends the
 * test with the seed. */
#pragma once

#include "tests/broker/world_clients.h"
#include "tests/broker/world_worker.h"

/* ---- births and deaths of the broker ---- */

static inline void broker_born(struct world *w)
{
    int pair[2];
    struct err err;
    struct broker *b = w->b = calloc(1, sizeof *b);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    w->line = pair[1];
    w->broker_line = pair[0];
    b->heritage.broker_epoch = ++w->epoch;
    strcpy(b->heritage.run, w->dir);
    config_init(&b->config);
    strcpy(b->config.device, world_by_window ? "cuda:0" : "cpu");
    b->config.load_window = world_by_window ? WORLD_WINDOW : CONFIG_WINDOW_AUTO;
    strcpy(b->config.dirs[0], w->dir);
    b->config.n_dirs = 1;
    b->config.ram_budget = w->ram_budget;
    b->config.min_residency_s = 1;
    b->config.swap_wait_max_s = 3;
    b->config.journal_bytes = 2u << 20;
    b->keeper = keeper_line_create(pair[0], &err);
    b->link = (struct link *)(void *)b; /* never looked into: link_send is ours */
    b->models.mem_available = rig_memory;
    b->now_ms = w->now_ms;
    b->records.eventfd = -1;
    strcpy(b->shards.dir, w->dir);
    catalog_scan(&b->catalog, &b->config);
    workers_init(b);
    recover_begin(b);
    work_line(w);
    if (!b->listed) {
        recover_end(b);
        b->listed = true;
    }
}

static inline void broker_dies(struct world *w)
{
    broker_close(w->b);
    free(w->b);
    close(w->line);
    close(w->broker_line);
    lose_letters(w, NULL);
    w->n_broker_deaths++;
    w->broken = false;
    w->broker_silent_until_ms = 0;
    broker_born(w);
    if (w->worker && draw(w, 3) == 0) {
        worker_hello(w); /* its old link found the new broker, before the keeper told of it */
        w->hears_ms = w->now_ms + 1 + draw(w, 60);
    } else if (w->worker) {
        worker_greets_anew(w);
    }
    for (int i = 0; i < WORLD_CLIENTS; i++) {
        if (w->clients[i].here) {
            client_comes(w, i);
        }
    }
}

/* ---- time ---- */

static inline void deliver(struct world *w)
{
    static struct message_arena arena;
    struct err err;
    for (uint32_t i = 0; i < w->n_letters;) {
        struct letter l = w->letters[i];
        bool deaf = l.to_broker ? w->now_ms < w->broker_silent_until_ms
                                : l.peer.id[0] == 'W' && w->now_ms < w->silent_until_ms;
        if (l.at_ms > w->now_ms || deaf) {
            i++;
            continue;
        }
        memmove(&w->letters[i], &w->letters[i + 1], (w->n_letters - i - 1) * sizeof l);
        w->n_letters--;
        if (l.to_broker) {
            struct link_msg msg = { .peer = l.peer,
                                    .envelope = l.data,
                                    .envelope_len = l.len,
                                    .payload = l.payload,
                                    .payload_len = l.payload_len };
            world_in_broker = true;
            door_on_message(w->b, &msg);
            world_in_broker = false;
        } else {
            const Hearth__Envelope *e = message_unpack(&arena, l.data, l.len, &err);
            struct link_peer worker = worker_peer(w);
            assert_non_null(e);
            if (l.peer.id[0] == 'C') {
                client_hears(w, e);
            } else if (w->worker && link_peer_equal(&l.peer, &worker)) {
                worker_hears(w, e);
            }
        }
        free(l.data);
        free(l.payload);
    }
}

static inline void world_step(struct world *w, bool fallible)
{
    w->now_ms += w->step_ms;
    work_children(w, fallible);
    if (w->now_ms >= w->broker_silent_until_ms) {
        w->b->now_ms = w->now_ms;
        deliver(w);
        work_line(w);
        world_in_broker = true;
        broker_act(w->b);
        world_in_broker = false;
        work_line(w);
    } else {
        deliver(w);
    }
    if (w->broken) {
        broker_dies(w);
    }
    worker_step(w);
    clients_step(w);
}

static inline void world_open(struct world *w, uint64_t seed)
{
    static struct rig rig = { .mem_available = 1ull << 40 };
    memset(w, 0, sizeof *w);
    world_now = w;
    rig_now = &rig;
    w->seed = seed;
    w->chance = seed * 0x9e3779b97f4a7c15ull + 1;
    w->now_ms = 1000000;
    w->step_ms = 10;
    w->load_ms = 50;
    w->rows = 64;
    w->n_sequences = 4;
    w->keeps = seed % 3 != 0;
    /* One model of 4 MiB and its state; or another's file beside it, which leaves it less state than it has alone. */
    w->ram_budget = seed % 2 ? 7u << 20 : 10u << 20;
    if (world_one_fits) { /* RAM has room for two, which the device has not */
        w->ram_budget = 16u << 20;
    }
    if (world_by_window) { /* one model and its state, or two */
        w->ram_budget = seed % 2 ? 4u << 20 : 7u << 20;
    }
    strcpy(w->dir, "/tmp/hearth-world-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    strcpy(rig.dir, w->dir);
    rig_model(&rig, "a", 4u << 20);
    rig_model(&rig, "b", 4u << 20);
    rig_model(&rig, "c", 4u << 20);
    w->progress_fd = memfd_create("progress", MFD_CLOEXEC);
    assert_int_equal(ftruncate(w->progress_fd, 8192), 0);
    uint8_t *page = w->progress_page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED,
                                            w->progress_fd, 0);
    assert_true(page != MAP_FAILED);
    w->progress = (_Atomic uint32_t *)(void *)(page + PROGRESS_OFF);
    broker_born(w);
    for (int i = 0; i < WORLD_CLIENTS; i++) {
        client_comes(w, i);
    }
}

static inline void world_close(struct world *w)
{
    char path[128];
    w->b->stopping = true;
    journal_unmap(&w->journal);
    broker_close(w->b);
    free(w->b);
    close(w->line);
    close(w->broker_line);
    lose_letters(w, NULL);
    munmap(w->progress_page, 8192);
    close(w->progress_fd);
    for (const char *const *name = (const char *const[]){ "a.gguf", "b.gguf", "c.gguf", "", NULL };
         *name; name++) {
        snprintf(path, sizeof path, "%s/%s", w->dir, *name);
        remove(path);
    }
    snprintf(path, sizeof path, "%s/shard-%u", w->dir, (unsigned)getuid());
    unlink(path);
    rmdir(w->dir);
}
