#include "proto/channel.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 1024 /* attaches waiting at once: a quarter of the usual descriptor limit */

int channel_send(int fd, const struct channel_msg *msg, const int *fds, int n_fds, struct err *err)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * CHANNEL_FDS_MAX)];
    } control = { 0 };
    struct channel_msg copy = *msg;
    copy.magic = CHANNEL_MAGIC;
    struct iovec part = { .iov_base = &copy, .iov_len = sizeof copy };
    struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1 };
    if (n_fds > 0) {
        header.msg_control = control.space;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)n_fds);
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)n_fds);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)n_fds);
    }
    for (;;) {
        if (sendmsg(fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) {
            return 0;
        }
        if (errno == EINTR) {
            continue;
        }
        if (errno == EAGAIN) {
            return err_set(err, ERR_FULL, "the line is full");
        }
        if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN) {
            return err_set(err, ERR_CLOSED, "the line's other end is closed");
        }
        return err_set_errno(err, ERR_IO, "send on the line");
    }
}

/* Takes the descriptors out of a received header; extra ones are closed. */
static int fds_of(struct msghdr *header, int fds[CHANNEL_FDS_MAX])
{
    int n = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int got;
            memcpy(&got, CMSG_DATA(c) + i * sizeof got, sizeof got);
            if (n < CHANNEL_FDS_MAX) {
                fds[n++] = got;
            } else {
                close(got);
            }
        }
    }
    return n;
}

int channel_recv(int fd, struct channel_msg *msg, int fds[CHANNEL_FDS_MAX], bool wait,
                 struct err *err)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * CHANNEL_FDS_MAX)];
    } control;
    for (int i = 0; i < CHANNEL_FDS_MAX; i++) {
        fds[i] = -1;
    }
    for (bool reset = false;;) {
        struct iovec part = { .iov_base = msg, .iov_len = sizeof *msg };
        struct msghdr header = { .msg_iov = &part,
                                 .msg_iovlen = 1,
                                 .msg_control = control.space,
                                 .msg_controllen = sizeof control.space };
        ssize_t n = recvmsg(fd, &header, MSG_CMSG_CLOEXEC | (wait ? 0 : MSG_DONTWAIT));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == ECONNRESET && !reset) {
            /* It left without reading all that we said; what it said before is still here. */
            reset = true;
            continue;
        }
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return 0;
        }
        if (n < 0 && errno != ECONNRESET) {
            return err_set_errno(err, ERR_IO, "receive on the line");
        }
        if (n <= 0) {
            return err_set(err, ERR_CLOSED, "the line's other end is closed");
        }
        fds_of(&header, fds);
        if ((size_t)n != sizeof *msg || msg->magic != CHANNEL_MAGIC || msg->op == 0 ||
            msg->op >= CHANNEL_N_OPS || msg->n_grants > LIMIT_GRANTS ||
            msg->argv_bytes > sizeof msg->text) {
            for (int i = 0; i < CHANNEL_FDS_MAX; i++) {
                if (fds[i] >= 0) {
                    close(fds[i]);
                    fds[i] = -1;
                }
            }
            return err_set(err, ERR_BAD_INPUT, "a message of %zd bytes on the line is not ours", n);
        }
        msg->tag[sizeof msg->tag - 1] = 0;
        msg->text[sizeof msg->text - 1] = 0;
        return 1;
    }
}

int channel_take(int fd, uint64_t segment, int fds[CHANNEL_FDS_MAX],
                 void (*other)(void *context, const struct channel_msg *msg), void *context,
                 struct err *err)
{
    static uint64_t last_cookie;
    struct channel_msg msg = { .op = CHANNEL_TAKE,
                               .segment = segment,
                               .cookie = (1ull << 63) | ++last_cookie };
    uint64_t cookie = msg.cookie;
    if (channel_send(fd, &msg, NULL, 0, err) < 0) {
        return err_wrap(err, "take segment %llu", (unsigned long long)segment);
    }
    for (;;) {
        if (channel_recv(fd, &msg, fds, true, err) < 0) {
            return err_wrap(err, "take segment %llu", (unsigned long long)segment);
        }
        if (msg.op == CHANNEL_DONE && msg.cookie == cookie) {
            if (msg.status != ERR_NONE) {
                return err_set(err, (enum err_code)msg.status, "take segment %llu: %s",
                               (unsigned long long)segment, msg.text);
            }
            return 0;
        }
        if (other) {
            other(context, &msg);
        }
    }
}

static int address_of(struct sockaddr_un *address, const char *path, struct err *err)
{
    *address = (struct sockaddr_un){ .sun_family = AF_UNIX };
    if (strlen(path) >= sizeof address->sun_path) {
        return err_set(err, ERR_USAGE, "socket path %s is longer than %zu bytes", path,
                       sizeof address->sun_path - 1);
    }
    strcpy(address->sun_path, path);
    return 0;
}

int channel_listen(const char *path, mode_t mode, struct err *err)
{
    struct sockaddr_un address;
    if (address_of(&address, path, err) < 0) {
        return -1;
    }
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return err_set_errno(err, ERR_IO, "socket for %s", path);
    }
    unlink(path);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || chmod(path, mode) < 0 ||
        listen(fd, BACKLOG) < 0) {
        err_set_errno(err, ERR_IO, "listen at %s", path);
        close(fd);
        return -1;
    }
    return fd;
}

int channel_connect(const char *path, struct err *err)
{
    struct sockaddr_un address;
    if (address_of(&address, path, err) < 0) {
        return -1;
    }
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return err_set_errno(err, ERR_IO, "socket for %s", path);
    }
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        err_set_errno(err, ERR_UNREACHABLE, "connect to %s", path);
        close(fd);
        return -1;
    }
    return fd;
}

int channel_peer(int fd, uid_t *uid, pid_t *pid, struct err *err)
{
    struct ucred peer;
    socklen_t len = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0) {
        return err_set_errno(err, ERR_IO, "who is at the other end of the line");
    }
    *uid = peer.uid;
    *pid = peer.pid;
    return 0;
}
