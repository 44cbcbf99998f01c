/* Attention for the setting --exact, as the formula says: scores, maximum, sums in double, in order of position; the CPU's
 * steps, so its bits. A block for a row and a head; scores are computed again for every 128 components rather than
 * kept. Made to be plain, not fast. Reference: cpu/attention_exact.c. */
#include "worker/cuda/pages.cuh"

#define THREADS 128

static __device__ float exact_score(const struct attention_args *a, const struct device_row *row,
                                    uint32_t head, const float *q, int64_t u)
{
    const uint8_t *page = a->page_base + row->pages[u / KV_PAGE_TOKENS] * a->page_bytes;
    uint32_t at = (uint32_t)(u % KV_PAGE_TOKENS);
    const uint8_t *tile = page + tile_at(&a->k, head, at);
    double sum = 0.0;
    for (uint32_t j = 0; j < a->k.dim; j++) {
        sum += (double)q[j] * (double)key_value(&a->k, tile, at % KV_TILE, j);
    }
    float s = (float)(sum * (double)a->scale);
    return a->softcap > 0.0f ? a->softcap * vmath_tanh(s / a->softcap) : s;
}

static __global__ void attention_exact_kernel(struct attention_args a)
{
    __shared__ float tops[THREADS];
    __shared__ double weights[THREADS];
    const struct device_row *row = &a.rows[blockIdx.x];
    uint32_t h = blockIdx.y, head = h / a.group, tid = threadIdx.x;
    const float *q = a.q + (uint64_t)blockIdx.x * a.q_stride + (uint64_t)h * a.k.dim;
    float *o = a.o + (uint64_t)blockIdx.x * a.o_stride + (uint64_t)h * a.v.dim;
    int64_t lo = row_lo(row->first_pos, row->pos, a.window), end = row->end_pos;
    float max = a.sinks ? a.sinks[h] : infinity_below();
    for (int64_t u = lo + tid; u < end; u += THREADS) {
        float s = exact_score(&a, row, head, q, u);
        max = s > max ? s : max;
    }
    tops[tid] = max;
    __syncthreads();
    for (uint32_t i = 0; i < THREADS; i++) {
        max = tops[i] > max ? tops[i] : max;
    }
    for (uint32_t j0 = 0; j0 < a.v.dim; j0 += THREADS) {
        uint32_t j = j0 + tid;
        double total = a.sinks ? (double)vmath_exp(a.sinks[h] - max) : 0.0, sum = 0.0;
        for (int64_t base = lo; base < end; base += THREADS) {
            int64_t n = end - base < THREADS ? end - base : THREADS;
            if (tid < n) {
                weights[tid] = (double)vmath_exp(exact_score(&a, row, head, q, base + tid) - max);
            }
            __syncthreads();
            for (int64_t i = 0; i < n && j < a.v.dim; i++) {
                uint32_t at = (uint32_t)((base + i) % KV_PAGE_TOKENS);
                const uint8_t *page = a.page_base +
                                      row->pages[(base + i) / KV_PAGE_TOKENS] * a.page_bytes;
                total += weights[i];
                sum += weights[i] * (double)value_value(&a.v, page + tile_at(&a.v, head, at),
                                                        at % KV_TILE, j);
            }
            __syncthreads();
        }
        if (j < a.v.dim) {
            o[j] = (float)(sum / total);
        }
    }
}

int cuda_attention_check_exact(struct backend *, enum dtype k_type, enum dtype v_type,
                               struct err *err)
{
    const enum dtype types[2] = { k_type, v_type };
    for (enum dtype type : types) {
        if (type != DTYPE_F32 && type != DTYPE_F16 && type != DTYPE_BF16) {
            return err_set(err, ERR_UNSUPPORTED, "KV type %s with the exact setting",
                           dtype_get(type)->name);
        }
    }
    return 0;
}

int cuda_attention_exact(struct backend *b, const struct op_attention *op, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    struct attention_args a;
    if (op->n_rows == 0) {
        return 0;
    }
    if (attention_args_of(c, op, &a, err) < 0) {
        return -1;
    }
    LAUNCH(attention_exact_kernel, dim3(op->n_rows, op->n_heads), THREADS, 0, c->stream, a);
    return cuda_launched("attention", err);
}
