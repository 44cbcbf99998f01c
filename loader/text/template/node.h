/* The parsed template: one node type for expressions and statements, all in the template's arena, never
 * changed after the parse. What each kind keeps where stands beside it. */
#pragma once

#include "loader/text/template/value.h"

enum node_kind {
    /* expressions */
    NODE_CONST,   /* constant */
    NODE_NAME,    /* name */
    NODE_LIST,    /* items */
    NODE_TUPLE,   /* items */
    NODE_DICT,    /* items: key, value, key, value ... */
    NODE_NEG,     /* a */
    NODE_POS,     /* a */
    NODE_NOT,     /* a */
    NODE_AND,     /* a, b */
    NODE_OR,      /* a, b */
    NODE_BINARY,  /* op, a, b */
    NODE_CONCAT,  /* items */
    NODE_COMPARE, /* items: operands; ops: one less */
    NODE_COND,    /* a if b else c (c may be NULL) */
    NODE_FILTER,  /* name, a: the operand (NULL: the block's text), args */
    NODE_TEST,    /* name, a, args */
    NODE_CALL,    /* a: callee, args */
    NODE_ATTR,    /* a.name */
    NODE_ITEM,    /* a[b] */
    NODE_SLICE,   /* a[b:c:d], each but a may be NULL */
    /* statements */
    NODE_TEXT,  /* constant */
    NODE_PRINT, /* a */
    NODE_BODY,  /* items */
    NODE_IF,    /* items: condition, body, ...; b: else body or NULL */
    NODE_FOR, /* a: target, b: iterable, c: filter or NULL, body, other: else or NULL; flag: recursive */
    NODE_SET,          /* a: target, b: value */
    NODE_SET_BLOCK,    /* a: target, b: filter chain or NULL, body */
    NODE_MACRO,        /* macro */
    NODE_CALL_BLOCK,   /* a: the call, macro: the caller */
    NODE_FILTER_BLOCK, /* a: filter chain, body */
    NODE_WITH,         /* items: target, value, ...; body */
    NODE_SCOPE,        /* body in a scope of its own: generation, block (flag: sees only globals) */
    NODE_BREAK,
    NODE_CONTINUE,
    NODE_REFUSED, /* name: a tag that needs a loader; fails when reached */
};

enum op {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOORDIV,
    OP_MOD,
    OP_POW,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN,
};

struct nodes {
    struct node **v;
    size_t n, cap;
};

/* Arguments of a call, a filter or a test as written. */
struct call_args {
    struct nodes positional;
    struct nodes keywords;       /* values, */
    const struct str **names;    /* and their names */
    const struct node *star;     /* *x or NULL */
    const struct node *starstar; /* **x or NULL */
};

struct macro {
    const struct str *name;
    struct nodes params;    /* NODE_NAME */
    struct node **defaults; /* one per parameter, NULL without */
    struct node *body;
    bool uses_varargs, uses_kwargs, uses_caller;
};

struct node {
    enum node_kind kind;
    enum op op;
    int line;
    bool flag;
    const struct str *name; /* interned: equal names are one pointer */
    struct value constant;
    struct node *a, *b, *c, *d;
    struct node *body, *other;
    struct nodes items;
    enum op *ops;
    struct call_args *args;
    struct macro *macro;
};
