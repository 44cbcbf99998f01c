/* Logits to tokens, as worker/sampler.c does it: the same token, as only integers are summed (worker/mass.h) and ties go to the
 * lower id. A block for each row. Bound by reading the row's logits (600 KB, from the second-level cache) a few times with one
 * multiprocessor: some 5 us each time, not measured.
 *
 * Everything is one question: of the candidates in their order (the likeliest first, then the lower id) which one is it at which
 * the sum of weights passes a mark? With weight 1 that is the last of the top k, with masses the last of the top p, and the
 * draw. An order is a number (`rank`: the logit's bits, turned, before the id), so the answer is found digit by digit, by
 * histograms of weights in shared memory. The first digit is the distance from the best in 64ths, over which logits spread
 * evenly, so that few threads add to one bin; as soon as all that can still matter fit into a list there, only that is read. */
#include "worker/cuda/vmath.cuh"

#include "worker/mass.h"

#define THREADS 512
#define BINS    2048
#define LISTED  1024
#define STEPS   6 /* of a rank: the distance, 11 + 11 + 10 bits of the logit, 11 + 11 of the id */
#define NOBODY  UINT64_MAX

static_assert(OP_PICK_CHANGES_MAX < THREADS, "a thread for each change, and one more");
static_assert(MASS_TOKENS_MAX == 1u << 22, "two digits of an id");

struct sample_args {
    float *logits;
    uint32_t stride;
    const struct op_pick *picks;
    const struct op_pick_change *changes;
    int32_t *fed;
    struct op_picked *picked;
};

/* The candidates of a row, and what the block shares about them. */
struct row {
    const float *logits;
    uint32_t n;
    float max;
    uint64_t last; /* ranks beyond it are out */
    bool listed;   /* those that count are in the block's list */
};

struct shared {
    unsigned long long weight[BINS];
    unsigned count[BINS];
    uint64_t list[LISTED];
    uint64_t part[THREADS], group[THREADS / WARP];
    unsigned n_list;
    /* of the digit that was found */
    unsigned bin, n_in_bin;
    unsigned n_before; /* up to and with the bin */
    uint64_t left;     /* of the mark inside of the bin */
    uint64_t found;
    bool flag;
};

/* ---- ranks ---- */

static __device__ uint64_t rank_of(float logit, uint32_t id)
{
    if (!(logit > -INFINITY)) {
        return NOBODY;
    }
    uint32_t bits = vmath_bits(logit + 0.0f); /* -0 is 0 */
    uint32_t up = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)~up << 32 | id;
}

static __device__ float logit_of(uint64_t rank)
{
    uint32_t up = ~(uint32_t)(rank >> 32);
    return vmath_of_bits(up >> 31 ? up & 0x7fffffffu : ~up);
}

static __device__ uint64_t candidate(const struct row *r, const struct shared *s, uint32_t i)
{
    uint64_t rank = r->listed ? s->list[i] : rank_of(r->logits[i], i);
    return rank <= r->last ? rank : NOBODY;
}

static __device__ uint32_t n_candidates(const struct row *r, const struct shared *s)
{
    return r->listed ? s->n_list : r->n;
}

static __device__ unsigned digit(const struct row *r, uint64_t rank, int step)
{
    switch (step) {
    case 0: {
        float far = (r->max - logit_of(rank)) * 64.0f;
        return far < BINS - 1 ? (unsigned)far : BINS - 1;
    }
    case 1:
        return (unsigned)(rank >> 53);
    case 2:
        return (unsigned)(rank >> 42) % 2048;
    case 3:
        return (unsigned)(rank >> 32) % 1024;
    case 4:
        return (unsigned)(rank >> 11) % 2048;
    default:
        return (unsigned)rank % 2048;
    }
}

/* ---- over the block ---- */

/* All threads call; the sum, or the smallest, of what they give. */
static __device__ uint64_t block_sum_of(struct shared *s, uint64_t v)
{
    unsigned t = threadIdx.x;
    s->part[t] = v;
    __syncthreads();
    if (t < THREADS / WARP) {
        uint64_t sum = 0;
        for (unsigned i = 0; i < WARP; i++) {
            sum += s->part[t * WARP + i];
        }
        s->group[t] = sum;
    }
    __syncthreads();
    uint64_t all = 0;
    for (unsigned i = 0; i < THREADS / WARP; i++) {
        all += s->group[i];
    }
    __syncthreads();
    return all;
}

static __device__ uint64_t block_least(struct shared *s, uint64_t v)
{
    unsigned t = threadIdx.x;
    s->part[t] = v;
    __syncthreads();
    if (t < THREADS / WARP) {
        uint64_t least = NOBODY;
        for (unsigned i = 0; i < WARP; i++) {
            least = s->part[t * WARP + i] < least ? s->part[t * WARP + i] : least;
        }
        s->group[t] = least;
    }
    __syncthreads();
    uint64_t least = NOBODY;
    for (unsigned i = 0; i < THREADS / WARP; i++) {
        least = s->group[i] < least ? s->group[i] : least;
    }
    __syncthreads();
    return least;
}

static __device__ uint64_t best_of(const struct row *r, struct shared *s)
{
    uint64_t least = NOBODY;
    for (uint32_t i = threadIdx.x; i < r->n; i += THREADS) {
        uint64_t rank = rank_of(r->logits[i], i);
        least = rank < least ? rank : least;
    }
    return block_least(s, least);
}

/* ---- a mark ---- */

/* What is asked of the sum of all weights: where the mark is. */
struct question {
    bool counted; /* weights are 1 */
    float scale;
    enum { FIRST_K, SHARE, DRAW } kind;
    uint64_t number; /* k, or the draw */
    double share;
};

static __device__ uint64_t mark_of(const struct question *q, uint64_t sum)
{
    switch (q->kind) {
    case question::FIRST_K:
        return q->number - 1;
    case question::SHARE:
        return mass_share(q->share, sum);
    default:
        return mass_mark(q->number, sum);
    }
}

/* Thread 0: the bin in which the sum of weights passes the mark. False when all of it does not. */
static __device__ bool find_bin(struct shared *s, const struct question *q, bool first)
{
    unsigned group = 0, part = 0, bin = 0;
    if (first) {
        uint64_t sum = 0;
        for (unsigned i = 0; i < THREADS / WARP; i++) {
            sum += s->group[i];
        }
        s->left = sum ? mark_of(q, sum) : 0;
        if (s->left >= sum) {
            return false;
        }
    }
    uint64_t left = s->left;
    while (left >= s->group[group]) {
        left -= s->group[group++];
    }
    for (part = group * WARP; left >= s->part[part]; part++) {
        left -= s->part[part];
    }
    for (bin = part * (BINS / THREADS); left >= s->weight[bin]; bin++) {
        left -= s->weight[bin];
    }
    s->left = left;
    s->bin = bin;
    s->n_in_bin = s->count[bin];
    return true;
}

/* The sums of the bins, and thread 0's answer for all. */
static __device__ bool choose_bin(struct shared *s, const struct question *q, bool first)
{
    unsigned t = threadIdx.x;
    uint64_t sum = 0;
    for (unsigned i = 0; i < BINS / THREADS; i++) {
        sum += s->weight[t * (BINS / THREADS) + i];
    }
    (void)block_sum_of(s, sum);
    if (t == 0) {
        s->flag = find_bin(s, q, first);
        s->n_before = 0;
    }
    __syncthreads();
    bool found = s->flag;
    unsigned n = 0;
    for (unsigned i = 0; i < BINS / THREADS; i++) {
        n += t * (BINS / THREADS) + i <= s->bin ? s->count[t * (BINS / THREADS) + i] : 0;
    }
    if (found && n > 0) {
        atomicAdd(&s->n_before, n);
    }
    __syncthreads();
    return found;
}

/* All candidates up to the bin of the first digit into the list. */
static __device__ void make_list(struct row *r, struct shared *s)
{
    if (threadIdx.x == 0) {
        s->n_list = 0;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < r->n; i += THREADS) {
        uint64_t rank = candidate(r, s, i);
        if (rank != NOBODY && digit(r, rank, 0) <= s->bin) {
            s->list[atomicAdd(&s->n_list, 1u)] = rank;
        }
    }
    __syncthreads();
    r->listed = true;
}

/* Whether a rank has the digits that were found so far; above: the last of them as a prefix of the rank, from step 1 on. */
struct path {
    unsigned far;
    int shift;
    uint64_t above;
    int n; /* digits */
};

static __device__ bool on_path(const struct row *r, const struct path *p, uint64_t rank)
{
    return rank != NOBODY && (p->n < 1 || digit(r, rank, 0) == p->far) &&
           (p->n < 2 || rank >> p->shift == p->above);
}

/* The rank at which the sum of weights passes the mark; NOBODY when all of it does not. */
static __device__ uint64_t passes(struct row *r, struct shared *s, const struct question *q)
{
    const int shifts[STEPS] = { 64, 53, 42, 32, 11, 0 };
    struct path path = { 0, 0, 0, 0 };
    for (int step = 0; step < STEPS; step++) {
        for (unsigned i = threadIdx.x; i < BINS; i += THREADS) {
            s->weight[i] = 0;
            s->count[i] = 0;
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x, n = n_candidates(r, s); i < n; i += THREADS) {
            uint64_t rank = candidate(r, s, i);
            if (on_path(r, &path, rank)) {
                unsigned d = digit(r, rank, step);
                uint64_t w = q->counted ? 1 : mass_of(logit_of(rank) - r->max, q->scale);
                atomicAdd(&s->weight[d], (unsigned long long)w);
                atomicAdd(&s->count[d], 1u);
            }
        }
        __syncthreads();
        if (!choose_bin(s, q, step == 0)) {
            return NOBODY;
        }
        if (step == 0) {
            path.far = s->bin;
            if (!r->listed && s->n_before <= LISTED) {
                make_list(r, s);
            }
        } else {
            path.shift = shifts[step];
            path.above = step == 1   ? s->bin
                         : step == 3 ? path.above << 10 | s->bin
                         : step == 4 ? path.above << 21 | s->bin
                                     : path.above << 11 | s->bin;
        }
        path.n = step + 1;
        bool alone = s->n_in_bin == 1;
        __syncthreads();
        if (alone) {
            break;
        }
    }
    for (uint32_t i = threadIdx.x, n = n_candidates(r, s); i < n; i += THREADS) {
        uint64_t rank = candidate(r, s, i);
        if (on_path(r, &path, rank)) {
            s->found = rank;
        }
    }
    __syncthreads();
    uint64_t found = s->found;
    __syncthreads();
    return found;
}

/* ---- a row ---- */

static __device__ float penalised(const struct op_pick *p, float logit, uint32_t count)
{
    if (count == 0) {
        return logit;
    }
    float l = logit > 0 ? logit / p->repeat : logit * p->repeat;
    l -= (float)count * p->frequency + p->presence;
    return isnan(l) ? -INFINITY : l;
}

/* Biases and penalties into the row. False when a logit is no number to go on with, as the host sees it before penalties. */
static __device__ bool change(const struct sample_args &a, const struct op_pick *p, float *logits,
                              struct shared *s, struct op_picked *was, uint32_t *changed)
{
    unsigned t = threadIdx.x;
    int32_t follows = p->follows ? a.fed[p->slot] : -1;
    if (t == 0) {
        s->flag = true;     /* the last token stands in no change */
        s->n_in_bin = 0;    /* infinite ones */
    }
    __syncthreads();
    *changed = UINT32_MAX;
    if (t < p->n_changes) {
        const struct op_pick_change *c = &a.changes[p->first_change + t];
        uint32_t id = (uint32_t)c->token;
        was->logit = logits[id];
        float l = was->logit + c->add;
        *changed = id;
        if (isinf(l) && l > 0) {
            atomicAdd(&s->n_in_bin, 1u);
        }
        logits[id] = penalised(p, l, c->count + (c->token == follows ? 1 : 0));
        if (c->token == follows) {
            s->flag = false;
        }
    }
    __syncthreads();
    if (t == THREADS - 1 && s->flag && follows >= 0 && (uint32_t)follows < p->n_ids) {
        float l = logits[follows];
        was->logit = l;
        *changed = (uint32_t)follows;
        if (isinf(l) && l > 0) {
            atomicAdd(&s->n_in_bin, 1u);
        }
        logits[follows] = penalised(p, l, 1);
    }
    __syncthreads();
    bool fine = s->n_in_bin == 0;
    __syncthreads();
    return fine;
}

/* The smallest rank that min-p refuses, less one. */
static __device__ uint64_t reach_of(float max, double below)
{
    double least = (double)max + below;
    float l = (float)least;
    l = (double)l < least ? nextafterf(l, INFINITY) : l;
    return rank_of(l, UINT32_MAX);
}

static __device__ void filter(struct row *r, struct shared *s, const struct op_pick_filter *f)
{
    uint64_t last = NOBODY;
    if (f->kind == OP_PICK_MIN_P) {
        last = reach_of(r->max, f->value);
    } else if (f->kind == OP_PICK_TOP_K) {
        const struct question q = { true, 1.0f, question::FIRST_K, (uint64_t)f->value, 0.0 };
        last = passes(r, s, &q);
    } else {
        const struct question q = { false, f->scale, question::SHARE, 0, f->value };
        last = passes(r, s, &q);
    }
    r->last = last < r->last ? last : r->last;
}

static __global__ void sample_kernel(struct sample_args a)
{
    __shared__ struct shared shared;
    __shared__ float was_chosen;
    struct shared *s = &shared;
    const struct op_pick *p = &a.picks[blockIdx.x];
    float *logits = a.logits + (uint64_t)p->row * a.stride;
    struct row r = { logits, p->n_ids, 0.0f, NOBODY - 1, false };
    struct op_picked out = { -1, 0.0f, 0.0f, 0 }, was = out;
    uint32_t changed;
    if (p->weigh) {
        uint64_t sum = 0;
        out.max = logit_of(best_of(&r, s));
        for (uint32_t i = threadIdx.x; i < r.n; i += THREADS) {
            sum += logits[i] > -INFINITY ? mass_of(logits[i] - out.max, 1.0f) : 0;
        }
        out.mass = block_sum_of(s, sum);
    }
    bool fine = change(a, p, logits, s, &was, &changed);
    uint64_t best = best_of(&r, s), chosen = best;
    r.max = logit_of(best);
    fine = fine && best != NOBODY && isfinite(r.max);
    if (fine && !p->greedy) {
        for (uint32_t i = 0; i < p->n_filters; i++) {
            filter(&r, s, &p->filters[i]);
        }
        const struct question q = { false, p->scale, question::DRAW, p->draw, 0.0 };
        chosen = passes(&r, s, &q);
    }
    uint32_t id = (uint32_t)chosen;
    if (threadIdx.x == 0 && fine) {
        was_chosen = logits[id];
    }
    __syncthreads();
    if (fine && changed == id) {
        was_chosen = was.logit;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        out.token = fine ? (int32_t)id : -1;
        out.logit = fine ? was_chosen : 0.0f;
        a.picked[blockIdx.x] = out;
        a.fed[p->slot] = out.token;
    }
}

int cuda_sample(struct backend *b, const struct op_sample *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    cuda_forget(c);
    if (op->n_rows == 0) {
        return 0;
    }
    if (op->n_rows > OP_PICK_ROWS_MAX) {
        return err_set(err, ERR_NO_FIT, "cuda: tokens of %u rows at once", op->n_rows);
    }
    if (c->blocks[c->block].n_picked + op->n_rows > OP_PICK_ROWS_MAX && cuda_finish(b, err) < 0) {
        return -1;
    }
    struct cuda_block *block = &c->blocks[c->block];
    struct sample_args a = { op->logits, op->stride, NULL, NULL, op->fed,
                             block->picked + block->n_picked };
    a.picks = (const struct op_pick *)cuda_stage(c, op->picks, op->n_rows * sizeof *op->picks, err);
    if (op->n_changes > 0) {
        a.changes = (const struct op_pick_change *)cuda_stage(
            c, op->changes, op->n_changes * sizeof *op->changes, err);
    }
    if (!a.picks || (op->n_changes > 0 && !a.changes)) {
        return -1;
    }
    for (uint32_t i = 0; i < op->n_rows; i++) {
        block->to[block->n_picked++] = &op->picked[i];
    }
    LAUNCH(sample_kernel, op->n_rows, THREADS, 0, c->stream, a);
    return cuda_launched("sample", err);
}
