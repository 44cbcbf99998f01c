/* The AF_UNIX lines: SOCK_SEQPACKET, one fixed-size message a packet, descriptors beside it.
 *
 * Line 1: keeper <-> child (descriptor 3 of every child). The keeper's whole vocabulary.
 *   broker -> keeper   SPAWN KILL TELL CREATE DEPOSIT DROP GRANT TAKE LIST STOP   (each answered by DONE, same cookie)
 *   child  -> keeper   TAKE  NOTE   (TAKE is answered by DONE; NOTE is passed on to the broker, kept until it died)
 *   keeper -> broker   DIED CHILD SEGMENT NOTE DONE HANGUP(SIGHUP came)  TERM(stop cleanly)
 *   keeper -> child    BROKER_NEW (a new broker listens: connect anew, say Hello, list what you hold), TELL (as the broker said it)
 * Line 2: client <-> broker on $RUN/attach: ATTACH (with reader page and eventfd) -> ATTACHED (with the shard),
 *   and BULK (with a result segment). The end of the line tells either side that the other died.
 *
 * Not thread safe per descriptor. A message with a wrong magic, size or op is refused: ERR_BAD_INPUT. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/err.h"
#include "proto/heritage.h"
#include "proto/limits.h"

#define CHANNEL_MAGIC   0x4c4e4843u
#define CHANNEL_FDS_MAX 2 /* a segment, or a reader page and its eventfd */

enum channel_op {
    CHANNEL_SPAWN = 1,
    CHANNEL_KILL,   /* child, signal */
    CHANNEL_TELL,   /* child, words for it in text and argv_bytes, as SPAWN has them; passed on */
    CHANNEL_CREATE, /* segment (number chosen by the broker), bytes (0: sized by its writer), tag; flags: CHANNEL_SPARSE */
    CHANNEL_DEPOSIT, /* segment, tag; one or two descriptors come with it */
    CHANNEL_DROP,    /* segment */
    CHANNEL_GRANT,   /* child may take segment; flags: CHANNEL_WRITABLE */
    CHANNEL_TAKE,    /* segment; the broker may take any, a child what it was granted */
    CHANNEL_LIST,    /* answered by CHILD and SEGMENT messages, then DONE */
    CHANNEL_STOP,    /* end everything cleanly */
    CHANNEL_NOTE,    /* child's own words for the broker: code, value, text */
    CHANNEL_DONE, /* answer: status (an err_code), text when it failed, descriptors for TAKE; value: SPAWN's pid */
    CHANNEL_DIED,       /* child, pid, status as of waitpid */
    CHANNEL_CHILD,      /* of LIST: child, role, pid, tag, token */
    CHANNEL_SEGMENT,    /* of LIST: segment, bytes, tag */
    CHANNEL_BROKER_NEW, /* value: the broker's epoch */
    CHANNEL_HANGUP,
    CHANNEL_TERM,
    CHANNEL_ATTACH,   /* client's first word: value is the client's number as given in Welcome */
    CHANNEL_ATTACHED, /* value: shard number; descriptor: the shard, read only */
    CHANNEL_BULK,     /* value: the request's tag; descriptor: the result, read only */
    CHANNEL_N_OPS,
};

#define CHANNEL_WRITABLE 1u /* flag of GRANT and of a birth's grants */
#define CHANNEL_SPARSE   2u /* flag of CREATE: who writes there brings the memory, step by step */

/* What a NOTE's code says; the writers are loading processes and text services. */
enum channel_note {
    CHANNEL_NOTE_HEADER =
        1,               /* header accepted: value is the segment's size; sealed, being filled */
    CHANNEL_NOTE_LOADED, /* all data there: value is the read rate in bytes per second */
    CHANNEL_NOTE_FAILED, /* value is the err_code, text the reason */
};

struct channel_msg {
    uint32_t magic;
    uint32_t op;
    uint64_t cookie; /* request and its DONE */
    uint64_t segment;
    uint64_t value;
    uint64_t bytes;
    uint32_t child;
    int32_t pid;
    int32_t status;
    uint32_t role;
    uint32_t flags;
    uint32_t code;
    uint8_t token[LIMIT_TOKEN_BYTES];
    uint32_t n_grants;
    uint32_t argv_bytes; /* SPAWN: arguments after argv[0], each with its NUL; TELL: words */
    struct {
        uint64_t segment;
        uint64_t flags;
    } grants[LIMIT_GRANTS];
    char tag[LIMIT_TAG_BYTES];
    char text[LIMIT_ARGV_BYTES]; /* SPAWN: argv; else a reason, with its NUL */
};

/* Sends one message with n_fds descriptors (borrowed). Never blocks: a full line is ERR_FULL; a closed one ERR_CLOSED. */
int channel_send(int fd, const struct channel_msg *msg, const int *fds, int n_fds, struct err *err);

/* Receives one message and up to CHANNEL_FDS_MAX descriptors (owned by the caller, close-on-exec; -1 where none).
 * Returns 1 with a message, 0 when none waits (only with wait = false), -1 on error (ERR_CLOSED at the line's end). */
int channel_recv(int fd, struct channel_msg *msg, int fds[CHANNEL_FDS_MAX], bool wait,
                 struct err *err);

/* A child asks the keeper for a segment and waits for it (the keeper never blocks). Messages that arrive in between
 * are handed to `other` when it is not NULL. Returns 0 and fds. */
int channel_take(int fd, uint64_t segment, int fds[CHANNEL_FDS_MAX],
                 void (*other)(void *context, const struct channel_msg *msg), void *context,
                 struct err *err);

/* Listens at, or connects to, a path. Returns a descriptor, owned. */
int channel_listen(const char *path, mode_t mode, struct err *err);
int channel_connect(const char *path, struct err *err);

/* The uid and pid of the process at the other end. */
int channel_peer(int fd, uid_t *uid, pid_t *pid, struct err *err);
