#include "broker/route.h"

#include "broker/broker.h"
#include "broker/post.h"
#include "proto/log.h"

void route_release(struct broker *b, struct request *r, const char *why)
{
    struct worker *w = workers_find(&b->workers, r->worker);
    if (!w || w->state != WORKER_READY || r->releasing || r->ending) {
        return;
    }
    Hearth__WorkerRelease release = HEARTH__WORKER_RELEASE__INIT;
    release.shard = r->shard->segment;
    release.slot = r->slot;
    release.generation = r->generation;
    if (post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_RELEASE, &release) == 0) {
        log_debug("request %llu is taken from worker %u: %s", (unsigned long long)r->serial,
                  w->child, why);
        r->releasing = true;
    }
}

static void say_take(struct broker *b, struct request *r, struct worker *w)
{
    Hearth__WorkerTake take = HEARTH__WORKER_TAKE__INIT;
    take.shard = r->shard->segment;
    take.slot = r->slot;
    take.generation = r->generation;
    take.model = r->model->number;
    take.has_parked = r->parked != 0;
    take.parked = r->parked;
    r->told = post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_TAKE, &take) == 0;
    if (!r->told) {
        broker_alarm(b, b->now_ms + 10);
    }
}

static void take(struct broker *b, struct request *r, struct worker *w)
{
    struct journal_slot *slot = request_slot(r);
    /* The file that it began with must be the one that serves it. */
    if (!models_same_file(r->model, &slot->model)) {
        struct err why;
        err_set(&why, ERR_CHANGED, "model changed: %s is not the file that this request began with",
                r->model->file.name);
        request_end(b, r, JOURNAL_END_ERROR, &why);
        return;
    }
    if (!r->billed) {
        queue_charge(&b->queue, r->flow, (enum queue_priority)r->priority, slot->n_prompt);
        r->billed = true;
    }
    r->n_taken = r->charged = request_committed(r);
    r->worker = w->child;
    r->taken_ms = b->now_ms;
    r->yields = false;
    /* The owner before the state: whoever finds the state finds whose log it is. */
    atomic_store_explicit(&slot->owner, w->child, memory_order_release);
    request_move(b, r, REQUEST_PREFILL, NULL);
    say_take(b, r, w);
}

static bool is_suspect(const struct request *r)
{
    return request_slot(r)->deaths >= REQUEST_DEATHS_ALONE &&
           request_committed(r) <= request_slot(r)->committed_at_death;
}

/* Who runs and who waits for one model on one worker. */
struct view {
    uint32_t n_running; /* of this model */
    uint32_t n_all;     /* on this worker, of any model */
    uint32_t n_releasing;
    struct request *next;    /* of those that wait */
    struct request *aged;    /* of those that have waited too long, the longest */
    struct request *suspect; /* runs now */
};

static uint32_t running_of_flow(const struct broker *b, const struct worker *w, uint64_t flow)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        const struct request *r = b->requests.list[i];
        n += r->worker == w->child && r->flow == flow && !request_ended(r);
    }
    return n;
}

/* Its flow has nothing and it has waited so long that counters no longer matter: tokens say nothing of the time that turns of
 * models take between them. */
static bool is_aged(struct broker *b, const struct request *r, const struct worker *w)
{
    uint64_t when = r->waits_ms + queue_aged_ms((enum queue_priority)r->priority);
    if (b->now_ms < when) {
        broker_alarm(b, when);
        return false;
    }
    return running_of_flow(b, w, r->flow) == 0;
}

/* The higher priority, then who has waited longer. */
static bool is_older(const struct request *r, const struct request *than)
{
    bool up = queue_yields((enum queue_priority)than->priority, (enum queue_priority)r->priority);
    bool down = queue_yields((enum queue_priority)r->priority, (enum queue_priority)than->priority);
    return up != down ? up : r->waits_ms < than->waits_ms;
}

static struct view look(struct broker *b, const struct model *m, struct worker *w)
{
    struct view v = { 0 };
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->gone || !r->admitted || request_ended(r)) {
            continue;
        }
        if (r->worker == w->child) {
            v.n_all++;
            v.n_running += r->model == m;
            v.n_releasing += r->releasing;
            v.suspect = is_suspect(r) ? r : v.suspect;
            if (!r->told && r->model == m) {
                say_take(b, r, w);
            }
            continue;
        }
        if (r->model != m || r->state != REQUEST_QUEUED) {
            continue;
        }
        if (b->now_ms < r->not_before_ms) {
            broker_alarm(b, r->not_before_ms);
            continue;
        }
        workers_grant(b, w, r->shard->segment, true, false);
        if (!workers_granted(w, r->shard->segment)) {
            continue; /* the keeper's answer brings a turn */
        }
        if ((!v.aged || is_older(r, v.aged)) && is_aged(b, r, w)) {
            v.aged = r;
        }
        struct queue_place place = { r->flow, (enum queue_priority)r->priority, r->admit_seq };
        if (v.next) {
            struct queue_place best = { v.next->flow, (enum queue_priority)v.next->priority,
                                        v.next->admit_seq };
            if (!queue_before(&b->queue, &place, &best)) {
                continue;
            }
        }
        v.next = r;
    }
    v.next = v.aged ? v.aged : v.next;
    return v;
}

/* All sequences are taken and somebody waits: who gives one back? A lower priority; or a flow that has several while
 * the waiting flow has none; or, where every flow has one, that which is ahead of the waiting flow by a quantum. The latest
 * admitted of them, so that the oldest come to their end. */
static struct request *choose_victim(struct broker *b, const struct model *m, struct worker *w,
                                     const struct request *waits)
{
    struct request *victim = NULL;
    bool has_none = running_of_flow(b, w, waits->flow) == 0, lower_found = false;
    uint32_t most = 1;
    uint64_t ahead = queue_served(&b->queue, waits->flow) + QUEUE_QUANTUM;
    struct request *rich = NULL;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->worker != w->child || r->model != m || request_ended(r) || r->ending) {
            continue;
        }
        bool lower = r->priority == QUEUE_BATCH && waits->priority == QUEUE_INTERACTIVE;
        uint32_t n = running_of_flow(b, w, r->flow);
        if (lower) {
            if (!lower_found || r->admit_seq > victim->admit_seq) {
                victim = r;
            }
            lower_found = true;
        } else if (!lower_found && has_none && n >= 2 &&
                   (n > most || (n == most && victim && r->admit_seq > victim->admit_seq))) {
            victim = r;
            most = n;
        }
        uint64_t served = queue_served(&b->queue, r->flow);
        /* Who was taken by his age would lose his place to the counters again before he had anything of it. */
        bool just_came = r->by_age && request_committed(r) == r->n_taken &&
                         b->now_ms < r->taken_ms + QUEUE_PLACE_MS;
        if (has_none && served >= ahead && !just_came) {
            rich = r;
            ahead = served;
        }
    }
    return victim ? victim : rich;
}

/* For one that has waited too long: of those that have had their place for a while and are of no higher priority, the one whose flow
 * was served most. NULL: none yet. */
static struct request *choose_for_aged(struct broker *b, const struct model *m,
                                       const struct worker *w, const struct request *waits)
{
    struct request *victim = NULL;
    uint64_t most = 0;
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->worker != w->child || r->model != m || request_ended(r) || r->ending ||
            !queue_yields((enum queue_priority)r->priority, (enum queue_priority)waits->priority)) {
            continue;
        }
        if (b->now_ms < r->taken_ms + QUEUE_PLACE_MS) {
            broker_alarm(b, r->taken_ms + QUEUE_PLACE_MS);
        } else if (!victim || queue_served(&b->queue, r->flow) > most) {
            victim = r;
            most = queue_served(&b->queue, r->flow);
        }
    }
    return victim;
}

static void act_model(struct broker *b, struct model *m, struct worker *w)
{
    for (;;) {
        struct view v = look(b, m, w);
        if (!v.next || v.suspect) {
            return; /* a suspect runs alone until it commits something */
        }
        if (is_suspect(v.next) && v.n_all > 0) {
            for (uint32_t i = 0; i < b->requests.n; i++) {
                struct request *r = b->requests.list[i];
                if (r->worker == w->child && !r->gone && !request_ended(r)) {
                    route_release(b, r, "a suspect is to run alone");
                }
            }
            return;
        }
        if (v.n_running < m->info.n_sequences) {
            if (!parks_ready(b, v.next, w)) {
                return;
            }
            take(b, v.next, w);
            v.next->by_age = v.next == v.aged;
            continue;
        }
        struct request *victim = v.n_releasing ? NULL : choose_victim(b, m, w, v.next);
        if (!victim && !v.n_releasing && v.aged) {
            victim = choose_for_aged(b, m, w, v.aged);
            if (victim) {
                victim->yields = true;
            }
        }
        if (victim) {
            route_release(b, victim, "another flow waits for its turn");
        }
        return;
    }
}

void route_act(struct broker *b)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *m = b->models.list[i];
        struct worker *w = workers_find(&b->workers, m->worker);
        bool there = m->state == MODEL_RESIDENT || m->state == MODEL_LOADING;
        if (there && m->bind == BIND_BOUND && m->bind_segment == m->segment && m->info.known && w &&
            w->state == WORKER_READY && !b->stopping) {
            act_model(b, m, w);
        }
    }
}
