/* The hands: threads that work on exchanges, each with a connection of its own to the broker, because a connection belongs to
 * one thread and libhearth's calls wait. A hand is made when work waits and none is idle, up to a bound, and stays.
 * Beyond the hands a bounded queue; beyond that the answer is 429. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "proto/err.h"

#define POOL_HANDS_MAX 64  /* generations that one gateway has in flight; more wait here */
#define POOL_QUICK_MAX 4   /* hands for what never waits long: health, models, metrics */
#define POOL_QUEUE_MAX 256 /* exchanges that wait for a hand */

struct exchange;
struct hand;
struct pool;

/* run: the runtime directory, borrowed. */
struct pool *pool_create(const char *run, int n_hands_max, struct err *err);

/* Gives an exchange, whose reference is taken. False: the queue is full, nothing is taken. Loop thread. */
bool pool_give(struct pool *p, struct exchange *take_x);

/* Interrupts what a hand waits for; its exchange's lock is held. */
void pool_interrupt(struct hand *hand);

/* How many work and how many exchanges wait. Any thread. */
void pool_load(struct pool *p, int *n_busy, int *n_waiting);

/* Waits for the hands to end; every exchange must have been left. */
void pool_destroy(struct pool **p);
