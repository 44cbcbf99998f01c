/* Generations: submit, attach, cancel, end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "clients/request.h"

static void hex_of(const uint8_t id[LIMIT_REQUEST_ID_BYTES], char hex[33])
{
    for (int i = 0; i < LIMIT_REQUEST_ID_BYTES; i++) {
        snprintf(hex + 2 * i, 3, "%02x", id[i]);
    }
}

/* "1a2b..." to bytes; an odd digit at the end is dropped. Returns the number of bytes, 0 when it is no hex. */
static size_t id_of_hex(const char *hex, uint8_t id[LIMIT_REQUEST_ID_BYTES])
{
    size_t n = 0;
    for (; n < LIMIT_REQUEST_ID_BYTES && hex[2 * n] && hex[2 * n + 1]; n++) {
        unsigned byte;
        if (sscanf(hex + 2 * n, "%2x", &byte) != 1) {
            return 0;
        }
        id[n] = (uint8_t)byte;
    }
    return n;
}

/* ---- submitting ---- */

/* What a Sampling message points to, for the time of a call. */
struct sampling_lists {
    Hearth__LogitBias biases[LIMIT_LOGIT_BIASES], *bias_list[LIMIT_LOGIT_BIASES];
    ProtobufCBinaryData breakers[LIMIT_DRY_BREAKERS], banned[LIMIT_BANNED_STRINGS];
    int32_t banned_tokens[LIMIT_LOGIT_BIASES];
};

static void fill_sampling(Hearth__Sampling *to, const struct hearth_sampling *s,
                          struct sampling_lists *lists)
{
#define FIELD(name, as)                                                                            \
    to->has_##name = s->has_##as;                                                                  \
    to->name = s->as
    FIELD(temp, temp);
    FIELD(top_k, top_k);
    FIELD(top_p, top_p);
    FIELD(min_p, min_p);
    FIELD(typical_p, typical_p);
    FIELD(repeat_penalty, repeat_penalty);
    FIELD(repeat_last_n, repeat_last_n);
    FIELD(presence_penalty, presence_penalty);
    FIELD(frequency_penalty, frequency_penalty);
    FIELD(seed, seed);
    FIELD(logprobs, logprobs);
    FIELD(dynatemp_range, dynatemp_range);
    FIELD(dynatemp_exponent, dynatemp_exponent);
    FIELD(top_n_sigma, top_n_sigma);
    FIELD(xtc_probability, xtc_probability);
    FIELD(xtc_threshold, xtc_threshold);
    FIELD(dry_multiplier, dry_multiplier);
    FIELD(dry_base, dry_base);
    FIELD(dry_allowed_length, dry_allowed_length);
    FIELD(dry_penalty_last_n, dry_penalty_last_n);
    FIELD(mirostat, mirostat);
    FIELD(mirostat_tau, mirostat_tau);
    FIELD(mirostat_eta, mirostat_eta);
    FIELD(adaptive_target, adaptive_target);
    FIELD(adaptive_decay, adaptive_decay);
#undef FIELD
    to->has_ignore_eos = true;
    to->ignore_eos = s->ignore_eos;
    for (size_t i = 0; i < s->n_biases; i++) {
        hearth__logit_bias__init(&lists->biases[i]);
        lists->biases[i].token = s->biases[i].token;
        lists->biases[i].bias = s->biases[i].bias;
        lists->bias_list[i] = &lists->biases[i];
    }
    to->n_logit_bias = s->n_biases;
    to->logit_bias = lists->bias_list;
    for (size_t i = 0; i < s->n_dry_sequence_breakers; i++) {
        lists->breakers[i] = message_str(s->dry_sequence_breakers[i]);
    }
    to->n_dry_sequence_breakers = s->n_dry_sequence_breakers;
    to->dry_sequence_breakers = lists->breakers;
    for (size_t i = 0; i < s->n_banned_strings; i++) {
        lists->banned[i] = message_str(s->banned_strings[i]);
    }
    to->n_banned_strings = s->n_banned_strings;
    to->banned_strings = lists->banned;
    for (size_t i = 0; i < s->n_banned_tokens; i++) {
        lists->banned_tokens[i] = s->banned_tokens[i];
    }
    to->n_banned_tokens = s->n_banned_tokens;
    to->banned_tokens = lists->banned_tokens;
    to->has_samplers = s->samplers != NULL;
    to->samplers = message_str(s->samplers ? s->samplers : "");
}

static int take_accepted(struct hearth_request *r, const Hearth__Accepted *a, uint64_t from,
                         struct err *err)
{
    if (a->shard != r->h->shard_number) {
        return err_set(err, ERR_REFUSED, "the request belongs to another user's journal");
    }
    if (journal_reader_init(&r->reader, &r->h->shard, a->slot, a->generation, err) < 0) {
        return -1;
    }
    int got = 1;
    while (r->reader.seq < from && (got = journal_read(&r->reader, &r->view, err)) > 0) {
    }
    if (got < 0) {
        return -1;
    }
    if (a->id.len == LIMIT_REQUEST_ID_BYTES) {
        memcpy(r->id, a->id.data, LIMIT_REQUEST_ID_BYTES);
    }
    hex_of(r->id, r->info.id);
    message_copy(r->info.model, sizeof r->info.model, a->model);
    r->info.n_prompt = a->n_prompt;
    r->info.n_max = a->n_max;
    r->info.ctx = a->ctx;
    r->info.seed = a->seed;
    r->resumed_on = r->h->generation;
    return 0;
}

static void say_cancel(struct hearth *h, const uint8_t *id, size_t id_len)
{
    struct err ignored;
    Hearth__Cancel cancel = HEARTH__CANCEL__INIT;
    cancel.id = message_bytes(id, id_len);
    Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_CANCEL, &cancel);
    connection_send(h, &e, NULL, 0, &ignored);
}

/* The question that ends in Accepted: Submit or Resume. */
static int ask_accepted(struct hearth_request *r, Hearth__Envelope *e, const void *payload,
                        size_t payload_len, uint64_t from, struct err *err)
{
    Hearth__Envelope *got = connection_ask(r->h, e, payload, payload_len, NULL, NULL, err);
    if (!got) {
        return -1;
    }
    if (got->body_case != HEARTH__ENVELOPE__BODY_ACCEPTED) {
        return err_set(err, ERR_BAD_INPUT, "the broker answered with %s, not accepted",
                       message_name(got->body_case));
    }
    return take_accepted(r, got->accepted, from, err);
}

static int check_ask(const struct hearth_ask *ask, struct err *err)
{
    const struct {
        const char *what;
        size_t n, most;
    } rows[] = {
        { "stop strings", ask->n_stops, LIMIT_STOP_STRINGS },
        { "logit biases", ask->sampling.n_biases, LIMIT_LOGIT_BIASES },
        { "banned tokens", ask->sampling.n_banned_tokens, LIMIT_LOGIT_BIASES },
        { "banned strings", ask->sampling.n_banned_strings, LIMIT_BANNED_STRINGS },
        { "DRY sequence breakers", ask->sampling.n_dry_sequence_breakers, LIMIT_DRY_BREAKERS },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].n > rows[i].most) {
            return err_set(err, ERR_USAGE, "%zu %s, at most %zu", rows[i].n, rows[i].what,
                           rows[i].most);
        }
    }
    return 0;
}

/* A request that its connection knows; NULL when there is no memory. */
static struct hearth_request *request_create(struct hearth *h, bool detach)
{
    struct hearth_request *r = calloc(1, sizeof *r);
    if (r) {
        r->h = h;
        r->detach = detach;
        r->resumed.next = h->pending;
        h->pending = &r->resumed;
    }
    return r;
}

static void request_destroy(struct hearth_request **rp)
{
    struct hearth_request *r = *rp;
    if (r) {
        struct connection_pending **at = &r->h->pending;
        while (*at != &r->resumed) {
            at = &(*at)->next;
        }
        *at = r->resumed.next;
    }
    free(r);
    *rp = NULL;
}

struct hearth_request *hearth_submit(struct hearth *h, const struct hearth_ask *ask,
                                     struct hearth_error *error)
{
    struct err err = { 0 };
    struct sampling_lists lists;
    ProtobufCBinaryData stops[LIMIT_STOP_STRINGS];
    Hearth__Sampling sampling = HEARTH__SAMPLING__INIT;
    Hearth__Submit submit = HEARTH__SUBMIT__INIT;
    struct hearth_request *r = request_create(h, ask->detach);
    if (!r) {
        err_set(&err, ERR_NO_MEMORY, "no memory for a request");
        goto fail;
    }
    if (check_ask(ask, &err) < 0) {
        goto fail;
    }
    if (ask->id && id_of_hex(ask->id, r->id) != sizeof r->id) {
        err_set(&err, ERR_USAGE, "'%s' is no request id of 32 hex digits", ask->id);
        goto fail;
    }
    if (!ask->id && getrandom(r->id, sizeof r->id, 0) != (ssize_t)sizeof r->id) {
        err_set_errno(&err, ERR_IO, "random bytes for a request id");
        goto fail;
    }
    fill_sampling(&sampling, &ask->sampling, &lists);
    for (size_t i = 0; i < ask->n_stops; i++) {
        stops[i] = message_bytes(ask->stops[i],
                                 ask->stop_lens ? ask->stop_lens[i] : strlen(ask->stops[i]));
    }
    submit.id = message_bytes(r->id, sizeof r->id);
    submit.has_model = ask->model != NULL;
    submit.model = message_str(ask->model ? ask->model : "");
    submit.kind = (Hearth__PromptKind)ask->kind;
    submit.sampling = &sampling;
    submit.has_n_max = ask->has_n_max;
    submit.n_max = ask->n_max;
    submit.n_stop = ask->n_stops;
    submit.stop = stops;
    submit.has_priority = true;
    submit.priority = (Hearth__Priority)ask->priority;
    submit.has_on_disconnect = true;
    submit.on_disconnect = ask->detach ? HEARTH__ON_DISCONNECT__DETACH
                                       : HEARTH__ON_DISCONNECT__CANCEL;
    submit.has_deadline_ms = ask->deadline_ms > 0;
    submit.deadline_ms = ask->deadline_ms;
    submit.has_flow = ask->flow != NULL;
    submit.flow = message_str(ask->flow ? ask->flow : "");
    Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_SUBMIT, &submit);
    if (ask_accepted(r, &e, ask->prompt_len ? ask->prompt : "", ask->prompt_len, 0, &err) < 0) {
        if (err.code == ERR_INTERRUPTED) {
            say_cancel(h, r->id, sizeof r->id);
        }
        goto fail;
    }
    return r;
fail:
    connection_error(error, &err);
    if (error && err.code == ERR_BUSY) {
        error->retry_after_ms = h->retry_ms;
        error->queue_position = h->position;
    }
    if (error && err.code == ERR_NO_FIT) {
        error->n_prompt = h->n_prompt;
        error->n_ctx = h->n_ctx;
    }
    request_destroy(&r);
    return NULL;
}

struct hearth_request *hearth_attach(struct hearth *h, const char *id, uint64_t from,
                                     struct hearth_error *error)
{
    struct err err = { 0 };
    struct hearth_request *r = request_create(h, true);
    size_t id_len = r ? id_of_hex(id, r->id) : 0;
    if (!r || id_len < 2) {
        err_set(&err, r ? ERR_NOT_FOUND : ERR_NO_MEMORY, "'%s' is no request id", id);
        goto fail;
    }
    Hearth__Resume resume = HEARTH__RESUME__INIT;
    resume.id = message_bytes(r->id, id_len);
    resume.has_after = true;
    resume.after = from;
    Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_RESUME, &resume);
    if (ask_accepted(r, &e, NULL, 0, from, &err) < 0) {
        goto fail;
    }
    return r;
fail:
    connection_error(error, &err);
    request_destroy(&r);
    return NULL;
}

const struct hearth_info *hearth_info(const struct hearth_request *r)
{
    return &r->info;
}

/* ---- ending ---- */

int hearth_cancel(struct hearth_request *r, struct hearth_error *error)
{
    (void)error;
    say_cancel(r->h, r->id, sizeof r->id);
    return 0;
}

int hearth_cancel_id(struct hearth *h, const char *id, struct hearth_error *error)
{
    struct err err = { 0 };
    uint8_t bytes[LIMIT_REQUEST_ID_BYTES];
    size_t n = id_of_hex(id, bytes);
    Hearth__Cancel cancel = HEARTH__CANCEL__INIT;
    cancel.id = message_bytes(bytes, n);
    Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_CANCEL, &cancel);
    if (n < 2) {
        err_set(&err, ERR_NOT_FOUND, "'%s' is no request id", id);
    } else if (connection_ask(h, &e, NULL, 0, NULL, NULL, &err)) {
        return 0;
    }
    connection_error(error, &err);
    return -1;
}

void hearth_end(struct hearth_request **rp)
{
    struct hearth_request *r = *rp;
    if (!r) {
        return;
    }
    struct err ignored;
    if (r->ended) {
        Hearth__Ack ack = HEARTH__ACK__INIT;
        ack.id = message_bytes(r->id, sizeof r->id);
        Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_ACK, &ack);
        /* Asked, not only said: a program that leaves at once would take the message with it (LINGER is 0). When the broker is away
         * just now, it hears of it on the next connection, or the end expires by itself. */
        if (r->h->state == CONNECTION_UP) {
            connection_ask(r->h, &e, NULL, 0, NULL, NULL, &ignored);
        } else {
            connection_ack_later(r->h, r->id);
        }
    } else if (!r->detach) {
        say_cancel(r->h, r->id, sizeof r->id);
    }
    request_destroy(rp);
}

void hearth_leave(struct hearth_request **rp)
{
    request_destroy(rp);
}
