#include "loader/text/template/vm.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_SIZE                                                                                 \
    (64u << 10) /* bytes asked from malloc at once; a larger wish gets its own block */
#define ALIGN 16u

struct arena_block {
    struct arena_block *next;
    size_t size, used;
    _Alignas(16) char data[];
};

void vm_raise(struct vm *vm, enum template_failure failure, const char *message, size_t len)
{
    vm->failure = failure;
    vm->message = malloc(len + 1);
    if (vm->message) {
        memcpy(vm->message, message, len);
        vm->message[len] = '\0';
    }
    longjmp(vm->escape, 1);
}

void vm_fail(struct vm *vm, enum template_failure failure, const char *format, ...)
{
    char text[ERR_TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    vm_raise(vm, failure, text, strlen(text));
}

static struct arena_block *block_add(struct vm *vm, size_t size)
{
    struct arena *arena = &vm->arena;
    size_t want = size > BLOCK_SIZE / 4 ? size : BLOCK_SIZE - sizeof(struct arena_block);
    if (size > arena->limit || want > arena->limit - arena->used) {
        vm_fail(vm, TEMPLATE_LIMIT, "needs more than %zu MiB of memory", arena->limit >> 20);
    }
    struct arena_block *block = malloc(sizeof *block + want);
    if (!block) {
        vm->no_memory = true;
        vm_fail(vm, TEMPLATE_LIMIT, "no memory");
    }
    block->size = want;
    block->used = 0;
    arena->used += want;
    if (want == size && arena->top) { /* a block of its own: the one in use stays on top */
        block->next = arena->top->next;
        arena->top->next = block;
    } else {
        block->next = arena->top;
        arena->top = block;
    }
    return block;
}

static void *take(struct vm *vm, size_t size)
{
    if (size > SIZE_MAX - ALIGN) {
        vm_fail(vm, TEMPLATE_LIMIT, "needs too much memory");
    }
    size = (size + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    struct arena_block *block = vm->arena.top;
    if (!block || size > block->size - block->used) {
        block = block_add(vm, size);
    }
    void *p = block->data + block->used;
    block->used += size;
    return p;
}

void *vm_alloc(struct vm *vm, size_t size)
{
    void *p = take(vm, size);
    memset(p, 0, size);
    return p;
}

void *vm_array(struct vm *vm, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) {
        vm_fail(vm, TEMPLATE_LIMIT, "needs too much memory");
    }
    return vm_alloc(vm, bytes);
}

void *vm_grow(struct vm *vm, void *old, size_t old_size, size_t new_size)
{
    struct arena_block *block = vm->arena.top;
    size_t rounded = (old_size + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    if (old && block && (char *)old + rounded == block->data + block->used &&
        new_size <= block->size - (size_t)((char *)old - block->data) - ALIGN) {
        block->used = (size_t)((char *)old - block->data) +
                      ((new_size + ALIGN - 1) & ~(size_t)(ALIGN - 1));
        return old;
    }
    void *p = take(vm, new_size);
    if (old_size) {
        memcpy(p, old, old_size);
    }
    return p;
}

void vm_charge(struct vm *vm, uint64_t steps)
{
    vm->steps += steps;
    if (vm->steps > TEMPLATE_STEPS_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "takes more than %u steps", TEMPLATE_STEPS_MAX);
    }
}

void vm_free(struct vm *vm)
{
    while (vm->arena.top) {
        struct arena_block *next = vm->arena.top->next;
        free(vm->arena.top);
        vm->arena.top = next;
    }
    json_destroy(&vm->held);
    free(vm->message);
    vm->message = NULL;
}
