/* Evaluations: logits or embeddings of given ids, through a bulk segment of shared memory. The client's question is kept
 * with its ids until it is answered: a worker that dies makes it begin again, a model that left makes it want its model
 * again (models.c asks evals_waiting every turn). They count in their client's flow as requests do (queue.h): a worker has a
 * few at a time, next comes the flow that was served least. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/link.h"
#include "proto/message.h"

struct broker;
struct client;
struct model;
struct post_to;

#define EVALS_MAX        64 /* waiting or running */
#define EVALS_AT_ONCE    4  /* of a model with its worker: one computes, the next ones are there */
#define EVALS_LENS_MAX   8192 /* sequences of one evaluation */
#define EVALS_DEATHS_MAX 2    /* workers that died by a fault under it */

enum eval_state {
    EVAL_WAITING,  /* for its model and a worker */
    EVAL_MAKING,   /* the keeper makes its segment; then it holds the ids */
    EVAL_GRANTING, /* the worker is being allowed to take it */
    EVAL_RUNNING,
    EVAL_HANDING, /* the result is on its way to the client */
};

struct eval {
    struct eval *next;
    uint64_t number;
    enum eval_state state;
    struct model *model;
    uint64_t client, flow;
    bool billed; /* its ids are charged to its flow */
    struct link_peer peer;
    bool has_cookie;
    uint64_t cookie;
    uint32_t kind, start;
    uint32_t *lens; /* owned */
    uint32_t n_lens;
    int32_t *ids; /* owned */
    uint64_t n_ids;
    uint64_t segment, ids_bytes, bytes; /* ids_bytes: where the result begins */
    uint32_t worker;                    /* child that computes it */
    uint32_t deaths;
    uint64_t born_ms;
    uint64_t n_rows, n_cols;
    bool has_perplexity;
    double perplexity;
};

struct evals {
    struct eval *first;
    uint32_t n;
};

void evals_ask(struct broker *b, const struct post_to *to, const struct client *client,
               struct model *model, const Hearth__Evaluate *ask, const void *payload,
               size_t payload_len);

/* The keeper's answers: the segment as a descriptor (taken), or why not. */
void evals_on_bulk(struct broker *b, uint64_t number, int fd, const struct err *err);
void evals_on_result(struct broker *b, uint64_t number, int fd, const struct err *err);

void evals_done(struct broker *b, uint32_t child, const Hearth__WorkerEvaluated *done);

/* The worker is gone: its evaluations begin again. */
void evals_worker_died(struct broker *b, uint32_t child, bool by_fault);

/* The worker lives and forgot what it was asked, with the link by which it was. */
void evals_told_again(struct broker *b, uint32_t child);
/* The client is gone. */
void evals_client_gone(struct broker *b, uint64_t client);
void evals_fail(struct broker *b, struct model *model, const struct err *why);

/* Evaluations that want a model (waiting and running), and those that run on it. */
uint32_t evals_waiting(const struct broker *b, const struct model *model, uint64_t *oldest_ms);
uint32_t evals_running(const struct broker *b, const struct model *model);

void evals_act(struct broker *b);
void evals_clear(struct evals *e);
