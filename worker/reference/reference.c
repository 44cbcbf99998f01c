#include "worker/reference/reference.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/chain.h"

/* Links stand where the first attention layer's keys of a position would: a worker that takes over state pages finds them, or
 * does not, as it would find keys. What flows from op to op are the three arrays, one entry a row of the step. */
struct reference {
    struct backend base;
    struct backend *cpu; /* owned: memory and imports are its */
    uint32_t rows_max;
    int32_t *ids;     /* [rows_max] what was embedded */
    uint64_t *links;  /* [rows_max] made by kv_store */
    uint64_t *picked; /* [rows_max] the rows whose logits are wanted */
    uint32_t n_ids;
    uint64_t row_ns, due_ns; /* pace: 0 is none */
};

static struct reference *of(struct backend *b)
{
    return (struct reference *)b; /* base is its first member */
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Time that was not used is not made up for. */
static void keep_pace(struct reference *r, uint32_t n_rows)
{
    if (r->row_ns == 0) {
        return;
    }
    uint64_t now = now_ns();
    r->due_ns = (r->due_ns > now ? r->due_ns : now) + n_rows * r->row_ns;
    struct timespec until = { .tv_sec = (time_t)(r->due_ns / 1000000000),
                              .tv_nsec = (long)(r->due_ns % 1000000000) };
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
    }
}

/* ---- ops with a meaning ---- */

static int embed(struct backend *b, const struct op_embed *op, struct err *err)
{
    struct reference *r = of(b);
    (void)err;
    if (strcmp(op->w->name, "token_embd.weight") == 0) { /* others embed types and positions */
        memcpy(r->ids, op->ids, op->n_rows * sizeof *r->ids);
        r->n_ids = op->n_rows;
        keep_pace(r, op->n_rows);
    }
    return 0;
}

static uint8_t *link_at(const struct op_kv_store *op, const struct kv_row *row, int64_t pos)
{
    const struct kv_layer *l = &op->layout->layer[op->layer];
    uint8_t *page = op->page_base +
                    (uint64_t)row->pages[pos / KV_PAGE_TOKENS] * op->layout->page_bytes;
    return kv_k_tile(l, page, 0, (uint32_t)(pos % KV_PAGE_TOKENS)) +
           (uint64_t)(pos % KV_TILE) * sizeof(uint64_t);
}

static uint64_t read_link(const struct op_kv_store *op, const struct kv_row *row, uint64_t pos)
{
    uint64_t link;
    memcpy(&link, link_at(op, row, (int64_t)pos), sizeof link);
    return link;
}

static int kv_store(struct backend *b, const struct op_kv_store *op, struct err *err)
{
    struct reference *r = of(b);
    const struct kv_layout *layout = op->layout;
    for (uint32_t i = 0; i < op->layer; i++) {
        if (layout->layer[i].k_dim) {
            return 0; /* the first one that keeps keys has been here */
        }
    }
    if (layout->layer[op->layer].k_row_bytes < sizeof(uint64_t) || op->n_rows != r->n_ids) {
        return err_set(err, ERR_UNSUPPORTED,
                       "a model without room for links, or with strange rows");
    }
    for (uint32_t i = 0; i < op->n_rows; i++) {
        const struct kv_row *row = &op->rows[i];
        uint64_t last = CHAIN_SEED, older = 0, pos = (uint64_t)row->pos;
        if (pos > 0) {
            last = read_link(op, row, pos - 1);
            older = read_link(op, row, chain_older(last, pos));
        }
        r->links[i] = chain_link(last, older, r->ids[i]);
        memcpy(link_at(op, row, row->pos), &r->links[i], sizeof r->links[i]);
    }
    return 0;
}

static int gather(struct backend *b, const struct op_gather *op, struct err *err)
{
    struct reference *r = of(b);
    (void)err;
    for (uint32_t i = 0; i < op->n_rows && i < r->rows_max; i++) {
        r->picked[i] = op->index[i] < r->n_ids ? r->links[op->index[i]] : 0;
    }
    return 0;
}

/* Logits: all but one are low. */
static int matmul(struct backend *b, const struct op_matmul *op, struct err *err)
{
    struct reference *r = of(b);
    const struct op_product *p = &op->products[0];
    if (strcmp(p->w->name, "output.weight") != 0 && strcmp(p->w->name, "token_embd.weight") != 0) {
        return 0;
    }
    if (p->w->m < CHAIN_FIRST + CHAIN_IDS) {
        return err_set(err, ERR_UNSUPPORTED, "a vocabulary of %u; device reference wants %u",
                       p->w->m, CHAIN_FIRST + CHAIN_IDS);
    }
    for (uint32_t i = 0; i < op->n_rows; i++) {
        float *row = p->y + (size_t)i * p->y_stride;
        memset(row, 0, p->w->m * sizeof *row);
        row[chain_id(r->picked[i])] = 100.0f;
    }
    return 0;
}

/* ---- ops without one ---- */

#define NOTHING(op)                                                                                \
    static int op(struct backend *b, const struct op_##op *what, struct err *err)                  \
    {                                                                                              \
        (void)b, (void)what, (void)err;                                                            \
        return 0;                                                                                  \
    }
NOTHING(norm)
NOTHING(matmul_experts)
NOTHING(rope_table)
NOTHING(rope)
NOTHING(attention)
NOTHING(act)
NOTHING(moe_route)
NOTHING(moe_sum)
NOTHING(add)
NOTHING(delta_net)

static int check_matrix(struct backend *b, const struct matrix *w, struct err *err)
{
    (void)b, (void)w, (void)err;
    return 0;
}

static int check_kv(struct backend *b, enum dtype k_type, enum dtype v_type, struct err *err)
{
    (void)b, (void)k_type, (void)v_type, (void)err;
    return 0;
}

/* ---- memory ---- */

static int import(struct backend *b, const struct weights_tensor *t, struct matrix *m,
                  struct err *err)
{
    return of(b)->cpu->ops->import(of(b)->cpu, t, m, err);
}

static void *alloc(struct backend *b, size_t size_bytes, struct err *err)
{
    return of(b)->cpu->ops->alloc(of(b)->cpu, size_bytes, err);
}

static void release(struct backend *b, void *memory)
{
    of(b)->cpu->ops->free(of(b)->cpu, memory);
}

static int upload(struct backend *b, void *device, const void *host, size_t size_bytes,
                  struct err *err)
{
    return of(b)->cpu->ops->upload(of(b)->cpu, device, host, size_bytes, err);
}

static int download(struct backend *b, void *host, const void *device, size_t size_bytes,
                    struct err *err)
{
    return of(b)->cpu->ops->download(of(b)->cpu, host, device, size_bytes, err);
}

static int reserve(struct backend *b, const struct backend_limits *limits, struct err *err)
{
    struct reference *r = of(b);
    if (limits->max_rows <= r->rows_max) {
        return 0;
    }
    free(r->ids);
    free(r->links);
    free(r->picked);
    r->rows_max = limits->max_rows;
    r->ids = calloc(r->rows_max, sizeof *r->ids);
    r->links = calloc(r->rows_max, sizeof *r->links);
    r->picked = calloc(r->rows_max, sizeof *r->picked);
    if (!r->ids || !r->links || !r->picked) {
        r->rows_max = 0;
        return err_set(err, ERR_NO_MEMORY, "no memory for steps of %u rows", limits->max_rows);
    }
    return 0;
}

static void close_reference(struct backend *b)
{
    struct reference *r = of(b);
    backend_close(&r->cpu);
    free(r->ids);
    free(r->links);
    free(r->picked);
    free(r);
}

static const struct backend_ops ops = {
    .embed = embed,
    .norm = norm,
    .matmul = matmul,
    .matmul_experts = matmul_experts,
    .rope_table = rope_table,
    .rope = rope,
    .kv_store = kv_store,
    .attention = attention,
    .act = act,
    .moe_route = moe_route,
    .moe_sum = moe_sum,
    .add = add,
    .gather = gather,
    .delta_net = delta_net,
    .check_matrix = check_matrix,
    .check_kv = check_kv,
    .import = import,
    .reserve = reserve,
    .alloc = alloc,
    .free = release,
    .upload = upload,
    .download = download,
    .close = close_reference,
};

struct backend *reference_open(const char *name, const struct backend_options *options,
                               struct err *err)
{
    unsigned rate = 0;
    char end;
    if (strchr(name, ':') &&
        (sscanf(name, "reference:%u%c", &rate, &end) != 1 || rate < REFERENCE_RATE_MIN)) {
        err_set(err, ERR_USAGE, "device %s: reference, or reference:RATE of %u or more", name,
                REFERENCE_RATE_MIN);
        return NULL;
    }
    struct reference *r = calloc(1, sizeof *r);
    if (!r) {
        err_set(err, ERR_NO_MEMORY, "reference device");
        return NULL;
    }
    const struct backend_options one = { .exact = options->exact, .n_threads = 1 };
    r->base = (struct backend){ .ops = &ops, .name = "reference", .exact = options->exact };
    r->row_ns = rate ? 1000000000u / rate : 0;
    r->cpu = backend_open("cpu", &one, err);
    if (!r->cpu) {
        free(r);
        return NULL;
    }
    return &r->base;
}
