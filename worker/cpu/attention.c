/* Keys, values and attention of the default path: what is stored how, and an op of attention made a job (attention_job.h) for
 * the team.
 *
 * In a page (backend.h): K of f32, f16, bf16 is [k_dim][16 keys], K of q8_0, q4_0 stands like 16 rows of weights
 * (proto/rows16.h), a key for a row: so both are a group of 16 rows and scores are matmul's products with the
 * queries as columns (q8_0, q4_0: queries as int8 per 32, dims padded with zeros). V is position after position, each a
 * row of its type. */
#include <assert.h>
#include <string.h>

#include "proto/bytes.h"
#include "proto/rows16.h"
#include "worker/cpu/attention_job.h"
#include "worker/cpu/team.h"
#include "worker/quant.h"

static_assert(KV_SPAN % KV_PAGE_TOKENS == 0, "spans are whole pages");

#define TURNS                                                                                      \
    4 /* items, or spans of items, that every member should have before key heads are bundled */
#define SLOTS_PER_MEMBER 8 /* partial results of spans that wait to be merged */

static const struct attention_kernels *kernels_of(const struct cpu_backend *c)
{
#if defined(__x86_64__)
    static const struct attention_kernels *const table[] = {
        [CPU_ISA_PORTABLE] = &attention_portable,
        [CPU_ISA_AVX2] = &attention_avx2,
        [CPU_ISA_AVX512] = &attention_avx512,
    };
    return table[c->isa];
#else
    (void)c;
    return &attention_portable;
#endif
}

int cpu_attention_check(struct backend *b, enum dtype k_type, enum dtype v_type, struct err *err)
{
    (void)b;
    const enum dtype types[2] = { k_type, v_type };
    for (int i = 0; i < 2; i++) {
        if (!quant_can_encode(types[i])) {
            return err_set(err, ERR_UNSUPPORTED, "KV type %s: f32, f16, bf16, q8_0 or q4_0",
                           dtype_get(types[i])->name);
        }
    }
    return 0;
}

/* ---- store ---- */

/* One row to blocks, its last block padded with zeros. blocks: as many bytes as the padded row has. */
static void encode_row(enum dtype dtype, const float *x, uint32_t n, float *pad, uint8_t *blocks)
{
    uint32_t wide = attention_padded(dtype, n);
    if (wide > n) {
        memcpy(pad, x, n * sizeof *x);
        memset(pad + n, 0, (wide - n) * sizeof *x);
        x = pad;
    }
    quant_encode(dtype, x, wide, blocks, NULL);
}

int cpu_kv_store(struct backend *b, const struct op_kv_store *op, struct err *err)
{
    struct cpu_backend *c = cpu_of(b);
    const struct kv_layer *l = &op->layout->layer[op->layer];
    enum dtype k_type = op->layout->k_type, v_type = op->layout->v_type;
    uint32_t dim = l->k_dim > l->v_dim ? l->k_dim : l->v_dim;
    float *pad = (float *)(void *)c->scratch;
    uint8_t *blocks = (uint8_t *)(pad + align_up(dim, 32));
    if (align_up(dim, 32) * 2 * sizeof(float) > c->scratch_bytes) {
        return err_set(err, ERR_NO_FIT, "kv_store: heads of %u values", dim);
    }
    if (backend_before_store(b, op, err) < 0) {
        return -1;
    }
    for (uint32_t i = 0; i < op->n_rows; i++) {
        const struct kv_row *row = &op->rows[i];
        uint32_t at = (uint32_t)(row->pos % KV_PAGE_TOKENS), lane = at % KV_TILE;
        uint8_t *page = op->page_base +
                        row->pages[row->pos / KV_PAGE_TOKENS] * op->layout->page_bytes;
        for (uint32_t h = 0; h < l->n_kv_heads; h++) {
            const float *k = op->k + (size_t)i * op->k_stride + (size_t)h * l->k_dim;
            const float *v = op->v + (size_t)i * op->v_stride + (size_t)h * l->v_dim;
            encode_row(k_type, k, l->k_dim, pad, blocks);
            rows16_put_row(k_type, kv_k_tile(l, page, h, at), l->k_row_bytes, lane, blocks);
            encode_row(v_type, v, l->v_dim, pad, kv_v_tile(l, page, h, at) + lane * l->v_row_bytes);
        }
    }
    return 0;
}

/* ---- attention ---- */

size_t cpu_attention_scratch(const struct backend_limits *l, uint32_t n_threads)
{
    size_t k_pad = align_up(l->max_k_dim, 32), v_pad = align_up(l->max_v_dim, 32);
    size_t store = (k_pad > v_pad ? k_pad : v_pad) * 2 * sizeof(float);
    size_t slots = (size_t)n_threads * (SLOTS_PER_MEMBER + 2);
    return store + n_threads * attention_member_bytes(k_pad, v_pad) +
           slots * attention_partial_bytes(v_pad) +
           align_up(l->max_rows * sizeof(struct block), 64);
}

/* Rows of one sequence that stand side by side, up to max_rows a block. */
static uint32_t cut_blocks(const struct op_attention *op, uint32_t max_rows, struct block *blocks)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < op->n_rows; i++) {
        struct block *last = n ? &blocks[n - 1] : NULL;
        if (last && last->n_rows < max_rows && op->rows[i].pages == op->rows[last->row0].pages) {
            last->n_rows++;
        } else {
            blocks[n++] = (struct block){ i, 1 };
        }
    }
    return n;
}

/* Key heads of an item, as many as give every thread some turns. The keys of a page stand head by head: one head's are too short a
 * piece to be read fast, all heads' are not. */
static uint32_t bundle(const struct job *job, uint32_t n_threads)
{
    uint32_t n_rows = 1, heads = job->layer->n_kv_heads;
    int64_t longest = 0;
    for (uint32_t i = 0; i < job->n_blocks; i++) {
        n_rows = job->blocks[i].n_rows > n_rows ? job->blocks[i].n_rows : n_rows;
    }
    for (uint32_t i = 0; i < job->op->n_rows; i++) {
        const struct kv_row *row = &job->op->rows[i];
        int64_t n = row->end_pos - attention_row_lo(job->op, row);
        longest = n > longest ? n : longest;
    }
    for (uint32_t n = ATTENTION_COLS / (job->n_heads_item * n_rows); n > 1; n--) {
        size_t items = (size_t)job->n_blocks * (heads / n);
        size_t turns = items < 2 * (size_t)n_threads ? items * (size_t)(longest / KV_SPAN) : items;
        if (heads % n == 0 && job->n_chunks == 1 && turns >= TURNS * (size_t)n_threads) {
            return n;
        }
    }
    return 1;
}

static void run_waves(struct cpu_backend *c, struct job *job, size_t n_slots)
{
    int64_t lo = INT64_MAX, hi = 0;
    for (size_t i = 0; i < job->n_items; i++) {
        struct item it = attention_item(job, i);
        int64_t from, to;
        attention_range(job, &it, &from, &to);
        lo = from < lo ? from : lo;
        hi = to > hi ? to : hi;
        attention_clear((void *)(job->totals + i * job->partial_bytes), it.n_cols, job->v_pad);
    }
    int64_t first = lo / KV_SPAN, end = (hi + KV_SPAN - 1) / KV_SPAN,
            wave = (int64_t)(n_slots / job->n_items);
    for (int64_t s = first; s < end; s += wave) {
        job->span0 = s;
        job->n_spans = end - s < wave ? end - s : wave;
        team_run(c->team, attention_run_spans, job, job->n_items * (size_t)job->n_spans, 1);
        attention_merge(job);
    }
    for (size_t i = 0; i < job->n_items; i++) {
        struct item it = attention_item(job, i);
        attention_finish(job, &it, (void *)(job->totals + i * job->partial_bytes));
    }
}

int cpu_attention(struct backend *b, const struct op_attention *op, struct err *err)
{
    struct cpu_backend *c = cpu_of(b);
    const struct kv_layer *l = &op->layout->layer[op->layer];
    uint32_t group = op->n_heads / l->n_kv_heads;
    struct job job = { .op = op,
                       .layer = l,
                       .kernels = kernels_of(c),
                       .products = matmul_kernels_of((int)c->isa),
                       .k_pad = (uint32_t)align_up(l->k_dim, 32),
                       .v_pad = (uint32_t)align_up(l->v_dim, 32) };
    if (op->n_rows == 0) {
        return 0;
    }
    job.n_heads_item = group < ATTENTION_COLS ? group : ATTENTION_COLS;
    job.n_chunks = (group + job.n_heads_item - 1) / job.n_heads_item;
    job.member_bytes = attention_member_bytes(job.k_pad, job.v_pad);
    job.partial_bytes = attention_partial_bytes(job.v_pad);
    uint8_t *at = c->scratch;
    size_t n_slots = (size_t)c->n_threads * SLOTS_PER_MEMBER;
    job.blocks = cpu_carve(&at, op->n_rows * sizeof *job.blocks);
    job.members = cpu_carve(&at, c->n_threads * job.member_bytes);
    job.slots = cpu_carve(&at, n_slots * job.partial_bytes);
    job.totals = cpu_carve(&at, 2 * (size_t)c->n_threads * job.partial_bytes);
    if ((size_t)(at - c->scratch) > c->scratch_bytes) {
        return err_set(err, ERR_NO_FIT, "attention: %zu bytes of scratch, %zu reserved",
                       (size_t)(at - c->scratch), c->scratch_bytes);
    }
    job.n_blocks = cut_blocks(op, ATTENTION_COLS / job.n_heads_item, job.blocks);
    job.n_kv_item = bundle(&job, c->n_threads);
    job.n_items = (size_t)job.n_blocks * job.n_chunks * (l->n_kv_heads / job.n_kv_item);
    if (c->n_threads > 1 && job.n_items < 2 * (size_t)c->n_threads) {
        run_waves(c, &job, n_slots);
    } else {
        team_run(c->team, attention_run_items, &job, job.n_items, 1);
    }
    return 0;
}
