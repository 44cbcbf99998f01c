/* Questions that are not generations: status, load and unload, text work, evaluation. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clients/connection.h"
#include "clients/status_json.h"
#include "proto/shm.h"

/* Asks; the answer must be of this kind. */
static Hearth__Envelope *ask_for(struct hearth *h, Hearth__Envelope__BodyCase question, void *body,
                                 const void *payload, size_t payload_len,
                                 Hearth__Envelope__BodyCase wanted, const uint8_t **answer,
                                 size_t *answer_len, struct err *err)
{
    Hearth__Envelope e = message_envelope(question, body);
    Hearth__Envelope *got = connection_ask(h, &e, payload, payload_len, answer, answer_len, err);
    if (got && got->body_case != wanted) {
        err_set(err, ERR_BAD_INPUT, "the broker answered %s with %s", message_name(question),
                message_name(got->body_case));
        return NULL;
    }
    return got;
}

static char *status(struct hearth *h, bool all, bool ledger, struct hearth_error *error)
{
    struct err err = { 0 };
    Hearth__StatusAsk ask = HEARTH__STATUS_ASK__INIT;
    ask.has_all_models = ask.has_ledger = true;
    ask.all_models = all;
    ask.ledger = ledger;
    Hearth__Envelope *got = ask_for(h, HEARTH__ENVELOPE__BODY_STATUS_ASK, &ask, NULL, 0,
                                    HEARTH__ENVELOPE__BODY_STATUS, NULL, NULL, &err);
    char *text = got ? status_json(got->status, &err) : NULL;
    if (!text) {
        connection_error(error, &err);
    }
    return text;
}

char *hearth_status(struct hearth *h, bool all, struct hearth_error *error)
{
    return status(h, all, false, error);
}

char *hearth_ledger(struct hearth *h, struct hearth_error *error)
{
    return status(h, false, true, error);
}

int hearth_load_begin(struct hearth *h, const char *model, bool pin, struct hearth_error *error)
{
    struct err err = { 0 };
    free(h->loading);
    h->loading = strdup(model);
    h->load_pin = pin;
    h->load_asked_on = h->generation - 1; /* to be asked */
    h->load.cookie = UINT64_MAX;          /* nobody's yet */
    h->load.refused = false;
    if (!h->loading) {
        err_set(&err, ERR_NO_MEMORY, "no memory for a name");
        connection_error(error, &err);
        return -1;
    }
    return 0;
}

/* Asks on this connection, if that has not been done. */
static int say_load(struct hearth *h, struct err *err)
{
    if (h->state != CONNECTION_UP || h->load_asked_on == h->generation) {
        return 0;
    }
    Hearth__ModelLoad ask = HEARTH__MODEL_LOAD__INIT;
    ask.model = message_str(h->loading);
    ask.has_pin = true;
    ask.pin = h->load_pin;
    Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_MODEL_LOAD, &ask);
    e.has_cookie = true;
    e.cookie = h->load.cookie = ++h->last_cookie;
    h->load.refused = false;
    h->load_asked_on = h->generation;
    return connection_send(h, &e, NULL, 0, err);
}

/* The answer, if it is there: 1, else 0; -1. */
static int hear_load(struct hearth *h, struct err *err)
{
    const uint8_t *payload;
    size_t len;
    while (h->state == CONNECTION_UP && connection_recv(h, &payload, &len)) {
    }
    if (h->load.refused) {
        *err = h->load.why;
        return -1;
    }
    return h->load.cookie == 0;
}

enum hearth_result hearth_load_next(struct hearth *h, int timeout_ms, struct hearth_error *error)
{
    struct err err = { 0 };
    uint64_t now,
        deadline = timeout_ms < 0 ? UINT64_MAX : connection_now_ms() + (uint64_t)timeout_ms;
    int got;
    while ((got = say_load(h, &err)) == 0 && (got = hear_load(h, &err)) == 0) {
        now = connection_now_ms();
        if (now >= deadline) {
            return HEARTH_TIMEOUT;
        }
        uint64_t left = deadline - now;
        if (connection_turn(h, left < LIMIT_SLEEP_MS ? (int)left : LIMIT_SLEEP_MS, &err) < 0) {
            got = -1;
            break;
        }
    }
    if (got > 0) {
        return HEARTH_TOKEN;
    }
    connection_error(error, &err);
    return err.code == ERR_INTERRUPTED ? HEARTH_INTERRUPTED : HEARTH_FAILED;
}

int hearth_load(struct hearth *h, const char *model, bool pin, struct hearth_error *error)
{
    return hearth_load_begin(h, model, pin, error) == 0 &&
                   hearth_load_next(h, -1, error) == HEARTH_TOKEN
               ? 0
               : -1;
}

int hearth_unload(struct hearth *h, const char *model, struct hearth_error *error)
{
    struct err err = { 0 };
    Hearth__ModelUnload ask = HEARTH__MODEL_UNLOAD__INIT;
    ask.model = message_str(model);
    if (!ask_for(h, HEARTH__ENVELOPE__BODY_MODEL_UNLOAD, &ask, NULL, 0, HEARTH__ENVELOPE__BODY_DONE,
                 NULL, NULL, &err)) {
        connection_error(error, &err);
        return -1;
    }
    return 0;
}

int hearth_yield(struct hearth *h, uint64_t bytes, uint32_t seconds, uint64_t *left, uint64_t *of,
                 struct hearth_error *error)
{
    struct err err = { 0 };
    Hearth__Yield ask = HEARTH__YIELD__INIT;
    char text[128] = "";
    unsigned long long budget[2] = { 0 };
    ask.has_bytes = ask.has_all = true;
    ask.all = bytes == UINT64_MAX;
    ask.bytes = ask.all ? 0 : bytes;
    ask.has_for_s = seconds > 0;
    ask.for_s = seconds;
    Hearth__Envelope *got = ask_for(h, HEARTH__ENVELOPE__BODY_YIELD, &ask, NULL, 0,
                                    HEARTH__ENVELOPE__BODY_DONE, NULL, NULL, &err);
    if (!got) {
        connection_error(error, &err);
        return -1;
    }
    message_copy(text, sizeof text, got->done->text);
    sscanf(text, "%llu of %llu", &budget[0], &budget[1]);
    if (left) {
        *left = budget[0];
    }
    if (of) {
        *of = budget[1];
    }
    return 0;
}

void *hearth_text(struct hearth *h, const struct hearth_text *text, size_t *len,
                  struct hearth_error *error)
{
    struct err err = { 0 };
    const uint8_t *answer = NULL;
    size_t answer_len = 0;
    Hearth__TextAsk ask = HEARTH__TEXT_ASK__INIT;
    ask.has_model = text->model != NULL;
    ask.model = message_str(text->model ? text->model : "");
    ask.op = (Hearth__TextOp)text->op;
    ask.has_add_special = ask.has_parse_special = true;
    ask.add_special = text->add_special;
    ask.parse_special = text->parse_special;
    ask.has_remove_special = ask.has_unparse_special = true;
    ask.remove_special = text->remove_special;
    ask.unparse_special = text->unparse_special;
    ask.has_now = text->now != 0;
    ask.now = text->now;
    if (!ask_for(h, HEARTH__ENVELOPE__BODY_TEXT_ASK, &ask, text->input_len ? text->input : "",
                 text->input_len, HEARTH__ENVELOPE__BODY_TEXT_ANSWER, &answer, &answer_len, &err)) {
        connection_error(error, &err);
        return NULL;
    }
    char *copy = malloc(answer_len + 1);
    if (!copy) {
        err_set(&err, ERR_NO_MEMORY, "no memory for %zu bytes of answer", answer_len);
        connection_error(error, &err);
        return NULL;
    }
    if (answer_len) {
        memcpy(copy, answer, answer_len);
    }
    copy[answer_len] = 0;
    *len = answer_len;
    return copy;
}

/* ---- evaluation ---- */

/* The result's descriptor comes on the attach line, beside the message and in either order. */
static int take_bulk(struct hearth *h, uint64_t tag, struct hearth_matrix *out, uint64_t ids_bytes,
                     struct err *err)
{
    uint64_t until = connection_now_ms() + LIMIT_COME_BACK_S * 1000;
    while (h->bulk_fd < 0 || h->bulk_tag != tag) {
        if (connection_now_ms() > until) {
            return err_set(err, ERR_TIMEOUT, "the result's memory did not come");
        }
        if (connection_turn(h, LIMIT_SLEEP_MS, err) < 0) {
            return -1;
        }
    }
    out->mapping = shm_map(h->bulk_fd, false, &out->mapping_bytes, err);
    close(h->bulk_fd);
    h->bulk_fd = -1;
    if (!out->mapping) {
        return -1;
    }
    if (out->n_cols &&
        out->n_rows > (out->mapping_bytes - ids_bytes) / sizeof(float) / out->n_cols) {
        hearth_matrix_free(out);
        return err_set(err, ERR_BAD_INPUT, "the result's memory is smaller than the result");
    }
    out->data = (const float *)(const void *)((const uint8_t *)out->mapping + ids_bytes);
    return 0;
}

int hearth_evaluate(struct hearth *h, const struct hearth_evaluation *what,
                    struct hearth_matrix *out, struct hearth_error *error)
{
    struct err err = { 0 };
    Hearth__Evaluate ask = HEARTH__EVALUATE__INIT;
    *out = (struct hearth_matrix){ 0 };
    ask.has_model = what->model != NULL;
    ask.model = message_str(what->model ? what->model : "");
    ask.kind = (Hearth__EvalKind)what->kind;
    ask.n_lens = what->lens ? what->n_lens : 0;
    ask.lens = (uint32_t *)(uintptr_t)what->lens;
    ask.has_start = true;
    ask.start = what->start;
    ask.has_ctx = what->ctx > 0;
    ask.ctx = what->ctx;
    ask.has_flow = what->flow != NULL;
    ask.flow = message_str(what->flow ? what->flow : "");
    Hearth__Envelope *got = ask_for(h, HEARTH__ENVELOPE__BODY_EVALUATE, &ask, what->ids,
                                    what->n_ids * sizeof *what->ids,
                                    HEARTH__ENVELOPE__BODY_EVALUATED, NULL, NULL, &err);
    if (!got) {
        connection_error(error, &err);
        return -1;
    }
    uint64_t tag = got->evaluated->tag;
    out->n_rows = got->evaluated->n_rows;
    out->n_cols = got->evaluated->n_cols;
    out->perplexity = got->evaluated->perplexity;
    /* Ids lie at the bulk segment's start; the result follows at the next multiple of 64. */
    uint64_t ids_bytes = (what->n_ids * sizeof *what->ids + 63) / 64 * 64;
    if (what->kind != HEARTH_PERPLEXITY && take_bulk(h, tag, out, ids_bytes, &err) < 0) {
        connection_error(error, &err);
        return -1;
    }
    return 0;
}

void hearth_matrix_free(struct hearth_matrix *m)
{
    shm_unmap(m->mapping, m->mapping_bytes);
    *m = (struct hearth_matrix){ 0 };
}
