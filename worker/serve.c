#include "worker/serve.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>

#include "proto/log.h"
#include "worker/serve_parts.h"

/* ---- finding things ---- */

static bool same_name(struct sequence_name a, struct sequence_name b)
{
    return a.shard == b.shard && a.slot == b.slot && a.generation == b.generation;
}

struct resident *serve_find_resident(struct serve *s, uint64_t model)
{
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        if (s->resident[i].phase != RESIDENT_FREE && s->resident[i].options.model == model) {
            return &s->resident[i];
        }
    }
    return NULL;
}

struct sequence *serve_find_sequence(struct serve *s, struct sequence_name name,
                                     struct resident **owner)
{
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        struct resident *r = &s->resident[i];
        struct sequence *seq = r->phase == RESIDENT_READY ? resident_find(r, name) : NULL;
        if (seq) {
            *owner = r;
            return seq;
        }
    }
    return NULL;
}

bool serve_is_finished(const struct serve *s, struct sequence_name name)
{
    for (uint32_t i = 0; i < s->n_finished; i++) {
        if (same_name(s->finished[i].name, name)) {
            return true;
        }
    }
    return false;
}

bool serve_shard_in_use(void *arg, uint64_t segment)
{
    const struct serve *s = arg;
    for (uint32_t i = 0; i < s->n_finished; i++) {
        if (s->finished[i].name.shard == segment) {
            return true;
        }
    }
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        const struct resident *r = &s->resident[i];
        for (uint32_t k = 0; r->sequences && k < r->options.n_sequences; k++) {
            if (r->sequences[k].open && r->sequences[k].name.shard == segment) {
                return true;
            }
        }
    }
    return false;
}

void serve_close_resident(struct serve *s, struct resident *r)
{
    const struct weights *w = r->weights;
    resident_close(r);
    if (w) {
        kept_leave(&s->kept, w);
    }
}

/* ---- ends ---- */

/* The broker took a log back when it is no longer ours by name. */
void serve_sweep_finished(struct serve *s)
{
    for (uint32_t i = 0; i < s->n_finished;) {
        const struct journal_slot *slot = s->finished[i].slot;
        if (atomic_load_explicit(&slot->owner, memory_order_acquire) == s->options.child &&
            slot->generation == s->finished[i].name.generation) {
            i++;
        } else {
            s->finished[i] = s->finished[--s->n_finished];
        }
    }
}

static void finish(struct serve *s, struct resident *r, struct sequence *seq)
{
    const struct finished done = { .name = seq->name, .slot = seq->slot };
    bool lost = seq->lost;
    resident_release(r, seq);
    if (lost) {
        struct err why;
        err_set(&why, ERR_FAILED, "its end does not fit its log");
        serve_say_released(s, done.name, &why);
        return;
    }
    if (s->n_finished == SERVE_FINISHED_MAX) {
        log_warn("%u ends were not taken back by the broker: the oldest is not repeated",
                 s->n_finished);
        memmove(s->finished, s->finished + 1, --s->n_finished * sizeof *s->finished);
    }
    s->finished[s->n_finished++] = done;
    serve_say_finished(s, done.name);
}

/* After a step, or anything that may have written: wakes readers, reports ends. */
void serve_collect(struct serve *s, struct resident *r)
{
    for (uint32_t i = 0; i < r->options.n_sequences; i++) {
        struct sequence *seq = &r->sequences[i];
        if (seq->open && seq->spoke) {
            seq->spoke = false;
            readers_wake(&s->readers,
                         atomic_load_explicit(&seq->slot->reader, memory_order_acquire));
        }
        if (seq->open && seq->ended) {
            finish(s, r, seq);
        }
    }
    for (uint32_t i = 0; i < r->n_evaluations;) {
        struct resident_evaluation *v = &r->evaluations[i];
        if (!v->ended) {
            i++;
            continue;
        }
        serve_say_evaluated(s, v->work, &v->e, v->error.code != ERR_NONE ? &v->error : NULL);
        resident_evaluation_close(r, i);
    }
}

/* ---- the keeper and the signals ---- */

static void note_channel(void *context, const struct channel_msg *msg)
{
    struct serve *s = context;
    if (msg->op == CHANNEL_BROKER_NEW) {
        s->broker_new = true;
    } else if (msg->op == CHANNEL_TERM) {
        s->stop = true;
    }
}

static void drain_channel(struct serve *s)
{
    struct channel_msg msg;
    int fds[CHANNEL_FDS_MAX];
    struct err err;
    for (int i = 0; i < SERVE_MESSAGES_MAX; i++) {
        int got = channel_recv(s->options.channel_fd, &msg, fds, false, &err);
        if (got == 0) {
            return;
        }
        if (got < 0) {
            if (err.code == ERR_CLOSED || err.code == ERR_IO) {
                log_info("the keeper is gone");
                s->stop = true;
                return;
            }
            continue;
        }
        for (int k = 0; k < CHANNEL_FDS_MAX; k++) {
            if (fds[k] >= 0) {
                close(fds[k]);
            }
        }
        note_channel(s, &msg);
    }
}

static int take_from_keeper(void *arg, uint64_t segment, int fds[2], struct err *err)
{
    struct serve *s = arg;
    return channel_take(s->options.channel_fd, segment, fds, note_channel, s, err);
}

static void drain_signals(struct serve *s)
{
    struct signalfd_siginfo info;
    while (s->options.signal_fd >= 0 &&
           read(s->options.signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        s->stop |= info.ssi_signo == SIGTERM;
    }
}

/* A new broker knows nothing of what was asked and not yet answered: it asks again. */
static int reconnect(struct serve *s, struct err *err)
{
    s->broker_new = false;
    while (s->n_out > 0) {
        serve_outbox_pop(s);
    }
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        struct resident *r = &s->resident[i];
        if (r->phase == RESIDENT_READY) {
            serve_collect(s, r);
            while (r->n_evaluations > 0) {
                resident_evaluation_close(r, 0);
            }
            park_clear(&r->writing); /* the file was the last broker's */
        } else {
            serve_close_resident(s, r);
        }
    }
    while (s->n_out > 0) {
        serve_outbox_pop(s); /* ends are told after Welcome */
    }
    serve_sweep_finished(s);
    if (link_connect(&s->link, s->options.endpoint, err) < 0) {
        return -1;
    }
    if (s->epoch > 0) {
        log_info("a new broker: %u ends and what runs are told again", s->n_finished);
    }
    serve_say_hello(s);
    return 0;
}

/* ---- the loop ---- */

struct serve *serve_create(const struct serve_options *options, struct backend *backend,
                           struct err *err)
{
    struct serve *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(err, ERR_NO_MEMORY, "no memory for the worker's loop");
        return NULL;
    }
    s->options = *options;
    s->backend = s->kept.backend = backend;
    if (!s->options.segments.take) {
        s->options.segments = (struct segments){ .take = take_from_keeper, .arg = s };
    }
    s->shards.from = &s->options.segments;
    s->readers.from = &s->options.segments;
    if (reconnect(s, err) < 0) {
        serve_destroy(&s);
    }
    return s;
}

void serve_destroy(struct serve **servep)
{
    struct serve *s = *servep;
    if (!s) {
        return;
    }
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        serve_close_resident(s, &s->resident[i]);
    }
    kept_clear(&s->kept);
    while (s->n_out > 0) {
        serve_outbox_pop(s);
    }
    shards_clear(&s->shards);
    readers_clear(&s->readers);
    link_close(&s->link);
    free(s);
    *servep = NULL;
}

/* Moves on what is being bound. Returns true when something is still being read. */
static bool bind_residents(struct serve *s)
{
    bool reading = false;
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        struct resident *r = &s->resident[i];
        reading |= resident_waits(r);
        if (r->phase != RESIDENT_READING) {
            continue;
        }
        struct err err;
        int bound = resident_bind(r, &err);
        if (bound < 0) {
            serve_fail_resident(s, r, &err);
        } else if (bound > 0) {
            serve_say_need(s, r);
        } else {
            reading = true;
        }
    }
    return reading;
}

/* A step of one model that has work, in turn. */
static int step(struct serve *s, struct err *err)
{
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        struct resident *r = &s->resident[(s->turn + i) % SERVE_RESIDENTS_MAX];
        if (!resident_has_work(r)) {
            continue;
        }
        s->turn = (s->turn + i + 1) % SERVE_RESIDENTS_MAX;
        if (resident_step(r, err) < 0) {
            return err_wrap(err, "model %" PRIu64, r->options.model);
        }
        serve_collect(s, r);
        return 0;
    }
    return 0;
}

/* A piece of whatever is being written to a file. Returns true when there is more. */
static bool park_residents(struct serve *s)
{
    bool more = false;
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        struct resident *r = &s->resident[i];
        if (r->phase != RESIDENT_READY || !r->writing.state) {
            continue;
        }
        struct err err;
        uint64_t shard = r->state.rows[r->writing.seq].shard;
        int written = park_write(&r->writing, &err);
        if (written != 0) {
            serve_say_parked(s, r->options.model, r->park_segment, shard,
                             written < 0 ? &err : NULL);
        }
        more |= written == 0;
    }
    return more;
}

/* A piece of what leaves RAM. Returns true when there is more. */
static bool let_go(struct serve *s)
{
    uint64_t gone;
    bool more = kept_turn(&s->kept, &gone);
    if (gone) {
        serve_say_forgot(s, gone);
    }
    return more;
}

static bool has_work(const struct serve *s)
{
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        if (resident_has_work(&s->resident[i])) {
            return true;
        }
    }
    return false;
}

/* Ends of requests that were over before their first step. */
static void collect_all(struct serve *s)
{
    for (uint32_t i = 0; i < SERVE_RESIDENTS_MAX; i++) {
        if (s->resident[i].phase == RESIDENT_READY) {
            serve_collect(s, &s->resident[i]);
        }
    }
}

static int wait_for_events(struct serve *s, int timeout_ms, struct err *err)
{
    struct pollfd fds[] = {
        { .fd = link_fd(s->link), .events = POLLIN },
        { .fd = s->options.channel_fd, .events = POLLIN },
        { .fd = s->options.signal_fd, .events = POLLIN },
    };
    if (poll(fds, sizeof fds / sizeof fds[0], timeout_ms) < 0 && errno != EINTR) {
        return err_set_errno(err, ERR_IO, "poll");
    }
    return 0;
}

int serve_turn(struct serve *s, int timeout_ms, struct err *err)
{
    drain_signals(s);
    drain_channel(s);
    /* First: what still lies in the old link was said by a dead broker, or by the new one to a socket that is about to go. */
    if (s->broker_new && reconnect(s, err) < 0) {
        return -1;
    }
    bool drained = serve_drain_link(s);
    if (s->stop) {
        return 0;
    }
    bool reading = bind_residents(s);
    reading |= let_go(s);
    if (step(s, err) < 0) {
        return -1;
    }
    collect_all(s);
    bool parking = park_residents(s);
    serve_outbox_flush(s);
    /* Sending may have swallowed the descriptor's edge: what has come since is looked for before sleeping. */
    uint64_t n_heard = s->n_heard;
    drained = drained && serve_drain_link(s);
    drained = drained &&
              n_heard == s->n_heard; /* what has just come is acted on by a turn, not by sleeping */
    serve_outbox_flush(s);
    int most = !drained || s->broker_new || has_work(s) || parking || s->n_out > 0 ? 0
               : reading ? SERVE_READING_MS
                         : SERVE_IDLE_MS;
    if (s->n_out > 0 && !has_work(s) && !parking) {
        most = SERVE_READING_MS; /* the line is full: not in a hurry */
    }
    return wait_for_events(s, timeout_ms >= 0 && timeout_ms < most ? timeout_ms : most, err) < 0
               ? -1
               : 1;
}
