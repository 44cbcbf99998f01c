/* Evaluation: expressions to values, statements to text. A tree walk; vm->depth bounds how far it
 * recurses, vm->steps how long it takes. */
#pragma once

#include "loader/text/template/node.h"
#include "loader/text/template/str.h"

/* Variables of one block. The outermost is vm->globals; the context stands behind that. */
struct scope {
    struct scope *parent;
    struct var *vars;
    size_t n, cap;
    bool captured; /* a macro or caller made inside still sees it: it cannot be used again */
};

struct var {
    const struct str *name;
    struct value value;
};

/* Arguments after evaluation. */
struct args {
    struct value *positional;
    size_t n;
    const struct str **names;
    struct value *keywords;
    size_t n_keywords;
};

#define NATIVE_PARAMS_MAX 6
#define NATIVE_RAW        (-1)

/* A row of the tables of filters, tests, methods and globals. argv has one entry per name in params, VALUE_ABSENT where
 * none was given; a NATIVE_RAW row gets its arguments unbound in args. self: the filtered or tested value, the
 * method's object. */
struct native {
    const char *name;
    const char *params[NATIVE_PARAMS_MAX];
    int n_required; /* leading params that must be given, or NATIVE_RAW */
    struct value (*call)(struct vm *vm, struct value self, struct value *argv,
                         const struct args *args);
};

struct func {
    const struct native *native; /* with self; or */
    struct value self;
    const struct macro *macro; /* with the scope it was defined in */
    struct scope *scope;
};

struct loop {
    struct seq *items;
    size_t n, idx; /* items when it began; index from 0 */
    int depth;     /* of recursive calls, from 0 */
    const struct node *node;
    struct scope *scope;  /* around the loop */
    struct value changed; /* what changed() was last asked, VALUE_ABSENT at first */
};

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

/* eval.c */
struct value eval(struct vm *vm, const struct node *node, struct scope *scope);
/* exec.c */
enum flow exec(struct vm *vm, const struct node *node, struct scope *scope);
struct value exec_capture(struct vm *vm, const struct node *body, struct scope *scope);
struct value exec_loop_again(struct vm *vm, struct loop *loop, struct value items);
void exec_assign(struct vm *vm, const struct node *target, struct value value, struct scope *scope);

/* scope.c */
struct scope *scope_new(struct vm *vm, struct scope *parent);
void scope_set(struct vm *vm, struct scope *scope, const struct str *name, struct value value);
struct value scope_find(struct vm *vm, struct scope *scope, const struct node *name);
/* object.name and object[key]; undefined (with node for its message) when there is none. */
struct value lookup_attr(struct vm *vm, struct value object, const struct str *name,
                         const struct node *node);
struct value lookup_item(struct vm *vm, struct value object, struct value key,
                         const struct node *node);
struct value lookup_slice(struct vm *vm, struct value object, struct value from, struct value to,
                          struct value step);
/* A dotted path or a number, as map(attribute=...) takes it. */
struct value lookup_path(struct vm *vm, struct value object, struct value path);

/* call.c */
struct args call_args_eval(struct vm *vm, const struct call_args *written, struct scope *scope);
struct value call_value(struct vm *vm, struct value callee, const struct args *args);
struct value call_native(struct vm *vm, const struct native *native, struct value self,
                         const struct args *args);
struct value func_native(struct vm *vm, const struct native *native, struct value self);
struct value func_macro(struct vm *vm, const struct macro *macro, struct scope *scope);
const struct native *native_find(const struct native *table, const struct str *name);
struct value filter_apply(struct vm *vm, const struct str *name, struct value self,
                          const struct args *args);
bool test_apply(struct vm *vm, const struct str *name, struct value self, const struct args *args);

/* ops.c */
struct value op_binary(struct vm *vm, enum op op, struct value a, struct value b);
struct value op_negate(struct vm *vm, struct value a, bool negative);
bool op_compare(struct vm *vm, enum op op, struct value a, struct value b);

/* print.c */
void print_value(struct text *out, struct value v); /* as {{ v }} */
void print_repr(struct text *out, struct value v);
const struct str *print_str(struct vm *vm, struct value v);
struct json_style {
    const char *item_separator, *key_separator;
    size_t item_len, key_len;
    const char *indent; /* NULL: on one line */
    size_t indent_len;
    bool ascii, sort_keys;
};
void print_json(struct text *out, struct value v, const struct json_style *style, int level);
#define FLOAT_TEXT_MAX 40
size_t print_float(double f, char out[FLOAT_TEXT_MAX]); /* Python's repr */

/* format.c */
struct value format_percent(struct vm *vm, const struct str *format, struct value args);
struct value format_braces(struct vm *vm, const struct str *format, const struct args *args);

/* The tables, each ended by an empty row. */
extern const struct native filter_table[];      /* filters.c */
extern const struct native filter_text_table[]; /* filters_text.c */
extern const struct native filter_seq_table[];  /* filters_seq.c */
extern const struct native test_table[];        /* tests.c */
extern const struct native str_method_table[];  /* methods_str.c */
extern const struct native dict_method_table[]; /* methods.c */
extern const struct native list_method_table[];
extern const struct native loop_method_table[];
extern const struct native cycler_method_table[];
extern const struct native global_table[]; /* globals.c */

/* Arguments of natives: the value, or what stands for it when absent; fail with the native's name. */
int64_t arg_int(struct vm *vm, struct value v, int64_t absent, const char *what);
bool arg_bool(struct value v, bool absent);
const struct str *arg_str(struct vm *vm, struct value v, const char *what);
