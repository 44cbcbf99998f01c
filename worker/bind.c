#include "worker/bind.h"

#include <math.h>
#include <stdio.h>

#include "proto/bytes.h"
#include "worker/spill.h"

/* ---- keys ---- */

const struct weights_kv *bind_find_key(struct bind *b, const char *name)
{
    char key[BIND_NAME_BYTES];
    snprintf(key, sizeof key, "%s.%s", b->m->arch->name, name);
    return weights_find_kv(b->w, key);
}

/* Element i of a key that may be a scalar (the same for every i) or an array. */
int bind_u32_at(struct bind *b, const char *name, uint64_t i, uint64_t fallback, uint32_t *out)
{
    const struct weights_kv *kv = bind_find_key(b, name);
    uint64_t value = fallback;
    if (!kv && fallback == BIND_REQUIRED) {
        return err_set(b->err, ERR_BAD_FILE, "key %s.%s is missing", b->m->arch->name, name);
    }
    if (kv &&
        (!weights_kv_u64(kv, kv->type == WEIGHTS_ARRAY ? i : 0, &value) || value > BIND_DIM_MAX)) {
        return err_set(b->err, ERR_BAD_FILE, "key %s: element %llu is no number up to %u", kv->key,
                       (unsigned long long)i, BIND_DIM_MAX);
    }
    *out = (uint32_t)value;
    return 0;
}

int bind_u32(struct bind *b, const char *name, uint64_t fallback, uint32_t *out)
{
    return bind_u32_at(b, name, 0, fallback, out);
}

int bind_f64(struct bind *b, const char *name, double fallback, double *out)
{
    const struct weights_kv *kv = bind_find_key(b, name);
    *out = fallback;
    if (kv && (!weights_kv_f64(kv, 0, out) || !isfinite(*out))) {
        return err_set(b->err, ERR_BAD_FILE, "key %s is no number", kv->key);
    }
    if (!kv && isnan(fallback)) {
        return err_set(b->err, ERR_BAD_FILE, "key %s.%s is missing", b->m->arch->name, name);
    }
    return 0;
}

int bind_f32(struct bind *b, const char *name, double fallback, float *out)
{
    double value;
    if (bind_f64(b, name, fallback, &value) < 0) {
        return -1;
    }
    *out = (float)value;
    return 0;
}

bool bind_key_is(struct bind *b, const char *name, const char *text)
{
    const struct weights_kv *kv = bind_find_key(b, name);
    const char *value;
    size_t len;
    return kv && weights_kv_str(kv, 0, &value, &len) && len == strlen(text) &&
           memcmp(value, text, len) == 0;
}

/* ---- tensors ---- */

/* What the backend imported from a tensor has the shape, and the backend has the kernel. */
static int check_matrix(struct bind *b, const struct weights_tensor *t, uint32_t k, uint32_t m,
                        uint32_t n_experts, const struct matrix *out)
{
    if (out->k != k || (m && out->m != m) || (n_experts && out->n_experts != n_experts) ||
        out->m == 0 || out->m > BIND_DIM_MAX || out->n_experts == 0) {
        return err_set(b->err, ERR_BAD_FILE, "tensor %s: %s [%u, %u, %u], expected [%u, %u, %u]",
                       t->name, dtype_get(t->dtype)->name, out->k, out->m, out->n_experts, k, m,
                       n_experts);
    }
    return b->backend->ops->check_matrix(b->backend, out, b->err);
}

static void note_data(struct bind *b, const struct weights_tensor *t)
{
    b->data_end = t->data_end > b->data_end ? t->data_end : b->data_end;
}

/* spilled: to the host's memory, or NULL. */
static int bind_matrix_at(struct bind *b, const char *name, uint32_t k, uint32_t m,
                          uint32_t n_experts, enum want want, const struct backend_spilled *spilled,
                          struct matrix *out)
{
    const struct weights_tensor *t = weights_find_tensor(b->w, name);
    const struct backend_ops *ops = b->backend->ops;
    *out = (struct matrix){ 0 };
    if (!t) {
        return want == WANT_REQUIRED ? err_set(b->err, ERR_BAD_FILE, "tensor %s is missing", name)
                                     : 0;
    }
    note_data(b, t);
    int rc = spilled ? ops->import_spilled(b->backend, t, spilled, out, b->err)
                     : ops->import(b->backend, t, out, b->err);
    return rc < 0 ? -1 : check_matrix(b, t, k, m, n_experts, out);
}

/* A matrix [k, m, n_experts]; m or n_experts 0: whatever the file has. */
int bind_matrix(struct bind *b, const char *name, uint32_t k, uint32_t m, uint32_t n_experts,
                enum want want, struct matrix *out)
{
    return bind_matrix_at(b, name, k, m, n_experts, want, NULL, out);
}

int bind_table(struct bind *b, const char *name, uint32_t k, uint32_t m, struct matrix *out)
{
    const struct backend_spilled rows = { .base = b->w->base };
    bool spilled = b->options->spill && b->options->spill->tables;
    return bind_matrix_at(b, name, k, m, 1, WANT_REQUIRED, spilled ? &rows : NULL, out);
}

int bind_layer_experts(struct bind *b, uint32_t i, const char *part, uint32_t k, uint32_t m,
                       uint32_t n_experts, const uint8_t **places, struct matrix *out)
{
    const struct weights_tensor *tensors[BIND_EXPERTS_MAX];
    for (uint32_t e = 0; e < n_experts; e++) {
        char name[BIND_NAME_BYTES];
        bind_name(name, "blk.%u.%s.%u.weight", i, part, e);
        const struct weights_tensor *t = tensors[e] = weights_find_tensor(b->w, name),
                                    *first = tensors[0];
        if (!t) {
            return err_set(b->err, ERR_BAD_FILE, "tensor %s is missing", name);
        }
        if (t->dtype != first->dtype || t->layout != first->layout || t->ne[2] != 1 ||
            memcmp(t->ne, first->ne, sizeof t->ne) != 0) {
            return err_set(b->err, ERR_UNSUPPORTED,
                           "tensor %s: %s [%llu, %llu, %llu], expert 0 is "
                           "%s [%llu, %llu, 1]",
                           name, dtype_get(t->dtype)->name, (unsigned long long)t->ne[0],
                           (unsigned long long)t->ne[1], (unsigned long long)t->ne[2],
                           dtype_get(first->dtype)->name, (unsigned long long)first->ne[0],
                           (unsigned long long)first->ne[1]);
        }
        note_data(b, t);
    }
    return b->backend->ops->import_experts(b->backend, tensors, n_experts, places, out, b->err) < 0
               ? -1
               : check_matrix(b, tensors[0], k, m, n_experts, out);
}

/* n f32 values in any shape. */
int bind_vector(struct bind *b, const char *name, uint64_t n, enum want want, const float **out)
{
    const struct weights_tensor *t = weights_find_tensor(b->w, name);
    struct matrix m;
    *out = NULL;
    if (!t) {
        return want == WANT_REQUIRED ? err_set(b->err, ERR_BAD_FILE, "tensor %s is missing", name)
                                     : 0;
    }
    if (t->dtype != DTYPE_F32) {
        return err_set(b->err, ERR_UNSUPPORTED, "tensor %s: type %s, a vector must be F32", name,
                       dtype_get(t->dtype)->name);
    }
    if (t->size_bytes != n * sizeof(float)) {
        return err_set(b->err, ERR_BAD_FILE, "tensor %s: F32 [%llu, %llu, %llu], expected [%llu]",
                       name, (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                       (unsigned long long)t->ne[2], (unsigned long long)n);
    }
    if (b->backend->ops->import(b->backend, t, &m, b->err) < 0) {
        return -1;
    }
    if ((uintptr_t)m.data % _Alignof(float) != 0) {
        return err_set(b->err, ERR_BAD_FILE, "tensor %s: data is not aligned to 4 bytes", name);
    }
    *out = (const float *)(const void *)m.data;
    note_data(b, t);
    return 0;
}

void __attribute__((format(printf, 2, 3)))
bind_name(char out[BIND_NAME_BYTES], const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(out, BIND_NAME_BYTES, format, args);
    va_end(args);
}

bool bind_has(struct bind *b, uint32_t i, const char *part)
{
    char name[BIND_NAME_BYTES];
    bind_name(name, "blk.%u.%s", i, part);
    return weights_find_tensor(b->w, name) != NULL;
}

int bind_layer_matrix(struct bind *b, uint32_t i, const char *part, uint32_t k, uint32_t m,
                      uint32_t n_experts, enum want want, struct matrix *out)
{
    char name[BIND_NAME_BYTES];
    bind_name(name, "blk.%u.%s.weight", i, part);
    return bind_matrix(b, name, k, m, n_experts, want, out);
}

int bind_layer_vector(struct bind *b, uint32_t i, const char *part, uint64_t n, enum want want,
                      const float **out)
{
    char name[BIND_NAME_BYTES];
    bind_name(name, "blk.%u.%s", i, part);
    return bind_vector(b, name, n, want, out);
}

/* A matrix with its optional bias. */
int bind_layer_linear(struct bind *b, uint32_t i, const char *part, uint32_t k, uint32_t m,
                      enum want want, struct model_linear *out)
{
    char name[BIND_NAME_BYTES];
    const struct spill *spill = b->options->spill;
    struct backend_spilled spilled = { .base = b->w->base };
    bool streamed = spill && spill_streams(spill, b->w, i, part, &spilled.turn);
    spilled.slot_bytes = streamed ? spill->slot_bytes : 0;
    bind_name(name, "blk.%u.%s.weight", i, part);
    if (bind_matrix_at(b, name, k, m, 1, want, streamed ? &spilled : NULL, &out->w) < 0) {
        return -1;
    }
    if (out->w.data && bind_low_rank(b, &out->w) < 0) {
        return -1;
    }
    bind_name(name, "blk.%u.%s.bias", i, part);
    return out->w.data ? bind_vector(b, name, out->w.m, WANT_OPTIONAL, &out->bias) : 0;
}

int bind_norm(struct bind *b, const char *name, uint64_t n, enum want want, struct model_norm *out)
{
    char full[BIND_NAME_BYTES];
    bind_name(full, "%s.weight", name);
    if (bind_vector(b, full, n, want, &out->w) < 0) {
        return -1;
    }
    out->present = out->w != NULL;
    bind_name(full, "%s.bias", name);
    return b->m->arch->norm == OP_NORM_LAYER ? bind_vector(b, full, n, WANT_OPTIONAL, &out->b) : 0;
}

int bind_layer_norm(struct bind *b, uint32_t i, const char *part, uint64_t n, enum want want,
                    struct model_norm *out)
{
    char name[BIND_NAME_BYTES];
    bind_name(name, "blk.%u.%s", i, part);
    return bind_norm(b, name, n, want, out);
}
