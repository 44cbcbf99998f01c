#include "loader/text/template/parser.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "loader/text/template/str.h"

void parser_fail(struct parser *p, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    p->vm->line = p->token.line;
    vm_fail(p->vm, TEMPLATE_COMPILE, "%s", text);
}

void parser_unexpected(struct parser *p, const char *wanted)
{
    static const char *const names[] = {
        [TOKEN_DATA] = "text",
        [TOKEN_VAR_BEGIN] = "'{{'",
        [TOKEN_VAR_END] = "'}}'",
        [TOKEN_BLOCK_BEGIN] = "'{%'",
        [TOKEN_BLOCK_END] = "'%}'",
        [TOKEN_CONST] = "a literal",
        [TOKEN_END] = "the template's end",
    };
    if (p->token.kind == TOKEN_OP) {
        parser_fail(p, "expected %s, got '%s'", wanted, p->token.op);
    }
    if (p->token.kind == TOKEN_NAME) {
        parser_fail(p, "expected %s, got '%.*s'", wanted, (int)p->token.value.s->len,
                    p->token.value.s->p);
    }
    parser_fail(p, "expected %s, got %s", wanted, names[p->token.kind]);
}

void parser_next(struct parser *p)
{
    p->token = lexer_next(&p->lexer);
}

bool parser_at_op(const struct parser *p, const char *op)
{
    return p->token.kind == TOKEN_OP && strcmp(p->token.op, op) == 0;
}

bool parser_at_name(const struct parser *p, const char *name)
{
    return p->token.kind == TOKEN_NAME && str_eq(p->token.value.s, name);
}

bool parser_take_op(struct parser *p, const char *op)
{
    bool at = parser_at_op(p, op);
    if (at) {
        parser_next(p);
    }
    return at;
}

bool parser_take_name(struct parser *p, const char *name)
{
    bool at = parser_at_name(p, name);
    if (at) {
        parser_next(p);
    }
    return at;
}

void parser_need_op(struct parser *p, const char *op)
{
    if (!parser_take_op(p, op)) {
        char wanted[8];
        snprintf(wanted, sizeof wanted, "'%s'", op);
        parser_unexpected(p, wanted);
    }
}

void parser_need_name(struct parser *p, const char *name)
{
    if (!parser_take_name(p, name)) {
        char wanted[32];
        snprintf(wanted, sizeof wanted, "'%s'", name);
        parser_unexpected(p, wanted);
    }
}

/* Equal names become one pointer, so that scopes compare pointers. */
static const struct str *intern(struct parser *p, const struct str *name)
{
    const struct value *known = dict_find(p->vm, p->names, value_str(name));
    if (known) {
        return known->s;
    }
    dict_put(p->vm, p->names, value_str(name), value_str(name));
    return name;
}

const struct str *parser_name(struct parser *p)
{
    if (p->token.kind != TOKEN_NAME) {
        parser_unexpected(p, "a name");
    }
    const struct str *name = intern(p, p->token.value.s);
    parser_next(p);
    return name;
}

struct node *parser_node(struct parser *p, enum node_kind kind)
{
    struct node *node = vm_alloc(p->vm, sizeof *node);
    node->kind = kind;
    node->line = p->token.line;
    return node;
}

void parser_push(struct parser *p, struct nodes *nodes, struct node *node)
{
    if (nodes->n == nodes->cap) {
        size_t cap = nodes->cap ? nodes->cap * 2 : 4;
        nodes->v = vm_grow(p->vm, nodes->v, nodes->n * sizeof *nodes->v, cap * sizeof *nodes->v);
        nodes->cap = cap;
    }
    nodes->v[nodes->n++] = node;
}

void parser_enter(struct parser *p)
{
    if (++p->nesting > TEMPLATE_NESTING_MAX) {
        parser_fail(p, "nested deeper than %d", TEMPLATE_NESTING_MAX);
    }
}

static struct node *unary(struct parser *p, enum node_kind kind, struct node *a)
{
    struct node *node = parser_node(p, kind);
    node->a = a;
    return node;
}

static struct node *binary(struct parser *p, enum node_kind kind, enum op op, struct node *a,
                           struct node *b)
{
    struct node *node = parser_node(p, kind);
    node->op = op;
    node->a = a;
    node->b = b;
    return node;
}

/* --- primaries --- */

static struct node *parse_list(struct parser *p)
{
    struct node *node = parser_node(p, NODE_LIST);
    parser_need_op(p, "[");
    while (!parser_at_op(p, "]")) {
        if (node->items.n) {
            parser_need_op(p, ",");
            if (parser_at_op(p, "]")) {
                break;
            }
        }
        parser_push(p, &node->items, parse_expression(p));
    }
    parser_need_op(p, "]");
    return node;
}

static struct node *parse_dict(struct parser *p)
{
    struct node *node = parser_node(p, NODE_DICT);
    parser_need_op(p, "{");
    while (!parser_at_op(p, "}")) {
        if (node->items.n) {
            parser_need_op(p, ",");
            if (parser_at_op(p, "}")) {
                break;
            }
        }
        parser_push(p, &node->items, parse_expression(p));
        parser_need_op(p, ":");
        parser_push(p, &node->items, parse_expression(p));
    }
    parser_need_op(p, "}");
    return node;
}

static struct node *parse_paren(struct parser *p)
{
    parser_need_op(p, "(");
    struct node *node;
    if (parser_at_op(p, ")")) {
        node = parser_node(p, NODE_TUPLE);
    } else {
        node = parse_tuple(p, true);
    }
    parser_need_op(p, ")");
    return node;
}

static void note_macro_variable(struct parser *p, const struct str *name)
{
    if (p->macro) {
        p->macro->uses_varargs |= str_eq(name, "varargs");
        p->macro->uses_kwargs |= str_eq(name, "kwargs");
        p->macro->uses_caller |= str_eq(name, "caller");
    }
}

static struct node *parse_name(struct parser *p)
{
    static const struct {
        const char *name;
        struct value value;
    } constants[] = {
        { "true", { .kind = VALUE_BOOL, .b = true } },
        { "True", { .kind = VALUE_BOOL, .b = true } },
        { "false", { .kind = VALUE_BOOL, .b = false } },
        { "False", { .kind = VALUE_BOOL, .b = false } },
        { "none", { .kind = VALUE_NONE } },
        { "None", { .kind = VALUE_NONE } },
    };
    for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++) {
        if (parser_at_name(p, constants[i].name)) {
            struct node *node = parser_node(p, NODE_CONST);
            node->constant = constants[i].value;
            parser_next(p);
            return node;
        }
    }
    struct node *node = parser_node(p, NODE_NAME);
    node->name = parser_name(p);
    note_macro_variable(p, node->name);
    return node;
}

static struct node *parse_primary(struct parser *p)
{
    if (p->token.kind == TOKEN_NAME) {
        return parse_name(p);
    }
    if (p->token.kind == TOKEN_CONST) {
        struct node *node = parser_node(p, NODE_CONST);
        node->constant = p->token.value;
        parser_next(p);
        while (node->constant.kind == VALUE_STR && p->token.kind == TOKEN_CONST &&
               p->token.value.kind == VALUE_STR) {
            node->constant = value_str(str_join2(p->vm, node->constant.s, p->token.value.s));
            parser_next(p);
        }
        return node;
    }
    if (parser_at_op(p, "(")) {
        return parse_paren(p);
    }
    if (parser_at_op(p, "[")) {
        return parse_list(p);
    }
    if (parser_at_op(p, "{")) {
        return parse_dict(p);
    }
    parser_unexpected(p, "an expression");
}

/* --- postfix: attributes, items, calls, filters, tests --- */

static struct call_args *parse_args(struct parser *p)
{
    struct call_args *args = vm_alloc(p->vm, sizeof *args);
    parser_need_op(p, "(");
    bool first = true;
    while (!parser_at_op(p, ")")) {
        if (!first) {
            parser_need_op(p, ",");
            if (parser_at_op(p, ")")) {
                break;
            }
        }
        first = false;
        if (args->positional.n + args->keywords.n >= TEMPLATE_ARGS_MAX) {
            parser_fail(p, "more than %d arguments", TEMPLATE_ARGS_MAX);
        }
        if (parser_take_op(p, "**") && !args->starstar) {
            args->starstar = parse_expression(p);
        } else if (parser_take_op(p, "*") && !args->star) {
            args->star = parse_expression(p);
        } else if (p->token.kind == TOKEN_NAME && lexer_at_assign(&p->lexer)) {
            size_t n = args->keywords.n;
            args->names = vm_grow(p->vm, args->names, n * sizeof *args->names,
                                  (n + 1) * sizeof *args->names);
            args->names[n] = parser_name(p);
            parser_need_op(p, "=");
            parser_push(p, &args->keywords, parse_expression(p));
        } else if (args->keywords.n || args->starstar) {
            parser_fail(p, "a positional argument behind a named one");
        } else {
            parser_push(p, &args->positional, parse_expression(p));
        }
    }
    parser_need_op(p, ")");
    return args;
}

static struct node *parse_call(struct parser *p, struct node *callee)
{
    struct node *node = parser_node(p, NODE_CALL);
    node->a = callee;
    node->args = parse_args(p);
    return node;
}

static struct node *slice_part(struct parser *p)
{
    return parser_at_op(p, ":") || parser_at_op(p, ",") || parser_at_op(p, "]")
               ? NULL
               : parse_expression(p);
}

/* [x], [a:b:c] or [x, y], behind node. */
static struct node *parse_subscript(struct parser *p, struct node *node)
{
    struct node *item = parser_node(p, NODE_ITEM);
    parser_need_op(p, "[");
    item->a = node;
    item->b = slice_part(p);
    if (parser_take_op(p, ":")) {
        item->kind = NODE_SLICE;
        item->c = slice_part(p);
        if (parser_take_op(p, ":")) {
            item->d = slice_part(p);
        }
    } else if (!item->b) {
        parser_unexpected(p, "a subscript");
    } else if (parser_at_op(p, ",")) {
        struct node *tuple = parser_node(p, NODE_TUPLE);
        parser_push(p, &tuple->items, item->b);
        while (parser_take_op(p, ",")) {
            parser_push(p, &tuple->items, parse_expression(p));
        }
        item->b = tuple;
    }
    parser_need_op(p, "]");
    return item;
}

static struct node *parse_attribute(struct parser *p, struct node *node)
{
    struct node *attr = parser_node(p, NODE_ATTR);
    parser_need_op(p, ".");
    attr->a = node;
    if (p->token.kind == TOKEN_CONST && p->token.value.kind == VALUE_INT) {
        attr->kind = NODE_ITEM; /* l.0 */
        attr->b = parser_node(p, NODE_CONST);
        attr->b->constant = p->token.value;
        parser_next(p);
    } else {
        attr->name = parser_name(p);
    }
    return attr;
}

struct node *parse_postfix(struct parser *p, struct node *node)
{
    for (;;) {
        if (parser_at_op(p, ".")) {
            node = parse_attribute(p, node);
        } else if (parser_at_op(p, "[")) {
            node = parse_subscript(p, node);
        } else if (parser_at_op(p, "(")) {
            node = parse_call(p, node);
        } else {
            return node;
        }
    }
}

/* A filter's or test's name, which may have dots. */
static const struct str *parse_dotted(struct parser *p)
{
    const struct str *name = parser_name(p);
    while (parser_take_op(p, ".")) {
        name = str_join2(p->vm, name, str_of(p->vm, ".", 1, true));
        name = intern(p, str_join2(p->vm, name, parser_name(p)));
    }
    return name;
}

struct node *parse_filters(struct parser *p, struct node *operand, bool first_without_bar)
{
    while (first_without_bar || parser_take_op(p, "|")) {
        first_without_bar = false;
        struct node *filter = parser_node(p, NODE_FILTER);
        filter->name = parse_dotted(p);
        filter->a = operand;
        filter->args = parser_at_op(p, "(") ? parse_args(p) : vm_alloc(p->vm, sizeof *filter->args);
        operand = filter;
    }
    return operand;
}

/* Whether a test's single argument without parentheses begins here. */
static bool at_bare_argument(const struct parser *p)
{
    static const char *const others[] = { "else", "or", "and", "if", "in", "not", "is" };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (parser_at_name(p, others[i])) {
            return false;
        }
    }
    return p->token.kind == TOKEN_NAME || p->token.kind == TOKEN_CONST || parser_at_op(p, "[") ||
           parser_at_op(p, "{");
}

static struct node *parse_test(struct parser *p, struct node *operand)
{
    bool negated = parser_take_name(p, "not");
    struct node *test = parser_node(p, NODE_TEST);
    test->name = parse_dotted(p);
    test->a = operand;
    if (parser_at_op(p, "(")) {
        test->args = parse_args(p);
    } else {
        test->args = vm_alloc(p->vm, sizeof *test->args);
        if (at_bare_argument(p)) {
            parser_push(p, &test->args->positional, parse_postfix(p, parse_primary(p)));
        }
    }
    return negated ? unary(p, NODE_NOT, test) : test;
}

static struct node *parse_suffixes(struct parser *p, struct node *node)
{
    for (;;) {
        if (parser_at_op(p, "|")) {
            node = parse_filters(p, node, false);
        } else if (parser_take_name(p, "is")) {
            node = parse_test(p, node);
        } else if (parser_at_op(p, "(")) {
            node = parse_call(p, node);
        } else {
            return node;
        }
    }
}

/* --- operators, tightest first --- */

static struct node *parse_unary(struct parser *p, bool with_filters)
{
    parser_enter(p);
    struct node *node;
    if (parser_take_op(p, "-")) {
        node = unary(p, NODE_NEG, parse_unary(p, false));
    } else if (parser_take_op(p, "+")) {
        node = unary(p, NODE_POS, parse_unary(p, false));
    } else {
        node = parse_primary(p);
    }
    node = parse_postfix(p, node);
    if (with_filters) {
        node = parse_suffixes(p, node);
    }
    p->nesting--;
    return node;
}

static struct node *parse_power(struct parser *p)
{
    struct node *node = parse_unary(p, true);
    while (parser_take_op(p, "**")) {
        node = binary(p, NODE_BINARY, OP_POW, node, parse_unary(p, true));
    }
    return node;
}

static struct node *parse_product(struct parser *p)
{
    struct node *node = parse_power(p);
    for (;;) {
        enum op op = parser_at_op(p, "*")    ? OP_MUL
                     : parser_at_op(p, "/")  ? OP_DIV
                     : parser_at_op(p, "//") ? OP_FLOORDIV
                     : parser_at_op(p, "%")  ? OP_MOD
                                             : OP_ADD;
        if (op == OP_ADD) {
            return node;
        }
        parser_next(p);
        node = binary(p, NODE_BINARY, op, node, parse_power(p));
    }
}

static struct node *parse_concat(struct parser *p)
{
    struct node *node = parse_product(p);
    if (!parser_at_op(p, "~")) {
        return node;
    }
    struct node *concat = parser_node(p, NODE_CONCAT);
    parser_push(p, &concat->items, node);
    while (parser_take_op(p, "~")) {
        parser_push(p, &concat->items, parse_product(p));
    }
    return concat;
}

static struct node *parse_sum(struct parser *p)
{
    struct node *node = parse_concat(p);
    while (parser_at_op(p, "+") || parser_at_op(p, "-")) {
        enum op op = parser_at_op(p, "+") ? OP_ADD : OP_SUB;
        parser_next(p);
        node = binary(p, NODE_BINARY, op, node, parse_concat(p));
    }
    return node;
}

static bool take_comparison(struct parser *p, enum op *op)
{
    static const struct {
        const char *text;
        enum op op;
    } table[] = { { "==", OP_EQ }, { "!=", OP_NE }, { "<", OP_LT },
                  { "<=", OP_LE }, { ">", OP_GT },  { ">=", OP_GE } };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (parser_take_op(p, table[i].text)) {
            *op = table[i].op;
            return true;
        }
    }
    if (parser_take_name(p, "in")) {
        *op = OP_IN;
        return true;
    }
    if (parser_at_name(p, "not") && lexer_at_word(&p->lexer, "in")) {
        parser_next(p);
        parser_next(p);
        *op = OP_NOT_IN;
        return true;
    }
    return false;
}

static struct node *parse_comparison(struct parser *p)
{
    struct node *node = parse_sum(p);
    enum op op;
    if (!take_comparison(p, &op)) {
        return node;
    }
    struct node *compare = parser_node(p, NODE_COMPARE);
    parser_push(p, &compare->items, node);
    do {
        size_t n = compare->items.n;
        compare->ops = vm_grow(p->vm, compare->ops, (n - 1) * sizeof op, n * sizeof op);
        compare->ops[n - 1] = op;
        parser_push(p, &compare->items, parse_sum(p));
    } while (take_comparison(p, &op));
    return compare;
}

static struct node *parse_not(struct parser *p)
{
    if (!parser_take_name(p, "not")) {
        return parse_comparison(p);
    }
    parser_enter(p);
    struct node *node = unary(p, NODE_NOT, parse_not(p));
    p->nesting--;
    return node;
}

static struct node *parse_and(struct parser *p)
{
    struct node *node = parse_not(p);
    while (parser_take_name(p, "and")) {
        node = binary(p, NODE_AND, OP_ADD, node, parse_not(p));
    }
    return node;
}

struct node *parse_or(struct parser *p)
{
    struct node *node = parse_and(p);
    while (parser_take_name(p, "or")) {
        node = binary(p, NODE_OR, OP_ADD, node, parse_and(p));
    }
    return node;
}

struct node *parse_expression(struct parser *p)
{
    parser_enter(p);
    struct node *node = parse_or(p);
    while (parser_take_name(p, "if")) {
        struct node *cond = binary(p, NODE_COND, OP_ADD, node, parse_or(p));
        if (parser_take_name(p, "else")) {
            cond->c = parse_expression(p);
        }
        node = cond;
    }
    p->nesting--;
    return node;
}

static bool at_tuple_end(const struct parser *p)
{
    return p->token.kind == TOKEN_VAR_END || p->token.kind == TOKEN_BLOCK_END ||
           p->token.kind == TOKEN_END || parser_at_op(p, ")") || parser_at_name(p, "recursive") ||
           parser_at_name(p, "if");
}

struct node *parse_tuple(struct parser *p, bool ternary)
{
    struct node *node = ternary ? parse_expression(p) : parse_or(p);
    if (!parser_at_op(p, ",")) {
        return node;
    }
    struct node *tuple = parser_node(p, NODE_TUPLE);
    parser_push(p, &tuple->items, node);
    while (parser_take_op(p, ",") && !at_tuple_end(p)) {
        parser_push(p, &tuple->items, ternary ? parse_expression(p) : parse_or(p));
    }
    return tuple;
}
