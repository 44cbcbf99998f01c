/* What the broker hears unasked or by list: who lives, which segments there are, what children noted, who died. */
#include "broker/keeper/keeper.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Each returns false when the broker's line is full: later. */
static bool tell_list(struct keeper *k, int line)
{
    struct err err;
    for (; k->list_child < LIMIT_CHILDREN; k->list_child++) {
        struct child *c = &k->children.rows[k->list_child];
        if (c->number && !c->dead && c->number != k->broker) {
            struct channel_msg msg = { .op = CHANNEL_CHILD,
                                       .cookie = k->list_cookie,
                                       .child = c->number,
                                       .pid = c->pid,
                                       .role = c->role };
            memcpy(msg.token, c->token, sizeof msg.token);
            memcpy(msg.tag, c->tag, sizeof msg.tag);
            if (channel_send(line, &msg, NULL, 0, &err) < 0) {
                return false;
            }
            for (size_t n = 0; n < sizeof c->notes / sizeof c->notes[0]; n++) {
                c->notes[n].reported = false; /* the new broker hears them again */
            }
        }
    }
    for (; k->list_segment < LIMIT_SEGMENTS; k->list_segment++) {
        const struct segment *s = &k->segments.rows[k->list_segment];
        if (s->number) {
            struct channel_msg msg = { .op = CHANNEL_SEGMENT,
                                       .cookie = k->list_cookie,
                                       .segment = s->number };
            off_t size = lseek(s->fds[0], 0, SEEK_END);
            msg.bytes = size > 0 ? (uint64_t)size : 0;
            memcpy(msg.tag, s->tag, sizeof msg.tag);
            if (channel_send(line, &msg, NULL, 0, &err) < 0) {
                return false;
            }
        }
    }
    struct channel_msg done = { .op = CHANNEL_DONE, .cookie = k->list_cookie };
    if (channel_send(line, &done, NULL, 0, &err) < 0) {
        return false;
    }
    k->listing = false;
    return true;
}

static bool tell_child(struct child *c, int line)
{
    struct err err;
    for (uint32_t code = 0; code < sizeof c->notes / sizeof c->notes[0]; code++) {
        struct child_note *note = &c->notes[code];
        if (note->there && !note->reported) {
            struct channel_msg msg = { .op = CHANNEL_NOTE,
                                       .child = c->number,
                                       .pid = c->pid,
                                       .code = code,
                                       .value = note->value };
            snprintf(msg.text, sizeof msg.text, "%s", note->text);
            memcpy(msg.tag, c->tag, sizeof msg.tag);
            if (channel_send(line, &msg, NULL, 0, &err) < 0) {
                return false;
            }
            note->reported = true;
        }
    }
    if (c->dead && !c->reported) {
        struct channel_msg msg = { .op = CHANNEL_DIED,
                                   .child = c->number,
                                   .pid = c->pid,
                                   .status = c->status,
                                   .role = c->role };
        memcpy(msg.tag, c->tag, sizeof msg.tag);
        if (channel_send(line, &msg, NULL, 0, &err) < 0) {
            return false;
        }
        c->reported = true;
    }
    return true;
}

void keeper_tell_broker(struct keeper *k)
{
    struct child *broker = children_find(&k->children, k->broker);
    if (!broker || broker->dead || broker->channel < 0 || broker->holding ||
        (k->listing && !tell_list(k, broker->channel))) {
        return;
    }
    for (int i = 0; i < LIMIT_CHILDREN; i++) {
        struct child *c = &k->children.rows[i];
        if (c->number && c->number != k->broker) {
            if (!tell_child(c, broker->channel)) {
                return;
            }
            if (c->dead && c->reported) {
                children_forget(c);
            }
        }
    }
}
