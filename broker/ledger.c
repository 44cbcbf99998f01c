#include "broker/ledger.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/broker.h"

static struct {
    Hearth__LedgerRow rows[LEDGER_ROWS], *at[LEDGER_ROWS];
    char names[LEDGER_ROWS][LIMIT_MODEL_NAME_BYTES + 64];
    size_t n;
} book; /* one thread */

/* kind: what `hearth ps` adds up; bytes: reserved, or the size; used: of these, when that is less. */
__attribute__((format(printf, 4, 5))) static void add(const char *kind, uint64_t bytes,
                                                      uint64_t used, const char *format, ...)
{
    va_list args;
    if (book.n == LEDGER_ROWS) {
        return;
    }
    va_start(args, format);
    vsnprintf(book.names[book.n], sizeof book.names[book.n], format, args);
    va_end(args);
    Hearth__LedgerRow *row = &book.rows[book.n];
    hearth__ledger_row__init(row);
    row->kind = message_str(kind);
    row->name = message_str(book.names[book.n]);
    row->bytes = bytes;
    row->has_used_bytes = true;
    row->used_bytes = used;
    book.at[book.n++] = row;
}

/* Memory that no other process shares, so that segments are not counted twice. */
static void add_process(const char *role, int32_t pid, const char *model)
{
    char path[64];
    unsigned long long size, resident, shared;
    if (pid <= 0) {
        return;
    }
    snprintf(path, sizeof path, "/proc/%d/statm", pid);
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%llu %llu %llu", &size, &resident, &shared) == 3) {
        uint64_t bytes = (resident > shared ? resident - shared : 0) *
                         (uint64_t)sysconf(_SC_PAGESIZE);
        add("process", bytes, bytes, "%s %d%s%s", role, pid, *model ? " of " : "", model);
    }
    if (f) {
        fclose(f);
    }
}

static void add_models(struct broker *b)
{
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *m = b->models.list[i];
        struct stat st;
        if (m->segment) {
            uint64_t bytes = models_ram_bytes(m);
            add("weights", bytes, bytes, "%s, %s%s", m->file.name, model_state_name(m->state),
                !m->window.on ? keeps_held(b, m->segment) ? ", mapped for a device" : ""
                : m->state == MODEL_LOADING ? ", by a window"
                                            : ", on the device alone");
        }
        if (models_spilled(m)) { /* its worker's row has them, too */
            add("spilled", models_spilled(m), models_spilled(m),
                "weights of %s that its device has no room for", m->file.name);
        }
        if (m->state_segment) {
            uint64_t used = m->watch.state_fd > 0 && fstat(m->watch.state_fd, &st) == 0
                                ? (uint64_t)st.st_blocks * 512
                                : m->state_bytes;
            add("state", m->state_bytes, used, "%s, %u sequences of %u", m->file.name,
                m->info.n_sequences, m->info.ctx);
        }
    }
}

/* Keys and values of who runs or was set aside, by requests. */
static void add_requests(struct broker *b)
{
    for (uint32_t i = 0; i < b->requests.n; i++) {
        const struct request *r = b->requests.list[i];
        if (!r->worker || r->gone || request_ended(r) || !r->model || !r->model->info.token_bytes) {
            continue;
        }
        uint64_t bytes = (request_slot(r)->n_prompt + request_committed(r)) *
                         r->model->info.token_bytes;
        const struct client *c = clients_find(&b->clients, r->client);
        add("request", bytes, bytes, "%02x%02x%02x%02x of %s, in the state of %s", r->id[0],
            r->id[1], r->id[2], r->id[3], c ? c->name : "nobody here", r->model->file.name);
    }
}

size_t ledger_rows(struct broker *b, Hearth__LedgerRow ***rows)
{
    book.n = 0;
    add_models(b);
    add_requests(b);
    if (b->parks.n) {
        add("parked", b->parks.bytes, b->parks.bytes, "%u idle conversations, %s", b->parks.n,
            b->parks.in_memory ? "in memory" : "on disk");
    }
    for (uint32_t i = 0; i < b->shards.n; i++) {
        const struct shard *s = &b->shards.list[i];
        add("journal", s->journal.header.arena_bytes, journal_used(&s->journal), "of user %u",
            (unsigned)s->uid);
    }
    if (b->lend.bytes) {
        uint64_t lent = b->config.ram_budget - lend_budget(b);
        add("lent", lent, lent, "to another application");
    }
    add_process("keeper", getppid(), "");
    add_process("broker", getpid(), "");
    for (uint32_t i = 0; i < b->workers.n; i++) {
        add_process("worker", b->workers.list[i].pid, b->workers.list[i].device);
    }
    for (uint32_t i = 0; i < b->models.n; i++) {
        const struct model *m = b->models.list[i];
        add_process("loader", m->loader ? m->loader_pid : 0, m->file.name);
        add_process("text service", m->text.child ? m->text.pid : 0, m->file.name);
    }
    add_process("gateway", b->gateway.child ? b->gateway.pid : 0, "");
    *rows = book.at;
    return book.n;
}
