/* The CPU backend: its table, its threads, its memory. "Import" points into the weights mapping: a CPU
 * computes on the file's own bytes. */
#include "worker/cpu/cpu.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "proto/bytes.h"
#include "worker/cpu/rows.h"
#include "worker/cpu/team.h"

#define THREADS_MAX TEAM_THREADS_MAX

#define LINE 64 /* what vectors like best */

/* What free() and the count want stands right before what is handed out. */
struct block {
    uint8_t *raw;
    size_t size;
};

/* Zeroes that nothing has touched yet: large ones come page by page when they are used, and a model is bound in no time. */
static void *cpu_alloc(struct backend *b, size_t size_bytes, struct err *err)
{
    if (b->dry) {
        b->used_bytes += size_bytes;
        return (void *)(uintptr_t)LINE; /* counted, never touched */
    }
    uint8_t *raw = size_bytes < SIZE_MAX - 2 * LINE ? calloc(1, size_bytes + 2 * LINE) : NULL;
    if (!raw) {
        err_set(err, ERR_NO_MEMORY, "%zu bytes for the engine", size_bytes);
        return NULL;
    }
    uint8_t *memory = raw + LINE + (LINE - (uintptr_t)raw % LINE) % LINE;
    const struct block block = { raw, size_bytes };
    memcpy(memory - sizeof block, &block, sizeof block);
    b->used_bytes += size_bytes;
    return memory;
}

static void cpu_free(struct backend *b, void *memory)
{
    if (memory && !b->dry) {
        struct block block;
        memcpy(&block, (uint8_t *)memory - sizeof block, sizeof block);
        b->used_bytes -= block.size;
        free(block.raw);
    }
}

static void cpu_close(struct backend *b)
{
    struct cpu_backend *c = cpu_of(b);
    team_destroy(&c->team);
    cpu_free(b, c->scratch);
    free(c);
}

static int cpu_upload(struct backend *b, void *device, const void *host, size_t size_bytes,
                      struct err *err)
{
    (void)err;
    if (!b->dry) {
        memcpy(device, host, size_bytes);
    }
    return 0;
}

static int cpu_download(struct backend *b, void *host, const void *device, size_t size_bytes,
                        struct err *err)
{
    (void)b;
    (void)err;
    memcpy(host, device, size_bytes);
    return 0;
}

static int cpu_import(struct backend *b, const struct weights_tensor *t, struct matrix *m,
                      struct err *err)
{
    (void)b;
    uint64_t row_bytes;
    if (t->ne[0] > UINT32_MAX || t->ne[1] > UINT32_MAX || t->ne[2] > UINT32_MAX || t->ne[3] != 1) {
        return err_set(err, ERR_UNSUPPORTED, "tensor %s: shape beyond 32 bits", t->name);
    }
    if (dtype_size(t->dtype, t->ne[0], &row_bytes, err) < 0) {
        return err_wrap(err, "tensor %s", t->name);
    }
    *m = (struct matrix){
        .name = t->name,
        .dtype = t->dtype,
        .layout = t->layout,
        .k = (uint32_t)t->ne[0],
        .m = (uint32_t)t->ne[1],
        .n_experts = (uint32_t)t->ne[2],
        .row_bytes = row_bytes,
        .expert_bytes = row_bytes * t->ne[1],
        .data = t->data,
    };
    return 0;
}

/* They lie where the file has them: anywhere. */
static int cpu_import_experts(struct backend *b, const struct weights_tensor *const *t, uint32_t n,
                              const uint8_t **places, struct matrix *m, struct err *err)
{
    if (cpu_import(b, t[0], m, err) < 0) {
        return -1;
    }
    for (uint32_t e = 0; e < n; e++) {
        places[e] = t[e]->data;
    }
    m->n_experts = n;
    m->places = places;
    return 0;
}

static int check_matrix_exact(struct backend *b, const struct matrix *w, struct err *err)
{
    (void)b;
    (void)w; /* every type that a file may have can be widened */
    (void)err;
    return 0;
}

static int check_kv_exact(struct backend *b, enum dtype k_type, enum dtype v_type, struct err *err)
{
    (void)b;
    const enum dtype types[2] = { k_type, v_type };
    for (int i = 0; i < 2; i++) {
        if (types[i] != DTYPE_F32 && types[i] != DTYPE_F16 && types[i] != DTYPE_BF16) {
            return err_set(err, ERR_UNSUPPORTED, "KV type %s with the exact setting",
                           dtype_get(types[i])->name);
        }
    }
    return 0;
}

/* For all models that are bound: it never shrinks, as some of them go on. */
static int cpu_reserve(struct backend *b, const struct backend_limits *limits, struct err *err)
{
    struct cpu_backend *c = cpu_of(b);
    struct backend_limits all = c->limits;
    backend_limits_widen(&all, limits);
    size_t want = cpu_exact_scratch(&all, c->n_threads);
    size_t product = cpu_matmul_scratch(&all, c->n_threads);
    size_t attention = cpu_attention_scratch(&all, c->n_threads);
    want = product > want ? product : want;
    want = attention > want ? attention : want;
    if (b->dry) {
        b->used_bytes += want > c->scratch_bytes ? want - c->scratch_bytes : 0;
        return 0;
    }
    if (want > c->scratch_bytes) {
        uint8_t *scratch = cpu_alloc(b, want, err);
        if (!scratch) {
            return -1;
        }
        cpu_free(b, c->scratch);
        c->scratch = scratch;
        c->scratch_bytes = want;
    }
    c->limits = all;
    return 0;
}

struct parallel_job {
    cpu_piece *fn;
    void *arg;
};

static void run_piece(void *arg, size_t begin, size_t end, unsigned member)
{
    const struct parallel_job *job = arg;
    job->fn(job->arg, (uint32_t)begin, (uint32_t)end, member);
}

void cpu_parallel(struct cpu_backend *c, uint32_t n_items, uint32_t grain, cpu_piece *fn, void *arg)
{
    struct parallel_job job = { .fn = fn, .arg = arg };
    if (n_items <= grain) { /* waking threads costs more */
        if (n_items > 0) {
            fn(arg, 0, n_items, 0);
        }
        return;
    }
    team_run(c->team, run_piece, &job, n_items, grain);
}

/* What both tables share. */
#define COMMON_OPS                                                                                 \
    .embed = cpu_embed, .norm = cpu_norm, .rope_table = cpu_rope_table, .rope = cpu_rope,          \
    .act = cpu_act, .moe_route = cpu_moe_route, .moe_sum = cpu_moe_sum, .add = cpu_add,            \
    .gather = cpu_gather, .delta_net = cpu_delta_net, .import = cpu_import,                        \
    .import_experts = cpu_import_experts, .reserve = cpu_reserve, .alloc = cpu_alloc,              \
    .free = cpu_free, .upload = cpu_upload, .download = cpu_download, .close = cpu_close

static const struct backend_ops exact_ops = {
    COMMON_OPS,
    .matmul = cpu_matmul_exact,
    .matmul_experts = cpu_matmul_experts_exact,
    .kv_store = cpu_kv_store_exact,
    .attention = cpu_attention_exact,
    .check_matrix = check_matrix_exact,
    .check_kv = check_kv_exact,
};

static const struct backend_ops default_ops = {
    COMMON_OPS,
    .matmul = cpu_matmul,
    .matmul_experts = cpu_matmul_experts,
    .kv_store = cpu_kv_store,
    .attention = cpu_attention,
    .check_matrix = cpu_matmul_check,
    .check_kv = cpu_attention_check,
};

static uint32_t available_threads(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) < 0) {
        return 1;
    }
    int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : (uint32_t)n;
}

/* The best set that this machine has and HEARTH_ISA allows. */
static int choose_isa(enum cpu_isa *isa, struct err *err)
{
    *isa = CPU_ISA_PORTABLE;
#if defined __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c")) {
        *isa = CPU_ISA_AVX2;
    }
    if (*isa == CPU_ISA_AVX2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512vbmi")) {
        *isa = CPU_ISA_AVX512;
    }
#endif
    static const char *const names[] = { "portable", "avx2", "avx512" };
    const char *wanted = getenv("HEARTH_ISA");
    if (!wanted || !*wanted) {
        return 0;
    }
    for (int i = 0; i < 3; i++) {
        if (strcmp(wanted, names[i]) == 0) {
            if ((enum cpu_isa)i > *isa) {
                return err_set(err, ERR_UNSUPPORTED, "HEARTH_ISA=%s: this machine has %s", wanted,
                               names[*isa]);
            }
            *isa = (enum cpu_isa)i;
            return 0;
        }
    }
    return err_set(err, ERR_BAD_INPUT, "HEARTH_ISA=%s: portable, avx2 or avx512", wanted);
}

static const struct rows_kernels *rows_of(enum cpu_isa isa)
{
#if defined __x86_64__
    return isa == CPU_ISA_AVX512 ? &rows_avx512 : isa == CPU_ISA_AVX2 ? &rows_avx2 : &rows_portable;
#else
    (void)isa;
    return &rows_portable;
#endif
}

struct backend *cpu_open(const struct backend_options *options, struct err *err)
{
    struct cpu_backend *c = calloc(1, sizeof *c);
    if (!c) {
        err_set(err, ERR_NO_MEMORY, "cpu backend");
        return NULL;
    }
    c->base = (struct backend){ .ops = options->exact ? &exact_ops : &default_ops,
                                .name = "cpu",
                                .fingerprint = 1,
                                .exact = options->exact };
    c->n_threads = options->n_threads ? options->n_threads : available_threads();
    if (c->n_threads > THREADS_MAX) {
        err_set(err, ERR_BAD_INPUT, "%u threads: at most %d", c->n_threads, THREADS_MAX);
        goto fail;
    }
    if (choose_isa(&c->isa, err) < 0) {
        goto fail;
    }
    c->rows = rows_of(c->isa);
    c->team = team_create(c->n_threads, err);
    if (!c->team) {
        goto fail;
    }
    return &c->base;
fail:
    cpu_close(&c->base);
    return NULL;
}
