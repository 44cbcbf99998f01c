/* Filters on text. Values that are no strings are printed first, as Jinja does. Work runs character by
 * character where case or classes matter, so that each keeps its trust. */
#include <string.h>

#include "loader/text/template/eval.h"

#define ARGS struct vm *vm, struct value self, struct value *argv, const struct args *args
#define UNUSED_ARGS                                                                                \
    (void)argv;                                                                                    \
    (void)args

enum casing { UPPER, LOWER, TITLE };

static void add_cased(struct text *out, uint32_t cp, enum casing casing, bool trusted)
{
    uint32_t to[3];
    size_t n = casing == UPPER   ? glyph_to_upper(cp, to)
               : casing == LOWER ? glyph_to_lower(cp, to)
                                 : glyph_to_title(cp, to);
    for (size_t i = 0; i < n; i++) {
        text_add_cp(out, to[i], trusted);
    }
}

static struct value map_case(struct vm *vm, struct value self, enum casing first, enum casing rest,
                             const char *word_breaks)
{
    const struct str *s = print_str(vm, self);
    struct text out;
    text_init(&out, vm, s->len);
    bool begins = true;
    for (size_t off = 0; off < s->len;) {
        uint32_t cp;
        size_t n = utf8_next(s->p + off, s->p + s->len, &cp);
        add_cased(&out, cp, begins ? first : rest, str_trusted_at(s, off));
        bool is_break = word_breaks && cp && cp < 0x80 && strchr(word_breaks, (int)cp);
        begins = is_break || (word_breaks && glyph_space(cp));
        off += n;
    }
    return text_value(&out);
}

static struct value filter_upper(ARGS)
{
    UNUSED_ARGS;
    return map_case(vm, self, UPPER, UPPER, NULL);
}

static struct value filter_lower(ARGS)
{
    UNUSED_ARGS;
    return map_case(vm, self, LOWER, LOWER, NULL);
}

static struct value filter_capitalize(ARGS)
{
    UNUSED_ARGS;
    return map_case(vm, self, TITLE, LOWER, NULL);
}

static struct value filter_title(ARGS)
{
    UNUSED_ARGS;
    return map_case(vm, self, UPPER, LOWER, "-({[<");
}

static struct value filter_trim(ARGS)
{
    (void)args;
    bool has_set = argv[0].kind != VALUE_ABSENT && argv[0].kind != VALUE_NONE;
    return value_str(
        str_strip(vm, print_str(vm, self), has_set ? arg_str(vm, argv[0], "trim") : NULL, 3));
}

/* s with every `old` (at most limit; -1 all) replaced. */
static struct value replace(struct vm *vm, const struct str *s, const struct str *old,
                            const struct str *new, int64_t limit)
{
    struct text out;
    text_init(&out, vm, 0);
    size_t pos = 0;
    while (limit != 0) {
        ptrdiff_t hit = str_find(vm, s, pos, old);
        if (hit < 0) {
            break;
        }
        text_add_part(&out, s, pos, (size_t)hit - pos);
        text_add_str(&out, new);
        pos = (size_t)hit + old->len;
        limit -= limit > 0;
        if (old->len == 0) { /* between all characters */
            if (pos == s->len) {
                break;
            }
            uint32_t cp;
            size_t n = utf8_next(s->p + pos, s->p + s->len, &cp);
            text_add_part(&out, s, pos, n);
            pos += n;
        }
    }
    text_add_part(&out, s, pos, s->len - pos);
    return text_value(&out);
}

static struct value filter_replace(ARGS)
{
    (void)args;
    int64_t limit = argv[2].kind == VALUE_NONE ? -1 : arg_int(vm, argv[2], -1, "replace");
    return replace(vm, print_str(vm, self), print_str(vm, argv[0]), print_str(vm, argv[1]), limit);
}

static struct value filter_escape(ARGS)
{
    UNUSED_ARGS;
    static const char from[] = "&<>'\"";
    static const char *const to[] = { "&amp;", "&lt;", "&gt;", "&#39;", "&#34;" };
    const struct str *s = print_str(vm, self);
    struct text out;
    text_init(&out, vm, s->len);
    for (size_t off = 0; off < s->len; off++) {
        const char *hit = s->p[off] ? strchr(from, s->p[off]) : NULL;
        if (hit) {
            const char *entity = to[hit - from];
            text_add(&out, entity, strlen(entity), str_trusted_at(s, off));
        } else {
            text_add_part(&out, s, off, 1);
        }
    }
    return text_value(&out);
}

static struct value filter_indent(ARGS)
{
    (void)args;
    const struct str *s = print_str(vm, self);
    struct text pad;
    text_init(&pad, vm, 0);
    if (argv[0].kind == VALUE_STR) {
        text_add_str(&pad, argv[0].s);
    } else {
        int64_t width = arg_int(vm, argv[0], 4, "indent");
        if (width > TEMPLATE_PAD_MAX) {
            vm_fail(vm, TEMPLATE_LIMIT, "an indentation beyond %d", TEMPLATE_PAD_MAX);
        }
        text_fill(&pad, ' ', width > 0 ? (size_t)width : 0);
    }
    const struct str *prefix = text_str(&pad);
    bool first = arg_bool(argv[1], false), blank = arg_bool(argv[2], false);
    struct text out;
    text_init(&out, vm, s->len);
    for (size_t off = 0; off <= s->len;) {
        const char *newline = off < s->len ? memchr(s->p + off, '\n', s->len - off) : NULL;
        size_t end = newline ? (size_t)(newline - s->p) : s->len;
        if (off == 0 ? first : end > off || blank) {
            text_add_str(&out, prefix);
        }
        text_add_part(&out, s, off, end - off + (newline != NULL));
        if (!newline) {
            break;
        }
        off = end + 1;
    }
    return text_value(&out);
}

static struct value filter_wordcount(ARGS)
{
    UNUSED_ARGS;
    const struct str *s = print_str(vm, self);
    int64_t n = 0;
    bool inside = false;
    for (size_t off = 0; off < s->len;) {
        uint32_t cp;
        off += utf8_next(s->p + off, s->p + s->len, &cp);
        bool word = glyph_alpha(cp) || glyph_digit(cp) || cp == '_';
        n += word && !inside;
        inside = word;
    }
    vm_charge_bytes(vm, s->len * 8);
    return value_int(n);
}

static struct value filter_truncate(ARGS)
{
    (void)args;
    const struct str *s = print_str(vm, self);
    int64_t length = arg_int(vm, argv[0], 255, "truncate");
    const struct str *end = argv[2].kind == VALUE_ABSENT ? str_of(vm, "...", 3, true)
                                                         : arg_str(vm, argv[2], "truncate");
    int64_t leeway = argv[3].kind == VALUE_NONE ? 5 : arg_int(vm, argv[3], 5, "truncate");
    int64_t n = (int64_t)utf8_count(s->p, s->len), n_end = (int64_t)utf8_count(end->p, end->len);
    vm_charge_bytes(vm, s->len);
    if (length < n_end || leeway < 0 || length > TEMPLATE_TEXT_MAX) {
        vm_fail(vm, TEMPLATE_RUNTIME, "expected length >= %lld, got %lld", (long long)n_end,
                (long long)length);
    }
    if (n <= length + leeway) {
        return value_str(s);
    }
    size_t keep = utf8_offset(s->p, s->len, (size_t)(length - n_end));
    if (!arg_bool(argv[1], false)) {
        const char *space = memrchr(s->p, ' ', keep);
        keep = space ? (size_t)(space - s->p) : keep;
    }
    return value_str(str_join2(vm, str_slice(vm, s, 0, keep), end));
}

static struct value filter_center(ARGS)
{
    (void)args;
    const struct str *s = print_str(vm, self);
    int64_t width = arg_int(vm, argv[0], 80, "center"), n = (int64_t)utf8_count(s->p, s->len);
    if (width > TEMPLATE_PAD_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "a width beyond %d", TEMPLATE_PAD_MAX);
    }
    int64_t missing = width > n ? width - n : 0;
    int64_t left = missing / 2 + (missing & width & 1); /* as CPython puts the odd one */
    struct text out;
    text_init(&out, vm, 0);
    text_fill(&out, ' ', (size_t)left);
    text_add_str(&out, s);
    text_fill(&out, ' ', (size_t)(missing - left));
    return text_value(&out);
}

/* <tags> and comments away, white space runs to one blank. */
static struct value filter_striptags(ARGS)
{
    UNUSED_ARGS;
    const struct str *s = print_str(vm, self);
    struct text out;
    text_init(&out, vm, s->len);
    bool space = false;
    for (size_t off = 0; off < s->len;) {
        bool comment = s->len - off >= 4 && memcmp(s->p + off, "<!--", 4) == 0;
        const char *end = comment            ? memmem(s->p + off, s->len - off, "-->", 3)
                          : s->p[off] == '<' ? memchr(s->p + off, '>', s->len - off)
                                             : NULL;
        vm_charge_bytes(vm, end ? (size_t)(end - s->p) - off : 1);
        if (end) {
            off = (size_t)(end - s->p) + (comment ? 3 : 1);
            continue;
        }
        if (s->p[off] == '<') {
            vm_charge_bytes(vm, s->len - off);
        }
        uint32_t cp;
        size_t n = utf8_next(s->p + off, s->p + s->len, &cp);
        if (glyph_space(cp)) {
            space = true;
        } else {
            if (space && out.len) {
                text_puts(&out, " ");
            }
            space = false;
            text_add_part(&out, s, off, n);
        }
        off += n;
    }
    return text_value(&out);
}

static void quote_url(struct text *out, const struct str *s, bool query)
{
    static const char hex[] = "0123456789ABCDEF";
    bool trusted = str_trusted(s);
    for (size_t i = 0; i < s->len; i++) {
        unsigned char c = (unsigned char)s->p[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                     (c && strchr("_.-~", c)) || (c == '/' && !query);
        if (plain) {
            text_add(out, &s->p[i], 1, trusted);
        } else if (c == ' ' && query) {
            text_add(out, "+", 1, trusted);
        } else {
            char escape[3] = { '%', hex[c >> 4], hex[c & 15] };
            text_add(out, escape, 3, trusted);
        }
    }
}

static struct value filter_urlencode(ARGS)
{
    UNUSED_ARGS;
    struct text out;
    text_init(&out, vm, 0);
    if (self.kind != VALUE_DICT) {
        quote_url(&out, print_str(vm, self), false);
        return text_value(&out);
    }
    for (size_t i = 0; i < self.dict->n; i++) {
        text_puts(&out, i ? "&" : "");
        quote_url(&out, print_str(vm, self.dict->entries[i].key), true);
        text_puts(&out, "=");
        quote_url(&out, print_str(vm, self.dict->entries[i].value), true);
    }
    return text_value(&out);
}

static struct value filter_xmlattr(ARGS)
{
    (void)args;
    if (self.kind != VALUE_DICT) {
        vm_fail(vm, TEMPLATE_RUNTIME, "xmlattr needs a mapping, not %s", value_type_name(self));
    }
    struct text out;
    text_init(&out, vm, 0);
    for (size_t i = 0; i < self.dict->n; i++) {
        const struct dict_entry *entry = &self.dict->entries[i];
        if (entry->value.kind == VALUE_NONE || entry->value.kind == VALUE_UNDEFINED) {
            continue;
        }
        if (out.len || arg_bool(argv[0], true)) {
            text_puts(&out, " ");
        }
        text_add_str(&out, filter_escape(vm, entry->key, NULL, NULL).s);
        text_puts(&out, "=\"");
        text_add_str(&out, filter_escape(vm, entry->value, NULL, NULL).s);
        text_puts(&out, "\"");
    }
    return text_value(&out);
}

/* One line of text broken at blanks so that no part is wider than width characters, where possible. */
static void wrap_line(struct text *out, const struct str *s, size_t off, size_t end, size_t width,
                      bool break_long, const struct str *newline)
{
    while (off < end) {
        size_t fits = off + utf8_offset(s->p + off, end - off, width), next = fits, stop = fits;
        if (fits < end) {
            size_t space = fits + 1;
            while (space > off && s->p[space - 1] != ' ') {
                space--;
            }
            if (space > off + 1) {
                stop = space - 1;
                next = space;
            } else if (!break_long) {
                const char *blank = memchr(s->p + fits, ' ', end - fits);
                stop = blank ? (size_t)(blank - s->p) : end;
                next = blank ? stop + 1 : end;
            }
        }
        vm_charge_bytes(out->vm, next - off);
        text_add_part(out, s, off, stop - off);
        off = next;
        if (off < end) {
            text_add_str(out, newline);
        }
    }
}

static struct value filter_wordwrap(ARGS)
{
    (void)args;
    const struct str *s = print_str(vm, self);
    int64_t width = arg_int(vm, argv[0], 79, "wordwrap");
    if (width < 1) {
        vm_fail(vm, TEMPLATE_RUNTIME, "invalid width %lld (must be > 0)", (long long)width);
    }
    bool has_string = argv[2].kind == VALUE_STR;
    const struct str *newline = has_string ? argv[2].s : str_of(vm, "\n", 1, true);
    struct text out;
    text_init(&out, vm, s->len);
    for (size_t off = 0; off < s->len;) {
        const char *hit = memchr(s->p + off, '\n', s->len - off);
        size_t end = hit ? (size_t)(hit - s->p) : s->len;
        wrap_line(&out, s, off, end, (size_t)width, arg_bool(argv[1], true), newline);
        if (hit && end + 1 < s->len) {
            text_add_str(&out, newline);
        }
        off = end + 1;
    }
    return text_value(&out);
}

const struct native filter_text_table[] = {
    { "trim", { "chars" }, 0, filter_trim },
    { "upper", { NULL }, 0, filter_upper },
    { "lower", { NULL }, 0, filter_lower },
    { "title", { NULL }, 0, filter_title },
    { "capitalize", { NULL }, 0, filter_capitalize },
    { "replace", { "old", "new", "count" }, 2, filter_replace },
    { "indent", { "width", "first", "blank" }, 0, filter_indent },
    { "escape", { NULL }, 0, filter_escape },
    { "e", { NULL }, 0, filter_escape },
    { "forceescape", { NULL }, 0, filter_escape },
    { "truncate", { "length", "killwords", "end", "leeway" }, 0, filter_truncate },
    { "center", { "width" }, 0, filter_center },
    { "wordcount", { NULL }, 0, filter_wordcount },
    { "wordwrap", { "width", "break_long_words", "wrapstring" }, 0, filter_wordwrap },
    { "striptags", { NULL }, 0, filter_striptags },
    { "urlencode", { NULL }, 0, filter_urlencode },
    { "xmlattr", { "autospace" }, 0, filter_xmlattr },
    { 0 },
};
