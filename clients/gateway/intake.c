/* What libmicrohttpd brings: a request's headers, judged at once; its body, up to a bound; then a hand gets it. Loop thread. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

#include "clients/gateway/ids.h"
#include "clients/gateway/pool.h"
#include "clients/gateway/problem.h"
#include "clients/gateway/server_parts.h"

static enum MHD_Result refuse(struct exchange *x)
{
    problem_reply(x, x->refusal);
    return server_answer(x);
}

static const char *header_of(struct MHD_Connection *connection, const char *name)
{
    return MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
}

/* "/v1/models/" -> "models". */
static void normal_path(const char *url, char path[SERVER_PATH_BYTES])
{
    while (*url == '/') {
        url++;
    }
    if (strncmp(url, "v1/", 3) == 0) {
        url += 3;
    }
    snprintf(path, SERVER_PATH_BYTES, "%s", url);
    for (size_t n = strlen(path); n > 0 && path[n - 1] == '/'; n--) {
        path[n - 1] = 0;
    }
}

/* The row of a path, and of its method if there is one of that: *found tells that the path is known. */
static const struct route *find_route(struct server *s, struct exchange *x, bool *found)
{
    const char *method = strcmp(x->method, "HEAD") == 0 ? "GET" : x->method;
    for (size_t i = 0; i < s->options.n_routes; i++) {
        const struct route *r = &s->options.routes[i];
        size_t n = strlen(r->path);
        bool rest = n > 0 && r->path[n - 1] == '/';
        if (rest ? strncmp(x->path, r->path, n) != 0 || !x->path[n]
                 : strcmp(x->path, r->path) != 0) {
            continue;
        }
        *found = true;
        if (strcmp(r->method, method) == 0) {
            snprintf(x->rest, sizeof x->rest, "%s", rest ? x->path + n : "");
            return r;
        }
    }
    return NULL;
}

struct framing {
    int n_lengths, n_codings;
    const char *length, *coding;
};

static enum MHD_Result count_framing(void *cls, enum MHD_ValueKind kind, const char *name,
                                     const char *value)
{
    struct framing *f = cls;
    (void)kind;
    if (strcasecmp(name, "Content-Length") == 0) {
        f->n_lengths++;
        f->length = value;
    }
    if (strcasecmp(name, "Transfer-Encoding") == 0) {
        f->n_codings++;
        f->coding = value;
    }
    return MHD_YES;
}

#define BAD_FRAMING                                                                                \
    "invalid_framing" /* where the next request begins is not known: the line closes */

/* One way to say where the body ends: a proxy before us might believe the other one. */
static int check_framing(struct exchange *x, struct problem *p)
{
    struct framing f = { 0 };
    MHD_get_connection_values(x->connection, MHD_HEADER_KIND, count_framing, &f);
    if (f.n_lengths + f.n_codings > 1) {
        exchange_header(x, "Connection", "close");
        return problem_set(p, 400, "Content-Length", BAD_FRAMING,
                           "more than one header says how long the body is");
    }
    if (f.coding && strcasecmp(f.coding, "chunked") != 0) {
        exchange_header(x, "Connection", "close");
        return problem_set(p, 501, "Transfer-Encoding", BAD_FRAMING,
                           "Transfer-Encoding '%.40s' is not known", f.coding);
    }
    if (f.n_lengths + f.n_codings == 0 && strcmp(x->method, "POST") == 0) {
        exchange_header(x, "Connection", "close");
        return problem_set(p, 411, "Content-Length", BAD_FRAMING,
                           "no header says how long the body is; a JSON object is wanted");
    }
    unsigned long long length = f.length ? strtoull(f.length, NULL, 10) : 0;
    return length > SERVER_BODY_MAX
               ? problem_set(p, 413, NULL, "request_too_large", "a body of %llu bytes, at most %u",
                             length, SERVER_BODY_MAX)
               : 0;
}

/* What makes a request the same as an earlier one: a key of its client's, or the last event that it has of a stream. */
static int check_ids(struct exchange *x, struct problem *p)
{
    const char *key = header_of(x->connection, "Idempotency-Key"),
               *last = header_of(x->connection, "Last-Event-ID"),
               *owner = x->quota ? x->quota->flow : header_of(x->connection, "Authorization");
    if (key && (!*key || strlen(key) > IDS_KEY_BYTES)) {
        return problem_set(p, 400, "Idempotency-Key", "invalid_value",
                           "an Idempotency-Key has 1 to %d bytes", IDS_KEY_BYTES);
    }
    if (key) {
        ids_of_key(owner ? owner : "", key, x->wanted_id);
    }
    if (last && ids_read_event(last, x->event_id, &x->n_events) < 0) {
        return problem_set(p, 400, "Last-Event-ID", "invalid_value",
                           "'%.60s' is no id of an event from here", last);
    }
    return 0;
}

/* What can be said from the headers alone. */
static int check(struct server *s, struct exchange *x, struct problem *p)
{
    struct guard *guard = s->options.guard;
    const char *origin = header_of(x->connection, "Origin");
    bool found = false;
    if (guard_host(guard, header_of(x->connection, "Host"), origin, p) < 0) {
        return -1;
    }
    snprintf(x->origin, sizeof x->origin, "%s", origin ? origin : "");
    if (strcmp(x->method, "OPTIONS") == 0) {
        return 0;
    }
    x->route = find_route(s, x, &found);
    if ((!x->route || !x->route->no_key) &&
        guard_key(guard, header_of(x->connection, "Authorization"),
                  header_of(x->connection, "x-api-key"), &x->quota, p) < 0) {
        return -1;
    }
    if (!x->route) {
        return found ? problem_set(p, 405, NULL, "method_not_allowed", "%s is not for /%s",
                                   x->method, x->path)
                     : problem_set(p, 404, NULL, "unknown_path", "there is no /%s here", x->path);
    }
    return check_ids(x, p) < 0 ? -1 : check_framing(x, p);
}

static struct exchange *exchange_create(struct server *s, struct MHD_Connection *connection,
                                        const char *url, const char *method)
{
    struct exchange *x = calloc(1, sizeof *x);
    uint8_t random[12];
    if (!x) {
        return NULL;
    }
    x->server = s;
    x->connection = connection;
    x->fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    x->refs = 1;
    x->born_ms = exchange_now_ms();
    pthread_mutex_init(&x->lock, NULL);
    exchange_init_condition(x);
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) {
        memcpy(random, &x->born_ms, sizeof x->born_ms); /* an id for logs, no secret */
    }
    int n = snprintf(x->id, sizeof x->id, "req_");
    for (size_t i = 0; i < sizeof random; i++) {
        n += snprintf(x->id + n, sizeof x->id - (size_t)n, "%02x", random[i]);
    }
    snprintf(x->method, sizeof x->method, "%s", method);
    normal_path(url, x->path);
    x->next = s->first;
    if (s->first) {
        s->first->prev = x;
    }
    s->first = x;
    struct problem problem;
    if (check(s, x, &problem) < 0 && (x->refusal = malloc(sizeof problem))) {
        *x->refusal = problem;
    }
    return x;
}

static enum MHD_Result take_body(struct exchange *x, const char *data, size_t *size)
{
    size_t n = *size;
    *size = 0;
    if (exchange_now_ms() - x->born_ms > SERVER_BODY_S * 1000) {
        return MHD_NO;
    }
    if (!x->refusal && x->body_len + n > SERVER_BODY_MAX) {
        x->refusal = malloc(sizeof *x->refusal);
        if (!x->refusal) {
            return MHD_NO;
        }
        problem_set(x->refusal, 413, NULL, "request_too_large", "a body of more than %u bytes",
                    SERVER_BODY_MAX);
    }
    if (x->refusal) {
        x->swallowed += n;
        return x->swallowed > SERVER_SWALLOW_MAX ? MHD_NO : MHD_YES;
    }
    if (x->body_len + n + 1 > x->body_room) {
        size_t room = 2 * x->body_room + n + 1024;
        char *larger = realloc(x->body, room);
        if (!larger) {
            return MHD_NO;
        }
        x->body = larger;
        x->body_room = room;
    }
    memcpy(x->body + x->body_len, data, n);
    x->body_len += n;
    x->body[x->body_len] = 0;
    return MHD_YES;
}

/* OPTIONS is answered everywhere; what a browser may do is said to pages of this machine only. */
static enum MHD_Result options_answer(struct exchange *x)
{
    const char *wanted = header_of(x->connection, "Access-Control-Request-Headers");
    exchange_header(x, "Allow", "GET, HEAD, POST, OPTIONS");
    if (x->origin[0]) {
        exchange_header(x, "Access-Control-Allow-Methods", "GET, HEAD, POST, OPTIONS");
        exchange_header(x, "Access-Control-Allow-Headers",
                        wanted && strlen(wanted) < 190 ? wanted : "authorization, content-type");
        exchange_header(x, "Access-Control-Max-Age", "600");
    }
    exchange_reply(x, 204, "text/plain", "", 0);
    return server_answer(x);
}

/* A place of its key's, for what a model works on. */
static int take_place(struct exchange *x, struct problem *p)
{
    if (!x->quota || x->route->quick) {
        return 0;
    }
    if (quota_begin(x->quota, exchange_now_ms(), p) < 0) {
        return -1;
    }
    x->counts = true;
    return 0;
}

/* The request is whole: a hand gets it. */
static enum MHD_Result begin(struct server *s, struct exchange *x)
{
    x->begun = true;
    if (x->refusal) {
        return refuse(x);
    }
    if (!x->route) {
        return options_answer(x);
    }
    struct problem problem;
    if (take_place(x, &problem) < 0) {
        problem_reply(x, &problem);
        return server_answer(x);
    }
    pthread_mutex_lock(&x->lock);
    x->refs++;
    pthread_mutex_unlock(&x->lock);
    if (!pool_give(x->route->quick ? s->quick : s->pool, x)) {
        struct exchange *not_taken = x;
        exchange_unref(&not_taken);
        problem_set(&problem, 429, NULL, "busy",
                    "so many requests wait already, of this key or of all; again in a second");
        problem_reply(x, &problem);
        return server_answer(x);
    }
    server_watch(x, true);
    return server_answer(x);
}

enum MHD_Result intake_request(void *cls, struct MHD_Connection *connection, const char *url,
                               const char *method, const char *version, const char *data,
                               size_t *size, void **context)
{
    struct server *s = cls;
    struct exchange *x = *context;
    (void)version;
    if (!x) {
        x = exchange_create(s, connection, url, method);
        *context = x;
        /* Refused from its headers alone: a large body need not come at all. */
        const char *length = x && x->refusal ? header_of(connection, "Content-Length") : NULL;
        if ((length && strtoull(length, NULL, 10) > SERVER_SWALLOW_MAX) ||
            (x && x->refusal && strcmp(x->refusal->code, BAD_FRAMING) == 0)) {
            x->begun = true;
            return refuse(x);
        }
        return x ? MHD_YES : MHD_NO;
    }
    if (*size > 0) {
        return take_body(x, data, size);
    }
    return x->begun ? server_answer(x) : begin(s, x);
}

void intake_completed(void *cls, struct MHD_Connection *connection, void **context,
                      enum MHD_RequestTerminationCode how)
{
    struct server *s = cls;
    struct exchange *x = *context;
    (void)connection;
    if (!x) {
        return;
    }
    *context = NULL;
    server_watch(x, false);
    pthread_mutex_lock(&x->lock);
    x->delivered = how == MHD_REQUEST_TERMINATED_COMPLETED_OK;
    x->connection = NULL;
    bool done = x->done;
    pthread_cond_broadcast(&x->completed);
    pthread_mutex_unlock(&x->lock);
    if (!done || !x->delivered) {
        exchange_leave(x); /* a hand that has not ended yet works for nobody */
    }
    if (x->prev) {
        x->prev->next = x->next;
    } else {
        s->first = x->next;
    }
    if (x->next) {
        x->next->prev = x->prev;
    }
    exchange_unref(&x);
}
