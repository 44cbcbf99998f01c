/* The CPU backend's inside: what its files share. Nothing outside worker/cpu includes this but tests/ops.
 * Ops run on the loop thread and spread over the team with cpu_parallel; the kernels' twins for the exact setting
 * (matmul_exact.c, attention_exact.c) are the readable meaning, the others are the fast ones. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "proto/bytes.h"
#include "worker/backend.h"

/* HEARTH_ISA=portable|avx2|avx512 may lower what the machine can do, never raise it. Same bits on each. */
enum cpu_isa { CPU_ISA_PORTABLE, CPU_ISA_AVX2, CPU_ISA_AVX512 };

struct team; /* team.h */
struct rows_kernels;

struct cpu_backend {
    struct backend base;
    enum cpu_isa isa;
    const struct rows_kernels *rows; /* rows.h, of the isa */
    uint32_t n_threads;
    struct team *team;
    struct backend_limits limits;
    uint8_t *scratch; /* owned; one op at a time uses it */
    size_t scratch_bytes;
};

static inline struct cpu_backend *cpu_of(struct backend *b)
{
    return (struct cpu_backend *)b; /* base is its first member */
}

/* The next part of the scratch memory, 64-byte aligned. */
static inline void *cpu_carve(uint8_t **at, size_t size_bytes)
{
    void *p = *at;
    *at += align_up(size_bytes, 64);
    return p;
}

/* Calls fn(arg, begin, end, part) over [0, n_items) in pieces of at least `grain` items, part < n_threads, pieces of
 * different parts at the same time. Returns when all is done. Which part does which piece is never the same twice:
 * results must not depend on it. */
typedef void cpu_piece(void *arg, uint32_t begin, uint32_t end, uint32_t part);
void cpu_parallel(struct cpu_backend *c, uint32_t n_items, uint32_t grain, cpu_piece *fn,
                  void *arg);

/* backend.c's row. */
struct backend *cpu_open(const struct backend_options *options, struct err *err);

/* embed.c, norm.c, rope.c, ffn.c, moe.c */
int cpu_embed(struct backend *b, const struct op_embed *op, struct err *err);
int cpu_norm(struct backend *b, const struct op_norm *op, struct err *err);
int cpu_rope_table(struct backend *b, const struct op_rope_table *op, struct err *err);
int cpu_rope(struct backend *b, const struct op_rope *op, struct err *err);
int cpu_act(struct backend *b, const struct op_act *op, struct err *err);
int cpu_add(struct backend *b, const struct op_add *op, struct err *err);
int cpu_gather(struct backend *b, const struct op_gather *op, struct err *err);
int cpu_moe_route(struct backend *b, const struct op_moe_route *op, struct err *err);
int cpu_moe_sum(struct backend *b, const struct op_moe_sum *op, struct err *err);
int cpu_delta_net(struct backend *b, const struct op_delta_net *op, struct err *err);

/* Row i of expert e as f32, from either layout, in this part's piece of the scratch; valid until the part's next call.
 * A piece has room for the values and for the row's bytes, 8 a value at most. */
#define CPU_ROW_WORDS 3
const float *cpu_weight_row(struct cpu_backend *c, const struct matrix *w, uint32_t e, uint32_t i,
                            uint32_t part);

/* matmul_exact.c, attention_exact.c: any dtype that quant.h dequantises; f32, f16 and bf16 K/V. */
int cpu_matmul_exact(struct backend *b, const struct op_matmul *op, struct err *err);
int cpu_matmul_experts_exact(struct backend *b, const struct op_matmul_experts *op,
                             struct err *err);
int cpu_kv_store_exact(struct backend *b, const struct op_kv_store *op, struct err *err);
int cpu_attention_exact(struct backend *b, const struct op_attention *op, struct err *err);
size_t cpu_exact_scratch(const struct backend_limits *limits, uint32_t n_threads);

/* matmul.c and its instruction sets; attention.c: every K/V type. The scratch functions say how many bytes of
 * cpu_backend.scratch an op may need under these limits. */
int cpu_matmul(struct backend *b, const struct op_matmul *op, struct err *err);
int cpu_matmul_experts(struct backend *b, const struct op_matmul_experts *op, struct err *err);
int cpu_kv_store(struct backend *b, const struct op_kv_store *op, struct err *err);
int cpu_attention(struct backend *b, const struct op_attention *op, struct err *err);
int cpu_attention_check(struct backend *b, enum dtype k_type, enum dtype v_type, struct err *err);
int cpu_matmul_check(struct backend *b, const struct matrix *w, struct err *err);
size_t cpu_matmul_scratch(const struct backend_limits *limits, uint32_t n_threads);
size_t cpu_attention_scratch(const struct backend_limits *limits, uint32_t n_threads);
