#include "broker/models.h"

#include <assert.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "broker/route.h"
#include "proto/log.h"
#include "proto/weights.h"

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
static void model_move(struct model *m, enum model_state to, const char *why)
{
    assert(allowed[m->state] >> to & 1);
    log_info("model %s: %s -> %s: %s", m->file.name, names[m->state], names[to], why);
    m->state = to;
}

static void drop(struct broker *b, uint64_t *segment)
{
    if (*segment) {
        struct channel_msg msg = { .op = CHANNEL_DROP, .segment = *segment };
        keeper_line_ask(b->keeper, &msg, NULL, 0, KEEPER_NOTHING, 0, 0);
        workers_revoke(b, *segment);
        *segment = 0;
    }
}

static void kill_child(struct broker *b, uint32_t child, int signal)
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

static uint64_t number_of(const char *path, const char *kv_k, const char *kv_v)
{
    uint64_t n = broker_digest(0, path, strlen(path) + 1);
    n = broker_digest(n, kv_k, strlen(kv_k) + 1);
    n = broker_digest(n, kv_v, strlen(kv_v) + 1);
    return n ? n : 1;
}

static bool same_file(const struct catalog_file *a, const struct catalog_file *b)
{
    return a->device == b->device && a->inode == b->inode && a->size_bytes == b->size_bytes &&
           a->mtime_ns == b->mtime_ns;
}

/* The row of a picked file, made when it is new. */
static struct model *get_row(struct broker *b, const struct catalog_pick *pick, struct err *err)
{
    struct models *t = &b->models;
    const char *k = b->config.kv_k, *v = b->config.kv_v;
    if (pick->alias && pick->alias->kv_k[0]) {
        k = pick->alias->kv_k;
        v = pick->alias->kv_v;
    }
    uint64_t number = number_of(pick->file.path, k, v);
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
        t->list[t->n++] = m;
    } else if (!same_file(&m->file, &pick->file) && m->state == MODEL_COLD) {
        /* Another file under the old name: what was known of it no longer holds. */
        m->file = pick->file;
        m->info = (struct model_info){ 0 };
        m->state_want = 0;
        m->digest = 0;
        m->error = m->text.failed = (struct err){ 0 };
        drop(b, &m->state_segment);
        m->state_made = false;
    } else if (!same_file(&m->file, &pick->file) && !m->unload) {
        log_info("model %s: its file has changed; it is loaded again", m->file.name);
        m->unload = true;
    }
    if (pick->alias) {
        m->pinned |= pick->alias->pin;
        m->ttl_s = pick->alias->ttl_s;
    }
    return m;
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

uint64_t models_used(const struct models *t)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        const struct model *m = t->list[i];
        if (m->segment) {
            used += m->segment_bytes ? m->segment_bytes : m->file.size_bytes;
        }
        used += m->state_segment ? m->state_bytes : 0;
    }
    return used;
}

/* ---- questions to load ---- */

static void answer_asks(struct broker *b, struct model *m, const struct err *why)
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
    answer_asks(b, m, why);
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

/* Weights leave RAM: the text service goes with them. */
static void forget_weights(struct broker *b, struct model *m, const char *why)
{
    kill_child(b, m->text.child, SIGTERM);
    if (m->text.ready || m->text.child) {
        texts_service_died(b, m->text.child, false);
    }
    m->text.ready = false;
    m->text.failed = (struct err){ 0 };
    m->text.tries = 0;
    drop(b, &m->segment);
    drop(b, &m->state_segment);
    m->state_made = false;
    m->segment_bytes = 0;
    m->header = false;
    m->unload = false;
    m->bind = BIND_NONE;
    m->worker = 0;
    swap_left(m);
    model_move(m, MODEL_COLD, why);
}

void models_evict(struct broker *b, struct model *m, bool for_room, const char *why)
{
    m->swap.evicting = for_room;
    if (m->state == MODEL_RESIDENT) {
        m->unload = true;
        model_move(m, MODEL_DRAINING, why);
    } else if (m->state == MODEL_WARM && m->bind == BIND_NONE) {
        forget_weights(b, m, why);
    } else if (m->state == MODEL_WARM) {
        m->unload = true; /* a bind is on its way; it drains when it is there */
    }
}

/* ---- loading ---- */

static void add_arg(struct channel_msg *msg, const char *arg)
{
    size_t len = strlen(arg) + 1;
    if (msg->argv_bytes + len <= sizeof msg->text) {
        memcpy(msg->text + msg->argv_bytes, arg, len);
        msg->argv_bytes += (uint32_t)len;
    }
}

/* A CPU reads rows laid side by side ten times faster; a GPU takes the file's layout and re-lays on the device. */
static const char *layout_wanted(const struct broker *b)
{
    for (uint32_t i = 0; i < b->workers.n; i++) {
        if (strncmp(b->workers.list[i].device, "cuda", 4) == 0) {
            return "file";
        }
    }
    return "rows16";
}

static void start_load(struct broker *b, struct model *m)
{
    char number[32];
    struct channel_msg create = { .op = CHANNEL_CREATE, .segment = broker_segment(b) };
    snprintf(create.tag, sizeof create.tag, "weights %016" PRIx64 " %.64s", m->number,
             m->file.name);
    m->segment = create.segment;
    m->segment_bytes = 0;
    m->header = false;
    m->load_noted = (struct err){ 0 };
    keeper_line_ask(b->keeper, &create, NULL, 0, KEEPER_CREATE_WEIGHTS, m->number, 0);
    struct channel_msg spawn = { .op = CHANNEL_SPAWN, .role = HERITAGE_LOADER, .n_grants = 1 };
    spawn.grants[0].segment = m->segment;
    spawn.grants[0].flags = CHANNEL_WRITABLE;
    add_arg(&spawn, m->file.path);
    if (b->config.source[0]) {
        add_arg(&spawn, "--source");
        add_arg(&spawn, b->config.source);
    }
    add_arg(&spawn, "--layout");
    add_arg(&spawn, layout_wanted(b));
    add_arg(&spawn, "--ram-budget");
    uint64_t used = models_used(&b->models) - m->file.size_bytes; /* its own is not there yet */
    snprintf(number, sizeof number, "%" PRIu64,
             b->config.ram_budget > used ? b->config.ram_budget - used : 0);
    add_arg(&spawn, number);
    broker_random(spawn.token, sizeof spawn.token);
    snprintf(spawn.tag, sizeof spawn.tag, "load %016" PRIx64 " %.64s", m->number, m->file.name);
    m->loader_spawning = true;
    m->loader_born_ms = b->now_ms;
    keeper_line_ask(b->keeper, &spawn, NULL, 0, KEEPER_SPAWN_LOADER, m->number, 0);
    model_move(m, MODEL_LOADING, m->pinned && !m->n_waiting ? "it is pinned" : "it is wanted");
}

/* The load ended without a model. */
static void load_failed(struct broker *b, struct model *m, const struct err *why, bool final)
{
    drop(b, &m->segment);
    m->segment_bytes = 0;
    m->header = m->adopting = false;
    m->loader = 0;
    m->loader_spawning = false;
    kill_child(b, m->text.child, SIGTERM);
    m->text.ready = false;
    swap_left(m);
    model_move(m, MODEL_COLD, why->text);
    m->load_tries++;
    if (final || m->load_tries >= MODELS_LOAD_TRIES) {
        m->load_tries = 0;
        m->load_kills = 0;
        m->error = *why;
        log_error("model %s: %s", m->file.name, why->text);
        m->pinned = false; /* a pin that cannot be kept would try for ever */
        models_fail_waiting(b, m, why);
        swap_failed(b, m);
    } else {
        m->loader_restarts++;
    }
    broker_alarm(b, b->now_ms);
}

void models_on_loader(struct broker *b, uint64_t number, uint32_t child, int32_t pid,
                      const struct err *err)
{
    struct model *m = models_find_number(&b->models, number);
    if (!m || !m->loader_spawning) {
        return;
    }
    m->loader_spawning = false;
    if (err->code != ERR_NONE) {
        struct err why = *err;
        err_wrap(&why, "loader of %s", m->file.name);
        load_failed(b, m, &why, true);
        return;
    }
    m->loader = child;
    m->loader_pid = pid;
}

static void loaded(struct broker *b, struct model *m, const char *why)
{
    m->load_tries = m->load_kills = 0;
    m->error = (struct err){ 0 };
    m->used_ms = b->now_ms;
    model_move(m, MODEL_WARM, why);
    if (m->digest == 0) {
        struct channel_msg take = { .op = CHANNEL_TAKE, .segment = m->segment };
        keeper_line_ask(b->keeper, &take, NULL, 0, KEEPER_TAKE_WEIGHTS, m->number, m->segment);
    }
    broker_alarm(b, b->now_ms);
}

void models_on_weights(struct broker *b, uint64_t number, uint64_t segment, int fd,
                       const struct err *err)
{
    struct model *m = models_find_number(&b->models, number);
    struct weights_header header;
    if (m && m->segment == segment) {
        bool whole = err->code == ERR_NONE &&
                     pread(fd, &header, sizeof header, 0) == (ssize_t)sizeof header &&
                     header.magic == WEIGHTS_MAGIC &&
                     atomic_load(&header.watermark) == header.data_bytes;
        if (whole) {
            m->digest = header.digest;
            m->segment_bytes = header.segment_bytes;
            m->header = true;
        }
        if (m->adopting) {
            m->adopting = false;
            if (whole) {
                loaded(b, m, "the last broker left it");
            } else {
                drop(b, &m->segment);
                m->segment_bytes = 0;
                m->header = false;
                swap_left(m);
                model_move(m, MODEL_COLD, "what the last broker left is not whole");
            }
        }
    }
    if (fd >= 0) {
        close(fd);
    }
}

static void start_text(struct broker *b, struct model *m)
{
    char number[32];
    struct channel_msg spawn = { .op = CHANNEL_SPAWN, .role = HERITAGE_TEXT, .n_grants = 1 };
    spawn.grants[0].segment = m->segment;
    add_arg(&spawn, "--text");
    add_arg(&spawn, "--model");
    snprintf(number, sizeof number, "%" PRIu64, m->number);
    add_arg(&spawn, number);
    broker_random(m->text.token, sizeof m->text.token);
    memcpy(spawn.token, m->text.token, sizeof spawn.token);
    snprintf(spawn.tag, sizeof spawn.tag, "text %016" PRIx64 " %.64s", m->number, m->file.name);
    m->text.spawning = true;
    m->text.born_ms = b->now_ms;
    m->text.noted = (struct err){ 0 };
    keeper_line_ask(b->keeper, &spawn, NULL, 0, KEEPER_SPAWN_TEXT, m->number, 0);
}

/* The text service cannot serve this model: who waits for text fails, who brings ids does not. */
static void text_failed(struct broker *b, struct model *m, const struct err *why)
{
    m->text.failed = *why;
    log_warn("text service of %s: %s", m->file.name, why->text);
    texts_fail(b, m, why);
}

void models_on_text(struct broker *b, uint64_t number, uint32_t child, int32_t pid,
                    const struct err *err)
{
    struct model *m = models_find_number(&b->models, number);
    if (!m || !m->text.spawning) {
        return;
    }
    m->text.spawning = false;
    if (err->code != ERR_NONE) {
        text_failed(b, m, err);
        return;
    }
    m->text.child = child;
    m->text.pid = pid;
}

bool models_on_note(struct broker *b, uint32_t child, uint32_t code, uint64_t value,
                    const char *text)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *m = b->models.list[i];
        if (m->text.child == child && child && code == CHANNEL_NOTE_FAILED) {
            err_set(&m->text.noted, value < ERR_N_CODES ? (enum err_code)value : ERR_FAILED, "%s",
                    text);
            return true;
        }
        if (m->loader != child || !child) {
            continue;
        }
        m->watch.loader_quiet_ms = m->watch.loader_asked_ms = 0;
        switch (code) {
        case CHANNEL_NOTE_HEADER:
            m->segment_bytes = value;
            m->header = true;
            break;
        case CHANNEL_NOTE_LOADED:
            m->header = true;
            b->models.load_rate = value;
            if (m->state == MODEL_LOADING) {
                char why[64];
                snprintf(why, sizeof why, "read at %.0f MB/s", (double)value / 1e6);
                loaded(b, m, why);
            }
            break;
        case CHANNEL_NOTE_FAILED:
            err_set(&m->load_noted,
                    value > 0 && value < ERR_N_CODES ? (enum err_code)value : ERR_FAILED, "%s",
                    text);
            break;
        default:
            break;
        }
        return true;
    }
    return false;
}

/* An error that a second run would only repeat. */
static bool is_final(enum err_code code)
{
    return code == ERR_BAD_FILE || code == ERR_UNSUPPORTED || code == ERR_NOT_FOUND ||
           code == ERR_NO_FIT || code == ERR_NO_MEMORY || code == ERR_REFUSED || code == ERR_USAGE;
}

static void loader_died(struct broker *b, struct model *m, int status)
{
    char how[64];
    models_status_text(status, how, sizeof how);
    m->loader = 0;
    if (m->state != MODEL_LOADING) {
        if (status != 0) {
            log_warn("loader of %s: %s after its work was done", m->file.name, how);
        }
        return;
    }
    bool hung = m->watch.loader_killed;
    m->watch.loader_killed = false;
    if (WIFSIGNALED(status) && !models_fault_of(status) && !hung &&
        ++m->load_kills < MODELS_KILLS_MAX) {
        log_warn("loader of %s died: %s from outside; it begins again", m->file.name, how);
        m->load_tries = 0;
        struct err why;
        err_set(&why, ERR_FAILED, "its loader was killed");
        load_failed(b, m, &why, false);
        m->load_tries = 0;
        return;
    }
    struct err why = m->load_noted;
    if (why.code == ERR_NONE) {
        err_set(&why, ERR_FAILED, hung ? "loader of %s was hung%s" : "loader of %s died: %s",
                m->file.name, hung ? "" : how);
    }
    load_failed(b, m, &why, m->load_noted.code != ERR_NONE && is_final(why.code));
}

static void text_died(struct broker *b, struct model *m, int status)
{
    char how[64];
    struct model_text *t = &m->text;
    uint32_t child = t->child;
    bool was_ready = t->ready, fault = models_fault_of(status);
    models_status_text(status, how, sizeof how);
    t->child = 0;
    t->pid = 0;
    t->ready = false;
    t->next_ms = b->now_ms;
    if (m->state == MODEL_COLD || (WIFEXITED(status) && status == 0) ||
        (WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM)) {
        texts_service_died(b, child, false);
        return; /* it was to go */
    }
    log_warn("text service of %s died: %s", m->file.name, how);
    t->restarts++;
    texts_service_died(b, child, fault);
    if (fault && !was_ready && (++t->tries >= MODELS_TEXT_TRIES || is_final(t->noted.code))) {
        struct err why = t->noted;
        if (why.code == ERR_NONE) {
            err_set(&why, ERR_FAILED, "the text service of %s died: %s", m->file.name, how);
        }
        text_failed(b, m, &why);
    } else if (fault && !was_ready) {
        t->next_ms = b->now_ms + WORKERS_BACKOFF_MIN;
    }
    broker_alarm(b, b->now_ms);
}

bool models_on_died(struct broker *b, uint32_t child, int status)
{
    for (uint32_t i = 0; i < b->models.n && child; i++) {
        struct model *m = b->models.list[i];
        if (m->loader == child) {
            loader_died(b, m, status);
            return true;
        }
        if (m->text.child == child) {
            text_died(b, m, status);
            return true;
        }
    }
    return false;
}

bool models_on_hello(struct broker *b, const struct link_peer *peer, const Hearth__Hello *hello)
{
    for (uint32_t i = 0; i < b->models.n && hello->token.len == LIMIT_TOKEN_BYTES; i++) {
        struct model *m = b->models.list[i];
        if ((m->text.child || m->text.spawning) &&
            memcmp(m->text.token, hello->token.data, LIMIT_TOKEN_BYTES) == 0) {
            m->text.peer = *peer;
            if (m->text.child == 0) {
                m->text.child = hello->child;
            }
            /* A new connection: what the old one was sent is lost. */
            texts_service_died(b, m->text.child, false);
            m->text.ready = true;
            m->text.tries = 0;
            m->text.failed = (struct err){ 0 };
            broker_alarm(b, b->now_ms);
            return true;
        }
    }
    return false;
}

/* ---- on the device ---- */

static void bind_failed(struct broker *b, struct model *m, const struct err *why)
{
    m->bind = BIND_NONE;
    m->worker = 0;
    m->next_bind_ms = b->now_ms + WORKERS_BACKOFF_MAX;
    m->error = *why;
    drop(b, &m->state_segment);
    m->state_made = false;
    log_error("model %s: %s", m->file.name, why->text);
    if (m->state == MODEL_RESIDENT) {
        model_move(m, MODEL_WARM, "the worker cannot use it any more");
    }
    m->pinned = false;
    models_fail_waiting(b, m, why);
    swap_left(m);
    swap_failed(b, m);
    m->next_bind_ms = b->now_ms; /* who comes now may try anew */
}

static void say_bind(struct broker *b, struct model *m, struct worker *w)
{
    Hearth__WorkerBind bind = HEARTH__WORKER_BIND__INIT;
    bind.model = m->number;
    bind.segment = m->segment;
    bind.name = message_str(m->file.name);
    bind.has_ctx = true;
    bind.ctx = b->config.ctx;
    bind.has_kv_k = bind.has_kv_v = true;
    bind.kv_k = message_str(m->kv_k);
    bind.kv_v = message_str(m->kv_v);
    bind.has_n_sequences = true;
    bind.n_sequences = b->config.sequences;
    uint64_t promised = swap_state_bytes(b, m), available = models_available(&b->models) / 2;
    bind.has_state_bytes_max = true;
    bind.state_bytes_max = m->state_segment       ? m->state_bytes
                           : m->state_want        ? m->state_want
                           : promised < available ? promised
                                                  : available;
    if (m->info.known) {
        bind.ctx = m->info.ctx; /* requests were admitted to this context: it is not cut later */
    }
    if (post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_BIND, &bind) == 0) {
        m->bind = BIND_ASKED;
    } else {
        broker_alarm(b, b->now_ms + 10);
    }
}

void models_on_need(struct broker *b, uint32_t child, const Hearth__WorkerNeed *need)
{
    struct model *m = models_find_number(&b->models, need->model);
    if (!m || m->worker != child || (m->bind != BIND_ASKED && m->bind != BIND_NEEDS)) {
        return;
    }
    char fingerprint[MODELS_FINGERPRINT];
    bool whole = message_copy(fingerprint, sizeof fingerprint, need->fingerprint);
    m->bind = BIND_NEEDS;
    if (m->state_segment && m->state_made && whole && m->state_bytes == need->state_bytes &&
        strcmp(fingerprint, m->fingerprint) == 0) {
        m->state_fresh = false; /* the dead worker's, trusted */
    } else {
        uint64_t available = models_available(&b->models);
        drop(b, &m->state_segment);
        m->state_made = false;
        if (need->state_bytes > available) {
            struct err why;
            err_set(&why, ERR_NO_FIT,
                    "model %s needs %.1f MiB for its state, %.1f MiB are "
                    "available; a smaller ctx or fewer sequences need less",
                    m->file.name, (double)need->state_bytes / 0x1p20, (double)available / 0x1p20);
            bind_failed(b, m, &why);
            return;
        }
        struct channel_msg create = { .op = CHANNEL_CREATE,
                                      .segment = broker_segment(b),
                                      .bytes = need->state_bytes };
        strcpy(m->fingerprint, fingerprint);
        snprintf(create.tag, sizeof create.tag, "state %016" PRIx64 " %s", m->number,
                 m->fingerprint);
        m->state_segment = create.segment;
        m->state_bytes = m->state_want = need->state_bytes;
        m->state_fresh = true;
        keeper_line_ask(b->keeper, &create, NULL, 0, KEEPER_CREATE_STATE, m->number,
                        create.segment);
    }
    struct worker *w = workers_find(&b->workers, child);
    if (w) {
        workers_grant(b, w, m->state_segment, true, false);
    }
}

void models_on_state(struct broker *b, uint64_t number, uint64_t segment, const struct err *err)
{
    struct model *m = models_find_number(&b->models, number);
    if (!m || m->state_segment != segment) {
        return;
    }
    if (err->code == ERR_NONE) {
        m->state_made = true;
        return;
    }
    struct err why = *err;
    err_wrap(&why, "state of model %s", m->file.name);
    bind_failed(b, m, &why);
}

void models_on_bound(struct broker *b, uint32_t child, const Hearth__WorkerBound *bound)
{
    struct model *m = models_find_number(&b->models, bound->model);
    if (!m || m->worker != child) {
        return;
    }
    if (bound->has_code && bound->code.len && bound->code.data &&
        !(bound->code.len == 4 && memcmp(bound->code.data, "none", 4) == 0)) {
        char code[64];
        struct err why = { 0 };
        message_copy(code, sizeof code, bound->code);
        why.code = err_code_of_name(code);
        message_copy(why.text, sizeof why.text, bound->text);
        bind_failed(b, m, &why);
        return;
    }
    m->info = (struct model_info){
        .known = true,
        .ctx = bound->ctx,
        .ctx_train = bound->ctx_train,
        .n_vocab = bound->n_vocab,
        .n_sequences = bound->n_sequences ? bound->n_sequences : 1,
        .n_embd = bound->n_embd,
        .piece_bytes_max = bound->piece_bytes_max,
        .generates = !bound->has_generates || bound->generates,
    };
    message_copy(m->info.arch, sizeof m->info.arch, bound->arch);
    message_copy(m->info.pooling, sizeof m->info.pooling, bound->pooling);
    m->bind = BIND_BOUND;
    m->bind_deaths = 0;
    m->error = (struct err){ 0 };
    if (m->state == MODEL_WARM) {
        model_move(m, MODEL_RESIDENT, "the worker has it");
        swap_arrived(b, m);
    }
    broker_alarm(b, b->now_ms);
}

void models_on_unbound(struct broker *b, uint32_t child, uint64_t number)
{
    struct model *m = models_find_number(&b->models, number);
    if (!m || m->worker != child || m->bind != BIND_LEAVING) {
        return;
    }
    m->bind = BIND_NONE;
    m->worker = 0;
    broker_alarm(b, b->now_ms);
}

void models_worker_died(struct broker *b, uint32_t child, bool by_fault)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *m = b->models.list[i];
        if (m->worker != child) {
            continue;
        }
        if (m->bind == BIND_NONE) {
            m->worker = 0; /* it was chosen, and told nothing yet */
            continue;
        }
        bool binding = m->bind != BIND_BOUND && m->bind != BIND_LEAVING;
        m->bind = BIND_NONE;
        m->worker = 0;
        if (by_fault && m->state_segment) {
            log_info("model %s: state pages of a worker that failed are not believed",
                     m->file.name);
            drop(b, &m->state_segment);
            m->state_made = false;
        }
        if (m->state == MODEL_RESIDENT) {
            model_move(m, MODEL_WARM, "its worker died");
        }
        if (by_fault && binding && ++m->bind_deaths >= MODELS_BIND_DEATHS_MAX) {
            struct err why;
            err_set(&why, ERR_FAILED, "the worker died %u times while it took model %s",
                    m->bind_deaths, m->file.name);
            m->bind_deaths = 0;
            bind_failed(b, m, &why);
        }
    }
}

void models_worker_has(struct broker *b, uint32_t child, uint64_t number)
{
    struct model *m = models_find_number(&b->models, number);
    struct worker *w = workers_find(&b->workers, child);
    if (m && w && (m->worker == child || m->worker == 0) && m->segment) {
        /* Its bind is known, its facts may not be: a bind again is answered with them. */
        bool serving = m->worker == child && m->bind == BIND_BOUND && m->info.known;
        m->worker = child;
        if (!serving) {
            workers_grant(b, w, m->segment, false, false);
            say_bind(b, m, w);
        }
    } else if (!m && w) {
        Hearth__WorkerUnbind unbind = HEARTH__WORKER_UNBIND__INIT;
        unbind.model = number;
        post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_UNBIND, &unbind);
    }
}

/* ---- what the last broker left ---- */

/* The model of a tag's number: by the name behind it, else among all files there are. */
static struct model *model_of_tag(struct broker *b, uint64_t number, const char *name)
{
    struct err ignored;
    struct model *m = models_find_number(&b->models, number);
    if (!m && *name) {
        models_get(b, name, NULL, &ignored);
        m = models_find_number(&b->models, number);
    }
    for (uint32_t i = 0; !m && i < b->config.n_aliases; i++) {
        models_get(b, b->config.aliases[i].name, NULL, &ignored);
        m = models_find_number(&b->models, number);
    }
    return m;
}

void models_adopt_segment(struct broker *b, uint64_t segment, uint64_t bytes, const char *tag)
{
    uint64_t number;
    int used = 0;
    struct model *m = NULL;
    bool weights = sscanf(tag, "weights %" SCNx64 " %n", &number, &used) == 1 && used;
    if (!weights && sscanf(tag, "state %" SCNx64 " %n", &number, &used) == 1 && used) {
        m = model_of_tag(b, number, "");
        if (m && !m->state_segment) {
            m->state_segment = segment;
            m->state_bytes = bytes;
            m->state_made = true;
            snprintf(m->fingerprint, sizeof m->fingerprint, "%s", tag + used);
            return;
        }
    } else if (weights) {
        m = model_of_tag(b, number, tag + used);
        if (m && !m->segment) {
            m->segment = segment;
            m->segment_bytes = bytes;
            m->adopting = true;
            return;
        }
    }
    log_info("segment %" PRIu64 " (%s) is nobody's any more", segment, tag);
    drop(b, &segment);
}

void models_adopt_child(struct broker *b, uint32_t role, uint32_t child, int32_t pid,
                        const uint8_t token[LIMIT_TOKEN_BYTES], const char *tag)
{
    uint64_t number;
    int used = 0;
    bool ours = (role == HERITAGE_LOADER &&
                 sscanf(tag, "load %" SCNx64 " %n", &number, &used) == 1) ||
                (role == HERITAGE_TEXT && sscanf(tag, "text %" SCNx64 " %n", &number, &used) == 1);
    struct model *m = ours ? model_of_tag(b, number, tag + used) : NULL;
    if (m && role == HERITAGE_LOADER && !m->loader) {
        m->loader = child;
        m->loader_pid = pid;
        m->loader_born_ms = b->now_ms;
    } else if (m && role == HERITAGE_TEXT && !m->text.child) {
        m->text.child = child;
        m->text.pid = pid;
        m->text.born_ms = b->now_ms;
        memcpy(m->text.token, token, sizeof m->text.token);
    } else {
        kill_child(b, child, SIGKILL);
    }
}

void models_adopted(struct broker *b)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *m = b->models.list[i];
        m->swap.in_turn = m->segment != 0;
        if (m->segment && m->adopting) {
            model_move(m, MODEL_LOADING, "the last broker began it");
            if (m->loader) {
                m->adopting = false; /* its notes come again */
            } else {
                struct channel_msg take = { .op = CHANNEL_TAKE, .segment = m->segment };
                keeper_line_ask(b->keeper, &take, NULL, 0, KEEPER_TAKE_WEIGHTS, m->number,
                                m->segment);
            }
        } else if (m->loader) {
            kill_child(b, m->loader, SIGKILL);
            m->loader = 0;
        }
        if (!m->segment) {
            drop(b, &m->state_segment);
            m->state_made = false;
        }
    }
}

/* ---- every turn ---- */

static void wish(struct broker *b, struct model *m)
{
    m->want_warm = m->want_resident = m->pinned || m->swap.come_back;
    m->n_waiting = m->n_running = 0;
    m->oldest_ms = 0;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        const struct request *r = b->requests.list[i];
        if (r->model != m || r->gone || request_ended(r)) {
            continue;
        }
        m->want_resident = true;
        m->n_running += r->worker != 0;
        m->n_waiting += r->worker == 0;
        if (r->worker == 0 && (m->oldest_ms == 0 || r->born_ms < m->oldest_ms)) {
            m->oldest_ms = r->born_ms;
        }
    }
    uint32_t evals = evals_waiting(b, m, &m->oldest_ms);
    m->n_waiting += evals - evals_running(b, m);
    m->n_running += evals_running(b, m);
    m->want_resident |= evals > 0;
    uint32_t texts = texts_waiting(b, m);
    m->want_warm |= texts > 0;
    for (uint32_t i = 0; i < b->models.n_asks; i++) {
        const struct models_ask *a = &b->models.asks[i];
        if (a->model == m) {
            m->want_warm = true;
            m->want_resident |= a->resident;
            m->n_waiting++;
            if (m->oldest_ms == 0 || a->born_ms < m->oldest_ms) {
                m->oldest_ms = a->born_ms;
            }
        }
    }
    m->want_warm |= m->want_resident;
    if (texts && m->n_waiting == 0) {
        m->n_waiting = texts;
        m->oldest_ms = m->oldest_ms ? m->oldest_ms : b->now_ms;
    }
    if (m->want_warm) {
        m->used_ms = b->now_ms;
    }
}

static void act_cold(struct broker *b, struct model *m)
{
    struct err err = { 0 };
    m->unload = false;
    if (!m->want_warm || b->stopping || m->loader_spawning || m->loader) {
        return; /* a loader of the last attempt must be reaped first */
    }
    if (b->now_ms < m->next_load_ms) {
        broker_alarm(b, m->next_load_ms);
        return;
    }
    /* What the file is now: it may be another than the one that was asked for. */
    struct catalog_file now;
    if (catalog_stat(m->file.path, &now, &err) < 0) {
        m->error = err;
        m->pinned = false;
        models_fail_waiting(b, m, &err);
        swap_failed(b, m);
        return;
    }
    snprintf(now.name, sizeof now.name, "%s", m->file.name);
    if (!same_file(&m->file, &now)) {
        m->info = (struct model_info){ 0 };
        m->state_want = 0;
        m->digest = 0;
    }
    m->file = now;
    int room = swap_load_room(b, m, &err);
    if (room < 0) {
        m->error = err;
        log_error("%s", err.text);
        m->pinned = false;
        models_fail_waiting(b, m, &err);
        swap_failed(b, m);
    } else if (room > 0) {
        start_load(b, m);
    }
}

static void act_text(struct broker *b, struct model *m)
{
    struct model_text *t = &m->text;
    if (t->failed.code != ERR_NONE) {
        texts_fail(b, m, &t->failed);
        return;
    }
    if (t->child || t->spawning || !m->segment || !m->header || b->stopping) {
        return;
    }
    if (b->now_ms < t->next_ms) {
        broker_alarm(b, t->next_ms);
        return;
    }
    start_text(b, m);
}

static void act_bind(struct broker *b, struct model *m)
{
    struct worker *w = m->worker ? workers_find(&b->workers, m->worker) : workers_for(b, m);
    if (!w || w->state != WORKER_READY) {
        return; /* when it is ready, a turn comes */
    }
    if (m->bind == BIND_NONE && m->want_resident && !m->unload && swap_bind_room(b, m)) {
        m->worker = w->child;
        workers_grant(b, w, m->segment, false, false);
        if (workers_granted(w, m->segment)) {
            say_bind(b, m, w);
        }
    } else if (m->bind == BIND_NEEDS && m->state_made && workers_granted(w, m->state_segment)) {
        Hearth__WorkerState state = HEARTH__WORKER_STATE__INIT;
        state.model = m->number;
        state.segment = m->state_segment;
        state.fresh = m->state_fresh;
        if (post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_STATE, &state) == 0) {
            m->bind = BIND_STATE;
        } else {
            broker_alarm(b, b->now_ms + 10);
        }
    }
}

static void act_draining(struct broker *b, struct model *m)
{
    bool idle = evals_running(b, m) == 0;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->model == m && r->worker && !r->gone) {
            idle = false;
            route_release(b, r, "its model is leaving");
        }
    }
    struct worker *w = workers_find(&b->workers, m->worker);
    if (idle && m->bind == BIND_BOUND && w && w->state == WORKER_READY) {
        Hearth__WorkerUnbind unbind = HEARTH__WORKER_UNBIND__INIT;
        unbind.model = m->number;
        if (post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_UNBIND, &unbind) == 0) {
            m->bind = BIND_LEAVING;
        }
    }
    if (m->bind == BIND_NONE && swap_keeps_weights(b, m)) {
        drop(b, &m->state_segment);
        m->state_made = m->unload = false;
        swap_left(m);
        model_move(m, MODEL_WARM, "its state makes room, its weights stay");
        broker_alarm(b, b->now_ms);
    } else if (m->bind == BIND_NONE) {
        forget_weights(b, m, "nobody uses it any more");
        broker_alarm(b, b->now_ms);
    }
}

static void act_one(struct broker *b, struct model *m)
{
    uint64_t ttl_ms = (uint64_t)m->ttl_s * 1000;
    bool there = m->state == MODEL_WARM || m->state == MODEL_RESIDENT;
    if (ttl_ms && there && !m->pinned && !m->unload && !m->want_warm) {
        if (b->now_ms >= m->used_ms + ttl_ms) {
            models_evict(b, m, false, "nobody wanted it for a while");
        } else {
            broker_alarm(b, m->used_ms + ttl_ms);
        }
    }
    switch (m->state) {
    case MODEL_COLD:
        act_cold(b, m);
        if (m->state == MODEL_COLD) {
            return;
        }
        break;
    case MODEL_LOADING:
        break;
    case MODEL_WARM:
        if (m->unload && m->bind == BIND_NONE) {
            forget_weights(b, m, "it is unloaded");
            broker_alarm(b, b->now_ms);
            return;
        }
        if (m->bind == BIND_BOUND) {
            /* The worker told of it before the keeper gave the segment that the last broker left. */
            model_move(m, MODEL_RESIDENT, "the worker has it");
            swap_arrived(b, m);
            break;
        }
        act_bind(b, m);
        break;
    case MODEL_RESIDENT:
        if (m->unload) {
            model_move(m, MODEL_DRAINING, "it is unloaded");
            act_draining(b, m);
        }
        break;
    case MODEL_DRAINING:
        act_draining(b, m);
        break;
    default:
        assert(!"model: no such state");
    }
    if (m->state != MODEL_COLD) {
        act_text(b, m);
        answer_asks(b, m, NULL);
    }
}

void models_act(struct broker *b)
{
    struct err down;
    bool all_down = workers_all_down(&b->workers, &down);
    for (uint32_t i = 0; i < b->models.n; i++) {
        wish(b, b->models.list[i]);
        if (all_down && b->models.list[i]->want_resident) {
            models_fail_waiting(b, b->models.list[i], &down);
        }
    }
    swap_begin(b);
    for (uint32_t i = 0; i < b->models.n; i++) {
        act_one(b, b->models.list[i]);
    }
}

void models_clear(struct models *t)
{
    for (uint32_t i = 0; i < t->n; i++) {
        free(t->list[i]);
    }
    t->n = t->n_asks = 0;
}
