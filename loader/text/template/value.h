/* The engine's values. A value is 16 bytes, copied freely; what it points to lives in the vm's arena.
 * Strings are immutable, UTF-8, and carry the trust of each stretch (template.h); lists, dicts and
 * namespaces are shared by reference. */
#pragma once

#include "loader/text/template/vm.h"

enum value_kind {
    VALUE_ABSENT,    /* an argument that was not given; never seen by a template */
    VALUE_UNDEFINED, /* node: where it was looked up, or NULL */
    VALUE_NONE,
    VALUE_BOOL,
    VALUE_INT,
    VALUE_BIG, /* an integer beyond 64 bits, as its digits: can be printed and compared, not reckoned with */
    VALUE_FLOAT,
    VALUE_STR,
    VALUE_LIST,
    VALUE_TUPLE,
    VALUE_RANGE,     /* like a list, but of another name and not for JSON */
    VALUE_VIEW,      /* keys(), values(), items() of a dict */
    VALUE_GENERATOR, /* of map, select and the like: iterable once, without length */
    VALUE_DICT,
    VALUE_NAMESPACE,
    VALUE_FUNC,
    VALUE_LOOP,
    VALUE_CYCLER,
    VALUE_JOINER,
    VALUE_N_KINDS,
};

struct stretch {
    size_t end; /* bytes from the string's start; it begins where the one before ends */
    bool trusted;
};

/* Room behind a string that was made by joining: the next join of the newest such string appends in place,
 * so that text gathered piece by piece costs its length and not its square. */
struct slack {
    char *end;
    size_t room;
    struct stretch *parts;
    size_t n_parts, parts_cap;
};

struct str {
    const char *p;
    size_t len;
    const struct stretch *parts; /* NULL: all of it is `trusted` */
    size_t n_parts;
    bool trusted;
    struct slack *slack;
};

struct value {
    enum value_kind kind;
    union {
        bool b;
        int64_t i;
        double f;
        const struct str *s;
        struct seq *seq;
        struct dict *dict; /* of a namespace too */
        const struct func *func;
        struct loop *loop;
        struct cycler *cycler;
        const struct node *node;
    };
};

struct seq {
    struct value *items;
    size_t n, cap;
    size_t done;      /* of a generator: items handed out */
    const char *name; /* what the kind calls itself: "dict_keys", "generator" */
};

struct dict_entry {
    struct value key, value;
    uint64_t hash;
};

struct dict {
    struct dict_entry *entries; /* in order of insertion */
    size_t n, cap;
    uint32_t *index; /* open addressing, entry number + 1; NULL while small */
    size_t index_cap;
};

struct cycler {
    struct value *items; /* of a joiner: the separator */
    size_t n, pos;
};

/* --- making values --- */
static inline struct value value_undefined(void)
{
    return (struct value){ .kind = VALUE_UNDEFINED };
}
static inline struct value value_none(void)
{
    return (struct value){ .kind = VALUE_NONE };
}
static inline struct value value_bool(bool b)
{
    return (struct value){ .kind = VALUE_BOOL, .b = b };
}
static inline struct value value_int(int64_t i)
{
    return (struct value){ .kind = VALUE_INT, .i = i };
}
static inline struct value value_float(double f)
{
    return (struct value){ .kind = VALUE_FLOAT, .f = f };
}
static inline struct value value_str(const struct str *s)
{
    return (struct value){ .kind = VALUE_STR, .s = s };
}
static inline bool value_missing(struct value v)
{
    return v.kind == VALUE_ABSENT || v.kind == VALUE_UNDEFINED;
}
static inline bool value_is_seq(struct value v)
{
    return v.kind >= VALUE_LIST && v.kind <= VALUE_GENERATOR;
}

/* The Python name of a value's type: "str", "NoneType". */
const char *value_type_name(struct value v);
bool value_truth(struct value v);
/* == of templates: false across types, never an error except too deep. */
bool value_equal(struct vm *vm, struct value a, struct value b);
/* -1, 0, 1 for the order of a and b; fails for types without one, naming op. */
int value_order(struct vm *vm, struct value a, struct value b, const char *op);
/* item in container; fails where the container cannot be asked. */
bool value_contains(struct vm *vm, struct value container, struct value item);
/* Number of items or code points; fails for values without a length. */
size_t value_len(struct vm *vm, struct value v);
/* Fails with "'x' is undefined" and what stands in the node. */
_Noreturn void value_fail_undefined(struct vm *vm, struct value v);
static inline void value_need(struct vm *vm, struct value v)
{
    if (v.kind == VALUE_UNDEFINED) {
        value_fail_undefined(vm, v);
    }
}

/* --- lists --- */
struct value seq_new(struct vm *vm, enum value_kind kind, size_t cap);
void seq_push(struct vm *vm, struct seq *seq, struct value item);
/* What a loop over v sees: a list of its own (fresh, or borrowed from v: do not change it). Undefined is
 * empty; fails for what cannot be iterated. A generator is used up. */
struct seq *value_iterate(struct vm *vm, struct value v);

/* --- dicts --- */
struct value dict_new(struct vm *vm, enum value_kind kind);
struct value *dict_find(struct vm *vm, const struct dict *d, struct value key);
struct value *dict_find_str(struct vm *vm, const struct dict *d, const char *p, size_t len);
void dict_put(struct vm *vm, struct dict *d, struct value key, struct value value);
bool value_hashable(struct value v);

/* A JSON value as the engine's own; strings and keys get this trust. Fails past JSON_DEPTH_MAX. */
struct value value_of_json(struct vm *vm, const struct json *json, bool trusted, int depth);
