/* Calls: arguments, macros, natives, filters and tests by name. */
#include <string.h>

#include "loader/text/template/eval.h"

static void add_keyword(struct vm *vm, struct args *args, const struct str *name,
                        struct value value)
{
    for (size_t i = 0; i < args->n_keywords; i++) {
        if (args->names[i]->len == name->len &&
            memcmp(args->names[i]->p, name->p, name->len) == 0) {
            vm_fail(vm, TEMPLATE_RUNTIME, "the argument '%.*s' stands twice", (int)name->len,
                    name->p);
        }
    }
    args->names[args->n_keywords] = name;
    args->keywords[args->n_keywords++] = value;
}

struct args call_args_eval(struct vm *vm, const struct call_args *written, struct scope *scope)
{
    struct args args = { .n = 0 };
    struct seq *star = NULL;
    const struct dict *starstar = NULL;
    if (written->star) {
        star = value_iterate(vm, eval(vm, written->star, scope));
    }
    if (written->starstar) {
        struct value v = eval(vm, written->starstar, scope);
        if (v.kind != VALUE_DICT) {
            vm_fail(vm, TEMPLATE_RUNTIME, "argument after ** must be a mapping, not %s",
                    value_type_name(v));
        }
        starstar = v.dict;
    }
    size_t n = written->positional.n + (star ? star->n : 0);
    size_t n_keywords = written->keywords.n + (starstar ? starstar->n : 0);
    if (n + n_keywords > TEMPLATE_ARGS_MAX * 2) {
        vm_fail(vm, TEMPLATE_LIMIT, "a call with more than %d arguments", TEMPLATE_ARGS_MAX * 2);
    }
    if (n) {
        args.positional = vm_array(vm, n, sizeof *args.positional);
    }
    for (size_t i = 0; i < written->positional.n; i++) {
        args.positional[args.n++] = eval(vm, written->positional.v[i], scope);
    }
    for (size_t i = 0; star && i < star->n; i++) {
        args.positional[args.n++] = star->items[i];
    }
    if (n_keywords) {
        args.names = vm_array(vm, n_keywords, sizeof *args.names);
        args.keywords = vm_array(vm, n_keywords, sizeof *args.keywords);
    }
    for (size_t i = 0; i < written->keywords.n; i++) {
        add_keyword(vm, &args, written->names[i], eval(vm, written->keywords.v[i], scope));
    }
    for (size_t i = 0; starstar && i < starstar->n; i++) {
        if (starstar->entries[i].key.kind != VALUE_STR) {
            vm_fail(vm, TEMPLATE_RUNTIME, "keywords must be strings");
        }
        add_keyword(vm, &args, starstar->entries[i].key.s, starstar->entries[i].value);
    }
    return args;
}

/* --- natives --- */

const struct native *native_find(const struct native *table, const struct str *name)
{
    for (; table->name; table++) {
        if (str_eq(name, table->name)) {
            return table;
        }
    }
    return NULL;
}

struct value call_native(struct vm *vm, const struct native *native, struct value self,
                         const struct args *args)
{
    vm_charge(vm, 1);
    if (!native->call) {
        vm_fail(vm, TEMPLATE_SANDBOX, "the method '%s' changes its object: not allowed",
                native->name);
    }
    struct value argv[NATIVE_PARAMS_MAX] = { 0 };
    if (native->n_required == NATIVE_RAW) {
        return native->call(vm, self, argv, args);
    }
    size_t n_params = 0;
    while (n_params < NATIVE_PARAMS_MAX && native->params[n_params]) {
        n_params++;
    }
    if (args->n > n_params) {
        vm_fail(vm, TEMPLATE_RUNTIME, "%s() takes at most %zu arguments, %zu given", native->name,
                n_params, args->n);
    }
    for (size_t i = 0; i < args->n; i++) {
        argv[i] = args->positional[i];
    }
    for (size_t i = 0; i < args->n_keywords; i++) {
        size_t k = 0;
        while (k < n_params && !str_eq(args->names[i], native->params[k])) {
            k++;
        }
        if (k == n_params || argv[k].kind != VALUE_ABSENT) {
            vm_fail(vm, TEMPLATE_RUNTIME, "%s() cannot take the argument '%.*s'", native->name,
                    (int)args->names[i]->len, args->names[i]->p);
        }
        argv[k] = args->keywords[i];
    }
    for (int i = 0; i < native->n_required; i++) {
        if (argv[i].kind == VALUE_ABSENT) {
            vm_fail(vm, TEMPLATE_RUNTIME, "%s() misses the argument '%s'", native->name,
                    native->params[i]);
        }
    }
    return native->call(vm, self, argv, args);
}

struct value func_native(struct vm *vm, const struct native *native, struct value self)
{
    struct func *func = vm_alloc(vm, sizeof *func);
    func->native = native;
    func->self = self;
    return (struct value){ .kind = VALUE_FUNC, .func = func };
}

int64_t arg_int(struct vm *vm, struct value v, int64_t absent, const char *what)
{
    switch (v.kind) {
    case VALUE_ABSENT:
        return absent;
    case VALUE_INT:
        return v.i;
    case VALUE_BOOL:
        return v.b;
    default:
        value_need(vm, v);
        vm_fail(vm, TEMPLATE_RUNTIME, "%s: expected an integer, got %s", what, value_type_name(v));
    }
}

bool arg_bool(struct value v, bool absent)
{
    return v.kind == VALUE_ABSENT ? absent : value_truth(v);
}

const struct str *arg_str(struct vm *vm, struct value v, const char *what)
{
    if (v.kind != VALUE_STR) {
        value_need(vm, v);
        vm_fail(vm, TEMPLATE_RUNTIME, "%s: expected a string, got %s", what, value_type_name(v));
    }
    return v.s;
}

/* --- macros --- */

struct value func_macro(struct vm *vm, const struct macro *macro, struct scope *scope)
{
    struct func *func = vm_alloc(vm, sizeof *func);
    func->macro = macro;
    func->scope = scope;
    for (struct scope *s = scope; s && !s->captured; s = s->parent) {
        s->captured = true;
    }
    return (struct value){ .kind = VALUE_FUNC, .func = func };
}

/* Keyword i of a macro call: to its parameter, to caller, or to kwargs. */
static void bind_keyword(struct vm *vm, const struct macro *macro, struct scope *scope,
                         struct value *params, struct dict *kwargs, const struct str *name,
                         struct value value)
{
    for (size_t k = 0; k < macro->params.n; k++) {
        const struct str *param = macro->params.v[k]->name;
        if (param->len == name->len && memcmp(param->p, name->p, name->len) == 0) {
            if (params[k].kind != VALUE_ABSENT) {
                vm_fail(vm, TEMPLATE_RUNTIME, "macro '%.*s' got the argument '%.*s' twice",
                        (int)macro->name->len, macro->name->p, (int)name->len, name->p);
            }
            params[k] = value;
            return;
        }
    }
    if (str_eq(name, "caller") && macro->uses_caller) {
        scope_set(vm, scope, name, value);
    } else if (macro->uses_kwargs) {
        dict_put(vm, kwargs, value_str(name), value);
    } else {
        vm_fail(vm, TEMPLATE_RUNTIME, "macro '%.*s' takes no keyword argument '%.*s'",
                (int)macro->name->len, macro->name->p, (int)name->len, name->p);
    }
}

static void bind_macro(struct vm *vm, const struct macro *macro, struct scope *scope,
                       const struct args *args)
{
    static const struct str varargs_name = { .p = "varargs", .len = 7, .trusted = true };
    static const struct str kwargs_name = { .p = "kwargs", .len = 6, .trusted = true };
    size_t n = macro->params.n;
    if (args->n > n && !macro->uses_varargs) {
        vm_fail(vm, TEMPLATE_RUNTIME, "macro '%.*s' takes not more than %zu argument(s)",
                (int)macro->name->len, macro->name->p, n);
    }
    struct value *params = vm_array(vm, n + 1, sizeof *params);
    struct value kwargs = dict_new(vm, VALUE_DICT);
    for (size_t i = 0; i < n && i < args->n; i++) {
        params[i] = args->positional[i];
    }
    for (size_t i = 0; i < args->n_keywords; i++) {
        bind_keyword(vm, macro, scope, params, kwargs.dict, args->names[i], args->keywords[i]);
    }
    for (size_t i = 0; i < n; i++) {
        if (params[i].kind == VALUE_ABSENT) {
            params[i] = macro->defaults[i]
                            ? eval(vm, macro->defaults[i], scope)
                            : (struct value){ .kind = VALUE_UNDEFINED, .node = macro->params.v[i] };
        }
        scope_set(vm, scope, macro->params.v[i]->name, params[i]);
    }
    if (macro->uses_varargs) {
        struct value rest = seq_new(vm, VALUE_TUPLE, 0);
        for (size_t i = n; i < args->n; i++) {
            seq_push(vm, rest.seq, args->positional[i]);
        }
        scope_set(vm, scope, &varargs_name, rest);
    }
    if (macro->uses_kwargs) {
        scope_set(vm, scope, &kwargs_name, kwargs);
    }
}

static struct value call_macro(struct vm *vm, const struct func *func, const struct args *args)
{
    if (++vm->macros > TEMPLATE_MACRO_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "macros call each other deeper than %d", TEMPLATE_MACRO_MAX);
    }
    struct scope *scope = scope_new(vm, func->scope);
    bind_macro(vm, func->macro, scope, args);
    struct value text = exec_capture(vm, func->macro->body, scope);
    vm->macros--;
    return text;
}

struct value call_value(struct vm *vm, struct value callee, const struct args *args)
{
    if (callee.kind == VALUE_FUNC) {
        return callee.func->macro ? call_macro(vm, callee.func, args)
                                  : call_native(vm, callee.func->native, callee.func->self, args);
    }
    if (callee.kind == VALUE_LOOP && args->n == 1) {
        return exec_loop_again(vm, callee.loop, args->positional[0]);
    }
    if (callee.kind == VALUE_JOINER) {
        return callee.cycler->pos++ ? callee.cycler->items[0] : str_literal(vm, "");
    }
    value_need(vm, callee);
    vm_fail(vm, TEMPLATE_RUNTIME, "'%s' object is not callable", value_type_name(callee));
}

/* --- filters and tests by name --- */

struct value filter_apply(struct vm *vm, const struct str *name, struct value self,
                          const struct args *args)
{
    const struct native *native = native_find(filter_table, name);
    native = native ? native : native_find(filter_text_table, name);
    native = native ? native : native_find(filter_seq_table, name);
    if (!native) {
        vm_fail(vm, TEMPLATE_MISUSE, "no filter named '%.*s'", (int)name->len, name->p);
    }
    return call_native(vm, native, self, args);
}

bool test_apply(struct vm *vm, const struct str *name, struct value self, const struct args *args)
{
    const struct native *native = native_find(test_table, name);
    if (!native) {
        vm_fail(vm, TEMPLATE_MISUSE, "no test named '%.*s'", (int)name->len, name->p);
    }
    return value_truth(call_native(vm, native, self, args));
}
