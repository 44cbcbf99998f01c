/* The CUDA backend: its device, memory, stream and table of ops. Launches queue up on one stream; only download, finish,
 * close and a full ring of staged arrays wait for it. */
#include <stdlib.h>

#include "worker/cuda/dequant.cuh"

#define STAGE_BYTES ((size_t)8 << 20) /* page tables of 16 sequences of 32k take 64 KiB a layer */
#define STAGE_ALIGN 256

struct cuda_memory {
    struct cuda_memory *next;
    void *device;
};

/* ---- memory ---- */

void *cuda_alloc(struct backend *b, size_t size_bytes, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    struct cuda_memory *m = (struct cuda_memory *)calloc(1, sizeof *m);
    size_t size = size_bytes ? size_bytes : 1;
    if (!m) {
        err_set(err, ERR_NO_MEMORY, "cuda: a list entry");
        return NULL;
    }
    cudaError_t rc = cudaMalloc(&m->device, size);
    if (rc != cudaSuccess) {
        size_t free_bytes = 0, total = 0;
        (void)cudaGetLastError(); /* it is told here */
        (void)cudaMemGetInfo(&free_bytes, &total);
        err_set(err, ERR_NO_MEMORY, "cuda: %zu MiB wanted, %zu of %zu MiB free: %s", size >> 20,
                free_bytes >> 20, total >> 20, cudaGetErrorString(rc));
        free(m);
        return NULL;
    }
    m->next = c->memory;
    c->memory = m;
    if (cuda_check(cudaMemsetAsync(m->device, 0, size, c->stream), "clear memory", err) < 0) {
        cuda_free(b, m->device);
        return NULL;
    }
    return m->device;
}

void cuda_free(struct backend *b, void *memory)
{
    struct cuda_backend *c = cuda_of(b);
    for (struct cuda_memory **at = &c->memory; memory && *at; at = &(*at)->next) {
        struct cuda_memory *m = *at;
        if (m->device == memory) {
            *at = m->next;
            (void)cudaFree(m->device);
            free(m);
            return;
        }
    }
}

const void *cuda_stage(struct cuda_backend *c, const void *host, size_t size_bytes, struct err *err)
{
    if (size_bytes > STAGE_BYTES) {
        err_set(err, ERR_NO_FIT, "cuda: %zu bytes for one launch", size_bytes);
        return NULL;
    }
    if (c->stage_at + size_bytes > STAGE_BYTES) {
        if (cuda_check(cudaStreamSynchronize(c->stream), "a full ring", err) < 0) {
            return NULL;
        }
        c->stage_at = 0;
    }
    uint8_t *from = c->stage_host + c->stage_at, *to = c->stage_device + c->stage_at;
    memcpy(from, host, size_bytes);
    c->stage_at = (size_t)round_up(c->stage_at + size_bytes, STAGE_ALIGN);
    if (cuda_check(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyHostToDevice, c->stream),
                   "stage", err) < 0) {
        return NULL;
    }
    return to;
}

static int cuda_upload(struct backend *b, void *device, const void *host, size_t size_bytes,
                       struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    if (cuda_check(cudaMemcpyAsync(device, host, size_bytes, cudaMemcpyHostToDevice, c->stream),
                   "upload", err) < 0) {
        return -1;
    }
    /* The caller may let go of host memory. */
    return cuda_check(cudaStreamSynchronize(c->stream), "upload", err);
}

static int cuda_download(struct backend *b, void *host, const void *device, size_t size_bytes,
                         struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    if (cuda_check(cudaMemcpyAsync(host, device, size_bytes, cudaMemcpyDeviceToHost, c->stream),
                   "download", err) < 0) {
        return -1;
    }
    return cuda_check(cudaStreamSynchronize(c->stream), "download", err);
}

/* State memory stays on the host's side and is read over the bus, until pages have a copy on the device (README.md). */
static int cuda_share(struct backend *b, void *memory, size_t size_bytes, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    if (c->mapped == memory) {
        return 0;
    }
    if (c->mapped) {
        (void)cudaHostUnregister(c->mapped);
        (void)cudaGetLastError(); /* its memory may be gone already */
        c->mapped = NULL;
    }
    if (cuda_check(cudaHostRegister(memory, size_bytes, cudaHostRegisterMapped), "map the state",
                   err) < 0) {
        return -1;
    }
    c->mapped = memory;
    return 0;
}

static int cuda_finish(struct backend *b, struct err *err)
{
    return cuda_check(cudaStreamSynchronize(cuda_of(b)->stream), "step", err);
}

static int cuda_reserve(struct backend *b, const struct backend_limits *limits, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    size_t codes = (size_t)limits->max_rows * limits->max_k; /* experts' rows come in pieces */
    cuda_free(b, c->codes);
    cuda_free(b, c->columns);
    c->limits = *limits;
    c->max_codes = 0;
    c->codes = (int8_t *)cuda_alloc(b, codes, err);
    c->columns = (struct column_block *)cuda_alloc(b, codes / 32 * sizeof *c->columns, err);
    if (!c->codes || !c->columns) {
        return -1;
    }
    c->max_codes = codes;
    return cuda_attention_reserve(c, err);
}

static void cuda_close(struct backend *b)
{
    struct cuda_backend *c = cuda_of(b);
    if (c->stream) {
        (void)cudaStreamSynchronize(c->stream);
    }
    if (c->mapped) {
        (void)cudaHostUnregister(c->mapped);
    }
    cuda_release(b, NULL, SIZE_MAX);
    while (c->memory) {
        cuda_free(b, c->memory->device);
    }
    if (c->stage_host) {
        (void)cudaFreeHost(c->stage_host);
    }
    if (c->stream) {
        (void)cudaStreamDestroy(c->stream);
    }
    free(c);
}

/* ---- the table ---- */

static struct backend_ops make_ops(void)
{
    struct backend_ops ops = {};
    ops.embed = cuda_embed;
    ops.norm = cuda_norm;
    ops.matmul = cuda_matmul;
    ops.matmul_experts = cuda_matmul_experts;
    ops.rope_table = cuda_rope_table;
    ops.rope = cuda_rope;
    ops.kv_store = cuda_kv_store;
    ops.attention = cuda_attention;
    ops.act = cuda_act;
    ops.moe_route = cuda_moe_route;
    ops.moe_sum = cuda_moe_sum;
    ops.add = cuda_add;
    ops.gather = cuda_gather;
    ops.delta_net = cuda_delta_net;
    ops.check_matrix = cuda_matmul_check;
    ops.check_kv = cuda_attention_check;
    ops.import = cuda_import;
    ops.import_experts = cuda_import_experts;
    ops.reserve = cuda_reserve;
    ops.alloc = cuda_alloc;
    ops.free = cuda_free;
    ops.upload = cuda_upload;
    ops.download = cuda_download;
    ops.arrived = cuda_arrived;
    ops.release = cuda_release;
    ops.share = cuda_share;
    ops.finish = cuda_finish;
    ops.close = cuda_close;
    return ops;
}

bool cuda_available(struct err *err)
{
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc != cudaSuccess || n == 0) {
        (void)cudaGetLastError();
        err_set(err, ERR_NOT_FOUND, "cuda: no device: %s",
                rc == cudaSuccess ? "none is listed" : cudaGetErrorString(rc));
        return false;
    }
    return true;
}

/* The number behind "cuda:", 0 without. */
static int device_of(const char *name, int *device, struct err *err)
{
    char *end = NULL;
    *device = 0;
    if (name[4] == ':') {
        long n = strtol(name + 5, &end, 10);
        int count = 0;
        (void)cudaGetDeviceCount(&count);
        if (end == name + 5 || *end || n < 0 || n >= count) {
            return err_set(err, ERR_NOT_FOUND, "device %s: there are %d, counted from cuda:0", name,
                           count);
        }
        *device = (int)n;
    }
    return 0;
}

struct backend *cuda_open(const char *name, const struct backend_options *options, struct err *err)
{
    static const struct backend_ops ops = make_ops();
    int device;
    if (options->exact) {
        err_set(err, ERR_UNSUPPORTED, "device %s: the exact setting is the CPU's", name);
        return NULL;
    }
    if (!cuda_available(err) || device_of(name, &device, err) < 0) {
        return NULL;
    }
    struct cuda_backend *c = (struct cuda_backend *)calloc(1, sizeof *c);
    if (!c) {
        err_set(err, ERR_NO_MEMORY, "cuda backend");
        return NULL;
    }
    c->base.ops = &ops;
    c->base.name = "cuda";
    c->device = device;
    if (cuda_check(cudaSetDevice(device), name, err) < 0 ||
        cuda_check(cudaStreamCreate(&c->stream), name, err) < 0 ||
        cuda_check(cudaHostAlloc((void **)&c->stage_host, STAGE_BYTES, cudaHostAllocDefault),
                   "pinned memory", err) < 0) {
        cuda_close(&c->base);
        return NULL;
    }
    c->stage_device = (uint8_t *)cuda_alloc(&c->base, STAGE_BYTES, err);
    if (!c->stage_device || cuda_tables_create(c, err) < 0) {
        cuda_close(&c->base);
        return NULL;
    }
    return &c->base;
}
