/* Reading tokens, of one request or of several: the journal is read in place; the broker is only asked when the connection
 * is new. */
#include "clients/request.h"

static void show(struct hearth_request *r, struct hearth_token *token)
{
    const struct journal_record *record = &r->view.record;
    *token = (struct hearth_token){
        .seq = record->seq,
        .has_token = record->flags & JOURNAL_TOKEN,
        .id = record->token,
        .logprob = record->logprob,
        .bytes = (const char *)r->view.bytes,
        .n_bytes = r->view.n_bytes,
        .alternatives = r->alternatives,
        .n_alternatives = record->n_alternatives,
        .n_cached = record->n_cached,
        .time_us = record->time_us,
        .ended = record->flags & JOURNAL_ENDED,
    };
    for (uint32_t i = 0; i < record->n_alternatives; i++) {
        r->alternatives[i] = (struct hearth_alternative){ r->view.alternatives[i].token,
                                                          r->view.alternatives[i].logprob };
    }
    if (token->ended) {
        r->ended = true;
        token->finish_reason = journal_end_name((enum journal_end)record->end);
        if (record->end == JOURNAL_END_ERROR) {
            /* The bytes are the reason, not an answer's. */
            struct err err = { 0 };
            err_set(&err, (enum err_code)record->code, "%.*s", (int)token->n_bytes, token->bytes);
            connection_error(&token->error, &err);
            token->n_bytes = 0;
        }
    }
}

/* A new connection does not know this request yet: Resume puts it back to this client. The answer is read when it comes, tokens
 * flow meanwhile. */
static void resume(struct hearth_request *r)
{
    struct err ignored;
    Hearth__Resume resume = HEARTH__RESUME__INIT;
    resume.id = message_bytes(r->id, sizeof r->id);
    resume.has_after = true;
    resume.after = r->reader.seq;
    Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_RESUME, &resume);
    e.has_cookie = true;
    e.cookie = ++r->h->last_cookie;
    if (connection_send(r->h, &e, NULL, 0, &ignored) == 0) {
        r->resumed_on = r->h->generation;
        r->resumed.cookie = e.cookie;
    }
}

/* What the broker says meanwhile: that a request is unknown to it, in the worst case; then *which is that one. */
static int hear(struct hearth_request *const *requests, size_t n, size_t *which, struct err *err)
{
    const uint8_t *payload;
    size_t len;
    struct hearth *h = requests[0]->h;
    while (h->state == CONNECTION_UP && connection_recv(h, &payload, &len)) {
    }
    for (size_t i = 0; i < n; i++) {
        if (requests[i]->resumed.refused) {
            *err = requests[i]->resumed.why;
            *which = i;
            return -1;
        }
    }
    return 0;
}

/* A token of one of them that is there already: 1, else 0; -1. */
static int take_token(struct hearth_request *const *requests, size_t n, size_t *which,
                      struct hearth_token *token, struct err *err)
{
    for (size_t k = 1; k <= n; k++) {
        size_t i = (*which + k) % n;
        int got = journal_read(&requests[i]->reader, &requests[i]->view, err);
        if (got != 0) {
            *which = i;
        }
        if (got > 0) {
            show(requests[i], token);
        }
        if (got != 0) {
            return got;
        }
    }
    return 0;
}

static bool something_committed(struct hearth_request *const *requests, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (journal_committed(&requests[i]->reader) > requests[i]->reader.seq) {
            return true;
        }
    }
    return false;
}

enum hearth_result hearth_next_of(struct hearth_request *const *requests, size_t n, size_t *which,
                                  struct hearth_token *token, int timeout_ms,
                                  struct hearth_error *error)
{
    struct hearth *h = requests[0]->h;
    struct err err = { 0 };
    uint64_t deadline = timeout_ms < 0 ? UINT64_MAX : connection_now_ms() + (uint64_t)timeout_ms;
    *which %= n;
    for (;;) {
        int got = take_token(requests, n, which, token, &err);
        if (got < 0) {
            break;
        }
        if (got > 0) {
            return HEARTH_TOKEN;
        }
        for (size_t i = 0; i < n && h->state == CONNECTION_UP; i++) {
            if (requests[i]->resumed_on != h->generation) {
                resume(requests[i]);
            }
        }
        if (hear(requests, n, which, &err) < 0) {
            break;
        }
        uint64_t now = connection_now_ms();
        if (now >= deadline) {
            return HEARTH_TIMEOUT;
        }
        uint64_t left = deadline - now;
        /* Say that we sleep, then look once more: the worker looks at the word after its commit. */
        atomic_store(&h->page->waiting, 1);
        int status = 0;
        if (!something_committed(requests, n)) {
            status = connection_turn(h, left < LIMIT_SLEEP_MS ? (int)left : LIMIT_SLEEP_MS, &err);
        }
        atomic_store(&h->page->waiting, 0);
        if (status < 0) {
            if (err.code == ERR_INTERRUPTED) {
                return HEARTH_INTERRUPTED;
            }
            break;
        }
    }
    connection_error(error, &err);
    return HEARTH_FAILED;
}

enum hearth_result hearth_next(struct hearth_request *r, struct hearth_token *token, int timeout_ms,
                               struct hearth_error *error)
{
    size_t which = 0;
    return hearth_next_of(&r, 1, &which, token, timeout_ms, error);
}
