#include "loader/layout.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "loader/rows.h"

/* One tensor to lay. */
struct task {
    uint64_t seg_off; /* of its data */
    uint64_t size_bytes;
    uint64_t group_bytes; /* of 16 rows */
    uint64_t n_blocks;    /* of one row */
    enum dtype dtype;
};

struct layout {
    uint8_t *base;
    struct task *tasks; /* by seg_off */
    size_t n_tasks;
    size_t next;       /* first task that is not done */
    uint64_t next_off; /* within it: bytes laid */
    uint8_t *scratch;  /* one group */
};

enum weights_layout layout_of(const struct gguf_tensor *t, enum weights_layout wanted)
{
    /* Whole groups in every matrix of the stack: experts are split at rows, not across them. The embedding is read
     * row by row, so it stays as it is, even where it is the output matrix too. */
    static const char embedding[] = "token_embd.weight";
    if (wanted != WEIGHTS_LAYOUT_ROWS16 || t->n_dims < 2 || t->ne[1] % ROWS_GROUP ||
        !rows_can_lay(t->dtype) ||
        (t->name_len == sizeof embedding - 1 && memcmp(t->name, embedding, t->name_len) == 0)) {
        return WEIGHTS_LAYOUT_FILE;
    }
    return WEIGHTS_LAYOUT_ROWS16;
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
                             .size_bytes = t->size_bytes,
                             .n_blocks = t->ne[0] / info->block_values,
                             .dtype = t->dtype };
        task.group_bytes = task.n_blocks * info->block_bytes * ROWS_GROUP;
        assert(task.size_bytes % task.group_bytes == 0);
        largest = task.group_bytes > largest ? task.group_bytes : largest;
        l->tasks[l->n_tasks++] = task;
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
        uint64_t at = task->seg_off + l->next_off;
        if (at + task->group_bytes > read_upto) {
            return at < read_upto ? at : read_upto;
        }
        memcpy(l->scratch, l->base + at, (size_t)task->group_bytes);
        rows_lay(task->dtype, task->n_blocks, l->scratch, l->base + at);
        l->next_off += task->group_bytes;
        if (l->next_off == task->size_bytes) {
            l->next++;
            l->next_off = 0;
        }
    }
    return read_upto;
}
