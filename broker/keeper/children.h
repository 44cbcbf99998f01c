/* The keeper's table of children: birth (fork, descriptors, exec) and what is known of each. Libc only; one thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "broker/keeper/segments.h"
#include "proto/channel.h"

struct child_note {
    bool there, reported;
    uint64_t value;
    char text[ERR_TEXT_MAX];
};

struct child {
    uint32_t number; /* 1, 2, ... never used twice; 0: the row is free */
    enum heritage_role role;
    pid_t pid;
    int channel;         /* our end, -1 when closed */
    bool dead, reported; /* reaped; and the broker was told */
    int status;          /* of waitpid */
    uint8_t token[LIMIT_TOKEN_BYTES];
    char tag[LIMIT_TAG_BYTES];
    struct child_note notes[CHANNEL_NOTE_FAILED + 1]; /* by enum channel_note */
    bool
        holding; /* an answer that its full line did not take yet; nothing is read from it until then */
    struct channel_msg held;
    int held_fds[CHANNEL_FDS_MAX];
};

struct children {
    struct child rows[LIMIT_CHILDREN];
    uint32_t last_number;
    char bin_dir[4096]; /* where the programs are */
    const char *run;    /* borrowed */
    int lock_fd;
};

/* Finds the directory of the running program. */
int children_init(struct children *c, const char *run, int lock_fd, struct err *err);

/* What a birth needs beside the role. */
struct birth {
    enum heritage_role role;
    const char *tag; /* LIMIT_TAG_BYTES */
    const uint8_t *token;
    const char *argv_packed; /* arguments after argv[0], each with its NUL */
    uint32_t argv_bytes;
    const int *fds; /* placed at HERITAGE_GRANT_FD on, borrowed */
    int n_fds;
    uint32_t broker_epoch; /* broker only */
};

/* Forks and executes. NULL: ERR_FULL, ERR_IO (no such program ...). */
struct child *children_spawn(struct children *c, const struct birth *birth, struct err *err);

struct child *children_find(struct children *c, uint32_t number);
struct child *children_find_pid(struct children *c, pid_t pid);

/* Frees the row of a dead child whose death was told. */
void children_forget(struct child *child);
