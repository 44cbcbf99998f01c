/* A decode step as one launch. Between cuda_step_begin and cuda_step_flush the ops' kernels are not launched but listed,
 * with their arguments; the host arrays that they read (page tables, positions, ids) are laid into one block. The flush
 * copies the block to the device and sends the list as one graph. Steps of one shape make the same list, but for a few
 * arguments: the graph of the last one is kept by the step's key, compared line by line, and only nodes that
 * differ are set anew. Copies of streamed weights (spill.cu) are nodes beside the chain of kernels. The list is the truth: no graph is ever launched that does not say what the list says, and
 * where a graph cannot be had the list is launched line by line. */
#include "worker/cuda/check.cuh"

#include <stdlib.h>

extern "C" {
#include "proto/log.h"
}

#if !defined(HEARTH_EMULATED) && CUDART_VERSION < 13000
#define ADD_EDGE cudaGraphAddDependencies_v2 /* as the runtime of before 13 calls it */
#else
#define ADD_EDGE cudaGraphAddDependencies
#endif
#define LINES_FIRST  256
#define BYTES_FIRST  ((size_t)64 << 10)
#define VALUES_ALIGN 16

struct list {
    struct cuda_line *lines;
    uint8_t *bytes; /* aligned to VALUES_ALIGN */
    uint32_t n, n_max;
    size_t n_bytes, n_bytes_max;
};

/* A kept step. Its list says what the graph's nodes say. */
struct kept {
    uint64_t key, used;
    struct list list;
    cudaGraph_t graph;
    cudaGraphExec_t exec; /* NULL: seen once, not made yet */
    cudaGraphNode_t *nodes;
};

struct cuda_step {
    struct cuda_backend *c;
    bool collecting;
    bool plain; /* graphs failed: lines are launched one by one from here on */
    uint64_t key, clock;
    uint32_t segment; /* flushes of this step before its end */
    struct list list;
    void **args; /* scratch [args_max] */
    uint32_t args_max;
    struct kept kept[CUDA_STEPS_KEPT];
    struct cuda_step_counts counts;
};

/* The one that collects in this process; LAUNCH knows only a stream. */
static struct cuda_step *collecting;

struct cuda_step *cuda_step_collecting(cudaStream_t stream)
{
    return collecting && collecting->c->stream == stream ? collecting : NULL;
}

/* ---- lists ---- */

static void list_clear(struct list *l)
{
    free(l->lines);
    free(l->bytes);
    struct list none = {};
    *l = none;
}

static bool list_grow(struct list *l, uint32_t n_lines, size_t n_bytes)
{
    if (n_lines > l->n_max) {
        uint32_t n = l->n_max ? 2 * l->n_max : LINES_FIRST;
        void *lines = realloc(l->lines, n * sizeof *l->lines);
        if (!lines) {
            return false;
        }
        l->lines = (struct cuda_line *)lines;
        l->n_max = n;
    }
    if (n_bytes > l->n_bytes_max) {
        size_t n = l->n_bytes_max ? 2 * l->n_bytes_max : BYTES_FIRST;
        n = n < n_bytes ? round_up(n_bytes, BYTES_FIRST) : n;
        uint8_t *bytes = (uint8_t *)aligned_alloc(VALUES_ALIGN, n);
        if (!bytes) {
            return false;
        }
        if (l->n_bytes) {
            memcpy(bytes, l->bytes, l->n_bytes);
        }
        free(l->bytes);
        l->bytes = bytes;
        l->n_bytes_max = n;
    }
    return true;
}

struct cuda_line *cuda_step_line(struct cuda_step *step, uint32_t n_args, size_t bytes,
                                 uint32_t **offsets, uint8_t **values)
{
    struct list *l = &step->list;
    struct err err;
    size_t head = (size_t)round_up(n_args * sizeof **offsets, VALUES_ALIGN);
    size_t size = head + (size_t)round_up(bytes, VALUES_ALIGN);
    if (!list_grow(l, l->n + 1, l->n_bytes + size)) {
        (void)cuda_step_flush(step->c, &err); /* its error is the device's, and stays with it */
        step->collecting = false;
        collecting = NULL;
        return NULL;
    }
    struct cuda_line *line = &l->lines[l->n++];
    memset((void *)line, 0, sizeof *line);
    line->n_args = n_args;
    line->args_at = (uint32_t)l->n_bytes;
    line->bytes = (uint32_t)size;
    if (size > 0) { /* a turn of a slot has no values */
        memset(l->bytes + l->n_bytes, 0, size);
    }
    *offsets = (uint32_t *)(void *)(l->bytes + l->n_bytes);
    *values = l->bytes + l->n_bytes + head;
    l->n_bytes += size;
    return line;
}

bool cuda_step_turn(struct cuda_backend *c, struct cuda_slot *slot, const uint8_t *from,
                    uint64_t size)
{
    uint32_t *offsets;
    uint8_t *values;
    struct cuda_step *s = cuda_step_collecting(c->stream);
    struct cuda_line *line = s ? cuda_step_line(s, 0, 0, &offsets, &values) : NULL;
    if (line) {
        line->slot = slot;
        line->from = from;
        line->size = size;
    }
    return line;
}

/* What the runtime wants of a line; valid until the next. */
static cudaError_t params_of(struct cuda_step *s, const struct list *l,
                             const struct cuda_line *line, struct cudaKernelNodeParams *out)
{
    if (line->n_args > s->args_max) {
        void *args = realloc((void *)s->args, line->n_args * sizeof *s->args);
        if (!args) {
            return cudaErrorMemoryAllocation;
        }
        s->args = (void **)args;
        s->args_max = line->n_args;
    }
    const uint32_t *offsets = (const uint32_t *)(void *)(l->bytes + line->args_at);
    uint8_t *values = l->bytes + line->args_at +
                      round_up(line->n_args * sizeof *offsets, VALUES_ALIGN);
    for (uint32_t i = 0; i < line->n_args; i++) {
        s->args[i] = values + offsets[i];
    }
    struct cudaKernelNodeParams p = {};
    p.func = (void *)(uintptr_t)line->kernel;
    p.gridDim = line->grid;
    p.blockDim = line->block;
    p.sharedMemBytes = line->shared_bytes;
    p.kernelParams = s->args;
#if defined(HEARTH_EMULATED)
    p.bind = line->bind;
#endif
    *out = p;
    return cudaSuccess;
}

/* ---- graphs ---- */

static void kept_clear(struct kept *k)
{
    if (k->exec) {
        (void)cudaGraphExecDestroy(k->exec);
    }
    if (k->graph) {
        (void)cudaGraphDestroy(k->graph);
    }
    free(k->nodes);
    list_clear(&k->list);
    struct kept none = {};
    *k = none;
}

/* The kept step of this key, or the place of the one that was not used for longest, emptied for it. */
static struct kept *find_kept(struct cuda_step *s, uint64_t key)
{
    struct kept *oldest = &s->kept[0];
    for (struct kept &k : s->kept) {
        if (k.key == key) {
            return &k;
        }
        oldest = k.used < oldest->used ? &k : oldest;
    }
    kept_clear(oldest);
    oldest->key = key;
    return oldest;
}

/* What the next node comes behind, as the list is gone through. Kernels are a chain and copies are one; a kernel also waits for
 * the last copy that a turn before it asks for, a copy for the last kernel before it. */
struct behind {
    cudaGraphNode_t kernel, copy, wait; /* or NULL */
};

/* A kernel behind the end of the one before or, launched early, behind the moment at which that one lets it begin. */
static cudaError_t add_kernel(const struct kept *k, cudaGraphNode_t *node, const struct behind *at,
                              const struct cudaKernelNodeParams *p, bool early)
{
    cudaGraphNode_t after[2];
    size_t n = 0;
    if (at->wait) {
        after[n++] = at->wait;
    }
#if !defined(HEARTH_EMULATED)
    if (at->kernel && early) {
        cudaGraphEdgeData edge = {};
        edge.from_port = cudaGraphKernelNodePortProgrammatic;
        edge.type = cudaGraphDependencyTypeProgrammatic;
        cudaError_t rc = cudaGraphAddKernelNode(node, k->graph, after, n, p);
        return rc == cudaSuccess ? ADD_EDGE(k->graph, &at->kernel, node, &edge, 1) : rc;
    }
#endif
    (void)early;
    if (at->kernel) {
        after[n++] = at->kernel;
    }
    return cudaGraphAddKernelNode(node, k->graph, after, n, p);
}

static cudaError_t add_copy(const struct kept *k, cudaGraphNode_t *node, const struct behind *at,
                            const struct cuda_line *line)
{
    cudaGraphNode_t after[2];
    size_t n = 0;
    if (at->kernel) {
        after[n++] = at->kernel;
    }
    if (at->copy) {
        after[n++] = at->copy;
    }
    return cudaGraphAddMemcpyNode1D(node, k->graph, after, n, cuda_spill_place(line->slot),
                                    line->from, line->size, cudaMemcpyHostToDevice);
}

/* The copy that fills the slot of line i, which waits for it; NULL: it was before this list. */
static cudaGraphNode_t filler(const struct kept *k, uint32_t i)
{
    const struct cuda_line *lines = k->list.lines;
    for (uint32_t j = i; j-- > 0;) {
        if (lines[j].from && lines[j].slot == lines[i].slot) {
            return k->nodes[j];
        }
    }
    return NULL;
}

static cudaError_t make_graph(struct cuda_step *s, struct kept *k)
{
    const struct list *l = &k->list;
    struct cudaKernelNodeParams p;
    struct behind at = {};
    k->nodes = (cudaGraphNode_t *)calloc(l->n, sizeof *k->nodes);
    cudaError_t rc = k->nodes ? cudaGraphCreate(&k->graph, 0) : cudaErrorMemoryAllocation;
    for (uint32_t i = 0; rc == cudaSuccess && i < l->n; i++) {
        const struct cuda_line *line = &l->lines[i];
        if (line->kernel) {
            rc = params_of(s, l, line, &p);
            rc = rc == cudaSuccess ? add_kernel(k, &k->nodes[i], &at, &p, line->early) : rc;
            at.kernel = k->nodes[i];
            at.wait = NULL;
        } else if (line->from) {
            rc = add_copy(k, &k->nodes[i], &at, line);
            at.copy = k->nodes[i];
        } else if (filler(k, i)) {
            at.wait = filler(k, i);
        }
    }
    return rc == cudaSuccess ? cudaGraphInstantiate(&k->exec, k->graph, 0) : rc;
}

static bool same_kernels(const struct list *a, const struct list *b)
{
    if (a->n != b->n) {
        return false;
    }
    for (uint32_t i = 0; i < a->n; i++) {
        const struct cuda_line *p = &a->lines[i], *q = &b->lines[i];
        if (p->kernel != q->kernel || p->bytes != q->bytes || p->slot != q->slot ||
            !p->from != !q->from) {
            return false;
        }
    }
    return true;
}

static bool same_dim(dim3 a, dim3 b)
{
    return a.x == b.x && a.y == b.y && a.z == b.z;
}

static bool same_line(const struct list *a, const struct list *b, uint32_t i)
{
    const struct cuda_line *p = &a->lines[i], *q = &b->lines[i];
    return same_dim(p->grid, q->grid) && same_dim(p->block, q->block) &&
           p->shared_bytes == q->shared_bytes && p->from == q->from && p->size == q->size &&
           memcmp(a->bytes + p->args_at, b->bytes + q->args_at, p->bytes) == 0;
}

/* The graph's nodes say what the new list says. Values that only moved in unused bytes are set in vain. */
static cudaError_t set_nodes(struct cuda_step *s, struct kept *k)
{
    struct list *now = &s->list;
    cudaError_t rc = cudaSuccess;
    for (uint32_t i = 0; rc == cudaSuccess && i < now->n; i++) {
        struct cudaKernelNodeParams p;
        if (same_line(&k->list, now, i)) {
            continue;
        }
        const struct cuda_line *line = &now->lines[i];
        if (line->kernel) {
            rc = params_of(s, now, line, &p);
            rc = rc == cudaSuccess ? cudaGraphExecKernelNodeSetParams(k->exec, k->nodes[i], &p)
                                   : rc;
        } else {
            rc = cudaGraphExecMemcpyNodeSetParams1D(k->exec, k->nodes[i],
                                                    cuda_spill_place(line->slot), line->from,
                                                    line->size, cudaMemcpyHostToDevice);
        }
        s->counts.n_nodes_set++;
    }
    return rc;
}

/* ---- the end of a list ---- */

static cudaError_t launch_lines(struct cuda_step *s, const struct list *l)
{
    cudaError_t rc = cudaSuccess;
    for (uint32_t i = 0; rc == cudaSuccess && i < l->n; i++) {
        struct cudaKernelNodeParams p;
        if (!l->lines[i].kernel) {
            rc = cuda_spill_turn(s->c, l->lines[i].slot, l->lines[i].from, l->lines[i].size);
            continue;
        }
        rc = params_of(s, l, &l->lines[i], &p);
        if (rc == cudaSuccess) {
#if defined(HEARTH_EMULATED)
            rc = emulate_launch(p.gridDim, p.blockDim, p.sharedMemBytes, s->c->stream,
                                p.bind(p.func, p.kernelParams));
#else
            rc = cudaLaunchKernel(p.func, p.gridDim, p.blockDim, p.kernelParams, p.sharedMemBytes,
                                  s->c->stream);
#endif
        }
    }
    s->counts.n_plain++;
    return rc;
}

/* Puts the list into the kept step of its key, whose graph then says the same; without one (first of its kind, or not
 * to be had) the lines are to be launched. */
static struct kept *keep(struct cuda_step *s)
{
    struct kept *k = find_kept(s, s->key + s->segment);
    bool seen = k->list.n > 0 && same_kernels(&k->list, &s->list);
    cudaError_t rc = cudaSuccess;
    if (!seen) { /* it only warms up */
        uint64_t key = k->key;
        kept_clear(k);
        k->key = key;
    } else if (k->exec) {
        rc = set_nodes(s, k);
    }
    struct list old = k->list;
    k->list = s->list;
    s->list = old;
    k->used = ++s->clock;
    if (seen && !k->exec) {
        rc = make_graph(s, k);
        s->counts.n_graphs += rc == cudaSuccess;
    }
    if (cuda_is_fatal(rc)) {
        cuda_die(rc, "a step as a graph");
    }
    if (rc != cudaSuccess) {
        log_warn("cuda: a step as a graph: %s; steps are launched kernel by kernel",
                 cudaGetErrorString(rc));
        (void)cudaGetLastError(); /* told here */
        s->plain = true;
        if (k->exec) {
            (void)cudaGraphExecDestroy(k->exec);
            k->exec = NULL;
        }
    }
    return k;
}

int cuda_step_flush(struct cuda_backend *c, struct err *err)
{
    struct cuda_step *s = c->step;
    if (cuda_stage_send(c, err) < 0) {
        return -1;
    }
    if (!s || s->list.n == 0) {
        return 0;
    }
    const struct kept *k = s->plain ? NULL : keep(s);
    cudaError_t rc;
    if (k && k->exec) {
        rc = cuda_spill_join(c); /* turns of before, by hand */
        rc = rc == cudaSuccess ? cudaGraphLaunch(k->exec, c->stream) : rc;
        s->counts.n_launched++;
    } else {
        rc = launch_lines(s, k ? &k->list : &s->list);
    }
    s->list.n = 0;
    s->list.n_bytes = 0;
    s->segment++;
    return cuda_check(rc, "step", err);
}

int cuda_step_begin(struct backend *b, uint64_t key, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    struct cuda_step *s = c->step;
    (void)err;
    if (s->list.n > 0) { /* of a step that failed on its way */
        cuda_spill_forget(c);
    }
    s->list.n = 0;
    s->list.n_bytes = 0;
    s->key = key;
    s->segment = 0;
    s->collecting = key != 0;
    collecting = s->collecting ? s : NULL;
    c->blocks[c->block].n_picked = 0;
    return 0;
}

static void collect_no_more(struct cuda_step *s)
{
    if (s) {
        s->collecting = false;
        collecting = collecting == s ? NULL : collecting;
    }
}

int cuda_step_end(struct backend *b, struct err *err)
{
    int rc = cuda_finish(b, err);
    collect_no_more(cuda_of(b)->step);
    return rc;
}

int cuda_step_leave(struct backend *b, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    int rc = cuda_step_flush(c, err);
    collect_no_more(c->step);
    return rc < 0 ? -1 : cuda_block_leave(c, err);
}

/* ---- life ---- */

int cuda_step_create(struct cuda_backend *c, struct err *err)
{
    c->step = (struct cuda_step *)calloc(1, sizeof *c->step);
    if (!c->step) {
        return err_set(err, ERR_NO_MEMORY, "cuda: a step's list");
    }
    c->step->c = c;
    return 0;
}

void cuda_step_forget(struct cuda_backend *c)
{
    for (uint32_t i = 0; c->step && i < CUDA_STEPS_KEPT; i++) {
        kept_clear(&c->step->kept[i]);
    }
}

void cuda_step_destroy(struct cuda_backend *c)
{
    struct cuda_step *s = c->step;
    if (!s) {
        return;
    }
    collecting = collecting == s ? NULL : collecting;
    cuda_step_forget(c);
    list_clear(&s->list);
    free((void *)s->args);
    free(s);
    c->step = NULL;
}

struct cuda_step_counts cuda_step_counted(const struct backend *b)
{
    return ((const struct cuda_backend *)(const void *)b)->step->counts;
}
