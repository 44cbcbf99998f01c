/* A weights segment from a writer who means harm: a sound one, patched as the input says (16 bits of place, 8 bits of
 * value, again and again), mapped, and all of its manifest read. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/weights.h"
#include "tests/fuzz/fuzz.h"

#define SEGMENT_BYTES 12288

static uint8_t sound[SEGMENT_BYTES];

/* The segment that is patched: keys of several types, two tensors. */
static void build(void)
{
    struct err err;
    struct weights_builder *b = weights_builder_create(&err);
    uint32_t layers = 12;
    float scores[3] = { 0, 1, 2 };
    uint64_t ends[3] = { 1, 1, 4 }, ne[2] = { 32, 4 }, data_off;
    weights_builder_add(b, "a.block_count", 13, WEIGHTS_U32, WEIGHTS_U32, 1, &layers, &err);
    weights_builder_add(b, "scores", 6, WEIGHTS_ARRAY, WEIGHTS_F32, 3, scores, &err);
    weights_builder_add_strings(b, "tokens", 6, WEIGHTS_ARRAY, 3, "xyzw", ends, &err);
    weights_builder_add_tensor(b, "w", 1, DTYPE_Q8_0, WEIGHTS_LAYOUT_FILE, 2, ne, 512, 136, &err);
    weights_builder_add_tensor(b, "v", 1, DTYPE_F32, WEIGHTS_LAYOUT_FILE, 2, ne, 0, 512, &err);
    int fd = memfd_create("sound", MFD_CLOEXEC);
    if (weights_builder_write(b, fd, 96, 648, 77, 3, &data_off, &err) < 0 ||
        pread(fd, sound, sizeof sound, 0) <= 0) {
        sound[0] = 0;
    }
    close(fd);
    weights_builder_destroy(&b);
}

static void read_all(const struct weights *w)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < w->n_kvs; i++) {
        const struct weights_kv *kv = &w->kvs[i];
        for (uint64_t k = 0; k < kv->n; k++) {
            const char *text;
            size_t len;
            uint64_t u;
            int64_t s;
            double f;
            if (weights_kv_str(kv, k, &text, &len) && len) {
                sum += (uint8_t)text[len - 1];
            }
            sum += weights_kv_u64(kv, k, &u) + weights_kv_i64(kv, k, &s) +
                   weights_kv_f64(kv, k, &f);
        }
        sum += weights_find_kv(w, kv->key) != kv;
    }
    for (size_t i = 0; i < w->n_tensors; i++) {
        sum += w->tensors[i].data[w->tensors[i].size_bytes - 1];
    }
    static volatile uint64_t sink; /* keeps the reads */
    sink = sum;
    (void)sink;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!sound[0]) {
        build();
    }
    static uint8_t segment[SEGMENT_BYTES];
    memcpy(segment, sound, sizeof segment);
    for (size_t i = 0; i + 3 <= size && i < 64 * 3; i += 3) {
        /* The header's bytes and the manifest's; the rest of the first page is empty. */
        size_t at = (size_t)(data[i] | data[i + 1] << 8) % 1024;
        segment[at < sizeof(struct weights_header) ? at : WEIGHTS_PAGE - 120 + at] = data[i + 2];
    }
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    struct weights w;
    struct err err;
    if (fd >= 0 && write(fd, segment, sizeof segment) == sizeof segment &&
        weights_map(&w, fd, &err) == 0) {
        read_all(&w);
        weights_unmap(&w);
    }
    if (fd >= 0) {
        close(fd);
    }
    return 0;
}
