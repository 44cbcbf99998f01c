#include "clients/gateway/metrics.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/gateway/exchange.h"
#include "clients/gateway/pool.h"
#include "clients/gateway/problem.h"
#include "clients/gateway/text.h"
#include "clients/hearth.h"

/* Bounds of the histograms, seconds. */
static const double first_bounds[] = { 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300 };
static const double next_bounds[] = { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1 };
#define BOUNDS_MAX 12

struct histogram {
    uint64_t counts[BOUNDS_MAX + 1], n;
    double sum;
};

static struct {
    pthread_mutex_t lock;
    struct pool *pool;
    uint64_t answers[6]; /* by the status' first digit */
    uint64_t n_requests, n_prompt, n_cached, n_tokens;
    struct histogram first, next;
    uint32_t n_live; /* generations that have begun to speak */
    uint64_t last_token_ms;
    uint64_t stuck_ms;              /* so long without a token is stuck */
    uint64_t standing, standing_ms; /* how far everybody's generations were, and since when */
} all = { .lock = PTHREAD_MUTEX_INITIALIZER, .stuck_ms = METRICS_STUCK_S * 1000 };

static void observe(struct histogram *h, const double *bounds, size_t n, double seconds)
{
    size_t i = 0;
    while (i < n && seconds > bounds[i]) {
        i++;
    }
    h->counts[i]++;
    h->n++;
    h->sum += seconds;
}

void metrics_pool(struct pool *pool)
{
    pthread_mutex_lock(&all.lock);
    all.pool = pool;
    pthread_mutex_unlock(&all.lock);
}

void metrics_answer(unsigned status)
{
    pthread_mutex_lock(&all.lock);
    all.answers[status / 100 < 6 ? status / 100 : 5]++;
    pthread_mutex_unlock(&all.lock);
}

void metrics_begin(uint32_t n_prompt)
{
    pthread_mutex_lock(&all.lock);
    all.n_requests++;
    all.n_prompt += n_prompt;
    pthread_mutex_unlock(&all.lock);
}

void metrics_first(double ms, uint32_t n_cached)
{
    pthread_mutex_lock(&all.lock);
    observe(&all.first, first_bounds, sizeof first_bounds / sizeof *first_bounds, ms / 1e3);
    all.n_tokens++;
    all.n_cached += n_cached;
    all.n_live++;
    all.last_token_ms = exchange_now_ms();
    pthread_mutex_unlock(&all.lock);
}

void metrics_next(double ms)
{
    pthread_mutex_lock(&all.lock);
    observe(&all.next, next_bounds, sizeof next_bounds / sizeof *next_bounds, ms / 1e3);
    all.n_tokens++;
    all.last_token_ms = exchange_now_ms();
    pthread_mutex_unlock(&all.lock);
}

void metrics_end(bool had_tokens)
{
    pthread_mutex_lock(&all.lock);
    all.n_live -= had_tokens;
    pthread_mutex_unlock(&all.lock);
}

void metrics_stuck_after(uint32_t seconds)
{
    all.stuck_ms = seconds * 1000ull;
}

/* Where all requests of this hearth that generate stand, as one number; 0: none does. */
static uint64_t standing_of(const struct json *status)
{
    const struct json *requests = json_find(status, "requests");
    uint64_t sum = 0;
    for (size_t i = 0; i < json_len(requests); i++) {
        const struct json *r = json_at(requests, i), *state = json_find(r, "state");
        if (json_kind(state) == JSON_STRING && strcmp(json_as_str(state, NULL), "decode") == 0) {
            sum = sum * 1000003 + (uint64_t)json_as_int(json_find(r, "completion_tokens")) + 1;
        }
    }
    return sum;
}

/* Milliseconds since any generation of ours, or of any other client as far as we have looked, went on; 0: none is in its midst. */
static uint64_t silent_ms(const struct json *status)
{
    uint64_t now = exchange_now_ms(), standing = standing_of(status);
    pthread_mutex_lock(&all.lock);
    uint64_t own = all.n_live ? now - all.last_token_ms : 0;
    if (standing != all.standing) {
        all.standing = standing;
        all.standing_ms = now;
    }
    uint64_t others = standing ? now - all.standing_ms : 0;
    pthread_mutex_unlock(&all.lock);
    return own > others ? own : others;
}

/* ---- the page ---- */

__attribute__((format(printf, 2, 3))) static void say(struct text *t, const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (n > 0) {
        text_add(t, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
    }
}

static void say_head(struct text *t, const char *name, const char *type, const char *help)
{
    say(t, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void say_histogram(struct text *t, const char *name, const char *help,
                          const struct histogram *h, const double *bounds, size_t n)
{
    uint64_t below = 0;
    say_head(t, name, "histogram", help);
    for (size_t i = 0; i < n; i++) {
        below += h->counts[i];
        say(t, "%s_bucket{le=\"%g\"} %llu\n", name, bounds[i], (unsigned long long)below);
    }
    say(t, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum %.6f\n%s_count %llu\n", name,
        (unsigned long long)h->n, name, h->sum, name, (unsigned long long)h->n);
}

static void say_own(struct text *t)
{
    int n_busy = 0, n_waiting = 0;
    pthread_mutex_lock(&all.lock);
    const struct {
        const char *name, *help;
        uint64_t value;
    } counters[] = {
        { "hearth_http_generations_total", "generations admitted", all.n_requests },
        { "hearth_http_prompt_tokens_total", "prompt tokens of them", all.n_prompt },
        { "hearth_http_cached_tokens_total", "prompt tokens not computed again", all.n_cached },
        { "hearth_http_predicted_tokens_total", "tokens generated", all.n_tokens },
    };
    for (size_t i = 0; i < sizeof counters / sizeof *counters; i++) {
        say_head(t, counters[i].name, "counter", counters[i].help);
        say(t, "%s %llu\n", counters[i].name, (unsigned long long)counters[i].value);
    }
    say_head(t, "hearth_http_responses_total", "counter", "answers by their status");
    for (int i = 2; i < 6; i++) {
        say(t, "hearth_http_responses_total{code=\"%dxx\"} %llu\n", i,
            (unsigned long long)all.answers[i]);
    }
    say_histogram(t, "hearth_http_time_to_first_token_seconds",
                  "from the request to its first token", &all.first, first_bounds,
                  sizeof first_bounds / sizeof *first_bounds);
    say_histogram(t, "hearth_http_inter_token_seconds", "between the commits of two tokens",
                  &all.next, next_bounds, sizeof next_bounds / sizeof *next_bounds);
    struct pool *pool = all.pool;
    if (pool) {
        pool_load(pool, &n_busy, &n_waiting);
    }
    pthread_mutex_unlock(&all.lock);
    say_head(t, "hearth_http_requests_processing", "gauge", "requests that a hand works on");
    say(t, "hearth_http_requests_processing %d\n", n_busy);
    say_head(t, "hearth_http_requests_deferred", "gauge", "requests that wait for a hand");
    say(t, "hearth_http_requests_deferred %d\n", n_waiting);
}

/* A label's value: names come from files. */
static void label_of(const struct json *object, const char *key, char out[128])
{
    const char *text = json_kind(json_find(object, key)) == JSON_STRING
                           ? json_as_str(json_find(object, key), NULL)
                           : "";
    size_t n = 0;
    for (; *text && n < 126; text++) {
        if (*text == '"' || *text == '\\') {
            out[n++] = '\\';
        }
        out[n++] = *text == '\n' ? ' ' : *text;
    }
    out[n] = 0;
}

static long long int_of(const struct json *object, const char *key)
{
    return (long long)json_as_int(json_find(object, key));
}

/* Requests of all clients by what they do: the queue's length among them. */
static void say_requests(struct text *t, const struct json *requests)
{
    static const char *const states[] = { "rendering", "queued", "prefill", "decode" };
    say_head(t, "hearth_requests", "gauge", "requests of all clients by their state");
    for (size_t k = 0; k < sizeof states / sizeof states[0]; k++) {
        size_t n = 0;
        for (size_t i = 0; i < json_len(requests); i++) {
            const struct json *state = json_find(json_at(requests, i), "state");
            n += json_kind(state) == JSON_STRING &&
                 strcmp(json_as_str(state, NULL), states[k]) == 0;
        }
        say(t, "hearth_requests{state=\"%s\"} %zu\n", states[k], n);
    }
}

static void say_device(struct text *t, const struct json *device)
{
    say(t, "hearth_memory_bytes{owner=\"device\",what=\"used\"} %lld\n",
        int_of(device, "memory_used_bytes"));
    say(t, "hearth_memory_bytes{owner=\"device\",what=\"budget\"} %lld\n",
        int_of(device, "memory_bytes"));
}

static void say_status(struct text *t, const struct json *status)
{
    char a[128], b[128];
    const struct json *list = json_find(status, "processes"), *m = json_find(status, "memory");
    say_head(t, "hearth_ready", "gauge", "1: every device has its worker");
    say(t, "hearth_ready %d\n", json_as_bool(json_find(status, "ready")));
    say_head(t, "hearth_process_restarts_total", "counter", "restarts of a process");
    for (size_t i = 0; i < json_len(list); i++) {
        label_of(json_at(list, i), "role", a);
        say(t, "hearth_process_restarts_total{role=\"%s\",index=\"%zu\"} %lld\n", a, i,
            int_of(json_at(list, i), "restarts"));
    }
    say_head(t, "hearth_swaps_total", "counter",
             "models sent away for another's sake, since the broker began");
    say(t, "hearth_swaps_total %lld\n", int_of(status, "swaps"));
    say_head(t, "hearth_memory_bytes", "gauge", "memory by owner");
    say(t, "hearth_memory_bytes{owner=\"models\",what=\"used\"} %lld\n",
        int_of(m, "ram_used_bytes"));
    say(t, "hearth_memory_bytes{owner=\"models\",what=\"budget\"} %lld\n",
        int_of(m, "ram_budget_bytes"));
    say(t, "hearth_memory_bytes{owner=\"journal\",what=\"used\"} %lld\n",
        int_of(m, "journal_used_bytes"));
    say(t, "hearth_memory_bytes{owner=\"journal\",what=\"budget\"} %lld\n",
        int_of(m, "journal_bytes"));
    say_device(t, json_find(status, "device"));
    list = json_find(status, "models");
    say_head(t, "hearth_model_requests", "gauge", "requests of a model, by its state");
    for (size_t i = 0; i < json_len(list); i++) {
        label_of(json_at(list, i), "name", a);
        label_of(json_at(list, i), "state", b);
        say(t, "hearth_model_requests{model=\"%s\",state=\"%s\"} %lld\n", a, b,
            int_of(json_at(list, i), "requests"));
    }
    say_requests(t, json_find(status, "requests"));
    say_head(t, "hearth_last_token_age_seconds", "gauge",
             "since a generation went on; 0: none is in its midst");
    say(t, "hearth_last_token_age_seconds %.3f\n", (double)silent_ms(status) / 1e3);
}

/* The broker's status as JSON, or NULL with a problem. */
static struct json *status_of(struct hearth *h, struct problem *p)
{
    struct hearth_error error;
    struct err err;
    char *text = hearth_status(h, false, &error);
    struct json *status = text ? json_parse(text, strlen(text), &err) : NULL;
    if (!status) {
        text ? problem_set(p, 500, NULL, NULL, "%s", err.text) : problem_of_error(p, &error);
    }
    free(text);
    return status;
}

void metrics_page(struct exchange *x, struct hearth *h)
{
    struct text t = { 0 };
    struct problem ignored;
    struct json *status = status_of(h, &ignored); /* without it, our own numbers still stand */
    say_own(&t);
    say_head(&t, "hearth_up", "gauge", "1: the broker answers");
    say(&t, "hearth_up %d\n", status != NULL);
    if (status) {
        say_status(&t, status);
    }
    exchange_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", text_str(&t), t.len);
    json_destroy(&status);
    text_clear(&t);
}

void metrics_health(struct exchange *x, struct hearth *h)
{
    struct problem p;
    struct json *status = status_of(h, &p);
    uint64_t silent = silent_ms(status);
    if (!status) {
        problem_reply(x, &p);
    } else if (!json_as_bool(json_find(status, "ready"))) {
        problem_set(&p, 503, NULL, "not_ready", "Loading model");
        problem_reply(x, &p);
    } else if (silent > all.stuck_ms) {
        problem_set(&p, 503, NULL, "stuck", "the engine has said nothing for %llu s",
                    (unsigned long long)silent / 1000);
        problem_reply(x, &p);
    } else {
        struct json *o = json_new_object();
        json_set(o, "status", json_new_str("ok", 2));
        json_set(o, "last_token_age_ms", json_new_int((int64_t)silent));
        exchange_reply_json(x, 200, o);
    }
    json_destroy(&status);
}
