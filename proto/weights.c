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

static_assert(sizeof(struct weights_header) <= WEIGHTS_PAGE, "the header is one page");
static_assert(sizeof(struct weights_header) == 136, "the segment's header");
static_assert(sizeof(struct weights_tensor_row) == 80, "the segment's tensor row");

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
    struct weights_kv_record r = { 0 };
    const uint8_t *p = bytes_take(in, sizeof r);
    if (p) {
        memcpy(&r, p, sizeof r);
    }
    bool strings = r.elem == WEIGHTS_STRING;
    const uint8_t *key = bytes_take(in, (size_t)r.key_len + 1);
    const uint8_t *data = r.size_bytes <= in->size ? bytes_take(in, (size_t)r.size_bytes) : NULL;
    uint64_t ends_bytes = 0;
    bool fits = data && r.n <= WEIGHTS_VALUES_MAX;
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
    if (!typed || r.key_len > WEIGHTS_KEY_MAX || r.key_len >= left ||
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
    if (len == h->names_bytes - r.name_off || len > WEIGHTS_NAME_MAX ||
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
        !inside(r.data_off - h->data_off, size, h->data_bytes) || r.ready < size ||
        r.ready > h->data_bytes) {
        return err_set(err, ERR_BAD_FILE,
                       "tensor %s: its %" PRIu64 " bytes lie outside of the data", t->name,
                       r.size_bytes);
    }
    t->data = w->base + r.data_off;
    t->data_off = r.data_off - h->data_off;
    t->data_end = r.ready;
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
    if (h.n_kv * sizeof(struct weights_kv_record) > h.kv_bytes || h.n_tensors > h.names_bytes) {
        return err_set(err, ERR_BAD_FILE, "weights segment: its counts do not fit its sections");
    }
    uint64_t text_bytes = h.n_tensors * (WEIGHTS_NAME_MAX + 1) + 1;
    struct bytes in = bytes_of(w->base + h.kv_off, (size_t)h.kv_bytes);
    for (uint64_t i = 0; i < h.n_kv && !in.failed; i++) {
        struct weights_kv_record r = { 0 };
        size_t start = in.pos;
        const uint8_t *p = bytes_take(&in, sizeof r);
        if (p) {
            memcpy(&r, p, sizeof r);
        }
        uint64_t skip, ends = r.elem == WEIGHTS_STRING ? 8 : 0;
        if (r.key_len > WEIGHTS_KEY_MAX || !size_mul(r.n, ends, &ends) ||
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
