/* The broker's line to the keeper: questions go out, answers come back matched by cookie, reports come in between.
 * Nothing here waits: what the line cannot take now is kept and sent when it can. Loop thread only.
 * The keeper answers in the order of the questions, so a question may build on the one before it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/channel.h"
#include "proto/err.h"

#define KEEPER_WAITING_MAX 8192 /* questions out or unanswered: three for each client and worker */

/* What a question was for; the answer is handled by this. */
enum keeper_what {
    KEEPER_NOTHING = 0, /* nobody waits for the answer; a failure is logged */
    KEEPER_LIST,
    KEEPER_SPAWN_WORKER, /* subject: index of the worker */
    KEEPER_SPAWN_LOADER, /* subject: the model's number */
    KEEPER_SPAWN_CHECK,
    KEEPER_SPAWN_TEXT,
    KEEPER_SPAWN_HTTP,
    KEEPER_CREATE_WEIGHTS,
    KEEPER_TAKE_WEIGHTS,
    KEEPER_CREATE_STATE,
    KEEPER_TAKE_STATE, /* subject: the model's number, other: segment; for the watch */
    KEEPER_TAKE_WATERMARK,
    KEEPER_TAKE_UPLOADED, /* subject: the model's number, other: segment */
    KEEPER_CREATE_BULK,   /* subject: the evaluation's number */
    KEEPER_TAKE_BULK,
    KEEPER_TAKE_RESULT,
    KEEPER_GRANT,          /* subject: segment, other: child */
    KEEPER_DEPOSIT_READER, /* subject: the client's number */
    KEEPER_DEPOSIT_SHARD,  /* subject: uid */
    KEEPER_DEPOSIT_OWN,    /* the broker's own reader page */
};

struct keeper_line;

/* One message in: an answer has `what`, `subject` and `other` of its question. fds are the receiver's. */
struct keeper_event {
    struct channel_msg msg;
    int fds[CHANNEL_FDS_MAX];
    enum keeper_what what;
    uint64_t subject, other;
};

/* fd is borrowed. NULL without memory. */
struct keeper_line *keeper_line_create(int fd, struct err *err);
void keeper_line_destroy(struct keeper_line **line);

/* Asks. msg is copied (magic and cookie are set here); fds are taken. What cannot be kept any more is a lost question:
 * the line then counts as broken (keeper_line_flush says ERR_FULL), and the broker ends; its successor begins anew. */
void keeper_line_ask(struct keeper_line *line, const struct channel_msg *msg, const int *fds,
                     int n_fds, enum keeper_what what, uint64_t subject, uint64_t other);

/* Sends what was kept. ERR_CLOSED when the keeper is gone. */
int keeper_line_flush(struct keeper_line *line, struct err *err);

/* Something is kept: poll for writing too. */
bool keeper_line_waiting(const struct keeper_line *line);

/* The next message: 1, 0 when none waits, -1 with ERR_CLOSED. */
int keeper_line_recv(struct keeper_line *line, struct keeper_event *event, struct err *err);
