#include "loader/gguf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/bytes.h"

#define KV_BYTES_MIN     13 /* key length, type, one byte of value; the key itself comes on top */
#define TENSOR_BYTES_MIN 24 /* name length, dimensions, type, offset */
#define STRING_MAX       (1ull << 30) /* bytes of one string */
#define ARRAY_MAX        (1ull << 30) /* elements of one array */

/* Where the parser stands. `what` names the field being read, for the error line. */
struct cursor {
    struct head *head;
    uint64_t pos;
    struct err *err;
};

static uint64_t left(const struct cursor *c)
{
    return c->head->file_size - c->pos;
}

static int cut_off(const struct cursor *c, const char *what, uint64_t need)
{
    return err_set(c->err, ERR_BAD_FILE,
                   "byte %" PRIu64 ": %s needs %" PRIu64 " bytes, the file has %" PRIu64 " left",
                   c->pos, what, need, left(c));
}

/* The next n bytes, or NULL with the error set. */
static const uint8_t *take(struct cursor *c, uint64_t n, const char *what)
{
    if (n > left(c)) {
        cut_off(c, what, n);
        return NULL;
    }
    if (head_fill(c->head, c->pos + n, c->err) < 0) {
        err_wrap(c->err, "%s", what);
        return NULL;
    }
    const uint8_t *p = c->head->base + c->pos;
    c->pos += n;
    return p;
}

static int take_u32(struct cursor *c, uint32_t *out, const char *what)
{
    const uint8_t *p = take(c, sizeof *out, what);
    if (!p) {
        return -1;
    }
    memcpy(out, p, sizeof *out);
    return 0;
}

static int take_u64(struct cursor *c, uint64_t *out, const char *what)
{
    const uint8_t *p = take(c, sizeof *out, what);
    if (!p) {
        return -1;
    }
    memcpy(out, p, sizeof *out);
    return 0;
}

/* Length of the UTF-8 sequence at p with n bytes left, or 0 when it is none or a control character. */
static int utf8_len(const uint8_t *p, uint64_t n)
{
    if (p[0] < 0x80) {
        return p[0] >= 0x20 && p[0] != 0x7f;
    }
    int len = p[0] >= 0xc2 && p[0] < 0xe0   ? 2
              : p[0] >= 0xe0 && p[0] < 0xf0 ? 3
              : p[0] >= 0xf0 && p[0] < 0xf5 ? 4
                                            : 0;
    if (!len || (uint64_t)len > n) {
        return 0;
    }
    for (int i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    bool overlong = (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90);
    bool surrogate = p[0] == 0xed && p[1] >= 0xa0, beyond = p[0] == 0xf4 && p[1] >= 0x90;
    return overlong || surrogate || beyond ? 0 : len;
}

/* A key's or a tensor's name: 1 to max bytes of printable UTF-8. */
static int take_name(struct cursor *c, const char **name, uint32_t *name_len, uint32_t max,
                     const char *what)
{
    uint64_t start = c->pos, len;
    if (take_u64(c, &len, what) < 0) {
        return -1;
    }
    if (len == 0 || len > max) {
        return err_set(c->err, ERR_BAD_FILE,
                       "byte %" PRIu64 ": %s of %" PRIu64 " bytes, 1 to %" PRIu32 " are allowed",
                       start, what, len, max);
    }
    const uint8_t *p = take(c, len, what);
    if (!p) {
        return -1;
    }
    for (uint64_t i = 0; i < len;) {
        int n = utf8_len(p + i, len - i);
        if (!n) {
            return err_set(c->err, ERR_BAD_FILE,
                           "byte %" PRIu64 ": %s is not printable UTF-8 (value 0x%02x)",
                           c->pos - len + i, what, p[i]);
        }
        i += (uint64_t)n;
    }
    *name = (const char *)p;
    *name_len = (uint32_t)len;
    return 0;
}

/* ---- keys ---- */

/* Longest part of a key or name that an error line shows. */
static int shown(uint32_t len)
{
    return len < 120 ? (int)len : 120;
}

static int bad_kv(const struct cursor *c, const struct gguf_kv *kv, uint64_t off, const char *what,
                  uint64_t value, const char *why)
{
    return err_set(c->err, ERR_BAD_FILE, "byte %" PRIu64 ": key %.*s: %s %" PRIu64 " %s", off,
                   shown(kv->key_len), kv->key, what, value, why);
}

/* The values of a key: n of elem, back to back. */
static int take_values(struct cursor *c, struct gguf_kv *kv)
{
    uint64_t start = c->pos;
    if (kv->n > ARRAY_MAX) {
        return bad_kv(c, kv, start, "array length", kv->n, "is more than 2^30");
    }
    uint64_t each = kv->elem == WEIGHTS_STRING ? 8 : weights_type_size(kv->elem);
    if (kv->n > left(c) / each) {
        return bad_kv(c, kv, start, kv->type == WEIGHTS_ARRAY ? "array length" : "value count",
                      kv->n, "does not fit the rest of the file");
    }
    if (kv->elem != WEIGHTS_STRING) {
        if (!take(c, kv->n * each, "value")) {
            return err_wrap(c->err, "key %.*s", shown(kv->key_len), kv->key);
        }
    }
    for (uint64_t i = 0; kv->elem == WEIGHTS_STRING && i < kv->n; i++) {
        uint64_t len, at = c->pos;
        if (take_u64(c, &len, "string length") < 0) {
            return err_wrap(c->err, "key %.*s", shown(kv->key_len), kv->key);
        }
        if (len > STRING_MAX || len > left(c)) {
            return bad_kv(c, kv, at, "string length", len, "does not fit the rest of the file");
        }
        if (!take(c, len, "string")) {
            return err_wrap(c->err, "key %.*s", shown(kv->key_len), kv->key);
        }
    }
    kv->data = c->head->base + start;
    kv->size_bytes = c->pos - start;
    return 0;
}

static int take_kv(struct cursor *c, struct gguf_kv *kv)
{
    *kv = (struct gguf_kv){ .off = c->pos, .n = 1 };
    uint32_t type, elem;
    if (take_name(c, &kv->key, &kv->key_len, GGUF_KEY_MAX, "key") < 0) {
        return -1;
    }
    uint64_t at = c->pos;
    if (take_u32(c, &type, "value type") < 0) {
        return err_wrap(c->err, "key %.*s", shown(kv->key_len), kv->key);
    }
    if (type >= WEIGHTS_N_TYPES) {
        return bad_kv(c, kv, at, "value type", type, "is not known");
    }
    elem = type;
    if (type == WEIGHTS_ARRAY) {
        at = c->pos;
        if (take_u32(c, &elem, "element type") < 0 || take_u64(c, &kv->n, "array length") < 0) {
            return err_wrap(c->err, "key %.*s", shown(kv->key_len), kv->key);
        }
        if (elem >= WEIGHTS_N_TYPES || elem == WEIGHTS_ARRAY) {
            return bad_kv(c, kv, at, "element type", elem,
                          elem == WEIGHTS_ARRAY ? "(array of arrays) is refused" : "is not known");
        }
    }
    kv->type = (enum weights_type)type;
    kv->elem = (enum weights_type)elem;
    return take_values(c, kv);
}

static int check_alignment(const struct cursor *c, struct gguf *g)
{
    g->alignment = GGUF_ALIGNMENT_DEFAULT;
    const struct gguf_kv *kv = gguf_find(g, "general.alignment");
    if (!kv) {
        return 0;
    }
    uint64_t value;
    if (!gguf_kv_u64(kv, &value)) {
        return err_set(c->err, ERR_BAD_FILE,
                       "byte %" PRIu64 ": key general.alignment: a %s is not an alignment", kv->off,
                       weights_type_name(kv->type));
    }
    if (value < 8 || value > GGUF_ALIGNMENT_MAX || (value & (value - 1))) {
        return bad_kv(c, kv, kv->off, "alignment", value,
                      "is not a power of two from 8 to 1048576");
    }
    g->alignment = (uint32_t)value;
    return 0;
}

/* ---- tensors ---- */

static int bad_tensor(const struct cursor *c, const struct gguf_tensor *t, uint64_t off,
                      const char *what, uint64_t value, const char *why)
{
    return err_set(c->err, ERR_BAD_FILE, "byte %" PRIu64 ": tensor %.*s: %s %" PRIu64 " %s", off,
                   shown(t->name_len), t->name, what, value, why);
}

static bool removed_type(uint32_t id)
{
    return id == 4 || id == 5 || (id >= 31 && id <= 33) || (id >= 36 && id <= 38);
}

static int check_shape(const struct cursor *c, struct gguf_tensor *t, uint64_t dims_at)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++) {
        if (t->ne[i] == 0 || t->ne[i] > INT64_MAX) {
            return bad_tensor(c, t, dims_at + 8ull * i, "dimension", t->ne[i],
                              t->ne[i] ? "is more than 63 bits" : "leaves it without values");
        }
        if (!size_mul(n, t->ne[i], &n) || n > INT64_MAX) {
            return bad_tensor(c, t, dims_at + 8ull * i, "dimension", t->ne[i],
                              "makes more than 2^63 values");
        }
    }
    const struct dtype_info *info = dtype_get(t->dtype);
    if (t->ne[0] % info->block_values) {
        return err_set(c->err, ERR_BAD_FILE,
                       "byte %" PRIu64 ": tensor %.*s: rows of %" PRIu64
                       " values are not whole blocks of %u (%s)",
                       dims_at, shown(t->name_len), t->name, t->ne[0], info->block_values,
                       info->name);
    }
    if (dtype_size(t->dtype, n, &t->size_bytes, c->err) < 0) {
        return err_wrap(c->err, "byte %" PRIu64 ": tensor %.*s", dims_at, shown(t->name_len),
                        t->name);
    }
    return 0;
}

static int take_tensor(struct cursor *c, const struct gguf *g, struct gguf_tensor *t)
{
    *t = (struct gguf_tensor){ .off = c->pos, .ne = { 1, 1, 1, 1 } };
    uint32_t type;
    if (take_name(c, &t->name, &t->name_len, GGUF_NAME_MAX, "tensor name") < 0) {
        return -1;
    }
    uint64_t dims_at = c->pos;
    if (take_u32(c, &t->n_dims, "number of dimensions") < 0) {
        return err_wrap(c->err, "tensor %.*s", shown(t->name_len), t->name);
    }
    if (t->n_dims > WEIGHTS_DIMS_MAX) {
        return bad_tensor(c, t, dims_at, "number of dimensions", t->n_dims, "is more than 4");
    }
    for (uint32_t i = 0; i < t->n_dims; i++) {
        if (take_u64(c, &t->ne[i], "dimension") < 0) {
            return err_wrap(c->err, "tensor %.*s", shown(t->name_len), t->name);
        }
    }
    uint64_t type_at = c->pos;
    if (take_u32(c, &type, "type") < 0 || take_u64(c, &t->data_off, "offset") < 0) {
        return err_wrap(c->err, "tensor %.*s", shown(t->name_len), t->name);
    }
    if (!dtype_find(type)) {
        return bad_tensor(c, t, type_at, "type", type,
                          removed_type(type) ? "was removed from the format" : "is not known");
    }
    t->dtype = (enum dtype)type;
    if (t->data_off % g->alignment) {
        return err_set(c->err, ERR_BAD_FILE,
                       "byte %" PRIu64 ": tensor %.*s: offset %" PRIu64
                       " is not a multiple of the alignment %" PRIu32,
                       type_at + 4, shown(t->name_len), t->name, t->data_off, g->alignment);
    }
    return check_shape(c, t, dims_at + 4);
}

static int by_offset(const void *a, const void *b)
{
    const struct gguf_tensor *const *x = a, *const *y = b;
    return (*x)->data_off < (*y)->data_off ? -1 : (*x)->data_off > (*y)->data_off;
}

/* Every tensor lies inside the file, and no two overlap. */
static int check_extents(const struct cursor *c, struct gguf *g)
{
    uint64_t size = c->head->file_size;
    g->data_off = align_up(c->pos, g->alignment);
    if (g->n_tensors == 0) {
        return 0; /* the padding may be missing */
    }
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        uint64_t end;
        if (!size_add(g->data_off, t->data_off, &end) || !size_add(end, t->size_bytes, &end)) {
            return bad_tensor(c, t, t->off, "offset", t->data_off, "makes it end beyond 64 bits");
        }
        if (end > size) {
            return err_set(c->err, ERR_BAD_FILE,
                           "byte %" PRIu64 ": tensor %.*s: offset %" PRIu64 " and %" PRIu64
                           " bytes end at %" PRIu64 ", the file at %" PRIu64 ": %" PRIu64
                           " bytes are missing",
                           t->off, shown(t->name_len), t->name, t->data_off, t->size_bytes, end,
                           size, end - size);
        }
        if (end - g->data_off > g->data_bytes) {
            g->data_bytes = end - g->data_off;
        }
    }
    const struct gguf_tensor **order = malloc((size_t)g->n_tensors * sizeof(*order));
    if (!order) {
        return err_set(c->err, ERR_NO_MEMORY, "no memory to sort %" PRIu64 " tensors",
                       g->n_tensors);
    }
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        order[i] = &g->tensors[i];
    }
    qsort(order, (size_t)g->n_tensors, sizeof(*order), by_offset);
    int rc = 0;
    for (uint64_t i = 1; i < g->n_tensors && rc == 0; i++) {
        const struct gguf_tensor *a = order[i - 1], *b = order[i];
        if (b->data_off - a->data_off < a->size_bytes) {
            rc = err_set(c->err, ERR_BAD_FILE,
                         "byte %" PRIu64 ": tensor %.*s: offset %" PRIu64 " lies inside of %.*s",
                         b->off, shown(b->name_len), b->name, b->data_off, shown(a->name_len),
                         a->name);
        }
    }
    free(order);
    return rc;
}

/* ---- names that stand twice ---- */

struct named {
    const char *name;
    uint32_t len;
    uint64_t off;
};

static int by_text(const void *a, const void *b)
{
    const struct named *x = a, *y = b;
    int order = memcmp(x->name, y->name, x->len < y->len ? x->len : y->len);
    return order              ? order
           : x->len != y->len ? (x->len < y->len ? -1 : 1)
           : x->off != y->off ? (x->off < y->off ? -1 : 1)
                              : 0;
}

/* Sorted rather than hashed: names made to collide would make a hash slow. */
static int check_unique(const struct cursor *c, struct named *names, uint64_t n, const char *what)
{
    qsort(names, (size_t)n, sizeof *names, by_text);
    for (uint64_t i = 1; i < n; i++) {
        const struct named *a = &names[i - 1], *b = &names[i];
        if (a->len == b->len && memcmp(a->name, b->name, a->len) == 0) {
            return err_set(c->err, ERR_BAD_FILE,
                           "byte %" PRIu64 ": %s %.*s stands twice, first at byte %" PRIu64, b->off,
                           what, shown(b->len), b->name, a->off);
        }
    }
    return 0;
}

static int check_names(const struct cursor *c, const struct gguf *g)
{
    uint64_t most = g->n_kvs > g->n_tensors ? g->n_kvs : g->n_tensors;
    struct named *names = calloc((size_t)most + 1, sizeof *names);
    if (!names) {
        return err_set(c->err, ERR_NO_MEMORY, "no memory to sort %" PRIu64 " names", most);
    }
    for (uint64_t i = 0; i < g->n_kvs; i++) {
        names[i] = (struct named){ g->kvs[i].key, g->kvs[i].key_len, g->kvs[i].off };
    }
    int rc = check_unique(c, names, g->n_kvs, "key");
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        names[i] = (struct named){ g->tensors[i].name, g->tensors[i].name_len, g->tensors[i].off };
    }
    if (rc == 0) {
        rc = check_unique(c, names, g->n_tensors, "tensor");
    }
    free(names);
    return rc;
}

/* ---- the whole ---- */

static int take_header(struct cursor *c, struct gguf *g)
{
    const uint8_t *magic = take(c, 4, "magic");
    if (!magic) {
        return -1;
    }
    if (memcmp(magic, "GGUF", 4) != 0) {
        return err_set(c->err, ERR_BAD_FILE, "byte 0: magic is %02x %02x %02x %02x, not GGUF",
                       magic[0], magic[1], magic[2], magic[3]);
    }
    if (take_u32(c, &g->version, "version") < 0) {
        return -1;
    }
    if (g->version != 0 && (g->version & 0xffff) == 0) {
        return err_set(c->err, ERR_BAD_FILE,
                       "byte 4: version 0x%08" PRIx32 ": a big-endian file, these are not read",
                       g->version);
    }
    if (g->version != 2 && g->version != 3) {
        return err_set(c->err, ERR_BAD_FILE, "byte 4: version %" PRIu32 ", 2 and 3 are read",
                       g->version);
    }
    if (take_u64(c, &g->n_tensors, "tensor count") < 0 || take_u64(c, &g->n_kvs, "key count") < 0) {
        return -1;
    }
    if (g->n_tensors > left(c) / TENSOR_BYTES_MIN || g->n_tensors > WEIGHTS_TENSORS_MAX) {
        return err_set(c->err, ERR_BAD_FILE,
                       "byte 8: tensor count %" PRIu64 " does not fit the file's %" PRIu64
                       " bytes or is more than %u",
                       g->n_tensors, c->head->file_size, WEIGHTS_TENSORS_MAX);
    }
    if (g->n_kvs > left(c) / KV_BYTES_MIN || g->n_kvs > WEIGHTS_KVS_MAX) {
        return err_set(c->err, ERR_BAD_FILE,
                       "byte 16: key count %" PRIu64 " does not fit the file's %" PRIu64
                       " bytes or is more than %u",
                       g->n_kvs, c->head->file_size, WEIGHTS_KVS_MAX);
    }
    return 0;
}

/* Words mixed by multiplication: tells models apart, is no defence. */
static uint64_t digest(const uint8_t *p, uint64_t n)
{
    uint64_t hash = 0x9e3779b97f4a7c15ull ^ n;
    for (uint64_t i = 0; i < n; i += 8) {
        uint64_t word = 0;
        memcpy(&word, p + i, n - i < 8 ? (size_t)(n - i) : 8);
        hash = (hash ^ word) * 0xd6e8feb86659fd93ull;
        hash ^= hash >> 32;
    }
    return hash;
}

static int parse(struct gguf *g, struct cursor *c)
{
    if (take_header(c, g) < 0) {
        return -1;
    }
    uint64_t n_kvs = g->n_kvs, n_tensors = g->n_tensors;
    g->n_kvs = g->n_tensors = 0;
    g->kvs = calloc((size_t)n_kvs + 1, sizeof *g->kvs);
    g->tensors = calloc((size_t)n_tensors + 1, sizeof *g->tensors);
    if (!g->kvs || !g->tensors) {
        return err_set(c->err, ERR_NO_MEMORY,
                       "no memory for %" PRIu64 " keys and %" PRIu64 " tensors", n_kvs, n_tensors);
    }
    for (; g->n_kvs < n_kvs; g->n_kvs++) {
        if (take_kv(c, &g->kvs[g->n_kvs]) < 0) {
            return -1;
        }
    }
    if (check_alignment(c, g) < 0) {
        return -1;
    }
    for (; g->n_tensors < n_tensors; g->n_tensors++) {
        if (take_tensor(c, g, &g->tensors[g->n_tensors]) < 0) {
            return -1;
        }
    }
    g->head_bytes = c->pos;
    if (check_names(c, g) < 0 || check_extents(c, g) < 0) {
        return -1;
    }
    g->digest = digest(c->head->base, g->head_bytes);
    return 0;
}

int gguf_parse(struct gguf *g, struct head *head, struct err *err)
{
    *g = (struct gguf){ 0 };
    struct cursor c = { .head = head, .err = err };
    if (parse(g, &c) < 0) {
        gguf_clear(g);
        return -1;
    }
    return 0;
}

void gguf_clear(struct gguf *g)
{
    free(g->kvs);
    free(g->tensors);
    *g = (struct gguf){ 0 };
}

const struct gguf_kv *gguf_find(const struct gguf *g, const char *key)
{
    size_t len = strlen(key);
    for (uint64_t i = 0; i < g->n_kvs; i++) {
        if (g->kvs[i].key_len == len && memcmp(g->kvs[i].key, key, len) == 0) {
            return &g->kvs[i];
        }
    }
    return NULL;
}

bool gguf_kv_u64(const struct gguf_kv *kv, uint64_t *out)
{
    struct weights_kv value = { .type = kv->type, .elem = kv->elem, .n = kv->n, .data = kv->data };
    if (kv->type == WEIGHTS_ARRAY || kv->type == WEIGHTS_F32 || kv->type == WEIGHTS_F64 ||
        kv->type == WEIGHTS_BOOL) {
        return false;
    }
    return weights_kv_u64(&value, 0, out);
}

bool gguf_kv_str(const struct gguf_kv *kv, const char **text, uint64_t *len)
{
    if (kv->type != WEIGHTS_STRING) {
        return false;
    }
    memcpy(len, kv->data, sizeof *len);
    *text = (const char *)kv->data + sizeof *len;
    return true;
}
