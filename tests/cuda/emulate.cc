/* See emulate.h. One scheduler, one block at a time: each fibre runs until it waits or ends. */
#include "tests/cuda/emulate.h"

#include <cstdio>
#include <ucontext.h> /* where there is no switch of our own */
#include <vector>

#define THREADS_MAX 1024
#define WARP        32
#define STACK_BYTES (64u << 10) /* kernels keep their arrays small */
#define SHARED_MAX  (99u << 10) /* what a block of sm_89 and sm_120 may ask for */

struct emulate_place emulate_place;

/* ---- fibres ---- */

#if defined(__x86_64__)
/* Registers that a call keeps, then the stack: swapcontext would ask the kernel about signals every time. */
struct context {
    void *stack;
};

extern "C" void emulate_switch(void **save, void *load);
asm(".text\n"
    ".globl emulate_switch\n"
    ".type emulate_switch, @function\n"
    "emulate_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size emulate_switch, . - emulate_switch\n");

static void context_switch(struct context *from, struct context *to)
{
    emulate_switch(&from->stack, to->stack);
}

static void context_start(struct context *c, uint8_t *stack, void (*entry)())
{
    /* From the top: a return address that nobody uses, the entry, six registers. */
    uint64_t *top = (uint64_t *)(void *)(stack + STACK_BYTES);
    memset(top - 8, 0, 8 * sizeof *top);
    top[-2] = (uint64_t)entry;
    c->stack = top - 8;
}
#else
struct context {
    ucontext_t u;
};

static void context_switch(struct context *from, struct context *to)
{
    swapcontext(&from->u, &to->u);
}

static void context_start(struct context *c, uint8_t *stack, void (*entry)())
{
    getcontext(&c->u);
    c->u.uc_stack.ss_sp = stack;
    c->u.uc_stack.ss_size = STACK_BYTES;
    c->u.uc_link = nullptr;
    makecontext(&c->u, entry, 0);
}
#endif

enum fibre_state { FIBRE_READY, FIBRE_AT_WARP, FIBRE_AT_BLOCK, FIBRE_DONE };

struct copy {
    void *to;
    const void *from;
    size_t size_bytes;
};

struct fibre {
    struct context context;
    dim3 thread;
    enum fibre_state state;
    unsigned parity; /* which half of the warp's words is next */
    std::vector<struct copy> copies;
    std::vector<size_t> sets; /* ends in copies */
};

static struct {
    struct fibre fibres[THREADS_MAX];
    uint8_t *stacks;
    unsigned n, current;
    bool backwards; /* every other launch runs its threads from the last: a missing barrier shows */
    unsigned live, at_block;
    unsigned warp_live[THREADS_MAX / WARP], at_warp[THREADS_MAX / WARP];
    uint32_t words[THREADS_MAX / WARP][2][WARP][EMULATE_WORDS];
    struct context scheduler;
    const std::function<void()> *run;
    std::vector<uint64_t> shared;
} e;

[[noreturn]] static void stop(const char *what)
{
    fprintf(stderr, "emulation: %s (block %u %u %u, thread %u)\n", what, emulate_place.block.x,
            emulate_place.block.y, emulate_place.block.z, emulate_place.thread.x);
    abort();
}

static void release(enum fibre_state from, unsigned begin, unsigned end)
{
    for (unsigned i = begin; i < end && i < e.n; i++) {
        if (e.fibres[i].state == from) {
            e.fibres[i].state = FIBRE_READY;
        }
    }
}

/* Lets the warp (the block) go on when all that live have come. */
static void look_at_warp(unsigned warp)
{
    if (e.at_warp[warp] && e.at_warp[warp] == e.warp_live[warp]) {
        e.at_warp[warp] = 0;
        release(FIBRE_AT_WARP, warp * WARP, warp * WARP + WARP);
    }
}

static void look_at_block()
{
    if (e.at_block && e.at_block == e.live) {
        e.at_block = 0;
        release(FIBRE_AT_BLOCK, 0, e.n);
    }
}

static void sleep_as(enum fibre_state state)
{
    struct fibre *f = &e.fibres[e.current];
    unsigned warp = e.current / WARP;
    f->state = state;
    if (state == FIBRE_AT_WARP) {
        e.at_warp[warp]++;
        look_at_warp(warp);
    } else {
        e.at_block++;
        look_at_block();
    }
    if (f->state != FIBRE_READY) {
        context_switch(&f->context, &e.scheduler);
    }
}

void __syncthreads()
{
    sleep_as(FIBRE_AT_BLOCK);
}

void __syncwarp()
{
    sleep_as(FIBRE_AT_WARP);
}

unsigned emulate_lane()
{
    return e.current % WARP;
}

const uint32_t (*emulate_share(const uint32_t *words, unsigned n))[EMULATE_WORDS]
{
    struct fibre *f = &e.fibres[e.current];
    uint32_t(*all)[EMULATE_WORDS] = e.words[e.current / WARP][f->parity];
    memcpy(all[e.current % WARP], words, n * sizeof *words);
    f->parity ^= 1;
    sleep_as(FIBRE_AT_WARP);
    return all;
}

void emulate_aligned(const void *p, size_t alignment)
{
    if ((uintptr_t)p % alignment) {
        stop("a load that is not aligned");
    }
}

void emulate_copy(void *to, const void *from, size_t size_bytes)
{
    emulate_aligned(to, size_bytes);
    emulate_aligned(from, size_bytes);
    e.fibres[e.current].copies.push_back({ to, from, size_bytes });
}

void emulate_copies_commit()
{
    struct fibre *f = &e.fibres[e.current];
    f->sets.push_back(f->copies.size());
}

void emulate_copies_wait(unsigned n)
{
    struct fibre *f = &e.fibres[e.current];
    if (f->sets.size() <= n) {
        return;
    }
    size_t n_sets = f->sets.size() - n, end = f->sets[n_sets - 1];
    for (size_t i = 0; i < end; i++) {
        memcpy(f->copies[i].to, f->copies[i].from, f->copies[i].size_bytes);
    }
    f->copies.erase(f->copies.begin(), f->copies.begin() + (ptrdiff_t)end);
    f->sets.erase(f->sets.begin(), f->sets.begin() + (ptrdiff_t)n_sets);
    for (size_t &set : f->sets) {
        set -= end;
    }
}

void *emulate_shared()
{
    return e.shared.data();
}

static void body()
{
    (*e.run)();
    struct fibre *f = &e.fibres[e.current];
    unsigned warp = e.current / WARP;
    f->state = FIBRE_DONE;
    e.live--;
    e.warp_live[warp]--;
    look_at_warp(warp);
    look_at_block();
    context_switch(&f->context, &e.scheduler);
}

static void start_fibre(unsigned i, dim3 block)
{
    struct fibre *f = &e.fibres[i];
    f->thread = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
    f->state = FIBRE_READY;
    f->parity = 0;
    f->copies.clear();
    f->sets.clear();
    e.warp_live[i / WARP]++;
    context_start(&f->context, e.stacks + (size_t)i * STACK_BYTES, body);
}

static void run_block(dim3 block)
{
    e.live = e.n;
    e.at_block = 0;
    memset(e.warp_live, 0, sizeof e.warp_live);
    memset(e.at_warp, 0, sizeof e.at_warp);
    for (unsigned i = 0; i < e.n; i++) {
        start_fibre(i, block);
    }
    while (e.live > 0) {
        bool moved = false;
        for (unsigned at = 0; at < e.n; at++) {
            unsigned i = e.backwards ? e.n - 1 - at : at;
            struct fibre *f = &e.fibres[i];
            if (f->state == FIBRE_READY) {
                moved = true;
                e.current = i;
                emulate_place.thread = f->thread;
                context_switch(&e.scheduler, &f->context);
            }
        }
        if (!moved) {
            stop("threads wait for each other");
        }
    }
}

void emulate_run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &run)
{
    e.n = block.x * block.y * block.z;
    if (e.n == 0 || e.n > THREADS_MAX || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        grid.y > 65535 || grid.z > 65535 || shared_bytes > SHARED_MAX) {
        stop("a launch that a device refuses");
    }
    if (!e.stacks) {
        e.stacks = (uint8_t *)aligned_alloc(64, (size_t)THREADS_MAX * STACK_BYTES);
    }
    e.run = &run;
    e.backwards = !e.backwards;
    e.shared.assign((shared_bytes + 7) / 8, 0xfff8dead00000000u);
    emulate_place.grid_dim = grid;
    emulate_place.block_dim = block;
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                emulate_place.block = dim3(x, y, z);
                run_block(block);
            }
        }
    }
}
