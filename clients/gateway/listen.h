/* An address to listen at: "127.0.0.1:4327", "localhost:4327", "[::1]:4327", "0.0.0.0:4327". */
#pragma once

#include <stdbool.h>

#include "proto/err.h"

struct listen {
    int fd; /* owned; -1: none */
    bool loopback;
    char where[80]; /* as it turned out, port 0 replaced: "127.0.0.1:40017" */
    int port;
};

int listen_open(struct listen *l, const char *address, struct err *err);
void listen_close(struct listen *l);
