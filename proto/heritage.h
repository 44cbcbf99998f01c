/* What a child process is born with. The keeper sets it, the child's main reads it.
 *
 *   descriptor 3   the channel: AF_UNIX SOCK_SEQPACKET to the keeper (proto/channel.h)
 *   descriptor 4   broker only: the bound, listening socket of $RUN/broker (for ZMQ_USE_FD)
 *   descriptor 5   broker only: the bound, listening socket of $RUN/attach (SOCK_SEQPACKET)
 *   4, 5, ...      other children: the segments granted at birth, in the order of the birth message
 *   HEARTH_TOKEN   64 hex digits: proves the role in Hello (environment, so other users cannot see it)
 *   HEARTH_RUN     the runtime directory
 *   HEARTH_CHILD   the child's number under this keeper
 *   HEARTH_BROKER_EPOCH  broker only: 1, 2, ... counts the brokers of this keeper
 *   descriptor 40  the lock on $RUN/lock, held by just being open: a new keeper starts when the last one is closed
 * All else is closed. stdin is /dev/null, stderr is the keeper's. PR_SET_PDEATHSIG is SIGKILL. */
#pragma once

#include <stdint.h>

#include "proto/err.h"
#include "proto/limits.h"

#define HERITAGE_CHANNEL_FD 3
#define HERITAGE_ROUTER_FD  4
#define HERITAGE_ATTACH_FD  5
#define HERITAGE_GRANT_FD   4  /* the first of a child's initial grants */
#define HERITAGE_LOCK_FD    40 /* behind the last possible grant */

#define HERITAGE_RUN_MAX                                                                           \
    92 /* a runtime directory: "/attach" behind it still fits a socket's name (108) */

/* The runtime directory that keeper and clients mean: `given`, else $HEARTH_RUNTIME_DIR, $XDG_RUNTIME_DIR/hearth, /run/hearth.
 * ERR_USAGE when it is longer than HERITAGE_RUN_MAX. */
int heritage_find_run(const char *given, char run[HERITAGE_RUN_MAX], struct err *err);

enum heritage_role {
    HERITAGE_BROKER,
    HERITAGE_WORKER,
    HERITAGE_LOADER, /* a file becomes a segment */
    HERITAGE_TEXT,   /* hearth-loader --text */
    HERITAGE_HTTP,
    HERITAGE_N_ROLES,
};

/* The program of each role, a file name beside the keeper's own: "hearth-worker". */
const char *heritage_program(enum heritage_role role);
const char *heritage_role_name(enum heritage_role role); /* "worker" */

struct heritage {
    uint32_t child; /* our number */
    uint32_t broker_epoch;
    uint8_t token[LIMIT_TOKEN_BYTES];
    char run[108]; /* fits sun_path */
};

/* Reads and checks the environment; removes the token from it. ERR_USAGE when it was not born of a keeper. */
int heritage_read(struct heritage *h, struct err *err);

/* Token to hex (with NUL) and back. */
void heritage_token_hex(const uint8_t token[LIMIT_TOKEN_BYTES],
                        char hex[2 * LIMIT_TOKEN_BYTES + 1]);
int heritage_token_of_hex(const char *hex, uint8_t token[LIMIT_TOKEN_BYTES], struct err *err);
