/* The hands: threads that work on exchanges, each with a connection of its own to the broker, because a connection belongs to
 * one thread and libhearth's calls wait. A hand is made when work waits and none is idle, up to a bound, and stays.
 * Beyond the hands a bounded queue; beyond that the answer is 429. A hand that is free takes what waits of the key with the fewest
 * hands, and a part of hands and places is not for one key alone: another one's request begins at once, however much the
 * first one asks. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "proto/err.h"

#define POOL_HANDS_MAX 64  /* generations that one gateway has in flight; more wait here */
#define POOL_QUICK_MAX 4   /* hands for what never waits long: health, models, metrics */
#define POOL_QUEUE_MAX 256 /* exchanges that wait for a hand */
#define POOL_KEY_HANDS (POOL_HANDS_MAX * 3 / 4) /* of one API key */
#define POOL_KEY_QUEUE (POOL_QUEUE_MAX * 3 / 4)

struct exchange;
struct hand;
struct pool;

/* run: the runtime directory, borrowed. by_key: hands and places are shared between keys; for one pool only, which counts. */
struct pool *pool_create(const char *run, int n_hands_max, bool by_key, struct err *err);

/* Gives an exchange, whose reference is taken. False: the queue, or its key's part of it, is full; nothing is taken. Loop thread. */
bool pool_give(struct pool *p, struct exchange *take_x);

/* Interrupts what a hand waits for; its exchange's lock is held. */
void pool_interrupt(struct hand *hand);

/* How many work and how many exchanges wait. Any thread. */
void pool_load(struct pool *p, int *n_busy, int *n_waiting);

/* Waits for the hands to end; every exchange must have been left. */
void pool_destroy(struct pool **p);
