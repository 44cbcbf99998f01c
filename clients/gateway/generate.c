#include "clients/gateway/generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "clients/gateway/choice.h"
#include "clients/gateway/ids.h"
#include "clients/gateway/metrics.h"
#include "clients/gateway/server.h"

#define CANCEL_MS                                                                                  \
    2000 /* a cancelled request's end comes within; one that does not expires by itself */

struct run {
    struct choices all;
    struct exchange *x;
    struct choice *list; /* owned */
    size_t n;
    bool kept; /* its client may come back for it by its Idempotency-Key */
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* ---- beginning ---- */

/* The first one's id: what the client's key says, else a random one, so that the others' follow from it. */
static int choose_id(struct run *r, struct problem *p)
{
    uint8_t random[16];
    const char *wanted = exchange_wanted_id(r->x);
    r->kept = wanted != NULL;
    if (!wanted && getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) {
        return problem_set(p, 500, NULL, NULL, "no random bytes for an id");
    }
    for (size_t i = 0; !wanted && i < sizeof random; i++) {
        snprintf(r->all.id + 2 * i, 3, "%02x", random[i]);
    }
    if (wanted) {
        snprintf(r->all.id, sizeof r->all.id, "%s", wanted);
    }
    return 0;
}

static int submit(struct run *r, struct choice *c, struct problem *p)
{
    const struct generation *g = r->all.g;
    const struct generate_prompt *prompt = &g->prompts[c->index / g->n];
    struct hearth_ask ask = g->ask;
    struct hearth_error error;
    char id[33];
    ids_of_choice(r->all.id, c->index, id);
    ask.id = id;
    ask.detach =
        true; /* a dead gateway's streams go on; clients that leave are cancelled by hand */
    ask.flow = exchange_flow(r->x);
    ask.prompt = prompt->at;
    ask.prompt_len = prompt->len;
    ask.sampling.seed += c->index % g->n;
    c->request = hearth_submit(r->all.h, &ask, &error);
    if (!c->request && r->kept && strcmp(error.code, "refused") == 0) {
        return problem_set(p, 409, "Idempotency-Key", "idempotency_key_reused",
                           "this Idempotency-Key was used for another request");
    }
    if (!c->request && ask.kind == HEARTH_INFILL && strcmp(error.code, "unsupported") == 0) {
        return problem_set(p, 400, "suffix", "unsupported_parameter", "'suffix': %s", error.text);
    }
    if (!c->request) {
        return problem_of_error(p, &error);
    }
    c->begun = true;
    if (c->index % g->n == 0) {
        r->all.end.n_prompt += hearth_info(c->request)->n_prompt;
        exchange_spend(r->x, hearth_info(c->request)->n_prompt);
    }
    metrics_begin(hearth_info(c->request)->n_prompt);
    return 0;
}

/* The stream that this client had before something died, from its log's beginning: what the client has is passed over where
 * events are written. */
static int pick_up(struct run *r, const char *id, struct problem *p)
{
    struct hearth_error error;
    struct choice *c = &r->list[0];
    if (r->n != 1) {
        return problem_set(p, 400, "Last-Event-ID", "unsupported_parameter",
                           "a stream of several answers cannot be picked up");
    }
    snprintf(r->all.id, sizeof r->all.id, "%s", id);
    c->request = hearth_attach(r->all.h, id, 0, &error);
    if (!c->request && strcmp(error.code, "not_found") == 0) {
        return problem_set(p, 404, "Last-Event-ID", "stream_not_found",
                           "there is no stream %s any more", id);
    }
    if (!c->request) {
        return problem_of_error(p, &error);
    }
    c->begun = true;
    r->all.end.n_prompt = hearth_info(c->request)->n_prompt;
    metrics_begin(r->all.end.n_prompt);
    return 0;
}

static int begin(struct run *r, struct problem *p)
{
    uint64_t n_events;
    const char *id = exchange_last_event(r->x, &n_events);
    if (id ? pick_up(r, id, p) < 0 : choose_id(r, p) < 0 || submit(r, &r->list[0], p) < 0) {
        return -1;
    }
    for (size_t k = r->all.g->n; k < r->n; k += r->all.g->n) {
        if (submit(r, &r->list[k], p) < 0) {
            return -1;
        }
    }
    /* While the prompt is read, not before: it costs a rendering of its own. */
    if (r->all.g->chat && choices_learn_format(&r->all, p) < 0) {
        return -1;
    }
    const struct generate_events *events = r->all.events;
    return events->begun(events->context, hearth_info(r->list[0].request)) < 0
               ? problem_set(p, 499, NULL, NULL, "the client left")
               : 0;
}

/* ---- reading ---- */

/* The first answer to a prompt speaks: the others follow, with its work done. */
static int begin_others(struct run *r, size_t k, struct problem *p)
{
    size_t n = r->all.g->n;
    for (size_t i = k + 1; k % n == 0 && i < k + n; i++) {
        if (!r->list[i].begun && submit(r, &r->list[i], p) < 0) {
            return -1;
        }
    }
    return 0;
}

/* The answers that are at work: requests and which they are. */
static size_t live(const struct run *r, struct hearth_request **requests, size_t *which)
{
    size_t n = 0;
    for (size_t k = 0; k < r->n; k++) {
        if (r->list[k].request) {
            requests[n] = r->list[k].request;
            which[n++] = k;
        }
    }
    return n;
}

static int read_tokens(struct run *r, struct hearth_request **ended, struct problem *p)
{
    struct hearth_request *requests[GENERATE_CHOICES_MAX];
    size_t which[GENERATE_CHOICES_MAX], at = 0, n = live(r, requests, which);
    struct hearth_token token;
    struct hearth_error error;
    while (n > 0) {
        enum hearth_result got = hearth_next_of(requests, n, &at, &token, -1, &error);
        if (got != HEARTH_TOKEN) {
            return got == HEARTH_INTERRUPTED ? problem_set(p, 503, NULL, "stopping", "hearth stops")
                                             : problem_of_error(p, &error);
        }
        struct choice *c = &r->list[which[at]];
        int status = choice_take(&r->all, c, &token, p);
        exchange_spend(r->x, token.has_token);
        if (token.ended) {
            ended[c->index] = c->request;
            c->request = NULL;
            choice_clear(c);
        }
        if (status < 0 || begin_others(r, c->index, p) < 0) {
            return -1;
        }
        if (token.ended || r->all.g->n > 1) {
            n = live(r, requests, which);
        }
    }
    return 0;
}

/* ---- the end ---- */

/* Nobody wants it any more: its end is waited for, so that its place is free at once. */
static void cancel(struct hearth_request **request)
{
    struct hearth_token token = { 0 };
    struct hearth_error ignored;
    double until = now_ms() + CANCEL_MS;
    hearth_cancel(*request, &ignored);
    while (!token.ended && now_ms() < until &&
           hearth_next(*request, &token, CANCEL_MS, &ignored) == HEARTH_TOKEN) {
    }
    hearth_end(request);
}

/* What ended is kept until its answer has gone out: a gateway that dies before leaves it for who comes back. */
static void end_requests(struct run *r, struct hearth_request **ended)
{
    bool sent = exchange_delivered(r->x), comes_back = !exchange_left(r->x) || r->kept;
    /* An interruption was for the reading; the end is still to be said. */
    int interrupt_fd = hearth_interrupt_fd(r->all.h, -1);
    for (size_t k = 0; k < r->n; k++) {
        struct hearth_request **live = &r->list[k].request;
        if (ended[k] && (sent || !comes_back)) {
            hearth_end(&ended[k]);
        } else if (ended[k]) {
            hearth_leave(&ended[k]);
        } else if (*live && r->kept) {
            hearth_leave(live);
        } else if (*live) {
            cancel(live);
        }
    }
    hearth_interrupt_fd(r->all.h, interrupt_fd);
}

void generate(struct exchange *x, struct hearth *h, const struct generation *g,
              const struct generate_events *events)
{
    struct problem problem, *p = &problem;
    struct run r = { .all = { .h = h, .g = g, .events = events, .asked_ms = now_ms() },
                     .x = x,
                     .n = g->n_prompts * g->n };
    struct hearth_request *ended[GENERATE_CHOICES_MAX] = { NULL };
    r.list = calloc(r.n, sizeof *r.list);
    if (!r.list) {
        problem_set(p, 500, NULL, NULL, "no memory for %zu answers", r.n);
        problem_reply(x, p);
        return;
    }
    for (size_t k = 0; k < r.n; k++) {
        r.list[k].index = k;
    }
    int result = begin(&r, p);
    result = result == 0 ? read_tokens(&r, ended, p) : result;
    if (result == 0) {
        struct generate_end *end = &r.all.end;
        end->prompt_ms = end->n_tokens ? r.all.first_ms - r.all.asked_ms : 0;
        end->predicted_ms = r.all.last_ms - r.all.first_ms;
        exchange_worked(x);
        result = events->end(events->context, end) < 0
                     ? problem_set(p, 499, NULL, NULL, "the client left")
                     : 0;
    }
    if (result < 0) {
        problem_reply(x, p);
    }
    for (size_t k = 0; k < r.n; k++) {
        if (r.list[k].begun) {
            metrics_end(r.list[k].n_tokens > 0);
        }
        choice_clear(&r.list[k]);
    }
    end_requests(&r, ended);
    free(r.list);
}
