/* Inside of the loop: shared by server.c (polling, answers, heartbeats, the end) and intake.c (what libmicrohttpd brings).
 * Loop thread only, but for what stands below `lock`. */
#pragma once

#include <stdatomic.h>

#include "clients/gateway/exchange.h"

struct pool;

struct server {
    struct server_options options;
    struct MHD_Daemon *daemon;
    int wake_fd;  /* eventfd: a hand rang */
    int watch_fd; /* epoll: a client left */
    struct pool *pool, *quick;
    struct exchange *first; /* all of them; loop thread */
    atomic_bool stopping;
    pthread_mutex_t lock;
    struct exchange *rung;
};

/* Our own look at the connection's socket, on or off. */
void server_watch(struct exchange *x, bool on);
/* Queues the answer when there is one, else waits for it. */
enum MHD_Result server_answer(struct exchange *x);

/* libmicrohttpd's callbacks (MHD_AccessHandlerCallback, MHD_RequestCompletedCallback); cls is the server. */
enum MHD_Result intake_request(void *cls, struct MHD_Connection *connection, const char *url,
                               const char *method, const char *version, const char *data,
                               size_t *size, void **context);
void intake_completed(void *cls, struct MHD_Connection *connection, void **context,
                      enum MHD_RequestTerminationCode how);
