/* Weights by a window (README.md, "When RAM is short"): the file passes through a window of RAM to a device with memory of its own,
 * and nothing of it stays here but the manifest. So RESIDENT without WARM: who leaves the device is COLD, and when the worker dies,
 * the loader dies or this broker does before all is there, the load begins again.
 *
 * Three may die at any moment, and what is lost is seen from the tables alone, every turn: weights that a worker was told to take
 * and that no worker has (window_act). Whose word they hang on (proto/uploaded.h) tells the next broker by its tag. */
#include "broker/models_parts.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "broker/broker.h"
#include "proto/log.h"
#include "proto/uploaded.h"
#include "proto/weights.h"

/* ---- bytes ---- */

/* What a manifest may take, before the loader has said it: vocabularies have some 20 MiB. */
static uint64_t manifest_guess(const struct model *m)
{
    uint64_t part = m->file.size_bytes / 16;
    return part < WINDOW_MANIFEST ? part : WINDOW_MANIFEST;
}

uint64_t models_ram_bytes(const struct model *m)
{
    const struct model_window *w = &m->window;
    if (!w->on) {
        return m->segment_bytes ? m->segment_bytes : m->file.size_bytes;
    }
    bool loading = m->state == MODEL_COLD || m->state == MODEL_LOADING;
    return (w->kept ? w->kept : manifest_guess(m)) + (loading ? w->bytes : 0);
}

/* ---- whether ---- */

enum window_may window_may(const struct broker *b)
{
    bool known = true;
    if (b->config.load_window == CONFIG_WINDOW_OFF) {
        return WINDOW_NO;
    }
    for (uint32_t i = 0; i < b->workers.n; i++) {
        const struct worker *w = &b->workers.list[i];
        if (w->own_memory) {
            return b->config.load_window == CONFIG_WINDOW_AUTO ? WINDOW_MAY : WINDOW_MUST;
        }
        known &= w->said_hello || strncmp(w->device, "cpu", 3) == 0 ||
                 strncmp(w->device, "reference", 9) == 0;
    }
    return known ? WINDOW_NO : WINDOW_UNKNOWN;
}

void window_choose(struct broker *b, struct model *m)
{
    uint64_t budget = lend_budget(b), available = models_available(&b->models);
    uint64_t quarter = (budget < available ? budget : available) / 4;
    quarter = quarter < WINDOW_BYTES ? quarter : WINDOW_BYTES;
    uint64_t wanted = b->config.load_window != CONFIG_WINDOW_AUTO ? b->config.load_window : quarter;
    m->window = (struct model_window){ .on = true };
    m->window.bytes = wanted < m->file.size_bytes ? wanted : m->file.size_bytes;
}

/* ---- the load ---- */

void window_begin(struct broker *b, struct model *m)
{
    struct channel_msg create = { .op = CHANNEL_CREATE,
                                  .segment = broker_segment(b),
                                  .bytes = UPLOADED_SEGMENT_BYTES };
    snprintf(create.tag, sizeof create.tag, "window %016" PRIx64 " %.64s", m->number, m->file.name);
    m->window.segment = create.segment;
    keeper_line_ask(b->keeper, &create, NULL, 0, KEEPER_NOTHING, 0, 0);
    struct channel_msg take = { .op = CHANNEL_TAKE, .segment = create.segment };
    keeper_line_ask(b->keeper, &take, NULL, 0, KEEPER_TAKE_UPLOADED, m->number, create.segment);
}

void models_on_uploaded(struct broker *b, uint64_t number, uint64_t segment, int fd)
{
    struct model *m = models_find_number(&b->models, number);
    if (m && m->window.segment == segment && m->window.fd == 0 && fd >= 0) {
        m->window.fd = fcntl(fd, F_DUPFD_CLOEXEC, 1);
        m->window.fd = m->window.fd < 0 ? 0 : m->window.fd;
    }
    if (fd >= 0) {
        close(fd);
    }
}

void window_on_header(struct model *m, const char *text)
{
    const char *bytes = strstr(text, " window="), *kept = strstr(text, " kept=");
    if (m->window.on && bytes && kept) {
        m->window.bytes = strtoull(bytes + strlen(" window="), NULL, 10);
        m->window.kept = strtoull(kept + strlen(" kept="), NULL, 10);
        log_info("model %s: by a window of %.1f MiB, %.1f MiB stay", m->file.name,
                 (double)m->window.bytes / 0x1p20, (double)m->window.kept / 0x1p20);
    }
}

bool window_awaits_worker(const struct model *m, uint64_t *uploaded)
{
    struct weights_header header;
    struct uploaded word;
    *uploaded = 0;
    if (!m->window.on || m->window.fd <= 0 || m->watch.weights_fd <= 0 ||
        pread(m->window.fd, &word, sizeof word, 0) != (ssize_t)sizeof word ||
        pread(m->watch.weights_fd, &header, sizeof header, 0) != (ssize_t)sizeof header ||
        header.magic != WEIGHTS_MAGIC) {
        return false;
    }
    *uploaded = uploaded_bytes(&word);
    return atomic_load(&header.wants) > *uploaded;
}

/* ---- the end ---- */

void window_clear(struct broker *b, struct model *m)
{
    models_drop(b, &m->window.segment);
    if (m->window.fd > 0) {
        close(m->window.fd);
    }
    m->window.fd = 0; /* the rest still says how much room it had */
}

void window_adopted(struct broker *b, struct model *m)
{
    /* What a worker had taken of a load in its midst it has let go of, as of every bind that is not at its end. */
    if (m->window.on && (m->loader || !m->segment)) {
        models_kill(b, m->loader, SIGKILL);
        models_drop(b, &m->segment);
        m->segment_bytes = 0;
        m->adopting = false;
        window_clear(b, m);
    }
}

/* A worker of the last broker that may yet say that it has the model. */
static bool somebody_may_have_it(const struct broker *b)
{
    for (uint32_t i = 0; i < b->workers.n; i++) {
        if (b->workers.list[i].state == WORKER_BORN) {
            return true;
        }
    }
    return false;
}

bool window_act(struct broker *b, struct model *m)
{
    if (!m->window.on || m->bind != BIND_NONE || m->adopting || m->loader_spawning) {
        return false;
    }
    bool told = m->bind_segment == m->segment, waits = !told && !m->swap.in_turn;
    if (m->state == MODEL_LOADING && (told || waits || !m->want_warm || m->unload)) {
        models_kill(b, m->loader, SIGKILL); /* act_cold waits until it is reaped */
        models_forget(b, m, (told || waits) && m->want_warm && !m->unload,
                      told    ? "what its worker had taken of it is lost"
                      : waits ? "its device is not free"
                              : "nobody wants it any more");
        return false;
    }
    if (m->state == MODEL_WARM && !m->unload && somebody_may_have_it(b)) {
        return true;
    }
    if (m->state == MODEL_WARM) {
        models_forget(b, m, m->want_warm && !m->unload,
                      "its device has lost it, and RAM never had it");
    }
    return false;
}
