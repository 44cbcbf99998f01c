/* The functions every template can call. */
#include <string.h>
#include <time.h>

#include "loader/text/template/eval.h"

#define ARGS struct vm *vm, struct value self, struct value *argv, const struct args *args

#define STRFTIME_MAX 512 /* bytes of a formatted time */

static struct value global_range(ARGS)
{
    (void)self;
    (void)args;
    bool one = argv[1].kind == VALUE_ABSENT;
    int64_t first = one ? 0 : arg_int(vm, argv[0], 0, "range");
    int64_t end = arg_int(vm, one ? argv[0] : argv[1], 0, "range");
    int64_t step = arg_int(vm, argv[2], 1, "range");
    if (step == 0) {
        vm_fail(vm, TEMPLATE_RUNTIME, "range() arg 3 must not be zero");
    }
    struct value out = seq_new(vm, VALUE_RANGE, 0);
    for (int64_t i = first; step > 0 ? i < end : i > end;) {
        if (out.seq->n == TEMPLATE_RANGE_MAX) {
            vm_fail(vm, TEMPLATE_LIMIT, "range() is longer than %d", TEMPLATE_RANGE_MAX);
        }
        vm_charge(vm, 1);
        seq_push(vm, out.seq, value_int(i));
        if (__builtin_add_overflow(i, step, &i)) {
            break;
        }
    }
    return out;
}

/* dict(mapping or pairs, name=value...) and namespace(...) */
static struct value make_dict(struct vm *vm, const struct args *args, enum value_kind kind)
{
    struct value out = dict_new(vm, kind);
    if (args->n > 1) {
        vm_fail(vm, TEMPLATE_RUNTIME, "expected at most 1 argument, got %zu", args->n);
    }
    if (args->n && args->positional[0].kind == VALUE_DICT) {
        const struct dict *from = args->positional[0].dict;
        for (size_t i = 0; i < from->n; i++) {
            dict_put(vm, out.dict, from->entries[i].key, from->entries[i].value);
        }
    } else if (args->n) {
        const struct seq *pairs = value_iterate(vm, args->positional[0]);
        for (size_t i = 0; i < pairs->n; i++) {
            const struct seq *pair = value_iterate(vm, pairs->items[i]);
            if (pair->n != 2) {
                vm_fail(vm, TEMPLATE_RUNTIME, "a dict is made of pairs, item %zu is none", i);
            }
            dict_put(vm, out.dict, pair->items[0], pair->items[1]);
        }
    }
    for (size_t i = 0; i < args->n_keywords; i++) {
        dict_put(vm, out.dict, value_str(args->names[i]), args->keywords[i]);
    }
    return out;
}

static struct value global_dict(ARGS)
{
    (void)self;
    (void)argv;
    return make_dict(vm, args, VALUE_DICT);
}

static struct value global_namespace(ARGS)
{
    (void)self;
    (void)argv;
    return make_dict(vm, args, VALUE_NAMESPACE);
}

static struct value global_cycler(ARGS)
{
    (void)self;
    (void)argv;
    if (args->n == 0) {
        vm_fail(vm, TEMPLATE_RUNTIME, "at least one item has to be provided");
    }
    struct cycler *cycler = vm_alloc(vm, sizeof *cycler);
    cycler->items = args->positional;
    cycler->n = args->n;
    return (struct value){ .kind = VALUE_CYCLER, .cycler = cycler };
}

static struct value global_joiner(ARGS)
{
    (void)self;
    (void)args;
    struct cycler *joiner = vm_alloc(vm, sizeof *joiner);
    joiner->items = vm_array(vm, 1, sizeof *joiner->items);
    joiner->items[0] = argv[0].kind == VALUE_ABSENT ? str_literal(vm, ", ") : argv[0];
    joiner->n = 1;
    return (struct value){ .kind = VALUE_JOINER, .cycler = joiner };
}

static struct value global_lipsum(ARGS)
{
    (void)self;
    (void)argv;
    (void)args;
    vm_fail(vm, TEMPLATE_RUNTIME, "lipsum() writes random text: not in a prompt");
}

static struct value global_raise(ARGS)
{
    (void)self;
    (void)args;
    const struct str *message = print_str(vm, argv[0]);
    vm_raise(vm, TEMPLATE_RAISED, message->p, message->len);
}

static struct value global_strftime(ARGS)
{
    (void)self;
    (void)args;
    const struct str *format = arg_str(vm, argv[0], "strftime_now");
    char c_format[STRFTIME_MAX / 2], *out = vm_alloc(vm, STRFTIME_MAX);
    if (format->len >= sizeof c_format) {
        vm_fail(vm, TEMPLATE_LIMIT, "a time format of %zu bytes is too long", format->len);
    }
    memcpy(c_format, format->p, format->len);
    c_format[format->len] = '\0';
    time_t now = (time_t)vm->now;
    struct tm tm;
    if (!localtime_r(&now, &tm)) {
        vm_fail(vm, TEMPLATE_RUNTIME, "the clock shows no date");
    }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored                                                                     \
    "-Wformat-nonliteral" /* the format is the template's; out is bounded */
    size_t len = strftime(out, STRFTIME_MAX, c_format, &tm);
#pragma GCC diagnostic pop
    return str_value(vm, out, len, str_trusted(format));
}

const struct native global_table[] = {
    { "range", { "start", "stop", "step" }, 1, global_range },
    { "dict", { NULL }, NATIVE_RAW, global_dict },
    { "namespace", { NULL }, NATIVE_RAW, global_namespace },
    { "cycler", { NULL }, NATIVE_RAW, global_cycler },
    { "joiner", { "sep" }, 0, global_joiner },
    { "lipsum", { NULL }, NATIVE_RAW, global_lipsum },
    { "raise_exception", { "message" }, 1, global_raise },
    { "strftime_now", { "format" }, 1, global_strftime },
    { 0 },
};
