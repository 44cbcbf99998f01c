/* Attention on tensor cores (m16n8k16, f16 in, f32 out), decode and prefill by the same steps.
 *
 * A warp takes 16 query rows that read the same keys: the heads of a group at one position (decode: a page is read once for
 * the group), or of several positions of a sequence (prefill). A row of the product depends on that row alone, so
 * who sits beside it changes no bit; a page that a row may not see fades it by 1 and adds 0.
 *
 * Operands come from pages straight to registers. K stands component-major and V position-major, and both times the product
 * sums over the slower index, so a lane loads words of two neighbours from four lines, whole sectors, and two prmt make
 * fragments of two tiles of columns: even keys (dims) and odd ones. With keys 4 t .. 4 t + 3 in lane t the scores leave the
 * first product where the second wants its left operand. Queries and probabilities are split in two f16 (22 bits): the tensor
 * cores are idle in decode, and results stay within 1e-5 of the CPU's f32. Quantised K and V are widened to f16.
 * Decode is bound by reading pages; prefill by the products, twice for the split.
 *
 * Heads beyond 128 values (up to 576 and 512: latent attention) are shared by the warps of a block: each computes the scores of some
 * of a page's tiles, all of them meet in shared memory, and each has 128 of the values. The sums are the same in the same order.
 *
 * Pages are asked for ahead, to L2, by one instruction of one thread (sm_90 and later): values while keys are multiplied, the next
 * page's keys while values are. Half a page of one head is 16 KiB for 128 values of f16: the warps that a device can hold have 25 to 33 MB
 * under way, a third of a 5090's L2, half of an H200's, so asking further ahead would push out what others asked for. Long contexts of few
 * sequences gain, where warps are few: 32k and 8 key heads are 512 spans, three warps a multiprocessor, whose own loads are 2 KiB
 * each, 1 MB together, and a 5090 wants 1.2. A ring in shared memory (cp.async) has no room: queries take 8 KiB a warp. */
#include <stdlib.h>

#include "worker/cuda/pages.cuh"

#define ROWS     16 /* of a warp */
#define TILES    (KV_PAGE_TOKENS / KV_TILE)
#define SCORES   (TILES * 8 * WARP) /* of a page: 16 rows x 64 keys */
#define HALF_TOP 65504.0f
#define K_MAX    576 /* of a head: queries in 36 KiB of shared memory */
#define V_MAX    512
/* Heads up to so many values of both sides are a warp's or two warps' own; totals then stand in shared memory, else in registers. */
#define K_SMALL              256
#define TOTALS_SHARED(parts) ((parts) < 4)
/* Warps of a multiprocessor: what queries leave of 100 KiB of shared memory (a block costs 1 KiB more), or registers: 168 a thread
 * for one warp, else 255. */
#define WARPS(parts) ((parts) > 1 ? 8 : 12)

static __device__ __forceinline__ uint32_t lane_id(void)
{
    return threadIdx.x % WARP;
}

/* Which of the warps that share rows. */
template <uint32_t PARTS> static __device__ __forceinline__ uint32_t part_of(void)
{
    return PARTS == 1 ? 0 : threadIdx.x / WARP;
}

struct task {
    uint32_t row, n; /* first of n rows of one sequence */
};

/* ---- fragments ---- */

/* Two values as f16, and what is left of them. */
static __device__ __forceinline__ void split_halves(float x, float y, uint32_t *high, uint32_t *low)
{
    float tops[2] = { x, y };
    for (int i = 0; i < 2; i++) { /* NaN stays */
        tops[i] = tops[i] > HALF_TOP ? HALF_TOP : tops[i] < -HALF_TOP ? -HALF_TOP : tops[i];
    }
    *high = ptx_f16x2(tops[0], tops[1]);
    *low = ptx_f16x2(x - ptx_f32_of_f16(*high & 0xffff), y - ptx_f32_of_f16(*high >> 16));
}

static __device__ __forceinline__ float code8(uint32_t w, uint32_t i)
{
    return (float)(int8_t)(w >> (8 * i));
}

static __device__ __forceinline__ float code4(uint32_t w, uint32_t i)
{
    return (float)((int)((w >> (8 * i)) & 15) - 8);
}

/* Lines of two neighbours (words w[i], line i) to the right operands of both: b[n] of neighbour n. */
static __device__ __forceinline__ void turn(const uint32_t w[4], uint32_t b[2][2])
{
    b[0][0] = ptx_prmt(w[0], w[1], 0x5410);
    b[0][1] = ptx_prmt(w[2], w[3], 0x5410);
    b[1][0] = ptx_prmt(w[0], w[1], 0x7632);
    b[1][1] = ptx_prmt(w[2], w[3], 0x7632);
}

/* Components 16 step .. of a tile of 16 keys; b[n]: keys of number 2 g + n. */
static __device__ __forceinline__ void
key_fragments(const struct page_side *side, const uint8_t *tile, uint32_t step, uint32_t b[2][2])
{
    uint32_t g = lane_id() / 4, t = threadIdx.x % 4;
    if (side->type == DTYPE_F16) {
        uint32_t w[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t j = 16 * step + 4 * t + i;
            w[i] = j < side->dim ? get32(tile + (j * KV_TILE + 2 * g) * 2) : 0;
        }
        turn(w, b);
        return;
    }
    bool bytes = side->type == DTYPE_Q8_0;
    const uint8_t *block = tile + step / 2 * (KV_TILE * (bytes ? 34 : 18));
    uint32_t scales = get32(block + 4 * g), piece = bytes ? step % 2 * 4 + t : t;
#pragma unroll
    for (uint32_t n = 0; n < 2; n++) {
        float d = n == 0 ? low_half(scales) : high_half(scales), v[4];
        uint32_t w = get32(block + 2 * KV_TILE + (piece * KV_TILE + 2 * g + n) * 4);
        w = bytes ? w ^ 0x80808080u : w >> (step % 2 * 4);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            v[i] = d * (bytes ? code8(w, i) : code4(w, i));
        }
        b[n][0] = ptx_f16x2(v[0], v[1]);
        b[n][1] = ptx_f16x2(v[2], v[3]);
    }
}

/* Values 16 group .. at the 16 positions of a tile; b[n]: dims 2 g + n. Positions outside lo .. hi - 1 of the tile count as
 * zeros: nothing may have been written there. */
static __device__ __forceinline__ void value_fragments(const struct page_side *side,
                                                       const uint8_t *tile, uint32_t group,
                                                       int32_t lo, int32_t hi, uint32_t b[2][2])
{
    uint32_t g = lane_id() / 4, t = threadIdx.x % 4, w[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        int32_t at = (int32_t)(4 * t + i);
        const uint8_t *row = tile + (uint32_t)at * side->row_bytes;
        w[i] = 0;
        if (at < lo || at >= hi) {
            continue;
        }
        if (side->type == DTYPE_F16) {
            uint32_t dim = 16 * group + 2 * g;
            w[i] = dim < side->dim ? get32(row + 2 * dim) : 0;
        } else {
            bool bytes = side->type == DTYPE_Q8_0;
            const uint8_t *block = row + group / 2 * (bytes ? 34 : 18);
            float d = scale_of(block);
            uint32_t pair = bytes ? get16(block + 2 + group % 2 * 16 + 2 * g)
                                  : get16(block + 2 + 2 * g) >> (group % 2 * 4);
            w[i] = bytes ? ptx_f16x2(d * code8(pair, 0), d * code8(pair, 1))
                         : ptx_f16x2(d * code4(pair, 0), d * code4(pair, 1));
        }
    }
    turn(w, b);
}

/* ---- a warp's state; [r]: rows g and g + 8 of its 16 ---- */

template <uint32_t GROUPS> struct state {
    float acc[GROUPS][2][4]; /* 16 dims: even ones, odd ones */
    float max[2], sum[2];    /* sum: this lane's keys until the span ends */
    int64_t lo[2], hi[2];    /* positions that the row reads */
};

/* Queries as left operands, both halves: eight words of shared memory a lane and step. */
template <uint32_t PARTS>
static __device__ __forceinline__ void put_queries(uint32_t *own, uint32_t n_steps, uint32_t dim,
                                                   const float *const q[2])
{
    uint32_t t = threadIdx.x % 4;
    for (uint32_t step = part_of<PARTS>(); step < n_steps; step += PARTS) {
        for (uint32_t r = 0; r < 2; r++) {
            float v[4];
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t j = 16 * step + 4 * t + i;
                v[i] = q[r] && j < dim ? q[r][j] : 0.0f;
            }
            uint32_t *to = own + step * (8 * WARP) + r;
            split_halves(v[0], v[1], to, to + 4);
            split_halves(v[2], v[3], to + 2, to + 6);
        }
    }
}

static __device__ __forceinline__ float quad_max(float v)
{
    for (int off = 1; off < 4; off *= 2) {
        float o = __shfl_xor_sync(ALL_LANES, v, off);
        v = o > v ? o : v;
    }
    return v;
}

static __device__ __forceinline__ float quad_sum(float v)
{
    v += __shfl_xor_sync(ALL_LANES, v, 1);
    v += __shfl_xor_sync(ALL_LANES, v, 2);
    return v;
}

/* Scores of N tiles of 16 keys: s[tile][n][c], key 16 tile + 4 t + 2 (c % 2) + n, row c / 2. */
template <uint32_t N>
static __device__ __forceinline__ void score_tiles(const struct attention_args *a,
                                                   const uint8_t *first, const uint32_t *own,
                                                   float s[N][2][4])
{
    uint32_t n_steps = (a->k.dim + 15) / 16;
#pragma unroll
    for (uint32_t i = 0; i < N * 8; i++) {
        s[i / 8][i / 4 % 2][i % 4] = 0.0f;
    }
    for (uint32_t step = 0; step < n_steps; step++) {
        uint4 high = get128((const uint8_t *)(own + step * (8 * WARP)));
        uint4 low = get128((const uint8_t *)(own + step * (8 * WARP) + 4));
        const uint32_t q[2][4] = { { high.x, high.y, high.z, high.w },
                                   { low.x, low.y, low.z, low.w } };
#pragma unroll
        for (uint32_t tile = 0; tile < N; tile++) {
            uint32_t b[2][2];
            key_fragments(&a->k, first + tile * (KV_TILE * a->k.row_bytes), step, b);
#pragma unroll
            for (uint32_t n = 0; n < 2; n++) {
                ptx_mma_f16(s[tile][n], q[1], b[n]);
                ptx_mma_f16(s[tile][n], q[0], b[n]);
            }
        }
    }
}

/* Of the page's 64 keys. Several warps: each its tiles, then all have all; `shared` is [TILES * 8][WARP], another one for the
 * next page. */
template <uint32_t PARTS>
static __device__ __forceinline__ void
score_page(const struct attention_args *a, const uint8_t *page, uint32_t kv_head,
           const uint32_t *own, float *shared, float s[TILES][2][4])
{
    const uint8_t *first = page + tile_at(&a->k, kv_head, 0);
    if (PARTS == 1) {
        score_tiles<TILES>(a, first, own, s);
        return;
    }
    constexpr uint32_t N = TILES / PARTS;
    uint32_t tile = part_of<PARTS>() * N;
    float mine[N][2][4];
    score_tiles<N>(a, first + tile * (KV_TILE * a->k.row_bytes), own, mine);
#pragma unroll
    for (uint32_t i = 0; i < N * 8; i++) {
        shared[(8 * tile + i) * WARP + lane_id()] = mine[i / 8][i / 4 % 2][i % 4];
    }
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < TILES * 8; i++) {
        s[i / 8][i / 4 % 2][i % 4] = shared[i * WARP + lane_id()];
    }
}

/* What a head of one side has in a page. */
static __device__ __forceinline__ void ask(const struct page_side *side, const uint8_t *page,
                                           uint32_t kv_head)
{
    const uint8_t *first = page + tile_at(side, kv_head, 0);
    if (threadIdx.x == 0) {
        ptx_ask(first, KV_PAGE_TOKENS * side->row_bytes);
    }
}

/* Scores to probabilities under the row's new maximum; what was fades. fade: by how much, of both rows. */
template <uint32_t GROUPS>
static __device__ __forceinline__ void weigh_page(const struct attention_args *a, int64_t base,
                                                  struct state<GROUPS> *w, float s[TILES][2][4],
                                                  float fade[2])
{
    uint32_t t = threadIdx.x % 4;
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        float top = infinity_below();
#pragma unroll
        for (uint32_t i = 0; i < TILES * 4; i++) {
            float *at = &s[i / 4][i % 2][2 * r + i / 2 % 2];
            int64_t key = base + 16 * (i / 4) + 4 * t + 2 * (i / 2 % 2) + i % 2;
            float v = *at * a->scale;
            v = a->softcap > 0.0f ? a->softcap * vmath_tanh(v / a->softcap) : v;
            *at = key >= w->lo[r] && key < w->hi[r] ? v : infinity_below();
            top = *at > top ? *at : top;
        }
        top = quad_max(top);
        float max = top > w->max[r] ? top : w->max[r], sum = 0.0f;
        fade[r] = max == w->max[r] ? 1.0f : vmath_exp(w->max[r] - max);
#pragma unroll
        for (uint32_t i = 0; i < TILES * 4; i++) {
            float *at = &s[i / 4][i % 2][2 * r + i / 2 % 2];
            *at = *at == infinity_below() ? 0.0f : vmath_exp(*at - max);
            sum += *at;
        }
        w->sum[r] = w->sum[r] * fade[r] + quad_sum(sum);
        w->max[r] = max;
    }
}

/* One page: positions from .. to - 1 of it may be read. next: the page after it, or NULL. */
template <uint32_t GROUPS, uint32_t PARTS>
static __device__ __forceinline__ void add_page(const struct attention_args *a, const uint8_t *page,
                                                const uint8_t *next, uint32_t kv_head, int64_t base,
                                                int32_t from, int32_t to, const uint32_t *own,
                                                float *scores, struct state<GROUPS> *w)
{
    float s[TILES][2][4], fade[2];
    ask(&a->v, page, kv_head);
    score_page<PARTS>(a, page, kv_head, own, scores, s);
    if (next) {
        ask(&a->k, next, kv_head);
    }
    weigh_page<GROUPS>(a, base, w, s, fade);
#pragma unroll
    for (uint32_t i = 0; i < GROUPS * 8; i++) {
        w->acc[i / 8][i / 4 % 2][i % 4] *= fade[i / 2 % 2];
    }
    const uint8_t *first = page + tile_at(&a->v, kv_head, 0);
#pragma unroll
    for (uint32_t tile = 0; tile < TILES; tile++) {
        uint32_t high[4], low[4];
        int32_t at = (int32_t)(KV_TILE * tile);
        if (at >= to || at + KV_TILE <= from) {
            continue; /* the warp together: nothing in it is read */
        }
#pragma unroll
        for (uint32_t i = 0; i < 4;
             i++) { /* rows g, g + 8; keys 4 t and the next, then the next two */
            uint32_t c = 2 * (i % 2) + i / 2;
            split_halves(s[tile][0][c], s[tile][1][c], &high[i], &low[i]);
        }
#pragma unroll
        for (uint32_t j = 0; j < GROUPS; j++) {
            uint32_t b[2][2], group = part_of<PARTS>() * GROUPS + j;
            if (16 * group >= a->v.dim) {
                continue;
            }
            value_fragments(&a->v, first + tile * (KV_TILE * a->v.row_bytes), group, from - at,
                            to - at, b);
#pragma unroll
            for (uint32_t n = 0; n < 2; n++) {
                ptx_mma_f16(w->acc[j][n], low, b[n]);
                ptx_mma_f16(w->acc[j][n], high, b[n]);
            }
        }
    }
}

/* ---- the kernel ---- */

/* Calls f(r, dim, index of the lane's value): the dims that a lane holds. */
template <uint32_t GROUPS, uint32_t PARTS, class F>
static __device__ __forceinline__ void each_value(uint32_t v_dim, const F &f)
{
#pragma unroll
    for (uint32_t i = 0; i < GROUPS * 8; i++) {
        uint32_t group = part_of<PARTS>() * GROUPS + i / 8;
        uint32_t dim = 16 * group + 4 * (threadIdx.x % 4) + 2 * (i % 2) + i / 4 % 2;
        if (dim < v_dim) {
            f(i / 2 % 2, dim, i);
        }
    }
}

/* PARTS warps, each with 16 GROUPS values of a head. */
template <uint32_t GROUPS, uint32_t PARTS>
static __global__ void __launch_bounds__(WARP *PARTS, WARPS(PARTS) / PARTS)
    tiles_kernel(const __grid_constant__ struct attention_args a, const struct task *tasks)
{
    DYNAMIC_SHARED(uint32_t, shared);
    struct task task = tasks[blockIdx.x];
    uint32_t kv_head = blockIdx.y / a.n_chunks, chunk = blockIdx.y % a.n_chunks;
    uint32_t per = (a.group + a.n_chunks - 1) / a.n_chunks, begin = chunk * per;
    uint32_t n_heads = begin >= a.group ? 0 : a.group - begin < per ? a.group - begin : per;
    uint32_t lane = lane_id(), part = part_of<PARTS>(), head[2], row[2];
    uint32_t n_steps = (a.k.dim + 15) / 16, *own = shared + 8 * lane;
    float *scores = (float *)(void *)(shared + n_steps * 8 * WARP);
    float *totals = scores + (PARTS > 1 ? 2 * SCORES : 0) + part * (GROUPS * 8 * WARP) + lane;
    float kept[TOTALS_SHARED(PARTS) ? 1 : GROUPS * 8];
    auto total = [&](uint32_t i) -> float & {
        return TOTALS_SHARED(PARTS) ? totals[i * WARP] : kept[TOTALS_SHARED(PARTS) ? 0 : i];
    };
    const float *q[2];
    bool live[2];
    struct state<GROUPS> w;
    if (n_heads == 0) {
        return;
    }
    /* What the warp's rows read together. */
    int64_t lo = INT64_MAX, hi = 0;
    for (uint32_t i = 0; i < task.n; i++) {
        const struct device_row *r = &a.rows[task.row + i];
        int64_t own_lo = row_lo(r->first_pos, r->pos, a.window);
        lo = own_lo < lo ? own_lo : lo;
        hi = r->end_pos > hi ? r->end_pos : hi;
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        uint32_t i = lane / 4 + 8 * r;
        live[r] = i < task.n * n_heads;
        row[r] = task.row + (live[r] ? i / n_heads : 0);
        head[r] = kv_head * a.group + begin + i % n_heads;
        const struct device_row *at = &a.rows[row[r]];
        w.lo[r] = row_lo(at->first_pos, at->pos, a.window);
        w.hi[r] = at->end_pos;
        q[r] = live[r] ? a.q + (uint64_t)row[r] * a.q_stride + (uint64_t)head[r] * a.k.dim : NULL;
    }
    put_queries<PARTS>(own, n_steps, a.k.dim, q);
    if (PARTS > 1) {
        __syncthreads();
    }
    const uint32_t *pages = a.rows[task.row].pages;
    int64_t first = lo / KV_SPAN + (a.partials ? blockIdx.z : 0);
    int64_t end = a.partials && first < (hi + KV_SPAN - 1) / KV_SPAN ? first + 1
                  : a.partials                                       ? first
                                                                     : (hi + KV_SPAN - 1) / KV_SPAN;
    float total_max[2] = { infinity_below(), infinity_below() }, total_sum[2] = { 0.0f, 0.0f };
    if (!a.partials) {
        each_value<GROUPS, PARTS>(a.v.dim,
                                  [&](uint32_t, uint32_t, uint32_t i) { total(i) = 0.0f; });
    }
    for (int64_t span = first; span < end; span++) {
        int64_t from = lo > span * KV_SPAN ? lo : span * KV_SPAN;
        int64_t to = hi < (span + 1) * KV_SPAN ? hi : (span + 1) * KV_SPAN;
#pragma unroll
        for (uint32_t i = 0; i < GROUPS * 8; i++) {
            w.acc[i / 8][i / 4 % 2][i % 4] = 0.0f;
        }
        w.max[0] = w.max[1] = infinity_below();
        w.sum[0] = w.sum[1] = 0.0f;
        for (int64_t base = from / KV_PAGE_TOKENS * KV_PAGE_TOKENS; base < to;
             base += KV_PAGE_TOKENS) {
            const uint8_t *page = a.page_base + pages[base / KV_PAGE_TOKENS] * a.page_bytes;
            int64_t n = to - base, skip = from - base, after = base + KV_PAGE_TOKENS;
            const uint8_t *next = after < (a.partials ? to : hi)
                                      ? a.page_base + pages[after / KV_PAGE_TOKENS] * a.page_bytes
                                      : NULL;
            add_page<GROUPS, PARTS>(&a, page, next, kv_head, base, (int32_t)(skip > 0 ? skip : 0),
                                    (int32_t)(n < KV_PAGE_TOKENS ? n : KV_PAGE_TOKENS), own,
                                    scores + base / KV_PAGE_TOKENS % 2 * SCORES, &w);
        }
        if (a.partials) {
            float *out[2];
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                int64_t at = span - w.lo[r] / KV_SPAN; /* the row's own spans only */
                bool wanted = live[r] && at >= 0 && span < (w.hi[r] + KV_SPAN - 1) / KV_SPAN;
                out[r] = wanted
                             ? a.partials + (((uint64_t)row[r] * a.n_heads + head[r]) * a.n_spans +
                                             (uint64_t)at) *
                                                (2 + a.v.dim)
                             : NULL;
                if (wanted && lane % 4 == 0 && part == 0) {
                    out[r][0] = w.max[r];
                    out[r][1] = w.sum[r];
                }
            }
            each_value<GROUPS, PARTS>(a.v.dim, [&](uint32_t r, uint32_t dim, uint32_t i) {
                if (out[r]) {
                    out[r][2 + dim] = w.acc[i / 8][i / 4 % 2][i % 4];
                }
            });
            return;
        }
        float keep[2], take[2];
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            weigh(total_max[r], w.max[r], &keep[r], &take[r]);
            total_sum[r] = total_sum[r] * keep[r] + w.sum[r] * take[r];
            total_max[r] = w.max[r] > total_max[r] ? w.max[r] : total_max[r];
        }
        each_value<GROUPS, PARTS>(a.v.dim, [&](uint32_t r, uint32_t, uint32_t i) {
            float *at = &total(i);
            *at = *at * keep[r] + w.acc[i / 8][i / 4 % 2][i % 4] * take[r];
        });
    }
    if (a.partials) {
        return;
    }
    each_value<GROUPS, PARTS>(a.v.dim, [&](uint32_t r, uint32_t dim, uint32_t i) {
        if (live[r]) {
            a.o[(uint64_t)row[r] * a.o_stride + (uint64_t)head[r] * a.v.dim + dim] = finish(
                &a, head[r], total_max[r], total_sum[r], total(i));
        }
    });
}

/* ---- launchers ---- */

bool attention_tiles_fit(const struct attention_args *a)
{
    const struct page_side *const sides[2] = { &a->k, &a->v };
    for (const struct page_side *s : sides) {
        if ((s->type != DTYPE_F16 && s->type != DTYPE_Q8_0 && s->type != DTYPE_Q4_0) ||
            s->dim > (s == &a->k ? K_MAX : V_MAX) || s->dim % 2) {
            return false;
        }
    }
    return true;
}

/* As many rows of a sequence to a warp as fill it. */
static const struct task *stage_tasks(struct cuda_backend *c, const struct kv_row *rows,
                                      uint32_t n_rows, uint32_t per, uint32_t *n, struct err *err)
{
    struct task *out = (struct task *)calloc(n_rows, sizeof *out);
    *n = 0;
    if (!out) {
        err_set(err, ERR_NO_MEMORY, "cuda: %u rows", n_rows);
        return NULL;
    }
    for (uint32_t i = 0; i < n_rows; i++) {
        struct task *last = *n > 0 ? &out[*n - 1] : NULL;
        if (last && last->n < per && rows[last->row].pages == rows[i].pages) {
            last->n++;
        } else {
            struct task next = { i, 1 };
            out[(*n)++] = next;
        }
    }
    const struct task *staged = (const struct task *)cuda_stage(c, out, *n * sizeof *out, err);
    free(out);
    return staged;
}

template <uint32_t GROUPS, uint32_t PARTS>
static void launch(const struct attention_args *a, const struct task *tasks, dim3 grid,
                   CUDA_STREAM stream)
{
    uint32_t floats = (a->k.dim + 15) / 16 * (8 * WARP) + (PARTS > 1 ? 2 * SCORES : 0);
    floats += a->partials || !TOTALS_SHARED(PARTS) ? 0 : PARTS * GROUPS * (8 * WARP);
    static_assert((K_MAX / 16 * 8 * WARP + 2 * SCORES) * sizeof(float) <= 48 << 10, "unasked");
    LAUNCH((tiles_kernel<GROUPS, PARTS>), grid, WARP * PARTS, floats * sizeof(float), stream, *a,
           tasks);
}

int attention_tiles(struct cuda_backend *c, struct attention_args *a, const struct kv_row *rows,
                    uint32_t n_rows, bool split, struct err *err)
{
    uint32_t n_tasks, per;
    a->n_chunks = (a->group + ROWS - 1) / ROWS;
    per = ROWS / ((a->group + a->n_chunks - 1) / a->n_chunks);
    const struct task *tasks = stage_tasks(c, rows, n_rows, per, &n_tasks, err);
    if (!tasks) {
        return -1;
    }
    /* Rows of a warp may begin in different spans: one more than a row has. */
    dim3 grid(n_tasks, a->n_heads / a->group * a->n_chunks, split ? a->n_spans + 1 : 1);
    if (a->k.dim > K_SMALL || a->v.dim > 256) {
        launch<8, 4>(a, tasks, grid, c->stream);
    } else if (a->v.dim > 128) {
        launch<8, 2>(a, tasks, grid, c->stream);
    } else if (a->v.dim > 64) {
        launch<8, 1>(a, tasks, grid, c->stream);
    } else {
        launch<4, 1>(a, tasks, grid, c->stream);
    }
    return 0;
}
