/* The CUDA backend: its device, memory, stream and table of ops. Launches queue up on one stream; only download, finish,
 * leave (for the step before), close and a full block of staged arrays wait for it. */
#include <atomic>
#include <stdlib.h>
#include <unistd.h>

#include "worker/cuda/check.cuh"

extern "C" {
#include "proto/log.h"
}

/* ---- errors ---- */

bool cuda_is_fatal(cudaError_t rc)
{
    static const cudaError_t fatal[] = {
        cudaErrorECCUncorrectable,   cudaErrorIllegalAddress,    cudaErrorLaunchTimeout,
        cudaErrorAssert,             cudaErrorHardwareStackError, cudaErrorIllegalInstruction,
        cudaErrorMisalignedAddress,  cudaErrorInvalidAddressSpace, cudaErrorInvalidPc,
        cudaErrorLaunchFailure,      cudaErrorDevicesUnavailable, cudaErrorContextIsDestroyed,
        cudaErrorUnknown,
    };
    for (cudaError_t code : fatal) {
        if (rc == code) {
            return true;
        }
    }
    return false;
}

void cuda_die(cudaError_t rc, const char *what)
{
    static std::atomic_flag dies = ATOMIC_FLAG_INIT;
    while (dies.test_and_set()) {
        (void)pause(); /* another thread says it: one line is enough */
    }
    log_error("cuda: %s: %s (%s): the device is lost to this process, it ends", what,
              cudaGetErrorString(rc), cudaGetErrorName(rc));
    _exit(err_exit_code(ERR_FAILED)); /* no clean-up: it would ask the device */
}

/* ---- work space ---- */

#define MARGIN_BYTES ((uint64_t)192 << 20) /* graphs, the runtime's own; to be measured */

static uint64_t cuda_room(struct backend *b)
{
    size_t free_bytes = 0, total = 0;
    (void)cudaMemGetInfo(&free_bytes, &total);
    uint64_t room = b->used_bytes + free_bytes;
    return b->budget_bytes && b->budget_bytes < room ? b->budget_bytes : room;
}

/* What all models that are bound ask for; it never shrinks, as some of them go on. */
static int cuda_reserve(struct backend *b, const struct backend_limits *limits, struct err *err)
{
    struct cuda_backend *c = cuda_of(b);
    struct backend_limits before = c->limits;
    backend_limits_widen(&c->limits, limits);
    /* The exact setting's ops need none: activations stay floats, sums stay in registers. */
    int rc = b->exact ? 0 : cuda_matmul_reserve(c, err) < 0 ? -1 : cuda_attention_reserve(c, err);
    if (rc < 0 || b->dry) {
        c->limits = before;
    }
    return rc;
}

static void cuda_close(struct backend *b)
{
    struct cuda_backend *c = cuda_of(b);
    if (c->stream) {
        (void)cudaStreamSynchronize(c->stream);
    }
    cuda_mirror_destroy(c);
    cuda_pins_destroy(c);
    cuda_uploads_destroy(c);
    cuda_step_destroy(c);
    cuda_release(b, NULL, SIZE_MAX);
    cuda_spill_destroy(c);
    cuda_free_all(c);
    cuda_stage_destroy(c);
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
    ops.matmul = cuda_spill_matmul;
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
    ops.import_spilled = cuda_import_spilled;
    ops.reserve = cuda_reserve;
    ops.alloc = cuda_alloc;
    ops.free = cuda_free;
    ops.upload = cuda_upload;
    ops.download = cuda_download;
    ops.arrived = cuda_arrived;
    ops.release = cuda_release;
    ops.pin = cuda_pin;
    ops.unpin = cuda_unpin;
    ops.pinned = cuda_pinned_bytes;
    ops.copy = cuda_copy;
    ops.clear = cuda_clear;
    ops.lend = cuda_lend;
    ops.unlend = cuda_unlend;
    ops.mirror = cuda_mirror_send;
    ops.mirrored = cuda_mirrored;
    ops.room = cuda_room;
    ops.step = cuda_step_begin;
    ops.finish = cuda_step_end;
    ops.leave = cuda_step_leave;
    ops.sample = cuda_sample;
    ops.close = cuda_close;
    return ops;
}

/* The twins of cpu/ that are the judge there; the other ops have one setting. */
static struct backend_ops make_exact_ops(void)
{
    struct backend_ops ops = make_ops();
    ops.matmul_experts = cuda_matmul_experts_exact;
    ops.attention = cuda_attention_exact;
    ops.check_kv = cuda_attention_check_exact;
    return ops;
}

bool cuda_available(struct err *err)
{
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc != cudaSuccess || n == 0) {
        (void)cudaGetLastError();
        err_set(err, ERR_FAILED, "cuda: no device: %s",
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
            return err_set(err, ERR_FAILED, "device %s: there are %d, counted from cuda:0", name,
                           count);
        }
        *device = (int)n;
    }
    return 0;
}

/* Kernels are built for an architecture; which one runs decides bits, the card does not. */
static int fingerprint(struct cuda_backend *c, struct err *err)
{
    int major, minor;
    if (cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device),
                   "the device's architecture", err) < 0 ||
        cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, c->device),
                   "the device's architecture", err) < 0) {
        return -1;
    }
    c->base.fingerprint = (uint64_t)major << 8 | (uint64_t)minor;
    return 0;
}

struct backend *cuda_open(const char *name, const struct backend_options *options, struct err *err)
{
    static const struct backend_ops ops = make_ops(), exact = make_exact_ops();
    int device;
    if (!cuda_available(err) || device_of(name, &device, err) < 0) {
        return NULL;
    }
    struct cuda_backend *c = (struct cuda_backend *)calloc(1, sizeof *c);
    if (!c) {
        err_set(err, ERR_NO_MEMORY, "cuda backend");
        return NULL;
    }
    c->base.ops = options->exact ? &exact : &ops;
    c->base.exact = options->exact;
    c->base.name = "cuda";
    c->device = device;
    c->base.budget_bytes = options->budget_bytes;
    c->base.margin_bytes = MARGIN_BYTES;
    if (cuda_check(cudaSetDevice(device), name, err) < 0 || fingerprint(c, err) < 0 ||
        cuda_check(cudaStreamCreate(&c->stream), name, err) < 0 || cuda_stage_create(c, err) < 0 ||
        cuda_step_create(c, err) < 0 || cuda_mirror_create(c, err) < 0 ||
        cuda_uploads_create(c, options->n_threads, err) < 0 || cuda_pins_create(c, err) < 0 ||
        cuda_tables_create(c, err) < 0) {
        cuda_close(&c->base);
        return NULL;
    }
    return &c->base;
}
