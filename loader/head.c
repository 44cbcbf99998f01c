#include "loader/head.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/bytes.h"

int head_init(struct head *h, int fd, uint64_t file_size, struct err *err)
{
    *h = (struct head){ .fd = fd, .file_size = file_size };
    uint64_t room = align_up(file_size < HEAD_MAX ? file_size : HEAD_MAX, 4096);
    if (room == 0) {
        return 0;
    }
    void *base = mmap(NULL, (size_t)room, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return err_set_errno(err, ERR_NO_MEMORY, "map %" PRIu64 " bytes for the header", room);
    }
    /* Reads grow it page by page; a huge page would round every small file up to 2 MiB. */
    madvise(base, (size_t)room, MADV_NOHUGEPAGE);
    h->base = base;
    h->room = room;
    return 0;
}

void head_init_bytes(struct head *h, uint8_t *data, uint64_t size)
{
    *h = (struct head){ .fd = -1, .file_size = size, .base = data, .room = size, .filled = size };
}

int head_fill(struct head *h, uint64_t upto, struct err *err)
{
    if (upto <= h->filled) {
        return 0;
    }
    if (upto > HEAD_MAX) {
        return err_set(err, ERR_BAD_FILE, "byte %" PRIu64 ": the metadata is larger than %llu MiB",
                       h->filled, HEAD_MAX >> 20);
    }
    uint64_t end = align_up(upto, HEAD_STEP);
    uint64_t limit = h->file_size < h->room ? h->file_size : h->room;
    if (end > limit) {
        end = limit;
    }
    while (h->filled < end) {
        ssize_t n = pread(h->fd, h->base + h->filled, (size_t)(end - h->filled), (off_t)h->filled);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_set_errno(err, ERR_IO, "read at byte %" PRIu64, h->filled);
        }
        if (n == 0) {
            return err_set(err, ERR_BAD_FILE,
                           "byte %" PRIu64 ": the file ends here, it had %" PRIu64
                           " bytes when it was opened",
                           h->filled, h->file_size);
        }
        h->filled += (uint64_t)n;
    }
    return 0;
}

void head_clear(struct head *h)
{
    if (h->fd >= 0 && h->base) {
        munmap(h->base, (size_t)h->room);
    }
    *h = (struct head){ .fd = -1 };
}
