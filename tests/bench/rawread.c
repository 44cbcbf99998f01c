/* rawread FILE: seconds that the disk alone needs for a file: direct reads of 1 MiB, 32 in flight, into buffers that are used
 * again. What a cold load is measured against (cold.py). */
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CHUNK_BYTES (1u << 20)
#define DEPTH       32

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    struct stat st;
    struct io_uring ring;
    int fd = argc == 2 ? open(argv[1], O_RDONLY | O_DIRECT | O_CLOEXEC) : -1;
    uint8_t *buffers = aligned_alloc(4096, (size_t)CHUNK_BYTES * DEPTH);
    if (fd < 0 || fstat(fd, &st) < 0 || !buffers || io_uring_queue_init(DEPTH, &ring, 0) < 0) {
        fprintf(stderr, "rawread FILE: a file that can be read directly, and io_uring\n");
        return 1;
    }
    for (size_t i = 0; i < (size_t)CHUNK_BYTES * DEPTH; i += 4096) {
        buffers[i] = 1; /* their pages are there before the clock runs */
    }
    double start = now_s();
    off_t next = 0, done = 0;
    unsigned free_slots[DEPTH], n_free = DEPTH;
    for (unsigned i = 0; i < DEPTH; i++) {
        free_slots[i] = i;
    }
    while (done < st.st_size) {
        for (; n_free > 0 && next < st.st_size; next += CHUNK_BYTES) {
            unsigned slot = free_slots[--n_free];
            struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
            io_uring_prep_read(sqe, fd, buffers + (size_t)slot * CHUNK_BYTES, CHUNK_BYTES,
                               (unsigned long long)next);
            io_uring_sqe_set_data64(sqe, slot);
        }
        struct io_uring_cqe *cqe;
        io_uring_submit_and_wait(&ring, 1);
        while (io_uring_peek_cqe(&ring, &cqe) == 0) {
            if (cqe->res <= 0) {
                fprintf(stderr, "rawread: a read failed: %d\n", cqe->res);
                return 1;
            }
            done += cqe->res;
            free_slots[n_free++] = (unsigned)io_uring_cqe_get_data64(cqe);
            io_uring_cqe_seen(&ring, cqe);
        }
    }
    printf("%.6f\n", now_s() - start);
    io_uring_queue_exit(&ring);
    free(buffers);
    close(fd);
    return 0;
}
