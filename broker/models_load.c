/* A model comes into RAM: its loading process and its text service, their notes, deaths and retries. */
#include "broker/models_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "broker/broker.h"
#include "proto/log.h"
#include "proto/weights.h"

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

void models_start_load(struct broker *b, struct model *m)
{
    char number[32];
    if (m->window.on) {
        window_begin(b, m);
    }
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
    if (m->lora[0]) {
        add_arg(&spawn, "--lora");
        add_arg(&spawn, m->lora);
    }
    if (m->window.on) {
        spawn.n_grants = 2;
        spawn.grants[1].segment = m->window.segment;
        add_arg(&spawn, "--window");
        snprintf(number, sizeof number, "%" PRIu64, m->window.bytes);
        add_arg(&spawn, number);
    }
    add_arg(&spawn, "--layout");
    add_arg(&spawn, m->window.on ? "file" : layout_wanted(b));
    add_arg(&spawn, "--ram-budget");
    uint64_t used = models_used(&b->models) - models_ram_bytes(m); /* its own is not there yet */
    snprintf(number, sizeof number, "%" PRIu64, lend_budget(b) > used ? lend_budget(b) - used : 0);
    add_arg(&spawn, number);
    broker_random(spawn.token, sizeof spawn.token);
    snprintf(spawn.tag, sizeof spawn.tag, "load %016" PRIx64 " %.64s", m->number, m->file.name);
    m->loader_spawning = true;
    m->loader_born_ms = b->now_ms;
    keeper_line_ask(b->keeper, &spawn, NULL, 0, KEEPER_SPAWN_LOADER, m->number, 0);
    models_move(m, MODEL_LOADING, m->pinned && !m->n_waiting ? "it is pinned" : "it is wanted");
}

/* The load ended without a model. */
static void load_failed(struct broker *b, struct model *m, const struct err *why, bool final)
{
    models_drop(b, &m->segment);
    window_clear(b, m);
    models_drop(b, &m->state_segment); /* nobody counts the room of a model that is cold */
    m->segment_bytes = 0;
    m->header = m->adopting = m->state_made = false;
    m->loader = 0;
    m->loader_spawning = false;
    models_kill(b, m->text.child, SIGTERM);
    m->text.ready = false;
    swap_interrupted(m);
    models_move(m, MODEL_COLD, why->text);
    m->load_tries++;
    if (final || m->load_tries >= MODELS_LOAD_TRIES) {
        swap_left(m);
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

/* ---- a file that has changed ---- */

void models_start_check(struct broker *b, struct model *m, const struct catalog_file *now)
{
    struct channel_msg spawn = { .op = CHANNEL_SPAWN, .role = HERITAGE_LOADER };
    if (m->check.spawning || m->check.child || b->stopping) {
        return;
    }
    m->check.spawning = true;
    m->check.file = *now;
    m->check.noted = (struct err){ 0 };
    add_arg(&spawn, m->file.path);
    add_arg(&spawn, "--check");
    add_arg(&spawn, "--layout");
    add_arg(&spawn, layout_wanted(b));
    broker_random(spawn.token, sizeof spawn.token);
    snprintf(spawn.tag, sizeof spawn.tag, "check %.64s", m->file.name);
    keeper_line_ask(b->keeper, &spawn, NULL, 0, KEEPER_SPAWN_CHECK, m->number, 0);
}

void models_on_check(struct broker *b, uint64_t number, uint32_t child, const struct err *err)
{
    struct model *m = models_find_number(&b->models, number);
    if (m && m->check.spawning) {
        m->check.spawning = false;
        m->check.child = err->code == ERR_NONE ? child : 0;
    }
}

/* The old one goes only for one that is a model. A check that was killed says nothing: the next who asks begins another. */
static void checked(struct broker *b, struct model *m, int status)
{
    struct model_check *c = &m->check;
    c->child = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        log_info("model %s: its file has changed; it is loaded again", m->file.name);
        c->stale_ms = b->now_ms;
        broker_alarm(b, b->now_ms);
    } else if (models_fault_of(status)) {
        c->refused = c->file;
        m->error = c->noted;
        log_error("model %s: its file has changed and is refused, the old one stays: %s",
                  m->file.name, c->noted.code ? c->noted.text : "its loader died");
    }
}

/* ---- loaded ---- */

static void loaded(struct broker *b, struct model *m, const char *why)
{
    m->load_tries = m->load_kills = 0;
    m->error = (struct err){ 0 };
    m->used_ms = b->now_ms;
    models_move(m, MODEL_WARM, why);
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
            m->window.on |= header.window != 0;
            m->window.bytes = m->window.on ? header.window : 0;
            m->window.kept = m->window.kept ? m->window.kept : header.data_off;
        }
        if (m->adopting) {
            m->adopting = false;
            if (whole) {
                loaded(b, m, "the last broker left it");
            } else {
                models_drop(b, &m->segment);
                /* Nobody counts the room of a model that is cold. */
                models_drop(b, &m->state_segment);
                m->segment_bytes = 0;
                m->header = m->state_made = false;
                swap_interrupted(m);
                models_move(m, MODEL_COLD, "what the last broker left is not whole");
            }
        }
    }
    if (fd >= 0) {
        close(fd);
    }
}

void models_start_text(struct broker *b, struct model *m)
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

/* The head is sound. A model that no device computes is refused here, before its data is read; one that is only wanted for
 * its tokenizer may come. */
static void head_accepted(struct broker *b, struct model *m, uint64_t segment_bytes,
                          const char *text)
{
    const char *arch = strstr(text, "arch=");
    m->segment_bytes = segment_bytes;
    m->header = true;
    window_on_header(m, text);
    if (arch && arch[5] && m->want_resident && !workers_compute(&b->workers, arch + 5)) {
        struct err why;
        err_set(&why, ERR_UNSUPPORTED, "%s: architecture %s is not known", m->file.path, arch + 5);
        models_kill(b, m->loader, SIGKILL);
        load_failed(b, m, &why, true);
    }
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
        if (m->check.child == child && child) {
            if (code == CHANNEL_NOTE_FAILED) {
                err_set(&m->check.noted, value < ERR_N_CODES ? (enum err_code)value : ERR_FAILED,
                        "%s", text);
            }
            return true;
        }
        if (m->loader != child || !child) {
            continue;
        }
        m->watch.loader_quiet_ms = 0;
        switch (code) {
        case CHANNEL_NOTE_HEADER:
            head_accepted(b, m, value, text);
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
        if (status != 0 && m->state != MODEL_COLD) {
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
        if (m->check.child == child) {
            checked(b, m, status);
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
