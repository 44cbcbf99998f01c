/* Template text -> tokens, white-space control included (formats: Jinja2 3.1, trim_blocks and
 * lstrip_blocks on, keep_trailing_newline off). The parser pulls one token at a time. */
#pragma once

#include "loader/text/template/node.h"

enum token_kind {
    TOKEN_DATA,        /* value: template text */
    TOKEN_VAR_BEGIN,   /* {{ */
    TOKEN_VAR_END,     /* }} */
    TOKEN_BLOCK_BEGIN, /* {% */
    TOKEN_BLOCK_END,   /* %} */
    TOKEN_NAME,        /* value: its text */
    TOKEN_CONST,       /* value: a string, integer or float literal */
    TOKEN_OP,          /* op: its characters */
    TOKEN_END,
};

struct token {
    enum token_kind kind;
    int line;
    char op[3];
    struct value value;
};

struct lexer {
    struct vm *vm;
    const char *text;
    size_t len, pos;
    int line;
    bool line_start;     /* the byte before pos ended a line (or nothing stands before) */
    enum token_kind tag; /* inside VAR_BEGIN or BLOCK_BEGIN; DATA outside */
    char open[TEMPLATE_NESTING_MAX]; /* brackets that are open inside a tag */
    int n_open;
};

/* Normalises line ends and drops the last newline. text is borrowed only for the call. */
void lexer_init(struct lexer *lexer, struct vm *vm, const char *text, size_t len);
struct token lexer_next(struct lexer *lexer);
/* Whether a name stands next, then a single '=' behind it (a keyword argument). */
bool lexer_at_assign(const struct lexer *lexer);
/* Whether this word stands next. */
bool lexer_at_word(const struct lexer *lexer, const char *word);
