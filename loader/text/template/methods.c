/* Methods of dicts, lists, loops and cyclers. A row without a function is a method that changes its
 * object: known, and refused when called. append and pop of lists are allowed (Kimi K2 needs them):
 * the context is the engine's own copy. */
#include <string.h>

#include "loader/text/template/eval.h"

#define ARGS struct vm *vm, struct value self, struct value *argv, const struct args *args
#define UNUSED_ARGS                                                                                \
    (void)argv;                                                                                    \
    (void)args

/* --- dict --- */

static struct value dict_get(ARGS)
{
    (void)args;
    const struct value *found = dict_find(vm, self.dict, argv[0]);
    if (found) {
        return *found;
    }
    return argv[1].kind == VALUE_ABSENT ? value_none() : argv[1];
}

static struct value dict_view(struct vm *vm, const struct dict *dict, const char *name, int part)
{
    struct value out = seq_new(vm, VALUE_VIEW, dict->n);
    out.seq->name = name;
    for (size_t i = 0; i < dict->n; i++) {
        struct value item = part == 0 ? dict->entries[i].key : dict->entries[i].value;
        vm_charge(vm, 1);
        if (part == 2) {
            item = seq_new(vm, VALUE_TUPLE, 2);
            seq_push(vm, item.seq, dict->entries[i].key);
            seq_push(vm, item.seq, dict->entries[i].value);
        }
        seq_push(vm, out.seq, item);
    }
    return out;
}

static struct value dict_keys(ARGS)
{
    UNUSED_ARGS;
    return dict_view(vm, self.dict, "dict_keys", 0);
}

static struct value dict_values(ARGS)
{
    UNUSED_ARGS;
    return dict_view(vm, self.dict, "dict_values", 1);
}

static struct value dict_items(ARGS)
{
    UNUSED_ARGS;
    return dict_view(vm, self.dict, "dict_items", 2);
}

static struct value dict_copy(ARGS)
{
    UNUSED_ARGS;
    struct value out = dict_new(vm, VALUE_DICT);
    for (size_t i = 0; i < self.dict->n; i++) {
        dict_put(vm, out.dict, self.dict->entries[i].key, self.dict->entries[i].value);
    }
    return out;
}

const struct native dict_method_table[] = {
    { "get", { "key", "default" }, 1, dict_get },
    { "items", { NULL }, 0, dict_items },
    { "keys", { NULL }, 0, dict_keys },
    { "values", { NULL }, 0, dict_values },
    { "copy", { NULL }, 0, dict_copy },
    { "update", { NULL }, 0, NULL },
    { "pop", { NULL }, 0, NULL },
    { "popitem", { NULL }, 0, NULL },
    { "setdefault", { NULL }, 0, NULL },
    { "clear", { NULL }, 0, NULL },
    { 0 },
};

/* --- list --- */

static struct value list_append(ARGS)
{
    (void)args;
    seq_push(vm, self.seq, argv[0]);
    return value_none();
}

static struct value list_pop(ARGS)
{
    (void)args;
    struct seq *seq = self.seq;
    int64_t i = arg_int(vm, argv[0], -1, "pop"), n = (int64_t)seq->n;
    i += i < 0 ? n : 0;
    if (i < 0 || i >= n) {
        vm_fail(vm, TEMPLATE_RUNTIME, n ? "pop index out of range" : "pop from empty list");
    }
    struct value item = seq->items[i];
    vm_charge(vm, (uint64_t)(n - i) / 4);
    memmove(seq->items + i, seq->items + i + 1, (size_t)(n - i - 1) * sizeof *seq->items);
    seq->n--;
    return item;
}

static struct value list_index(ARGS)
{
    (void)args;
    for (size_t i = 0; i < self.seq->n; i++) {
        if (value_equal(vm, self.seq->items[i], argv[0])) {
            return value_int((int64_t)i);
        }
    }
    vm_fail(vm, TEMPLATE_RUNTIME, "the value is not in the list");
}

static struct value list_count(ARGS)
{
    (void)args;
    int64_t n = 0;
    for (size_t i = 0; i < self.seq->n; i++) {
        n += value_equal(vm, self.seq->items[i], argv[0]);
    }
    return value_int(n);
}

static struct value list_copy(ARGS)
{
    UNUSED_ARGS;
    struct value out = seq_new(vm, VALUE_LIST, self.seq->n);
    vm_charge(vm, self.seq->n / 4);
    for (size_t i = 0; i < self.seq->n; i++) {
        seq_push(vm, out.seq, self.seq->items[i]);
    }
    return out;
}

const struct native list_method_table[] = {
    { "append", { "object" }, 1, list_append },
    { "pop", { "index" }, 0, list_pop },
    { "index", { "value" }, 1, list_index },
    { "count", { "value" }, 1, list_count },
    { "copy", { NULL }, 0, list_copy },
    { "extend", { NULL }, 0, NULL },
    { "insert", { NULL }, 0, NULL },
    { "remove", { NULL }, 0, NULL },
    { "reverse", { NULL }, 0, NULL },
    { "sort", { NULL }, 0, NULL },
    { "clear", { NULL }, 0, NULL },
    { 0 },
};

/* --- loop --- */

static struct value loop_cycle(ARGS)
{
    (void)argv;
    if (args->n == 0) {
        vm_fail(vm, TEMPLATE_RUNTIME, "no items for cycling given");
    }
    return args->positional[self.loop->idx % args->n];
}

static struct value loop_changed(ARGS)
{
    (void)argv;
    struct value now = seq_new(vm, VALUE_TUPLE, args->n);
    for (size_t i = 0; i < args->n; i++) {
        seq_push(vm, now.seq, args->positional[i]);
    }
    bool same = self.loop->changed.kind == VALUE_TUPLE && value_equal(vm, self.loop->changed, now);
    self.loop->changed = now;
    return value_bool(!same);
}

const struct native loop_method_table[] = {
    { "cycle", { NULL }, NATIVE_RAW, loop_cycle },
    { "changed", { NULL }, NATIVE_RAW, loop_changed },
    { 0 },
};

/* --- cycler --- */

static struct value cycler_next(ARGS)
{
    (void)vm;
    UNUSED_ARGS;
    struct cycler *cycler = self.cycler;
    struct value item = cycler->items[cycler->pos];
    cycler->pos = (cycler->pos + 1) % cycler->n;
    return item;
}

static struct value cycler_reset(ARGS)
{
    (void)vm;
    UNUSED_ARGS;
    self.cycler->pos = 0;
    return value_none();
}

const struct native cycler_method_table[] = {
    { "next", { NULL }, 0, cycler_next },
    { "reset", { NULL }, 0, cycler_reset },
    { 0 },
};
