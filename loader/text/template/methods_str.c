/* Methods of strings, as Python's. */
#include <string.h>

#include "loader/text/template/eval.h"

#define ARGS struct vm *vm, struct value self, struct value *argv, const struct args *args
#define UNUSED_ARGS                                                                                \
    (void)argv;                                                                                    \
    (void)args

/* A method that is a filter under the same name. */
static struct value by_filter(struct vm *vm, const char *name, struct value self)
{
    static const struct args none = { .n = 0 };
    struct str filter = { .p = name, .len = strlen(name) };
    return filter_apply(vm, &filter, self, &none);
}

static struct value str_upper(ARGS)
{
    UNUSED_ARGS;
    return by_filter(vm, "upper", self);
}

static struct value str_lower(ARGS)
{
    UNUSED_ARGS;
    return by_filter(vm, "lower", self);
}

static struct value str_capitalize(ARGS)
{
    UNUSED_ARGS;
    return by_filter(vm, "capitalize", self);
}

/* title() begins a word after every non-letter; swapcase turns each letter. */
static struct value map_letters(struct vm *vm, const struct str *s, bool swap)
{
    struct text out;
    bool inside = false;
    text_init(&out, vm, s->len);
    for (size_t off = 0; off < s->len;) {
        uint32_t cp, to[3];
        size_t len = utf8_next(s->p + off, s->p + s->len, &cp);
        bool is_upper = glyph_upper(cp), is_lower = glyph_lower(cp);
        size_t n = swap && is_upper   ? glyph_to_lower(cp, to)
                   : swap && is_lower ? glyph_to_upper(cp, to)
                   : inside           ? glyph_to_lower(cp, to)
                                      : glyph_to_title(cp, to);
        if (swap && !is_upper && !is_lower) {
            to[0] = cp;
            n = 1;
        }
        for (size_t i = 0; i < n; i++) {
            text_add_cp(&out, to[i], str_trusted_at(s, off));
        }
        inside = is_upper || is_lower;
        off += len;
    }
    return text_value(&out);
}

static struct value str_title(ARGS)
{
    UNUSED_ARGS;
    return map_letters(vm, self.s, false);
}

static struct value str_swapcase(ARGS)
{
    UNUSED_ARGS;
    return map_letters(vm, self.s, true);
}

static struct value strip_sides(struct vm *vm, struct value self, struct value set, int sides)
{
    bool given = set.kind != VALUE_ABSENT && set.kind != VALUE_NONE;
    return value_str(str_strip(vm, self.s, given ? arg_str(vm, set, "strip") : NULL, sides));
}

static struct value str_strip_both(ARGS)
{
    (void)args;
    return strip_sides(vm, self, argv[0], 3);
}

static struct value str_lstrip(ARGS)
{
    (void)args;
    return strip_sides(vm, self, argv[0], 1);
}

static struct value str_rstrip(ARGS)
{
    (void)args;
    return strip_sides(vm, self, argv[0], 2);
}

/* --- split --- */

static void push_slice(struct vm *vm, struct seq *out, const struct str *s, size_t off, size_t len)
{
    vm_charge(vm, 1);
    seq_push(vm, out, value_str(str_slice(vm, s, off, len)));
}

/* At runs of white space, no empty parts; at most limit cuts, then the rest as it is. */
static struct value split_spaces(struct vm *vm, const struct str *s, int64_t limit)
{
    struct value out = seq_new(vm, VALUE_LIST, 0);
    size_t off = 0;
    vm_charge_bytes(vm, s->len * 2);
    for (;;) {
        uint32_t cp;
        size_t n;
        while (off < s->len && (n = utf8_next(s->p + off, s->p + s->len, &cp), glyph_space(cp))) {
            off += n;
        }
        if (off == s->len) {
            return out;
        }
        if (limit-- == 0) {
            const struct str *rest = str_slice(vm, s, off, s->len - off);
            seq_push(vm, out.seq, value_str(str_strip(vm, rest, NULL, 2)));
            return out;
        }
        size_t begin = off;
        while (off < s->len && (n = utf8_next(s->p + off, s->p + s->len, &cp), !glyph_space(cp))) {
            off += n;
        }
        push_slice(vm, out.seq, s, begin, off - begin);
    }
}

static const struct str *separator(struct vm *vm, struct value v)
{
    const struct str *sep = arg_str(vm, v, "split");
    if (sep->len == 0) {
        vm_fail(vm, TEMPLATE_RUNTIME, "empty separator");
    }
    return sep;
}

static struct value str_split(ARGS)
{
    (void)args;
    int64_t limit = arg_int(vm, argv[1], -1, "split");
    if (argv[0].kind == VALUE_ABSENT || argv[0].kind == VALUE_NONE) {
        return split_spaces(vm, self.s, limit);
    }
    const struct str *sep = separator(vm, argv[0]);
    struct value out = seq_new(vm, VALUE_LIST, 0);
    size_t off = 0;
    for (; limit != 0; limit -= limit > 0) {
        ptrdiff_t hit = str_find(vm, self.s, off, sep);
        if (hit < 0) {
            break;
        }
        push_slice(vm, out.seq, self.s, off, (size_t)hit - off);
        off = (size_t)hit + sep->len;
    }
    push_slice(vm, out.seq, self.s, off, self.s->len - off);
    return out;
}

static void reverse(struct seq *seq)
{
    for (size_t i = 0; i < seq->n / 2; i++) {
        struct value swap = seq->items[i];
        seq->items[i] = seq->items[seq->n - 1 - i];
        seq->items[seq->n - 1 - i] = swap;
    }
}

static struct value str_rsplit(ARGS)
{
    int64_t limit = arg_int(vm, argv[1], -1, "rsplit");
    if (limit < 0) {
        return str_split(vm, self, argv, args);
    }
    static const struct str blank = { .p = " ", .len = 1, .trusted = true };
    bool by_space = argv[0].kind == VALUE_ABSENT || argv[0].kind == VALUE_NONE;
    const struct str *sep = by_space ? &blank : separator(vm, argv[0]), *s = self.s;
    struct value out = seq_new(vm, VALUE_LIST, 0);
    if (by_space) {
        s = str_strip(vm, s, NULL, 3);
    }
    size_t end = s->len;
    for (; limit > 0; limit--) {
        ptrdiff_t hit = str_rfind(vm, s, end, sep);
        if (hit < 0) {
            break;
        }
        push_slice(vm, out.seq, s, (size_t)hit + sep->len, end - (size_t)hit - sep->len);
        end = (size_t)hit;
        while (by_space && end > 0 && s->p[end - 1] == ' ') {
            end--;
        }
    }
    if (end || !by_space) {
        push_slice(vm, out.seq, s, 0, end);
    }
    reverse(out.seq);
    return out;
}

static struct value partition(struct vm *vm, const struct str *s, const struct str *sep,
                              ptrdiff_t hit, bool last)
{
    struct value out = seq_new(vm, VALUE_TUPLE, 3);
    if (hit < 0) {
        seq_push(vm, out.seq, last ? str_literal(vm, "") : value_str(s));
        seq_push(vm, out.seq, str_literal(vm, ""));
        seq_push(vm, out.seq, last ? value_str(s) : str_literal(vm, ""));
        return out;
    }
    size_t at = (size_t)hit, behind = at + sep->len;
    push_slice(vm, out.seq, s, 0, at);
    push_slice(vm, out.seq, s, at, sep->len);
    push_slice(vm, out.seq, s, behind, s->len - behind);
    return out;
}

static struct value str_partition(ARGS)
{
    (void)args;
    const struct str *sep = separator(vm, argv[0]);
    return partition(vm, self.s, sep, str_find(vm, self.s, 0, sep), false);
}

static struct value str_rpartition(ARGS)
{
    (void)args;
    const struct str *sep = separator(vm, argv[0]);
    return partition(vm, self.s, sep, str_rfind(vm, self.s, self.s->len, sep), true);
}

static struct value str_splitlines(ARGS)
{
    (void)args;
    bool keep = arg_bool(argv[0], false);
    const struct str *s = self.s;
    struct value out = seq_new(vm, VALUE_LIST, 0);
    vm_charge_bytes(vm, s->len);
    for (size_t off = 0; off < s->len;) {
        size_t end = off;
        while (end < s->len && s->p[end] != '\n' && s->p[end] != '\r') {
            end++;
        }
        size_t next = end + (end < s->len);
        if (next < s->len && s->p[end] == '\r' && s->p[next] == '\n') {
            next++;
        }
        push_slice(vm, out.seq, s, off, (keep ? next : end) - off);
        off = next;
    }
    return out;
}

/* --- looking --- */

/* The character range [start, end) of find and the like, in bytes. */
static const struct str *within(struct vm *vm, const struct str *s, struct value start,
                                struct value end, size_t *off)
{
    struct value from = start.kind == VALUE_ABSENT ? value_none() : start;
    struct value to = end.kind == VALUE_ABSENT ? value_none() : end;
    const struct str *part = lookup_slice(vm, value_str(s), from, to, value_none()).s;
    *off = part->len ? (size_t)(part->p - s->p) : 0;
    return part;
}

static struct value find_at(struct vm *vm, struct value self, struct value *argv, bool last)
{
    size_t off;
    const struct str *needle = arg_str(vm, argv[0], "find");
    const struct str *part = within(vm, self.s, argv[1], argv[2], &off);
    ptrdiff_t hit = last ? str_rfind(vm, part, part->len, needle) : str_find(vm, part, 0, needle);
    return value_int(hit < 0 ? -1 : (int64_t)utf8_count(self.s->p, off + (size_t)hit));
}

static struct value str_find_first(ARGS)
{
    (void)args;
    return find_at(vm, self, argv, false);
}

static struct value str_find_last(ARGS)
{
    (void)args;
    return find_at(vm, self, argv, true);
}

static struct value must_find(struct vm *vm, struct value hit)
{
    if (hit.i < 0) {
        vm_fail(vm, TEMPLATE_RUNTIME, "substring not found");
    }
    return hit;
}

static struct value str_index(ARGS)
{
    (void)args;
    return must_find(vm, find_at(vm, self, argv, false));
}

static struct value str_rindex(ARGS)
{
    (void)args;
    return must_find(vm, find_at(vm, self, argv, true));
}

static struct value str_count(ARGS)
{
    (void)args;
    size_t off;
    const struct str *needle = arg_str(vm, argv[0], "count");
    const struct str *part = within(vm, self.s, argv[1], argv[2], &off);
    if (needle->len == 0) {
        return value_int((int64_t)utf8_count(part->p, part->len) + 1);
    }
    int64_t n = 0;
    for (size_t at = 0;; n++) {
        ptrdiff_t hit = str_find(vm, part, at, needle);
        if (hit < 0) {
            return value_int(n);
        }
        at = (size_t)hit + needle->len;
    }
}

static bool affix(const struct str *s, const struct str *piece, bool at_end)
{
    return piece->len <= s->len && str_has_at(s, at_end ? s->len - piece->len : 0, piece);
}

static struct value has_affix(struct vm *vm, struct value self, struct value *argv, bool at_end)
{
    size_t off;
    const struct str *part = within(vm, self.s, argv[1], argv[2], &off);
    if (argv[0].kind != VALUE_TUPLE) {
        return value_bool(affix(part, arg_str(vm, argv[0], "startswith"), at_end));
    }
    for (size_t i = 0; i < argv[0].seq->n; i++) {
        if (affix(part, arg_str(vm, argv[0].seq->items[i], "startswith"), at_end)) {
            return value_bool(true);
        }
    }
    return value_bool(false);
}

static struct value str_startswith(ARGS)
{
    (void)args;
    return has_affix(vm, self, argv, false);
}

static struct value str_endswith(ARGS)
{
    (void)args;
    return has_affix(vm, self, argv, true);
}

static struct value str_removeprefix(ARGS)
{
    (void)args;
    const struct str *s = self.s, *piece = arg_str(vm, argv[0], "removeprefix");
    return affix(s, piece, false) ? value_str(str_slice(vm, s, piece->len, s->len - piece->len))
                                  : self;
}

static struct value str_removesuffix(ARGS)
{
    (void)args;
    const struct str *s = self.s, *piece = arg_str(vm, argv[0], "removesuffix");
    return affix(s, piece, true) ? value_str(str_slice(vm, s, 0, s->len - piece->len)) : self;
}

/* --- making --- */

static struct value str_replace(ARGS)
{
    static const struct str filter = { .p = "replace", .len = 7 };
    arg_str(vm, argv[0], "replace");
    arg_str(vm, argv[1], "replace");
    return filter_apply(vm, &filter, self, args);
}

static struct value str_join(ARGS)
{
    (void)args;
    const struct seq *items = value_iterate(vm, argv[0]);
    struct text out;
    text_init(&out, vm, 0);
    value_need(vm, argv[0]);
    for (size_t i = 0; i < items->n; i++) {
        vm_charge(vm, 1);
        if (items->items[i].kind != VALUE_STR) {
            vm_fail(vm, TEMPLATE_RUNTIME, "sequence item %zu: expected str instance, %s found", i,
                    value_type_name(items->items[i]));
        }
        if (i) {
            text_add_str(&out, self.s);
        }
        text_add_str(&out, items->items[i].s);
    }
    return text_value(&out);
}

static struct value str_format(ARGS)
{
    (void)argv;
    return format_braces(vm, self.s, args);
}

/* side: -1 pads before, 1 behind, 0 both. */
static struct value justify(struct vm *vm, struct value self, struct value *argv, int side)
{
    const struct str *s = self.s;
    int64_t width = arg_int(vm, argv[0], 0, "width"), n = (int64_t)utf8_count(s->p, s->len);
    const struct str *fill = argv[1].kind == VALUE_ABSENT ? str_of(vm, " ", 1, true)
                                                          : arg_str(vm, argv[1], "fill");
    if (width > TEMPLATE_PAD_MAX || utf8_count(fill->p, fill->len) != 1) {
        vm_fail(vm, TEMPLATE_RUNTIME, "a width beyond %d, or a fill of other than one character",
                TEMPLATE_PAD_MAX);
    }
    int64_t missing = width > n ? width - n : 0;
    int64_t left = side < 0 ? missing : side > 0 ? 0 : missing / 2 + (missing & width & 1);
    struct text out;
    text_init(&out, vm, 0);
    for (int64_t i = 0; i <= missing; i++) {
        if (i == left) {
            text_add_str(&out, s);
        }
        if (i < missing) {
            text_add_str(&out, fill);
        }
    }
    return text_value(&out);
}

static struct value str_ljust(ARGS)
{
    (void)args;
    return justify(vm, self, argv, 1);
}

static struct value str_rjust(ARGS)
{
    (void)args;
    return justify(vm, self, argv, -1);
}

static struct value str_center(ARGS)
{
    (void)args;
    return justify(vm, self, argv, 0);
}

static struct value str_zfill(ARGS)
{
    (void)args;
    bool sign = self.s->len && (self.s->p[0] == '-' || self.s->p[0] == '+');
    struct value zeros[2] = { argv[0], str_literal(vm, "0") };
    if (!sign) {
        return justify(vm, self, zeros, -1);
    }
    zeros[0] = value_int(arg_int(vm, argv[0], 0, "zfill") - 1);
    struct value digits = value_str(str_slice(vm, self.s, 1, self.s->len - 1));
    return value_str(str_join2(vm, str_slice(vm, self.s, 0, 1), justify(vm, digits, zeros, -1).s));
}

/* Bytes are a list of integers here: enough for their count. */
static struct value str_encode(ARGS)
{
    UNUSED_ARGS;
    struct value out = seq_new(vm, VALUE_LIST, self.s->len);
    for (size_t i = 0; i < self.s->len; i++) {
        vm_charge(vm, 1);
        seq_push(vm, out.seq, value_int((unsigned char)self.s->p[i]));
    }
    return out;
}

/* --- classes --- */

static bool is_alnum(uint32_t cp)
{
    return glyph_alpha(cp) || glyph_digit(cp);
}

static struct value all_of(struct vm *vm, const struct str *s, bool (*holds)(uint32_t cp))
{
    vm_charge_bytes(vm, s->len * 8);
    for (size_t off = 0; off < s->len;) {
        uint32_t cp;
        off += utf8_next(s->p + off, s->p + s->len, &cp);
        if (!holds(cp)) {
            return value_bool(false);
        }
    }
    return value_bool(s->len != 0);
}

static struct value str_isdigit(ARGS)
{
    UNUSED_ARGS;
    return all_of(vm, self.s, glyph_digit);
}

static struct value str_isalpha(ARGS)
{
    UNUSED_ARGS;
    return all_of(vm, self.s, glyph_alpha);
}

static struct value str_isalnum(ARGS)
{
    UNUSED_ARGS;
    return all_of(vm, self.s, is_alnum);
}

static struct value str_isspace(ARGS)
{
    UNUSED_ARGS;
    return all_of(vm, self.s, glyph_space);
}

static struct value by_test(struct vm *vm, const char *name, struct value self)
{
    static const struct args none = { .n = 0 };
    struct str test = { .p = name, .len = strlen(name) };
    return value_bool(test_apply(vm, &test, self, &none));
}

static struct value str_isupper(ARGS)
{
    UNUSED_ARGS;
    return by_test(vm, "upper", self);
}

static struct value str_islower(ARGS)
{
    UNUSED_ARGS;
    return by_test(vm, "lower", self);
}

const struct native str_method_table[] = {
    { "split", { "sep", "maxsplit" }, 0, str_split },
    { "strip", { "chars" }, 0, str_strip_both },
    { "lstrip", { "chars" }, 0, str_lstrip },
    { "rstrip", { "chars" }, 0, str_rstrip },
    { "startswith", { "prefix", "start", "end" }, 1, str_startswith },
    { "endswith", { "suffix", "start", "end" }, 1, str_endswith },
    { "replace", { "old", "new", "count" }, 2, str_replace },
    { "join", { "iterable" }, 1, str_join },
    { "upper", { NULL }, 0, str_upper },
    { "lower", { NULL }, 0, str_lower },
    { "casefold", { NULL }, 0, str_lower },
    { "title", { NULL }, 0, str_title },
    { "capitalize", { NULL }, 0, str_capitalize },
    { "swapcase", { NULL }, 0, str_swapcase },
    { "find", { "sub", "start", "end" }, 1, str_find_first },
    { "rfind", { "sub", "start", "end" }, 1, str_find_last },
    { "index", { "sub", "start", "end" }, 1, str_index },
    { "rindex", { "sub", "start", "end" }, 1, str_rindex },
    { "count", { "sub", "start", "end" }, 1, str_count },
    { "rsplit", { "sep", "maxsplit" }, 0, str_rsplit },
    { "partition", { "sep" }, 1, str_partition },
    { "rpartition", { "sep" }, 1, str_rpartition },
    { "splitlines", { "keepends" }, 0, str_splitlines },
    { "removeprefix", { "prefix" }, 1, str_removeprefix },
    { "removesuffix", { "suffix" }, 1, str_removesuffix },
    { "format", { NULL }, NATIVE_RAW, str_format },
    { "ljust", { "width", "fillchar" }, 1, str_ljust },
    { "rjust", { "width", "fillchar" }, 1, str_rjust },
    { "center", { "width", "fillchar" }, 1, str_center },
    { "zfill", { "width" }, 1, str_zfill },
    { "encode", { "encoding", "errors" }, 0, str_encode },
    { "isdigit", { NULL }, 0, str_isdigit },
    { "isdecimal", { NULL }, 0, str_isdigit },
    { "isnumeric", { NULL }, 0, str_isdigit },
    { "isalpha", { NULL }, 0, str_isalpha },
    { "isalnum", { NULL }, 0, str_isalnum },
    { "isspace", { NULL }, 0, str_isspace },
    { "isupper", { NULL }, 0, str_isupper },
    { "islower", { NULL }, 0, str_islower },
    { 0 },
};
