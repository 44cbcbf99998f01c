/* What the keeper holds, and its ears and its mouth. main.c is the loop over both. One thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "broker/keeper/children.h"
#include "broker/keeper/place.h"
#include "broker/keeper/segments.h"
#include "proto/limits.h"

enum phase { RUNNING, STOPPING, KILLING };

struct keeper {
    struct place place;
    struct children children;
    struct segments segments;
    int signal_fd;
    enum phase phase;
    uint64_t phase_until_ms;
    int exit_code;
    char argv_packed[LIMIT_ARGV_BYTES]; /* for the broker, unread */
    uint32_t argv_bytes;
    uint32_t broker; /* child number; 0: none lives */
    uint32_t broker_epoch;
    uint64_t broker_born_ms, broker_birth_at_ms;
    unsigned backoff_ms;
    bool broker_once_served; /* it asked for a birth: its options were good */
    bool broker_ready;       /* this one took the lists: it is at work */
    /* A LIST in progress: what is still to be sent. */
    bool listing;
    uint64_t list_cookie;
    int list_child, list_segment;
};

/* hear.c: what stands in this child's channel, the broker's or another's, up to a bound; and the one answer that did not fit
 * before. */
void keeper_hear(struct keeper *k, struct child *child);
void keeper_send_held(struct child *child);

/* tell.c: to the broker what it does not know yet, as far as its line takes it. */
void keeper_tell_broker(struct keeper *k);
