/* What a generation may show: bytes that could be the beginning of a stop string, or of a UTF-8 character that is not
 * complete, are held back and come out later; a stop string's own text never does. Where a stop hits is a function of the
 * bytes alone, not of how tokens cut them: the string that is complete first counts, of two that end together the
 * longer. Worker, loop thread; a plain value. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/limits.h"

/* A stop string without its last byte, and three bytes of a character. */
#define STOPS_HELD_MAX (LIMIT_STOP_BYTES - 1 + 3)
/* What one push can give: everything that was held and the new bytes. */
#define STOPS_OUT_MAX (STOPS_HELD_MAX + LIMIT_PIECE_BYTES)

struct stops {
    uint32_t n;
    struct {
        uint32_t len;
        uint8_t bytes[LIMIT_STOP_BYTES];
    } stop[LIMIT_STOP_STRINGS];
    uint32_t n_held;
    uint8_t held[STOPS_HELD_MAX];
};

/* Adds a stop string of 1 to LIMIT_STOP_BYTES bytes; empty ones are ignored. Errors: ERR_BAD_INPUT (too long),
 * ERR_FULL (too many). */
int stops_add(struct stops *s, const uint8_t *bytes, uint32_t len, struct err *err);

/* Takes the bytes of one more token (at most LIMIT_PIECE_BYTES) and gives what is released, STOPS_OUT_MAX of room.
 * Returns true when a stop string is complete: what stood before it is in out, nothing is held any more. */
bool stops_push(struct stops *s, const uint8_t *bytes, uint32_t len, uint8_t *out, uint32_t *n_out);

/* The generation ends: gives what was held back, STOPS_HELD_MAX of room. */
uint32_t stops_flush(struct stops *s, uint8_t *out);
