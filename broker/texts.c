#include "broker/texts.h"

#include <stdlib.h>
#include <string.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "broker/submit.h"
#include "proto/log.h"

static void work_destroy(struct text_work *w)
{
    if (w->payload) {
        explicit_bzero(w->payload, w->payload_len);
        free(w->payload);
    }
    free(w->template);
    free(w);
}

/* A new work at the end of the line, or NULL. */
static struct text_work *work_create(struct broker *b, struct model *model,
                                     const struct config_alias *alias, const void *payload,
                                     size_t payload_len, struct err *err)
{
    struct texts *t = &b->texts;
    if (t->n == TEXTS_MAX) {
        err_set(err, ERR_BUSY, "%d text works wait already", TEXTS_MAX);
        return NULL;
    }
    struct text_work *w = calloc(1, sizeof *w);
    if (w) {
        w->payload = malloc(payload_len + 1);
        w->template = alias && alias->template ? strdup(alias->template) : NULL;
    }
    if (!w || !w->payload || (alias && alias->template && !w->template)) {
        if (w) {
            work_destroy(w);
        }
        err_set(err, ERR_NO_MEMORY, "no memory for a text of %zu bytes", payload_len);
        return NULL;
    }
    if (payload_len) {
        memcpy(w->payload, payload, payload_len);
    }
    w->payload_len = payload_len;
    w->number = broker_serial(b);
    w->model = model;
    struct text_work **at = &t->first;
    while (*at) {
        at = &(*at)->next;
    }
    *at = w;
    t->n++;
    return w;
}

static struct text_work *take_work(struct texts *t, uint64_t number)
{
    for (struct text_work **at = &t->first; *at; at = &(*at)->next) {
        struct text_work *w = *at;
        if (w->number == number) {
            *at = w->next;
            t->n--;
            return w;
        }
    }
    return NULL;
}

void texts_ask(struct broker *b, const struct post_to *to, struct model *model,
               const struct config_alias *alias, const Hearth__TextAsk *ask, const void *payload,
               size_t payload_len)
{
    struct err err = { 0 };
    struct text_work *w = NULL;
    if (ask->op > HEARTH__TEXT_OP__PIECES && ask->op != HEARTH__TEXT_OP__PARSE) {
        err_set(&err, ERR_BAD_INPUT, "text work %d is not for clients", (int)ask->op);
    } else {
        w = work_create(b, model, alias, payload, payload_len, &err);
    }
    if (!w) {
        post_failed(b, to, NULL, &err);
        return;
    }
    w->peer = to->peer;
    w->has_cookie = to->has_cookie;
    w->cookie = to->cookie;
    w->op = ask->op;
    w->has_add = ask->has_add_special;
    w->add_special = ask->add_special;
    w->has_parse = ask->has_parse_special;
    w->parse_special = ask->parse_special;
    w->has_now = ask->has_now;
    w->now = ask->now;
    w->has_remove = ask->has_remove_special;
    w->remove_special = ask->remove_special;
    w->has_unparse = ask->has_unparse_special;
    w->unparse_special = ask->unparse_special;
    model->used_ms = b->now_ms;
}

int texts_prompt(struct broker *b, struct request *r, struct err *err)
{
    const struct config_alias *alias = config_find_alias(&b->config, r->draft->model_name);
    struct text_work *w = work_create(b, r->model, alias, r->draft->payload, r->draft->payload_len,
                                      err);
    if (!w) {
        return -1;
    }
    w->request = r->serial;
    w->op = HEARTH__TEXT_OP__PROMPT;
    w->kind = r->draft->kind;
    w->has_now = true;
    w->now = broker_unix_ms() / 1000;
    return 0;
}

/* Hands a work its end. ids or text are borrowed. */
static void finish(struct broker *b, struct text_work *w, const struct err *why,
                   const void *payload, size_t payload_len)
{
    struct post_to to = { w->peer, w->has_cookie, w->cookie };
    struct err err = *why;
    if (w->request) {
        struct request *r = requests_find_serial(&b->requests, w->request);
        int32_t *ids = NULL;
        if (r && err.code == ERR_NONE) {
            if (payload_len % sizeof *ids || payload_len / sizeof *ids > LIMIT_PROMPT_TOKENS) {
                err_set(&err, ERR_FAILED, "the text service answered %zu bytes of ids",
                        payload_len);
            } else if (!(ids = malloc(payload_len + 1))) {
                err_set(&err, ERR_NO_MEMORY, "no memory for a prompt of %zu bytes", payload_len);
            } else if (payload_len) {
                memcpy(ids, payload, payload_len);
            }
        }
        if (r) {
            submit_prompt_done(b, r, ids, (uint32_t)(payload_len / sizeof *ids), &err);
        }
    } else if (err.code != ERR_NONE) {
        post_failed(b, &to, NULL, &err);
    } else {
        Hearth__TextAnswer answer = HEARTH__TEXT_ANSWER__INIT;
        answer.model = message_str(w->model->file.name);
        post_say(b, &to, HEARTH__ENVELOPE__BODY_TEXT_ANSWER, &answer, payload ? payload : "",
                 payload_len);
    }
    work_destroy(w);
}

void texts_done(struct broker *b, uint32_t child, const Hearth__TextDone *done, const void *payload,
                size_t payload_len)
{
    struct text_work *w = take_work(&b->texts, done->work);
    struct err why = { 0 };
    if (!w) {
        return; /* answered by an earlier service, or its model failed */
    }
    if (w->sent_to != child) {
        log_warn("text service %u answers work %llu of another", child,
                 (unsigned long long)done->work);
    }
    if (done->has_code) {
        char code[64];
        message_copy(code, sizeof code, done->code);
        why.code = err_code_of_name(code);
        message_copy(why.text, sizeof why.text, done->text);
    }
    finish(b, w, &why, payload, payload_len);
}

void texts_service_died(struct broker *b, uint32_t child, bool by_fault)
{
    bool first = true;
    for (struct text_work *w = b->texts.first, *next; w; w = next) {
        next = w->next;
        if (w->sent_to != child) {
            continue;
        }
        w->sent_to = 0;
        /* It works in order: only the first can be the one that killed it. */
        if (by_fault && first && ++w->deaths >= TEXTS_DEATHS_MAX) {
            struct err why;
            err_set(&why, ERR_POISON, "the text service of %s died %u times at this text",
                    w->model->file.name, w->deaths);
            finish(b, take_work(&b->texts, w->number), &why, NULL, 0);
        }
        first = false;
    }
}

void texts_fail(struct broker *b, struct model *model, const struct err *why)
{
    for (struct text_work *w = b->texts.first, *next; w; w = next) {
        next = w->next;
        if (w->model == model) {
            finish(b, take_work(&b->texts, w->number), why, NULL, 0);
        }
    }
}

uint32_t texts_waiting(const struct broker *b, const struct model *model)
{
    uint32_t n = 0;
    for (const struct text_work *w = b->texts.first; w; w = w->next) {
        n += w->model == model;
    }
    return n;
}

static void send_work(struct broker *b, struct text_work *w)
{
    Hearth__TextAsk ask = HEARTH__TEXT_ASK__INIT;
    ask.op = (Hearth__TextOp)w->op;
    ask.has_add_special = w->has_add;
    ask.add_special = w->add_special;
    ask.has_parse_special = w->has_parse;
    ask.parse_special = w->parse_special;
    ask.has_now = w->has_now;
    ask.now = w->now;
    ask.has_remove_special = w->has_remove;
    ask.remove_special = w->remove_special;
    ask.has_unparse_special = w->has_unparse;
    ask.unparse_special = w->unparse_special;
    Hearth__TextWork work = HEARTH__TEXT_WORK__INIT;
    work.work = w->number;
    work.ask = &ask;
    work.has_chat_template = w->template != NULL;
    work.chat_template = message_str(w->template ? w->template : "");
    work.has_kind = w->request != 0;
    work.kind = (Hearth__PromptKind)w->kind;
    struct post_to to = { .peer = w->model->text.peer };
    if (post_say(b, &to, HEARTH__ENVELOPE__BODY_TEXT_WORK, &work, w->payload, w->payload_len) ==
        0) {
        w->sent_to = w->model->text.child;
        w->sent_ms = b->now_ms;
    } else {
        broker_alarm(b, b->now_ms + 10); /* its queue is full: it reads, so soon it is not */
    }
}

void texts_act(struct broker *b)
{
    for (struct text_work *w = b->texts.first, *next; w; w = next) {
        next = w->next;
        if (w->request && !requests_find_serial(&b->requests, w->request)) {
            work_destroy(take_work(&b->texts, w->number)); /* cancelled meanwhile */
            continue;
        }
        if (w->sent_to == 0 && w->model->text.ready) {
            send_work(b, w);
        } else if (w->sent_to && b->now_ms - w->sent_ms > TEXTS_HUNG_MS) {
            log_warn("text service of %s: no answer for %d s", w->model->file.name,
                     TEXTS_HUNG_MS / 1000);
            struct channel_msg kill = { .op = CHANNEL_KILL, .child = w->sent_to, .value = 9 };
            keeper_line_ask(b->keeper, &kill, NULL, 0, KEEPER_NOTHING, 0, 0);
            w->sent_ms = b->now_ms;
            if (++w->deaths >= TEXTS_DEATHS_MAX) {
                struct err why;
                err_set(&why, ERR_TIMEOUT, "the text service of %s did not answer in %d s",
                        w->model->file.name, TEXTS_HUNG_MS / 1000);
                finish(b, take_work(&b->texts, w->number), &why, NULL, 0);
            }
        } else if (w->sent_to) {
            broker_alarm(b, w->sent_ms + TEXTS_HUNG_MS + 1);
        }
    }
}

void texts_clear(struct texts *t)
{
    while (t->first) {
        struct text_work *w = t->first;
        t->first = w->next;
        work_destroy(w);
    }
    t->n = 0;
}
