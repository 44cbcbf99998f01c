/* A connection to the broker, inside libhearth: the ZeroMQ link, the attach line, the reader page, the mapped shard; and
 * the way back after the broker died. One thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "clients/hearth.h"
#include "proto/channel.h"
#include "proto/heritage.h"
#include "proto/journal.h"
#include "proto/link.h"
#include "proto/message.h"

enum connection_state {
    CONNECTION_DOWN,      /* nothing */
    CONNECTION_GREETING,  /* Hello sent, Welcome awaited */
    CONNECTION_ATTACHING, /* ATTACH sent, ATTACHED awaited */
    CONNECTION_UP,
};

/* An answer that is not waited for where it was asked: whoever reads the link puts it here. In a list of its connection. */
struct connection_pending {
    uint64_t cookie; /* 0: nothing is pending */
    bool refused;    /* the answer was Failed, why says so */
    struct err why;
    struct connection_pending *next;
};

#define CONNECTION_UNACKED_MAX                                                                     \
    16 /* ends read while the broker was away; beyond these they expire */

struct hearth {
    char run[HERITAGE_RUN_MAX];
    char program[64];
    enum connection_state state;
    uint32_t generation; /* grows with every new connection: who waits for an answer asks again */
    uint64_t number;     /* ours, from Welcome */
    uint64_t last_cookie;
    struct connection_pending *pending; /* a list: the requests', and load */
    struct connection_pending load;     /* of hearth_load_begin */
    char *loading;                      /* owned: its model; NULL: none */
    bool load_pin;
    uint32_t load_asked_on; /* the connection's generation that was asked */
    struct link *link;
    int attach_fd;
    int page_fd, event_fd; /* the reader page and its eventfd */
    struct journal_reader_page *page;
    size_t page_bytes;
    struct journal shard; /* read only */
    uint64_t shard_number;
    bool shard_mapped;
    int bulk_fd; /* the last BULK's descriptor, -1 */
    uint64_t bulk_tag;
    uint8_t unacked[CONNECTION_UNACKED_MAX][LIMIT_REQUEST_ID_BYTES];
    uint32_t n_unacked;
    uint64_t down_since_ms;
    uint64_t greeted_ms;
    int interrupt_fd;
    uint32_t retry_ms, position, n_prompt, n_ctx; /* as the last Failed said; 0: it did not */
    uint8_t pack[LIMIT_ENVELOPE_BYTES];
    struct message_arena arena;
};

/* CLOCK_MONOTONIC. */
uint64_t connection_now_ms(void);

/* Waits for anything on the connection at most timeout_ms, and carries the connection's own business forward: greeting, attaching,
 * coming back after a broker's death. Returns 0; -1 when there is no way back (unreachable) or the interrupt descriptor is readable
 * (code ERR_INTERRUPTED). */
int connection_turn(struct hearth *h, int timeout_ms, struct err *err);

/* Acknowledges this end when the broker is back. */
void connection_ack_later(struct hearth *h, const uint8_t id[LIMIT_REQUEST_ID_BYTES]);

/* Sends one envelope; a full or broken link is not an error here: the answer will not come and the caller asks again. */
int connection_send(struct hearth *h, const Hearth__Envelope *e, const void *payload,
                    size_t payload_len, struct err *err);

/* The next envelope from the broker that is nobody's pending answer, or NULL when none waits. payload is borrowed until the next call. */
Hearth__Envelope *connection_recv(struct hearth *h, const uint8_t **payload, size_t *payload_len);

/* Asks and waits for the answer: sends again after every new connection. `is_answer` tells whether an envelope is the one;
 * NULL: the cookie does. The answer is borrowed. A Failed answer becomes err. NULL on error. */
Hearth__Envelope *connection_ask(struct hearth *h, Hearth__Envelope *e, const void *payload,
                                 size_t payload_len, const uint8_t **answer, size_t *answer_len,
                                 struct err *err);

/* err of this library's kind. */
void connection_error(struct hearth_error *out, const struct err *err);

/* A Failed message as err. */
void connection_failed(struct err *err, const Hearth__Failed *failed);
