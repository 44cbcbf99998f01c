#include "broker/workers.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "proto/log.h"

static const char *const names[WORKER_N_STATES] = {
    [WORKER_ABSENT] = "starting",
    [WORKER_BORN] = "starting",
    [WORKER_READY] = "ready",
    [WORKER_DOWN] = "down",
};

const char *worker_state_name(enum worker_state state)
{
    return (unsigned)state < WORKER_N_STATES ? names[state] : "damaged";
}

void workers_init(struct broker *b)
{
    struct workers *t = &b->workers;
    const char *at = b->config.device;
    t->n = 0;
    while (*at && t->n < WORKERS_MAX) {
        size_t len = strcspn(at, ",");
        struct worker *w = &t->list[t->n++];
        *w = (struct worker){ .threads = b->config.threads };
        snprintf(w->device, sizeof w->device, "%.*s", (int)len, at);
        at += len + (at[len] == ',');
    }
}

void workers_clear(struct workers *t)
{
    memset(t, 0, sizeof *t);
}

struct worker *workers_find(struct workers *t, uint32_t child)
{
    for (uint32_t i = 0; i < t->n && child; i++) {
        if (t->list[i].child == child) {
            return &t->list[i];
        }
    }
    return NULL;
}

struct worker *workers_for(struct broker *b, const struct model *m)
{
    struct worker *best = NULL;
    uint32_t best_n = 0;
    for (uint32_t i = 0; i < b->workers.n; i++) {
        struct worker *w = &b->workers.list[i];
        if (w->state != WORKER_READY || (m->window.on && !w->own_memory)) {
            continue;
        }
        if (w->child == m->worker && m->bind != BIND_NONE) {
            return w;
        }
        uint32_t n = 0;
        for (uint32_t k = 0; k < b->models.n; k++) {
            n += b->models.list[k]->worker == w->child && b->models.list[k]->bind != BIND_NONE;
        }
        bool nearer = best && n == best_n && keeps_has(w, m->segment) &&
                      !keeps_has(best, m->segment);
        if (!best || n < best_n || nearer) {
            best = w;
            best_n = n;
        }
    }
    return best;
}

bool workers_compute(const struct workers *t, const char *architecture)
{
    size_t len = strlen(architecture);
    for (uint32_t i = 0; i < t->n; i++) {
        const char *list = t->list[i].architectures, *at = list;
        while ((at = strstr(at, architecture)) &&
               ((at > list && at[-1] != ' ') || at[len] != ' ')) {
            at++;
        }
        if (at || !list[0]) {
            return true;
        }
    }
    return false;
}

bool workers_all_down(const struct workers *t, struct err *why)
{
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->list[i].state != WORKER_DOWN) {
            return false;
        }
    }
    if (t->n == 0) {
        return false;
    }
    *why = t->list[0].down;
    return true;
}

static void revive(struct broker *b, struct worker *w, const char *why)
{
    log_info("device %s: tried again: %s", w->device, why);
    w->state = WORKER_ABSENT;
    w->next_ms = b->now_ms;
    w->backoff_ms = 0;
    w->down = (struct err){ 0 };
    memset(w->strikes_ms, 0, sizeof w->strikes_ms);
}

void workers_revive(struct broker *b, const char *why)
{
    for (uint32_t i = 0; i < b->workers.n; i++) {
        if (b->workers.list[i].state == WORKER_DOWN) {
            revive(b, &b->workers.list[i], why);
        }
    }
}

/* ---- grants ---- */

void workers_grant(struct broker *b, struct worker *w, uint64_t segment, bool writable, bool reader)
{
    for (uint32_t i = 0; i < w->n_grants; i++) {
        if (w->grants[i].segment == segment) {
            return;
        }
    }
    if (w->n_grants == WORKERS_GRANTS_MAX) {
        log_error("worker %u: more than %d segments", w->child, WORKERS_GRANTS_MAX);
        return;
    }
    w->grants[w->n_grants++] = (struct worker_grant){ .segment = segment, .reader = reader };
    struct channel_msg msg = { .op = CHANNEL_GRANT,
                               .segment = segment,
                               .child = w->child,
                               .flags = writable ? CHANNEL_WRITABLE : 0 };
    keeper_line_ask(b->keeper, &msg, NULL, 0, KEEPER_GRANT, segment, w->child);
}

bool workers_granted(const struct worker *w, uint64_t segment)
{
    for (uint32_t i = 0; i < w->n_grants; i++) {
        if (w->grants[i].segment == segment) {
            return w->grants[i].done;
        }
    }
    return false;
}

bool workers_told(const struct worker *w, uint64_t segment)
{
    for (uint32_t i = 0; i < w->n_grants; i++) {
        if (w->grants[i].segment == segment) {
            return w->grants[i].told;
        }
    }
    return false;
}

void workers_on_grant(struct broker *b, uint32_t child, uint64_t segment, const struct err *err)
{
    struct worker *w = workers_find(&b->workers, child);
    for (uint32_t i = 0; w && i < w->n_grants; i++) {
        if (w->grants[i].segment != segment) {
            continue;
        }
        if (err->code == ERR_NONE) {
            w->grants[i].done = true;
        } else {
            log_warn("worker %u: segment %" PRIu64 ": %s", child, segment, err->text);
            w->grants[i] = w->grants[--w->n_grants];
        }
        return;
    }
}

void workers_revoke(struct broker *b, uint64_t segment)
{
    for (uint32_t k = 0; k < b->workers.n; k++) {
        struct worker *w = &b->workers.list[k];
        for (uint32_t i = 0; i < w->n_grants; i++) {
            if (w->grants[i].segment != segment) {
                continue;
            }
            if (w->grants[i].reader && w->grants[i].told && w->state == WORKER_READY) {
                Hearth__WorkerReader reader = HEARTH__WORKER_READER__INIT;
                reader.reader = segment;
                reader.has_gone = reader.gone = true;
                post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_READER, &reader);
            }
            w->grants[i] = w->grants[--w->n_grants];
            break;
        }
    }
}

/* ---- births ---- */

static void add_arg(struct channel_msg *msg, const char *arg)
{
    size_t len = strlen(arg) + 1;
    if (msg->argv_bytes + len <= sizeof msg->text) {
        memcpy(msg->text + msg->argv_bytes, arg, len);
        msg->argv_bytes += (uint32_t)len;
    }
}

static void spawn(struct broker *b, struct worker *w)
{
    uint32_t index = (uint32_t)(w - b->workers.list);
    struct channel_msg msg = { .op = CHANNEL_SPAWN, .role = HERITAGE_WORKER };
    char number[24];
    add_arg(&msg, "--device");
    add_arg(&msg, w->device);
    if (b->config.threads) {
        snprintf(number, sizeof number, "%u", b->config.threads);
        add_arg(&msg, "--threads");
        add_arg(&msg, number);
    }
    if (b->config.vram_budget) {
        snprintf(number, sizeof number, "%" PRIu64, b->config.vram_budget);
        add_arg(&msg, "--vram-budget");
        add_arg(&msg, number);
    }
    broker_random(w->token, sizeof w->token);
    memcpy(msg.token, w->token, sizeof msg.token);
    snprintf(msg.tag, sizeof msg.tag, "worker %u %s", index, w->device);
    w->spawning = true;
    w->killed = false;
    w->restarts += w->births++ > 0;
    w->born_ms = b->now_ms;
    keeper_line_ask(b->keeper, &msg, NULL, 0, KEEPER_SPAWN_WORKER, index, 0);
}

static void back_off(struct broker *b, struct worker *w)
{
    w->backoff_ms = w->backoff_ms ? w->backoff_ms * 2 : WORKERS_BACKOFF_MIN;
    w->backoff_ms = w->backoff_ms > WORKERS_BACKOFF_MAX ? WORKERS_BACKOFF_MAX : w->backoff_ms;
    w->next_ms = b->now_ms + w->backoff_ms;
}

void workers_on_spawn(struct broker *b, uint32_t index, uint32_t child, int32_t pid,
                      const struct err *err)
{
    struct worker *w = index < b->workers.n ? &b->workers.list[index] : NULL;
    if (!w || !w->spawning) {
        return;
    }
    w->spawning = false;
    if (err->code != ERR_NONE) {
        log_error("worker for %s: %s", w->device, err->text);
        w->state = WORKER_ABSENT;
        back_off(b, w);
        return;
    }
    w->child = child;
    w->pid = pid;
    if (w->state == WORKER_ABSENT) {
        w->state = WORKER_BORN;
    }
    log_info("worker %u for %s: pid %d", child, w->device, (int)pid);
}

void workers_adopt(struct broker *b, uint32_t child, int32_t pid,
                   const uint8_t token[LIMIT_TOKEN_BYTES], const char *tag)
{
    unsigned index;
    if (sscanf(tag, "worker %u ", &index) != 1 || index >= b->workers.n ||
        b->workers.list[index].child) {
        struct channel_msg kill = { .op = CHANNEL_KILL, .child = child, .value = SIGKILL };
        log_warn("worker %u (%s) has no place in this configuration: ended", child, tag);
        keeper_line_ask(b->keeper, &kill, NULL, 0, KEEPER_NOTHING, 0, 0);
        return;
    }
    struct worker *w = &b->workers.list[index];
    w->child = child;
    w->pid = pid;
    memcpy(w->token, token, sizeof w->token);
    w->state = WORKER_BORN;
    w->born_ms = b->now_ms;
    w->births = 1;
    w->keeps.unknown = true;
}

/* What it holds from before: logs that are still its own, models that it has bound. */
static void take_stock(struct broker *b, struct worker *w, const Hearth__Hello *hello)
{
    for (size_t i = 0; i < hello->n_held; i++) {
        const Hearth__HeldRequest *held = hello->held[i];
        struct shard *shard = shards_find_segment(&b->shards, held->shard);
        struct request *r = shard ? requests_find_slot(&b->requests, shard, held->slot,
                                                       held->generation)
                                  : NULL;
        if (r && r->worker == w->child) {
            r->told = true;
        } else if (!r || request_ended(r) || r->worker == 0) {
            Hearth__WorkerRelease release = HEARTH__WORKER_RELEASE__INIT;
            release.shard = held->shard;
            release.slot = held->slot;
            release.generation = held->generation;
            post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_RELEASE, &release);
        }
    }
    models_worker_lacks(b, w->child, hello->models, hello->n_models);
    for (size_t i = 0; i < hello->n_models; i++) {
        models_worker_has(b, w->child, hello->models[i]);
    }
}

bool workers_on_hello(struct broker *b, const struct link_peer *peer, const Hearth__Hello *hello)
{
    struct worker *w = NULL;
    for (uint32_t i = 0; i < b->workers.n && hello->token.len == LIMIT_TOKEN_BYTES; i++) {
        struct worker *it = &b->workers.list[i];
        if ((it->child || it->spawning) &&
            memcmp(it->token, hello->token.data, LIMIT_TOKEN_BYTES) == 0) {
            w = it;
        }
    }
    if (!w) {
        return false;
    }
    w->child = hello->child; /* the keeper's answer to its birth may still be on its way */
    w->peer = *peer;
    if (hello->has_device && hello->device.len) {
        message_copy(w->device, sizeof w->device, hello->device);
    }
    if (hello->has_isa) {
        message_copy(w->isa, sizeof w->isa, hello->isa);
    }
    if (hello->has_architectures) {
        message_copy(w->architectures, sizeof w->architectures, hello->architectures);
    }
    w->said_hello = true;
    w->own_memory = hello->has_own_memory && hello->own_memory;
    w->memory_bytes = hello->has_memory_bytes ? hello->memory_bytes : w->memory_bytes;
    w->threads = hello->has_threads ? hello->threads : w->threads;
    if (hello->has_pid && w->pid == 0) {
        w->pid = (int32_t)hello->pid;
    }
    bool again = w->state == WORKER_READY;
    w->state = WORKER_READY;
    /* What the last connection was told went to another socket, and what it said may have died there: all is told again. That
     * happens: a worker that hears of a broker late has said Hello to it by an older link already (SERVE.md). */
    for (uint32_t i = 0; i < w->n_grants; i++) {
        w->grants[i].told = false;
    }
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->worker == w->child) {
            r->told = r->releasing = r->ending = false;
        }
    }
    evals_told_again(b, w->child);
    keeps_on_hello(b, w, hello);
    take_stock(b, w, hello);
    log_info("worker %u on %s (%s, %u threads): %s", w->child, w->device, w->isa, w->threads,
             again ? "here again" : "ready");
    if (!b->ready) {
        b->ready = true;
        if (b->heritage.broker_epoch <= 1) {
            fprintf(stderr, "hearth: ready\n");
        }
    }
    return true;
}

/* ---- deaths ---- */

/* It was taking a model while it had another: such a death is that model's, not the device's and nobody's who runs on the
 * other. models_worker_died counts them, and gives up after a few. */
static bool model_is_to_blame(const struct broker *b, const struct worker *w)
{
    bool taking = false, has_another = false;
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *m = b->models.list[i];
        bool its = m->worker == w->child;
        taking |= its && (m->bind == BIND_ASKED || m->bind == BIND_NEEDS || m->bind == BIND_STATE);
        has_another |= its && m->bind == BIND_BOUND;
    }
    return taking && has_another;
}

/* Blame: who committed something since his last such death is innocent (DESIGN.md section 5). Returns true when one of them
 * had the worker for himself and is now found to be poison. */
static bool blame(struct broker *b, struct worker *w)
{
    uint32_t n = 0;
    bool poison = false;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        n += b->requests.list[i]->worker == w->child;
    }
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->worker != w->child || request_ended(r)) {
            continue;
        }
        struct journal_slot *slot = request_slot(r);
        uint64_t committed = request_committed(r);
        if (committed > slot->committed_at_death) {
            slot->deaths = 0;
            slot->committed_at_death = committed;
        } else {
            slot->deaths++;
        }
        poison |= slot->deaths >= REQUEST_DEATHS_MAX && n == 1;
    }
    return poison;
}

/* Its requests are the broker's again. */
static void take_back(struct broker *b, struct worker *w)
{
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->worker != w->child || r->gone) {
            continue;
        }
        request_return(b, r, "its worker died");
        if (!request_ended(r) && request_slot(r)->deaths >= REQUEST_DEATHS_MAX) {
            struct err why;
            err_set(&why, ERR_POISON,
                    "the worker died %u times under this request, each time "
                    "without a token: it is not tried again",
                    request_slot(r)->deaths);
            log_error("%s", why.text);
            request_end(b, r, JOURNAL_END_ERROR, &why);
        }
    }
}

static void strike(struct broker *b, struct worker *w, const char *how)
{
    memmove(w->strikes_ms, w->strikes_ms + 1, sizeof w->strikes_ms - sizeof *w->strikes_ms);
    w->strikes_ms[WORKERS_STRIKES - 1] = b->now_ms ? b->now_ms : 1;
    if (w->strikes_ms[0] && b->now_ms - w->strikes_ms[0] <= WORKERS_STRIKE_MS) {
        w->state = WORKER_DOWN;
        w->next_ms = b->now_ms + WORKERS_STRIKE_MS;
        err_set(&w->down, ERR_FAILED,
                "device %s is down: its worker died %d times in a minute (%s)", w->device,
                WORKERS_STRIKES, how);
        log_error("%s", w->down.text);
    }
}

bool workers_on_died(struct broker *b, uint32_t child, int status)
{
    struct worker *w = workers_find(&b->workers, child);
    char how[64];
    if (!w) {
        return false;
    }
    models_status_text(status, how, sizeof how);
    bool fault = models_fault_of(status) || w->killed;
    bool was_ready = w->state == WORKER_READY;
    log_warn("worker %u on %s died: %s%s", child, w->device, how,
             w->killed ? " by our own watch" : "");
    bool of_model = fault && model_is_to_blame(b, w);
    bool poison = fault && !of_model && blame(b, w);
    w->state = WORKER_ABSENT;
    w->spawning = false;
    w->n_grants = 0;
    w->keeps = (struct keeps){ 0 };
    models_worker_died(b, child, fault);
    take_back(b, w);
    evals_worker_died(b, child, fault);
    w->child = 0;
    w->pid = 0;
    w->next_ms = b->now_ms;
    if (fault && !was_ready) {
        back_off(b, w);
    }
    if (poison) {
        memset(w->strikes_ms, 0, sizeof w->strikes_ms); /* not the device's fault */
    } else if (fault && !of_model) {
        strike(b, w, how);
    }
    broker_alarm(b, b->now_ms);
    return true;
}

void workers_proved(struct worker *w)
{
    w->backoff_ms = 0;
    memset(w->strikes_ms, 0, sizeof w->strikes_ms);
}

void workers_kill(struct broker *b, struct worker *w, const char *why)
{
    log_warn("worker %u on %s: killed: %s", w->child, w->device, why);
    w->killed = true;
    struct channel_msg kill = { .op = CHANNEL_KILL, .child = w->child, .value = SIGKILL };
    keeper_line_ask(b->keeper, &kill, NULL, 0, KEEPER_NOTHING, 0, 0);
}

/* ---- every turn ---- */

static void tell_readers(struct broker *b, struct worker *w)
{
    for (uint32_t i = 0; i < b->clients.n; i++) {
        const struct client *c = b->clients.list[i];
        if (c->state == CLIENT_ATTACHED && !c->gone) {
            workers_grant(b, w, c->reader, true, true);
        }
    }
    if (b->records.made) {
        workers_grant(b, w, b->records.reader, true, true);
    }
    for (uint32_t i = 0; i < w->n_grants; i++) {
        struct worker_grant *g = &w->grants[i];
        if (g->reader && g->done && !g->told) {
            Hearth__WorkerReader reader = HEARTH__WORKER_READER__INIT;
            reader.reader = g->segment;
            if (post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_READER, &reader) == 0) {
                g->told = true;
                broker_alarm(b, b->now_ms); /* requests go over to it */
            }
        }
    }
}

void workers_act(struct broker *b)
{
    for (uint32_t i = 0; i < b->workers.n; i++) {
        struct worker *w = &b->workers.list[i];
        switch (w->state) {
        case WORKER_ABSENT:
            if (!w->spawning && !b->stopping) {
                if (b->now_ms >= w->next_ms) {
                    spawn(b, w);
                } else {
                    broker_alarm(b, w->next_ms);
                }
            }
            break;
        case WORKER_BORN:
            if (b->now_ms - w->born_ms > WORKERS_HELLO_MS && !w->killed) {
                workers_kill(b, w, "it said no Hello");
            }
            broker_alarm(b, w->born_ms + WORKERS_HELLO_MS + 1);
            break;
        case WORKER_READY:
            tell_readers(b, w);
            break;
        default: /* WORKER_DOWN */
            if (b->now_ms >= w->next_ms) {
                revive(b, w, "a minute has passed");
                broker_alarm(b, b->now_ms);
            } else {
                broker_alarm(b, w->next_ms);
            }
        }
    }
}
