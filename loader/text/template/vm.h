/* What one compile or one render holds: an arena, the counters that bound it, and the way out.
 *
 * An error leaves through one longjmp to the public function. A hundred leaf functions then need no
 * error path, and nothing leaks: every allocation is in the arena, freed as a whole, and the only
 * foreign object (a parsed JSON of from_json) is registered in `held`. */
#pragma once

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loader/text/template/bounds.h"
#include "loader/text/template/template.h"

struct arena_block;

struct arena {
    struct arena_block *top;
    size_t used;  /* bytes taken from the system */
    size_t limit; /* of used */
};

struct scope;
struct text;
struct dict;

struct vm {
    struct arena arena;
    jmp_buf escape;
    enum template_failure failure;
    char *message; /* malloc'ed, may be NULL when memory is out */
    bool no_memory;
    int line;       /* of the node at work */
    int depth;      /* evaluations inside each other */
    int macros;     /* macro calls inside each other */
    uint64_t steps; /* done so far */
    int64_t now;
    struct text *out;      /* where statements print */
    struct dict *context;  /* the caller's variables */
    struct scope *globals; /* the template's own top-level variables */
    struct json *held;
};

/* Ends the compile or render. Does not return. */
_Noreturn void vm_fail(struct vm *vm, enum template_failure failure, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same with a message of len bytes as it stands. */
_Noreturn void vm_raise(struct vm *vm, enum template_failure failure, const char *message,
                        size_t len);

/* size bytes, zeroed, aligned for anything; never NULL. Lives as long as the vm. */
void *vm_alloc(struct vm *vm, size_t size);
/* n elements of size bytes. */
void *vm_array(struct vm *vm, size_t n, size_t size);
/* A block of old_size bytes becomes new_size, in place when it is the newest. Only the old bytes are defined. */
void *vm_grow(struct vm *vm, void *block, size_t old_size, size_t new_size);

/* Counts steps of work and fails past the bound. */
void vm_charge(struct vm *vm, uint64_t steps);
/* Counts bytes looked at or copied. */
static inline void vm_charge_bytes(struct vm *vm, size_t n)
{
    vm_charge(vm, 1 + n / TEMPLATE_WORK_UNIT);
}

void vm_free(struct vm *vm);
