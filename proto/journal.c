#include "proto/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "proto/bytes.h"
#include "proto/crc32c.h"
#include "proto/shm.h"

static const char *const state_names[JOURNAL_N_STATES] = {
    [JOURNAL_FREE] = "free",     [JOURNAL_QUEUED] = "queued", [JOURNAL_PREFILL] = "prefill",
    [JOURNAL_DECODE] = "decode", [JOURNAL_DONE] = "done",     [JOURNAL_CANCELLED] = "cancelled",
    [JOURNAL_FAILED] = "failed",
};

static const char *const end_names[] = {
    [JOURNAL_END_NONE] = "none",     [JOURNAL_END_STOP] = "stop",
    [JOURNAL_END_LENGTH] = "length", [JOURNAL_END_CANCELLED] = "cancelled",
    [JOURNAL_END_ERROR] = "error",
};

static const char *const sampler_names[JOURNAL_N_SAMPLERS] = {
    [JOURNAL_PENALTIES] = "penalties",
    [JOURNAL_DRY] = "dry",
    [JOURNAL_TOP_N_SIGMA] = "top_n_sigma",
    [JOURNAL_TOP_K] = "top_k",
    [JOURNAL_TYPICAL_P] = "typ_p",
    [JOURNAL_TOP_P] = "top_p",
    [JOURNAL_MIN_P] = "min_p",
    [JOURNAL_XTC] = "xtc",
    [JOURNAL_TEMPERATURE] = "temperature",
    [JOURNAL_ADAPTIVE_P] = "adaptive_p",
};

const char *journal_sampler_name(enum journal_sampler sampler)
{
    return (unsigned)sampler < JOURNAL_N_SAMPLERS ? sampler_names[sampler] : "damaged";
}

const char *journal_state_name(enum journal_state state)
{
    return (unsigned)state < JOURNAL_N_STATES ? state_names[state] : "damaged";
}

const char *journal_end_name(enum journal_end end)
{
    return (unsigned)end <= JOURNAL_END_ERROR ? end_names[end] : "damaged";
}

static uint64_t record_length(uint32_t n_alternatives, uint64_t n_bytes)
{
    return align_up(sizeof(struct journal_record) +
                        n_alternatives * sizeof(struct journal_alternative) + n_bytes,
                    8);
}

uint64_t journal_log_need(uint32_t n_max, uint32_t piece_bytes_max, uint32_t n_alternatives)
{
    /* Bytes are released once each, so their sum is bounded by the pieces, wherever they come out; padding is 7 a record. */
    uint64_t a_token = record_length(n_alternatives, 0) + piece_bytes_max + 8;
    uint64_t the_end = record_length(0, LIMIT_REASON_BYTES);
    return sizeof(struct journal_log) + n_max * a_token + the_end;
}

int journal_create(const char *path, uint64_t bytes, uint32_t uid, struct err *err)
{
    bytes = align_up(bytes, LIMIT_SHARD_PAGE);
    struct journal_header header = {
        .magic = JOURNAL_MAGIC,
        .version = JOURNAL_VERSION,
        .layout = JOURNAL_LAYOUT,
        .bytes = bytes,
        .n_slots = LIMIT_SHARD_SLOTS,
        .slot_bytes = JOURNAL_SLOT_BYTES,
        .slots_off = LIMIT_SHARD_PAGE,
        .uid = uid,
    };
    header.arena_off = header.slots_off + (uint64_t)header.n_slots * header.slot_bytes;
    if (bytes <= header.arena_off) {
        return err_set(err, ERR_USAGE, "a journal shard of %" PRIu64 " bytes is too small", bytes);
    }
    header.arena_bytes = bytes - header.arena_off;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return err_set_errno(err, ERR_IO, "create journal shard %s", path);
    }
    int status = posix_fallocate(fd, 0, (off_t)bytes);
    if (status) {
        errno = status;
        err_set_errno(err, ERR_NO_MEMORY, "reserve %" PRIu64 " bytes for journal shard %s", bytes,
                      path);
        goto fail;
    }
    if (pwrite(fd, &header, sizeof header, 0) != (ssize_t)sizeof header) {
        err_set_errno(err, ERR_IO, "write the header of journal shard %s", path);
        goto fail;
    }
    return fd;
fail:
    close(fd);
    unlink(path);
    return -1;
}

int journal_map(struct journal *j, int fd, bool writable, struct err *err)
{
    *j = (struct journal){ .writable = writable };
    j->base = shm_map(fd, writable, &j->size, err);
    if (!j->base) {
        return err_wrap(err, "journal shard");
    }
    if (j->size < LIMIT_SHARD_PAGE) {
        err_set(err, ERR_BAD_FILE, "journal shard of %zu bytes has no header", j->size);
        goto fail;
    }
    memcpy(&j->header, j->base, sizeof j->header);
    const struct journal_header *h = &j->header;
    if (h->magic != JOURNAL_MAGIC || h->version != JOURNAL_VERSION || h->layout != JOURNAL_LAYOUT) {
        err_set(err, ERR_BAD_FILE, "journal shard of version %u, layout %u; this build has %d, %d",
                h->version, h->layout, JOURNAL_VERSION, JOURNAL_LAYOUT);
        goto fail;
    }
    if (h->bytes != j->size || h->n_slots != LIMIT_SHARD_SLOTS ||
        h->slot_bytes != JOURNAL_SLOT_BYTES || h->slots_off != LIMIT_SHARD_PAGE ||
        h->arena_off != h->slots_off + (uint64_t)h->n_slots * h->slot_bytes ||
        h->arena_off >= h->bytes || h->arena_bytes != h->bytes - h->arena_off) {
        err_set(err, ERR_BAD_FILE, "journal shard: the header's sizes do not agree");
        goto fail;
    }
    return 0;
fail:
    journal_unmap(j);
    return -1;
}

void journal_unmap(struct journal *j)
{
    shm_unmap(j->base, j->size);
    *j = (struct journal){ 0 };
}

struct journal_slot *journal_slot_at(const struct journal *j, uint32_t i)
{
    assert(i < j->header.n_slots);
    return (struct journal_slot *)(void *)(j->base + j->header.slots_off +
                                           (uint64_t)i * j->header.slot_bytes);
}

/* ---- the broker's side ---- */

/* An extent is held from its reservation on (extent_bytes set), whether or not the slot is published. */
static bool slot_holds(const struct journal *j, uint32_t i, uint64_t *off, uint64_t *bytes)
{
    const struct journal_slot *slot = journal_slot_at(j, i);
    *off = slot->extent_off;
    *bytes = slot->extent_bytes;
    return *bytes > 0;
}

/* The lowest gap of `bytes` between the extents that are held; 0 when there is none. Slots are few hundred, so a scan for
 * each candidate start (the arena's start and every extent's end) costs less than a table that would need recovery. */
static uint64_t find_gap(const struct journal *j, uint64_t bytes)
{
    uint64_t arena_end = j->header.arena_off + j->header.arena_bytes;
    uint64_t start = align_up(j->header.arena_off, LIMIT_SHARD_PAGE);
    for (;;) {
        if (start > arena_end || bytes > arena_end - start) {
            return 0;
        }
        uint64_t next = 0;
        for (uint32_t i = 0; i < j->header.n_slots; i++) {
            uint64_t off, held;
            if (slot_holds(j, i, &off, &held) && off < start + bytes && off + held > start &&
                off + held > next) {
                next = off + held;
            }
        }
        if (next == 0) {
            return start;
        }
        start = next;
    }
}

uint64_t journal_used(const struct journal *j)
{
    uint64_t used = 0, off, bytes;
    for (uint32_t i = 0; i < j->header.n_slots; i++) {
        if (slot_holds(j, i, &off, &bytes)) {
            used += bytes;
        }
    }
    return used;
}

int journal_reserve(struct journal *j, uint32_t n_prompt, uint32_t extra_bytes, uint64_t log_bytes,
                    struct err *err)
{
    assert(j->writable);
    uint64_t prompt_at = align_up(sizeof(struct journal_extra) + extra_bytes, 8);
    uint64_t log_at = align_up(prompt_at + (uint64_t)n_prompt * sizeof(int32_t), 64);
    uint64_t need;
    if (!size_add(log_at, log_bytes, &need) || need > j->header.arena_bytes) {
        return err_set(err, ERR_NO_FIT,
                       "the request needs %" PRIu64 " bytes of journal, a shard has %" PRIu64,
                       log_at + log_bytes, j->header.arena_bytes);
    }
    need = align_up(need, LIMIT_SHARD_PAGE);
    uint32_t free_slot = j->header.n_slots;
    for (uint32_t i = 0; i < j->header.n_slots && free_slot == j->header.n_slots; i++) {
        const struct journal_slot *slot = journal_slot_at(j, i);
        if (journal_get_state(slot) == JOURNAL_FREE && slot->extent_bytes == 0) {
            free_slot = i;
        }
    }
    if (free_slot == j->header.n_slots) {
        return err_set(err, ERR_BUSY, "all %u request slots are taken", j->header.n_slots);
    }
    uint64_t at = find_gap(j, need);
    if (at == 0) {
        return err_set(err, ERR_BUSY,
                       "no room in the journal: the request needs %" PRIu64 " bytes, %" PRIu64
                       " of %" PRIu64 " are taken",
                       need, journal_used(j), j->header.arena_bytes);
    }
    struct journal_slot *slot = journal_slot_at(j, free_slot);
    uint32_t generation = slot->generation;
    memset(slot, 0, sizeof *slot);
    slot->generation = generation;
    slot->extent_off = at;
    slot->extent_bytes = need;
    slot->extra_off = at;
    slot->prompt_off = at + prompt_at;
    slot->log_off = at + log_at;
    slot->log_bytes = need - log_at;
    slot->n_prompt = n_prompt;
    memset(j->base + slot->log_off, 0, sizeof(struct journal_log));
    struct journal_extra *extra = journal_extra_of(j, slot);
    *extra = (struct journal_extra){ 0 };
    return (int)free_slot;
}

int32_t *journal_prompt(const struct journal *j, const struct journal_slot *slot)
{
    return (int32_t *)(void *)(j->base + slot->prompt_off);
}

struct journal_extra *journal_extra_of(const struct journal *j, const struct journal_slot *slot)
{
    return (struct journal_extra *)(void *)(j->base + slot->extra_off);
}

void journal_publish(struct journal_slot *slot)
{
    slot->generation++;
    journal_set_state(slot, JOURNAL_QUEUED);
}

void journal_set_state(struct journal_slot *slot, enum journal_state state)
{
    atomic_store_explicit(&slot->state, state, memory_order_release);
}

enum journal_state journal_get_state(const struct journal_slot *slot)
{
    return (enum journal_state)atomic_load_explicit(&slot->state, memory_order_acquire);
}

void journal_free(struct journal *j, struct journal_slot *slot)
{
    journal_set_state(slot, JOURNAL_FREE);
    if (slot->extent_bytes > 0) {
        explicit_bzero(j->base + slot->extent_off, slot->extent_bytes);
    }
    slot->extent_bytes = 0; /* last: a crash before it leaves a held extent that recovery frees */
}

int journal_find(const struct journal *j, const uint8_t id[LIMIT_REQUEST_ID_BYTES])
{
    for (uint32_t i = 0; i < j->header.n_slots; i++) {
        const struct journal_slot *slot = journal_slot_at(j, i);
        if (journal_get_state(slot) != JOURNAL_FREE &&
            memcmp(slot->id, id, LIMIT_REQUEST_ID_BYTES) == 0) {
            return (int)i;
        }
    }
    return -1;
}

/* ---- reading ---- */

static struct journal_log *log_at(const struct journal_reader *r)
{
    return (struct journal_log *)(void *)(r->journal->base + r->log_off);
}

int journal_reader_init(struct journal_reader *r, const struct journal *j, uint32_t slot_idx,
                        uint32_t generation, struct err *err)
{
    if (slot_idx >= j->header.n_slots) {
        return err_set(err, ERR_BAD_FILE, "slot %u of %u", slot_idx, j->header.n_slots);
    }
    const struct journal_slot *slot = journal_slot_at(j, slot_idx);
    if (journal_get_state(slot) == JOURNAL_FREE || slot->generation != generation) {
        return err_set(err, ERR_NOT_FOUND, "slot %u no longer holds request generation %u",
                       slot_idx, generation);
    }
    *r = (struct journal_reader){ .journal = j,
                                  .log_off = slot->log_off,
                                  .log_bytes = slot->log_bytes,
                                  .off = sizeof(struct journal_log) };
    if (r->log_off < j->header.arena_off || r->log_off > j->size || r->log_off % 8 ||
        r->log_bytes > j->size - r->log_off || r->log_bytes < sizeof(struct journal_log)) {
        return err_set(err, ERR_BAD_FILE, "slot %u: its token log is out of bounds", slot_idx);
    }
    return 0;
}

uint64_t journal_committed(const struct journal_reader *r)
{
    return atomic_load_explicit(&log_at(r)->committed, memory_order_acquire);
}

int journal_read(struct journal_reader *r, struct journal_view *view, struct err *err)
{
    if (r->seq >= journal_committed(r)) {
        return 0;
    }
    const uint8_t *at = r->journal->base + r->log_off + r->off;
    struct journal_record *record = &view->record;
    if (r->log_bytes - r->off < sizeof *record) {
        return err_set(err, ERR_BAD_FILE, "token log ends before record %" PRIu64, r->seq + 1);
    }
    memcpy(record, at, sizeof *record);
    if (record->seq != r->seq + 1 || record->length > r->log_bytes - r->off ||
        record->n_alternatives > LIMIT_ALTERNATIVES ||
        record->n_bytes > JOURNAL_RELEASE_BYTES_MAX ||
        record->length != record_length(record->n_alternatives, record->n_bytes)) {
        return err_set(err, ERR_BAD_FILE, "token log: record %" PRIu64 " is damaged", r->seq + 1);
    }
    size_t alternatives = record->n_alternatives * sizeof view->alternatives[0];
    memcpy(view->alternatives, at + sizeof *record, alternatives);
    memcpy(view->bytes, at + sizeof *record + alternatives, record->n_bytes);
    view->n_bytes = record->n_bytes;
    uint32_t crc = crc32c(0, (const uint8_t *)record + 8, sizeof *record - 8);
    crc = crc32c(crc, view->alternatives, alternatives);
    crc = crc32c(crc, view->bytes, view->n_bytes);
    if (crc != record->crc) {
        return err_set(err, ERR_BAD_FILE, "token log: record %" PRIu64 " has a wrong checksum",
                       r->seq + 1);
    }
    r->off += record->length;
    r->seq++;
    return 1;
}

/* ---- writing ---- */

int journal_writer_init(struct journal_writer *w, const struct journal *j, uint32_t slot,
                        uint32_t generation, uint32_t epoch, struct err *err)
{
    assert(j->writable);
    struct journal_view view;
    int got;
    w->epoch = epoch;
    if (journal_reader_init(&w->at, j, slot, generation, err) < 0) {
        return -1;
    }
    while ((got = journal_read(&w->at, &view, err)) > 0) {
    }
    return got;
}

int journal_append(struct journal_writer *w, const struct journal_record *given,
                   const struct journal_alternative *alternatives, const void *bytes,
                   uint32_t n_bytes, struct err *err)
{
    struct journal_reader *r = &w->at;
    uint64_t length = record_length(given->n_alternatives, n_bytes);
    if (given->n_alternatives > LIMIT_ALTERNATIVES || n_bytes > JOURNAL_RELEASE_BYTES_MAX ||
        length > r->log_bytes - r->off) {
        return err_set(err, ERR_FULL, "a record of %" PRIu64 " bytes, the token log has %" PRIu64,
                       length, r->log_bytes - r->off);
    }
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct journal_record record = *given;
    record.length = (uint32_t)length;
    record.seq = r->seq + 1;
    record.time_us = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
    record.epoch = w->epoch;
    record.n_bytes = n_bytes;
    size_t alternatives_bytes = record.n_alternatives * sizeof *alternatives;
    uint32_t crc = crc32c(0, (const uint8_t *)&record + 8, sizeof record - 8);
    crc = crc32c(crc, alternatives, alternatives_bytes);
    record.crc = crc32c(crc, bytes, n_bytes);
    uint8_t *at = r->journal->base + r->log_off + r->off;
    memcpy(at, &record, sizeof record);
    if (alternatives_bytes) {
        memcpy(at + sizeof record, alternatives, alternatives_bytes);
    }
    if (n_bytes) {
        memcpy(at + sizeof record + alternatives_bytes, bytes, n_bytes);
    }
    atomic_store_explicit(&log_at(r)->committed, record.seq, memory_order_release);
    r->off += length;
    r->seq++;
    return 0;
}
