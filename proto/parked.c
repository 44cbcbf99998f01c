#include "proto/parked.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/bytes.h"
#include "proto/limits.h"

#define ALIGN           4096u
#define PAGE_BYTES_MAX  (1ull << 30) /* of one page of keys and values, all layers */
#define STATE_BYTES_MAX (1ull << 34)

/* Four lanes of multiply and rotate over 32 bytes; the rest byte by byte. */
uint64_t parked_sum(const void *data, size_t n)
{
    const uint8_t *at = data;
    uint64_t lane[4] = { 0x9e3779b97f4a7c15ull, 0xc2b2ae3d27d4eb4full, 0x165667b19e3779f9ull,
                         0x27d4eb2f165667c5ull };
    uint64_t h = n * 0x9e3779b97f4a7c15ull;
    for (; n >= 32; n -= 32, at += 32) {
        for (int i = 0; i < 4; i++) {
            uint64_t word;
            memcpy(&word, at + 8 * i, sizeof word);
            lane[i] = (lane[i] ^ word) * 0xff51afd7ed558ccdull;
            lane[i] = lane[i] << 31 | lane[i] >> 33;
        }
    }
    for (; n > 0; n--, at++) {
        h = (h ^ *at) * 0x100000001b3ull;
    }
    for (int i = 0; i < 4; i++) {
        h = (h ^ lane[i]) * 0xc4ceb9fe1a85ec53ull;
        h ^= h >> 29;
    }
    return h;
}

static uint64_t index_bytes(const struct parked_head *h)
{
    return (h->n_pages + 1ull) * sizeof(uint64_t) + (uint64_t)h->n_tokens * sizeof(int32_t);
}

uint64_t parked_page_off(const struct parked_head *h, uint32_t page)
{
    return align_up(sizeof *h + index_bytes(h), ALIGN) + page * align_up(h->page_bytes, ALIGN);
}

uint64_t parked_state_off(const struct parked_head *h)
{
    return parked_page_off(h, h->n_pages);
}

/* The sizes that follow from n_tokens and the shapes; false beyond the limits. */
static bool lay_out(struct parked_head *h)
{
    if (h->n_tokens == 0 || h->n_tokens > LIMIT_CTX_TOKENS || h->page_tokens == 0 ||
        h->page_tokens > LIMIT_CTX_TOKENS || h->page_bytes == 0 || h->page_bytes > PAGE_BYTES_MAX ||
        h->state_bytes > STATE_BYTES_MAX) {
        return false;
    }
    h->n_pages = (h->n_tokens + h->page_tokens - 1) / h->page_tokens;
    h->total_bytes = parked_state_off(h) + h->state_bytes;
    return true;
}

static int make_room(struct parked *p, struct err *err)
{
    p->sums = calloc(p->head.n_pages + 1ull, sizeof *p->sums);
    p->tokens = calloc(p->head.n_tokens, sizeof *p->tokens);
    return p->sums && p->tokens
               ? 0
               : err_set(err, ERR_NO_MEMORY, "no memory for %u tokens", p->head.n_tokens);
}

int parked_init(struct parked *p, uint64_t key, uint32_t n_tokens, uint32_t page_tokens,
                uint64_t page_bytes, uint64_t state_bytes, struct err *err)
{
    *p = (struct parked){ .head = { .magic = PARKED_MAGIC,
                                    .version = PARKED_VERSION,
                                    .page_tokens = page_tokens,
                                    .key = key,
                                    .n_tokens = n_tokens,
                                    .page_bytes = page_bytes,
                                    .state_bytes = state_bytes } };
    if (!lay_out(&p->head)) {
        return err_set(err, ERR_NO_FIT, "a conversation of %u tokens is not parked", n_tokens);
    }
    if (make_room(p, err) < 0) {
        parked_clear(p);
        return -1;
    }
    return 0;
}

void parked_clear(struct parked *p)
{
    free(p->sums);
    free(p->tokens);
    *p = (struct parked){ 0 };
}

int parked_pread(int fd, void *out, size_t n, uint64_t off, struct err *err)
{
    uint8_t *at = out;
    while (n > 0) {
        ssize_t got = pread(fd, at, n, (off_t)off);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return err_set_errno(err, ERR_IO, "read at %" PRIu64, off);
        }
        if (got == 0) {
            return err_set(err, ERR_BAD_FILE, "it ends at %" PRIu64, off);
        }
        at += got;
        off += (uint64_t)got;
        n -= (size_t)got;
    }
    return 0;
}

int parked_pwrite(int fd, const void *data, size_t n, uint64_t off, struct err *err)
{
    const uint8_t *at = data;
    while (n > 0) {
        ssize_t put = pwrite(fd, at, n, (off_t)off);
        if (put < 0 && errno == EINTR) {
            continue;
        }
        if (put <= 0) {
            return err_set_errno(err, ERR_IO, "write at %" PRIu64, off);
        }
        at += put;
        off += (uint64_t)put;
        n -= (size_t)put;
    }
    return 0;
}

static uint64_t index_sum(const struct parked *p)
{
    uint64_t sums = parked_sum(p->sums, (p->head.n_pages + 1ull) * sizeof *p->sums);
    return sums ^ (parked_sum(p->tokens, p->head.n_tokens * sizeof *p->tokens) << 1 | sums >> 63);
}

int parked_read(struct parked *p, int fd, struct err *err)
{
    struct stat st;
    *p = (struct parked){ 0 };
    struct parked_head *h = &p->head;
    if (fstat(fd, &st) < 0) {
        return err_set_errno(err, ERR_IO, "fstat");
    }
    if (parked_pread(fd, h, sizeof *h, 0, err) < 0) {
        goto fail;
    }
    struct parked_head should = *h;
    if (h->magic != PARKED_MAGIC || h->version != PARKED_VERSION) {
        err_set(err, ERR_BAD_FILE, "this is no parked conversation of this version");
        goto fail;
    }
    if (h->head_sum != parked_sum(h, offsetof(struct parked_head, head_sum)) || !lay_out(&should) ||
        should.n_pages != h->n_pages || should.total_bytes != h->total_bytes) {
        err_set(err, ERR_BAD_FILE, "its head is damaged");
        goto fail;
    }
    if (st.st_size < 0 || (uint64_t)st.st_size < h->total_bytes) {
        err_set(err, ERR_BAD_FILE, "it has %lld bytes of %" PRIu64, (long long)st.st_size,
                h->total_bytes);
        goto fail;
    }
    uint64_t sums_bytes = (h->n_pages + 1ull) * sizeof *p->sums;
    if (make_room(p, err) < 0 || parked_pread(fd, p->sums, sums_bytes, sizeof *h, err) < 0 ||
        parked_pread(fd, p->tokens, h->n_tokens * sizeof *p->tokens, sizeof *h + sums_bytes, err) <
            0) {
        goto fail;
    }
    if (h->index_sum != index_sum(p)) {
        err_set(err, ERR_BAD_FILE, "its tokens are damaged");
        goto fail;
    }
    return 0;
fail:
    parked_clear(p);
    return -1;
}

int parked_finish(struct parked *p, int fd, struct err *err)
{
    struct parked_head *h = &p->head;
    uint64_t sums_bytes = (h->n_pages + 1ull) * sizeof *p->sums;
    h->index_sum = index_sum(p);
    h->head_sum = parked_sum(h, offsetof(struct parked_head, head_sum));
    if (parked_pwrite(fd, p->sums, sums_bytes, sizeof *h, err) < 0 ||
        parked_pwrite(fd, p->tokens, h->n_tokens * sizeof *p->tokens, sizeof *h + sums_bytes, err) <
            0) {
        return -1;
    }
    return parked_pwrite(fd, h, sizeof *h, 0, err);
}
