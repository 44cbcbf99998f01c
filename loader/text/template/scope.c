/* Names, attributes, items and slices. */
#include <string.h>

#include "loader/text/template/eval.h"

struct scope *scope_new(struct vm *vm, struct scope *parent)
{
    struct scope *scope = vm_alloc(vm, sizeof *scope);
    scope->parent = parent;
    return scope;
}

static bool same_name(const struct str *a, const struct str *b)
{
    return a == b || (a->len == b->len && memcmp(a->p, b->p, a->len) == 0);
}

void scope_set(struct vm *vm, struct scope *scope, const struct str *name, struct value value)
{
    vm_charge(vm, 1 + scope->n / 8);
    for (size_t i = 0; i < scope->n; i++) {
        if (same_name(scope->vars[i].name, name)) {
            scope->vars[i].value = value;
            return;
        }
    }
    if (scope->n == scope->cap) {
        size_t cap = scope->cap ? scope->cap * 2 : 4;
        scope->vars = vm_grow(vm, scope->vars, scope->n * sizeof *scope->vars,
                              cap * sizeof *scope->vars);
        scope->cap = cap;
    }
    scope->vars[scope->n++] = (struct var){ .name = name, .value = value };
}

struct value scope_find(struct vm *vm, struct scope *scope, const struct node *node)
{
    for (; scope; scope = scope->parent) {
        vm_charge(vm, 1 + scope->n / 8);
        for (size_t i = 0; i < scope->n; i++) {
            if (same_name(scope->vars[i].name, node->name)) {
                return scope->vars[i].value;
            }
        }
    }
    const struct value *found = dict_find(vm, vm->context, value_str(node->name));
    if (found) {
        return *found;
    }
    const struct native *native = native_find(global_table, node->name);
    if (native) {
        return func_native(vm, native, value_none());
    }
    return (struct value){ .kind = VALUE_UNDEFINED, .node = node };
}

static struct value undefined_at(const struct node *node)
{
    return (struct value){ .kind = VALUE_UNDEFINED, .node = node };
}

static struct value macro_attr(struct vm *vm, const struct func *func, const struct str *name,
                               const struct node *node)
{
    if (!func->macro) {
        return undefined_at(node);
    }
    if (str_eq(name, "name")) {
        return value_str(func->macro->name);
    }
    if (str_eq(name, "arguments")) {
        struct value out = seq_new(vm, VALUE_TUPLE, func->macro->params.n);
        for (size_t i = 0; i < func->macro->params.n; i++) {
            seq_push(vm, out.seq, value_str(func->macro->params.v[i]->name));
        }
        return out;
    }
    if (str_eq(name, "catch_varargs") || str_eq(name, "catch_kwargs")) {
        return value_bool(name->p[6] == 'v' ? func->macro->uses_varargs : func->macro->uses_kwargs);
    }
    return str_eq(name, "caller") ? value_bool(func->macro->uses_caller) : undefined_at(node);
}

static struct value loop_attr(const struct loop *loop, const struct str *name,
                              const struct node *node)
{
    int64_t idx = (int64_t)loop->idx, n = (int64_t)loop->n;
    const struct {
        const char *name;
        struct value value;
    } table[] = {
        { "index", value_int(idx + 1) },
        { "index0", value_int(idx) },
        { "revindex", value_int(n - idx) },
        { "revindex0", value_int(n - idx - 1) },
        { "first", value_bool(idx == 0) },
        { "last", value_bool(idx + 1 == n) },
        { "length", value_int(n) },
        { "depth", value_int(loop->depth + 1) },
        { "depth0", value_int(loop->depth) },
        { "previtem", idx > 0 ? loop->items->items[idx - 1] : undefined_at(node) },
        { "nextitem", idx + 1 < n ? loop->items->items[idx + 1] : undefined_at(node) },
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (str_eq(name, table[i].name)) {
            return table[i].value;
        }
    }
    return undefined_at(node);
}

static const struct native *method_find(struct value object, const struct str *name)
{
    switch (object.kind) {
    case VALUE_STR:
        return native_find(str_method_table, name);
    case VALUE_DICT:
        return native_find(dict_method_table, name);
    case VALUE_LIST:
    case VALUE_TUPLE: {
        const struct native *native = native_find(list_method_table, name);
        bool tuple_has = str_eq(name, "index") || str_eq(name, "count");
        return object.kind == VALUE_LIST || tuple_has ? native : NULL;
    }
    case VALUE_LOOP:
        return native_find(loop_method_table, name);
    case VALUE_CYCLER:
        return native_find(cycler_method_table, name);
    default:
        return NULL;
    }
}

struct value lookup_attr(struct vm *vm, struct value object, const struct str *name,
                         const struct node *node)
{
    value_need(vm, object);
    if (name->len >= 2 && memcmp(name->p, "__", 2) == 0) {
        return undefined_at(node);
    }
    const struct native *native = method_find(object, name);
    if (native) {
        return func_native(vm, native, object);
    }
    switch (object.kind) {
    case VALUE_DICT:
    case VALUE_NAMESPACE: {
        const struct value *found = dict_find(vm, object.dict, value_str(name));
        return found ? *found : undefined_at(node);
    }
    case VALUE_FUNC:
        return macro_attr(vm, object.func, name, node);
    case VALUE_LOOP:
        return loop_attr(object.loop, name, node);
    case VALUE_CYCLER:
        return str_eq(name, "current") ? object.cycler->items[object.cycler->pos]
                                       : undefined_at(node);
    default:
        return undefined_at(node);
    }
}

/* The index as an offset into n items, or -1. */
static int64_t at_index(int64_t i, size_t n)
{
    if (i < 0) {
        i += (int64_t)n;
    }
    return i >= 0 && i < (int64_t)n ? i : -1;
}

struct value lookup_item(struct vm *vm, struct value object, struct value key,
                         const struct node *node)
{
    value_need(vm, object);
    bool indexed = key.kind == VALUE_INT || key.kind == VALUE_BOOL;
    int64_t i = key.kind == VALUE_BOOL ? key.b : key.kind == VALUE_INT ? key.i : 0;
    switch (object.kind) {
    case VALUE_DICT: {
        const struct value *found = dict_find(vm, object.dict, key);
        if (found) {
            return *found;
        }
        break;
    }
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
        if (indexed) {
            i = at_index(i, object.seq->n);
            return i < 0 ? undefined_at(node) : object.seq->items[i];
        }
        break;
    case VALUE_STR:
        if (indexed) {
            i = at_index(i, value_len(vm, object));
            if (i < 0) {
                return undefined_at(node);
            }
            uint32_t cp;
            size_t off = utf8_offset(object.s->p, object.s->len, (size_t)i);
            size_t len = utf8_next(object.s->p + off, object.s->p + object.s->len, &cp);
            return value_str(str_slice(vm, object.s, off, len));
        }
        break;
    default:
        break;
    }
    return key.kind == VALUE_STR ? lookup_attr(vm, object, key.s, node) : undefined_at(node);
}

/* One bound of a slice with step's sign, as Python clamps it. */
static int64_t slice_bound(struct vm *vm, struct value v, int64_t n, int64_t absent, bool down)
{
    if (v.kind == VALUE_NONE || v.kind == VALUE_ABSENT) {
        return absent;
    }
    int64_t i = arg_int(vm, v, 0, "slice");
    if (i < 0) {
        i = i < -n ? -1 : i + n;
        return i < 0 ? (down ? -1 : 0) : i;
    }
    return i > n - down ? n - down : i;
}

struct value lookup_slice(struct vm *vm, struct value object, struct value from, struct value to,
                          struct value step_value)
{
    value_need(vm, object);
    bool is_text = object.kind == VALUE_STR;
    if (!is_text && object.kind != VALUE_LIST && object.kind != VALUE_TUPLE &&
        object.kind != VALUE_RANGE) {
        if (object.kind == VALUE_NONE) {
            return value_undefined();
        }
        vm_fail(vm, TEMPLATE_RUNTIME, "'%s' object cannot be sliced", value_type_name(object));
    }
    int64_t n = (int64_t)value_len(vm, object);
    int64_t step = step_value.kind == VALUE_NONE ? 1 : arg_int(vm, step_value, 1, "slice");
    if (step == 0) {
        vm_fail(vm, TEMPLATE_RUNTIME, "slice step cannot be zero");
    }
    int64_t begin = slice_bound(vm, from, n, step < 0 ? n - 1 : 0, step < 0);
    int64_t end = slice_bound(vm, to, n, step < 0 ? -1 : n, step < 0);
    if (is_text && step == 1) {
        if (begin >= end) {
            return str_literal(vm, "");
        }
        size_t off = utf8_offset(object.s->p, object.s->len, (size_t)begin);
        size_t len = utf8_offset(object.s->p + off, object.s->len - off, (size_t)(end - begin));
        return value_str(str_slice(vm, object.s, off, len));
    }
    struct seq *items = value_iterate(vm, object);
    struct value out = seq_new(vm, object.kind == VALUE_TUPLE ? VALUE_TUPLE : VALUE_LIST, 0);
    struct text text;
    text_init(&text, vm, 0);
    for (int64_t i = begin; step > 0 ? i < end : i > end;) {
        vm_charge(vm, 1);
        if (is_text) {
            text_add_str(&text, items->items[i].s);
        } else {
            seq_push(vm, out.seq, items->items[i]);
        }
        if (__builtin_add_overflow(i, step, &i)) {
            break;
        }
    }
    return is_text ? text_value(&text) : out;
}

struct value lookup_path(struct vm *vm, struct value object, struct value path)
{
    if (path.kind != VALUE_STR) {
        return lookup_item(vm, object, path, NULL);
    }
    const struct str *s = path.s;
    for (size_t off = 0; off <= s->len;) {
        const char *dot = memchr(s->p + off, '.', s->len - off);
        size_t len = dot ? (size_t)(dot - s->p) - off : s->len - off;
        const struct str *part = str_slice(vm, s, off, len);
        struct value key = value_str(part);
        bool digits = len > 0 && len < 10;
        for (size_t i = 0; i < len; i++) {
            digits = digits && part->p[i] >= '0' && part->p[i] <= '9';
        }
        if (digits) {
            int64_t index = 0;
            for (size_t i = 0; i < len; i++) {
                index = index * 10 + (part->p[i] - '0');
            }
            key = value_int(index);
        }
        object = lookup_item(vm, object, key, NULL);
        off += len + 1;
    }
    return object;
}
