#include "broker/keeper_line.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/log.h"

struct question {
    struct question *next;
    enum keeper_what what;
    uint64_t cookie, subject, other;
    struct channel_msg *msg; /* owned until sent */
    int fds[CHANNEL_FDS_MAX];
    int n_fds;
};

struct keeper_line {
    int fd;
    uint64_t last_cookie;
    struct question *first, **end; /* in the order asked */
    struct question *unsent;       /* the first that has not gone out */
    uint32_t n;
    bool lost;
};

struct keeper_line *keeper_line_create(int fd, struct err *err)
{
    struct keeper_line *line = calloc(1, sizeof *line);
    if (!line) {
        err_set(err, ERR_NO_MEMORY, "no memory for the keeper's line");
        return NULL;
    }
    line->fd = fd;
    line->end = &line->first;
    return line;
}

static void question_destroy(struct question *q)
{
    for (int i = 0; i < q->n_fds; i++) {
        close(q->fds[i]);
    }
    free(q->msg);
    free(q);
}

void keeper_line_destroy(struct keeper_line **linep)
{
    struct keeper_line *line = *linep;
    if (!line) {
        return;
    }
    while (line->first) {
        struct question *q = line->first;
        line->first = q->next;
        question_destroy(q);
    }
    free(line);
    *linep = NULL;
}

void keeper_line_ask(struct keeper_line *line, const struct channel_msg *msg, const int *fds,
                     int n_fds, enum keeper_what what, uint64_t subject, uint64_t other)
{
    assert(n_fds <= CHANNEL_FDS_MAX);
    struct question *q = line->n < KEEPER_WAITING_MAX ? calloc(1, sizeof *q) : NULL;
    if (q) {
        q->msg = malloc(sizeof *q->msg);
    }
    if (!q || !q->msg) {
        free(q);
        for (int i = 0; i < n_fds; i++) {
            close(fds[i]);
        }
        line->lost = true;
        return;
    }
    *q->msg = *msg;
    q->cookie = ++line->last_cookie;
    q->msg->cookie = q->cookie;
    q->what = what;
    q->subject = subject;
    q->other = other;
    q->n_fds = n_fds;
    for (int i = 0; i < n_fds; i++) {
        q->fds[i] = fds[i];
    }
    *line->end = q;
    line->end = &q->next;
    line->n++;
    if (!line->unsent) {
        line->unsent = q;
    }
}

int keeper_line_flush(struct keeper_line *line, struct err *err)
{
    if (line->lost) {
        return err_set(err, ERR_FULL, "%u questions to the keeper are unanswered", line->n);
    }
    while (line->unsent) {
        struct question *q = line->unsent;
        struct err sent = { 0 };
        if (channel_send(line->fd, q->msg, q->fds, q->n_fds, &sent) < 0) {
            if (sent.code == ERR_FULL) {
                return 0;
            }
            *err = sent;
            return err_wrap(err, "keeper");
        }
        for (int i = 0; i < q->n_fds; i++) {
            close(q->fds[i]);
        }
        q->n_fds = 0;
        free(q->msg);
        q->msg = NULL;
        line->unsent = q->next;
    }
    return 0;
}

bool keeper_line_waiting(const struct keeper_line *line)
{
    return line->unsent != NULL;
}

/* Takes the question of this cookie out of the list; nearly always the first. */
static struct question *take_question(struct keeper_line *line, uint64_t cookie)
{
    for (struct question **at = &line->first; *at && *at != line->unsent; at = &(*at)->next) {
        struct question *q = *at;
        if (q->cookie == cookie) {
            *at = q->next;
            if (line->end == &q->next) {
                line->end = at;
            }
            line->n--;
            return q;
        }
    }
    return NULL;
}

int keeper_line_recv(struct keeper_line *line, struct keeper_event *event, struct err *err)
{
    for (;;) {
        event->what = KEEPER_NOTHING;
        event->subject = event->other = 0;
        int got = channel_recv(line->fd, &event->msg, event->fds, false, err);
        if (got < 0 && err->code == ERR_BAD_INPUT) {
            log_warn("keeper: %s", err->text);
            continue;
        }
        if (got <= 0) {
            return got;
        }
        if (event->msg.op == CHANNEL_DONE) {
            struct question *q = take_question(line, event->msg.cookie);
            if (q) {
                event->what = q->what;
                event->subject = q->subject;
                event->other = q->other;
                question_destroy(q);
            }
        }
        return 1;
    }
}
