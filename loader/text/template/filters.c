/* Filters on single values: defaults, numbers, JSON, and the ways to say "text". */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loader/text/template/eval.h"

static struct value filter_default(struct vm *vm, struct value self, struct value *argv,
                                   const struct args *args)
{
    (void)args;
    bool replace = self.kind == VALUE_UNDEFINED || (arg_bool(argv[1], false) && !value_truth(self));
    if (!replace) {
        return self;
    }
    return argv[0].kind == VALUE_ABSENT ? str_literal(vm, "") : argv[0];
}

static struct value filter_length(struct vm *vm, struct value self, struct value *argv,
                                  const struct args *args)
{
    (void)argv;
    (void)args;
    return value_int((int64_t)value_len(vm, self));
}

static struct value filter_string(struct vm *vm, struct value self, struct value *argv,
                                  const struct args *args)
{
    (void)argv;
    (void)args;
    return value_str(print_str(vm, self));
}

/* safe: no markup type (formats: it would escape what is added to it), so it is `string`. */

/* The number text begins with and nothing else behind but white space. */
static bool parse_int(struct vm *vm, const struct str *s, int base, int64_t *out)
{
    s = str_strip(vm, s, NULL, 3);
    char digits[80];
    size_t n = 0;
    for (size_t i = 0; i < s->len; i++) {
        if (s->p[i] == '_' && i > 0) {
            continue;
        }
        if (n + 1 >= sizeof digits) {
            return false;
        }
        digits[n++] = s->p[i];
    }
    digits[n] = '\0';
    const char *p = digits + (digits[0] == '-' || digits[0] == '+');
    if (p[0] == '0' && base != 10 && (p[1] | 0x20) == (base == 2 ? 'b' : base == 8 ? 'o' : 'x')) {
        memmove(digits + (p - digits), p + 2, strlen(p + 2) + 1);
    }
    if (p[0] == '\0' || p[0] == ' ' || p[0] == '-' || p[0] == '+') {
        return false;
    }
    char *end;
    errno = 0;
    long long value = strtoll(digits, &end, base);
    *out = value;
    return *end == '\0' && errno == 0;
}

static bool parse_float(struct vm *vm, const struct str *s, double *out)
{
    s = str_strip(vm, s, NULL, 3);
    char digits[400];
    if (s->len == 0 || s->len >= sizeof digits || memchr(s->p, 'x', s->len) ||
        memchr(s->p, 'X', s->len) || memchr(s->p, '\0', s->len)) {
        return false;
    }
    memcpy(digits, s->p, s->len);
    digits[s->len] = '\0';
    char *end;
    *out = strtod(digits, &end);
    return *end == '\0';
}

static struct value filter_int(struct vm *vm, struct value self, struct value *argv,
                               const struct args *args)
{
    (void)args;
    struct value fallback = argv[0].kind == VALUE_ABSENT ? value_int(0) : argv[0];
    int64_t base = arg_int(vm, argv[1], 10, "int"), i;
    double f = 0;
    if (base < 2 || base > 36) {
        vm_fail(vm, TEMPLATE_RUNTIME, "int() base must be >= 2 and <= 36");
    }
    switch (self.kind) {
    case VALUE_BOOL:
        return value_int(self.b);
    case VALUE_INT:
    case VALUE_BIG:
        return self;
    case VALUE_STR:
        if (parse_int(vm, self.s, (int)base, &i)) {
            return value_int(i);
        }
        if (!parse_float(vm, self.s, &f)) {
            return fallback;
        }
        break;
    case VALUE_FLOAT:
        f = self.f;
        break;
    default:
        return fallback;
    }
    return fabs(f) < 9e18 ? value_int((int64_t)f) : fallback;
}

static struct value filter_float(struct vm *vm, struct value self, struct value *argv,
                                 const struct args *args)
{
    (void)args;
    double f;
    switch (self.kind) {
    case VALUE_BOOL:
        return value_float(self.b);
    case VALUE_INT:
        return value_float((double)self.i);
    case VALUE_FLOAT:
        return self;
    case VALUE_STR:
    case VALUE_BIG:
        if (parse_float(vm, self.s, &f)) {
            return value_float(f);
        }
        break;
    default:
        break;
    }
    return argv[0].kind == VALUE_ABSENT ? value_float(0) : argv[0];
}

static struct value filter_abs(struct vm *vm, struct value self, struct value *argv,
                               const struct args *args)
{
    (void)argv;
    (void)args;
    bool negative = (self.kind == VALUE_INT && self.i < 0) ||
                    (self.kind == VALUE_FLOAT && signbit(self.f));
    return op_negate(vm, self, negative);
}

static struct value filter_round(struct vm *vm, struct value self, struct value *argv,
                                 const struct args *args)
{
    (void)args;
    int64_t digits = arg_int(vm, argv[0], 0, "round");
    if (self.kind != VALUE_INT && self.kind != VALUE_FLOAT && self.kind != VALUE_BOOL) {
        value_need(vm, self);
        vm_fail(vm, TEMPLATE_RUNTIME, "type %s has no rounding", value_type_name(self));
    }
    if (digits < -300 || digits > 300) {
        return self;
    }
    double f = self.kind == VALUE_FLOAT  ? self.f
               : self.kind == VALUE_BOOL ? self.b
                                         : (double)self.i;
    const struct str *method = argv[1].kind == VALUE_ABSENT ? NULL : arg_str(vm, argv[1], "round");
    double scale = pow(10, (double)digits);
    if (!method || str_eq(method, "common")) {
        if (self.kind != VALUE_FLOAT) {
            return value_float(f);
        }
        if (digits < 0) {
            return value_float(nearbyint(f * scale) / scale);
        }
        char text[700]; /* the decimal nearest to the number, ties as printf has them: to even */
        snprintf(text, sizeof text, "%.*f", (int)digits, f);
        return value_float(strtod(text, NULL));
    }
    if (str_eq(method, "ceil")) {
        return value_float(ceil(f * scale) / scale);
    }
    if (str_eq(method, "floor")) {
        return value_float(floor(f * scale) / scale);
    }
    vm_fail(vm, TEMPLATE_RUNTIME, "method must be common, ceil or floor");
}

static struct value filter_filesize(struct vm *vm, struct value self, struct value *argv,
                                    const struct args *args)
{
    static const char *const decimal[] = { "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB" };
    static const char *const binary[] = { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB" };
    struct value number = filter_float(vm, self, argv + 1, args);
    bool is_binary = arg_bool(argv[0], false);
    double bytes = number.kind == VALUE_FLOAT ? number.f : 0, base = is_binary ? 1024 : 1000;
    char text[400];
    if (bytes < base) {
        snprintf(text, sizeof text, bytes == 1 ? "1 Byte" : "%.0f Bytes", bytes);
    } else {
        double unit = base;
        size_t i = 0;
        while (i < 7 && bytes >= unit * base) {
            unit *= base;
            i++;
        }
        snprintf(text, sizeof text, "%.1f %s", bytes / unit, is_binary ? binary[i] : decimal[i]);
    }
    struct text out;
    text_init(&out, vm, 0);
    text_puts(&out, text);
    return text_value(&out);
}

/* --- JSON --- */

static void json_indent(struct vm *vm, struct value indent, struct json_style *style)
{
    if (indent.kind == VALUE_ABSENT || indent.kind == VALUE_NONE) {
        return;
    }
    style->item_separator = ",";
    style->item_len = 1;
    if (indent.kind == VALUE_STR) {
        style->indent = indent.s->p;
        style->indent_len = indent.s->len;
        return;
    }
    int64_t n = arg_int(vm, indent, 0, "tojson");
    if (n > TEMPLATE_PAD_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "an indentation beyond %d", TEMPLATE_PAD_MAX);
    }
    char *spaces = vm_alloc(vm, (size_t)(n > 0 ? n : 0) + 1);
    memset(spaces, ' ', (size_t)(n > 0 ? n : 0));
    style->indent = spaces;
    style->indent_len = (size_t)(n > 0 ? n : 0);
}

static struct value filter_tojson(struct vm *vm, struct value self, struct value *argv,
                                  const struct args *args)
{
    (void)args;
    struct json_style style = { .item_separator = ", ",
                                .item_len = 2,
                                .key_separator = ": ",
                                .key_len = 2,
                                .ascii = arg_bool(argv[1], false),
                                .sort_keys = arg_bool(argv[3], false) };
    json_indent(vm, argv[0], &style);
    if (argv[2].kind == VALUE_TUPLE || argv[2].kind == VALUE_LIST) {
        if (argv[2].seq->n != 2) {
            vm_fail(vm, TEMPLATE_RUNTIME, "tojson: two separators are needed");
        }
        const struct str *item = arg_str(vm, argv[2].seq->items[0], "tojson");
        const struct str *key = arg_str(vm, argv[2].seq->items[1], "tojson");
        style.item_separator = item->p;
        style.item_len = item->len;
        style.key_separator = key->p;
        style.key_len = key->len;
    }
    struct text out;
    text_init(&out, vm, 0);
    print_json(&out, self, &style, 0);
    return text_value(&out);
}

/* Not in Jinja; DeepSeek's templates use it. */
static struct value filter_from_json(struct vm *vm, struct value self, struct value *argv,
                                     const struct args *args)
{
    (void)argv;
    (void)args;
    const struct str *s = arg_str(vm, self, "from_json");
    const struct str *bare = str_strip(vm, s, NULL, 3);
    if (str_eq(bare, "null")) {
        return value_none();
    }
    struct err err;
    vm_charge_bytes(vm, s->len * 4);
    vm->held = json_parse(bare->p, bare->len, &err);
    if (!vm->held) {
        vm_fail(vm, TEMPLATE_RUNTIME, "from_json: %s", err.text);
    }
    struct value value = value_of_json(vm, vm->held, str_trusted(s), 0);
    json_destroy(&vm->held);
    return value;
}

static struct value filter_attr(struct vm *vm, struct value self, struct value *argv,
                                const struct args *args)
{
    (void)args;
    return lookup_attr(vm, self, arg_str(vm, argv[0], "attr"), NULL);
}

static struct value filter_format(struct vm *vm, struct value self, struct value *argv,
                                  const struct args *args)
{
    (void)argv;
    struct value tuple = seq_new(vm, VALUE_TUPLE, args->n);
    for (size_t i = 0; i < args->n; i++) {
        seq_push(vm, tuple.seq, args->positional[i]);
    }
    if (args->n_keywords) {
        tuple = dict_new(vm, VALUE_DICT);
        for (size_t i = 0; i < args->n_keywords; i++) {
            dict_put(vm, tuple.dict, value_str(args->names[i]), args->keywords[i]);
        }
    }
    return format_percent(vm, print_str(vm, self), tuple);
}

static struct value filter_pprint(struct vm *vm, struct value self, struct value *argv,
                                  const struct args *args)
{
    (void)argv;
    (void)args;
    struct text out;
    text_init(&out, vm, 0);
    print_repr(&out, self);
    return text_value(&out);
}

const struct native filter_table[] = {
    { "default", { "default_value", "boolean" }, 0, filter_default },
    { "d", { "default_value", "boolean" }, 0, filter_default },
    { "length", { NULL }, 0, filter_length },
    { "count", { NULL }, 0, filter_length },
    { "string", { NULL }, 0, filter_string },
    { "safe", { NULL }, 0, filter_string },
    { "tojson", { "indent", "ensure_ascii", "separators", "sort_keys" }, 0, filter_tojson },
    { "from_json", { NULL }, 0, filter_from_json },
    { "int", { "default", "base" }, 0, filter_int },
    { "float", { "default" }, 0, filter_float },
    { "abs", { NULL }, 0, filter_abs },
    { "round", { "precision", "method" }, 0, filter_round },
    { "filesizeformat", { "binary" }, 0, filter_filesize },
    { "attr", { "name" }, 1, filter_attr },
    { "format", { NULL }, NATIVE_RAW, filter_format },
    { "pprint", { NULL }, 0, filter_pprint },
    { 0 },
};
