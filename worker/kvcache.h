/* Keys, values and recurrent state of many sequences, in memory that the caller provides: a memfd shared with
 * nobody but the next worker, which maps it after a death and goes on (kvcache_adopt). Worker, loop thread only.
 * A CPU computes in that very memory. A device with memory of its own computes there (kvcache_place), and this memory is
 * its mirror, a little behind (mirror.h): `committed` then counts what has arrived here.
 *
 *   struct kvcache_header            magic, version, fingerprint of the model's layout, sizes
 *   struct kvcache_seq [max_seqs]    one row for each sequence slot: owner's tag, positions committed
 *   u32 [max_seqs][pages_per_seq]    page tables, by page index (position / KV_PAGE_TOKENS)
 *   recurrent state [max_seqs][2]    hybrids only: two copies, the committed one and the one being made
 *   pages [n_host_pages]             see backend.h; fewer than n_pages only where they are a mirror under a budget
 *
 * What stands in the memory is only changed in an order that a reader after a sudden death can trust: a page is
 * in a table before it is written, `committed` grows (release) after the step that wrote the positions. What lies
 * beyond it is garbage. Reference counts and the free list are private and rebuilt from the tables. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "worker/backend.h"

#define KVCACHE_MAGIC   0x00000000314b5648ull /* "HVK1" */
#define KVCACHE_VERSION 2

/* Whose sequence this is: the request's 128-bit id, say. Zero: the slot is free. */
struct kvcache_tag {
    uint64_t hi, lo;
};

struct kvcache_header {
    uint64_t magic;
    uint32_t version;
    uint32_t max_seqs;
    uint32_t pages_per_seq;
    uint32_t n_pages, n_host_pages;
    uint64_t page_bytes, state_bytes;
    uint64_t fingerprint;
    uint64_t total_bytes;
};

struct kvcache_seq {
    struct kvcache_tag tag;
    int64_t first_pos; /* where it starts; 0 but for tests */
    /* One word, so that a sudden death cannot part them: the position after the last committed one, times two,
     * plus which copy of the recurrent state belongs to it. */
    _Atomic uint64_t committed;
};

struct mirror;

struct kvcache {
    const struct kv_layout *layout; /* borrowed from the model */
    struct mirror *mirror;          /* owned; NULL where the device computes in this memory */
    struct kvcache_header *header;
    struct kvcache_seq *seqs;
    uint32_t *tables;
    uint8_t *states;
    uint8_t *pages;
    uint32_t *refs;      /* owned, [n_pages]: tables that name the page */
    uint32_t *free_list; /* owned, [n_pages] */
    uint32_t n_free;
    bool *backed; /* owned, [n_pages]: the page has memory behind it, or had it asked for */
};

/* Bytes of memory for so many pages and sequences of at most ctx_len positions. */
size_t kvcache_size(const struct kv_layout *layout, uint32_t n_pages, uint32_t max_seqs,
                    uint32_t ctx_len);

/* Pages that one sequence of n_tokens takes. */
uint32_t kvcache_pages_for(uint32_t n_tokens);

/* Lays an empty cache out in `memory` (which may be sparse: a page's memory is asked for when it is first taken; zeroed, 64-byte aligned, at least kvcache_size bytes; borrowed until
 * kvcache_clear). Errors: ERR_BAD_INPUT, ERR_NO_MEMORY. */
int kvcache_init(struct kvcache *kv, const struct kv_layout *layout, void *memory,
                 size_t size_bytes, uint32_t n_pages, uint32_t max_seqs, uint32_t ctx_len,
                 struct err *err);

/* The same for a device of its own, whose n_pages are mirrored up to number n_host_pages: how many bytes, an empty one. */
size_t kvcache_mirror_size(const struct kv_layout *layout, uint32_t n_host_pages, uint32_t max_seqs,
                           uint32_t ctx_len);
int kvcache_init_mirror(struct kvcache *kv, const struct kv_layout *layout, void *memory,
                        size_t size_bytes, uint32_t n_pages, uint32_t n_host_pages,
                        uint32_t max_seqs, uint32_t ctx_len, struct err *err);

/* Takes over what a predecessor left. Everything is checked; a sequence whose table makes no sense is dropped.
 * Errors: ERR_CHANGED when the fingerprint or the sizes are of another model or build. */
int kvcache_adopt(struct kvcache *kv, const struct kv_layout *layout, void *memory,
                  size_t size_bytes, struct err *err);

/* Gives pages and states their place in the device's memory, with what an adopted cache holds; on a CPU they have it.
 * Once, after init or adopt and before the first step. The backend is borrowed until kvcache_clear.
 * Errors: ERR_NO_MEMORY, the device's. */
int kvcache_place(struct kvcache *kv, struct backend *backend, struct err *err);

/* Sends what sequence seq computed to its mirror, without waiting; `all`: and waits until it is there. Without a mirror
 * there is nothing to do. Errors: the device's. */
int kvcache_send(struct kvcache *kv, uint32_t seq, bool all, struct err *err);

/* Frees what is private, after what is on its way has arrived; the memory stays as it is. Accepts a zeroed one. */
void kvcache_clear(struct kvcache *kv);

/* A new empty sequence at first_pos, or ERR_FULL. Returns its slot in *seq. */
int kvcache_begin(struct kvcache *kv, struct kvcache_tag tag, int64_t first_pos, uint32_t *seq,
                  struct err *err);

/* Gives the slot and its pages back. */
void kvcache_end(struct kvcache *kv, uint32_t seq);

/* The slot of a tag, or -1: how a new worker finds what it took over. */
int64_t kvcache_find(const struct kvcache *kv, struct kvcache_tag tag);

/* The position that comes next: first_pos + tokens committed. */
int64_t kvcache_pos(const struct kvcache *kv, uint32_t seq);

/* Makes room for n_tokens more positions, un-sharing the page that is written next. forward_step calls it;
 * callers may, to learn early. Errors: ERR_NO_FIT beyond pages_per_seq, ERR_FULL when no page is free or the machine
 * has no memory for one (nothing changed then). */
int kvcache_reserve(struct kvcache *kv, uint32_t seq, uint32_t n_tokens, struct err *err);

/* forward_step: the n_tokens after the end are written. */
void kvcache_commit(struct kvcache *kv, uint32_t seq, uint32_t n_tokens);

/* Forgets positions from `pos` on (speculation, banned strings, edited prompts). Recurrent models cannot rewind:
 * only pos == kvcache_pos (nothing) or pos == first_pos (all) work there, else ERR_UNSUPPORTED. */
int kvcache_truncate(struct kvcache *kv, uint32_t seq, int64_t pos, struct err *err);

/* On a device: the last position was computed in vain by the step that was left last (forward_leave). Recurrent models too: the
 * state before it is still there. Errors: the device's. */
int kvcache_take_back(struct kvcache *kv, uint32_t seq, struct err *err);

/* Lets the empty sequence dst begin with the first n_tokens of src, whole pages only, shared and counted, not
 * copied. *n_copied: tokens it has now (a multiple of KV_PAGE_TOKENS, maybe 0; always 0 for recurrent models). */
int kvcache_copy_prefix(struct kvcache *kv, uint32_t dst, uint32_t src, uint32_t n_tokens,
                        uint32_t *n_copied, struct err *err);

/* Where ops find the pages. The page table of a sequence, and its two recurrent states (committed, next); NULL without. */
uint8_t *kvcache_pages(const struct kvcache *kv);
const uint32_t *kvcache_table(const struct kvcache *kv, uint32_t seq);
uint8_t *kvcache_state(const struct kvcache *kv, uint32_t seq, bool next);

/* For files of idle sequences, which read and write this memory (park.h). is_here: it holds all that the sequence
 * computed. has_room_here: every page of its table has a place in it. host_state: the state that belongs to what this
 * memory holds, or the next. take: n_tokens positions and the next state were written into this memory; they count now, and
 * a device gets them. Errors: the device's. */
bool kvcache_is_here(const struct kvcache *kv, uint32_t seq);
bool kvcache_has_room_here(const struct kvcache *kv, uint32_t seq);
uint8_t *kvcache_host_state(const struct kvcache *kv, uint32_t seq, bool next);
int kvcache_take(struct kvcache *kv, uint32_t seq, uint32_t n_tokens, struct err *err);
