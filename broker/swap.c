#include "broker/swap.h"

#include "broker/broker.h"
#include "proto/log.h"

/* ---- bytes ---- */

static uint64_t weights_bytes(const struct model *m)
{
    return models_ram_bytes(m);
}

/* State that a model will want: what it took the last time, else half its weights, less where the budget is small. */
static uint64_t state_promised(const struct broker *b, const struct model *m)
{
    uint64_t weights = weights_bytes(m), budget = lend_budget(b);
    uint64_t half = m->window.on ? m->file.size_bytes / 2 : weights / 2;
    if (m->state_want) {
        return m->state_want;
    }
    return weights + half <= budget ? half : budget > weights ? budget - weights : 0;
}

static uint64_t state_held(const struct broker *b, const struct model *m)
{
    return m->state_segment ? m->state_bytes : m->swap.in_turn ? state_promised(b, m) : 0;
}

/* All that a model takes. */
static uint64_t held(const struct broker *b, const struct model *m)
{
    return weights_bytes(m) + state_held(b, m) + models_spilled(m);
}

/* Whose turn it is keeps its room while a loader that was killed is born again. */
static bool holds_room(const struct model *m)
{
    return m->segment || m->swap.in_turn;
}

uint64_t swap_used(const struct broker *b)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *m = b->models.list[i];
        used += holds_room(m) ? held(b, m) : 0;
    }
    return used;
}

uint64_t swap_used_after(const struct broker *b)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *m = b->models.list[i];
        bool leaves = m->unload || m->state == MODEL_DRAINING;
        used += holds_room(m) && !leaves ? held(b, m) : 0;
    }
    return used;
}

static uint64_t left_of(const struct broker *b, uint64_t used)
{
    uint64_t budget = lend_budget(b);
    return budget > used ? budget - used : 0;
}

uint64_t swap_state_bytes(const struct broker *b, const struct model *m)
{
    uint64_t promised = state_promised(b, m);
    uint64_t left = left_of(b, swap_used(b)) + state_held(b, m);
    /* What the budget leaves, but never so much that a second model of this size finds no room. */
    return left / 2 > promised ? left / 2 : promised < left ? promised : left;
}

/* Claimed by another than m: only the first claims. */
static uint64_t claimed(const struct broker *b, const struct model *m)
{
    const struct model *first = b->models.first;
    return first && first != m ? first->claim : 0;
}

/* ---- who waits ---- */

void swap_begin(struct broker *b)
{
    struct models *t = &b->models;
    struct model *last = t->first;
    t->first = NULL;
    for (uint32_t i = 0; i < t->n; i++) {
        struct model *m = t->list[i];
        struct swap_model *s = &m->swap;
        s->in_turn &= m->want_warm || m->state != MODEL_COLD;
        if (!m->want_warm || s->in_turn) {
            s->wants_since_ms = 0;
            m->claim = 0;
        } else if (s->wants_since_ms == 0) {
            s->wants_since_ms = b->now_ms;
        }
        bool serves = m->state == MODEL_RESIDENT || (m->state == MODEL_WARM && !m->want_resident);
        if (s->in_turn && s->turn_ms == 0 && serves) {
            s->turn_ms = b->now_ms;
        }
        if (s->wants_since_ms && !m->unload &&
            (!t->first || s->wants_since_ms < t->first->swap.wants_since_ms ||
             (m == last && s->wants_since_ms == t->first->swap.wants_since_ms))) {
            t->first = m;
        }
    }
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->list[i] != t->first) {
            t->list[i]->claim = 0;
        }
    }
}

/* ---- whose turn is over ---- */

/* It takes a part of the memory that another's worker has. */
static bool is_on(const struct broker *b, const struct model *o, uint32_t child)
{
    const struct worker *w = NULL;
    for (uint32_t i = 0; i < b->workers.n && o->bind != BIND_NONE; i++) {
        w = b->workers.list[i].child == o->worker ? &b->workers.list[i] : w;
    }
    return w && w->own_memory && (!child || child == o->worker);
}

/* m needs a device for itself, and there is none without another model. */
static bool device_taken(const struct broker *b, const struct model *m)
{
    uint32_t n_devices = 0, n_taken = 0;
    for (uint32_t i = 0; i < b->workers.n && m->swap.alone; i++) {
        const struct worker *w = &b->workers.list[i];
        bool taken = false;
        for (uint32_t k = 0; k < b->models.n && w->child; k++) {
            const struct model *o = b->models.list[k];
            taken |= o != m && is_on(b, o, w->child);
        }
        n_devices += w->own_memory;
        n_taken += w->own_memory && taken;
    }
    return n_taken > 0 && n_taken == n_devices;
}

bool swap_device_full(struct broker *b, struct model *m)
{
    bool somebody = false;
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *o = b->models.list[i];
        somebody |= o != m && !o->pinned && is_on(b, o, m->worker);
    }
    if (somebody) {
        m->swap.alone = true;
        m->swap.in_turn = false;
    }
    return somebody;
}

static bool may_leave(const struct model *m)
{
    return (m->state == MODEL_WARM || m->state == MODEL_RESIDENT) && !m->pinned && !m->unload;
}

/* What bringing m costs everybody. */
static uint64_t cost_ms(const struct broker *b, const struct model *m)
{
    uint64_t rate = b->models.load_rate ? b->models.load_rate : SWAP_RATE;
    uint64_t read = m->segment ? 0 : m->file.size_bytes / (rate / 1000 + 1);
    return SWAP_BIND_MS + read;
}

/* Whether o has had its turn, for m to have one; else *alarm: when to look again, if that is earlier. */
static bool turn_is_over(const struct broker *b, const struct model *o, const struct model *m,
                         uint64_t *alarm)
{
    const struct swap_model *s = &o->swap;
    if (!s->in_turn) {
        return o->state == MODEL_WARM &&
               o->bind == BIND_NONE; /* read ahead, and not first any more */
    }
    bool serves = o->state == MODEL_RESIDENT ||
                  (o->state == MODEL_WARM && o->bind == BIND_NONE && !o->want_resident);
    if (!serves || s->turn_ms == 0) {
        return false;
    }
    uint64_t set_aside = (uint64_t)o->n_running + o->n_waiting;
    uint64_t waited_max = (uint64_t)b->config.swap_wait_max_s * 1000;
    uint64_t worth = m->n_waiting ? 2 * cost_ms(b, m) * set_aside / m->n_waiting : waited_max;
    uint64_t when = m->swap.wants_since_ms + (worth < waited_max ? worth : waited_max);
    uint64_t stays = s->turn_ms + (uint64_t)b->config.min_residency_s * 1000;
    when = stays > when ? stays : when;
    if (s->served < SWAP_SERVED_MIN && s->turn_ms + SWAP_GRACE_MS > when) {
        when = s->turn_ms + SWAP_GRACE_MS;
    }
    if (b->now_ms < when) {
        *alarm = when < *alarm ? when : *alarm;
        return false;
    }
    return true;
}

/* Sends somebody away for m, the first. Returns false when nobody can go, now or later. */
static bool make_way(struct broker *b, struct model *m)
{
    struct models *t = &b->models;
    struct model *victim = NULL;
    const char *why = "room is needed for another model";
    uint64_t alarm = UINT64_MAX;
    bool somebody = false, device = device_taken(b, m);
    for (uint32_t i = 0; i < t->n; i++) {
        struct model *o = t->list[i];
        somebody |= o != m && o->segment && !o->pinned;
        if (o->state == MODEL_DRAINING || (o->unload && o->segment)) {
            return true; /* room is being made already: when it is there, a turn comes */
        }
        if (o != m && may_leave(o) && (!device || is_on(b, o, 0)) && !o->want_warm &&
            (!victim || o->used_ms < victim->used_ms)) {
            victim = o;
        }
    }
    for (uint32_t i = 0; !victim && i < t->n; i++) {
        struct model *o = t->list[i];
        if (o != m && may_leave(o) && (!device || is_on(b, o, 0)) &&
            turn_is_over(b, o, m, &alarm)) {
            victim = o;
            why = "its turn is over, another model has waited for its own";
        }
    }
    if (victim) {
        if (victim->state == MODEL_RESIDENT) {
            victim->swap.evicted_for = m->number;
        }
        models_evict(b, victim, true, why);
        broker_alarm(b, b->now_ms);
    } else {
        broker_alarm(b, alarm > b->now_ms + 1000 ? b->now_ms + 1000 : alarm);
    }
    return somebody;
}

/* Who is wanted only because it was there before claims nothing. */
static bool gives_up(struct model *m)
{
    bool idle = m->swap.come_back && !m->pinned && m->n_waiting + m->n_running == 0;
    m->swap.come_back = false;
    return idle;
}

/* ---- room ---- */

static int load_room(struct broker *b, struct model *m, struct err *err)
{
    uint64_t budget = lend_budget(b), most = b->config.ram_budget,
             used = swap_used(b) + claimed(b, m), kept = 0;
    uint64_t weights = m->window.on ? weights_bytes(m) : m->file.size_bytes;
    uint64_t need = weights + m->state_want, whole = weights + state_promised(b, m);
    const char *how = m->window.on ? ", by a window," : ",";
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *o = b->models.list[i];
        kept += o != m && o->pinned && o->segment ? weights_bytes(o) + state_held(b, o) : 0;
    }
    if (need + kept > most) {
        return err_set(err, ERR_NO_FIT, "model %s needs %.1f MiB of RAM%s the budget is %.1f MiB%s",
                       m->file.name, (double)need / 0x1p20, how, (double)most / 0x1p20,
                       kept ? " and pinned models hold some of it" : "");
    }
    if (need > budget) {
        m->claim = 0;
        return 0; /* memory is lent: when it comes back, a turn comes */
    }
    /* Its loader was killed, or it came by a window and its worker was: the room is its own, unless a recovered state took more. */
    if (m->swap.in_turn) {
        m->swap.in_turn = false;
        used = swap_used(b);
        if (used + need <= budget && need <= models_available(&b->models)) {
            m->swap.in_turn = true;
            return 1;
        }
        used += claimed(b, m);
    }
    whole = whole + kept > budget ? need : whole;
    if (m->window.on && device_taken(b, m)) { /* its loader would only wait for the device */
        if (b->models.first == m && !gives_up(m)) {
            m->claim = whole;
            make_way(b, m);
        }
        return 0;
    }
    uint64_t available = models_available(&b->models);
    if (used + whole <= budget && need <= available) {
        m->swap.in_turn = true;
        m->claim = 0;
        return 1;
    }
    if (b->models.first != m || gives_up(m)) {
        return 0;
    }
    if (!m->window.on && used + weights <= budget && need <= available) {
        return 1; /* read ahead, beside those who compute; for its state it still waits */
    }
    m->claim = whole;
    if (!make_way(b, m) && need > available) {
        m->claim = 0;
        return err_set(err, ERR_NO_FIT, "model %s needs %.1f MiB of RAM%s %.1f MiB are available",
                       m->file.name, (double)need / 0x1p20, how, (double)available / 0x1p20);
    }
    return 0;
}

int swap_load_room(struct broker *b, struct model *m, struct err *err)
{
    enum window_may may = window_may(b);
    bool again = m->window.on && m->swap.in_turn; /* the room for its window is its own still */
    m->window = (struct model_window){ 0 };
    if (may == WINDOW_MUST || (may == WINDOW_MAY && again)) {
        window_choose(b, m);
        return load_room(b, m, err);
    }
    if (may == WINDOW_UNKNOWN && b->config.load_window != CONFIG_WINDOW_AUTO) {
        return 0; /* when a worker says what it is, a turn comes */
    }
    int room = load_room(b, m, err);
    bool lent = m->file.size_bytes + m->state_want > lend_budget(b);
    if (room > 0 || (room == 0 && !lent) || may == WINDOW_NO) {
        return room;
    }
    if (may == WINDOW_UNKNOWN) {
        return 0;
    }
    window_choose(b, m);
    if (weights_bytes(m) < m->file.size_bytes) {
        return load_room(b, m, err);
    }
    m->window = (struct model_window){ 0 };
    return room;
}

bool swap_bind_room(struct broker *b, struct model *m)
{
    if (m->swap.in_turn) {
        return true;
    }
    bool taken = device_taken(b, m);
    uint64_t used = swap_used(b) + claimed(b, m), promised = state_promised(b, m);
    bool alone = true;
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *o = b->models.list[i];
        alone &= o == m || !o->segment || o->pinned;
    }
    if (!taken && (used + promised <= lend_budget(b) || alone)) {
        m->swap.in_turn = true;
        m->swap.wants_since_ms = 0;
        m->claim = 0;
        return true;
    }
    if (b->models.first == m && !gives_up(m)) {
        m->claim = promised;
        make_way(b, m);
    }
    return false;
}

bool swap_keeps_weights(const struct broker *b, const struct model *m)
{
    const struct model *first = b->models.first;
    return m->swap.evicting && !m->window.on && first && first != m && first->claim > 0 &&
           swap_used(b) - state_held(b, m) + first->claim <= lend_budget(b) &&
           first->claim <= models_available(&b->models) + m->state_bytes;
}

/* ---- what becomes of them ---- */

void swap_left(struct model *m)
{
    struct swap_model *s = &m->swap;
    s->in_turn = s->evicting = false;
    s->turn_ms = s->served = s->wants_since_ms = 0;
    m->claim = 0;
}

void swap_interrupted(struct model *m)
{
    struct swap_model *s = &m->swap;
    s->evicting = false;
    s->turn_ms = s->served = 0;
    if (!s->in_turn && s->wants_since_ms) {
        m->claim = m->file.size_bytes; /* it was read ahead: that room stays for the first */
    }
}

void swap_recovered(struct model *m, uint64_t spoke_ms, uint64_t born_ms)
{
    struct swap_model *s = &m->swap;
    if (spoke_ms) {
        s->wants_since_ms = s->spoke && s->wants_since_ms > spoke_ms ? s->wants_since_ms : spoke_ms;
        s->spoke = true;
    } else if (!s->spoke && (!s->wants_since_ms || born_ms < s->wants_since_ms)) {
        s->wants_since_ms = born_ms;
    }
}

void swap_adopted(struct broker *b)
{
    uint64_t newest = 0, half = SWAP_GRACE_MS / 2;
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct swap_model *s = &b->models.list[i]->swap;
        newest = s->spoke && !s->in_turn && s->wants_since_ms > newest ? s->wants_since_ms : newest;
    }
    uint64_t least = b->now_ms > half ? b->now_ms - half : 1;
    for (uint32_t i = 0; i < b->models.n && newest; i++) {
        struct swap_model *s = &b->models.list[i]->swap;
        s->turn_ms = s->in_turn ? newest > least ? newest : least : 0;
    }
}

void swap_arrived(struct broker *b, struct model *m)
{
    m->swap.evicted_for = 0;
    m->swap.come_back = false;
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *o = b->models.list[i];
        if (o->swap.evicted_for == m->number) {
            o->swap.evicted_for = 0;
        }
    }
}

void swap_failed(struct broker *b, struct model *m)
{
    m->swap.come_back = false;
    for (uint32_t i = 0; i < b->models.n; i++) {
        struct model *o = b->models.list[i];
        if (o->swap.evicted_for == m->number) {
            o->swap.evicted_for = 0;
            o->swap.come_back = o != m;
            log_info("model %s comes back: %s, for which it left, has failed", o->file.name,
                     m->file.name);
        }
    }
}
