/* A parked conversation: what one sequence of a model has computed, as a file that outlives everybody. The worker writes and
 * reads the pages, by descriptors that it was given; the broker names the files, keeps their budget and looks at their heads to
 * find the one that a prompt begins like. proto/progress.h's sister for longer absences.
 *
 *   struct parked_head            magic, key, sizes, sums
 *   u64 [n_pages + 1]             sum of each page, then of the recurrent state
 *   i32 [n_tokens]                token at each position
 *   pages [n_pages], state        4 KiB aligned; as the cache has them
 *
 * The head is written last, so a file that was never finished has none. Nothing is believed without its sum; the sums are
 * against damage, not against somebody who may write here (a directory of mode 0700). Any thread; no state. */
#pragma once

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

#define PARKED_MAGIC   0x31304b5241504848ull
#define PARKED_VERSION 1

struct parked_head {
    uint64_t magic;
    uint32_t version, page_tokens;
    uint64_t
        key; /* of all that decides what the bits mean: weights, KV types, context, build, instruction set */
    uint64_t tag_hi, tag_lo; /* the request that computed it last */
    uint32_t n_tokens, n_pages;
    uint64_t page_bytes, state_bytes; /* state_bytes: recurrent models, else 0 */
    uint64_t total_bytes;
    uint64_t index_sum; /* of the sums and tokens */
    uint64_t head_sum;  /* of all before it */
};
static_assert(sizeof(struct parked_head) == 88 && offsetof(struct parked_head, head_sum) == 80,
              "a file's layout");

/* A head with what follows it. */
struct parked {
    struct parked_head head;
    uint64_t *sums;  /* owned [n_pages + 1] */
    int32_t *tokens; /* owned [n_tokens] */
};

/* An order-sensitive 64-bit sum at memory speed. */
uint64_t parked_sum(const void *data, size_t n);

/* Where the pages and the recurrent state of a head stand. */
uint64_t parked_page_off(const struct parked_head *head, uint32_t page);
uint64_t parked_state_off(const struct parked_head *head);

/* Fills in n_pages and total_bytes from the other sizes, and makes room for sums and tokens. ERR_NO_FIT beyond the limits. */
int parked_init(struct parked *p, uint64_t key, uint32_t n_tokens, uint32_t page_tokens,
                uint64_t page_bytes, uint64_t state_bytes, struct err *err);

/* Reads and checks head, sums and tokens against each other and the file's size; pages are the reader's to check.
 * Errors: ERR_BAD_FILE with what is wrong, ERR_IO, ERR_NO_MEMORY; p is empty then. */
int parked_read(struct parked *p, int fd, struct err *err);

/* Writes sums and tokens, then the head: the file is whole. */
int parked_finish(struct parked *p, int fd, struct err *err);

/* Frees what is owned. Accepts a zeroed one. */
void parked_clear(struct parked *p);

/* All of n bytes at an offset, or an error. */
int parked_pread(int fd, void *out, size_t n, uint64_t off, struct err *err);
int parked_pwrite(int fd, const void *data, size_t n, uint64_t off, struct err *err);
