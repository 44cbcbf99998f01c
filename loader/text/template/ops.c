/* Operators, as Python has them: nothing converts by itself. */
#include <math.h>

#include "loader/text/template/eval.h"

static const char *const op_names[] = {
    [OP_ADD] = "+", [OP_SUB] = "-",  [OP_MUL] = "*", [OP_DIV] = "/", [OP_FLOORDIV] = "//",
    [OP_MOD] = "%", [OP_POW] = "**", [OP_EQ] = "==", [OP_NE] = "!=", [OP_LT] = "<",
    [OP_LE] = "<=", [OP_GT] = ">",   [OP_GE] = ">=", [OP_IN] = "in", [OP_NOT_IN] = "not in",
};

_Noreturn static void unsupported(struct vm *vm, enum op op, struct value a, struct value b)
{
    value_need(vm, a);
    value_need(vm, b);
    if (op == OP_ADD && a.kind == VALUE_STR) {
        vm_fail(vm, TEMPLATE_RUNTIME, "can only concatenate str (not \"%s\") to str",
                value_type_name(b));
    }
    vm_fail(vm, TEMPLATE_RUNTIME, "unsupported operand type(s) for %s: '%s' and '%s'", op_names[op],
            value_type_name(a), value_type_name(b));
}

_Noreturn static void overflow(struct vm *vm, enum op op)
{
    vm_fail(vm, TEMPLATE_RUNTIME, "the result of '%s' is beyond 64-bit integers", op_names[op]);
}

static bool is_int(struct value v)
{
    return v.kind == VALUE_INT || v.kind == VALUE_BOOL;
}

static bool is_number(struct value v)
{
    return is_int(v) || v.kind == VALUE_FLOAT;
}

static int64_t int_of(struct value v)
{
    return v.kind == VALUE_BOOL ? v.b : v.i;
}

static double double_of(struct value v)
{
    return v.kind == VALUE_FLOAT ? v.f : (double)int_of(v);
}

static struct value int_power(struct vm *vm, int64_t base, int64_t exponent)
{
    int64_t out = 1;
    for (; exponent; exponent >>= 1) {
        if ((exponent & 1) && __builtin_mul_overflow(out, base, &out)) {
            overflow(vm, OP_POW);
        }
        if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) {
            overflow(vm, OP_POW);
        }
    }
    return value_int(out);
}

static struct value int_op(struct vm *vm, enum op op, int64_t a, int64_t b)
{
    int64_t out = 0;
    bool over = false;
    switch (op) {
    case OP_ADD:
        over = __builtin_add_overflow(a, b, &out);
        break;
    case OP_SUB:
        over = __builtin_sub_overflow(a, b, &out);
        break;
    case OP_MUL:
        over = __builtin_mul_overflow(a, b, &out);
        break;
    case OP_FLOORDIV:
    case OP_MOD:
        if (a == INT64_MIN && b == -1) {
            overflow(vm, op);
        }
        out = a / b;
        if (a % b != 0 && (a < 0) != (b < 0)) {
            out--;
        }
        if (op == OP_MOD) {
            out = a - out * b;
        }
        break;
    default:
        return b >= 0 ? int_power(vm, a, b) : value_float(pow((double)a, (double)b));
    }
    if (over) {
        overflow(vm, op);
    }
    return value_int(out);
}

static struct value float_op(enum op op, double a, double b)
{
    switch (op) {
    case OP_ADD:
        return value_float(a + b);
    case OP_SUB:
        return value_float(a - b);
    case OP_MUL:
        return value_float(a * b);
    case OP_DIV:
        return value_float(a / b);
    case OP_FLOORDIV:
        return value_float(floor(a / b));
    case OP_MOD: {
        double rest = fmod(a, b);
        return value_float(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
    }
    default:
        return value_float(pow(a, b));
    }
}

static struct value number_op(struct vm *vm, enum op op, struct value a, struct value b)
{
    bool divides = op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD;
    bool zero_power = op == OP_POW && double_of(a) == 0 && double_of(b) < 0;
    if ((divides && double_of(b) == 0) || zero_power) {
        vm_fail(vm, TEMPLATE_RUNTIME, "division by zero");
    }
    if (is_int(a) && is_int(b) && op != OP_DIV) {
        return int_op(vm, op, int_of(a), int_of(b));
    }
    return float_op(op, double_of(a), double_of(b));
}

static bool is_list(struct value v)
{
    return v.kind == VALUE_LIST || v.kind == VALUE_TUPLE;
}

static struct value list_add(struct vm *vm, struct value a, struct value b)
{
    struct value out = seq_new(vm, a.kind, a.seq->n + b.seq->n);
    vm_charge(vm, (a.seq->n + b.seq->n) / 4);
    for (size_t i = 0; i < a.seq->n; i++) {
        seq_push(vm, out.seq, a.seq->items[i]);
    }
    for (size_t i = 0; i < b.seq->n; i++) {
        seq_push(vm, out.seq, b.seq->items[i]);
    }
    return out;
}

/* "ab" * 3 and [1] * 3 */
static struct value repeat(struct vm *vm, struct value what, int64_t times)
{
    if (what.kind == VALUE_STR) {
        struct text text;
        text_init(&text, vm, 0);
        for (int64_t i = 0; i < times && what.s->len; i++) {
            text_add_str(&text, what.s);
        }
        return text_value(&text);
    }
    struct value out = seq_new(vm, what.kind, 0);
    for (int64_t i = 0; i < times && what.seq->n; i++) {
        for (size_t k = 0; k < what.seq->n; k++) {
            vm_charge(vm, 1);
            seq_push(vm, out.seq, what.seq->items[k]);
        }
    }
    return out;
}

struct value op_binary(struct vm *vm, enum op op, struct value a, struct value b)
{
    if (is_number(a) && is_number(b)) {
        return number_op(vm, op, a, b);
    }
    if (op == OP_ADD && a.kind == VALUE_STR && b.kind == VALUE_STR) {
        return value_str(str_join2(vm, a.s, b.s));
    }
    if (op == OP_ADD && is_list(a) && a.kind == b.kind) {
        return list_add(vm, a, b);
    }
    if (op == OP_MUL && is_int(b) && (a.kind == VALUE_STR || is_list(a))) {
        return repeat(vm, a, int_of(b));
    }
    if (op == OP_MUL && is_int(a) && (b.kind == VALUE_STR || is_list(b))) {
        return repeat(vm, b, int_of(a));
    }
    if (op == OP_MOD && a.kind == VALUE_STR) {
        return format_percent(vm, a.s, b);
    }
    unsupported(vm, op, a, b);
}

struct value op_negate(struct vm *vm, struct value a, bool negative)
{
    if (!is_number(a)) {
        value_need(vm, a);
        vm_fail(vm, TEMPLATE_RUNTIME, "bad operand type for unary %c: '%s'", negative ? '-' : '+',
                value_type_name(a));
    }
    if (a.kind == VALUE_FLOAT) {
        return value_float(negative ? -a.f : a.f);
    }
    return negative ? int_op(vm, OP_SUB, 0, int_of(a)) : value_int(int_of(a));
}

bool op_compare(struct vm *vm, enum op op, struct value a, struct value b)
{
    bool nan = (a.kind == VALUE_FLOAT && isnan(a.f)) || (b.kind == VALUE_FLOAT && isnan(b.f));
    switch (op) {
    case OP_EQ:
        return value_equal(vm, a, b);
    case OP_NE:
        return !value_equal(vm, a, b);
    case OP_IN:
        return value_contains(vm, b, a);
    case OP_NOT_IN:
        return !value_contains(vm, b, a);
    case OP_LT:
        return value_order(vm, a, b, "<") < 0 && !nan;
    case OP_LE:
        return value_order(vm, a, b, "<=") <= 0 && !nan;
    case OP_GT:
        return value_order(vm, a, b, ">") > 0 && !nan;
    default:
        return value_order(vm, a, b, ">=") >= 0 && !nan;
    }
}
