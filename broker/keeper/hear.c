/* What the broker orders (births, deaths, memory), and what the other children ask for and note. */
#include "broker/keeper/keeper.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "proto/log.h"
#include "proto/shm.h"

#define MESSAGES_PER_TURN 64 /* drained from one channel before the others have their turn */

static void do_spawn(struct keeper *k, const struct channel_msg *msg, struct channel_msg *answer,
                     struct err *err)
{
    int fds[LIMIT_GRANTS], n_fds = 0;
    struct child *child = NULL;
    if (msg->role >= HERITAGE_N_ROLES || msg->role == HERITAGE_BROKER) {
        err_set(err, ERR_USAGE, "role %u cannot be born", msg->role);
        return;
    }
    for (uint32_t i = 0; i < msg->n_grants; i++) {
        int got[CHANNEL_FDS_MAX];
        if (segments_take(&k->segments, msg->grants[i].segment, 0, got, err) < 0) {
            goto close_fds;
        }
        if (got[1] >= 0) {
            close(got[1]);
        }
        fds[n_fds] = got[0];
        if (!(msg->grants[i].flags & CHANNEL_WRITABLE)) {
            fds[n_fds] = shm_reopen_readonly(got[0], err);
            close(got[0]);
            if (fds[n_fds] < 0) {
                goto close_fds;
            }
        }
        n_fds++;
    }
    struct birth birth = { .role = (enum heritage_role)msg->role,
                           .tag = msg->tag,
                           .token = msg->token,
                           .argv_packed = msg->text,
                           .argv_bytes = msg->argv_bytes,
                           .fds = fds,
                           .n_fds = n_fds };
    child = children_spawn(&k->children, &birth, err);
    if (child) {
        answer->child = child->number;
        answer->pid = child->pid;
        k->broker_once_served = true;
        for (uint32_t i = 0; i < msg->n_grants; i++) {
            segments_grant(&k->segments, msg->grants[i].segment, child->number,
                           (uint32_t)msg->grants[i].flags, err);
        }
    }
close_fds:
    for (int i = 0; i < n_fds; i++) {
        close(fds[i]);
    }
}

/* Sends now, or holds the one answer that did not fit. Owns fds. */
static void answer_to(struct child *child, const struct channel_msg *answer,
                      int fds[CHANNEL_FDS_MAX])
{
    struct err err = { 0 };
    int n_fds = fds[0] < 0 ? 0 : fds[1] < 0 ? 1 : 2;
    if (channel_send(child->channel, answer, fds, n_fds, &err) < 0 && err.code == ERR_FULL) {
        child->holding = true;
        child->held = *answer;
        memcpy(child->held_fds, fds, sizeof child->held_fds);
        return;
    }
    for (int i = 0; i < n_fds; i++) {
        close(fds[i]);
    }
}

void keeper_send_held(struct child *child)
{
    int fds[CHANNEL_FDS_MAX] = { child->held_fds[0], child->held_fds[1] };
    child->holding = false;
    child->held_fds[0] = child->held_fds[1] = -1;
    answer_to(child, &child->held, fds);
}

static void take_for(struct keeper *k, struct child *child, const struct channel_msg *msg)
{
    struct err err = { 0 };
    int fds[CHANNEL_FDS_MAX] = { -1, -1 };
    uint32_t as = child->number == k->broker ? 0 : child->number;
    struct channel_msg answer = { .op = CHANNEL_DONE,
                                  .cookie = msg->cookie,
                                  .segment = msg->segment };
    if (segments_take(&k->segments, msg->segment, as, fds, &err) < 0) {
        answer.status = (int32_t)err.code;
        snprintf(answer.text, sizeof answer.text, "%s", err.text);
    }
    answer_to(child, &answer, fds);
}

static void from_broker(struct keeper *k, struct child *broker, const struct channel_msg *msg,
                        int fds[CHANNEL_FDS_MAX])
{
    struct err err = { 0 };
    struct channel_msg answer = { .op = CHANNEL_DONE,
                                  .cookie = msg->cookie,
                                  .segment = msg->segment };
    struct child *child;
    int none[CHANNEL_FDS_MAX] = { -1, -1 };
    switch (msg->op) {
    case CHANNEL_SPAWN:
        do_spawn(k, msg, &answer, &err);
        break;
    case CHANNEL_KILL:
        child = children_find(&k->children, msg->child);
        if (child && !child->dead && child->number != k->broker) {
            kill(child->pid, (int)msg->value);
        }
        break; /* a dead one needs no killing: its DIED is on the way */
    case CHANNEL_TELL:
        child = children_find(&k->children, msg->child);
        if (child && !child->dead && child->channel >= 0) {
            channel_send(child->channel, msg, NULL, 0, &err);
        }
        break;
    case CHANNEL_CREATE:
        segments_create(&k->segments, msg->segment, msg->bytes, msg->flags & CHANNEL_SPARSE,
                        msg->tag, &err);
        break;
    case CHANNEL_DEPOSIT:
        segments_deposit(&k->segments, msg->segment, fds, msg->tag, &err);
        fds[0] = fds[1] = -1;
        break;
    case CHANNEL_DROP:
        segments_drop(&k->segments, msg->segment);
        break;
    case CHANNEL_GRANT:
        if (!children_find(&k->children, msg->child)) {
            err_set(&err, ERR_NOT_FOUND, "no child %u", msg->child);
        } else {
            segments_grant(&k->segments, msg->segment, msg->child, msg->flags, &err);
        }
        break;
    case CHANNEL_TAKE:
        take_for(k, broker, msg);
        return;
    case CHANNEL_LIST:
        k->listing = k->broker_ready = true;
        k->list_cookie = msg->cookie;
        k->list_child = k->list_segment = 0;
        return; /* answered row by row, as the line takes them */
    case CHANNEL_STOP:
        if (k->phase == RUNNING) {
            k->exit_code = (int)msg->value;
        }
        k->phase = KILLING;
        k->phase_until_ms = 0;
        break;
    default:
        err_set(&err, ERR_BAD_INPUT, "op %u is not for the keeper", msg->op);
    }
    if (err.code != ERR_NONE) {
        answer.status = (int32_t)err.code;
        snprintf(answer.text, sizeof answer.text, "%s", err.text);
    }
    answer_to(broker, &answer, none);
}

static void from_child(struct keeper *k, struct child *child, const struct channel_msg *msg)
{
    if (msg->op == CHANNEL_TAKE) {
        take_for(k, child, msg);
    } else if (msg->op == CHANNEL_NOTE && msg->code > 0 && msg->code <= CHANNEL_NOTE_FAILED) {
        struct child_note *note = &child->notes[msg->code];
        note->there = true;
        note->reported = false;
        note->value = msg->value;
        snprintf(note->text, sizeof note->text, "%.*s", (int)sizeof note->text - 1, msg->text);
    } else {
        log_warn("child %u (%s): op %u is not its to say", child->number, child->tag, msg->op);
    }
}

void keeper_hear(struct keeper *k, struct child *child)
{
    struct channel_msg msg;
    struct err err = { 0 };
    int fds[CHANNEL_FDS_MAX];
    for (int i = 0; i < MESSAGES_PER_TURN && !child->holding && child->channel >= 0; i++) {
        int got = channel_recv(child->channel, &msg, fds, false, &err);
        if (got == 0) {
            return;
        }
        if (got < 0) {
            if (err.code == ERR_CLOSED) {
                close(child->channel); /* its death follows */
                child->channel = -1;
            } else {
                log_warn("child %u (%s): %s", child->number, child->tag, err.text);
            }
            return;
        }
        if (child->number == k->broker) {
            from_broker(k, child, &msg, fds);
        } else {
            from_child(k, child, &msg);
        }
        for (int f = 0; f < CHANNEL_FDS_MAX; f++) {
            if (fds[f] >= 0) {
                close(fds[f]);
            }
        }
    }
}
