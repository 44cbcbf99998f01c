/* Tokens -> nodes. parser.c reads expressions, parser_blocks.c statements. */
#pragma once

#include "loader/text/template/lexer.h"

struct parser {
    struct vm *vm;
    struct lexer lexer;
    struct token token; /* the one at hand */
    struct dict *names; /* interning */
    int nesting;
    int loops;           /* open for loops, for break and continue */
    struct macro *macro; /* being read, or NULL */
};

/* The whole template as one body. */
struct node *parse_template(struct vm *vm, const char *text, size_t len);

/* --- shared by the two files --- */
_Noreturn void parser_fail(struct parser *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
_Noreturn void parser_unexpected(struct parser *p, const char *wanted);
void parser_next(struct parser *p);
bool parser_at_op(const struct parser *p, const char *op);
bool parser_at_name(const struct parser *p, const char *name);
bool parser_take_op(struct parser *p, const char *op);
bool parser_take_name(struct parser *p, const char *name);
void parser_need_op(struct parser *p, const char *op);
void parser_need_name(struct parser *p, const char *name);
const struct str *parser_name(struct parser *p); /* takes a name, interned */
struct node *parser_node(struct parser *p, enum node_kind kind);
void parser_push(struct parser *p, struct nodes *nodes, struct node *node);
void parser_enter(struct parser *p); /* one level of nesting; leave: p->nesting-- */

struct node *parse_expression(struct parser *p);
/* One expression or several with commas between. ternary: whether `a if b` may stand at the top. */
struct node *parse_tuple(struct parser *p, bool ternary);
struct node *parse_or(struct parser *p);
struct node *parse_postfix(struct parser *p, struct node *node);
/* The filter behind a '|' (or at the beginning of a filter block), and those behind it. */
struct node *parse_filters(struct parser *p, struct node *operand, bool first_without_bar);
