#include "clients/status_json.h"

#include <stdio.h>
#include <string.h>

#include "proto/json.h"
#include "proto/utf8.h"

/* Names come from outside (a client's, a file's): what is no UTF-8 is no JSON either. */
static void set_str(struct json *object, const char *key, ProtobufCBinaryData text)
{
    bool valid = utf8_valid((const char *)text.data, text.len);
    json_set(object, key,
             valid ? json_new_str((const char *)text.data, text.len) : json_new_str("?", 1));
}

static void set_int(struct json *object, const char *key, uint64_t value)
{
    json_set(object, key, json_new_int((int64_t)value));
}

static struct json *process_json(const Hearth__ProcessInfo *p)
{
    struct json *o = json_new_object();
    set_str(o, "role", p->role);
    set_int(o, "pid", p->pid);
    set_str(o, "state", p->state);
    set_int(o, "restarts", p->restarts);
    if (p->has_since_s) {
        set_int(o, "since_s", p->since_s);
    }
    if (p->has_model) {
        set_str(o, "model", p->model);
    }
    if (p->has_kind) {
        set_str(o, "kind", p->kind);
    }
    return o;
}

static struct json *device_json(const Hearth__DeviceInfo *d)
{
    struct json *o = json_new_object();
    set_str(o, "name", d->name);
    set_str(o, "state", d->state);
    set_int(o, "memory_bytes", d->memory_bytes);
    set_int(o, "memory_used_bytes", d->memory_used_bytes);
    if (d->has_isa) {
        set_str(o, "isa", d->isa);
    }
    if (d->has_threads) {
        set_int(o, "threads", d->threads);
    }
    return o;
}

static struct json *model_json(const Hearth__ModelInfo *m)
{
    struct json *o = json_new_object();
    set_str(o, "name", m->name);
    set_str(o, "state", m->state);
    if (m->has_path) {
        set_str(o, "path", m->path);
    }
    set_int(o, "size_bytes", m->size_bytes);
    if (m->has_arch) {
        set_str(o, "arch", m->arch);
    }
    if (m->has_ctx) {
        set_int(o, "ctx", m->ctx);
    }
    if (m->has_loading_of) {
        struct json *loading = json_new_object();
        set_int(loading, "bytes", m->loading_bytes);
        set_int(loading, "of", m->loading_of);
        set_int(loading, "bytes_per_s", m->loading_rate);
        json_set(o, "loading", loading);
    }
    if (m->has_window_bytes) {
        set_int(o, "window_bytes", m->window_bytes);
    }
    json_set(o, "pinned", json_new_bool(m->pinned));
    set_int(o, "requests", m->n_requests);
    struct json *aliases = json_new_array();
    for (size_t i = 0; i < m->n_alias; i++) {
        json_push(aliases, json_new_str((const char *)m->alias[i].data, m->alias[i].len));
    }
    json_set(o, "aliases", aliases);
    if (m->has_error) {
        set_str(o, "error", m->error);
    }
    return o;
}

static struct json *request_json(const Hearth__RequestInfo *r)
{
    struct json *o = json_new_object();
    char hex[2 * LIMIT_REQUEST_ID_BYTES + 1] = "";
    for (size_t i = 0; i < r->id.len && i < LIMIT_REQUEST_ID_BYTES; i++) {
        snprintf(hex + 2 * i, 3, "%02x", r->id.data[i]);
    }
    json_set(o, "id", json_new_str(hex, strlen(hex)));
    set_str(o, "model", r->model);
    set_str(o, "state", r->state);
    set_str(o, "client", r->client);
    set_int(o, "prompt_tokens", r->n_prompt);
    set_int(o, "completion_tokens", r->n_tokens);
    set_int(o, "age_ms", r->age_ms);
    if (r->has_why) {
        set_str(o, "why", r->why);
    }
    return o;
}

char *status_json(const Hearth__Status *s, struct err *err)
{
    struct json *o = json_new_object();
    set_str(o, "version", s->version);
    json_set(o, "ready", json_new_bool(s->ready));
    struct json *processes = json_new_array(), *models = json_new_array(),
                *requests = json_new_array();
    for (size_t i = 0; i < s->n_process; i++) {
        json_push(processes, process_json(s->process[i]));
    }
    for (size_t i = 0; i < s->n_model; i++) {
        json_push(models, model_json(s->model[i]));
    }
    for (size_t i = 0; i < s->n_request; i++) {
        json_push(requests, request_json(s->request[i]));
    }
    json_set(o, "processes", processes);
    /* One device a machine for now; the first is the device. */
    json_set(o, "device", s->n_device ? device_json(s->device[0]) : json_new_object());
    json_set(o, "models", models);
    json_set(o, "requests", requests);
    struct json *memory = json_new_object();
    set_int(memory, "ram_budget_bytes", s->ram_budget_bytes);
    set_int(memory, "ram_used_bytes", s->ram_used_bytes);
    set_int(memory, "journal_bytes", s->journal_bytes);
    set_int(memory, "journal_used_bytes", s->journal_used_bytes);
    set_int(o, "swaps", s->n_swaps);
    if (s->has_lent_bytes) {
        set_int(memory, "lent_bytes", s->lent_bytes);
    }
    json_set(o, "memory", memory);
    struct json *ledger = json_new_array();
    for (size_t i = 0; i < s->n_ledger; i++) {
        struct json *row = json_new_object();
        set_str(row, "kind", s->ledger[i]->kind);
        set_str(row, "name", s->ledger[i]->name);
        set_int(row, "bytes", s->ledger[i]->bytes);
        set_int(row, "used_bytes", s->ledger[i]->used_bytes);
        json_push(ledger, row);
    }
    if (s->n_ledger) {
        json_set(o, "ledger", ledger);
    } else {
        json_destroy(&ledger);
    }
    if (s->has_default_model) {
        set_str(o, "default_model", s->default_model);
    }
    size_t len;
    const char *text = json_text(o, &len);
    char *copy = strdup(text);
    json_destroy(&o);
    if (!copy) {
        err_set(err, ERR_NO_MEMORY, "no memory for the status");
    }
    return copy;
}
