/* A request's way to its tokens, as a device takes it (op_sample in backend.h): the same token that sampler_choose would choose. What
 * only the host does is told by pick_can: DRY, typical-p, top-n-sigma, XTC, mirostat, adaptive-p, a temperature that follows the
 * entropy, alternatives, a token twice among the biases, penalties behind filters or over a very long window. Loop thread. */
#pragma once

#include "worker/backend.h"
#include "worker/sampler.h"

/* Scratch for one vocabulary. pieces is borrowed. */
struct picker;
struct picker *picker_create(uint32_t n_vocab, const struct pieces *pieces, struct err *err);
void picker_destroy(struct picker **p);

/* Whether a device can choose the token that follows n_tokens. Cheap; asked before each step. */
bool pick_can(const struct picker *p, const struct sampler *s, uint32_t n_tokens);

/* Fills pick for the token that follows `tokens`, or, with `follows`, that follows those and the one that the slot holds. row and
 * slot are the caller's. changes: room for OP_PICK_CHANGES_MAX; returns how many there are. Only where pick_can. */
uint32_t pick_make(struct picker *p, const struct sampler *s, const int32_t *tokens,
                   uint32_t n_tokens, bool follows, struct op_pick *pick,
                   struct op_pick_change *changes);

/* What came back as the sampler says it. picked->token is not -1. */
struct sampler_choice pick_choice(const struct sampler *s, const struct op_picked *picked);
