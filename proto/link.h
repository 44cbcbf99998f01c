/* A ZeroMQ socket: open, send, recv, poll. The only user of zmq.h. A socket never leaves its thread.
 * A message is one envelope frame and at most one raw payload frame; a ROUTER's peers are told apart by their routing
 * id, which ZeroMQ chooses (5 bytes); clients never choose one. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/limits.h"

#define LINK_PEER_BYTES 16 /* room for a routing id; ZeroMQ makes 5 */

struct link_peer {
    uint8_t len;
    uint8_t id[LINK_PEER_BYTES];
};

struct link; /* opaque: context and socket */

/* A DEALER connected to an endpoint ("ipc:///run/hearth/broker"). Connecting is lazy: an absent broker is no error. *link: NULL, or a
 * DEALER that hangs up and begins anew as another peer; what it had not sent is lost. That is quick, while link_close
 * waits for ZeroMQ's threads to end: some milliseconds that a stream of tokens would feel. -1: *link is NULL. */
int link_connect(struct link **link, const char *endpoint, struct err *err);

/* A ROUTER over an already bound and listening descriptor (ZMQ_USE_FD), whose path is `endpoint`. The fd is ZeroMQ's from
 * now on: hand in a dup when it must outlive the link. */
struct link *link_listen(const char *endpoint, int fd, struct err *err);

void link_close(struct link **link);

/* The descriptor to poll for reading, edge-triggered as ZeroMQ's are: after any event, and after any send, call
 * link_recv until it gives 0. */
int link_fd(const struct link *link);

/* One received message; frames are borrowed until the next link_recv or link_close. */
struct link_msg {
    struct link_peer peer; /* ROUTER only */
    const uint8_t *envelope;
    size_t envelope_len;
    const uint8_t *payload; /* NULL when there is none */
    size_t payload_len;
};

/* Next message without waiting: 1 with a message, 0 when none waits, -1 on error. A message of the wrong shape (no
 * envelope, more than two frames, too large) is dropped, counted in link_dropped(), and reported as ERR_BAD_INPUT with
 * msg->peer set; the link lives on. */
int link_recv(struct link *link, struct link_msg *msg, struct err *err);

/* Sends one message. peer: ROUTER only, else NULL. payload may be NULL. Never blocks: ERR_FULL when the peer's queue is
 * full, ERR_CLOSED when the peer is gone. */
int link_send(struct link *link, const struct link_peer *peer, const void *envelope,
              size_t envelope_len, const void *payload, size_t payload_len, struct err *err);

/* Waits for something to receive at most timeout_ms (-1: for ever). 1, 0 on timeout, -1 on error. */
int link_wait(struct link *link, int timeout_ms, struct err *err);

uint64_t link_dropped(const struct link *link);

bool link_peer_equal(const struct link_peer *a, const struct link_peer *b);
