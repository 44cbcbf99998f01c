#include "clients/gateway/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 512

static bool is_loopback(const struct sockaddr *at)
{
    if (at->sa_family == AF_INET) {
        uint32_t ip = ntohl(((const struct sockaddr_in *)(const void *)at)->sin_addr.s_addr);
        return ip >> 24 == 127;
    }
    return at->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)at)->sin6_addr);
}

/* "HOST:PORT" or "[HOST]:PORT" cut in two. */
static int cut(const char *address, char host[64], char port[8], struct err *err)
{
    const char *colon = strrchr(address, ':');
    size_t n = colon ? (size_t)(colon - address) : 0;
    if (!colon || !colon[1] || strlen(colon + 1) >= 8 || n == 0 || n >= 64 ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1)) {
        return err_set(err, ERR_USAGE, "%s is no address; write 127.0.0.1:4327 or [::1]:4327",
                       address);
    }
    if (address[0] == '[' && address[n - 1] == ']') {
        address++;
        n -= 2;
    }
    memcpy(host, address, n);
    host[n] = 0;
    strcpy(port, colon + 1);
    return 0;
}

static void remember(struct listen *l)
{
    struct sockaddr_storage at;
    socklen_t len = sizeof at;
    char host[64] = "?", port[8] = "0";
    if (getsockname(l->fd, (struct sockaddr *)&at, &len) == 0) {
        getnameinfo((struct sockaddr *)&at, len, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV);
    }
    l->loopback = is_loopback((struct sockaddr *)&at);
    sscanf(port, "%d", &l->port);
    snprintf(l->where, sizeof l->where, at.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

int listen_open(struct listen *l, const char *address, struct err *err)
{
    char host[64], port[8];
    int one = 1;
    *l = (struct listen){ .fd = -1 };
    if (cut(address, host, port, err) < 0) {
        return -1;
    }
    const struct addrinfo want = { .ai_family = AF_UNSPEC,
                                   .ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE | AI_NUMERICSERV };
    struct addrinfo *found = NULL;
    int status = getaddrinfo(host, port, &want, &found);
    if (status != 0) {
        return err_set(err, ERR_USAGE, "%s: %s", address, gai_strerror(status));
    }
    /* The first is enough: localhost has two, and clients try both. */
    l->fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0 || setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
        bind(l->fd, found->ai_addr, found->ai_addrlen) < 0 || listen(l->fd, BACKLOG) < 0) {
        bool busy = errno == EADDRINUSE;
        err_set_errno(err, busy ? ERR_BUSY : ERR_IO, "listen at %s", address);
        listen_close(l);
    } else {
        remember(l);
    }
    freeaddrinfo(found);
    return l->fd >= 0 ? 0 : -1;
}

void listen_close(struct listen *l)
{
    if (l->fd >= 0) {
        close(l->fd);
    }
    l->fd = -1;
}
