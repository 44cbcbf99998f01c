#include "broker/stats.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "broker/broker.h"
#include "broker/ledger.h"
#include "broker/post.h"

/* An envelope is 64 KiB: so many rows fit with names of ordinary length; what does not fit is halved until it does. */
#define PROCESSES_MAX  64
#define MODELS_SHOWN   256
#define ALIASES_SHOWN  256
#define REQUESTS_SHOWN 512

static struct {
    Hearth__ProcessInfo processes[PROCESSES_MAX], *process_at[PROCESSES_MAX];
    Hearth__DeviceInfo devices[WORKERS_MAX], *device_at[WORKERS_MAX];
    Hearth__ModelInfo models[MODELS_SHOWN], *model_at[MODELS_SHOWN];
    Hearth__RequestInfo requests[REQUESTS_SHOWN], *request_at[REQUESTS_SHOWN];
    ProtobufCBinaryData aliases[ALIASES_SHOWN];
    size_t n_aliases;
    uint8_t eval_ids[EVALS_MAX][LIMIT_REQUEST_ID_BYTES];
} rows; /* one thread; too large for the stack */

static void add_process(struct broker *b, Hearth__Status *s, const char *role, uint32_t pid,
                        const char *state, uint32_t restarts, uint64_t born_ms, const char *model,
                        const char *kind)
{
    if (s->n_process == PROCESSES_MAX) {
        return;
    }
    Hearth__ProcessInfo *p = &rows.processes[s->n_process];
    hearth__process_info__init(p);
    p->role = message_str(role);
    p->pid = pid;
    p->state = message_str(state);
    p->restarts = restarts;
    p->has_since_s = born_ms != 0;
    p->since_s = born_ms ? (b->now_ms - born_ms) / 1000 : 0;
    p->has_model = model != NULL;
    p->model = message_str(model ? model : "");
    p->has_kind = kind != NULL;
    p->kind = message_str(kind ? kind : "");
    rows.process_at[s->n_process++] = p;
}

static void add_processes(struct broker *b, Hearth__Status *s)
{
    add_process(b, s, "keeper", (uint32_t)getppid(), "ready", 0, 0, NULL, NULL);
    add_process(b, s, "broker", (uint32_t)getpid(), b->listed ? "ready" : "starting",
                b->heritage.broker_epoch > 0 ? b->heritage.broker_epoch - 1 : 0, b->born_ms, NULL,
                NULL);
    for (uint32_t i = 0; i < b->workers.n; i++) {
        const struct worker *w = &b->workers.list[i];
        add_process(b, s, "worker", (uint32_t)w->pid, worker_state_name(w->state), w->restarts,
                    w->born_ms, NULL, NULL);
    }
    if (gateway_wanted(b) || b->gateway.child) {
        const struct gateway *g = &b->gateway;
        add_process(b, s, "http", (uint32_t)g->pid, gateway_state_name(g),
                    g->births > 0 ? g->births - 1 : 0, g->born_ms, NULL, NULL);
    }
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *m = b->models.list[i];
        if (m->loader) {
            add_process(b, s, "loader", (uint32_t)m->loader_pid,
                        m->state == MODEL_LOADING ? "loading" : "ending", m->loader_restarts,
                        m->loader_born_ms, m->file.name, "load");
        }
        if (m->text.child) {
            add_process(b, s, "loader", (uint32_t)m->text.pid, m->text.ready ? "ready" : "starting",
                        m->text.restarts, m->text.born_ms, m->file.name, "text");
        }
    }
}

static void add_devices(struct broker *b, Hearth__Status *s)
{
    for (uint32_t i = 0; i < b->workers.n; i++) {
        const struct worker *w = &b->workers.list[i];
        Hearth__DeviceInfo *d = &rows.devices[i];
        hearth__device_info__init(d);
        d->name = message_str(w->device);
        d->state = message_str(worker_state_name(w->state));
        d->has_memory_bytes = w->memory_bytes != 0;
        d->memory_bytes = w->memory_bytes;
        d->has_memory_used_bytes = true;
        for (uint32_t k = 0; k < b->models.n; k++) {
            const struct model *m = b->models.list[k];
            if (m->worker == w->child && w->child && m->bind == BIND_BOUND) {
                d->memory_used_bytes += m->segment_bytes + m->state_bytes;
            }
        }
        d->has_isa = w->isa[0] != 0;
        d->isa = message_str(w->isa);
        d->has_threads = w->threads != 0;
        d->threads = w->threads;
        rows.device_at[s->n_device++] = d;
    }
}

/* The aliases that name this file. */
static void add_aliases(struct broker *b, Hearth__ModelInfo *info, const char *name)
{
    info->alias = &rows.aliases[rows.n_aliases];
    for (uint32_t i = 0; i < b->config.n_aliases && rows.n_aliases < ALIASES_SHOWN; i++) {
        if (strcmp(b->config.aliases[i].model, name) == 0) {
            rows.aliases[rows.n_aliases++] = message_str(b->config.aliases[i].name);
            info->n_alias++;
        }
    }
}

static Hearth__ModelInfo *add_model(struct broker *b, Hearth__Status *s,
                                    const struct catalog_file *file, const char *state)
{
    if (s->n_model == MODELS_SHOWN) {
        return NULL;
    }
    Hearth__ModelInfo *info = &rows.models[s->n_model];
    hearth__model_info__init(info);
    info->name = message_str(file->name);
    info->has_path = true;
    info->path = message_str(file->path);
    info->state = message_str(state);
    info->has_size_bytes = true;
    info->size_bytes = file->size_bytes;
    add_aliases(b, info, file->name);
    rows.model_at[s->n_model++] = info;
    return info;
}

static void add_models(struct broker *b, Hearth__Status *s, bool all)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *m = b->models.list[i];
        Hearth__ModelInfo *info = add_model(b, s, &m->file, model_state_name(m->state));
        if (!info) {
            return;
        }
        info->has_arch = m->info.known;
        info->arch = message_str(m->info.arch);
        info->has_ctx = m->info.known;
        info->ctx = m->info.ctx;
        info->has_pinned = true;
        info->pinned = m->pinned;
        info->has_error = m->error.code != ERR_NONE;
        info->error = message_str(m->error.text);
        info->has_n_requests = true;
        info->n_requests = m->n_waiting + m->n_running;
        info->has_window_bytes = m->window.on && m->segment;
        info->window_bytes = m->window.bytes;
        struct watch_loading loading;
        info->has_loading_bytes = info->has_loading_of = info->has_loading_rate =
            m->state == MODEL_LOADING && watch_loading(b, m, &loading);
        if (info->has_loading_of) {
            info->loading_bytes = loading.bytes;
            info->loading_of = loading.of;
            info->loading_rate = loading.rate;
        }
    }
    for (uint32_t i = 0; all && i < b->catalog.n_files; i++) {
        bool shown = false;
        for (uint32_t k = 0; k < b->models.n; k++) {
            shown |= strcmp(b->models.list[k]->file.path, b->catalog.files[i].path) == 0;
        }
        if (!shown) {
            add_model(b, s, &b->catalog.files[i], model_state_name(MODEL_COLD));
        }
    }
}

static const char *why_waiting(struct broker *b, const struct model *m)
{
    if (!m) {
        return "its model is gone";
    }
    switch (m->state) {
    case MODEL_COLD:
        return m->file.size_bytes > lend_budget(b) && !m->window.on ? "memory that is lent"
                                                                    : "room for its model";
    case MODEL_LOADING:
        return "its model is loading";
    case MODEL_WARM:
        return workers_for(b, m) ? "its model goes to the device" : "a worker";
    case MODEL_DRAINING:
        return "its model is leaving";
    default:
        return "a free sequence";
    }
}

static Hearth__RequestInfo *add_request(Hearth__Status *s, const uint8_t *id, const char *model,
                                        const char *state, const char *client)
{
    if (s->n_request == REQUESTS_SHOWN) {
        return NULL;
    }
    Hearth__RequestInfo *info = &rows.requests[s->n_request];
    hearth__request_info__init(info);
    info->id = message_bytes(id, LIMIT_REQUEST_ID_BYTES);
    info->model = message_str(model);
    info->state = message_str(state);
    info->client = message_str(client);
    info->has_age_ms = true;
    rows.request_at[s->n_request++] = info;
    return info;
}

static void add_requests(struct broker *b, Hearth__Status *s)
{
    for (uint32_t i = 0; i < b->requests.n; i++) {
        const struct request *r = b->requests.list[i];
        const struct client *c = clients_find(&b->clients, r->client);
        if (r->gone || request_ended(r)) {
            continue; /* what waits or runs: ends are kept for their clients alone */
        }
        const char *model = r->model      ? r->model->file.name
                            : r->admitted ? request_slot(r)->model.name
                                          : "";
        Hearth__RequestInfo *info = add_request(s, r->id, model, request_state_name(r->state),
                                                c ? c->name : "");
        if (!info) {
            return;
        }
        info->n_prompt = r->admitted ? request_slot(r)->n_prompt : 0;
        info->n_tokens = (uint32_t)request_committed(r);
        info->age_ms = b->now_ms - r->born_ms;
        info->has_why = r->state == REQUEST_QUEUED || r->state == REQUEST_RENDERING;
        info->why = message_str(info->has_why ? why_waiting(b, r->model) : "");
    }
    /* Evaluations are work too: their number stands for an id. */
    size_t k = 0;
    for (const struct eval *e = b->evals.first; e && k < EVALS_MAX; e = e->next, k++) {
        const struct client *c = clients_find(&b->clients, e->client);
        memset(rows.eval_ids[k], 0, sizeof rows.eval_ids[k]);
        memcpy(rows.eval_ids[k] + 8, &e->number, sizeof e->number);
        Hearth__RequestInfo *info = add_request(s, rows.eval_ids[k], e->model->file.name,
                                                e->state == EVAL_WAITING ? "eval waiting" : "eval",
                                                c ? c->name : "");
        if (!info) {
            return;
        }
        info->n_prompt = (uint32_t)e->n_ids;
        info->age_ms = b->now_ms - e->born_ms;
        info->has_why = e->state == EVAL_WAITING;
        info->why = message_str(info->has_why ? why_waiting(b, e->model) : "");
    }
}

void stats_status(struct broker *b, const struct post_to *to, const Hearth__StatusAsk *ask)
{
    Hearth__Status s = HEARTH__STATUS__INIT;
    rows.n_aliases = 0;
    s.version = message_str(HEARTH_VERSION);
    s.ready = b->listed && b->workers.n > 0;
    for (uint32_t i = 0; i < b->workers.n; i++) {
        s.ready &= b->workers.list[i].state == WORKER_READY;
    }
    add_processes(b, &s);
    add_devices(b, &s);
    add_models(b, &s, ask->has_all_models && ask->all_models);
    add_requests(b, &s);
    s.process = rows.process_at;
    s.device = rows.device_at;
    s.model = rows.model_at;
    s.request = rows.request_at;
    s.has_ram_budget_bytes = s.has_ram_used_bytes = true;
    s.ram_budget_bytes = b->config.ram_budget;
    s.ram_used_bytes = models_used(&b->models);
    if (ask->has_ledger && ask->ledger) {
        s.n_ledger = ledger_rows(b, &s.ledger);
    }
    s.has_n_swaps = true;
    s.n_swaps = b->models.n_swaps;
    s.has_lent_bytes = b->lend.bytes != 0;
    s.lent_bytes = b->config.ram_budget - lend_budget(b);
    s.has_journal_bytes = s.has_journal_used_bytes = true;
    for (uint32_t i = 0; i < b->shards.n; i++) {
        s.journal_bytes += b->shards.list[i].journal.header.arena_bytes;
        s.journal_used_bytes += journal_used(&b->shards.list[i].journal);
    }
    s.has_default_model = b->config.default_model[0] != 0;
    s.default_model = message_str(b->config.default_model);
    while (hearth__status__get_packed_size(&s) > LIMIT_ENVELOPE_BYTES - 64 &&
           (s.n_model > 1 || s.n_request > 1 || s.n_ledger > 64)) {
        s.n_ledger = s.n_ledger > 64 ? s.n_ledger / 2 : s.n_ledger;
        if (s.n_request >= s.n_model) {
            s.n_request /= 2;
        } else {
            s.n_model /= 2;
        }
    }
    post_say(b, to, HEARTH__ENVELOPE__BODY_STATUS, &s, NULL, 0);
}
