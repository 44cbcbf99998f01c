#include "loader/order.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "proto/weights.h"

uint32_t order_group(const char *name, size_t len)
{
    static const char first[] = "rope_", layer[] = "blk.", last[] = "output";
    if (len >= sizeof first - 1 && memcmp(name, first, sizeof first - 1) == 0) {
        return ORDER_FIRST;
    }
    if (len >= sizeof last - 1 && memcmp(name, last, sizeof last - 1) == 0) {
        return UINT32_MAX;
    }
    if (len < sizeof layer || memcmp(name, layer, sizeof layer - 1) != 0) {
        return 1;
    }
    uint32_t number = 0;
    for (size_t i = sizeof layer - 1; i < len && name[i] >= '0' && name[i] <= '9'; i++) {
        number = number < 1u << 20 ? number * 10 + (uint32_t)(name[i] - '0') : number;
    }
    return 2 + number;
}

static int by_tensor_off(const void *a, const void *b)
{
    const struct order_tensor *x = a, *y = b;
    return x->off < y->off ? -1 : x->off > y->off;
}

static int by_off(const void *a, const void *b)
{
    const struct order_run *x = a, *y = b;
    return x->off < y->off ? -1 : x->off > y->off;
}

static int by_need(const void *a, const void *b)
{
    const struct order_run *x = a, *y = b;
    return x->group != y->group ? x->group < y->group ? -1 : 1 : by_off(a, b);
}

/* Runs of whole pages of one group. first and last are pages. */
struct pages {
    uint64_t first, last;
    uint32_t file_idx, group;
};

/* Adds the pages of one tensor behind those of the tensors before it. A page that both have goes to who needs it first. */
static size_t add_pages(struct pages *runs, size_t n, struct pages p)
{
    if (n > 0 && runs[n - 1].last >= p.first) {
        if (runs[n - 1].group <= p.group) {
            p.first = runs[n - 1].last + 1;
        } else if (runs[n - 1].first == p.first) {
            n--;
        } else {
            runs[n - 1].last = p.first - 1;
        }
    }
    if (p.first > p.last) {
        return n;
    }
    struct pages *before = n > 0 ? &runs[n - 1] : NULL;
    if (before && before->group == p.group && before->file_idx == p.file_idx &&
        before->last + 1 == p.first) {
        before->last = p.last;
        return n;
    }
    runs[n] = p;
    return n + 1;
}

/* The pages of all tensors, in the files' order. A gap is read with the tensor before it. */
static size_t cut(struct pages *runs, const struct order_tensor *tensors, size_t n_tensors,
                  const struct order_file *files, uint32_t n_files, uint64_t phase)
{
    size_t n = 0, i = 0;
    for (uint32_t f = 0; f < n_files; f++) {
        uint64_t from = files[f].off, end = from + files[f].size_bytes;
        for (; i < n_tensors && tensors[i].off < end; i++) {
            bool more = i + 1 < n_tensors && tensors[i + 1].off < end;
            uint64_t upto = more ? tensors[i + 1].off : end;
            if (upto > from) {
                n = add_pages(
                    runs, n,
                    (struct pages){ .first = (from + phase) / WEIGHTS_PAGE,
                                    .last = (upto - 1 + phase) / WEIGHTS_PAGE,
                                    .file_idx = f,
                                    .group = order_group(tensors[i].name, tensors[i].name_len) });
            }
            from = upto;
        }
    }
    return n;
}

/* Pages back to bytes: a file's first and last page hold more than its data. */
static struct order_run run_of(const struct pages *p, const struct order_file *file, uint64_t phase)
{
    uint64_t from = p->first * WEIGHTS_PAGE, end = (p->last + 1) * WEIGHTS_PAGE - phase;
    from = from > phase + file->off ? from - phase : file->off;
    end = end < file->off + file->size_bytes ? end : file->off + file->size_bytes;
    return (struct order_run){
        .file_idx = p->file_idx, .group = p->group, .off = from, .size_bytes = end - from
    };
}

int order_init(struct order *o, struct order_tensor *tensors, size_t n_tensors,
               const struct order_file *files, uint32_t n_files, uint64_t phase, struct err *err)
{
    *o = (struct order){ 0 };
    struct pages *pages = calloc(n_tensors + 1, sizeof *pages);
    o->reads = calloc(n_tensors + 1, sizeof *o->reads);
    o->by_off = calloc(n_tensors + 1, sizeof *o->by_off);
    if (!pages || !o->reads || !o->by_off) {
        free(pages);
        order_clear(o);
        return err_set(err, ERR_NO_MEMORY, "no memory for the order of %zu tensors", n_tensors);
    }
    order_sort(tensors, n_tensors);
    o->n_by_off = cut(pages, tensors, n_tensors, files, n_files, phase);
    for (size_t i = 0; i < o->n_by_off; i++) {
        o->by_off[i] = run_of(&pages[i], &files[pages[i].file_idx], phase);
    }
    free(pages);
    qsort(o->by_off, o->n_by_off, sizeof *o->by_off, by_need);
    for (size_t i = 0; i < o->n_by_off; i++) {
        struct order_run *run = &o->by_off[i],
                         *before = o->n_reads ? &o->reads[o->n_reads - 1] : NULL;
        run->at = o->total_bytes;
        o->total_bytes += run->size_bytes;
        if (before && before->file_idx == run->file_idx &&
            before->off + before->size_bytes == run->off) {
            before->size_bytes += run->size_bytes;
        } else {
            o->reads[o->n_reads++] = *run;
        }
    }
    qsort(o->by_off, o->n_by_off, sizeof *o->by_off, by_off);
    return 0;
}

void order_sort(struct order_tensor *tensors, size_t n_tensors)
{
    if (n_tensors > 0) {
        qsort(tensors, n_tensors, sizeof *tensors, by_tensor_off);
    }
}

void order_clear(struct order *o)
{
    free(o->reads);
    free(o->by_off);
    *o = (struct order){ 0 };
}

uint64_t order_ready(const struct order *o, uint64_t off, uint64_t size_bytes)
{
    size_t low = 0, high = o->n_by_off;
    while (low < high) { /* the first run that ends behind off */
        size_t middle = (low + high) / 2;
        if (o->by_off[middle].off + o->by_off[middle].size_bytes > off) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    uint64_t ready = 0, end = off + size_bytes;
    for (; low < o->n_by_off && o->by_off[low].off < end; low++) {
        const struct order_run *run = &o->by_off[low];
        uint64_t upto = end - run->off < run->size_bytes ? end - run->off : run->size_bytes;
        ready = run->at + upto > ready ? run->at + upto : ready;
    }
    return ready;
}
