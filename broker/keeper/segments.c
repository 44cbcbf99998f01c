#include "broker/keeper/segments.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "proto/shm.h"

void segments_init(struct segments *s)
{
    memset(s, 0, sizeof *s);
}

static struct segment *find(const struct segments *s, uint64_t number)
{
    for (int i = 0; i < LIMIT_SEGMENTS; i++) {
        if (s->rows[i].number == number) {
            return (struct segment *)(uintptr_t)&s->rows[i];
        }
    }
    return NULL;
}

static struct segment *new_row(struct segments *s, uint64_t number, const char *tag,
                               struct err *err)
{
    if (number == 0 || find(s, number)) {
        err_set(err, ERR_USAGE, "segment number %llu is taken or zero", (unsigned long long)number);
        return NULL;
    }
    struct segment *row = find(s, 0);
    if (!row) {
        err_set(err, ERR_FULL, "all %d segments are taken", LIMIT_SEGMENTS);
        return NULL;
    }
    row->fds[0] = row->fds[1] = -1;
    memcpy(row->tag, tag, sizeof row->tag);
    return row;
}

int segments_create(struct segments *s, uint64_t number, uint64_t bytes, bool sparse,
                    const char *tag, struct err *err)
{
    struct segment *row = new_row(s, number, tag, err);
    if (!row) {
        return -1;
    }
    row->fds[0] = sparse ? shm_create_sparse("hearth", bytes, err)
                         : shm_create("hearth", bytes, bytes > 0, err);
    if (row->fds[0] < 0) {
        return err_wrap(err, "segment %s", tag);
    }
    row->number = number;
    return 0;
}

int segments_deposit(struct segments *s, uint64_t number, const int fds[CHANNEL_FDS_MAX],
                     const char *tag, struct err *err)
{
    struct segment *row = fds[0] >= 0 ? new_row(s, number, tag, err) : NULL;
    if (!row) {
        for (int i = 0; i < CHANNEL_FDS_MAX; i++) {
            if (fds[i] >= 0) {
                close(fds[i]);
            }
        }
        return fds[0] >= 0 ? -1 : err_set(err, ERR_USAGE, "a deposit without a descriptor");
    }
    memcpy(row->fds, fds, sizeof row->fds);
    row->number = number;
    return 0;
}

void segments_drop(struct segments *s, uint64_t number)
{
    struct segment *row = number ? find(s, number) : NULL;
    if (!row) {
        return;
    }
    for (int i = 0; i < CHANNEL_FDS_MAX; i++) {
        if (row->fds[i] >= 0) {
            close(row->fds[i]);
        }
    }
    row->number = 0;
    for (int i = 0; i < SEGMENTS_GRANTS_MAX; i++) {
        if (s->grants[i].segment == number) {
            s->grants[i] = (struct grant){ 0 };
        }
    }
}

int segments_grant(struct segments *s, uint64_t number, uint32_t child, uint32_t flags,
                   struct err *err)
{
    if (number == 0 || !find(s, number)) {
        return err_set(err, ERR_NOT_FOUND, "no segment %llu", (unsigned long long)number);
    }
    struct grant *row = NULL;
    for (int i = 0; i < SEGMENTS_GRANTS_MAX; i++) {
        if (s->grants[i].child == child && s->grants[i].segment == number) {
            s->grants[i].flags |= flags;
            return 0;
        }
        if (!row && s->grants[i].child == 0) {
            row = &s->grants[i];
        }
    }
    if (!row) {
        return err_set(err, ERR_FULL, "all %d grants are taken", SEGMENTS_GRANTS_MAX);
    }
    *row = (struct grant){ .child = child, .flags = flags, .segment = number };
    return 0;
}

int segments_take(const struct segments *s, uint64_t number, uint32_t child,
                  int fds[CHANNEL_FDS_MAX], struct err *err)
{
    const struct segment *row = number ? find(s, number) : NULL;
    bool writable = child == 0, granted = writable;
    for (int i = 0; i < SEGMENTS_GRANTS_MAX && !granted; i++) {
        if (s->grants[i].child == child && s->grants[i].segment == number) {
            granted = true;
            writable = s->grants[i].flags & CHANNEL_WRITABLE;
        }
    }
    if (!row) {
        return err_set(err, ERR_NOT_FOUND, "no segment %llu", (unsigned long long)number);
    }
    if (!granted) {
        return err_set(err, ERR_REFUSED, "segment %llu is not granted to child %u",
                       (unsigned long long)number, child);
    }
    fds[0] = fds[1] = -1;
    for (int i = 0; i < CHANNEL_FDS_MAX; i++) {
        if (row->fds[i] < 0) {
            continue;
        }
        /* The second descriptor is an eventfd: there is no read-only one, and nothing to protect. */
        fds[i] = writable || i > 0 ? fcntl(row->fds[i], F_DUPFD_CLOEXEC, 0)
                                   : shm_reopen_readonly(row->fds[i], err);
        if (fds[i] < 0) {
            err_set_errno(err, ERR_IO, "copy a descriptor of segment %llu",
                          (unsigned long long)number);
            if (fds[0] >= 0) {
                close(fds[0]);
            }
            return -1;
        }
    }
    return 0;
}

void segments_forget_child(struct segments *s, uint32_t child)
{
    for (int i = 0; i < SEGMENTS_GRANTS_MAX; i++) {
        if (s->grants[i].child == child) {
            s->grants[i] = (struct grant){ 0 };
        }
    }
}
