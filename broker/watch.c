#include "broker/watch.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/broker.h"
#include "proto/log.h"
#include "proto/progress.h"
#include "proto/weights.h"

#define PAGE_BYTES 4096u /* of the segment's head that is mapped */

static_assert(PROGRESS_OFF + sizeof(uint32_t) <= PAGE_BYTES, "the word is in the first page");

/* ---- the words ---- */

static void unmap(struct watch_model *t)
{
    if (t->progress) {
        munmap((void *)((uintptr_t)t->progress - PROGRESS_OFF), PAGE_BYTES);
    }
    if (t->state_fd > 0) {
        close(t->state_fd);
    }
    t->state_fd = 0;
    t->progress = NULL;
    t->segment = 0;
}

/* Keeps the mapping on the model's present state segment: a dropped one would keep its memory as long as it is mapped. */
static void follow_state(struct broker *b, struct model *m)
{
    struct watch_model *t = &m->watch;
    if (t->segment && t->segment != m->state_segment) {
        unmap(t);
        t->asked = false;
    }
    if (m->state_segment && m->state_made && !t->segment && !t->asked) {
        struct channel_msg take = { .op = CHANNEL_TAKE, .segment = m->state_segment };
        t->asked = true;
        keeper_line_ask(b->keeper, &take, NULL, 0, KEEPER_TAKE_STATE, m->number, m->state_segment);
    }
}

void watch_on_state(struct broker *b, uint64_t number, uint64_t segment, int fd,
                    const struct err *err)
{
    struct model *m = models_find_number(&b->models, number);
    struct stat st;
    if (m) {
        m->watch.asked = false;
    }
    if (m && m->state_segment == segment && !m->watch.segment && fd >= 0 && err->code == ERR_NONE) {
        m->watch.state_fd = fcntl(fd, F_DUPFD_CLOEXEC, 1);
        m->watch.segment = segment; /* not asked again, even if it cannot be mapped */
        void *page = fstat(fd, &st) == 0 && st.st_size >= (off_t)PAGE_BYTES
                         ? mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0)
                         : MAP_FAILED;
        if (page != MAP_FAILED) {
            m->watch.progress = (const _Atomic uint32_t *)((uintptr_t)page + PROGRESS_OFF);
        } else {
            log_warn("model %s: its worker cannot be watched", m->file.name);
        }
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* ---- workers ---- */

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* How long nothing may move. */
static uint64_t patience_ms(const struct watch_worker *t)
{
    uint32_t sorted[WATCH_SAMPLES];
    uint32_t n = t->n_samples < WATCH_SAMPLES ? t->n_samples : WATCH_SAMPLES;
    if (n == 0) {
        return WATCH_QUIET_MS;
    }
    memcpy(sorted, t->layer_us, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_value);
    uint64_t ms = (uint64_t)sorted[n / 2] * WATCH_LAYERS / 1000;
    return ms > WATCH_QUIET_MS ? ms : WATCH_QUIET_MS;
}

/* closely: a log whose end is written, and told by a message that got lost, is no work. Reads whole logs. */
static bool owns_work(const struct broker *b, const struct worker *w, bool closely)
{
    for (uint32_t i = 0; i < b->requests.n; i++) {
        const struct request *r = b->requests.list[i];
        struct journal_record end;
        if (r->worker == w->child && r->told && !r->gone && !request_ended(r) &&
            (!closely || !request_find_end(r, &end))) {
            return true;
        }
    }
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *m = b->models.list[i];
        if (m->worker == w->child && evals_running(b, m) > 0) {
            return true;
        }
    }
    return false;
}

static uint64_t counted(uint64_t now_ms, uint64_t looked_ms)
{
    uint64_t ms = looked_ms ? now_ms - looked_ms : 0;
    return ms < WATCH_TURN_MS ? ms : WATCH_TURN_MS;
}

/* Whether a bind of this worker takes too long; *binding: one is on its way, and the worker has no time for steps. */
static bool bind_is_hung(struct broker *b, const struct worker *w, bool *binding)
{
    bool hung = false;
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *m = b->models.list[i];
        struct watch_model *t = &m->watch;
        if (m->worker != w->child) {
            continue;
        }
        /* A bind may need data that is still being read; or it is the loader that waits. */
        uint64_t uploaded;
        bool awaited = window_awaits_worker(m, &uploaded);
        bool fed = m->state != MODEL_LOADING || awaited;
        bool moved = uploaded != t->uploaded;
        t->uploaded = uploaded;
        bool out = (m->bind == BIND_ASKED && fed) || m->bind == BIND_STATE ||
                   m->bind == BIND_LEAVING;
        *binding |= out;
        t->bind_quiet_ms = out && t->bind == m->bind && !moved
                               ? t->bind_quiet_ms + counted(b->now_ms, t->bind_looked_ms)
                               : 0;
        t->bind = m->bind;
        t->bind_looked_ms = b->now_ms;
        uint64_t bytes = m->segment_bytes + m->state_bytes;
        hung |= t->bind_quiet_ms > WATCH_BIND_MS + bytes / WATCH_BIND_RATE;
    }
    return hung;
}

/* Whether a child stands still because somebody has stopped it. */
static bool is_stopped(int32_t pid)
{
    char path[32], stat[256];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = pid > 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t n = fd >= 0 ? read(fd, stat, sizeof stat - 1) : -1;
    if (fd >= 0) {
        close(fd);
    }
    stat[n > 0 ? n : 0] = 0;
    const char *state = strrchr(
        stat, ')'); /* "PID (NAME) STATE ...", and a name may have anything in it */
    return state && state[1] == ' ' && state[2] == 'T';
}

/* It has not said Hello yet: it opens its device, which may take long. */
static void look_at_newborn(struct broker *b, struct worker *w)
{
    struct watch_worker *t = &w->watch;
    if (t->child != w->child) {
        *t = (struct watch_worker){ .child = w->child, .looked_ms = b->now_ms };
    } else if (b->now_ms - t->looked_ms >= WATCH_TURN_MS) {
        t->stopped_ms = is_stopped(w->pid) ? t->stopped_ms + counted(b->now_ms, t->looked_ms) : 0;
        t->looked_ms = b->now_ms;
    }
    if (t->stopped_ms > WATCH_QUIET_MS) {
        workers_kill(b, w, "it was stopped before it said Hello");
    }
    broker_alarm(b, t->looked_ms + WATCH_TURN_MS);
}

static void look_at_worker(struct broker *b, struct worker *w)
{
    struct watch_worker *t = &w->watch;
    if (w->state == WORKER_BORN && w->child && !w->killed) {
        look_at_newborn(b, w);
        return;
    }
    if (w->state != WORKER_READY || w->killed) {
        *t = (struct watch_worker){ 0 };
        return;
    }
    if (t->child == w->child && b->now_ms - t->looked_ms < WATCH_TURN_MS) {
        broker_alarm(b, t->looked_ms + WATCH_TURN_MS);
        return;
    }
    bool binding = false, seen_any = false;
    bool bind_hung = bind_is_hung(b, w, &binding);
    bool lets_go = false;
    uint64_t ms = t->child == w->child ? counted(b->now_ms, t->looked_ms) : 0;
    bind_hung |= keeps_hung(b, w, ms, &lets_go);
    bool owns = owns_work(b, w, false), asked = lets_go;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *m = b->models.list[i];
        asked |= m->worker == w->child && m->bind != BIND_NONE && m->bind != BIND_BOUND;
        if (m->worker == w->child && m->watch.progress) {
            sum += atomic_load_explicit(m->watch.progress, memory_order_relaxed);
            seen_any = true;
        }
    }
    if (t->child != w->child || !t->greeted) {
        *t = (struct watch_worker){ .child = w->child, .greeted = true, .seen = sum };
    } else if (sum != t->seen || !owns || !seen_any) {
        if (owns && (int32_t)(sum - t->seen) > 0) {
            uint64_t us = (t->quiet_ms + counted(b->now_ms, t->looked_ms)) * 1000;
            t->layer_us[t->n_samples++ % WATCH_SAMPLES] = (uint32_t)(us / (sum - t->seen));
        }
        t->quiet_ms = 0;
    } else {
        t->quiet_ms += counted(b->now_ms, t->looked_ms);
    }
    t->stopped_ms = asked && is_stopped(w->pid) ? t->stopped_ms + ms : 0;
    t->seen = sum;
    t->looked_ms = b->now_ms;
    if (t->stopped_ms > WATCH_QUIET_MS) {
        workers_kill(b, w, "it is stopped while it takes or leaves a model");
    } else if (bind_hung) {
        workers_kill(b, w, "it is hung: no answer while it takes or leaves a model");
    } else if (!binding && t->quiet_ms > patience_ms(t) && owns_work(b, w, true)) {
        workers_kill(b, w, "it is hung: it owns work and computes nothing");
    } else if (owns || binding || asked) {
        broker_alarm(b, b->now_ms + WATCH_TURN_MS);
    }
}

/* ---- loaders ---- */

bool watch_loading(const struct broker *b, const struct model *m, struct watch_loading *out)
{
    const struct watch_model *t = &m->watch;
    struct weights_header header;
    if (t->weights_fd <= 0 ||
        pread(t->weights_fd, &header, sizeof header, 0) != (ssize_t)sizeof header ||
        header.magic != WEIGHTS_MAGIC) {
        return false;
    }
    uint64_t bytes = atomic_load(&header.watermark);
    uint64_t ms = t->begun_ms && b->now_ms > t->begun_ms ? b->now_ms - t->begun_ms : 0;
    out->of = header.data_bytes;
    out->bytes = bytes < out->of ? bytes : out->of; /* another process's word */
    out->rate = ms && out->bytes > t->begun_at ? (out->bytes - t->begun_at) * 1000 / ms : 0;
    return true;
}

/* A dropped segment would keep its memory as long as its descriptor is open. */
static void let_go_of_weights(struct watch_model *t)
{
    if (t->weights_fd > 0) {
        close(t->weights_fd);
    }
    t->weights_fd = 0;
    t->begun_ms = t->begun_at = t->watermark = 0;
}

/* Whether bytes have come since the last look. The descriptor is asked for until it is there. */
static void look_at_weights(struct broker *b, struct model *m)
{
    struct watch_model *t = &m->watch;
    struct watch_loading now;
    if (t->weights_fd > 0 && watch_loading(b, m, &now)) {
        if (now.bytes != t->watermark) {
            t->watermark = now.bytes;
            t->loader_quiet_ms = 0;
        }
    } else if (t->weights_fd == 0 && m->header) {
        struct channel_msg take = { .op = CHANNEL_TAKE, .segment = m->segment };
        keeper_line_ask(b->keeper, &take, NULL, 0, KEEPER_TAKE_WATERMARK, m->number, m->segment);
    }
}

static void look_at_loader(struct broker *b, struct model *m)
{
    struct watch_model *t = &m->watch;
    if (m->state != MODEL_LOADING || !m->loader || m->adopting) {
        t->loader = 0;
        let_go_of_weights(t);
        return;
    }
    if (t->loader != m->loader) {
        let_go_of_weights(t);
        t->loader = m->loader;
        t->loader_quiet_ms = t->loader_stopped_ms = 0;
        t->loader_killed = false;
        t->looked_ms = b->now_ms;
    }
    if (t->loader_killed) {
        return; /* the keeper tells when it is reaped */
    }
    if (b->now_ms - t->looked_ms >= WATCH_TURN_MS) {
        t->loader_quiet_ms += counted(b->now_ms, t->looked_ms);
        t->loader_stopped_ms = is_stopped(m->loader_pid)
                                   ? t->loader_stopped_ms + counted(b->now_ms, t->looked_ms)
                                   : 0;
        t->looked_ms = b->now_ms;
        look_at_weights(b, m);
        uint64_t uploaded;
        if (window_awaits_worker(m, &uploaded)) {
            t->loader_quiet_ms = 0; /* its silence is the worker's */
        }
    }
    bool stopped = t->loader_stopped_ms > WATCH_QUIET_MS;
    if (stopped || t->loader_quiet_ms > WATCH_LOADER_MS) {
        struct channel_msg kill = { .op = CHANNEL_KILL, .child = m->loader, .value = SIGKILL };
        log_warn("loader of %s: killed: it is hung: %s for %d s", m->file.name,
                 stopped ? "stopped" : "nothing was read",
                 (stopped ? WATCH_QUIET_MS : WATCH_LOADER_MS) / 1000);
        t->loader_killed = true;
        keeper_line_ask(b->keeper, &kill, NULL, 0, KEEPER_NOTHING, 0, 0);
    }
    broker_alarm(b, b->now_ms + WATCH_TURN_MS);
}

void watch_on_weights(struct broker *b, uint64_t number, uint64_t segment, int fd,
                      const struct err *err)
{
    struct model *m = models_find_number(&b->models, number);
    struct watch_loading now;
    if (m && m->segment == segment && m->watch.loader && m->watch.weights_fd == 0 && fd >= 0 &&
        err->code == ERR_NONE) {
        struct watch_model *t = &m->watch;
        t->weights_fd = fcntl(fd, F_DUPFD_CLOEXEC, 1);
        if (watch_loading(b, m, &now)) {
            t->watermark = t->begun_at = now.bytes;
            t->begun_ms = b->now_ms;
            t->loader_quiet_ms = 0;
        }
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* ---- every turn ---- */

void watch_act(struct broker *b)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        follow_state(b, b->models.list[i]);
        look_at_loader(b, b->models.list[i]);
    }
    for (uint32_t i = 0; i < b->workers.n; i++) {
        look_at_worker(b, &b->workers.list[i]);
    }
}

void watch_clear(struct broker *b)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        unmap(&b->models.list[i]->watch);
        let_go_of_weights(&b->models.list[i]->watch);
    }
}
