#include "loader/text/template/eval.h"

static struct value eval_items(struct vm *vm, const struct node *node, struct scope *scope,
                               enum value_kind kind)
{
    struct value out = seq_new(vm, kind, node->items.n);
    for (size_t i = 0; i < node->items.n; i++) {
        seq_push(vm, out.seq, eval(vm, node->items.v[i], scope));
    }
    return out;
}

static struct value eval_dict(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value out = dict_new(vm, VALUE_DICT);
    for (size_t i = 0; i + 1 < node->items.n; i += 2) {
        struct value key = eval(vm, node->items.v[i], scope);
        dict_put(vm, out.dict, key, eval(vm, node->items.v[i + 1], scope));
    }
    return out;
}

static struct value eval_concat(struct vm *vm, const struct node *node, struct scope *scope)
{
    const struct str *out = print_str(vm, eval(vm, node->items.v[0], scope));
    for (size_t i = 1; i < node->items.n; i++) {
        out = str_join2(vm, out, print_str(vm, eval(vm, node->items.v[i], scope)));
    }
    return value_str(out);
}

/* a < b < c: each operand once, as long as it holds. */
static struct value eval_compare(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value left = eval(vm, node->items.v[0], scope);
    for (size_t i = 1; i < node->items.n; i++) {
        struct value right = eval(vm, node->items.v[i], scope);
        vm->line = node->line;
        if (!op_compare(vm, node->ops[i - 1], left, right)) {
            return value_bool(false);
        }
        left = right;
    }
    return value_bool(true);
}

static struct value eval_slice(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value object = eval(vm, node->a, scope);
    const struct node *const parts[] = { node->b, node->c, node->d };
    struct value bounds[3];
    for (int i = 0; i < 3; i++) {
        bounds[i] = parts[i] ? eval(vm, parts[i], scope) : value_none();
    }
    vm->line = node->line;
    return lookup_slice(vm, object, bounds[0], bounds[1], bounds[2]);
}

static struct value eval_call(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value callee = eval(vm, node->a, scope);
    struct args args = call_args_eval(vm, node->args, scope);
    vm->line = node->line;
    return call_value(vm, callee, &args);
}

static struct value eval_filter(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value self = eval(vm, node->a, scope);
    struct args args = call_args_eval(vm, node->args, scope);
    vm->line = node->line;
    return filter_apply(vm, node->name, self, &args);
}

static struct value eval_test(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value self = eval(vm, node->a, scope);
    struct args args = call_args_eval(vm, node->args, scope);
    vm->line = node->line;
    return value_bool(test_apply(vm, node->name, self, &args));
}

static struct value eval_binary(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value a = eval(vm, node->a, scope);
    struct value b = eval(vm, node->b, scope);
    vm->line = node->line;
    return op_binary(vm, node->op, a, b);
}

static struct value eval_item(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value a = eval(vm, node->a, scope);
    struct value b = eval(vm, node->b, scope);
    vm->line = node->line;
    return lookup_item(vm, a, b, node);
}

static struct value eval_attr(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value a = eval(vm, node->a, scope);
    vm->line = node->line;
    return lookup_attr(vm, a, node->name, node);
}

static struct value eval_cond(struct vm *vm, const struct node *node, struct scope *scope)
{
    if (value_truth(eval(vm, node->b, scope))) {
        return eval(vm, node->a, scope);
    }
    return node->c ? eval(vm, node->c, scope) : value_undefined();
}

static struct value eval_logic(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value a = eval(vm, node->a, scope);
    return value_truth(a) == (node->kind == NODE_AND) ? eval(vm, node->b, scope) : a;
}

static struct value eval_kind(struct vm *vm, const struct node *node, struct scope *scope)
{
    switch (node->kind) {
    case NODE_CONST:
        return node->constant;
    case NODE_NAME:
        return scope_find(vm, scope, node);
    case NODE_LIST:
        return eval_items(vm, node, scope, VALUE_LIST);
    case NODE_TUPLE:
        return eval_items(vm, node, scope, VALUE_TUPLE);
    case NODE_DICT:
        return eval_dict(vm, node, scope);
    case NODE_NEG:
    case NODE_POS:
        return op_negate(vm, eval(vm, node->a, scope), node->kind == NODE_NEG);
    case NODE_NOT:
        return value_bool(!value_truth(eval(vm, node->a, scope)));
    case NODE_AND:
    case NODE_OR:
        return eval_logic(vm, node, scope);
    case NODE_BINARY:
        return eval_binary(vm, node, scope);
    case NODE_CONCAT:
        return eval_concat(vm, node, scope);
    case NODE_COMPARE:
        return eval_compare(vm, node, scope);
    case NODE_COND:
        return eval_cond(vm, node, scope);
    case NODE_FILTER:
        return eval_filter(vm, node, scope);
    case NODE_TEST:
        return eval_test(vm, node, scope);
    case NODE_CALL:
        return eval_call(vm, node, scope);
    case NODE_ATTR:
        return eval_attr(vm, node, scope);
    case NODE_ITEM:
        return eval_item(vm, node, scope);
    case NODE_SLICE:
        return eval_slice(vm, node, scope);
    default:
        vm_fail(vm, TEMPLATE_COMPILE, "a statement stands where a value should");
    }
}

struct value eval(struct vm *vm, const struct node *node, struct scope *scope)
{
    vm_charge(vm, 1);
    vm->line = node->line;
    if (++vm->depth > TEMPLATE_DEPTH_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "evaluation is nested deeper than %d", TEMPLATE_DEPTH_MAX);
    }
    struct value value = eval_kind(vm, node, scope);
    vm->depth--;
    return value;
}
