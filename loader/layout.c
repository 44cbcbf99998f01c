#include "loader/layout.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/bytes.h"
#include "proto/rows16.h"

/* One tensor to lay: n_matrices of n_rows rows; rows past a matrix's last whole group stay. */
struct task {
    uint64_t seg_off; /* of its data */
    uint64_t size_bytes;
    uint64_t ready; /* bytes read, of all, when its last is there */
    uint64_t row_bytes;
    uint64_t n_rows;
    uint64_t n_matrices; /* experts of a stack are laid each by itself */
    enum dtype dtype;
};

#define HANDS_MAX  4 /* one core lays about 3 GB/s, a fast drive reads 7 */
#define SPREAD_MIN 4 /* groups below which it is not worth waking anybody */

/* Groups of one matrix, side by side: who comes takes the next. */
struct run {
    const struct task *task;
    uint8_t *first;
    uint64_t n_groups;
    atomic_uint_fast64_t next;
};

struct layout {
    uint8_t *base;
    struct task *tasks; /* in the order of reading */
    size_t n_tasks;
    size_t next;            /* first task that is not done */
    uint64_t matrix, row;   /* within it: the next group */
    uint8_t *scratch;       /* one group for each hand */
    uint64_t scratch_bytes; /* of one */

    struct run run;
    pthread_t hands[HANDS_MAX]; /* beside the caller */
    int n_hands;
    pthread_mutex_t lock; /* for what follows */
    pthread_cond_t work, done;
    uint64_t n_runs; /* begun */
    int n_busy;      /* hands that have not ended this run */
    bool stopping;
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
    return x->ready != y->ready      ? x->ready < y->ready ? -1 : 1
           : x->seg_off < y->seg_off ? -1
                                     : x->seg_off > y->seg_off;
}

/* Lays groups of the run until none is left. */
static void lay_groups(struct run *run, uint8_t *scratch)
{
    uint64_t bytes = run->task->row_bytes * ROWS16_ROWS, g;
    while ((g = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed)) < run->n_groups) {
        uint8_t *group = run->first + g * bytes;
        memcpy(scratch, group, (size_t)bytes);
        rows16_pack(run->task->dtype, scratch, run->task->row_bytes, group);
    }
}

struct hand {
    struct layout *layout;
    uint8_t *scratch;
};

static void *hand_thread(void *arg)
{
    struct hand hand = *(struct hand *)arg;
    free(arg);
    struct layout *l = hand.layout;
    pthread_mutex_lock(&l->lock);
    for (uint64_t seen = 0;;) {
        while (l->n_runs == seen && !l->stopping) {
            pthread_cond_wait(&l->work, &l->lock);
        }
        if (l->stopping) {
            break;
        }
        seen = l->n_runs;
        pthread_mutex_unlock(&l->lock);
        lay_groups(&l->run, hand.scratch);
        pthread_mutex_lock(&l->lock);
        if (--l->n_busy == 0) {
            pthread_cond_signal(&l->done);
        }
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* Helpers for the other cores; without them the caller lays all by itself. */
static void start_hands(struct layout *l, int wanted)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    while (l->n_hands < wanted) {
        struct hand *hand = malloc(sizeof *hand);
        if (!hand) {
            break;
        }
        *hand = (struct hand){ l, l->scratch + (uint64_t)(l->n_hands + 1) * l->scratch_bytes };
        if (pthread_create(&l->hands[l->n_hands], NULL, hand_thread, hand) != 0) {
            free(hand);
            break;
        }
        l->n_hands++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void lay_run(struct layout *l, const struct task *task, uint8_t *first, uint64_t n_groups)
{
    l->run.task = task;
    l->run.first = first;
    l->run.n_groups = n_groups;
    atomic_store_explicit(&l->run.next, 0, memory_order_relaxed);
    bool spread = l->n_hands > 0 && n_groups >= SPREAD_MIN;
    if (spread) {
        pthread_mutex_lock(&l->lock);
        l->n_runs++;
        l->n_busy = l->n_hands;
        pthread_cond_broadcast(&l->work);
        pthread_mutex_unlock(&l->lock);
    }
    lay_groups(&l->run, l->scratch);
    if (spread) {
        pthread_mutex_lock(&l->lock);
        while (l->n_busy > 0) {
            pthread_cond_wait(&l->done, &l->lock);
        }
        pthread_mutex_unlock(&l->lock);
    }
}

struct layout *layout_create(const struct weights *w, uint8_t *base, struct err *err)
{
    struct layout *l = calloc(1, sizeof *l);
    if (l) {
        l->tasks = calloc(w->n_tensors + 1, sizeof *l->tasks);
    }
    if (l) {
        pthread_mutex_init(&l->lock, NULL);
        pthread_cond_init(&l->work, NULL);
        pthread_cond_init(&l->done, NULL);
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
                             .ready = t->data_end,
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
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int n_hands = l->n_tasks == 0 || n_cpus < 2 ? 0
                  : n_cpus < HANDS_MAX          ? (int)n_cpus - 1
                                                : HANDS_MAX - 1;
    l->scratch_bytes = align_up(largest, 64);
    l->scratch = malloc((size_t)(l->scratch_bytes * (uint64_t)(n_hands + 1)) + 1);
    if (!l->scratch) {
        err_set(err, ERR_NO_MEMORY, "no memory for a group of %" PRIu64 " bytes", largest);
        layout_destroy(&l);
        return NULL;
    }
    start_hands(l, n_hands);
    return l;
}

void layout_destroy(struct layout **l)
{
    if (*l) {
        pthread_mutex_lock(&(*l)->lock);
        (*l)->stopping = true;
        pthread_cond_broadcast(&(*l)->work);
        pthread_mutex_unlock(&(*l)->lock);
        for (int i = 0; i < (*l)->n_hands; i++) {
            pthread_join((*l)->hands[i], NULL);
        }
        pthread_cond_destroy(&(*l)->work);
        pthread_cond_destroy(&(*l)->done);
        pthread_mutex_destroy(&(*l)->lock);
        free((*l)->tasks);
        free((*l)->scratch);
        free(*l);
        *l = NULL;
    }
}

/* Bytes of all that must have been read for the first `upto` bytes of a tensor to be there. It is read in one go, but for a
 * page at either end that came earlier with a neighbour: a page more than needed makes up for the one at its end. */
static uint64_t need(const struct task *t, uint64_t upto)
{
    uint64_t wanted = t->ready - t->size_bytes + WEIGHTS_PAGE + upto;
    return t->size_bytes <= 2 * WEIGHTS_PAGE || wanted > t->ready ? t->ready : wanted;
}

uint64_t layout_advance(struct layout *l, uint64_t n_read)
{
    while (l->next < l->n_tasks) {
        const struct task *task = &l->tasks[l->next];
        uint64_t group = task->row_bytes * ROWS16_ROWS;
        uint64_t at = (l->matrix * task->n_rows + l->row) * task->row_bytes;
        uint64_t first = need(task, at + group), rest = (task->n_rows - l->row) / ROWS16_ROWS;
        if (n_read < first) {
            return first - 1 < n_read ? first - 1 : n_read;
        }
        uint64_t there = n_read >= task->ready ? rest : 1 + (n_read - first) / group;
        uint64_t n_groups = there < rest ? there : rest;
        lay_run(l, task, l->base + task->seg_off + at, n_groups);
        l->row += n_groups * ROWS16_ROWS;
        if (task->n_rows - l->row < ROWS16_ROWS) {
            l->row = 0;
            l->matrix++;
        }
        if (l->matrix == task->n_matrices) {
            l->matrix = 0;
            l->next++;
        }
    }
    return n_read;
}
