#include "proto/link.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <zmq.h>

struct link {
    void *context, *socket;
    bool router;
    zmq_msg_t envelope, payload;
    uint64_t dropped;
};

static int set_int(struct link *link, int option, int value)
{
    return zmq_setsockopt(link->socket, option, &value, sizeof value);
}

static int open_socket(struct link *link, int type, struct err *err)
{
    link->socket = zmq_socket(link->context, type);
    if (!link->socket) {
        return err_set(err, ERR_FAILED, "ZeroMQ socket: %s", zmq_strerror(errno));
    }
    int64_t size_max = LIMIT_PAYLOAD_BYTES;
    int failed = set_int(link, ZMQ_LINGER, 0) | set_int(link, ZMQ_SNDHWM, LIMIT_HWM_MESSAGES) |
                 set_int(link, ZMQ_RCVHWM, LIMIT_HWM_MESSAGES) |
                 set_int(link, ZMQ_HANDSHAKE_IVL, LIMIT_HANDSHAKE_MS) |
                 set_int(link, ZMQ_RECONNECT_IVL, LIMIT_RECONNECT_MIN_MS) |
                 set_int(link, ZMQ_RECONNECT_IVL_MAX, LIMIT_RECONNECT_MAX_MS) |
                 zmq_setsockopt(link->socket, ZMQ_MAXMSGSIZE, &size_max, sizeof size_max);
    if (link->router) {
        failed |= set_int(link, ZMQ_ROUTER_MANDATORY, 1);
    }
    return failed ? err_set(err, ERR_FAILED, "ZeroMQ options: %s", zmq_strerror(errno)) : 0;
}

static struct link *create(int type, struct err *err)
{
    struct link *link = calloc(1, sizeof *link);
    if (!link) {
        err_set(err, ERR_NO_MEMORY, "no memory for a link");
        return NULL;
    }
    zmq_msg_init(&link->envelope);
    zmq_msg_init(&link->payload);
    link->router = type == ZMQ_ROUTER;
    link->context = zmq_ctx_new();
    if (!link->context) {
        err_set(err, ERR_FAILED, "ZeroMQ: %s", zmq_strerror(errno));
        link_close(&link);
    } else if (open_socket(link, type, err) < 0) {
        link_close(&link);
    }
    return link;
}

int link_connect(struct link **linkp, const char *endpoint, struct err *err)
{
    struct link *link = *linkp;
    if (!link) {
        link = *linkp = create(ZMQ_DEALER, err);
    } else {
        zmq_close(link->socket);
        if (open_socket(link, ZMQ_DEALER, err) < 0) {
            link_close(linkp);
        }
    }
    if (!*linkp) {
        return -1;
    }
    if (zmq_connect(link->socket, endpoint) < 0) {
        err_set(err, ERR_UNREACHABLE, "connect to %s: %s", endpoint, zmq_strerror(errno));
        link_close(linkp);
        return -1;
    }
    return 0;
}

struct link *link_listen(const char *endpoint, int fd, struct err *err)
{
    struct link *link = create(ZMQ_ROUTER, err);
    if (link && (set_int(link, ZMQ_USE_FD, fd) < 0 || zmq_bind(link->socket, endpoint) < 0)) {
        err_set(err, ERR_FAILED, "listen at %s: %s", endpoint, zmq_strerror(errno));
        link_close(&link);
    }
    return link;
}

void link_close(struct link **linkp)
{
    struct link *link = *linkp;
    if (!link) {
        return;
    }
    zmq_msg_close(&link->envelope);
    zmq_msg_close(&link->payload);
    if (link->socket) {
        zmq_close(link->socket);
    }
    if (link->context) {
        zmq_ctx_term(link->context);
    }
    free(link);
    *linkp = NULL;
}

int link_fd(const struct link *link)
{
    int fd = -1;
    size_t len = sizeof fd;
    int rc = zmq_getsockopt(link->socket, ZMQ_FD, &fd, &len);
    assert(rc == 0);
    return fd;
}

/* Receives one frame into `frame`: 1, 0 when none waits, -1 on error. */
static int recv_frame(struct link *link, zmq_msg_t *frame, bool *more, struct err *err)
{
    zmq_msg_close(frame);
    zmq_msg_init(frame);
    for (;;) {
        if (zmq_msg_recv(frame, link->socket, ZMQ_DONTWAIT) >= 0) {
            *more = zmq_msg_more(frame);
            return 1;
        }
        if (errno == EAGAIN) {
            return 0;
        }
        if (errno != EINTR) {
            return err_set(err, ERR_IO, "receive: %s", zmq_strerror(errno));
        }
    }
}

/* Throws the rest of a message away. */
static void drain(struct link *link, bool more)
{
    struct err ignored;
    while (more) {
        if (recv_frame(link, &link->payload, &more, &ignored) <= 0) {
            return;
        }
    }
}

int link_recv(struct link *link, struct link_msg *msg, struct err *err)
{
    *msg = (struct link_msg){ 0 };
    bool more = false;
    if (link->router) {
        int got = recv_frame(link, &link->envelope, &more, err);
        if (got <= 0) {
            return got;
        }
        size_t len = zmq_msg_size(&link->envelope);
        if (len > LINK_PEER_BYTES || !more) {
            drain(link, more);
            link->dropped++;
            return err_set(err, ERR_BAD_INPUT, "a message without a frame");
        }
        msg->peer.len = (uint8_t)len;
        memcpy(msg->peer.id, zmq_msg_data(&link->envelope), len);
    }
    int got = recv_frame(link, &link->envelope, &more, err);
    if (got <= 0) {
        return got;
    }
    bool has_payload = more;
    if (more && recv_frame(link, &link->payload, &more, err) < 0) {
        return -1;
    }
    if (more || zmq_msg_size(&link->envelope) > LIMIT_ENVELOPE_BYTES) {
        drain(link, more);
        link->dropped++;
        return err_set(err, ERR_BAD_INPUT, "%s",
                       more ? "a message of more than two frames" : "an envelope over the limit");
    }
    msg->envelope = zmq_msg_data(&link->envelope);
    msg->envelope_len = zmq_msg_size(&link->envelope);
    if (has_payload) {
        msg->payload = zmq_msg_data(&link->payload);
        msg->payload_len = zmq_msg_size(&link->payload);
    }
    return 1;
}

/* 0 sent, -1 with errno. */
static int send_frame(struct link *link, const void *data, size_t len, bool more)
{
    while (zmq_send(link->socket, data, len, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) < 0) {
        if (errno != EINTR) {
            return -1;
        }
    }
    return 0;
}

int link_send(struct link *link, const struct link_peer *peer, const void *envelope,
              size_t envelope_len, const void *payload, size_t payload_len, struct err *err)
{
    assert(link->router == (peer != NULL));
    if (payload_len > LIMIT_PAYLOAD_BYTES) {
        return err_set(err, ERR_NO_FIT, "a payload of %zu bytes is over the limit of %u",
                       payload_len, LIMIT_PAYLOAD_BYTES);
    }
    /* Only the first frame can be refused: ZeroMQ takes a message whole or not at all. */
    int failed = 0;
    if (peer) {
        failed = send_frame(link, peer->id, peer->len, true);
    }
    if (!failed) {
        failed = send_frame(link, envelope, envelope_len, payload != NULL);
    }
    if (!failed && payload) {
        failed = send_frame(link, payload, payload_len, false);
    }
    if (!failed) {
        return 0;
    }
    if (errno == EAGAIN) {
        return err_set(err, ERR_FULL, "the peer's queue is full");
    }
    if (errno == EHOSTUNREACH) {
        return err_set(err, ERR_CLOSED, "the peer is gone");
    }
    return err_set(err, ERR_IO, "send: %s", zmq_strerror(errno));
}

int link_wait(struct link *link, int timeout_ms, struct err *err)
{
    zmq_pollitem_t item = { .socket = link->socket, .events = ZMQ_POLLIN };
    int n = zmq_poll(&item, 1, timeout_ms);
    if (n < 0 && errno != EINTR) {
        return err_set(err, ERR_IO, "poll: %s", zmq_strerror(errno));
    }
    return n > 0 ? 1 : 0;
}

uint64_t link_dropped(const struct link *link)
{
    return link->dropped;
}

bool link_peer_equal(const struct link_peer *a, const struct link_peer *b)
{
    return a->len == b->len && memcmp(a->id, b->id, a->len) == 0;
}
