#include "broker/submit.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "proto/log.h"

/* Without -n a request reserves at most this part of its shard, so that several fit. Accepted says the number. */
#define OPEN_END_SHARE 16

/* ---- parameters ---- */

/* A number that an alias may give (bit of its `has`) when the request does not. */
#define FIELD(name, min, max, bit)                                                                 \
    {                                                                                              \
#name, s && s->has_##name, s ? (double)s->name : 0, &p->name, NULL, min, max, bit,         \
            a ? &a->name : NULL                                                                    \
    }
#define WHOLE(name, min, max, bit)                                                                 \
    {                                                                                              \
#name, s && s->has_##name, s ? (double)s->name : 0, NULL, &p->name, min, max, bit,         \
            a ? &a->name : NULL                                                                    \
    }

static int read_numbers(struct journal_params *p, const Hearth__Sampling *s,
                        const struct config_sampling *a, struct err *err)
{
    const struct {
        const char *name;
        bool given;
        double value;
        float *to;
        int32_t *to_int;
        double min, max;
        uint32_t bit;
        const float *alias;
    } rows[] = {
        FIELD(temp, 0, 100, CONFIG_TEMP),
        FIELD(top_p, 0, 1, CONFIG_TOP_P),
        FIELD(min_p, 0, 1, CONFIG_MIN_P),
        FIELD(typical_p, 0, 1, CONFIG_TYPICAL_P),
        FIELD(repeat_penalty, 0.01f, 100, CONFIG_REPEAT_PENALTY),
        FIELD(presence_penalty, -100, 100, CONFIG_PRESENCE_PENALTY),
        FIELD(frequency_penalty, -100, 100, CONFIG_FREQUENCY_PENALTY),
        FIELD(dynatemp_range, 0, 100, CONFIG_DYNATEMP_RANGE),
        FIELD(dynatemp_exponent, 0, 100, CONFIG_DYNATEMP_EXPONENT),
        FIELD(top_n_sigma, -1, 1000, CONFIG_TOP_N_SIGMA),
        FIELD(xtc_probability, 0, 1, CONFIG_XTC_PROBABILITY),
        FIELD(xtc_threshold, 0, 1, CONFIG_XTC_THRESHOLD),
        FIELD(dry_multiplier, 0, 100, CONFIG_DRY_MULTIPLIER),
        FIELD(dry_base, 1, 100, CONFIG_DRY_BASE),
        WHOLE(dry_allowed_length, 1, LIMIT_CTX_TOKENS, CONFIG_DRY_ALLOWED_LENGTH),
        WHOLE(dry_penalty_last_n, -1, LIMIT_CTX_TOKENS, CONFIG_DRY_PENALTY_LAST_N),
        FIELD(mirostat_tau, 0, 100, CONFIG_MIROSTAT_TAU),
        FIELD(mirostat_eta, 0, 1, CONFIG_MIROSTAT_ETA),
        WHOLE(mirostat, 0, 2, CONFIG_MIROSTAT),
        FIELD(adaptive_target, -1, 1, CONFIG_ADAPTIVE_TARGET),
        FIELD(adaptive_decay, 0, 0.99f, CONFIG_ADAPTIVE_DECAY),
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].given && !(rows[i].value >= rows[i].min && rows[i].value <= rows[i].max)) {
            return err_set(err, ERR_BAD_INPUT, "%s is %g; it goes from %g to %g", rows[i].name,
                           rows[i].value, rows[i].min, rows[i].max);
        }
        if (rows[i].given && rows[i].to_int) {
            *rows[i].to_int = (int32_t)rows[i].value;
        } else if (rows[i].given) {
            *rows[i].to = (float)rows[i].value;
        } else if (a && (a->has & rows[i].bit) && rows[i].to_int) {
            *rows[i].to_int = (int32_t)*rows[i].alias;
        } else if (a && (a->has & rows[i].bit)) {
            *rows[i].to = *rows[i].alias;
        }
    }
    return 0;
}

/* Log-probabilities, biases and banned tokens, which are biases that nothing outweighs. */
static int read_lists(struct request_draft *d, const Hearth__Sampling *s, struct err *err)
{
    struct journal_params *p = &d->params;
    p->logprobs = s->has_logprobs;
    p->n_alternatives = s->has_logprobs ? s->logprobs : 0;
    if (p->n_alternatives > LIMIT_ALTERNATIVES) {
        return err_set(err, ERR_BAD_INPUT, "logprobs is %u; there are at most %d",
                       p->n_alternatives, LIMIT_ALTERNATIVES);
    }
    if (s->n_logit_bias > LIMIT_LOGIT_BIASES ||
        s->n_banned_tokens > LIMIT_LOGIT_BIASES - s->n_logit_bias) {
        return err_set(err, ERR_BAD_INPUT,
                       "%zu logit biases and %zu banned tokens; there are at most %d of both",
                       s->n_logit_bias, s->n_banned_tokens, LIMIT_LOGIT_BIASES);
    }
    for (size_t i = 0; i < s->n_logit_bias; i++) {
        if (isnan(s->logit_bias[i]->bias)) {
            return err_set(err, ERR_BAD_INPUT, "the logit bias of token %d is not a number",
                           s->logit_bias[i]->token);
        }
        d->biases[p->n_biases++] = (struct journal_bias){ s->logit_bias[i]->token,
                                                          s->logit_bias[i]->bias };
    }
    for (size_t i = 0; i < s->n_banned_tokens; i++) {
        d->biases[p->n_biases++] = (struct journal_bias){ s->banned_tokens[i], -INFINITY };
    }
    return 0;
}

/* "penalties;dry;..." into the order of the steps; those that are not named do not act. */
static int read_order(struct journal_params *p, ProtobufCBinaryData text, struct err *err)
{
    char name[32];
    size_t at = 0;
    while (at <= text.len) {
        const uint8_t *end = text.len > at ? memchr(text.data + at, ';', text.len - at) : NULL;
        size_t len = end ? (size_t)(end - text.data) - at : text.len - at;
        snprintf(name, sizeof name, "%.*s", (int)(len < sizeof name ? len : sizeof name - 1),
                 len ? (const char *)text.data + at : "");
        int which = 0;
        while (which < JOURNAL_N_SAMPLERS &&
               strcmp(name, journal_sampler_name((enum journal_sampler)which)) != 0) {
            which++;
        }
        if (strcmp(name, "typical_p") == 0) {
            which = JOURNAL_TYPICAL_P;
        }
        if (which == JOURNAL_N_SAMPLERS) {
            return err_set(err, ERR_BAD_INPUT,
                           "samplers: '%s' is none; there are penalties, dry, top_n_sigma, top_k, "
                           "typ_p, top_p, min_p, xtc, temperature, adaptive_p, with ; in "
                           "between",
                           name);
        }
        for (uint32_t i = 0; i < p->n_samplers; i++) {
            if (p->samplers[i] == which) {
                return err_set(err, ERR_BAD_INPUT, "samplers: %s is named twice", name);
            }
        }
        p->samplers[p->n_samplers++] = (uint8_t)which;
        at += len + 1;
    }
    return 0;
}

static int read_sampling(struct request_draft *d, const Hearth__Sampling *s,
                         const struct config_sampling *a, struct err *err)
{
    struct journal_params *p = &d->params;
    *p = (struct journal_params){
        .temp = MESSAGE_TEMP,
        .top_k = MESSAGE_TOP_K,
        .top_p = MESSAGE_TOP_P,
        .min_p = MESSAGE_MIN_P,
        .typical_p = MESSAGE_TYPICAL_P,
        .repeat_penalty = MESSAGE_REPEAT_PENALTY,
        .repeat_last_n = MESSAGE_REPEAT_LAST_N,
        .dynatemp_exponent = MESSAGE_DYNATEMP_EXPONENT,
        .top_n_sigma = MESSAGE_TOP_N_SIGMA,
        .xtc_threshold = MESSAGE_XTC_THRESHOLD,
        .dry_base = MESSAGE_DRY_BASE,
        .dry_allowed_length = MESSAGE_DRY_ALLOWED_LENGTH,
        .dry_penalty_last_n = MESSAGE_DRY_PENALTY_LAST_N,
        .mirostat_tau = MESSAGE_MIROSTAT_TAU,
        .mirostat_eta = MESSAGE_MIROSTAT_ETA,
        .adaptive_target = MESSAGE_ADAPTIVE_TARGET,
        .adaptive_decay = MESSAGE_ADAPTIVE_DECAY,
    };
    if (read_numbers(p, s, a, err) < 0) {
        return -1;
    }
    p->adaptive_p = p->adaptive_target >= 0;
    if (s && s->has_top_k) {
        p->top_k = s->top_k;
    } else if (a && (a->has & CONFIG_TOP_K)) {
        p->top_k = a->top_k;
    }
    if (s && s->has_repeat_last_n) {
        p->repeat_last_n = s->repeat_last_n;
    } else if (a && (a->has & CONFIG_REPEAT_LAST_N)) {
        p->repeat_last_n = a->repeat_last_n;
    }
    if (p->top_k < 0 || p->repeat_last_n < -1) {
        return err_set(err, ERR_BAD_INPUT, "%s is %d; it must not be negative",
                       p->top_k < 0 ? "top_k" : "repeat_last_n",
                       p->top_k < 0 ? p->top_k : p->repeat_last_n);
    }
    if (!s) {
        return 0;
    }
    d->has_seed = s->has_seed;
    p->seed = s->seed;
    p->ignore_eos = s->has_ignore_eos && s->ignore_eos;
    if (s->has_samplers && read_order(p, s->samplers, err) < 0) {
        return -1;
    }
    return read_lists(d, s, err);
}

/* Built-in breakers of DRY: a line's end, a colon, a quote, an asterisk. */
static uint8_t breaker_bytes[] = "\n:\"*";
static const ProtobufCBinaryData breakers_built_in[] = {
    { 1, breaker_bytes },
    { 1, breaker_bytes + 1 },
    { 1, breaker_bytes + 2 },
    { 1, breaker_bytes + 3 },
};

/* Stop strings, sequence breakers and banned strings, behind each other as struct journal_extra has them. */
static int read_strings(struct request_draft *d, const Hearth__Submit *submit, struct err *err)
{
    const Hearth__Sampling *s = submit->sampling;
    struct {
        const char *name;
        const ProtobufCBinaryData *list;
        size_t n, n_max, len_max;
        uint32_t *n_to;
    } rows[] = {
        { "stop string", submit->stop, submit->n_stop, LIMIT_STOP_STRINGS, LIMIT_STOP_BYTES,
          &d->params.n_stops },
        { "DRY sequence breaker", s ? s->dry_sequence_breakers : NULL,
          s ? s->n_dry_sequence_breakers : 0, LIMIT_DRY_BREAKERS, LIMIT_DRY_BREAKER_BYTES,
          &d->params.n_breakers },
        { "banned string", s ? s->banned_strings : NULL, s ? s->n_banned_strings : 0,
          LIMIT_BANNED_STRINGS, LIMIT_STOP_BYTES, &d->params.n_banned },
    };
    if (rows[1].n == 1 && rows[1].list[0].len == 0) {
        rows[1].n = 0; /* one empty: none */
    } else if (rows[1].n == 0 && d->params.dry_multiplier > 0) {
        rows[1].list = breakers_built_in;
        rows[1].n = sizeof breakers_built_in / sizeof *breakers_built_in;
    }
    size_t total = 0;
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        if (rows[k].n > rows[k].n_max) {
            return err_set(err, ERR_BAD_INPUT, "%zu %ss; there are at most %zu", rows[k].n,
                           rows[k].name, rows[k].n_max);
        }
        for (size_t i = 0; i < rows[k].n; i++) {
            size_t len = rows[k].list[i].len;
            if (len == 0 || len > rows[k].len_max) {
                return err_set(err, ERR_BAD_INPUT, "a %s of %zu bytes; it has 1 to %zu",
                               rows[k].name, len, rows[k].len_max);
            }
            total += sizeof(uint32_t) + len;
        }
    }
    d->strings = malloc(total + 1);
    if (!d->strings) {
        return err_set(err, ERR_NO_MEMORY, "no memory for stop strings");
    }
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        for (size_t i = 0; i < rows[k].n; i++) {
            uint32_t len = (uint32_t)rows[k].list[i].len;
            memcpy(d->strings + d->strings_bytes, &len, sizeof len);
            memcpy(d->strings + d->strings_bytes + sizeof len, rows[k].list[i].data, len);
            d->strings_bytes += (uint32_t)sizeof len + len;
        }
        *rows[k].n_to = (uint32_t)rows[k].n;
    }
    return 0;
}

/* The prompt's bytes; ids are taken as they are, their range is checked when the vocabulary's size is known. */
static int read_prompt(struct request_draft *d, const Hearth__Submit *submit, const void *payload,
                       size_t len, struct err *err)
{
    d->kind = submit->kind;
    if (d->kind == HEARTH__PROMPT_KIND__TOKENS) {
        if (len == 0 || len % sizeof(int32_t)) {
            return err_set(err, ERR_BAD_INPUT, "a prompt of %zu bytes is not a list of token ids",
                           len);
        }
        d->ids = malloc(len);
        if (!d->ids) {
            return err_set(err, ERR_NO_MEMORY, "no memory for a prompt of %zu bytes", len);
        }
        memcpy(d->ids, payload, len);
        d->n_ids = (uint32_t)(len / sizeof(int32_t));
        d->has_ids = true;
        return 0;
    }
    if (d->kind != HEARTH__PROMPT_KIND__TEXT_RAW && d->kind != HEARTH__PROMPT_KIND__MESSAGES &&
        d->kind != HEARTH__PROMPT_KIND__INFILL) {
        return err_set(err, ERR_BAD_INPUT, "prompt kind %u is not known", d->kind);
    }
    d->payload = malloc(len + 1);
    if (!d->payload) {
        return err_set(err, ERR_NO_MEMORY, "no memory for a prompt of %zu bytes", len);
    }
    if (len) {
        memcpy(d->payload, payload, len);
    }
    d->payload_len = len;
    return 0;
}

/* The digest of a Submit and its prompt: what "the same request" means. */
static uint64_t digest_of(struct broker *b, const Hearth__Submit *submit, const void *payload,
                          size_t len)
{
    uint64_t digest = 0;
    size_t packed = hearth__submit__get_packed_size(submit);
    if (packed <= sizeof b->out) {
        hearth__submit__pack(submit, b->out);
        digest = broker_digest(digest, b->out, packed);
    }
    return broker_digest(digest, payload, len);
}

/* ---- Submit ---- */

void submit_accepted(struct broker *b, const struct post_to *to, const struct request *r)
{
    struct journal_slot *slot = request_slot(r);
    Hearth__Accepted a = HEARTH__ACCEPTED__INIT;
    a.id = message_bytes(r->id, sizeof r->id);
    a.shard = r->shard->segment;
    a.slot = r->slot;
    a.generation = r->generation;
    a.n_prompt = slot->n_prompt;
    a.n_max = slot->params.n_max;
    a.ctx = slot->params.n_ctx;
    a.model = message_str(slot->model.name);
    a.seed = slot->params.seed;
    post_say(b, to, HEARTH__ENVELOPE__BODY_ACCEPTED, &a, NULL, 0);
}

/* The same id again: the same request, or refused. */
static void submit_again(struct broker *b, const struct post_to *to, struct client *c,
                         struct request *r, uint64_t digest)
{
    struct err err;
    if (r->digest != digest) {
        err_set(&err, ERR_REFUSED, "this id names another request already; ids are not used again");
        post_failed(b, to, r->id, &err);
        return;
    }
    r->come_back_ms = 0;
    if (!clients_find(&b->clients, r->client)) {
        r->client = c->number;
    }
    if (!r->admitted) {
        r->peer = to->peer;
        r->has_cookie = to->has_cookie;
        r->cookie = to->cookie;
        return;
    }
    if (r->records) {
        r->records_peer = to->peer;
    } else {
        atomic_store_explicit(&request_slot(r)->reader, c->reader, memory_order_release);
    }
    request_slot(r)->attached = r->client;
    submit_accepted(b, to, r);
}

void submit_take(struct broker *b, const struct post_to *to, struct client *c,
                 const Hearth__Submit *submit, const void *payload, size_t payload_len)
{
    struct err err = { 0 };
    const uint8_t *id = NULL;
    struct request *r = NULL;
    if (submit->id.len != LIMIT_REQUEST_ID_BYTES) {
        err_set(&err, ERR_BAD_INPUT, "a request id of %zu bytes; it has %d", submit->id.len,
                LIMIT_REQUEST_ID_BYTES);
        goto fail;
    }
    id = submit->id.data;
    uint64_t digest = digest_of(b, submit, payload, payload_len);
    bool many;
    struct request *same = requests_find(&b->requests, c->shard, id, LIMIT_REQUEST_ID_BYTES, &many);
    if (same) {
        submit_again(b, to, c, same, digest);
        return;
    }
    char name[LIMIT_MODEL_NAME_BYTES] = "";
    if (submit->has_model && !message_copy(name, sizeof name, submit->model)) {
        err_set(&err, ERR_NOT_FOUND, "a model name of %zu bytes is none", submit->model.len);
        goto fail;
    }
    const struct config_alias *alias = NULL;
    struct model *m = models_get(b, name, &alias, &err);
    if (!m || workers_all_down(&b->workers, &err)) {
        goto fail;
    }
    if (m->info.known && !m->info.generates) {
        err_set(&err, ERR_UNSUPPORTED, "model %s gives embeddings; it does not generate text",
                m->file.name);
        goto fail;
    }
    if (quota_request(b, c->shard, m, &err) < 0) {
        goto fail;
    }
    r = request_create(b, &err);
    if (!r) {
        goto fail;
    }
    struct request_draft *d = r->draft = calloc(1, sizeof *d);
    memcpy(r->id, id, sizeof r->id);
    r->shard = c->shard;
    r->model = m;
    r->digest = digest;
    r->client = c->number;
    r->peer = to->peer;
    r->has_cookie = to->has_cookie;
    r->cookie = to->cookie;
    r->flow = clients_flow_named(c, submit->flow);
    r->priority = submit->has_priority ? (uint8_t)submit->priority : QUEUE_NORMAL;
    r->detach = submit->has_on_disconnect && submit->on_disconnect == HEARTH__ON_DISCONNECT__DETACH;
    r->records = submit->has_records && submit->records;
    if (!d) {
        err_set(&err, ERR_NO_MEMORY, "no memory for a request");
        goto fail;
    }
    if (read_sampling(d, submit->sampling, alias ? &alias->sampling : NULL, &err) < 0 ||
        read_strings(d, submit, &err) < 0 ||
        read_prompt(d, submit, payload, payload_len, &err) < 0) {
        goto fail;
    }
    if (r->priority > QUEUE_BATCH) {
        err_set(&err, ERR_BAD_INPUT, "priority %u is not known", r->priority);
        goto fail;
    }
    strcpy(d->model_name, alias ? alias->name : m->file.name);
    d->has_n_max = submit->has_n_max;
    d->params.n_max = submit->has_n_max ? submit->n_max : 0;
    d->params.priority = r->priority;
    d->params.detach = r->detach;
    d->ctx_limit = alias && alias->ctx ? alias->ctx : b->config.ctx;
    if (submit->has_deadline_ms && submit->deadline_ms) {
        r->deadline_unix_ms = broker_unix_ms() + submit->deadline_ms;
    }
    m->used_ms = b->now_ms;
    request_move(b, r, REQUEST_RENDERING, NULL);
    submit_advance(b, r);
    return;
fail:
    if (r) {
        r->gone = true;
    }
    post_failed(b, to, id, &err);
}

/* ---- admission ---- */

void submit_prompt_done(struct broker *b, struct request *r, int32_t *ids, uint32_t n_ids,
                        const struct err *why)
{
    if (r->state != REQUEST_RENDERING || why->code != ERR_NONE) {
        free(ids);
        if (r->state == REQUEST_RENDERING) {
            request_end(b, r, JOURNAL_END_ERROR, why);
        }
        return;
    }
    r->draft->ids = ids;
    r->draft->n_ids = n_ids;
    r->draft->has_ids = true;
    explicit_bzero(r->draft->payload, r->draft->payload_len);
    submit_advance(b, r);
}

/* The numbers of a request against those of its model. */
static int check_numbers(struct broker *b, struct request_draft *d, const struct model *m,
                         struct err *err)
{
    const struct model_info *info = &m->info;
    uint32_t ctx = d->ctx_limit && d->ctx_limit < info->ctx ? d->ctx_limit : info->ctx;
    if (d->n_ids == 0) {
        return err_set(err, ERR_BAD_INPUT, "the prompt has no tokens");
    }
    for (uint32_t i = 0; i < d->n_ids && d->kind == HEARTH__PROMPT_KIND__TOKENS; i++) {
        if (d->ids[i] < 0 || (uint32_t)d->ids[i] >= info->n_vocab) {
            return err_set(err, ERR_BAD_INPUT,
                           "token %u of the prompt is %d; the vocabulary has %u", i, d->ids[i],
                           info->n_vocab);
        }
    }
    if (d->n_ids >= ctx || (d->has_n_max && (uint64_t)d->n_ids + d->params.n_max > ctx)) {
        b->quota.n_prompt = d->n_ids;
        b->quota.n_ctx = ctx;
    }
    if (d->n_ids >= ctx) {
        return err_set(err, ERR_NO_FIT, "the prompt has %u tokens, the context of %s is %u",
                       d->n_ids, m->file.name, ctx);
    }
    if (d->has_n_max && (uint64_t)d->n_ids + d->params.n_max > ctx) {
        return err_set(
            err, ERR_NO_FIT,
            "prompt and answer need %" PRIu64
            " tokens (%u of the prompt, %u at most to generate), the context of %s is %u",
            (uint64_t)d->n_ids + d->params.n_max, d->n_ids, d->params.n_max, m->file.name, ctx);
    }
    if (d->has_n_max && d->params.n_max == 0) {
        return err_set(err, ERR_BAD_INPUT, "an answer of 0 tokens is none");
    }
    for (uint32_t i = 0; i < d->params.n_biases; i++) {
        if (d->biases[i].token < 0 || (uint32_t)d->biases[i].token >= info->n_vocab) {
            return err_set(err, ERR_BAD_INPUT,
                           "a logit bias or ban of token %d; the vocabulary has %u",
                           d->biases[i].token, info->n_vocab);
        }
    }
    d->params.n_ctx = ctx;
    return 0;
}

static int admit(struct broker *b, struct request *r, struct err *err)
{
    struct request_draft *d = r->draft;
    const struct model *m = r->model;
    struct journal *j = &r->shard->journal;
    struct journal_params *p = &d->params;
    if (!m->info.generates) {
        return err_set(err, ERR_UNSUPPORTED, "model %s gives embeddings; it does not generate text",
                       m->file.name);
    }
    if (check_numbers(b, d, m, err) < 0) {
        return -1;
    }
    uint32_t piece = m->info.piece_bytes_max ? m->info.piece_bytes_max : LIMIT_PIECE_BYTES;
    if (!d->has_n_max) {
        uint64_t one = journal_log_need(2, piece, p->n_alternatives) -
                       journal_log_need(1, piece, p->n_alternatives);
        uint64_t fits = j->header.arena_bytes / OPEN_END_SHARE / one;
        p->n_max = p->n_ctx - d->n_ids;
        p->n_max = p->n_max < fits ? p->n_max : (uint32_t)fits;
    }
    if (quota_tokens(b, r->shard, (uint64_t)d->n_ids + p->n_max, err) < 0) {
        return -1;
    }
    uint32_t biases_bytes = p->n_biases * (uint32_t)sizeof(struct journal_bias);
    uint64_t log_bytes = journal_log_need(p->n_max, piece, p->n_alternatives);
    int at = journal_reserve(j, d->n_ids, biases_bytes + d->strings_bytes, log_bytes, err);
    while (at < 0 && err->code == ERR_BUSY && requests_free_left(b, r->shard)) {
        at = journal_reserve(j, d->n_ids, biases_bytes + d->strings_bytes, log_bytes, err);
    }
    if (at < 0) {
        return -1;
    }
    struct journal_slot *slot = journal_slot_at(j, (uint32_t)at);
    struct journal_extra *extra = journal_extra_of(j, slot);
    *extra = (struct journal_extra){ biases_bytes, d->strings_bytes };
    memcpy(extra + 1, d->biases, biases_bytes);
    if (d->strings_bytes) {
        memcpy((uint8_t *)(extra + 1) + biases_bytes, d->strings, d->strings_bytes);
    }
    memcpy(journal_prompt(j, slot), d->ids, d->n_ids * sizeof *d->ids);
    if (!d->has_seed) {
        broker_random(&p->seed, sizeof p->seed);
    }
    p->deadline_unix_ms = r->deadline_unix_ms;
    memcpy(slot->id, r->id, sizeof slot->id);
    slot->body_digest = r->digest;
    slot->flow = r->flow;
    slot->admit_seq = r->admit_seq = ++b->last_admit;
    slot->admitted_unix_ms = broker_unix_ms();
    slot->params = *p;
    slot->state_bytes = m->state_want;
    slot->model = (struct journal_model){ .device = m->file.device,
                                          .inode = m->file.inode,
                                          .size = m->file.size_bytes,
                                          .mtime_ns = m->file.mtime_ns,
                                          .digest = m->digest };
    memcpy(slot->model.name, d->model_name, sizeof slot->model.name);
    slot->records = r->records;
    slot->acked = 0;
    slot->attached = r->client;
    const struct client *c = clients_find(&b->clients, r->client);
    atomic_store_explicit(&slot->reader,
                          r->records ? b->records.reader
                          : c        ? c->reader
                                     : 0,
                          memory_order_relaxed);
    atomic_store_explicit(&slot->owner, 0, memory_order_relaxed);
    r->slot = (uint32_t)at;
    r->generation = slot->generation + 1;
    journal_publish(slot);
    r->admitted = true;
    if (r->records) {
        records_begin(b, r, &r->peer, 0);
    }
    return 0;
}

void submit_advance(struct broker *b, struct request *r)
{
    struct err err = { 0 };
    struct request_draft *d = r->draft;
    if (!d->has_ids && !d->text_asked) {
        if (texts_prompt(b, r, &err) < 0) {
            request_end(b, r, JOURNAL_END_ERROR, &err);
            return;
        }
        d->text_asked = true;
    }
    if (!d->has_ids || !r->model->info.known) {
        return; /* texts and models are asked for by what stands in the tables */
    }
    if (admit(b, r, &err) < 0) {
        request_end(b, r, JOURNAL_END_ERROR, &err);
        return;
    }
    struct post_to to = { r->peer, r->has_cookie, r->cookie };
    request_move(b, r, REQUEST_QUEUED, "admitted");
    submit_accepted(b, &to, r);
    free(d->payload);
    explicit_bzero(d->ids, d->n_ids * sizeof *d->ids);
    free(d->ids);
    free(d->strings);
    free(d);
    r->draft = NULL;
    broker_alarm(b, b->now_ms);
}
