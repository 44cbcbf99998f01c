#include "loader/room.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MARGIN_BYTES (64ull << 20) /* what must stay for tables and threads */

int room_open(void)
{
    return open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
}

/* MemAvailable in bytes; UINT64_MAX when it cannot be read. */
static uint64_t available(int fd)
{
    static const char label[] = "MemAvailable:";
    char text[4096];
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    if (n <= 0) {
        return UINT64_MAX;
    }
    text[n] = '\0';
    const char *p = strstr(text, label);
    return p ? strtoull(p + sizeof label - 1, NULL, 10) * 1024 : UINT64_MAX;
}

int room_check(int fd, uint64_t need_bytes, uint64_t budget_bytes, struct err *err)
{
    if (need_bytes > budget_bytes) {
        return err_set(err, ERR_NO_FIT, "needs %.1f MiB of memory, the budget leaves %.1f MiB",
                       (double)need_bytes / 0x1p20, (double)budget_bytes / 0x1p20);
    }
    uint64_t have = available(fd);
    if (have != UINT64_MAX && (have < MARGIN_BYTES || need_bytes > have - MARGIN_BYTES)) {
        return err_set(err, ERR_NO_FIT, "needs %.1f MiB of memory, %.1f MiB are available",
                       (double)need_bytes / 0x1p20, (double)have / 0x1p20);
    }
    return 0;
}
