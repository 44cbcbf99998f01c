#include "loader/publish.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>

int publish_begin(struct publish *p, int fd, struct weights_builder *manifest,
                  uint64_t file_data_off, uint64_t data_bytes, uint64_t digest, uint32_t version,
                  struct err *err)
{
    *p = (struct publish){ .fd = fd, .data_bytes = data_bytes };
    if (weights_builder_write(manifest, fd, file_data_off, data_bytes, digest, version,
                              &p->data_off, err) < 0) {
        return -1;
    }
    p->size_bytes = ((p->data_off + data_bytes) + WEIGHTS_PAGE - 1) / WEIGHTS_PAGE * WEIGHTS_PAGE;
    /* A reader may map from now on: nobody can take the pages from under it. */
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0 && errno != EINVAL) {
        return err_set_errno(err, ERR_IO, "seal the segment's size");
    }
    void *base = mmap(NULL, (size_t)p->size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return err_set_errno(err, ERR_NO_MEMORY, "map %" PRIu64 " bytes", p->size_bytes);
    }
    p->base = base;
    return 0;
}

void publish_advance(struct publish *p, uint64_t watermark)
{
    assert(watermark <= p->data_bytes);
    weights_advance((struct weights_header *)(void *)p->base, watermark);
}

void publish_end(struct publish *p)
{
    if (p->base) {
        munmap(p->base, (size_t)p->size_bytes);
    }
    *p = (struct publish){ .fd = -1 };
}
