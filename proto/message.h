/* Pack, unpack and check messages. The only user of the protobuf-c runtime: other rooms fill and read the generated
 * structs (Hearth__Envelope ...) and send them through here. Envelopes unpack into a fixed arena, so a hostile frame
 * costs at most LIMIT_ARENA_BYTES and freeing is a reset. Not thread safe per arena. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hearth.pb-c.h"
#include "proto/err.h"
#include "proto/limits.h"

#define MESSAGE_VERSION 1

/* Built-in sampling, used where neither request nor model says anything. */
#define MESSAGE_TEMP               0.8f
#define MESSAGE_TOP_K              40
#define MESSAGE_TOP_P              0.95f
#define MESSAGE_MIN_P              0.05f
#define MESSAGE_TYPICAL_P          1.0f
#define MESSAGE_REPEAT_PENALTY     1.0f
#define MESSAGE_REPEAT_LAST_N      64
#define MESSAGE_DYNATEMP_EXPONENT  1.0f
#define MESSAGE_TOP_N_SIGMA        (-1.0f)
#define MESSAGE_XTC_THRESHOLD      0.1f
#define MESSAGE_DRY_BASE           1.75f
#define MESSAGE_DRY_ALLOWED_LENGTH 2
#define MESSAGE_DRY_PENALTY_LAST_N 64
#define MESSAGE_MIROSTAT_TAU       5.0f
#define MESSAGE_MIROSTAT_ETA       0.1f
#define MESSAGE_ADAPTIVE_TARGET    (-1.0f)
#define MESSAGE_ADAPTIVE_DECAY     0.9f
/* What dynatemp_range, xtc_probability, dry_multiplier and mirostat are without being asked for is 0: off. The breakers
 * of DRY are a line's end, a colon, a quote, an asterisk (broker/submit.c). */

/* Room for one unpacked envelope; reused for the next. Zero it before its first use. */
struct message_arena {
    _Alignas(16) uint8_t bytes[LIMIT_ARENA_BYTES];
    size_t used;
};

/* An envelope of this body: sets version, oneof case and pointer. body is borrowed.
 *   Hearth__Ack ack = HEARTH__ACK__INIT;
 *   Hearth__Envelope e = message_envelope(HEARTH__ENVELOPE__BODY_ACK, &ack);
 * The oneof's members share storage, so one pointer serves every body. */
Hearth__Envelope message_envelope(Hearth__Envelope__BodyCase which, void *body);

/* Packs into out (LIMIT_ENVELOPE_BYTES of room). Returns the length, or 0 when it is too large (err: ERR_NO_FIT). */
size_t message_pack(const Hearth__Envelope *envelope, uint8_t *out, struct err *err);

/* Unpacks one frame into the arena, which is reset before. Checks size, version and that a body is there.
 * The result is borrowed from the arena. NULL: ERR_BAD_INPUT saying what is wrong. */
Hearth__Envelope *message_unpack(struct message_arena *arena, const void *frame, size_t len,
                                 struct err *err);

/* The name of a body for logs: "submit". */
const char *message_name(Hearth__Envelope__BodyCase which);

/* bytes fields: from a NUL-terminated string or a buffer (borrowed), and into a bounded string (cut and NUL-terminated;
 * returns false when it had to be cut or held a NUL). */
ProtobufCBinaryData message_bytes(const void *data, size_t len);
ProtobufCBinaryData message_str(const char *text);
bool message_copy(char *out, size_t size, ProtobufCBinaryData from);
