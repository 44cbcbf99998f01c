/* Submit and what follows until a request is admitted: its parameters are checked, its model is found, and once its tokens
 * and its model's limits are known it gets its slot in the journal. Loop thread only. */
#pragma once

#include <stddef.h>

#include "proto/message.h"

struct broker;
struct client;
struct post_to;
struct request;

void submit_take(struct broker *b, const struct post_to *to, struct client *c,
                 const Hearth__Submit *submit, const void *payload, size_t payload_len);

/* The prompt's tokens are known (or not: why). Takes ids. */
void submit_prompt_done(struct broker *b, struct request *r, int32_t *ids, uint32_t n_ids,
                        const struct err *why);

/* Moves a rendering request on when all it needs is there. */
void submit_advance(struct broker *b, struct request *r);

/* Tells (again) where the request's log is. */
void submit_accepted(struct broker *b, const struct post_to *to, const struct request *r);
