/* What the broker says by ZeroMQ. A peer that is gone or does not read loses the message: messages are doorbells, the
 * journal has the facts, and a line's end is noticed elsewhere. Loop thread only. */
#pragma once

#include "broker/broker.h"

/* Who asked: where an answer goes. */
struct post_to {
    struct link_peer peer;
    bool has_cookie;
    uint64_t cookie;
};

/* Sends one envelope of this body, with a payload when it is not NULL. 0, or -1 when it was lost. */
int post_say(struct broker *b, const struct post_to *to, Hearth__Envelope__BodyCase which,
             void *body, const void *payload, size_t payload_len);

/* To a child: no cookie. */
int post_tell(struct broker *b, const struct link_peer *peer, Hearth__Envelope__BodyCase which,
              void *body);

/* Failed, with the request's id when there is one (NULL: none). */
void post_failed(struct broker *b, const struct post_to *to, const uint8_t *id,
                 const struct err *err);

void post_done(struct broker *b, const struct post_to *to, const char *text);
