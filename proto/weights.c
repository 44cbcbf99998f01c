#include "proto/weights.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/bytes.h"

#define KEY_MAX        65535u       /* bytes of a key, GGUF's own bound */
#define NAME_MAX_BYTES 255u         /* bytes of a tensor's name; files hold 63 */
#define STRINGS_MAX    (1ull << 30) /* elements of one array */
#define SPEND_STEP     (1ull << 20) /* bytes of borrowed values given back at once */

/* One key in the metadata: this, the key with its NUL, the values, for strings their ends; then to 8 bytes. */
struct kv_record {
    uint32_t key_len;
    uint32_t type;
    uint32_t elem;
    uint32_t reserved;
    uint64_t n;
    uint64_t size_bytes; /* of the values */
};
static_assert(sizeof(struct kv_record) == 32, "the segment's key record");
static_assert(sizeof(struct weights_header) <= WEIGHTS_PAGE, "the header is one page");
static_assert(sizeof(struct weights_header) == 120, "the segment's header");
static_assert(sizeof(struct weights_tensor_row) == 72, "the segment's tensor row");

static const struct {
    const char *name;
    uint8_t size;
} types[WEIGHTS_N_TYPES] = {
    [WEIGHTS_U8] = { "u8", 1 },         [WEIGHTS_I8] = { "i8", 1 },
    [WEIGHTS_U16] = { "u16", 2 },       [WEIGHTS_I16] = { "i16", 2 },
    [WEIGHTS_U32] = { "u32", 4 },       [WEIGHTS_I32] = { "i32", 4 },
    [WEIGHTS_F32] = { "f32", 4 },       [WEIGHTS_BOOL] = { "bool", 1 },
    [WEIGHTS_STRING] = { "string", 0 }, [WEIGHTS_ARRAY] = { "array", 0 },
    [WEIGHTS_U64] = { "u64", 8 },       [WEIGHTS_I64] = { "i64", 8 },
    [WEIGHTS_F64] = { "f64", 8 },
};

size_t weights_type_size(enum weights_type type)
{
    return (unsigned)type < WEIGHTS_N_TYPES ? types[type].size : 0;
}

const char *weights_type_name(enum weights_type type)
{
    return (unsigned)type < WEIGHTS_N_TYPES ? types[type].name : "?";
}

static uint64_t load_u64(const uint8_t *p)
{
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

/* ---- the reader ---- */

/* offset + size lies in the first `limit` bytes. */
static bool inside(uint64_t off, uint64_t size, uint64_t limit)
{
    return off <= limit && size <= limit - off;
}

/* A copy of the header with its bounds checked; what the loader writes later is the watermark alone. */
static int check_header(struct weights_header *h, uint64_t size, struct err *err)
{
    if (h->magic != WEIGHTS_MAGIC) {
        return err_set(err, ERR_BAD_FILE, "not a weights segment");
    }
    if (h->version != WEIGHTS_VERSION || h->header_bytes != sizeof *h) {
        return err_set(err, ERR_BAD_FILE,
                       "weights segment: version %" PRIu32 " with a header of %" PRIu32
                       " bytes, this build reads version %d with %zu",
                       h->version, h->header_bytes, WEIGHTS_VERSION, sizeof *h);
    }
    if (h->segment_bytes > size || h->segment_bytes < WEIGHTS_PAGE) {
        return err_set(err, ERR_BAD_FILE,
                       "weights segment: %" PRIu64 " bytes announced, %" PRIu64 " are there",
                       h->segment_bytes, size);
    }
    if (h->n_kv > WEIGHTS_KVS_MAX || h->n_tensors > WEIGHTS_TENSORS_MAX) {
        return err_set(err, ERR_BAD_FILE,
                       "weights segment: %" PRIu64 " keys and %" PRIu64 " tensors are too many",
                       h->n_kv, h->n_tensors);
    }
    uint64_t limit = h->segment_bytes;
    if (h->kv_off % 8 || h->tensor_off % 8 || h->kv_off < sizeof *h ||
        !inside(h->kv_off, h->kv_bytes, limit) ||
        !inside(h->tensor_off, h->n_tensors * sizeof(struct weights_tensor_row), limit) ||
        !inside(h->names_off, h->names_bytes, limit) ||
        !inside(h->data_off, h->data_bytes, limit)) {
        return err_set(err, ERR_BAD_FILE,
                       "weights segment: a section lies outside of its %" PRIu64 " bytes", limit);
    }
    return 0;
}

static int map_kv(struct weights_kv *kv, struct bytes *in, char **text, const char *text_end,
                  uint64_t idx, struct err *err)
{
    size_t start = in->pos;
    struct kv_record r = { 0 };
    const uint8_t *p = bytes_take(in, sizeof r);
    if (p) {
        memcpy(&r, p, sizeof r);
    }
    bool strings = r.elem == WEIGHTS_STRING;
    const uint8_t *key = bytes_take(in, (size_t)r.key_len + 1);
    const uint8_t *data = r.size_bytes <= in->size ? bytes_take(in, (size_t)r.size_bytes) : NULL;
    uint64_t ends_bytes = 0;
    bool fits = data && r.n <= STRINGS_MAX;
    if (fits && strings) {
        ends_bytes = r.n * 8;
        fits = ends_bytes <= bytes_left(in);
    }
    const uint8_t *ends = fits ? bytes_take(in, (size_t)ends_bytes) : NULL;
    if (!fits || in->failed || !key) {
        return err_set(err, ERR_BAD_FILE, "weights segment: key %" PRIu64 " at byte %zu is cut off",
                       idx, start);
    }
    size_t left = (size_t)(text_end - *text);
    bool typed = r.type < WEIGHTS_N_TYPES && r.elem < WEIGHTS_N_TYPES && r.elem != WEIGHTS_ARRAY &&
                 (r.type == WEIGHTS_ARRAY || (r.type == r.elem && r.n == 1));
    if (!typed || r.key_len > KEY_MAX || r.key_len >= left ||
        (!strings && r.size_bytes != r.n * types[r.elem].size)) {
        return err_set(err, ERR_BAD_FILE,
                       "weights segment: key %" PRIu64 " at byte %zu has no sound type or size",
                       idx, start);
    }
    memcpy(*text, key, r.key_len);
    (*text)[r.key_len] = '\0';
    *kv = (struct weights_kv){ .key = *text,
                               .type = (enum weights_type)r.type,
                               .elem = (enum weights_type)r.elem,
                               .n = r.n,
                               .data = data,
                               .size_bytes = r.size_bytes,
                               .ends = strings ? ends : NULL };
    *text += r.key_len + 1;
    size_t pad = (8 - (in->pos - start) % 8) % 8;
    if (!bytes_take(in, pad)) {
        return err_set(err, ERR_BAD_FILE, "weights segment: key %" PRIu64 " is cut off", idx);
    }
    return 0;
}

static int map_tensor(struct weights *w, const struct weights_header *h, struct weights_tensor *t,
                      uint64_t idx, char **text, const char *text_end, struct err *err)
{
    struct weights_tensor_row r;
    memcpy(&r, w->base + h->tensor_off + idx * sizeof r, sizeof r);
    if (r.name_off >= h->names_bytes) {
        return err_set(err, ERR_BAD_FILE, "weights segment: tensor %" PRIu64 ": no name", idx);
    }
    const char *name = (const char *)w->base + h->names_off + r.name_off;
    size_t len = strnlen(name, (size_t)(h->names_bytes - r.name_off));
    if (len == h->names_bytes - r.name_off || len > NAME_MAX_BYTES ||
        len >= (size_t)(text_end - *text)) {
        return err_set(err, ERR_BAD_FILE, "weights segment: tensor %" PRIu64 ": name without end",
                       idx);
    }
    memcpy(*text, name, len);
    (*text)[len] = '\0';
    *t = (struct weights_tensor){ .name = *text,
                                  .dtype = (enum dtype)r.dtype,
                                  .layout = (enum weights_layout)r.layout,
                                  .n_dims = r.n_dims,
                                  .size_bytes = r.size_bytes };
    *text += len + 1;
    if (!dtype_find(r.dtype) || r.layout > WEIGHTS_LAYOUT_ROWS16 || r.n_dims > WEIGHTS_DIMS_MAX) {
        return err_set(err, ERR_BAD_FILE,
                       "tensor %s: type %" PRIu32 ", layout %" PRIu32 ", %" PRIu32
                       " dimensions: not known",
                       t->name, r.dtype, r.layout, r.n_dims);
    }
    uint64_t n = 1, size;
    for (int i = 0; i < WEIGHTS_DIMS_MAX; i++) {
        t->ne[i] = r.ne[i];
        if (!r.ne[i] || !size_mul(n, r.ne[i], &n)) {
            return err_set(err, ERR_BAD_FILE, "tensor %s: dimension %d is %" PRIu64, t->name, i,
                           r.ne[i]);
        }
    }
    if (t->ne[0] % dtype_get(t->dtype)->block_values) {
        return err_set(err, ERR_BAD_FILE, "tensor %s: rows of %" PRIu64 " are not whole blocks",
                       t->name, t->ne[0]);
    }
    if (dtype_size(t->dtype, n, &size, err) < 0) {
        return err_wrap(err, "tensor %s", t->name);
    }
    if (size != r.size_bytes || r.data_off < h->data_off ||
        !inside(r.data_off - h->data_off, size, h->data_bytes)) {
        return err_set(err, ERR_BAD_FILE,
                       "tensor %s: its %" PRIu64 " bytes lie outside of the data", t->name,
                       r.size_bytes);
    }
    t->data = w->base + r.data_off;
    t->data_end = r.data_off - h->data_off + size;
    return 0;
}

static int by_key(const void *a, const void *b, void *kvs)
{
    const struct weights_kv *k = kvs;
    return strcmp(k[*(const uint32_t *)a].key, k[*(const uint32_t *)b].key);
}

static int by_name(const void *a, const void *b, void *tensors)
{
    const struct weights_tensor *t = tensors;
    return strcmp(t[*(const uint32_t *)a].name, t[*(const uint32_t *)b].name);
}

/* Sorted indexes: a hash could be flooded by names made for it, a merge sort cannot. */
static int index_all(struct weights *w, struct err *err)
{
    for (uint32_t i = 0; i < w->n_kvs; i++) {
        w->kv_index[i] = i;
    }
    for (uint32_t i = 0; i < w->n_tensors; i++) {
        w->tensor_index[i] = i;
    }
    qsort_r(w->kv_index, w->n_kvs, sizeof *w->kv_index, by_key, w->kvs);
    qsort_r(w->tensor_index, w->n_tensors, sizeof *w->tensor_index, by_name, w->tensors);
    for (size_t i = 1; i < w->n_kvs; i++) {
        const char *key = w->kvs[w->kv_index[i]].key;
        if (strcmp(w->kvs[w->kv_index[i - 1]].key, key) == 0) {
            return err_set(err, ERR_BAD_FILE, "key %.100s stands twice", key);
        }
    }
    for (size_t i = 1; i < w->n_tensors; i++) {
        const char *name = w->tensors[w->tensor_index[i]].name;
        if (strcmp(w->tensors[w->tensor_index[i - 1]].name, name) == 0) {
            return err_set(err, ERR_BAD_FILE, "tensor %s stands twice", name);
        }
    }
    return 0;
}

static int map_tables(struct weights *w, struct err *err)
{
    struct weights_header h;
    memcpy(&h, w->base, sizeof h);
    if (check_header(&h, w->size, err) < 0) {
        return -1;
    }
    /* Keys are at least a record long in the metadata, so the copy below is bounded by the segment. */
    if (h.n_kv * sizeof(struct kv_record) > h.kv_bytes || h.n_tensors > h.names_bytes) {
        return err_set(err, ERR_BAD_FILE, "weights segment: its counts do not fit its sections");
    }
    uint64_t text_bytes = h.n_tensors * (NAME_MAX_BYTES + 1) + 1;
    struct bytes in = bytes_of(w->base + h.kv_off, (size_t)h.kv_bytes);
    for (uint64_t i = 0; i < h.n_kv && !in.failed; i++) {
        struct kv_record r = { 0 };
        size_t start = in.pos;
        const uint8_t *p = bytes_take(&in, sizeof r);
        if (p) {
            memcpy(&r, p, sizeof r);
        }
        uint64_t skip, ends = r.elem == WEIGHTS_STRING ? 8 : 0;
        if (r.key_len > KEY_MAX || !size_mul(r.n, ends, &ends) ||
            !size_add(ends, r.size_bytes, &skip) || !size_add(skip, r.key_len + 1ull, &skip) ||
            skip > in.size) {
            return err_set(err, ERR_BAD_FILE,
                           "weights segment: key %" PRIu64 " at byte %zu is cut off", i, start);
        }
        text_bytes += r.key_len + 1;
        bytes_take(&in, (size_t)skip);
        bytes_take(&in, (8 - (in.pos - start) % 8) % 8);
    }
    w->text = malloc(text_bytes);
    w->kvs = calloc(h.n_kv + 1, sizeof *w->kvs);
    w->tensors = calloc(h.n_tensors + 1, sizeof *w->tensors);
    w->kv_index = calloc(h.n_kv + 1, sizeof *w->kv_index);
    w->tensor_index = calloc(h.n_tensors + 1, sizeof *w->tensor_index);
    if (!w->text || !w->kvs || !w->tensors || !w->kv_index || !w->tensor_index) {
        return err_set(err, ERR_NO_MEMORY, "weights segment: the tables do not fit in memory");
    }
    char *text = w->text;
    const char *text_end = w->text + text_bytes;
    in = bytes_of(w->base + h.kv_off, (size_t)h.kv_bytes);
    for (uint64_t i = 0; i < h.n_kv; i++) {
        if (map_kv(&w->kvs[i], &in, &text, text_end, i, err) < 0) {
            return -1;
        }
    }
    w->n_kvs = (size_t)h.n_kv;
    for (uint64_t i = 0; i < h.n_tensors; i++) {
        if (map_tensor(w, &h, &w->tensors[i], i, &text, text_end, err) < 0) {
            return -1;
        }
    }
    w->n_tensors = (size_t)h.n_tensors;
    return index_all(w, err);
}

int weights_map(struct weights *w, int fd, struct err *err)
{
    *w = (struct weights){ 0 };
    struct stat st;
    if (fstat(fd, &st) < 0) {
        return err_set_errno(err, ERR_IO, "weights segment: fstat");
    }
    if (st.st_size < WEIGHTS_PAGE) {
        return err_set(err, ERR_BAD_FILE, "weights segment: only %lld bytes",
                       (long long)st.st_size);
    }
    void *base = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return err_set_errno(err, errno == ENOMEM ? ERR_NO_MEMORY : ERR_IO,
                             "weights segment: map %lld bytes", (long long)st.st_size);
    }
    w->base = base;
    w->size = (size_t)st.st_size;
    w->header = base;
    if (map_tables(w, err) < 0) {
        weights_unmap(w);
        return -1;
    }
    return 0;
}

void weights_unmap(struct weights *w)
{
    free(w->kvs);
    free(w->tensors);
    free(w->kv_index);
    free(w->tensor_index);
    free(w->text);
    if (w->base) {
        union {
            const uint8_t *borrowed;
            void *owned;
        } base = { .borrowed = w->base };
        munmap(base.owned, w->size);
    }
    *w = (struct weights){ 0 };
}

const struct weights_kv *weights_find_kv(const struct weights *w, const char *key)
{
    size_t low = 0, high = w->n_kvs;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const struct weights_kv *kv = &w->kvs[w->kv_index[middle]];
        int order = strcmp(key, kv->key);
        if (order == 0) {
            return kv;
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

const struct weights_tensor *weights_find_tensor(const struct weights *w, const char *name)
{
    size_t low = 0, high = w->n_tensors;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const struct weights_tensor *t = &w->tensors[w->tensor_index[middle]];
        int order = strcmp(name, t->name);
        if (order == 0) {
            return t;
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

/* A value as one of three kinds of number; false for strings and out of range. */
struct number {
    enum { NUMBER_UNSIGNED, NUMBER_SIGNED, NUMBER_REAL } kind;
    uint64_t u;
    int64_t i;
    double f;
};

static bool kv_number(const struct weights_kv *kv, uint64_t i, struct number *out)
{
    if (i >= kv->n || kv->elem == WEIGHTS_STRING) {
        return false;
    }
    const uint8_t *p = kv->data + i * types[kv->elem].size;
    *out = (struct number){ .kind = NUMBER_UNSIGNED };
    switch (kv->elem) {
    case WEIGHTS_U8:
        out->u = p[0];
        return true;
    case WEIGHTS_BOOL:
        out->u = p[0] != 0;
        return true;
    case WEIGHTS_U16:
        out->u = (uint64_t)p[0] | (uint64_t)p[1] << 8;
        return true;
    case WEIGHTS_U32: {
        uint32_t v;
        memcpy(&v, p, sizeof v);
        out->u = v;
        return true;
    }
    case WEIGHTS_U64:
        out->u = load_u64(p);
        return true;
    case WEIGHTS_I8: {
        int8_t v;
        memcpy(&v, p, sizeof v);
        out->i = v;
        break;
    }
    case WEIGHTS_I16: {
        int16_t v;
        memcpy(&v, p, sizeof v);
        out->i = v;
        break;
    }
    case WEIGHTS_I32: {
        int32_t v;
        memcpy(&v, p, sizeof v);
        out->i = v;
        break;
    }
    case WEIGHTS_I64:
        memcpy(&out->i, p, sizeof out->i);
        break;
    case WEIGHTS_F32: {
        float v;
        memcpy(&v, p, sizeof v);
        out->f = v;
        out->kind = NUMBER_REAL;
        return true;
    }
    case WEIGHTS_F64:
        memcpy(&out->f, p, sizeof out->f);
        out->kind = NUMBER_REAL;
        return true;
    default:
        return false;
    }
    out->kind = NUMBER_SIGNED;
    return true;
}

bool weights_kv_u64(const struct weights_kv *kv, uint64_t i, uint64_t *out)
{
    struct number v;
    if (!kv_number(kv, i, &v)) {
        return false;
    }
    switch (v.kind) {
    case NUMBER_UNSIGNED:
        *out = v.u;
        return true;
    case NUMBER_SIGNED:
        *out = (uint64_t)v.i;
        return v.i >= 0;
    case NUMBER_REAL:
        if (!(v.f >= 0 && v.f < 0x1p64) || v.f != (double)(uint64_t)v.f) {
            return false;
        }
        *out = (uint64_t)v.f;
        return true;
    }
    return false;
}

bool weights_kv_i64(const struct weights_kv *kv, uint64_t i, int64_t *out)
{
    struct number v;
    if (!kv_number(kv, i, &v)) {
        return false;
    }
    switch (v.kind) {
    case NUMBER_UNSIGNED:
        if (v.u > INT64_MAX) {
            return false;
        }
        *out = (int64_t)v.u;
        return true;
    case NUMBER_SIGNED:
        *out = v.i;
        return true;
    case NUMBER_REAL:
        if (!(v.f >= -0x1p63 && v.f < 0x1p63) || v.f != (double)(int64_t)v.f) {
            return false;
        }
        *out = (int64_t)v.f;
        return true;
    }
    return false;
}

bool weights_kv_f64(const struct weights_kv *kv, uint64_t i, double *out)
{
    struct number v;
    if (!kv_number(kv, i, &v)) {
        return false;
    }
    *out = v.kind == NUMBER_UNSIGNED ? (double)v.u : v.kind == NUMBER_SIGNED ? (double)v.i : v.f;
    return true;
}

bool weights_kv_str(const struct weights_kv *kv, uint64_t i, const char **text, size_t *len)
{
    if (kv->elem != WEIGHTS_STRING || i >= kv->n) {
        return false;
    }
    uint64_t start = i ? load_u64(kv->ends + (i - 1) * 8) : 0, end = load_u64(kv->ends + i * 8);
    if (start > end || end > kv->size_bytes) {
        return false;
    }
    *text = (const char *)kv->data + start;
    *len = (size_t)(end - start);
    return true;
}

uint64_t weights_watermark(const struct weights *w)
{
    return atomic_load_explicit(&w->header->watermark, memory_order_acquire);
}

/* ---- the builder ---- */

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
    if (key_len == 0 || key_len > KEY_MAX || memchr(key, 0, key_len)) {
        return err_set(err, ERR_BAD_FILE, "a key of %zu bytes, or with a NUL in it", key_len);
    }
    if (b->n_kvs >= WEIGHTS_KVS_MAX) {
        return err_set(err, ERR_BAD_FILE, "more than %u keys", WEIGHTS_KVS_MAX);
    }
    if ((unsigned)type >= WEIGHTS_N_TYPES || (unsigned)elem >= WEIGHTS_N_TYPES ||
        elem == WEIGHTS_ARRAY || (type != WEIGHTS_ARRAY && (type != elem || n != 1)) ||
        n > STRINGS_MAX) {
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
    return add_copy(b, key, key_len, type, elem, n, data, n * types[elem].size, NULL, err);
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
    uint64_t size = n * types[elem].size;
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
    if (name_len == 0 || name_len > NAME_MAX_BYTES || memchr(name, 0, name_len) ||
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
                                       .size_bytes = size_bytes },
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

static uint64_t kv_room(const struct build_kv *kv)
{
    uint64_t ends = kv->elem == WEIGHTS_STRING ? kv->n * 8 : 0;
    return align_up(sizeof(struct kv_record) + kv->key_len + 1 + kv->size_bytes + ends, 8);
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
    struct kv_record r = { .key_len = kv->key_len,
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
        uint64_t len = load_u64(kv->data + in);
        memcpy(out + end, kv->data + in + 8, (size_t)len);
        end += len;
        memcpy(ends + i * 8, &end, sizeof end);
        in += 8 + len;
        spend(kv, &spent, in);
    }
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
                                .file_version = file_version };
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
    memcpy(base, &h, sizeof h);
    munmap(base, (size_t)manifest);
    return 0;
}

void weights_advance(struct weights_header *header, uint64_t watermark)
{
    assert(watermark <= header->data_bytes);
    assert(watermark >= atomic_load_explicit(&header->watermark, memory_order_relaxed));
    atomic_store_explicit(&header->watermark, watermark, memory_order_release);
}
