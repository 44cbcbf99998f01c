/* Statements: what stands between {% and %}, and the text between tags. */
#include <string.h>

#include "loader/text/template/parser.h"
#include "loader/text/template/str.h"

static struct node *parse_body(struct parser *p, const char *const *ends);

static void need_block_end(struct parser *p)
{
    if (p->token.kind != TOKEN_BLOCK_END) {
        parser_unexpected(p, "'%}'");
    }
    parser_next(p);
}

/* The body up to one of the end tags, whose name stays at hand. */
static struct node *block_body(struct parser *p, const char *const *ends)
{
    need_block_end(p);
    return parse_body(p, ends);
}

/* The body up to the one end tag, which is taken. */
static struct node *whole_body(struct parser *p, const char *end)
{
    const char *const ends[] = { end, NULL };
    struct node *body = block_body(p, ends);
    parser_next(p);
    return body;
}

/* A name, or several with commas and parentheses: where a value goes. */
static struct node *parse_target(struct parser *p)
{
    parser_enter(p);
    struct node *tuple = NULL, *node;
    for (;;) {
        if (parser_take_op(p, "(")) {
            node = parse_target(p);
            parser_need_op(p, ")");
        } else {
            node = parser_node(p, NODE_NAME);
            node->name = parser_name(p);
        }
        if (!parser_at_op(p, ",")) {
            break;
        }
        if (!tuple) {
            tuple = parser_node(p, NODE_TUPLE);
        }
        parser_push(p, &tuple->items, node);
        parser_next(p);
        if (parser_at_op(p, "=") || parser_at_op(p, ")") || parser_at_name(p, "in")) {
            p->nesting--;
            return tuple;
        }
    }
    if (tuple) {
        parser_push(p, &tuple->items, node);
        node = tuple;
    }
    p->nesting--;
    return node;
}

static struct node *parse_if(struct parser *p)
{
    static const char *const ends[] = { "elif", "else", "endif", NULL };
    struct node *node = parser_node(p, NODE_IF);
    do {
        parser_push(p, &node->items, parse_tuple(p, false));
        parser_push(p, &node->items, block_body(p, ends));
    } while (parser_take_name(p, "elif"));
    if (parser_take_name(p, "else")) {
        node->b = whole_body(p, "endif");
    } else {
        parser_next(p);
    }
    return node;
}

static struct node *parse_for(struct parser *p)
{
    static const char *const ends[] = { "else", "endfor", NULL };
    struct node *node = parser_node(p, NODE_FOR);
    node->a = parse_target(p);
    parser_need_name(p, "in");
    node->b = parse_tuple(p, false);
    if (parser_take_name(p, "if")) {
        node->c = parse_expression(p);
    }
    node->flag = parser_take_name(p, "recursive");
    p->loops++;
    node->body = block_body(p, ends);
    p->loops--;
    if (parser_take_name(p, "else")) {
        node->other = whole_body(p, "endfor");
    } else {
        parser_next(p);
    }
    return node;
}

static struct node *parse_set(struct parser *p)
{
    struct node *node = parser_node(p, NODE_SET);
    node->a = parse_target(p);
    if (node->a->kind == NODE_NAME && parser_at_op(p, ".")) {
        struct node *attr = parser_node(p, NODE_ATTR);
        parser_next(p);
        attr->a = node->a;
        attr->name = parser_name(p);
        node->a = attr;
    }
    if (parser_take_op(p, "=")) {
        node->b = parse_tuple(p, true);
        return node;
    }
    node->kind = NODE_SET_BLOCK;
    node->b = parse_filters(p, NULL, false);
    node->body = whole_body(p, "endset");
    return node;
}

/* The parameters of a macro or a caller, in parentheses. */
static void parse_params(struct parser *p, struct macro *macro)
{
    parser_need_op(p, "(");
    while (!parser_at_op(p, ")")) {
        if (macro->params.n) {
            parser_need_op(p, ",");
            if (parser_at_op(p, ")")) {
                break;
            }
        }
        if (macro->params.n >= TEMPLATE_ARGS_MAX) {
            parser_fail(p, "more than %d parameters", TEMPLATE_ARGS_MAX);
        }
        struct node *param = parser_node(p, NODE_NAME);
        param->name = parser_name(p);
        size_t n = macro->params.n;
        macro->defaults = vm_grow(p->vm, macro->defaults, n * sizeof *macro->defaults,
                                  (n + 1) * sizeof *macro->defaults);
        macro->defaults[n] = NULL;
        if (parser_take_op(p, "=")) {
            macro->defaults[n] = parse_expression(p);
        } else if (n && macro->defaults[n - 1]) {
            parser_fail(p, "a parameter without default behind one with");
        }
        parser_push(p, &macro->params, param);
    }
    parser_need_op(p, ")");
}

static void parse_macro_body(struct parser *p, struct macro *macro, const char *end)
{
    struct macro *outer = p->macro;
    int loops = p->loops;
    p->macro = macro;
    p->loops = 0;
    macro->body = whole_body(p, end);
    p->macro = outer;
    p->loops = loops;
}

static struct node *parse_macro(struct parser *p)
{
    struct node *node = parser_node(p, NODE_MACRO);
    node->macro = vm_alloc(p->vm, sizeof *node->macro);
    node->macro->name = node->name = parser_name(p);
    parse_params(p, node->macro);
    parse_macro_body(p, node->macro, "endmacro");
    return node;
}

static struct node *parse_call_block(struct parser *p)
{
    struct node *node = parser_node(p, NODE_CALL_BLOCK);
    node->macro = vm_alloc(p->vm, sizeof *node->macro);
    node->macro->name = str_of(p->vm, "caller", 6, true);
    if (parser_at_op(p, "(")) {
        parse_params(p, node->macro);
    }
    node->a = parse_expression(p);
    if (node->a->kind != NODE_CALL) {
        parser_fail(p, "expected a call");
    }
    parse_macro_body(p, node->macro, "endcall");
    return node;
}

static struct node *parse_filter_block(struct parser *p)
{
    struct node *node = parser_node(p, NODE_FILTER_BLOCK);
    node->a = parse_filters(p, NULL, true);
    node->body = whole_body(p, "endfilter");
    return node;
}

static struct node *parse_with(struct parser *p)
{
    struct node *node = parser_node(p, NODE_WITH);
    while (p->token.kind != TOKEN_BLOCK_END) {
        if (node->items.n) {
            parser_need_op(p, ",");
        }
        struct node *target = parser_node(p, NODE_NAME);
        target->name = parser_name(p);
        parser_push(p, &node->items, target);
        parser_need_op(p, "=");
        parser_push(p, &node->items, parse_expression(p));
    }
    node->body = whole_body(p, "endwith");
    return node;
}

static struct node *parse_generation(struct parser *p)
{
    struct node *node = parser_node(p, NODE_SCOPE);
    node->body = whole_body(p, "endgeneration");
    return node;
}

static struct node *parse_block(struct parser *p)
{
    struct node *node = parser_node(p, NODE_SCOPE);
    node->flag = true;
    node->name = parser_name(p);
    while (parser_take_name(p, "scoped") || parser_take_name(p, "required")) {
    }
    node->body = whole_body(p, "endblock");
    if (p->token.kind == TOKEN_NAME) {
        parser_next(p);
    }
    return node;
}

static struct node *parse_print(struct parser *p)
{
    struct node *node = parser_node(p, NODE_PRINT);
    node->a = parse_tuple(p, true);
    return node;
}

static struct node *parse_break(struct parser *p)
{
    if (!p->loops) {
        parser_fail(p, "'break' outside a loop");
    }
    return parser_node(p, NODE_BREAK);
}

static struct node *parse_continue(struct parser *p)
{
    if (!p->loops) {
        parser_fail(p, "'continue' outside a loop");
    }
    return parser_node(p, NODE_CONTINUE);
}

/* include, import, from, extends: there is no other template. Read over; an error when reached. */
static struct node *parse_refused(struct parser *p)
{
    struct node *node = parser_node(p, NODE_REFUSED);
    while (p->token.kind != TOKEN_BLOCK_END && p->token.kind != TOKEN_END) {
        parser_next(p);
    }
    return node;
}

static const struct {
    const char *tag;
    struct node *(*parse)(struct parser *p);
} tags[] = {
    { "if", parse_if },           { "for", parse_for },
    { "set", parse_set },         { "macro", parse_macro },
    { "call", parse_call_block }, { "filter", parse_filter_block },
    { "with", parse_with },       { "generation", parse_generation },
    { "block", parse_block },     { "print", parse_print },
    { "break", parse_break },     { "continue", parse_continue },
    { "include", parse_refused }, { "import", parse_refused },
    { "from", parse_refused },    { "extends", parse_refused },
};

static struct node *parse_statement(struct parser *p)
{
    for (size_t i = 0; i < sizeof tags / sizeof tags[0]; i++) {
        if (parser_at_name(p, tags[i].tag)) {
            int line = p->token.line;
            parser_next(p);
            struct node *node = tags[i].parse(p);
            node->line = line;
            need_block_end(p);
            return node;
        }
    }
    if (p->token.kind != TOKEN_NAME) {
        parser_unexpected(p, "a tag");
    }
    parser_fail(p, "unknown or misplaced tag '%.*s'", (int)p->token.value.s->len,
                p->token.value.s->p);
}

static bool at_end_tag(const struct parser *p, const char *const *ends)
{
    for (; *ends; ends++) {
        if (parser_at_name(p, *ends)) {
            return true;
        }
    }
    return false;
}

/* Text and statements up to an end tag (its name at hand), or to the template's end when ends is NULL. */
static struct node *parse_body(struct parser *p, const char *const *ends)
{
    parser_enter(p);
    struct node *body = parser_node(p, NODE_BODY);
    for (;;) {
        struct node *node;
        switch (p->token.kind) {
        case TOKEN_DATA:
            node = parser_node(p, NODE_TEXT);
            node->constant = p->token.value;
            parser_next(p);
            break;
        case TOKEN_VAR_BEGIN:
            parser_next(p);
            node = parse_print(p);
            if (p->token.kind != TOKEN_VAR_END) {
                parser_unexpected(p, "'}}'");
            }
            parser_next(p);
            break;
        case TOKEN_BLOCK_BEGIN:
            parser_next(p);
            if (ends && at_end_tag(p, ends)) {
                p->nesting--;
                return body;
            }
            node = parse_statement(p);
            break;
        default:
            if (ends) {
                parser_fail(p,
                            "the template ends inside a block that began in line %d: expected '%s'",
                            body->line, ends[0]);
            }
            p->nesting--;
            return body;
        }
        parser_push(p, &body->items, node);
    }
}

struct node *parse_template(struct vm *vm, const char *text, size_t len)
{
    struct parser p = { .vm = vm, .names = dict_new(vm, VALUE_DICT).dict };
    lexer_init(&p.lexer, vm, text, len);
    parser_next(&p);
    return parse_body(&p, NULL);
}
