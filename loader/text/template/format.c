/* "..." % args and "...".format(args). One conversion is one `struct spec`; the text around keeps its
 * trust, strings put in keep theirs, numbers are trusted. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loader/text/template/eval.h"

struct spec {
    char type;  /* s r d f e g x ... or 0 */
    char align; /* < > ^ = or 0 */
    char sign;  /* + or space or 0 */
    bool zero, alternate, grouped;
    uint32_t fill;
    int width, precision; /* -1: not given */
};

static int bounded(struct vm *vm, int64_t n)
{
    if (n < 0 || n > TEMPLATE_PAD_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "a format's width is beyond %d", TEMPLATE_PAD_MAX);
    }
    return (int)n;
}

static void pad(struct text *out, const struct spec *spec, const struct str *body, char align)
{
    int width = (int)utf8_count(body->p, body->len);
    int missing = spec->width > width ? spec->width - width : 0;
    int left = align == '>' ? missing : align == '^' ? missing / 2 : 0;
    for (int i = 0; i < missing + 1; i++) {
        if (i == left) {
            text_add_str(out, body);
        }
        if (i < missing) {
            text_add_cp(out, spec->fill, true);
        }
    }
}

/* sign, prefix and digits, padded: zeros go between. */
static void pad_number(struct text *out, const struct spec *spec, const char *sign,
                       const char *digits)
{
    struct text body;
    text_init(&body, out->vm, 0);
    text_puts(&body, sign);
    bool zeros = spec->align == '=' || (spec->zero && !spec->align);
    size_t len = strlen(sign) + strlen(digits);
    for (size_t i = len; zeros && spec->width > 0 && i < (size_t)spec->width; i++) {
        text_add_cp(&body, spec->zero ? '0' : spec->fill, true);
    }
    text_puts(&body, digits);
    pad(out, spec, text_str(&body), spec->align && spec->align != '=' ? spec->align : '>');
}

/* Thousands separators into the integer part of digits. */
static void group(char *digits, size_t size)
{
    size_t len = strlen(digits), whole = strspn(digits, "0123456789");
    for (size_t at = whole; at > 3 && len + 1 < size;) {
        at -= 3;
        memmove(digits + at + 1, digits + at, len - at + 1);
        digits[at] = ',';
        len++;
    }
}

static void format_float(struct text *out, const struct spec *spec, double f)
{
    char digits[TEMPLATE_PAD_MAX + 400];
    int precision = spec->precision < 0 ? 6 : spec->precision;
    const char *sign = signbit(f) ? "-" : spec->sign == '+' ? "+" : spec->sign ? " " : "";
    double magnitude = fabs(f);
    switch (spec->type) {
    case 'e':
        snprintf(digits, sizeof digits, "%.*e", precision, magnitude);
        break;
    case 'E':
        snprintf(digits, sizeof digits, "%.*E", precision, magnitude);
        break;
    case 'g':
    case 'G':
        snprintf(digits, sizeof digits, "%.*g", precision, magnitude);
        break;
    case '%':
        snprintf(digits, sizeof digits, "%.*f%%", precision, magnitude * 100);
        break;
    default:
        snprintf(digits, sizeof digits, "%.*f", precision, magnitude);
    }
    if (spec->grouped) {
        group(digits, sizeof digits);
    }
    pad_number(out, spec, sign, digits);
}

static void format_int(struct text *out, const struct spec *spec, int64_t i)
{
    char digits[128];
    uint64_t magnitude = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
    char sign[4] = "";
    size_t n = 0;
    if (i < 0 || spec->sign) {
        sign[n++] = i < 0 ? '-' : spec->sign;
    }
    if (spec->alternate && strchr("xXob", spec->type) && spec->type) {
        sign[n++] = '0';
        sign[n++] = spec->type;
    }
    sign[n] = '\0';
    switch (spec->type) {
    case 'x':
        snprintf(digits, sizeof digits, "%llx", (unsigned long long)magnitude);
        break;
    case 'X':
        snprintf(digits, sizeof digits, "%llX", (unsigned long long)magnitude);
        break;
    case 'o':
        snprintf(digits, sizeof digits, "%llo", (unsigned long long)magnitude);
        break;
    case 'b': {
        int bits = 1;
        while (bits < 64 && magnitude >> bits) {
            bits++;
        }
        for (int k = 0; k < bits; k++) {
            digits[k] = (char)('0' + (magnitude >> (bits - 1 - k) & 1));
        }
        digits[bits] = '\0';
        break;
    }
    default:
        snprintf(digits, sizeof digits, "%llu", (unsigned long long)magnitude);
    }
    if (spec->grouped) {
        group(digits, sizeof digits);
    }
    pad_number(out, spec, sign, digits);
}

static void format_text(struct text *out, const struct spec *spec, struct value v)
{
    struct text body;
    text_init(&body, out->vm, 0);
    if (spec->type == 'r') {
        print_repr(&body, v);
    } else {
        print_value(&body, v);
    }
    const struct str *s = text_str(&body);
    if (spec->precision >= 0) {
        s = str_slice(out->vm, s, 0, utf8_offset(s->p, s->len, (size_t)spec->precision));
    }
    bool number = v.kind == VALUE_INT || v.kind == VALUE_FLOAT;
    pad(out, spec, s, spec->align ? spec->align : number ? '>' : '<');
}

static bool is_float_type(char type)
{
    return type && strchr("fFeEgG%", type);
}

static bool is_int_type(char type)
{
    return type && strchr("diuxXob", type);
}

static void format_one(struct text *out, const struct spec *spec, struct value v)
{
    bool number = v.kind == VALUE_INT || v.kind == VALUE_BOOL || v.kind == VALUE_FLOAT;
    if (is_float_type(spec->type) || is_int_type(spec->type)) {
        if (!number) {
            value_need(out->vm, v);
            vm_fail(out->vm, TEMPLATE_RUNTIME, "%%%c format: a number is required, not %s",
                    spec->type, value_type_name(v));
        }
        double f = v.kind == VALUE_FLOAT ? v.f : v.kind == VALUE_BOOL ? v.b : (double)v.i;
        if (is_float_type(spec->type)) {
            format_float(out, spec, f);
        } else if (v.kind == VALUE_FLOAT) {
            if (!(fabs(f) < 9e18)) {
                vm_fail(out->vm, TEMPLATE_RUNTIME, "a number is beyond 64-bit integers");
            }
            format_int(out, spec, (int64_t)f);
        } else {
            format_int(out, spec, v.kind == VALUE_BOOL ? v.b : v.i);
        }
    } else if (v.kind == VALUE_INT && (spec->sign || spec->grouped || spec->zero)) {
        format_int(out, spec, v.i);
    } else if (v.kind == VALUE_FLOAT && spec->type == 0 && spec->precision >= 0) {
        struct spec general = *spec;
        general.type = 'g';
        format_float(out, &general, v.f);
    } else {
        format_text(out, spec, v);
    }
}

/* --- percent --- */

struct percent {
    struct vm *vm;
    const struct str *format;
    size_t pos;
    struct value args;
    size_t used; /* of a tuple */
};

static char percent_peek(const struct percent *p)
{
    return p->pos < p->format->len ? p->format->p[p->pos] : '\0';
}

static struct value percent_arg(struct percent *p)
{
    if (p->args.kind == VALUE_TUPLE) {
        if (p->used < p->args.seq->n) {
            return p->args.seq->items[p->used++];
        }
    } else if (p->used++ == 0) {
        return p->args;
    }
    vm_fail(p->vm, TEMPLATE_RUNTIME, "not enough arguments for format string");
}

static int percent_number(struct percent *p)
{
    if (percent_peek(p) == '*') {
        p->pos++;
        return bounded(p->vm, arg_int(p->vm, percent_arg(p), 0, "format"));
    }
    int64_t n = 0;
    while (percent_peek(p) >= '0' && percent_peek(p) <= '9') {
        n = n * 10 + (percent_peek(p) - '0');
        p->pos++;
        bounded(p->vm, n);
    }
    return (int)n;
}

static void percent_one(struct percent *p, struct text *out)
{
    struct spec spec = { .fill = ' ', .precision = -1 };
    struct value named = { .kind = VALUE_ABSENT };
    if (percent_peek(p) == '(') {
        size_t begin = ++p->pos;
        while (p->pos < p->format->len && percent_peek(p) != ')') {
            p->pos++;
        }
        if (p->args.kind != VALUE_DICT) {
            vm_fail(p->vm, TEMPLATE_RUNTIME, "format requires a mapping");
        }
        const struct value *found = dict_find_str(p->vm, p->args.dict, p->format->p + begin,
                                                  p->pos - begin);
        if (!found) {
            vm_fail(p->vm, TEMPLATE_RUNTIME, "the format names a key that is not there");
        }
        named = *found;
        p->pos += p->pos < p->format->len;
    }
    for (char c; (c = percent_peek(p)) && strchr("-+ 0#", c); p->pos++) {
        spec.align = c == '-' ? '<' : spec.align;
        spec.sign = c == '+' ? '+' : c == ' ' && !spec.sign ? ' ' : spec.sign;
        spec.zero |= c == '0';
        spec.alternate |= c == '#';
    }
    spec.width = percent_number(p);
    if (percent_peek(p) == '.') {
        p->pos++;
        spec.precision = percent_number(p);
    }
    spec.type = percent_peek(p);
    p->pos++;
    if (spec.type == '%') {
        text_puts(out, "%");
        return;
    }
    struct value v = named.kind == VALUE_ABSENT ? percent_arg(p) : named;
    if (spec.type == 'c') {
        spec.type = 's';
        if (v.kind == VALUE_INT) {
            struct text c;
            text_init(&c, p->vm, 0);
            text_add_cp(&c, v.i > 0 && v.i < 0xd800 ? (uint32_t)v.i : 0xfffd, true);
            v = text_value(&c);
        }
    }
    if (spec.type == 's' || spec.type == 'r' || spec.type == 'a') {
        spec.type = spec.type == 'a' ? 'r' : spec.type;
        spec.align = spec.align ? spec.align : '>';
        format_text(out, &spec, v);
    } else if ((is_float_type(spec.type) || is_int_type(spec.type)) && spec.type != 'b') {
        format_one(out, &spec, v);
    } else {
        vm_fail(p->vm, TEMPLATE_RUNTIME, "unsupported format character at index %zu", p->pos - 1);
    }
}

struct value format_percent(struct vm *vm, const struct str *format, struct value args)
{
    struct percent p = { .vm = vm, .format = format, .args = args };
    struct text out;
    text_init(&out, vm, 0);
    while (p.pos < format->len) {
        const char *hit = memchr(format->p + p.pos, '%', format->len - p.pos);
        size_t end = hit ? (size_t)(hit - format->p) : format->len;
        text_add_part(&out, format, p.pos, end - p.pos);
        p.pos = end + 1;
        if (hit) {
            percent_one(&p, &out);
        }
    }
    bool single = args.kind != VALUE_TUPLE && args.kind != VALUE_DICT;
    if ((args.kind == VALUE_TUPLE && p.used < args.seq->n) || (single && p.used == 0)) {
        vm_fail(vm, TEMPLATE_RUNTIME, "not all arguments converted during string formatting");
    }
    return text_value(&out);
}

/* --- braces --- */

static struct spec parse_spec(struct vm *vm, const char *p, size_t len)
{
    struct spec spec = { .fill = ' ', .precision = -1 };
    const char *end = p + len;
    uint32_t cp = 0;
    size_t n = p < end ? utf8_next(p, end, &cp) : 0;
    if (n && p + n < end && strchr("<>^=", p[n])) {
        spec.fill = cp;
        spec.align = p[n];
        p += n + 1;
    } else if (p < end && strchr("<>^=", *p)) {
        spec.align = *p++;
    }
    for (; p < end && *p && strchr("+- #0", *p); p++) {
        spec.sign = *p == '+' || *p == ' ' ? *p : spec.sign;
        spec.alternate |= *p == '#';
        spec.zero |= *p == '0';
    }
    int64_t width = 0, precision = 0;
    for (; p < end && *p >= '0' && *p <= '9'; p++) {
        width = bounded(vm, width * 10 + (*p - '0'));
    }
    spec.width = (int)width;
    if (p < end && *p == ',') {
        spec.grouped = true;
        p++;
    }
    if (p < end && *p == '.') {
        for (p++; p < end && *p >= '0' && *p <= '9'; p++) {
            precision = bounded(vm, precision * 10 + (*p - '0'));
        }
        spec.precision = (int)precision;
    }
    if (p < end) {
        spec.type = *p++;
    }
    if (p < end || (spec.type && !strchr("srdiufFeEgG%xXob", spec.type))) {
        vm_fail(vm, TEMPLATE_RUNTIME, "invalid format specifier");
    }
    return spec;
}

/* name, 0, "", with .attr and [key] behind. */
static struct value brace_field(struct vm *vm, const char *p, size_t len, const struct args *args,
                                size_t *next)
{
    size_t head = 0;
    while (head < len && p[head] != '.' && p[head] != '[') {
        head++;
    }
    struct value v = { .kind = VALUE_ABSENT };
    size_t index = 0;
    bool digits = head > 0 && head < 6;
    for (size_t i = 0; i < head; i++) {
        digits = digits && p[i] >= '0' && p[i] <= '9';
        index = digits ? index * 10 + (size_t)(p[i] - '0') : 0;
    }
    if (head == 0 || digits) {
        index = head == 0 ? (*next)++ : index;
        if (index < args->n) {
            v = args->positional[index];
        }
    }
    for (size_t i = 0; i < args->n_keywords && head && !digits; i++) {
        if (args->names[i]->len == head && memcmp(args->names[i]->p, p, head) == 0) {
            v = args->keywords[i];
        }
    }
    if (v.kind == VALUE_ABSENT) {
        vm_fail(vm, TEMPLATE_RUNTIME, "format() misses the argument '%.*s'", (int)head, p);
    }
    for (size_t at = head; at < len;) {
        size_t begin = ++at;
        bool item = p[begin - 1] == '[';
        while (at < len && (item ? p[at] != ']' : p[at] != '.' && p[at] != '[')) {
            at++;
        }
        const struct str *key = str_of(vm, p + begin, at - begin, true);
        v = item ? lookup_path(vm, v, value_str(key)) : lookup_attr(vm, v, key, NULL);
        at += item && at < len;
    }
    return v;
}

/* Between { and }: field, !conversion, :spec. */
static void brace_one(struct vm *vm, struct text *out, const char *p, size_t len,
                      const struct args *args, size_t *next)
{
    const char *colon = memchr(p, ':', len);
    size_t name = colon ? (size_t)(colon - p) : len;
    struct spec spec = { .fill = ' ', .precision = -1 };
    if (colon) {
        spec = parse_spec(vm, colon + 1, len - name - 1);
    }
    bool repr = name >= 2 && p[name - 2] == '!' && (p[name - 1] == 'r' || p[name - 1] == 's');
    struct value v = brace_field(vm, p, repr ? name - 2 : name, args, next);
    if (repr) {
        struct text text;
        text_init(&text, vm, 0);
        if (p[name - 1] == 'r') {
            print_repr(&text, v);
        } else {
            print_value(&text, v);
        }
        v = text_value(&text);
    }
    format_one(out, &spec, v);
}

struct value format_braces(struct vm *vm, const struct str *format, const struct args *args)
{
    struct text out;
    size_t next = 0;
    text_init(&out, vm, 0);
    for (size_t pos = 0; pos < format->len;) {
        size_t at = pos;
        while (at < format->len && format->p[at] != '{' && format->p[at] != '}') {
            at++;
        }
        text_add_part(&out, format, pos, at - pos);
        if (at == format->len) {
            break;
        }
        if (at + 1 < format->len && format->p[at + 1] == format->p[at]) {
            text_add_part(&out, format, at, 1);
            pos = at + 2;
            continue;
        }
        const char *close = memchr(format->p + at, '}', format->len - at);
        if (format->p[at] == '}' || !close) {
            vm_fail(vm, TEMPLATE_RUNTIME, "single '%c' in a format string", format->p[at]);
        }
        size_t end = (size_t)(close - format->p);
        brace_one(vm, &out, format->p + at + 1, end - at - 1, args, &next);
        pos = end + 1;
    }
    return text_value(&out);
}
