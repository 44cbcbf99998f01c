#include "broker/evals.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "proto/bytes.h"
#include "proto/log.h"
#include "proto/shm.h"

static void eval_destroy(struct broker *b, struct eval *e)
{
    for (struct eval **at = &b->evals.first; *at; at = &(*at)->next) {
        if (*at == e) {
            *at = e->next;
            b->evals.n--;
            queue_leave(&b->queue, e->flow);
            break;
        }
    }
    free(e->lens);
    free(e->ids);
    free(e);
}

static void drop_segment(struct broker *b, struct eval *e)
{
    if (e->segment) {
        struct channel_msg drop = { .op = CHANNEL_DROP, .segment = e->segment };
        keeper_line_ask(b->keeper, &drop, NULL, 0, KEEPER_NOTHING, 0, 0);
        workers_revoke(b, e->segment);
        e->segment = 0;
    }
}

static struct eval *find(struct broker *b, uint64_t number)
{
    for (struct eval *e = b->evals.first; e; e = e->next) {
        if (e->number == number) {
            return e;
        }
    }
    return NULL;
}

static void fail(struct broker *b, struct eval *e, const struct err *why)
{
    struct post_to to = { e->peer, e->has_cookie, e->cookie };
    post_failed(b, &to, NULL, why);
    drop_segment(b, e);
    eval_destroy(b, e);
}

static int read_lens(struct eval *e, const Hearth__Evaluate *ask, struct err *err)
{
    e->n_lens = ask->n_lens ? (uint32_t)ask->n_lens : 1;
    if (ask->n_lens > EVALS_LENS_MAX) {
        return err_set(err, ERR_BAD_INPUT, "%zu sequences; there are at most %d", ask->n_lens,
                       EVALS_LENS_MAX);
    }
    e->lens = malloc(e->n_lens * sizeof *e->lens);
    if (!e->lens) {
        return err_set(err, ERR_NO_MEMORY, "no memory for an evaluation");
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < e->n_lens; i++) {
        e->lens[i] = ask->n_lens ? ask->lens[i] : (uint32_t)e->n_ids;
        if (e->lens[i] == 0) {
            return err_set(err, ERR_BAD_INPUT, "sequence %u has no tokens", i);
        }
        sum += e->lens[i];
    }
    if (sum != e->n_ids) {
        return err_set(err, ERR_BAD_INPUT,
                       "the lengths add up to %" PRIu64 ", there are %" PRIu64 " tokens", sum,
                       e->n_ids);
    }
    return 0;
}

void evals_ask(struct broker *b, const struct post_to *to, const struct client *client,
               struct model *model, const Hearth__Evaluate *ask, const void *payload,
               size_t payload_len)
{
    struct err err = { 0 };
    struct eval *e = NULL;
    if (b->evals.n == EVALS_MAX) {
        err_set(&err, ERR_BUSY, "%d evaluations wait already", EVALS_MAX);
        goto fail;
    }
    if (payload_len == 0 || payload_len % sizeof(int32_t)) {
        err_set(&err, ERR_BAD_INPUT, "%zu bytes are not a list of token ids", payload_len);
        goto fail;
    }
    if (ask->kind > HEARTH__EVAL_KIND__EMBED) {
        err_set(&err, ERR_BAD_INPUT, "evaluation %d is not known", (int)ask->kind);
        goto fail;
    }
    e = calloc(1, sizeof *e);
    if (e) {
        e->ids = malloc(payload_len);
    }
    if (!e || !e->ids) {
        err_set(&err, ERR_NO_MEMORY, "no memory for %zu bytes of token ids", payload_len);
        goto fail;
    }
    memcpy(e->ids, payload, payload_len);
    e->n_ids = payload_len / sizeof(int32_t);
    if (read_lens(e, ask, &err) < 0 || workers_all_down(&b->workers, &err)) {
        goto fail;
    }
    e->number = broker_serial(b);
    e->model = model;
    e->client = client->number;
    e->flow = clients_flow_named(client, ask->flow);
    e->peer = to->peer;
    e->has_cookie = to->has_cookie;
    e->cookie = to->cookie;
    e->kind = ask->kind;
    e->start = ask->has_start ? ask->start : 0;
    e->born_ms = b->now_ms;
    struct eval **at = &b->evals.first;
    while (*at) {
        at = &(*at)->next;
    }
    *at = e;
    b->evals.n++;
    queue_enter(&b->queue, e->flow);
    model->used_ms = b->now_ms;
    return;
fail:
    if (e) {
        free(e->lens);
        free(e->ids);
        free(e);
    }
    post_failed(b, to, NULL, &err);
}

/* ---- its segment ---- */

/* The embedding that the model's own key pooling_type asks for; the mean where it says nothing. */
static uint32_t pooling_of(const char *name)
{
    static const struct {
        const char *name;
        Hearth__EvalKind kind;
    } rows[] = { { "cls", HEARTH__EVAL_KIND__EMBED_CLS },
                 { "last", HEARTH__EVAL_KIND__EMBED_LAST } };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (strcmp(name, rows[i].name) == 0) {
            return rows[i].kind;
        }
    }
    return HEARTH__EVAL_KIND__EMBED_MEAN;
}

static int plan_bytes(struct eval *e, struct err *err)
{
    const struct model_info *info = &e->model->info;
    uint64_t longest = 0, cells;
    for (uint32_t i = 0; i < e->n_lens; i++) {
        longest = e->lens[i] > longest ? e->lens[i] : longest;
    }
    if (longest + e->start > info->ctx) {
        return err_set(err, ERR_NO_FIT,
                       "the longest sequence ends at %" PRIu64 ", the context of %s is %u",
                       longest + e->start, e->model->file.name, info->ctx);
    }
    for (uint64_t i = 0; i < e->n_ids; i++) {
        if (e->ids[i] < 0 || (uint32_t)e->ids[i] >= info->n_vocab) {
            return err_set(err, ERR_BAD_INPUT, "token %" PRIu64 " is %d; the vocabulary has %u", i,
                           e->ids[i], info->n_vocab);
        }
    }
    if (e->kind == HEARTH__EVAL_KIND__EMBED && strcmp(info->pooling, "rank") == 0) {
        return err_set(err, ERR_UNSUPPORTED,
                       "model %s gives a score for a pair of texts (pooling_type 4); it has no "
                       "embedding of its own",
                       e->model->file.name);
    }
    if (e->kind == HEARTH__EVAL_KIND__EMBED) {
        e->kind = pooling_of(info->pooling);
    }
    bool logits = e->kind == HEARTH__EVAL_KIND__LOGITS;
    if (logits && !info->generates) {
        return err_set(err, ERR_UNSUPPORTED, "model %s gives embeddings, no logits",
                       e->model->file.name);
    }
    uint64_t rows = logits || e->kind == HEARTH__EVAL_KIND__EMBED_NONE ? e->n_ids
                    : e->kind == HEARTH__EVAL_KIND__PERPLEXITY         ? 0
                                                                       : e->n_lens;
    if (!size_mul(rows, logits ? info->n_vocab : info->n_embd, &cells) || cells > 1ull << 40) {
        return err_set(err, ERR_NO_FIT, "a result of %" PRIu64 " rows does not fit", rows);
    }
    e->ids_bytes = align_up(e->n_ids * sizeof(int32_t), 64);
    e->bytes = e->ids_bytes + cells * sizeof(float);
    return 0;
}

static void begin(struct broker *b, struct eval *e, struct worker *w)
{
    struct err err = { 0 };
    if (plan_bytes(e, &err) < 0) {
        fail(b, e, &err);
        return;
    }
    struct channel_msg msg = { .op = CHANNEL_CREATE,
                               .segment = broker_segment(b),
                               .bytes = e->bytes };
    snprintf(msg.tag, sizeof msg.tag, "bulk %" PRIu64, e->number);
    if (!e->billed) {
        queue_charge(&b->queue, e->flow, QUEUE_NORMAL, e->n_ids);
        e->billed = true;
    }
    e->segment = msg.segment;
    e->worker = w->child;
    e->state = EVAL_MAKING;
    keeper_line_ask(b->keeper, &msg, NULL, 0, KEEPER_CREATE_BULK, e->number, 0);
    msg.op = CHANNEL_TAKE;
    keeper_line_ask(b->keeper, &msg, NULL, 0, KEEPER_TAKE_BULK, e->number, e->segment);
}

void evals_on_bulk(struct broker *b, uint64_t number, int fd, const struct err *err)
{
    struct eval *e = find(b, number);
    struct err why = *err;
    if (!e || e->state != EVAL_MAKING) {
        goto out;
    }
    if (why.code == ERR_NONE) {
        const uint8_t *at = (const uint8_t *)e->ids;
        size_t left = e->n_ids * sizeof(int32_t);
        off_t off = 0;
        while (left > 0) {
            ssize_t n = pwrite(fd, at + off, left, off);
            if (n <= 0) {
                err_set_errno(&why, ERR_IO, "write the ids of an evaluation");
                break;
            }
            off += n;
            left -= (size_t)n;
        }
    }
    struct worker *w = workers_find(&b->workers, e->worker);
    if (why.code != ERR_NONE) {
        fail(b, e, &why);
    } else if (w) {
        workers_grant(b, w, e->segment, true, false);
        e->state = EVAL_GRANTING;
    }
out:
    if (fd >= 0) {
        close(fd);
    }
}

static void run(struct broker *b, struct eval *e, struct worker *w)
{
    Hearth__WorkerEvaluate msg = HEARTH__WORKER_EVALUATE__INIT;
    msg.work = e->number;
    msg.model = e->model->number;
    msg.kind = (Hearth__EvalKind)e->kind;
    msg.n_lens = e->n_lens;
    msg.lens = e->lens;
    msg.has_start = true;
    msg.start = e->start;
    msg.segment = e->segment;
    msg.ids_bytes = e->ids_bytes;
    msg.n_ids = e->n_ids;
    if (post_tell(b, &w->peer, HEARTH__ENVELOPE__BODY_WORKER_EVALUATE, &msg) == 0) {
        e->state = EVAL_RUNNING;
    } else {
        broker_alarm(b, b->now_ms + 10);
    }
}

/* ---- its end ---- */

void evals_done(struct broker *b, uint32_t child, const Hearth__WorkerEvaluated *done)
{
    struct eval *e = find(b, done->work);
    struct err why = { 0 };
    if (!e || e->state != EVAL_RUNNING || e->worker != child) {
        return;
    }
    if (done->has_code) {
        char code[64];
        message_copy(code, sizeof code, done->code);
        why.code = err_code_of_name(code);
        message_copy(why.text, sizeof why.text, done->text);
        if (why.code == ERR_BUSY || why.code == ERR_NOT_FOUND) {
            drop_segment(b, e); /* its model has just left the device: it begins again */
            e->state = EVAL_WAITING;
            e->worker = 0;
            broker_alarm(b, b->now_ms + 50);
            return;
        }
        fail(b, e, &why);
        return;
    }
    e->model->swap.served++;
    e->n_rows = done->n_rows;
    e->n_cols = done->n_cols;
    e->has_perplexity = done->has_perplexity;
    e->perplexity = done->perplexity;
    e->state = EVAL_HANDING;
    struct worker *w = workers_find(&b->workers, child);
    if (w) {
        workers_proved(w);
    }
    struct channel_msg take = { .op = CHANNEL_TAKE, .segment = e->segment };
    keeper_line_ask(b->keeper, &take, NULL, 0, KEEPER_TAKE_RESULT, e->number, e->segment);
}

void evals_on_result(struct broker *b, uint64_t number, int fd, const struct err *err)
{
    struct eval *e = find(b, number);
    struct err why = *err;
    int readonly = -1;
    if (!e) {
        goto out;
    }
    struct client *c = clients_find(&b->clients, e->client);
    bool bulk = e->n_rows > 0 && e->n_cols > 0;
    if (why.code == ERR_NONE && bulk) {
        readonly = shm_reopen_readonly(fd, &why);
    }
    if (readonly >= 0 && c && c->line >= 0) {
        struct channel_msg msg = { .op = CHANNEL_BULK, .value = e->number, .bytes = e->ids_bytes };
        if (channel_send(c->line, &msg, &readonly, 1, &why) < 0) {
            err_wrap(&why, "the result for its client");
        }
    }
    if (why.code != ERR_NONE) {
        fail(b, e, &why);
        goto out;
    }
    struct post_to to = { e->peer, e->has_cookie, e->cookie };
    Hearth__Evaluated msg = HEARTH__EVALUATED__INIT;
    msg.tag = e->number;
    msg.n_rows = e->n_rows;
    msg.n_cols = e->n_cols;
    msg.has_perplexity = e->has_perplexity;
    msg.perplexity = e->perplexity;
    msg.has_model = true;
    msg.model = message_str(e->model->file.name);
    post_say(b, &to, HEARTH__ENVELOPE__BODY_EVALUATED, &msg, NULL, 0);
    drop_segment(b, e);
    eval_destroy(b, e);
out:
    if (fd >= 0) {
        close(fd);
    }
    if (readonly >= 0) {
        close(readonly);
    }
}

void evals_worker_died(struct broker *b, uint32_t child, bool by_fault)
{
    for (struct eval *e = b->evals.first, *next; e; e = next) {
        next = e->next;
        if (e->worker != child || e->state == EVAL_HANDING || e->state == EVAL_WAITING) {
            continue;
        }
        bool was_running = e->state == EVAL_RUNNING;
        drop_segment(b, e);
        e->worker = 0;
        e->state = EVAL_WAITING;
        if (by_fault && was_running && ++e->deaths >= EVALS_DEATHS_MAX) {
            struct err why;
            err_set(&why, ERR_POISON, "the worker died %u times under this evaluation", e->deaths);
            fail(b, e, &why);
        }
    }
}

void evals_told_again(struct broker *b, uint32_t child)
{
    for (struct eval *e = b->evals.first; e; e = e->next) {
        if (e->worker == child && e->state == EVAL_RUNNING) {
            e->state = EVAL_GRANTING; /* its segment is there: the letter alone is repeated */
        }
    }
}

void evals_client_gone(struct broker *b, uint64_t client)
{
    for (struct eval *e = b->evals.first, *next; e; e = next) {
        next = e->next;
        if (e->client == client) {
            /* The worker finishes it for nobody; its answer finds no evaluation. */
            drop_segment(b, e);
            eval_destroy(b, e);
        }
    }
}

void evals_fail(struct broker *b, struct model *model, const struct err *why)
{
    for (struct eval *e = b->evals.first, *next; e; e = next) {
        next = e->next;
        if (e->model == model && e->state != EVAL_HANDING) {
            fail(b, e, why);
        }
    }
}

uint32_t evals_waiting(const struct broker *b, const struct model *model, uint64_t *oldest_ms)
{
    uint32_t n = 0;
    for (const struct eval *e = b->evals.first; e; e = e->next) {
        if (e->model == model && e->state != EVAL_HANDING) {
            n++;
            if (e->state == EVAL_WAITING && (*oldest_ms == 0 || e->born_ms < *oldest_ms)) {
                *oldest_ms = e->born_ms;
            }
        }
    }
    return n;
}

uint32_t evals_running(const struct broker *b, const struct model *model)
{
    uint32_t n = 0;
    for (const struct eval *e = b->evals.first; e; e = e->next) {
        n += e->model == model && e->state != EVAL_HANDING && e->state != EVAL_WAITING;
    }
    return n;
}

/* Of those that wait for this model, the one of the flow that was served least. */
static struct eval *next_of(struct broker *b, const struct model *m)
{
    struct eval *best = NULL;
    for (struct eval *e = b->evals.first; e; e = e->next) {
        struct queue_place place = { e->flow, QUEUE_NORMAL, e->number };
        struct queue_place best_place = { best ? best->flow : 0, QUEUE_NORMAL,
                                          best ? best->number : 0 };
        if (e->model == m && e->state == EVAL_WAITING &&
            (!best || queue_before(&b->queue, &place, &best_place))) {
            best = e;
        }
    }
    return best;
}

static void act_model(struct broker *b, struct model *m)
{
    struct worker *w = workers_find(&b->workers, m->worker);
    struct eval *e;
    if (m->state != MODEL_RESIDENT || m->bind != BIND_BOUND || !m->info.known || !w ||
        w->state != WORKER_READY) {
        return;
    }
    while (evals_running(b, m) < EVALS_AT_ONCE && (e = next_of(b, m))) {
        begin(b, e, w); /* it runs, or has failed */
    }
}

void evals_act(struct broker *b)
{
    for (uint32_t i = 0; i < b->models.n && b->evals.first; i++) {
        act_model(b, b->models.list[i]);
    }
    for (struct eval *e = b->evals.first, *next; e; e = next) {
        next = e->next;
        struct worker *w = workers_find(&b->workers, e->worker);
        if (e->state == EVAL_GRANTING && w && workers_granted(w, e->segment)) {
            run(b, e, w);
        }
    }
}

void evals_clear(struct evals *t)
{
    while (t->first) {
        struct eval *e = t->first;
        t->first = e->next;
        free(e->lens);
        free(e->ids);
        free(e);
    }
    t->n = 0;
}
