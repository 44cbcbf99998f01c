/* A weights segment whose loader died at any store is never taken for a whole one. Whoever adopts a segment believes it when it has the
 * magic and its watermark stands at the end of its data (broker/models_load.c); then a reader must be able to map it, and find
 * the data. The adopter writes nothing, so there is no second death. */
#include "tests/store_points.h"
#include "tests/test.h"

#include <sys/mman.h>
#include <unistd.h>

#include "proto/weights.h"

#if STORE_POINTS

#define DATA_BYTES 300

static uint64_t n_points, n_whole, n_wrong;
static int fd;
static void *watched;
static size_t watched_bytes;

void *__real_mmap(void *at, size_t bytes, int prot, int flags, int file, off_t off);
int __real_munmap(void *at, size_t bytes);
void *__wrap_mmap(void *at, size_t bytes, int prot, int flags, int file, off_t off);
int __wrap_munmap(void *at, size_t bytes);

/* The loader died here: what would an adopter see? */
static void adopt(void *arg, uint64_t k)
{
    (void)arg, (void)k;
    struct weights_header h;
    struct weights w;
    struct err err;
    n_points++;
    if (pread(fd, &h, sizeof h, 0) != (ssize_t)sizeof h || h.magic != WEIGHTS_MAGIC ||
        h.watermark != h.data_bytes) {
        return;
    }
    n_whole++;
    if (weights_map(&w, fd, &err) < 0) {
        n_wrong++;
        return;
    }
    bool right = w.n_tensors == 1 && w.header->data_bytes == DATA_BYTES;
    for (int i = 0; right && i < DATA_BYTES; i++) {
        right = ((const uint8_t *)w.header)[w.header->data_off + (uint64_t)i] == 0x77;
    }
    n_wrong += !right;
    weights_unmap(&w);
}

/* The builder maps the segment by itself: what it maps to write is watched. */
void *__wrap_mmap(void *at, size_t bytes, int prot, int flags, int file, off_t off)
{
    void *memory = __real_mmap(at, bytes, prot, flags, file, off);
    if (memory != MAP_FAILED && (prot & PROT_WRITE) && (flags & MAP_SHARED) && !watched) {
        watched = memory;
        watched_bytes = (bytes + 4095) / 4096 * 4096;
        store_points_begin(watched, watched_bytes, adopt, NULL);
    }
    return memory;
}

int __wrap_munmap(void *at, size_t bytes)
{
    if (at == watched && watched) {
        store_points_end(watched);
        watched = NULL;
    }
    return __real_munmap(at, bytes);
}

static void load(bool too_early)
{
    struct err err = { 0 };
    uint64_t ne[1] = { 64 }, data_off;
    uint32_t layers = 12;
    struct weights_builder *b = weights_builder_create(&err);
    n_points = n_whole = n_wrong = 0;
    fd = memfd_create("test", MFD_CLOEXEC);
    assert_ok(
        weights_builder_add(b, "a.block_count", 13, WEIGHTS_U32, WEIGHTS_U32, 1, &layers, &err),
        err);
    assert_ok(
        weights_builder_add_tensor(b, "w", 1, DTYPE_F32, WEIGHTS_LAYOUT_FILE, 1, ne, 0, 256, &err),
        err);
    assert_ok(weights_builder_write(b, fd, 4096 + 96, DATA_BYTES, 77, 3, &data_off, &err), err);
    weights_builder_destroy(&b);
    /* The data, in pieces behind a watermark. */
    struct weights_header *h = mmap(NULL, 8192 + 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(h != MAP_FAILED);
    for (uint64_t at = 0; at < DATA_BYTES; at += 100) {
        if (too_early) {
            weights_advance(h, at + 100);
        }
        memset((uint8_t *)h + data_off + at, 0x77, 100);
        if (!too_early) {
            weights_advance(h, at + 100);
        }
    }
    munmap(h, 8192 + 4096);
    uint64_t points = n_points;
    adopt(NULL, 0);
    n_points = points;
    close(fd);
}

static void a_segment_is_whole_or_not_believed(void **state)
{
    (void)state;
    load(false);
    printf("info weights: %llu points, %llu violations\n", (unsigned long long)n_points,
           (unsigned long long)n_wrong);
    assert_int_equal(n_wrong, 0);
    assert_true(n_points > 20 && n_whole > 0);
}

static void a_watermark_before_its_data_is_caught(void **state)
{
    (void)state;
    load(true);
    assert_true(n_wrong > 0);
}
#endif

int main(int argc, char **argv)
{
    (void)argc;
#if STORE_POINTS
    store_points_init(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_segment_is_whole_or_not_believed),
        cmocka_unit_test(a_watermark_before_its_data_is_caught),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
#else
    (void)argv;
    puts("skipped: stores are caught one by one on x86-64 only");
    return 0;
#endif
}
