/* The writer's half of the weights segment. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/bytes.h"
#include "proto/weights.h"

#define SPEND_STEP (1ull << 20) /* bytes of borrowed values given back at once */

/* offset + size lies in the first `limit` bytes. */
static bool inside(uint64_t off, uint64_t size, uint64_t limit)
{
    return off <= limit && size <= limit - off;
}

static uint64_t length_at(const uint8_t *p)
{
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

struct build_kv {
    const char *key;
    uint32_t key_len;
    enum weights_type type, elem;
    uint64_t n;
    const uint8_t *data;
    uint64_t size_bytes;  /* of the values as the segment holds them */
    const uint64_t *ends; /* strings that were added; NULL for borrowed ones, which carry lengths */
    uint64_t packed_bytes; /* borrowed ones: as they lie in data */
    bool spend;            /* their pages go back once written */
    void *owned;           /* one block behind key, data and ends; NULL when borrowed */
};

struct build_tensor {
    struct weights_tensor_row row; /* data_off within the data section until written */
    uint32_t name_len;
    char *name;
};

struct weights_builder {
    struct build_kv *kvs;
    size_t n_kvs, kvs_cap;
    struct build_tensor *tensors;
    size_t n_tensors, tensors_cap;
    uint64_t window;
};

struct weights_builder *weights_builder_create(struct err *err)
{
    struct weights_builder *b = calloc(1, sizeof *b);
    if (!b) {
        err_set(err, ERR_NO_MEMORY, "no memory for a manifest");
    }
    return b;
}

void weights_builder_destroy(struct weights_builder **b)
{
    if (!*b) {
        return;
    }
    for (size_t i = 0; i < (*b)->n_kvs; i++) {
        free((*b)->kvs[i].owned);
    }
    for (size_t i = 0; i < (*b)->n_tensors; i++) {
        free((*b)->tensors[i].name);
    }
    free((*b)->kvs);
    free((*b)->tensors);
    free(*b);
    *b = NULL;
}

/* Room for one more in a table that doubles. */
static int grow(void **table, size_t n, size_t *cap, size_t row_bytes, struct err *err)
{
    if (n < *cap) {
        return 0;
    }
    size_t wanted = *cap ? *cap * 2 : 64;
    void *grown = realloc(*table, wanted * row_bytes);
    if (!grown) {
        return err_set(err, ERR_NO_MEMORY, "no memory for a manifest of %zu rows", wanted);
    }
    *table = grown;
    *cap = wanted;
    return 0;
}

static int check_key(const struct weights_builder *b, const char *key, size_t key_len,
                     enum weights_type type, enum weights_type elem, uint64_t n, struct err *err)
{
    if (key_len == 0 || key_len > WEIGHTS_KEY_MAX || memchr(key, 0, key_len)) {
        return err_set(err, ERR_BAD_FILE, "a key of %zu bytes, or with a NUL in it", key_len);
    }
    if (b->n_kvs >= WEIGHTS_KVS_MAX) {
        return err_set(err, ERR_BAD_FILE, "more than %u keys", WEIGHTS_KVS_MAX);
    }
    if ((unsigned)type >= WEIGHTS_N_TYPES || (unsigned)elem >= WEIGHTS_N_TYPES ||
        elem == WEIGHTS_ARRAY || (type != WEIGHTS_ARRAY && (type != elem || n != 1)) ||
        n > WEIGHTS_VALUES_MAX) {
        return err_set(err, ERR_BAD_FILE, "key %.*s: %" PRIu64 " values of type %d, elements %d",
                       (int)(key_len > 100 ? 100 : key_len), key, n, (int)type, (int)elem);
    }
    return 0;
}

static int add_copy(struct weights_builder *b, const char *key, size_t key_len,
                    enum weights_type type, enum weights_type elem, uint64_t n, const void *data,
                    uint64_t size, const uint64_t *ends, struct err *err)
{
    uint64_t key_room = align_up(key_len, 8), data_room = align_up(size, 8);
    void *kvs = b->kvs;
    if (grow(&kvs, b->n_kvs, &b->kvs_cap, sizeof *b->kvs, err) < 0) {
        return -1;
    }
    b->kvs = kvs;
    uint8_t *block = malloc((size_t)(key_room + data_room + (ends ? n * 8 : 0) + 1));
    if (!block) {
        return err_set(err, ERR_NO_MEMORY, "key %.*s: no memory for %" PRIu64 " bytes",
                       (int)(key_len > 100 ? 100 : key_len), key, size);
    }
    memcpy(block, key, key_len);
    if (size) {
        memcpy(block + key_room, data, (size_t)size);
    }
    uint64_t *ends_copy = NULL;
    if (ends) {
        ends_copy = (uint64_t *)(void *)(block + key_room + data_room);
        if (n) {
            memcpy(ends_copy, ends, (size_t)n * 8);
        }
    }
    b->kvs[b->n_kvs++] = (struct build_kv){ .key = (const char *)block,
                                            .key_len = (uint32_t)key_len,
                                            .type = type,
                                            .elem = elem,
                                            .n = n,
                                            .data = block + key_room,
                                            .size_bytes = size,
                                            .ends = ends_copy,
                                            .owned = block };
    return 0;
}

int weights_builder_add(struct weights_builder *b, const char *key, size_t key_len,
                        enum weights_type type, enum weights_type elem, uint64_t n,
                        const void *data, struct err *err)
{
    if (check_key(b, key, key_len, type, elem, n, err) < 0) {
        return -1;
    }
    assert(elem != WEIGHTS_STRING);
    return add_copy(b, key, key_len, type, elem, n, data, n * weights_type_size(elem), NULL, err);
}

int weights_builder_add_strings(struct weights_builder *b, const char *key, size_t key_len,
                                enum weights_type type, uint64_t n, const void *data,
                                const uint64_t *ends, struct err *err)
{
    if (check_key(b, key, key_len, type, WEIGHTS_STRING, n, err) < 0) {
        return -1;
    }
    for (uint64_t i = 1; i < n; i++) {
        assert(ends[i] >= ends[i - 1]);
    }
    static const uint64_t none = 0;
    return add_copy(b, key, key_len, type, WEIGHTS_STRING, n, data, n ? ends[n - 1] : 0,
                    n ? ends : &none, err);
}

int weights_builder_borrow(struct weights_builder *b, const char *key, size_t key_len,
                           enum weights_type type, enum weights_type elem, uint64_t n,
                           const uint8_t *packed, uint64_t packed_bytes, bool spend,
                           struct err *err)
{
    if (check_key(b, key, key_len, type, elem, n, err) < 0) {
        return -1;
    }
    uint64_t size = n * weights_type_size(elem);
    bool sound = size == packed_bytes;
    if (elem == WEIGHTS_STRING) {
        struct bytes in = bytes_of(packed, (size_t)packed_bytes);
        for (uint64_t i = 0; i < n && !in.failed; i++) {
            uint64_t len = bytes_u64(&in);
            bytes_take(&in, len > in.size ? SIZE_MAX : (size_t)len);
        }
        sound = !in.failed && in.pos == packed_bytes;
        size = packed_bytes - n * 8;
    }
    if (!sound) {
        return err_set(err, ERR_BAD_FILE,
                       "key %.*s: its %" PRIu64 " values are not %" PRIu64 " bytes",
                       (int)(key_len > 100 ? 100 : key_len), key, n, packed_bytes);
    }
    void *kvs = b->kvs;
    if (grow(&kvs, b->n_kvs, &b->kvs_cap, sizeof *b->kvs, err) < 0) {
        return -1;
    }
    b->kvs = kvs;
    b->kvs[b->n_kvs++] = (struct build_kv){ .key = key,
                                            .key_len = (uint32_t)key_len,
                                            .type = type,
                                            .elem = elem,
                                            .n = n,
                                            .data = packed,
                                            .packed_bytes = packed_bytes,
                                            .spend = spend,
                                            .size_bytes = size };
    return 0;
}

int weights_builder_add_tensor(struct weights_builder *b, const char *name, size_t name_len,
                               enum dtype dtype, enum weights_layout layout, uint32_t n_dims,
                               const uint64_t *ne, uint64_t off, uint64_t size_bytes,
                               struct err *err)
{
    if (name_len == 0 || name_len > WEIGHTS_NAME_MAX || memchr(name, 0, name_len) ||
        n_dims > WEIGHTS_DIMS_MAX) {
        return err_set(err, ERR_BAD_FILE, "a tensor name of %zu bytes, %" PRIu32 " dimensions",
                       name_len, n_dims);
    }
    if (b->n_tensors >= WEIGHTS_TENSORS_MAX) {
        return err_set(err, ERR_BAD_FILE, "more than %u tensors", WEIGHTS_TENSORS_MAX);
    }
    void *tensors = b->tensors;
    if (grow(&tensors, b->n_tensors, &b->tensors_cap, sizeof *b->tensors, err) < 0) {
        return -1;
    }
    b->tensors = tensors;
    struct build_tensor t = { .row = { .dtype = (uint32_t)dtype,
                                       .layout = (uint32_t)layout,
                                       .n_dims = n_dims,
                                       .data_off = off,
                                       .size_bytes = size_bytes,
                                       .ready = off + size_bytes },
                              .name_len = (uint32_t)name_len,
                              .name = malloc(name_len) };
    if (!t.name) {
        return err_set(err, ERR_NO_MEMORY, "no memory for a tensor's name");
    }
    memcpy(t.name, name, name_len);
    for (uint32_t i = 0; i < WEIGHTS_DIMS_MAX; i++) {
        t.row.ne[i] = i < n_dims ? ne[i] : 1;
    }
    b->tensors[b->n_tensors++] = t;
    return 0;
}

void weights_builder_ready(struct weights_builder *b, uint64_t ready)
{
    assert(b->n_tensors > 0);
    b->tensors[b->n_tensors - 1].row.ready = ready;
}

static uint64_t kv_room(const struct build_kv *kv)
{
    uint64_t ends = kv->elem == WEIGHTS_STRING ? kv->n * 8 : 0;
    return align_up(sizeof(struct weights_kv_record) + kv->key_len + 1 + kv->size_bytes + ends, 8);
}

/* Gives back the whole pages of spent values below `upto`; what shares a page with them stays. *spent moves on. */
static void spend(const struct build_kv *kv, uint64_t *spent, uint64_t upto)
{
    if (!kv->spend || (upto - *spent < SPEND_STEP && upto != kv->packed_bytes)) {
        return;
    }
    uintptr_t start = align_up((uintptr_t)kv->data + *spent, WEIGHTS_PAGE);
    uintptr_t end = ((uintptr_t)kv->data + upto) & ~(uintptr_t)(WEIGHTS_PAGE - 1);
    if (start < end) {
        madvise((void *)start, end - start, MADV_DONTNEED);
        *spent = end - (uintptr_t)kv->data;
    }
}

/* Writes one key at p, which is zeroed room of kv_room() bytes. */
static void write_kv(const struct build_kv *kv, uint8_t *p)
{
    struct weights_kv_record r = { .key_len = kv->key_len,
                                   .type = (uint32_t)kv->type,
                                   .elem = (uint32_t)kv->elem,
                                   .n = kv->n,
                                   .size_bytes = kv->size_bytes };
    memcpy(p, &r, sizeof r);
    memcpy(p + sizeof r, kv->key, kv->key_len);
    uint8_t *out = p + sizeof r + kv->key_len + 1, *ends = out + kv->size_bytes;
    uint64_t spent = 0;
    if (kv->elem != WEIGHTS_STRING || kv->ends) {
        for (uint64_t done = 0; done < kv->size_bytes;) {
            uint64_t n = kv->size_bytes - done < SPEND_STEP ? kv->size_bytes - done : SPEND_STEP;
            memcpy(out + done, kv->data + done, (size_t)n);
            done += n;
            spend(kv, &spent, done);
        }
        if (kv->ends && kv->n) {
            memcpy(ends, kv->ends, (size_t)kv->n * 8);
        }
        return;
    }
    /* Borrowed strings: the lengths between them become the ends behind them. */
    uint64_t in = 0, end = 0;
    for (uint64_t i = 0; i < kv->n; i++) {
        uint64_t len = length_at(kv->data + in);
        memcpy(out + end, kv->data + in + 8, (size_t)len);
        end += len;
        memcpy(ends + i * 8, &end, sizeof end);
        in += 8 + len;
        spend(kv, &spent, in);
    }
}

void weights_builder_window(struct weights_builder *b, uint64_t bytes)
{
    b->window = bytes;
}

int weights_builder_write(struct weights_builder *b, int fd, uint64_t file_data_off,
                          uint64_t data_bytes, uint64_t digest, uint32_t file_version,
                          uint64_t *data_off, struct err *err)
{
    struct weights_header h = { .magic = WEIGHTS_MAGIC,
                                .version = WEIGHTS_VERSION,
                                .header_bytes = sizeof h,
                                .kv_off = WEIGHTS_PAGE,
                                .n_kv = b->n_kvs,
                                .n_tensors = b->n_tensors,
                                .data_bytes = data_bytes,
                                .digest = digest,
                                .file_version = file_version,
                                .window = b->window };
    for (size_t i = 0; i < b->n_kvs; i++) {
        h.kv_bytes += kv_room(&b->kvs[i]);
    }
    for (size_t i = 0; i < b->n_tensors; i++) {
        const struct weights_tensor_row *r = &b->tensors[i].row;
        if (!inside(r->data_off, r->size_bytes, data_bytes)) {
            return err_set(err, ERR_BAD_FILE, "tensor %.*s: ends behind the data",
                           (int)b->tensors[i].name_len, b->tensors[i].name);
        }
        h.names_bytes += b->tensors[i].name_len + 1;
    }
    h.tensor_off = h.kv_off + h.kv_bytes;
    h.names_off = h.tensor_off + b->n_tensors * sizeof(struct weights_tensor_row);
    /* The data's first page is its own: a direct read brings the file's bytes before it along. */
    uint64_t manifest = align_up(h.names_off + h.names_bytes, WEIGHTS_PAGE);
    h.data_off = manifest + file_data_off % WEIGHTS_PAGE;
    if (data_bytes > INT64_MAX - h.data_off - WEIGHTS_PAGE) {
        return err_set(err, ERR_BAD_FILE, "%" PRIu64 " bytes of data", data_bytes);
    }
    h.segment_bytes = align_up(h.data_off + data_bytes, WEIGHTS_PAGE);
    *data_off = h.data_off;

    if (ftruncate(fd, (off_t)h.segment_bytes) < 0) {
        return err_set_errno(err, ERR_NO_MEMORY, "size a segment of %" PRIu64 " bytes",
                             h.segment_bytes);
    }
    /* Allocated before it is touched: a full memory is an error here, not a signal below. */
    if (fallocate(fd, 0, 0, (off_t)manifest) < 0 && errno != EOPNOTSUPP) {
        return err_set_errno(err, ERR_NO_MEMORY, "allocate %" PRIu64 " bytes", manifest);
    }
    uint8_t *base = mmap(NULL, (size_t)manifest, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return err_set_errno(err, ERR_NO_MEMORY, "map %" PRIu64 " bytes", manifest);
    }
    uint8_t *p = base + h.kv_off;
    for (size_t i = 0; i < b->n_kvs; i++) {
        write_kv(&b->kvs[i], p);
        p += kv_room(&b->kvs[i]);
    }
    uint64_t name_off = 0;
    for (size_t i = 0; i < b->n_tensors; i++) {
        struct weights_tensor_row r = b->tensors[i].row;
        r.name_off = name_off;
        r.data_off += h.data_off;
        memcpy(p + i * sizeof r, &r, sizeof r);
        memcpy(base + h.names_off + name_off, b->tensors[i].name, b->tensors[i].name_len);
        name_off += b->tensors[i].name_len + 1;
    }
    /* The magic last: who finds it finds a whole header, wherever its writer died. */
    struct weights_header *header = (struct weights_header *)(void *)base;
    memcpy((uint8_t *)header + sizeof h.magic, (const uint8_t *)&h + sizeof h.magic,
           sizeof h - sizeof h.magic);
    atomic_thread_fence(memory_order_release);
    *(volatile uint64_t *)&header->magic = h.magic;
    munmap(base, (size_t)manifest);
    return 0;
}

void weights_advance(struct weights_header *header, uint64_t watermark)
{
    assert(watermark <= header->data_bytes);
    assert(watermark >= atomic_load_explicit(&header->watermark, memory_order_relaxed));
    atomic_store_explicit(&header->watermark, watermark, memory_order_release);
}

void weights_want(struct weights_header *header, uint64_t uploaded)
{
    atomic_store_explicit(&header->wants, uploaded, memory_order_release);
}
