#include "loader/text/template/lexer.h"

#include <stdlib.h>
#include <string.h>

#include "loader/text/template/str.h"

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c) ||
           (unsigned char)c >= 0x80;
}

_Noreturn static void bad(struct lexer *l, const char *what)
{
    l->vm->line = l->line;
    vm_fail(l->vm, TEMPLATE_COMPILE, "%s", what);
}

void lexer_init(struct lexer *l, struct vm *vm, const char *text, size_t len)
{
    *l = (struct lexer){ .vm = vm, .line = 1, .line_start = true, .tag = TOKEN_DATA };
    vm->line = 1;
    if (len > TEMPLATE_SOURCE_MAX) {
        vm_fail(vm, TEMPLATE_COMPILE, "%zu bytes of template are more than %u", len,
                TEMPLATE_SOURCE_MAX);
    }
    char *copy = vm_grow(vm, NULL, 0, len + 1);
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\r') {
            copy[n++] = '\n';
            i += i + 1 < len && text[i + 1] == '\n';
        } else {
            copy[n++] = text[i];
        }
    }
    if (n && copy[n - 1] == '\n') {
        n--;
    }
    copy[n] = '\0'; /* looking one byte ahead is always allowed */
    l->text = copy;
    l->len = n;
    size_t off;
    if (!utf8_check(copy, n, &off)) {
        for (size_t i = 0; i < off; i++) {
            l->line += copy[i] == '\n';
        }
        bad(l, "not UTF-8");
    }
}

static void advance(struct lexer *l, size_t to)
{
    for (; l->pos < to; l->pos++) {
        l->line += l->text[l->pos] == '\n';
    }
}

/* After a tag's closing delimiter: '-' eats all white space, a block's or comment's end one newline. */
static void after_tag(struct lexer *l, char sign, bool trims)
{
    size_t pos = l->pos;
    if (sign == '-') {
        while (pos < l->len && is_space(l->text[pos])) {
            pos++;
        }
    } else if (trims && sign != '+' && pos < l->len && l->text[pos] == '\n') {
        pos++;
    }
    l->line_start = pos > l->pos && l->text[pos - 1] == '\n';
    advance(l, pos);
}

/* Whether "{% raw" (or the word given) stands at pos; the ends of its parts. */
static bool word_tag(const struct lexer *l, size_t pos, const char *word, char *sign_before,
                     size_t *after, char *sign_after)
{
    if (strncmp(l->text + pos, "{%", 2) != 0) {
        return false;
    }
    pos += 2;
    *sign_before = l->text[pos] == '-' || l->text[pos] == '+' ? l->text[pos] : ' ';
    pos += *sign_before != ' ';
    while (is_space(l->text[pos])) {
        pos++;
    }
    size_t n = strlen(word);
    if (strncmp(l->text + pos, word, n) != 0) {
        return false;
    }
    pos += n;
    while (is_space(l->text[pos])) {
        pos++;
    }
    *sign_after = l->text[pos] == '-' || l->text[pos] == '+' ? l->text[pos] : ' ';
    pos += *sign_after != ' ';
    if (strncmp(l->text + pos, "%}", 2) != 0) {
        return false;
    }
    *after = pos + 2;
    return true;
}

/* The end of the data [begin, end) before a tag whose sign and kind these are. */
static size_t data_end(const struct lexer *l, size_t begin, size_t end, char sign, bool is_var)
{
    size_t at = end;
    if (sign == '-') {
        while (at > begin && is_space(l->text[at - 1])) {
            at--;
        }
    } else if (sign != '+' && !is_var) {
        while (at > begin && is_space(l->text[at - 1]) && l->text[at - 1] != '\n') {
            at--;
        }
        if (at == begin ? !l->line_start : l->text[at - 1] != '\n') {
            at = end;
        }
    }
    return at;
}

static struct token data_token(struct lexer *l, size_t begin, size_t end, int line)
{
    return (struct token){ .kind = TOKEN_DATA,
                           .line = line,
                           .value = str_value(l->vm, l->text + begin, end - begin, true) };
}

/* {% raw %} has been recognised: its text, up to and behind the end tag. */
static struct token lex_raw(struct lexer *l, size_t after, char sign)
{
    int line = l->line;
    advance(l, after);
    after_tag(l, sign, false);
    for (size_t at = l->pos; at < l->len; at++) {
        char before, behind;
        if (l->text[at] == '{' && word_tag(l, at, "endraw", &before, &after, &behind)) {
            size_t begin = l->pos;
            size_t end = data_end(l, begin, at, before, false);
            advance(l, after);
            after_tag(l, behind, true);
            return data_token(l, begin, end, line);
        }
    }
    l->line = line;
    bad(l, "missing end of raw tag");
}

static void skip_comment(struct lexer *l)
{
    size_t begin = l->pos + 2;
    begin += l->text[begin] == '-' || l->text[begin] == '+';
    const char *end = begin < l->len ? memmem(l->text + begin, l->len - begin, "#}", 2) : NULL;
    if (!end) {
        bad(l, "missing end of comment tag");
    }
    size_t at = (size_t)(end - l->text);
    char sign = at > begin ? l->text[at - 1] : ' ';
    advance(l, at + 2);
    after_tag(l, sign, true);
}

/* Text up to the next tag, or that tag's opening. */
static struct token lex_data(struct lexer *l)
{
    for (;;) {
        if (l->pos >= l->len) {
            return (struct token){ .kind = TOKEN_END, .line = l->line };
        }
        size_t at = l->pos;
        while (at < l->len &&
               !(l->text[at] == '{' && strchr("{%#", l->text[at + 1]) && l->text[at + 1] != '\0')) {
            at++;
        }
        if (at == l->len) {
            struct token token = data_token(l, l->pos, at, l->line);
            advance(l, at);
            return token;
        }
        char kind = l->text[at + 1], sign = l->text[at + 2];
        size_t end = data_end(l, l->pos, at, sign, kind == '{');
        if (at > l->pos) {
            struct token token = data_token(l, l->pos, end, l->line);
            bool empty = end == l->pos;
            advance(l, at);
            l->line_start = false; /* the tag is next, and nothing stands between */
            if (!empty) {
                return token;
            }
            continue;
        }
        char raw_sign;
        size_t after;
        if (kind == '%' && word_tag(l, at, "raw", &sign, &after, &raw_sign) && raw_sign != '+') {
            return lex_raw(l, after, raw_sign);
        }
        if (kind == '#') {
            skip_comment(l);
            continue;
        }
        advance(l, at + 2 + (sign == '-' || sign == '+'));
        l->tag = kind == '{' ? TOKEN_VAR_BEGIN : TOKEN_BLOCK_BEGIN;
        l->n_open = 0;
        return (struct token){ .kind = l->tag, .line = l->line };
    }
}

static int hex_digit(char c)
{
    return is_digit(c)            ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The code point of n hex digits at *pos, which moves behind them. */
static uint32_t hex_escape(struct lexer *l, size_t *pos, int n)
{
    uint32_t cp = 0;
    for (int i = 0; i < n; i++) {
        int digit = *pos < l->len ? hex_digit(l->text[*pos]) : -1;
        if (digit < 0) {
            bad(l, "truncated escape in a string");
        }
        cp = cp << 4 | (uint32_t)digit;
        ++*pos;
    }
    if (cp > 0x10ffff) {
        bad(l, "a string escape beyond U+10FFFF");
    }
    return cp;
}

/* One escape at pos (behind the backslash); returns the position behind it. */
static size_t lex_escape(struct lexer *l, size_t pos, struct text *out)
{
    static const char from[] = "ntr\\'\"abfv", to[] = "\n\t\r\\'\"\a\b\f\v";
    char c = l->text[pos++];
    const char *simple = c ? strchr(from, c) : NULL;
    if (simple) {
        text_add(out, &to[simple - from], 1, true);
    } else if (c == '\n') {
        return pos;
    } else if (c >= '0' && c <= '7') {
        uint32_t cp = (uint32_t)(c - '0');
        for (int i = 0; i < 2 && l->text[pos] >= '0' && l->text[pos] <= '7'; i++) {
            cp = cp * 8 + (uint32_t)(l->text[pos++] - '0');
        }
        text_add_cp(out, cp, true);
    } else if (c == 'x' || c == 'u' || c == 'U') {
        uint32_t cp = hex_escape(l, &pos, c == 'x' ? 2 : c == 'u' ? 4 : 8);
        if (cp >= 0xd800 && cp < 0xdc00 && strncmp(l->text + pos, "\\u", 2) == 0) {
            size_t next = pos + 2;
            uint32_t low = hex_escape(l, &next, 4);
            if (low >= 0xdc00 && low < 0xe000) {
                cp = 0x10000 + ((cp - 0xd800) << 10) + (low - 0xdc00);
                pos = next;
            }
        }
        text_add_cp(out, cp >= 0xd800 && cp < 0xe000 ? 0xfffd : cp, true);
    } else {
        text_add(out, "\\", 1, true);
        return pos - 1; /* an unknown escape keeps its backslash */
    }
    return pos;
}

static struct token lex_string(struct lexer *l)
{
    char quote = l->text[l->pos];
    int line = l->line;
    struct text out;
    text_init(&out, l->vm, 0);
    size_t pos = l->pos + 1, plain = pos;
    for (;;) {
        if (pos >= l->len) {
            bad(l, "a string does not end");
        }
        if (l->text[pos] == quote) {
            break;
        }
        if (l->text[pos] != '\\') {
            pos++;
            continue;
        }
        text_add(&out, l->text + plain, pos - plain, true);
        if (pos + 1 >= l->len) {
            bad(l, "a string does not end");
        }
        plain = pos = lex_escape(l, pos + 1, &out);
    }
    text_add(&out, l->text + plain, pos - plain, true);
    advance(l, pos + 1);
    return (struct token){ .kind = TOKEN_CONST, .line = line, .value = text_value(&out) };
}

/* Digits of a base with single underscores between them, copied without these. */
static size_t lex_digits(struct lexer *l, size_t pos, int base, char *out, size_t *n, size_t max)
{
    bool any = false;
    for (;;) {
        size_t at = pos + (l->text[pos] == '_' && any);
        int digit = hex_digit(l->text[at]);
        if (digit < 0 || digit >= base) {
            return pos;
        }
        if (*n + 1 >= max) {
            bad(l, "a number has too many digits");
        }
        out[(*n)++] = l->text[at];
        out[*n] = '\0';
        any = true;
        pos = at + 1;
    }
}

static struct token lex_number(struct lexer *l)
{
    struct token token = { .kind = TOKEN_CONST, .line = l->line };
    char digits[512] = "";
    size_t n = 0, pos = l->pos;
    char base_mark = (char)(l->text[pos] == '0' ? l->text[pos + 1] | 0x20 : ' ');
    int base = base_mark == 'x' ? 16 : base_mark == 'o' ? 8 : base_mark == 'b' ? 2 : 10;
    if (base != 10) {
        pos += l->text[pos + 2] == '_' ? 3 : 2;
    }
    pos = lex_digits(l, pos, base, digits, &n, sizeof digits - 16);
    if (n == 0) { /* "0x" without digits: the 0 stands alone */
        base = 10;
        pos = lex_digits(l, l->pos, base, digits, &n, sizeof digits - 16);
    }
    bool after_dot = l->pos > 0 && l->text[l->pos - 1] == '.'; /* l.0.1 is two lookups */
    bool is_float = false;
    if (base == 10 && !after_dot) {
        if (l->text[pos] == '.' && is_digit(l->text[pos + 1])) {
            digits[n++] = '.';
            pos = lex_digits(l, pos + 1, 10, digits, &n, sizeof digits - 12);
            is_float = true;
        }
        size_t exp = pos + 1;
        exp += (l->text[pos] | 0x20) == 'e' && (l->text[exp] == '+' || l->text[exp] == '-');
        if ((l->text[pos] | 0x20) == 'e' && is_digit(l->text[exp])) {
            digits[n++] = 'e';
            digits[n++] = l->text[exp - 1] == '-' ? '-' : '+';
            pos = lex_digits(l, exp, 10, digits, &n, sizeof digits - 4);
            is_float = true;
        }
    }
    if (is_float) {
        token.value = value_float(strtod(digits, NULL));
    } else {
        int64_t value = 0;
        bool over = false;
        for (size_t i = 0; i < n; i++) {
            over |= __builtin_mul_overflow(value, base, &value) ||
                    __builtin_add_overflow(value, hex_digit(digits[i]), &value);
        }
        token.value = value_int(value);
        if (over && base != 10) {
            bad(l, "an integer is beyond 64 bits");
        }
        if (over) {
            char *copy = vm_alloc(l->vm, n + 1);
            memcpy(copy, digits, n);
            token.value = str_value(l->vm, copy, n, true);
            token.value.kind = VALUE_BIG;
        }
    }
    advance(l, pos);
    return token;
}

static void track_brackets(struct lexer *l, char c)
{
    if (strchr("([{", c)) {
        if (l->n_open == TEMPLATE_NESTING_MAX) {
            bad(l, "brackets are nested too deeply");
        }
        l->open[l->n_open++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (strchr(")]}", c)) {
        if (l->n_open == 0 || l->open[l->n_open - 1] != c) {
            bad(l, c == ')' ? "unexpected ')'" : c == ']' ? "unexpected ']'" : "unexpected '}'");
        }
        l->n_open--;
    }
}

static struct token lex_op(struct lexer *l)
{
    static const char *const pairs[] = { "//", "**", "==", "!=", ">=", "<=" };
    struct token token = { .kind = TOKEN_OP, .line = l->line };
    const char *p = l->text + l->pos;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        if (strncmp(p, pairs[i], 2) == 0) {
            memcpy(token.op, pairs[i], 3);
            l->pos += 2;
            return token;
        }
    }
    if (*p == '\0' || !strchr("+-/*%~[](){}><=.:|,;", *p)) {
        bad(l, "unexpected character");
    }
    track_brackets(l, *p);
    token.op[0] = *p;
    l->pos++;
    return token;
}

/* The delimiter that ends the tag, if it stands here; '-' or '+' may stand before it. */
static bool lex_tag_end(struct lexer *l, struct token *token)
{
    bool block = l->tag == TOKEN_BLOCK_BEGIN;
    const char *p = l->text + l->pos, *end = block ? "%}" : "}}";
    char sign = *p == '-' || (block && *p == '+') ? *p : ' ';
    if (l->n_open || strncmp(p + (sign != ' '), end, 2) != 0) {
        return false;
    }
    *token = (struct token){ .kind = block ? TOKEN_BLOCK_END : TOKEN_VAR_END, .line = l->line };
    l->pos += 2 + (sign != ' ');
    l->tag = TOKEN_DATA;
    after_tag(l, sign, block);
    return true;
}

struct token lexer_next(struct lexer *l)
{
    vm_charge(l->vm, 1);
    if (l->tag == TOKEN_DATA) {
        return lex_data(l);
    }
    size_t at = l->pos;
    while (at < l->len && is_space(l->text[at])) {
        at++;
    }
    advance(l, at);
    if (l->pos >= l->len) {
        return (struct token){ .kind = TOKEN_END, .line = l->line };
    }
    struct token token;
    if (lex_tag_end(l, &token)) {
        return token;
    }
    char c = l->text[l->pos];
    if (c == '"' || c == '\'') {
        return lex_string(l);
    }
    if (is_digit(c)) {
        return lex_number(l);
    }
    if (is_name(c)) {
        while (at < l->len && is_name(l->text[at])) {
            at++;
        }
        token = (struct token){ .kind = TOKEN_NAME, .line = l->line };
        token.value = str_value(l->vm, l->text + l->pos, at - l->pos, true);
        l->pos = at;
        return token;
    }
    return lex_op(l);
}

static size_t skip_space(const struct lexer *l, size_t at)
{
    while (at < l->len && is_space(l->text[at])) {
        at++;
    }
    return at;
}

bool lexer_at_assign(const struct lexer *l)
{
    size_t at = skip_space(l, l->pos);
    return l->text[at] == '=' && l->text[at + 1] != '=';
}

bool lexer_at_word(const struct lexer *l, const char *word)
{
    size_t at = skip_space(l, l->pos), n = strlen(word);
    return strncmp(l->text + at, word, n) == 0 && !is_name(l->text[at + n]);
}
