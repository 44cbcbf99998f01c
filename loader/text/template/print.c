/* Values as text: what {{ x }} prints, Python's repr, and JSON. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loader/text/template/eval.h"

size_t print_float(double f, char out[FLOAT_TEXT_MAX])
{
    if (isnan(f) || isinf(f)) {
        return (size_t)snprintf(out, FLOAT_TEXT_MAX, "%s",
                                isnan(f) ? "nan"
                                : f < 0  ? "-inf"
                                         : "inf");
    }
    /* The shortest digits that read back as the same number. */
    char text[FLOAT_TEXT_MAX];
    int precision = 0;
    do {
        snprintf(text, sizeof text, "%.*e", precision, f);
    } while (strtod(text, NULL) != f && ++precision < 17);
    int exponent = atoi(strchr(text, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        int decimals = precision - exponent;
        return (size_t)snprintf(out, FLOAT_TEXT_MAX, "%.*f", decimals > 0 ? decimals : 1, f);
    }
    size_t digits = (size_t)(strchr(text, 'e') - text);
    return (size_t)snprintf(out, FLOAT_TEXT_MAX, "%.*se%c%02d", (int)digits, text,
                            exponent < 0 ? '-' : '+', abs(exponent));
}

static void print_number(struct text *out, struct value v)
{
    char text[FLOAT_TEXT_MAX];
    if (v.kind == VALUE_BIG) {
        text_add_str(out, v.s);
    } else if (v.kind == VALUE_FLOAT) {
        text_add(out, text, print_float(v.f, text), true);
    } else {
        int n = snprintf(text, sizeof text, "%lld", (long long)v.i);
        text_add(out, text, (size_t)n, true);
    }
}

/* Enters one level of a container. */
static void deeper(struct vm *vm)
{
    vm_charge(vm, 1);
    if (++vm->depth > TEMPLATE_DEPTH_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "values are nested too deeply to print");
    }
}

static void repr_str(struct text *out, const struct str *s)
{
    bool has_single = memchr(s->p, '\'', s->len), has_double = memchr(s->p, '"', s->len);
    char quote = has_single && !has_double ? '"' : '\'';
    text_add(out, &quote, 1, true);
    for (size_t off = 0; off < s->len;) {
        uint32_t cp;
        size_t n = utf8_next(s->p + off, s->p + s->len, &cp);
        bool trusted = str_trusted_at(s, off);
        char escape[16];
        const char *named = cp == '\\'   ? "\\\\"
                            : cp == '\n' ? "\\n"
                            : cp == '\r' ? "\\r"
                            : cp == '\t' ? "\\t"
                                         : NULL;
        if (named) {
            text_add(out, named, 2, trusted);
        } else if (cp == (uint32_t)quote) {
            escape[0] = '\\';
            escape[1] = quote;
            text_add(out, escape, 2, trusted);
        } else if (!glyph_printable(cp)) {
            int len = cp < 0x100     ? snprintf(escape, sizeof escape, "\\x%02x", cp)
                      : cp < 0x10000 ? snprintf(escape, sizeof escape, "\\u%04x", cp)
                                     : snprintf(escape, sizeof escape, "\\U%08x", cp);
            text_add(out, escape, (size_t)len, trusted);
        } else {
            text_add(out, s->p + off, n, trusted);
        }
        off += n;
    }
    text_add(out, &quote, 1, true);
}

static void repr_seq(struct text *out, const struct seq *seq, const char *open, const char *close)
{
    text_puts(out, open);
    for (size_t i = 0; i < seq->n; i++) {
        if (i) {
            text_puts(out, ", ");
        }
        print_repr(out, seq->items[i]);
    }
    text_puts(out, close);
}

static void repr_dict(struct text *out, const struct dict *dict)
{
    text_puts(out, "{");
    for (size_t i = 0; i < dict->n; i++) {
        if (i) {
            text_puts(out, ", ");
        }
        print_repr(out, dict->entries[i].key);
        text_puts(out, ": ");
        print_repr(out, dict->entries[i].value);
    }
    text_puts(out, "}");
}

static void repr_range(struct text *out, const struct seq *seq)
{
    int64_t first = seq->n ? seq->items[0].i : 0;
    int64_t step = seq->n > 1 ? seq->items[1].i - first : 1;
    text_puts(out, "range(");
    print_number(out, value_int(first));
    text_puts(out, ", ");
    print_number(out, value_int(seq->n ? seq->items[seq->n - 1].i + (step > 0 ? 1 : -1) : 0));
    if (step != 1) {
        text_puts(out, ", ");
        print_number(out, value_int(step));
    }
    text_puts(out, ")");
}

static void repr_object(struct text *out, struct value v)
{
    text_puts(out, "<");
    text_puts(out, v.kind == VALUE_GENERATOR ? "generator object" : value_type_name(v));
    text_puts(out, ">");
}

void print_repr(struct text *out, struct value v)
{
    deeper(out->vm);
    switch (v.kind) {
    case VALUE_ABSENT:
    case VALUE_UNDEFINED:
        text_puts(out, "Undefined");
        break;
    case VALUE_NONE:
        text_puts(out, "None");
        break;
    case VALUE_BOOL:
        text_puts(out, v.b ? "True" : "False");
        break;
    case VALUE_INT:
    case VALUE_BIG:
    case VALUE_FLOAT:
        print_number(out, v);
        break;
    case VALUE_STR:
        repr_str(out, v.s);
        break;
    case VALUE_LIST:
        repr_seq(out, v.seq, "[", "]");
        break;
    case VALUE_TUPLE:
        repr_seq(out, v.seq, "(", v.seq->n == 1 ? ",)" : ")");
        break;
    case VALUE_VIEW:
        text_puts(out, value_type_name(v));
        repr_seq(out, v.seq, "([", "])");
        break;
    case VALUE_RANGE:
        repr_range(out, v.seq);
        break;
    case VALUE_DICT:
        repr_dict(out, v.dict);
        break;
    case VALUE_NAMESPACE:
        text_puts(out, "<Namespace ");
        repr_dict(out, v.dict);
        text_puts(out, ">");
        break;
    default:
        repr_object(out, v);
    }
    out->vm->depth--;
}

void print_value(struct text *out, struct value v)
{
    if (v.kind == VALUE_STR) {
        text_add_str(out, v.s);
    } else if (!value_missing(v)) {
        print_repr(out, v);
    }
}

const struct str *print_str(struct vm *vm, struct value v)
{
    if (v.kind == VALUE_STR) {
        return v.s;
    }
    struct text text;
    text_init(&text, vm, 0);
    print_value(&text, v);
    return text_str(&text);
}

/* --- JSON --- */

static void json_str(struct text *out, const struct str *s, bool ascii)
{
    static const char special[] = "\"\\\n\r\t\b\f", letters[] = "\"\\nrtbf";
    text_puts(out, "\"");
    size_t plain = 0; /* where text that needs no escape began */
    for (size_t off = 0; off < s->len;) {
        uint32_t cp;
        size_t n = utf8_next(s->p + off, s->p + s->len, &cp);
        const char *hit = cp && cp < 0x80 ? strchr(special, (int)cp) : NULL;
        if (hit || cp < 0x20 || (ascii && cp >= 0x7f && cp != 0x7f)) {
            text_add_part(out, s, plain, off - plain);
            char escape[16] = { '\\', hit ? letters[hit - special] : 'u' };
            int len = 2;
            if (!hit && cp >= 0x10000) {
                len = snprintf(escape, sizeof escape, "\\u%04x\\u%04x",
                               0xd800 + ((cp - 0x10000) >> 10), 0xdc00 + ((cp - 0x10000) & 0x3ff));
            } else if (!hit) {
                len = snprintf(escape, sizeof escape, "\\u%04x", cp);
            }
            text_add(out, escape, (size_t)len, str_trusted_at(s, off));
            plain = off + n;
        }
        off += n;
    }
    text_add_part(out, s, plain, s->len - plain);
    text_puts(out, "\"");
}

static void json_float(struct text *out, double f)
{
    if (isnan(f) || isinf(f)) {
        text_puts(out, isnan(f) ? "NaN" : f < 0 ? "-Infinity" : "Infinity");
    } else {
        print_number(out, value_float(f));
    }
}

static void json_line(struct text *out, const struct json_style *style, int level)
{
    if (style->indent) {
        text_puts(out, "\n");
        for (int i = 0; i < level; i++) {
            text_add(out, style->indent, style->indent_len, true);
        }
    }
}

static void json_scalar(struct text *out, struct value v, const struct json_style *style)
{
    switch (v.kind) {
    case VALUE_NONE:
        text_puts(out, "null");
        break;
    case VALUE_BOOL:
        text_puts(out, v.b ? "true" : "false");
        break;
    case VALUE_INT:
    case VALUE_BIG:
        print_number(out, v);
        break;
    case VALUE_FLOAT:
        json_float(out, v.f);
        break;
    case VALUE_STR:
        json_str(out, v.s, style->ascii);
        break;
    default:
        vm_fail(out->vm, TEMPLATE_RUNTIME, "Object of type %s is not JSON serializable",
                value_type_name(v));
    }
}

static void json_key(struct text *out, struct value key, const struct json_style *style)
{
    if (key.kind == VALUE_STR) {
        json_str(out, key.s, style->ascii);
    } else if (key.kind == VALUE_TUPLE) {
        vm_fail(out->vm, TEMPLATE_RUNTIME, "JSON keys must be strings or numbers, not tuple");
    } else {
        text_puts(out, "\"");
        json_scalar(out, key, style);
        text_puts(out, "\"");
    }
}

static void sort_entries(struct vm *vm, struct dict_entry *entries, size_t n,
                         struct dict_entry *tmp)
{
    if (n < 2) {
        return;
    }
    size_t half = n / 2;
    sort_entries(vm, entries, half, tmp);
    sort_entries(vm, entries + half, n - half, tmp);
    for (size_t i = 0, a = 0, b = half; i < n; i++) {
        bool left = b == n ||
                    (a < half && value_order(vm, entries[b].key, entries[a].key, "<") >= 0);
        tmp[i] = left ? entries[a++] : entries[b++];
    }
    memcpy(entries, tmp, n * sizeof *entries);
}

static void json_dict(struct text *out, const struct dict *d, const struct json_style *style,
                      int level)
{
    struct dict_entry *entries = d->entries;
    if (style->sort_keys && d->n > 1) {
        entries = vm_array(out->vm, d->n, sizeof *entries);
        memcpy(entries, d->entries, d->n * sizeof *entries);
        sort_entries(out->vm, entries, d->n, vm_array(out->vm, d->n, sizeof *entries));
    }
    text_puts(out, "{");
    for (size_t i = 0; i < d->n; i++) {
        if (i) {
            text_add(out, style->item_separator, style->item_len, true);
        }
        json_line(out, style, level + 1);
        json_key(out, entries[i].key, style);
        text_add(out, style->key_separator, style->key_len, true);
        print_json(out, entries[i].value, style, level + 1);
    }
    if (d->n) {
        json_line(out, style, level);
    }
    text_puts(out, "}");
}

void print_json(struct text *out, struct value v, const struct json_style *style, int level)
{
    if (level > TEMPLATE_VALUE_DEPTH) {
        vm_fail(out->vm, TEMPLATE_LIMIT, "values are nested deeper than %d", TEMPLATE_VALUE_DEPTH);
    }
    deeper(out->vm);
    if (v.kind == VALUE_DICT) {
        json_dict(out, v.dict, style, level);
    } else if (v.kind == VALUE_LIST || v.kind == VALUE_TUPLE) {
        text_puts(out, "[");
        for (size_t i = 0; i < v.seq->n; i++) {
            if (i) {
                text_add(out, style->item_separator, style->item_len, true);
            }
            json_line(out, style, level + 1);
            print_json(out, v.seq->items[i], style, level + 1);
        }
        if (v.seq->n) {
            json_line(out, style, level);
        }
        text_puts(out, "]");
    } else {
        json_scalar(out, v, style);
    }
    out->vm->depth--;
}
