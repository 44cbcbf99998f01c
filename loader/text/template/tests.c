/* The tests behind `is`, by name. */
#include "loader/text/template/eval.h"

#define ARGS struct vm *vm, struct value self, struct value *argv, const struct args *args
#define TEST(name, expression)                                                                     \
    static struct value test_##name(ARGS)                                                          \
    {                                                                                              \
        (void)vm;                                                                                  \
        (void)self;                                                                                \
        (void)argv;                                                                                \
        (void)args;                                                                                \
        return value_bool(expression);                                                             \
    }

static bool is_int(struct value v)
{
    return v.kind == VALUE_INT || v.kind == VALUE_BIG;
}

static bool is_number(struct value v)
{
    return is_int(v) || v.kind == VALUE_BOOL || v.kind == VALUE_FLOAT;
}

static int64_t remainder_of(struct vm *vm, struct value v, struct value by)
{
    struct value rest = op_binary(vm, OP_MOD, v, by);
    return rest.kind == VALUE_INT ? rest.i : rest.kind == VALUE_FLOAT && rest.f == 0 ? 0 : -1;
}

/* All letters that have case are of this one, and there is one. */
static bool cased(struct vm *vm, struct value v, bool upper)
{
    const struct str *s = print_str(vm, v);
    bool any = false;
    vm_charge_bytes(vm, s->len * 8);
    for (size_t off = 0; off < s->len;) {
        uint32_t cp;
        off += utf8_next(s->p + off, s->p + s->len, &cp);
        bool is_upper = glyph_upper(cp), is_lower = glyph_lower(cp);
        if (upper ? is_lower : is_upper) {
            return false;
        }
        any |= is_upper || is_lower;
    }
    return any;
}

static bool same(struct vm *vm, struct value a, struct value b)
{
    /* Small integers, strings and the constants are one object each in CPython; lists and dicts are not. */
    bool scalar = a.kind <= VALUE_STR;
    return a.kind == b.kind && (scalar ? value_equal(vm, a, b) : a.seq == b.seq);
}

static bool is_filter(struct vm *vm, struct value v)
{
    const struct str *name = arg_str(vm, v, "filter");
    return native_find(filter_table, name) || native_find(filter_text_table, name) ||
           native_find(filter_seq_table, name);
}

TEST(defined, self.kind != VALUE_UNDEFINED)
TEST(undefined, self.kind == VALUE_UNDEFINED)
TEST(none, self.kind == VALUE_NONE)
TEST(boolean, self.kind == VALUE_BOOL)
TEST(true, self.kind == VALUE_BOOL && self.b)
TEST(false, self.kind == VALUE_BOOL && !self.b)
TEST(integer, is_int(self))
TEST(float, self.kind == VALUE_FLOAT)
TEST(number, is_number(self))
TEST(string, self.kind == VALUE_STR)
TEST(mapping, self.kind == VALUE_DICT)
TEST(sequence, self.kind == VALUE_STR || self.kind == VALUE_LIST || self.kind == VALUE_TUPLE ||
                   self.kind == VALUE_RANGE || self.kind == VALUE_DICT ||
                   self.kind == VALUE_UNDEFINED)
TEST(iterable, self.kind == VALUE_STR || value_is_seq(self) || self.kind == VALUE_DICT ||
                   self.kind == VALUE_UNDEFINED || self.kind == VALUE_LOOP)
TEST(callable, self.kind == VALUE_FUNC || self.kind == VALUE_JOINER || self.kind == VALUE_LOOP)
TEST(even, remainder_of(vm, self, value_int(2)) == 0)
TEST(odd, remainder_of(vm, self, value_int(2)) == 1)
TEST(divisibleby, remainder_of(vm, self, argv[0]) == 0)
TEST(upper, cased(vm, self, true))
TEST(lower, cased(vm, self, false))
TEST(eq, op_compare(vm, OP_EQ, self, argv[0]))
TEST(ne, op_compare(vm, OP_NE, self, argv[0]))
TEST(lt, op_compare(vm, OP_LT, self, argv[0]))
TEST(le, op_compare(vm, OP_LE, self, argv[0]))
TEST(gt, op_compare(vm, OP_GT, self, argv[0]))
TEST(ge, op_compare(vm, OP_GE, self, argv[0]))
TEST(in, op_compare(vm, OP_IN, self, argv[0]))
TEST(sameas, same(vm, self, argv[0]))
TEST(escaped, false) /* there is no markup type */
TEST(filter, is_filter(vm, self))
TEST(test, native_find(test_table, arg_str(vm, self, "test")) != NULL)

const struct native test_table[] = {
    { "defined", { NULL }, 0, test_defined },
    { "undefined", { NULL }, 0, test_undefined },
    { "none", { NULL }, 0, test_none },
    { "boolean", { NULL }, 0, test_boolean },
    { "true", { NULL }, 0, test_true },
    { "false", { NULL }, 0, test_false },
    { "integer", { NULL }, 0, test_integer },
    { "float", { NULL }, 0, test_float },
    { "number", { NULL }, 0, test_number },
    { "string", { NULL }, 0, test_string },
    { "mapping", { NULL }, 0, test_mapping },
    { "sequence", { NULL }, 0, test_sequence },
    { "iterable", { NULL }, 0, test_iterable },
    { "callable", { NULL }, 0, test_callable },
    { "even", { NULL }, 0, test_even },
    { "odd", { NULL }, 0, test_odd },
    { "divisibleby", { "num" }, 1, test_divisibleby },
    { "upper", { NULL }, 0, test_upper },
    { "lower", { NULL }, 0, test_lower },
    { "eq", { "b" }, 1, test_eq },
    { "equalto", { "b" }, 1, test_eq },
    { "==", { "b" }, 1, test_eq },
    { "ne", { "b" }, 1, test_ne },
    { "!=", { "b" }, 1, test_ne },
    { "lt", { "b" }, 1, test_lt },
    { "lessthan", { "b" }, 1, test_lt },
    { "<", { "b" }, 1, test_lt },
    { "le", { "b" }, 1, test_le },
    { "<=", { "b" }, 1, test_le },
    { "gt", { "b" }, 1, test_gt },
    { "greaterthan", { "b" }, 1, test_gt },
    { ">", { "b" }, 1, test_gt },
    { "ge", { "b" }, 1, test_ge },
    { ">=", { "b" }, 1, test_ge },
    { "in", { "seq" }, 1, test_in },
    { "sameas", { "other" }, 1, test_sameas },
    { "escaped", { NULL }, 0, test_escaped },
    { "filter", { NULL }, 0, test_filter },
    { "test", { NULL }, 0, test_test },
    { 0 },
};
