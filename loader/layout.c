#include "loader/layout.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/rows16.h"

/* One tensor to lay: n_matrices of n_rows rows; rows past a matrix's last whole group stay. */
struct task {
    uint64_t seg_off; /* of its data */
    uint64_t row_bytes;
    uint64_t n_rows;
    uint64_t n_matrices; /* experts of a stack are laid each by itself */
    enum dtype dtype;
};

struct layout {
    uint8_t *base;
    struct task *tasks; /* by seg_off */
    size_t n_tasks;
    size_t next;          /* first task that is not done */
    uint64_t matrix, row; /* within it: the next group */
    uint8_t *scratch;     /* one group */
};

enum weights_layout layout_of(const struct gguf_tensor *t, enum weights_layout wanted)
{
    char name[GGUF_NAME_MAX + 1];
    memcpy(name, t->name, t->name_len);
    name[t->name_len] = '\0';
    return wanted == WEIGHTS_LAYOUT_ROWS16 && rows16_wanted(name, t->dtype, t->n_dims, t->ne)
               ? WEIGHTS_LAYOUT_ROWS16
               : WEIGHTS_LAYOUT_FILE;
}

static int by_place(const void *a, const void *b)
{
    const struct task *x = a, *y = b;
    return x->seg_off < y->seg_off ? -1 : x->seg_off > y->seg_off;
}

struct layout *layout_create(const struct weights *w, uint8_t *base, struct err *err)
{
    struct layout *l = calloc(1, sizeof *l);
    if (l) {
        l->tasks = calloc(w->n_tensors + 1, sizeof *l->tasks);
    }
    if (!l || !l->tasks) {
        layout_destroy(&l);
        err_set(err, ERR_NO_MEMORY, "no memory to lay %zu tensors", w->n_tensors);
        return NULL;
    }
    l->base = base;
    uint64_t largest = 0;
    for (size_t i = 0; i < w->n_tensors; i++) {
        const struct weights_tensor *t = &w->tensors[i];
        if (t->layout != WEIGHTS_LAYOUT_ROWS16) {
            continue;
        }
        const struct dtype_info *info = dtype_get(t->dtype);
        struct task task = { .seg_off = (uint64_t)(t->data - w->base),
                             .row_bytes = t->ne[0] / info->block_values * info->block_bytes,
                             .n_rows = t->ne[1],
                             .n_matrices = t->ne[2] * t->ne[3],
                             .dtype = t->dtype };
        /* A matrix of fewer rows than a group has none; this also bounds the scratch by the tensor. */
        if (task.n_rows >= ROWS16_ROWS) {
            uint64_t group = task.row_bytes * ROWS16_ROWS;
            largest = group > largest ? group : largest;
            l->tasks[l->n_tasks++] = task;
        }
    }
    qsort(l->tasks, l->n_tasks, sizeof *l->tasks, by_place);
    l->scratch = malloc((size_t)largest + 1);
    if (!l->scratch) {
        err_set(err, ERR_NO_MEMORY, "no memory for a group of %" PRIu64 " bytes", largest);
        layout_destroy(&l);
    }
    return l;
}

void layout_destroy(struct layout **l)
{
    if (*l) {
        free((*l)->tasks);
        free((*l)->scratch);
        free(*l);
        *l = NULL;
    }
}

uint64_t layout_advance(struct layout *l, uint64_t read_upto)
{
    while (l->next < l->n_tasks) {
        const struct task *task = &l->tasks[l->next];
        uint64_t group = task->row_bytes * ROWS16_ROWS;
        uint64_t at = task->seg_off + (l->matrix * task->n_rows + l->row) * task->row_bytes;
        if (read_upto < at + group) {
            return at < read_upto ? at : read_upto;
        }
        memcpy(l->scratch, l->base + at, (size_t)group);
        rows16_pack(task->dtype, l->scratch, task->row_bytes, l->base + at);
        l->row += ROWS16_ROWS;
        if (task->n_rows - l->row < ROWS16_ROWS) {
            l->row = 0;
            l->matrix++;
        }
        if (l->matrix == task->n_matrices) {
            l->matrix = 0;
            l->next++;
        }
    }
    return read_upto;
}
