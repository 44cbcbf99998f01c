#include "broker/records.h"

#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "broker/broker.h"
#include "broker/post.h"
#include "proto/log.h"
#include "proto/shm.h"

#define RECORDS_BYTES_MAX (48u << 10) /* of one Records message: fits an envelope */

void records_init(struct broker *b)
{
    struct records *t = &b->records;
    struct err err = { 0 };
    size_t bytes;
    t->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int page = shm_create("broker reader", sizeof *t->page, true, &err);
    t->page = page < 0 ? NULL : shm_map(page, true, &bytes, &err);
    if (!t->page || t->eventfd < 0) {
        log_warn("no reader page of our own, records will be slow: %s", err.text);
        if (page >= 0) {
            close(page);
        }
        return;
    }
    struct channel_msg deposit = { .op = CHANNEL_DEPOSIT, .segment = broker_segment(b) };
    strcpy(deposit.tag, "own reader");
    t->reader = deposit.segment;
    int fds[2] = { page, fcntl(t->eventfd, F_DUPFD_CLOEXEC, 0) };
    keeper_line_ask(b->keeper, &deposit, fds, 2, KEEPER_DEPOSIT_OWN, 0, 0);
}

void records_clear(struct records *t)
{
    if (t->page) {
        shm_unmap(t->page, sizeof *t->page);
    }
    if (t->eventfd >= 0) {
        close(t->eventfd);
    }
    *t = (struct records){ .eventfd = -1 };
}

void records_on_deposit(struct broker *b, const struct err *err)
{
    b->records.made = err->code == ERR_NONE;
}

void records_begin(struct broker *b, struct request *r, const struct link_peer *peer,
                   uint64_t after)
{
    static struct journal_view view; /* 16 KiB: not on the stack; one thread */
    struct err err = { 0 };
    (void)b;
    r->records_peer = *peer;
    r->records = journal_reader_init(&r->records_at, &r->shard->journal, r->slot, r->generation,
                                     &err) == 0;
    while (r->records && r->records_at.seq < after &&
           journal_read(&r->records_at, &view, &err) > 0) {
    }
}

/* Sends what is new of one request; false when its peer does not take more now. */
static bool send_new(struct broker *b, struct request *r)
{
    static struct journal_view view;
    struct err err = { 0 };
    for (;;) {
        struct journal_reader before = r->records_at, at = before;
        while (at.off - before.off < RECORDS_BYTES_MAX - sizeof view &&
               journal_read(&at, &view, &err) > 0) {
        }
        if (at.off == before.off) {
            return true;
        }
        Hearth__Records records = HEARTH__RECORDS__INIT;
        struct post_to to = { .peer = r->records_peer };
        records.id = message_bytes(r->id, sizeof r->id);
        records.data = message_bytes(r->shard->journal.base + before.log_off + before.off,
                                     at.off - before.off);
        if (post_say(b, &to, HEARTH__ENVELOPE__BODY_RECORDS, &records, NULL, 0) < 0) {
            return false;
        }
        r->records_at = at;
    }
}

void records_act(struct broker *b)
{
    struct records *t = &b->records;
    bool any = false;
    uint64_t count;
    for (uint32_t i = 0; i < b->requests.n && !any; i++) {
        any = b->requests.list[i]->records;
    }
    if (!any) {
        return;
    }
    while (t->eventfd >= 0 && read(t->eventfd, &count, sizeof count) > 0) {
    }
    /* First ready to be woken, then a look: what comes in between is seen or wakes us. */
    if (t->page) {
        atomic_store(&t->page->waiting, 1);
    }
    for (uint32_t i = 0; i < b->requests.n; i++) {
        struct request *r = b->requests.list[i];
        if (r->records && r->admitted && !r->gone && !send_new(b, r)) {
            broker_alarm(b, b->now_ms + 20);
        }
    }
}
