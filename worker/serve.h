/* The worker's loop: messages in, steps on the device, records out. One thread owns the line to the broker, the keeper's
 * channel, the signals and the device; between two steps it drains what came, up to a bound. Used by main.c and by tests. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/limits.h"
#include "worker/backend.h"
#include "worker/shards.h"

#define SERVE_RESIDENTS_MAX 16                      /* models on one device at once */
#define SERVE_MESSAGES_MAX  64                      /* handled between two steps */
#define SERVE_FINISHED_MAX  (2 * LIMIT_SHARD_SLOTS) /* ends that the broker has not taken back yet */
#define SERVE_OUTBOX_MAX    4096                    /* answers that wait while the broker is away */
#define SERVE_READING_MS    2 /* how often weights that are being read are looked at */
#define SERVE_IDLE_MS       1000

struct serve_options {
    const char *endpoint; /* ipc://RUN/broker */
    uint8_t token[LIMIT_TOKEN_BYTES];
    uint32_t child;     /* our number: the epoch of our records */
    const char *device; /* as told: "cpu" */
    uint32_t threads;
    int channel_fd;           /* to the keeper, borrowed */
    int signal_fd;            /* borrowed; -1: none */
    struct segments segments; /* take NULL: ask the keeper */
};

struct serve;

/* Connects and says Hello. backend and the options' strings are borrowed. NULL with the reason. */
struct serve *serve_create(const struct serve_options *options, struct backend *backend,
                           struct err *err);

/* Accepts NULL inside. State pages and logs stay as they are. */
void serve_destroy(struct serve **serve);

/* One turn: drain, act, one step, answer; then wait for something to do, at most timeout_ms (-1: as long as it takes).
 * 1: go on; 0: told to stop (or the keeper's line ended); -1: the device or our own house failed: the process ends. */
int serve_turn(struct serve *serve, int timeout_ms, struct err *err);
