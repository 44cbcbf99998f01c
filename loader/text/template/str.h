/* Strings with trust, the builder that makes them, and code points. */
#pragma once

#include "loader/text/template/value.h"

/* A string under construction. Append in any order; text_str() ends it. */
struct text {
    struct vm *vm;
    char *p;
    size_t len, cap;
    struct stretch *parts;
    size_t n_parts, parts_cap;
};

void text_init(struct text *t, struct vm *vm, size_t cap);
void text_add(struct text *t, const char *p, size_t len, bool trusted);
void text_puts(struct text *t, const char *literal); /* trusted */
void text_fill(struct text *t, char c, size_t n);    /* trusted */
void text_add_str(struct text *t, const struct str *s);
/* len bytes of s from off, with their trust. */
void text_add_part(struct text *t, const struct str *s, size_t off, size_t len);
void text_add_cp(struct text *t, uint32_t cp, bool trusted);
const struct str *text_str(struct text *t);
struct value text_value(struct text *t);

/* Borrowed bytes become a string. */
const struct str *str_of(struct vm *vm, const char *p, size_t len, bool trusted);
struct value str_value(struct vm *vm, const char *p, size_t len, bool trusted);
struct value str_literal(struct vm *vm, const char *literal); /* trusted, static */
/* Without copying bytes. */
const struct str *str_slice(struct vm *vm, const struct str *s, size_t off, size_t len);
const struct str *str_join2(struct vm *vm, const struct str *a, const struct str *b);
bool str_trusted_at(const struct str *s, size_t off);
bool str_trusted(const struct str *s); /* all of it */

bool str_eq(const struct str *s, const char *literal);
int str_order(const struct str *a, const struct str *b);
/* Offset of needle in s from `from`, or -1. Counts work. */
ptrdiff_t str_find(struct vm *vm, const struct str *s, size_t from, const struct str *needle);
ptrdiff_t str_rfind(struct vm *vm, const struct str *s, size_t end, const struct str *needle);
bool str_has_at(const struct str *s, size_t off, const struct str *piece);
/* s without leading (1), trailing (2) or both (3) characters of the set; NULL set: white space. */
const struct str *str_strip(struct vm *vm, const struct str *s, const struct str *set, int sides);

/* One code point at p (< end) and its bytes, at least 1; a bad byte stands for itself. */
size_t utf8_next(const char *p, const char *end, uint32_t *cp);
size_t utf8_put(uint32_t cp, char out[4]);
size_t utf8_count(const char *p, size_t len);
/* Byte offset of the nth code point (len when there are fewer). */
size_t utf8_offset(const char *p, size_t len, size_t n);
bool utf8_check(const char *p, size_t len, size_t *bad_off);

/* Classes and case (glyph.c, made from the Unicode Character Database). */
bool glyph_printable(uint32_t cp);
bool glyph_alpha(uint32_t cp);
bool glyph_digit(uint32_t cp);
bool glyph_space(uint32_t cp);
bool glyph_upper(uint32_t cp); /* is an upper-case or title-case letter */
bool glyph_lower(uint32_t cp);
/* Full mappings of one code point, up to three; the count. */
size_t glyph_to_upper(uint32_t cp, uint32_t out[3]);
size_t glyph_to_lower(uint32_t cp, uint32_t out[3]);
size_t glyph_to_title(uint32_t cp, uint32_t out[3]);
