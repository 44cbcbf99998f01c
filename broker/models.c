#include "broker/models.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/broker.h"
#include "broker/models_parts.h"
#include "broker/post.h"
#include "proto/log.h"

static const char *const names[MODEL_N_STATES] = {
    [MODEL_COLD] = "cold",         [MODEL_LOADING] = "loading",   [MODEL_WARM] = "warm",
    [MODEL_RESIDENT] = "resident", [MODEL_DRAINING] = "draining",
};

#define TO(state) (1u << MODEL_##state)
static const unsigned allowed[MODEL_N_STATES] = {
    /* one bit per state that may follow */
    [MODEL_COLD] = TO(LOADING),
    [MODEL_LOADING] = TO(WARM) | TO(COLD), /* it failed */
    [MODEL_WARM] = TO(RESIDENT) | TO(COLD),
    [MODEL_RESIDENT] = TO(DRAINING) | TO(WARM), /* its worker died */
    [MODEL_DRAINING] = TO(WARM) | TO(COLD),
};

const char *model_state_name(enum model_state state)
{
    return (unsigned)state < MODEL_N_STATES ? names[state] : "damaged";
}

/* The one mover. */
void models_move(struct model *m, enum model_state to, const char *why)
{
    assert(allowed[m->state] >> to & 1);
    log_info("model %s: %s -> %s: %s", m->file.name, names[m->state], names[to], why);
    m->state = to;
}

void models_drop(struct broker *b, uint64_t *segment)
{
    if (*segment) {
        struct channel_msg msg = { .op = CHANNEL_DROP, .segment = *segment };
        keeper_line_ask(b->keeper, &msg, NULL, 0, KEEPER_NOTHING, 0, 0);
        workers_revoke(b, *segment);
        *segment = 0;
    }
}

void models_kill(struct broker *b, uint32_t child, int signal)
{
    if (child) {
        struct channel_msg msg = { .op = CHANNEL_KILL, .child = child, .value = (uint64_t)signal };
        keeper_line_ask(b->keeper, &msg, NULL, 0, KEEPER_NOTHING, 0, 0);
    }
}

bool models_fault_of(int status)
{
    if (WIFSIGNALED(status)) {
        return WTERMSIG(status) != SIGKILL && WTERMSIG(status) != SIGTERM;
    }
    return WEXITSTATUS(status) != 0;
}

void models_status_text(int status, char *out, size_t size)
{
    if (WIFSIGNALED(status)) {
        snprintf(out, size, "signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    } else {
        snprintf(out, size, "exit %d", WEXITSTATUS(status));
    }
}

/* ---- the table ---- */

struct model *models_find_number(const struct models *t, uint64_t number)
{
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->list[i]->number == number) {
            return t->list[i];
        }
    }
    return NULL;
}

struct model *models_find_text(const struct models *t, uint32_t child)
{
    for (uint32_t i = 0; i < t->n && child; i++) {
        if (t->list[i]->text.child == child) {
            return t->list[i];
        }
    }
    return NULL;
}

static uint64_t number_of(const char *path, const char *kv_k, const char *kv_v, const char *lora)
{
    uint64_t n = broker_digest(0, path, strlen(path) + 1);
    n = broker_digest(n, kv_k, strlen(kv_k) + 1);
    n = broker_digest(n, kv_v, strlen(kv_v) + 1);
    n = lora[0] ? broker_digest(n, lora, strlen(lora) + 1) : n;
    return n ? n : 1;
}

/* KV types of a pick: the alias's, else everybody's. */
static void kv_of(const struct broker *b, const struct catalog_pick *pick, const char **k,
                  const char **v)
{
    bool own = pick->alias && pick->alias->kv.k[0];
    *k = own ? pick->alias->kv.k : b->config.kv.k;
    *v = own ? pick->alias->kv.v : b->config.kv.v;
}

/* Its adapter, "" without one. */
static const char *lora_of(const struct catalog_pick *pick)
{
    return pick->alias ? pick->alias->lora : "";
}

static uint64_t number_of_pick(const struct broker *b, const struct catalog_pick *pick)
{
    const char *k, *v;
    kv_of(b, pick, &k, &v);
    return number_of(pick->file.path, k, v, lora_of(pick));
}

/* The row of a picked file, made when it is new. */
static struct model *get_row(struct broker *b, const struct catalog_pick *pick, struct err *err)
{
    struct models *t = &b->models;
    const char *k, *v;
    kv_of(b, pick, &k, &v);
    uint64_t number = number_of_pick(b, pick);
    struct model *m = models_find_number(t, number);
    if (!m) {
        if (t->n == MODELS_MAX) {
            err_set(err, ERR_BUSY, "%d models were asked for, no more are remembered", MODELS_MAX);
            return NULL;
        }
        m = calloc(1, sizeof *m);
        if (!m) {
            err_set(err, ERR_NO_MEMORY, "no memory for a model");
            return NULL;
        }
        m->number = number;
        m->file = pick->file;
        snprintf(m->kv_k, sizeof m->kv_k, "%s", k);
        snprintf(m->kv_v, sizeof m->kv_v, "%s", v);
        snprintf(m->lora, sizeof m->lora, "%s", lora_of(pick));
        t->list[t->n++] = m;
    } else if (!catalog_unchanged(&m->file, &pick->file) && m->state == MODEL_COLD) {
        /* Another file under the old name: what was known of it no longer holds. */
        m->file = pick->file;
        m->info = (struct model_info){ 0 };
        m->state_want = m->ctx_want = 0;
        m->digest = 0;
        m->error = m->text.failed = (struct err){ 0 };
        models_drop(b, &m->state_segment);
        m->state_made = false;
    } else if (!catalog_unchanged(&m->file, &pick->file) && !m->unload && !m->check.stale_ms &&
               !catalog_unchanged(&m->check.refused, &pick->file)) {
        models_start_check(b, m, &pick->file);
    }
    if (pick->alias) {
        m->policy_pin |= pick->alias->pin;
        m->pinned |= pick->alias->pin;
        m->ttl_s = pick->alias->ttl_s ? pick->alias->ttl_s : m->ttl_s;
    }
    return m;
}

void models_policy(struct broker *b)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *m = b->models.list[i];
        m->pinned &= !m->policy_pin; /* a client's pin stays */
        m->policy_pin = false;
        m->ttl_s = 0;
    }
    for (uint32_t i = 0; i < b->config.n_aliases; i++) {
        struct catalog_pick pick;
        struct err ignored;
        const struct config_alias *a = &b->config.aliases[i];
        struct model *m = catalog_find(&b->catalog, &b->config, a->name, &pick, &ignored) == 0
                              ? models_find_number(&b->models, number_of_pick(b, &pick))
                              : NULL;
        if (m) {
            m->policy_pin |= a->pin;
            m->pinned |= a->pin;
            m->ttl_s = a->ttl_s ? a->ttl_s : m->ttl_s;
        }
    }
}

/* What an empty name means (CLI.md, "Everywhere"). */
static int default_name(struct broker *b, char out[LIMIT_MODEL_NAME_BYTES], struct err *err)
{
    const struct model *only = NULL;
    uint32_t n = 0;
    if (b->config.default_model[0]) {
        strcpy(out, b->config.default_model);
        return 0;
    }
    for (uint32_t i = 0; i < b->models.n; i++) {
        if (b->models.list[i]->state == MODEL_RESIDENT) {
            only = b->models.list[i];
            n++;
        }
    }
    if (n == 1) {
        strcpy(out, only->file.name);
        return 0;
    }
    if (b->catalog.n_files == 0) {
        catalog_scan(&b->catalog, &b->config);
    }
    if (b->catalog.n_files == 1) {
        strcpy(out, b->catalog.files[0].name);
        return 0;
    }
    err_set(err, ERR_NOT_FOUND,
            b->catalog.n_files ? "no model is named and there is no default; name one with -m: "
                               : "there are no models: name a directory with --models");
    size_t used = strlen(err->text);
    for (uint32_t i = 0; i < b->catalog.n_files && used < sizeof err->text; i++) {
        used += (size_t)snprintf(err->text + used, sizeof err->text - used, "%s%s", i ? ", " : "",
                                 b->catalog.files[i].name);
    }
    return -1;
}

struct model *models_get(struct broker *b, const char *name, const struct config_alias **alias,
                         struct err *err)
{
    char chosen[LIMIT_MODEL_NAME_BYTES];
    struct catalog_pick pick;
    if (!*name) {
        if (default_name(b, chosen, err) < 0) {
            return NULL;
        }
        name = chosen;
    }
    if (catalog_find(&b->catalog, &b->config, name, &pick, err) < 0) {
        catalog_scan(&b->catalog, &b->config); /* it may have come since */
        if (catalog_find(&b->catalog, &b->config, name, &pick, err) < 0) {
            return NULL;
        }
    }
    if (alias) {
        *alias = pick.alias;
    }
    return get_row(b, &pick, err);
}

bool models_same_file(const struct model *m, const struct journal_model *pinned)
{
    return pinned->device == m->file.device && pinned->inode == m->file.inode &&
           pinned->size == m->file.size_bytes && pinned->mtime_ns == m->file.mtime_ns &&
           (pinned->digest == 0 || m->digest == 0 || pinned->digest == m->digest);
}

void models_promised(struct model *m, const struct journal_slot *slot)
{
    if (!models_same_file(m, &slot->model)) {
        return; /* it fails when it is its turn */
    }
    uint64_t bytes = slot->state_bytes;
    uint32_t ctx = slot->params.n_ctx;
    m->state_want = bytes > m->state_want ? bytes : m->state_want;
    m->ctx_want = ctx > m->ctx_want ? ctx : m->ctx_want;
}

uint64_t models_used(const struct models *t)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        const struct model *m = t->list[i];
        if (m->segment) {
            used += models_ram_bytes(m);
        }
        used += (m->state_segment ? m->state_bytes : 0) + models_spilled(m);
    }
    return used;
}

/* ---- questions to load ---- */

void models_answer_asks(struct broker *b, struct model *m, const struct err *why)
{
    struct models *t = &b->models;
    for (uint32_t i = 0; i < t->n_asks;) {
        struct models_ask *a = &t->asks[i];
        bool there = a->resident ? m->state == MODEL_RESIDENT && m->info.known
                                 : m->state == MODEL_WARM || m->state == MODEL_RESIDENT;
        if (a->model != m || (!why && !there)) {
            i++;
            continue;
        }
        struct post_to to = { a->peer, a->has_cookie, a->cookie };
        if (why) {
            post_failed(b, &to, NULL, why);
        } else {
            post_done(b, &to, m->file.name);
        }
        t->asks[i] = t->asks[--t->n_asks];
    }
}

void models_load(struct broker *b, const struct post_to *to, struct model *m, bool pin,
                 bool resident)
{
    struct models *t = &b->models;
    struct err err = { 0 };
    workers_revive(b, "a model is to be loaded");
    if (t->n_asks == MODELS_ASKS_MAX) {
        err_set(&err, ERR_BUSY, "%d loads are waited for already", MODELS_ASKS_MAX);
        post_failed(b, to, NULL, &err);
        return;
    }
    m->pinned |= pin;
    m->used_ms = b->now_ms;
    t->asks[t->n_asks++] = (struct models_ask){ .model = m,
                                                .peer = to->peer,
                                                .has_cookie = to->has_cookie,
                                                .cookie = to->cookie,
                                                .resident = resident,
                                                .born_ms = b->now_ms };
}

int models_unload(struct broker *b, struct model *m, struct err *err)
{
    (void)b;
    if (m->policy_pin) {
        return err_set(err, ERR_REFUSED, "model %s is pinned by the configuration", m->file.name);
    }
    m->pinned = false;
    if (m->state == MODEL_COLD) {
        return err_set(err, ERR_NOT_FOUND, "model %s is not loaded", m->file.name);
    }
    m->unload = true;
    return 0;
}

void models_fail_waiting(struct broker *b, struct model *m, const struct err *why)
{
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->model == m && !r->gone &&
            (r->state == REQUEST_RENDERING || r->state == REQUEST_QUEUED)) {
            request_end(b, r, JOURNAL_END_ERROR, why);
        }
    }
    texts_fail(b, m, why);
    evals_fail(b, m, why);
    models_answer_asks(b, m, why);
}

/* ---- room ---- */

static uint64_t mem_available(void)
{
    uint64_t kb = 0;
    char line[256];
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kb) == 1) {
            break;
        }
    }
    if (f) {
        fclose(f);
    }
    return kb << 10;
}

uint64_t models_available(const struct models *t)
{
    return t->mem_available ? t->mem_available() : mem_available();
}

void models_forget(struct broker *b, struct model *m, bool again, const char *why)
{
    models_kill(b, m->text.child, SIGTERM);
    if (m->text.ready || m->text.child) {
        texts_service_died(b, m->text.child, false);
    }
    m->text.ready = false;
    m->text.failed = (struct err){ 0 };
    m->text.tries = 0;
    models_drop(b, &m->segment);
    window_clear(b, m);
    if (!again) {
        models_drop(b, &m->state_segment);
        m->state_made = false;
    }
    m->segment_bytes = 0;
    m->header = false;
    m->unload = false;
    m->bind = BIND_NONE;
    m->worker = 0;
    if (again) {
        swap_interrupted(m);
    } else {
        swap_left(m);
    }
    models_move(m, MODEL_COLD, why);
}

void models_evict(struct broker *b, struct model *m, bool for_room, const char *why)
{
    m->swap.evicting = for_room;
    b->models.n_swaps += for_room;
    if (m->state == MODEL_RESIDENT) {
        m->unload = true;
        models_move(m, MODEL_DRAINING, why);
    } else if (m->state == MODEL_WARM && m->bind == BIND_NONE && !keeps_held(b, m->segment)) {
        models_forget(b, m, false, why);
    } else if (m->state == MODEL_WARM) {
        /* A bind is on its way, and drains when it is there; or a worker lets go first. */
        m->unload = true;
    }
}

void models_clear(struct models *t)
{
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->list[i]->window.fd > 0) {
            close(t->list[i]->window.fd);
        }
        free(t->list[i]);
    }
    t->n = t->n_asks = 0;
}
