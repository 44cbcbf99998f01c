/* Statements. */
#include "loader/text/template/eval.h"

static void assign_attr(struct vm *vm, const struct node *target, struct value value,
                        struct scope *scope)
{
    struct value object = scope_find(vm, scope, target->a);
    if (object.kind != VALUE_NAMESPACE) {
        vm_fail(vm, TEMPLATE_MISUSE, "cannot assign attribute on non-namespace object");
    }
    dict_put(vm, object.dict, value_str(target->name), value);
}

void exec_assign(struct vm *vm, const struct node *target, struct value value, struct scope *scope)
{
    if (target->kind == NODE_NAME) {
        scope_set(vm, scope, target->name, value);
        return;
    }
    if (target->kind == NODE_ATTR) {
        assign_attr(vm, target, value, scope);
        return;
    }
    const struct seq *items = value_iterate(vm, value);
    if (items->n != target->items.n) {
        vm_fail(vm, TEMPLATE_RUNTIME, "%s values to unpack (expected %zu, got %zu)",
                items->n > target->items.n ? "too many" : "not enough", target->items.n, items->n);
    }
    for (size_t i = 0; i < items->n; i++) {
        exec_assign(vm, target->items.v[i], items->items[i], scope);
    }
}

struct value exec_capture(struct vm *vm, const struct node *body, struct scope *scope)
{
    struct text text;
    struct text *outer = vm->out;
    text_init(&text, vm, 0);
    vm->out = &text;
    exec(vm, body, scope);
    vm->out = outer;
    return text_value(&text);
}

static enum flow exec_body(struct vm *vm, const struct node *body, struct scope *scope)
{
    for (size_t i = 0; i < body->items.n; i++) {
        enum flow flow = exec(vm, body->items.v[i], scope);
        if (flow != FLOW_ON) {
            return flow;
        }
    }
    return FLOW_ON;
}

static enum flow exec_if(struct vm *vm, const struct node *node, struct scope *scope)
{
    for (size_t i = 0; i + 1 < node->items.n; i += 2) {
        if (value_truth(eval(vm, node->items.v[i], scope))) {
            return exec(vm, node->items.v[i + 1], scope);
        }
    }
    return node->b ? exec(vm, node->b, scope) : FLOW_ON;
}

/* The scope for the next round: the same one, emptied, unless something still sees it. */
static struct scope *fresh_scope(struct vm *vm, struct scope *inner, struct scope *outer)
{
    if (!inner || inner->captured) {
        return scope_new(vm, outer);
    }
    inner->n = 0;
    return inner;
}

/* Items for which the loop's own condition holds. */
static struct seq *filter_items(struct vm *vm, const struct node *node, const struct seq *items,
                                struct scope *scope)
{
    struct seq *kept = seq_new(vm, VALUE_LIST, 0).seq;
    struct scope *inner = NULL;
    for (size_t i = 0; i < items->n; i++) {
        inner = fresh_scope(vm, inner, scope);
        exec_assign(vm, node->a, items->items[i], inner);
        if (value_truth(eval(vm, node->c, inner))) {
            seq_push(vm, kept, items->items[i]);
        }
    }
    return kept;
}

static void run_loop(struct vm *vm, const struct node *node, struct value iterable,
                     struct scope *scope, int depth)
{
    static const struct str loop_name = { .p = "loop", .len = 4, .trusted = true };
    struct seq *items = value_iterate(vm, iterable);
    if (node->c) {
        items = filter_items(vm, node, items, scope);
    }
    struct loop *loop = vm_alloc(vm, sizeof *loop);
    *loop = (struct loop){
        .items = items, .n = items->n, .depth = depth, .node = node, .scope = scope
    };
    struct scope *inner = NULL;
    for (; loop->idx < loop->n && loop->idx < items->n; loop->idx++) {
        inner = fresh_scope(vm, inner, scope);
        scope_set(vm, inner, &loop_name, (struct value){ .kind = VALUE_LOOP, .loop = loop });
        vm->line = node->line;
        exec_assign(vm, node->a, items->items[loop->idx], inner);
        if (exec(vm, node->body, inner) == FLOW_BREAK) {
            break;
        }
    }
    if (loop->n == 0 && node->other) {
        exec(vm, node->other, scope_new(vm, scope));
    }
}

static void exec_for(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value iterable = eval(vm, node->b, scope);
    vm->line = node->line;
    if (node->flag) {
        for (struct scope *s = scope; s && !s->captured; s = s->parent) {
            s->captured = true;
        }
    }
    run_loop(vm, node, iterable, scope, 0);
}

struct value exec_loop_again(struct vm *vm, struct loop *loop, struct value items)
{
    if (!loop->node->flag) {
        vm_fail(vm, TEMPLATE_RUNTIME, "the loop is not marked recursive");
    }
    if (++vm->macros > TEMPLATE_MACRO_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "loops recurse deeper than %d", TEMPLATE_MACRO_MAX);
    }
    struct text text;
    struct text *outer = vm->out;
    text_init(&text, vm, 0);
    vm->out = &text;
    run_loop(vm, loop->node, items, loop->scope, loop->depth + 1);
    vm->out = outer;
    vm->macros--;
    return text_value(&text);
}

/* Applies a chain of filters whose innermost operand is the captured text. */
static struct value filter_text(struct vm *vm, const struct node *chain, struct value text,
                                struct scope *scope)
{
    if (!chain) {
        return text;
    }
    if (++vm->depth > TEMPLATE_DEPTH_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "filters are chained deeper than %d", TEMPLATE_DEPTH_MAX);
    }
    struct value self = filter_text(vm, chain->a, text, scope);
    struct args args = call_args_eval(vm, chain->args, scope);
    vm->line = chain->line;
    self = filter_apply(vm, chain->name, self, &args);
    vm->depth--;
    return self;
}

static void exec_set_block(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value text = exec_capture(vm, node->body, scope_new(vm, scope));
    exec_assign(vm, node->a, filter_text(vm, node->b, text, scope), scope);
}

static void exec_filter_block(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct value text = exec_capture(vm, node->body, scope_new(vm, scope));
    print_value(vm->out, filter_text(vm, node->a, text, scope));
}

static void exec_call_block(struct vm *vm, const struct node *node, struct scope *scope)
{
    static const struct str caller_name = { .p = "caller", .len = 6, .trusted = true };
    struct value callee = eval(vm, node->a->a, scope);
    struct args args = call_args_eval(vm, node->a->args, scope);
    const struct str **names = vm_array(vm, args.n_keywords + 1, sizeof *names);
    struct value *keywords = vm_array(vm, args.n_keywords + 1, sizeof *keywords);
    for (size_t i = 0; i < args.n_keywords; i++) {
        names[i] = args.names[i];
        keywords[i] = args.keywords[i];
    }
    names[args.n_keywords] = &caller_name;
    keywords[args.n_keywords++] = func_macro(vm, node->macro, scope);
    args.names = names;
    args.keywords = keywords;
    vm->line = node->line;
    print_value(vm->out, call_value(vm, callee, &args));
}

static void exec_with(struct vm *vm, const struct node *node, struct scope *scope)
{
    struct scope *inner = scope_new(vm, scope);
    for (size_t i = 0; i + 1 < node->items.n; i += 2) {
        exec_assign(vm, node->items.v[i], eval(vm, node->items.v[i + 1], scope), inner);
    }
    exec(vm, node->body, inner);
}

static enum flow exec_kind(struct vm *vm, const struct node *node, struct scope *scope)
{
    switch (node->kind) {
    case NODE_TEXT:
        text_add_str(vm->out, node->constant.s);
        break;
    case NODE_PRINT:
        print_value(vm->out, eval(vm, node->a, scope));
        break;
    case NODE_BODY:
        return exec_body(vm, node, scope);
    case NODE_IF:
        return exec_if(vm, node, scope);
    case NODE_FOR:
        exec_for(vm, node, scope);
        break;
    case NODE_SET: {
        struct value value = eval(vm, node->b, scope);
        vm->line = node->line;
        exec_assign(vm, node->a, value, scope);
        break;
    }
    case NODE_SET_BLOCK:
        exec_set_block(vm, node, scope);
        break;
    case NODE_MACRO:
        scope_set(vm, scope, node->name, func_macro(vm, node->macro, scope));
        break;
    case NODE_CALL_BLOCK:
        exec_call_block(vm, node, scope);
        break;
    case NODE_FILTER_BLOCK:
        exec_filter_block(vm, node, scope);
        break;
    case NODE_WITH:
        exec_with(vm, node, scope);
        break;
    case NODE_SCOPE:
        return exec(vm, node->body, scope_new(vm, node->flag ? vm->globals : scope));
    case NODE_BREAK:
        return FLOW_BREAK;
    case NODE_CONTINUE:
        return FLOW_CONTINUE;
    default:
        vm_fail(vm, TEMPLATE_RUNTIME, "a tag that needs another template: there is no loader");
    }
    return FLOW_ON;
}

enum flow exec(struct vm *vm, const struct node *node, struct scope *scope)
{
    vm_charge(vm, 1);
    vm->line = node->line;
    if (++vm->depth > TEMPLATE_DEPTH_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "statements are nested deeper than %d", TEMPLATE_DEPTH_MAX);
    }
    enum flow flow = exec_kind(vm, node, scope);
    vm->depth--;
    return flow;
}
