#include "loader/text/template/str.h"

#include <string.h>

/* --- the builder --- */

void text_init(struct text *t, struct vm *vm, size_t cap)
{
    *t = (struct text){ .vm = vm };
    if (cap) {
        t->p = vm_grow(vm, NULL, 0, cap);
        t->cap = cap;
    }
}

static void text_room(struct text *t, size_t len)
{
    if (len > TEMPLATE_TEXT_MAX || t->len + len > TEMPLATE_TEXT_MAX) {
        vm_fail(t->vm, TEMPLATE_LIMIT, "makes a text of more than %u MiB", TEMPLATE_TEXT_MAX >> 20);
    }
    vm_charge_bytes(t->vm, len);
    if (t->len + len > t->cap) {
        size_t cap = t->cap * 2 > t->len + len ? t->cap * 2 : t->len + len + 32;
        t->p = vm_grow(t->vm, t->p, t->len, cap);
        t->cap = cap;
    }
}

/* Says that the last bytes, up to len, have this trust. */
static void text_mark(struct text *t, bool trusted)
{
    if (t->n_parts && t->parts[t->n_parts - 1].trusted == trusted) {
        t->parts[t->n_parts - 1].end = t->len;
        return;
    }
    if (t->n_parts == t->parts_cap) {
        size_t cap = t->parts_cap ? t->parts_cap * 2 : 4;
        t->parts = vm_grow(t->vm, t->parts, t->n_parts * sizeof *t->parts, cap * sizeof *t->parts);
        t->parts_cap = cap;
    }
    t->parts[t->n_parts++] = (struct stretch){ .end = t->len, .trusted = trusted };
}

void text_add(struct text *t, const char *p, size_t len, bool trusted)
{
    if (len == 0) {
        return;
    }
    text_room(t, len);
    memcpy(t->p + t->len, p, len);
    t->len += len;
    text_mark(t, trusted);
}

void text_puts(struct text *t, const char *literal)
{
    text_add(t, literal, strlen(literal), true);
}

void text_fill(struct text *t, char c, size_t n)
{
    if (n == 0) {
        return;
    }
    text_room(t, n);
    memset(t->p + t->len, c, n);
    t->len += n;
    text_mark(t, true);
}

/* The first part of s that reaches beyond off. */
static size_t part_at(const struct str *s, size_t off)
{
    size_t low = 0, high = s->n_parts;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (s->parts[mid].end > off) {
            high = mid;
        } else {
            low = mid + 1;
        }
    }
    return low;
}

void text_add_part(struct text *t, const struct str *s, size_t off, size_t len)
{
    if (!s->parts) {
        text_add(t, s->p + off, len, s->trusted);
        return;
    }
    for (size_t i = part_at(s, off); len && i < s->n_parts; i++) {
        size_t n = s->parts[i].end - off < len ? s->parts[i].end - off : len;
        text_add(t, s->p + off, n, s->parts[i].trusted);
        off += n;
        len -= n;
    }
}

void text_add_str(struct text *t, const struct str *s)
{
    text_add_part(t, s, 0, s->len);
}

void text_add_cp(struct text *t, uint32_t cp, bool trusted)
{
    char bytes[4];
    text_add(t, bytes, utf8_put(cp, bytes), trusted);
}

const struct str *text_str(struct text *t)
{
    struct str *s = vm_alloc(t->vm, sizeof *s);
    s->p = t->len ? t->p : "";
    s->len = t->len;
    s->trusted = true;
    if (t->n_parts == 1) {
        s->trusted = t->parts[0].trusted;
    } else if (t->n_parts > 1) {
        s->parts = t->parts;
        s->n_parts = t->n_parts;
    }
    return s;
}

struct value text_value(struct text *t)
{
    return value_str(text_str(t));
}

/* --- strings --- */

const struct str *str_of(struct vm *vm, const char *p, size_t len, bool trusted)
{
    struct str *s = vm_alloc(vm, sizeof *s);
    *s = (struct str){ .p = p, .len = len, .trusted = trusted };
    return s;
}

struct value str_value(struct vm *vm, const char *p, size_t len, bool trusted)
{
    return value_str(str_of(vm, p, len, trusted));
}

struct value str_literal(struct vm *vm, const char *literal)
{
    return str_value(vm, literal, strlen(literal), true);
}

const struct str *str_slice(struct vm *vm, const struct str *s, size_t off, size_t len)
{
    if (off == 0 && len == s->len) {
        return s;
    }
    struct str *out = vm_alloc(vm, sizeof *out);
    *out = (struct str){ .p = s->p + off, .len = len, .trusted = s->trusted };
    if (!s->parts || len == 0) {
        return out;
    }
    size_t first = part_at(s, off), last = part_at(s, off + len - 1);
    if (first == last) {
        out->trusted = s->parts[first].trusted;
        return out;
    }
    struct stretch *parts = vm_array(vm, last - first + 1, sizeof *parts);
    vm_charge_bytes(vm, (last - first) * sizeof *parts);
    for (size_t i = first; i <= last; i++) {
        size_t end = s->parts[i].end - off;
        parts[i - first] = (struct stretch){ .end = end < len ? end : len,
                                             .trusted = s->parts[i].trusted };
    }
    out->parts = parts;
    out->n_parts = last - first + 1;
    return out;
}

/* Appends b's stretches behind the first n of a slack's, which has the room. */
static size_t add_stretches(struct stretch *parts, size_t n, size_t off, const struct str *b)
{
    if (!b->parts) {
        parts[n] = (struct stretch){ .end = off + b->len, .trusted = b->trusted };
        return n + 1;
    }
    for (size_t i = 0; i < b->n_parts; i++) {
        parts[n + i] = (struct stretch){ .end = off + b->parts[i].end,
                                         .trusted = b->parts[i].trusted };
    }
    return n + b->n_parts;
}

const struct str *str_join2(struct vm *vm, const struct str *a, const struct str *b)
{
    if (a->len == 0 || b->len == 0) {
        return a->len ? a : b;
    }
    if (a->len + b->len > TEMPLATE_TEXT_MAX) {
        vm_fail(vm, TEMPLATE_LIMIT, "makes a text of more than %u MiB", TEMPLATE_TEXT_MAX >> 20);
    }
    size_t b_parts = b->parts ? b->n_parts : 1;
    struct slack *slack = a->slack;
    struct str *out = vm_alloc(vm, sizeof *out);
    vm_charge_bytes(vm, b->len + b_parts * sizeof(struct stretch));
    if (!slack || slack->end != a->p + a->len || slack->room < b->len || slack->parts != a->parts ||
        slack->n_parts != a->n_parts || slack->parts_cap - slack->n_parts < b_parts) {
        size_t a_parts = a->parts ? a->n_parts : 1;
        size_t len = a->len + b->len, n = a_parts + b_parts;
        bool spare = a->len >= 64; /* a text that grows; short ones are mostly finished */
        slack = vm_alloc(vm, sizeof *slack);
        char *p = vm_grow(vm, NULL, 0, spare ? len * 2 : len);
        slack->parts_cap = spare ? n * 2 : n;
        slack->parts = vm_grow(vm, NULL, 0, slack->parts_cap * sizeof *slack->parts);
        vm_charge_bytes(vm, a->len + a_parts * sizeof(struct stretch));
        memcpy(p, a->p, a->len);
        slack->n_parts = add_stretches(slack->parts, 0, 0, a);
        slack->end = p + a->len;
        slack->room = (spare ? len * 2 : len) - a->len;
        out->p = p;
    } else {
        out->p = a->p;
    }
    memcpy(slack->end, b->p, b->len);
    slack->end += b->len;
    slack->room -= b->len;
    slack->n_parts = add_stretches(slack->parts, slack->n_parts, a->len, b);
    out->len = a->len + b->len;
    out->parts = slack->parts;
    out->n_parts = slack->n_parts;
    out->slack = slack;
    return out;
}

bool str_trusted_at(const struct str *s, size_t off)
{
    return s->parts && off < s->len ? s->parts[part_at(s, off)].trusted : s->trusted;
}

bool str_trusted(const struct str *s)
{
    for (size_t i = 0; i < s->n_parts; i++) {
        if (!s->parts[i].trusted) {
            return false;
        }
    }
    return s->parts ? true : s->trusted;
}

bool str_eq(const struct str *s, const char *literal)
{
    return strlen(literal) == s->len && memcmp(s->p, literal, s->len) == 0;
}

int str_order(const struct str *a, const struct str *b)
{
    /* UTF-8 sorts by code point. */
    int order = memcmp(a->p, b->p, a->len < b->len ? a->len : b->len);
    if (order == 0) {
        order = a->len < b->len ? -1 : a->len > b->len;
    }
    return order < 0 ? -1 : order > 0;
}

ptrdiff_t str_find(struct vm *vm, const struct str *s, size_t from, const struct str *needle)
{
    if (from > s->len || needle->len > s->len - from) {
        return -1;
    }
    if (needle->len == 0) {
        return (ptrdiff_t)from;
    }
    const char *hit = memmem(s->p + from, s->len - from, needle->p, needle->len);
    vm_charge_bytes(vm, hit ? (size_t)(hit - s->p) - from : s->len - from);
    return hit ? hit - s->p : -1;
}

bool str_has_at(const struct str *s, size_t off, const struct str *piece)
{
    return off <= s->len && piece->len <= s->len - off &&
           memcmp(s->p + off, piece->p, piece->len) == 0;
}

ptrdiff_t str_rfind(struct vm *vm, const struct str *s, size_t end, const struct str *needle)
{
    if (needle->len > end) {
        return -1;
    }
    for (size_t off = end - needle->len;; off--) {
        vm_charge(vm, 1 + needle->len / TEMPLATE_WORK_UNIT);
        if (str_has_at(s, off, needle)) {
            return (ptrdiff_t)off;
        }
        if (off == 0) {
            return -1;
        }
    }
}

static bool in_set(const struct str *set, uint32_t cp)
{
    if (!set) {
        return glyph_space(cp);
    }
    const char *p = set->p, *end = set->p + set->len;
    while (p < end) {
        uint32_t other;
        p += utf8_next(p, end, &other);
        if (other == cp) {
            return true;
        }
    }
    return false;
}

const struct str *str_strip(struct vm *vm, const struct str *s, const struct str *set, int sides)
{
    size_t begin = 0, end = s->len;
    uint64_t cost = 1 + (set ? set->len / 4 : 0);
    while ((sides & 1) && begin < end) {
        uint32_t cp;
        size_t n = utf8_next(s->p + begin, s->p + end, &cp);
        vm_charge(vm, cost);
        if (!in_set(set, cp)) {
            break;
        }
        begin += n;
    }
    while ((sides & 2) && end > begin) {
        size_t last = end - 1;
        while (last > begin && ((unsigned char)s->p[last] & 0xc0) == 0x80) {
            last--;
        }
        uint32_t cp;
        utf8_next(s->p + last, s->p + end, &cp);
        vm_charge(vm, cost);
        if (!in_set(set, cp)) {
            break;
        }
        end = last;
    }
    return str_slice(vm, s, begin, end - begin);
}

/* --- UTF-8 --- */

size_t utf8_next(const char *p, const char *end, uint32_t *cp)
{
    const unsigned char *u = (const unsigned char *)p;
    size_t left = (size_t)(end - p);
    *cp = u[0];
    size_t n = u[0] < 0xc2 ? 1 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : u[0] < 0xf5 ? 4 : 1;
    if (n == 1 || n > left) {
        return 1;
    }
    uint32_t value = u[0] & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((u[i] & 0xc0) != 0x80) {
            return 1;
        }
        value = value << 6 | (u[i] & 0x3f);
    }
    *cp = value;
    return n;
}

size_t utf8_put(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

size_t utf8_count(const char *p, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        n += ((unsigned char)p[i] & 0xc0) != 0x80;
    }
    return n;
}

size_t utf8_offset(const char *p, size_t len, size_t n)
{
    size_t i = 0;
    for (; i < len; i++) {
        if (((unsigned char)p[i] & 0xc0) != 0x80 && n-- == 0) {
            break;
        }
    }
    return i;
}

bool utf8_check(const char *p, size_t len, size_t *bad_off)
{
    const char *at = p, *end = p + len;
    while (at < end) {
        uint32_t cp;
        size_t n = utf8_next(at, end, &cp);
        bool overlong = (n == 3 && cp < 0x800) || (n == 4 && cp < 0x10000);
        if ((n == 1 && cp >= 0x80) || overlong || cp > 0x10ffff || (cp >= 0xd800 && cp < 0xe000)) {
            *bad_off = (size_t)(at - p);
            return false;
        }
        at += n;
    }
    return true;
}
