#include "loader/text/pretoken_match.h"

#include <string.h>

#include "loader/text/pretoken_classes.h"
#include "loader/text/unicode.h"

/* ---- what stands at p ---- */

static bool is(const struct splitter *s, size_t p, uint32_t set)
{
    return p < s->end && UNICODE_BIT(s->cats[p]) & set;
}

static bool is_code(const struct splitter *s, size_t p, uint32_t code)
{
    return p < s->end && s->codes[p] == code;
}

static bool is_newline(const struct splitter *s, size_t p)
{
    return is_code(s, p, '\n') || is_code(s, p, '\r');
}

static bool in_ranges(uint32_t code, const struct range *ranges, size_t n)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (code > ranges[mid].last) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low < n && code >= ranges[low].first;
}

#define IN(s, p, ranges)                                                                           \
    ((p) < (s)->end && in_ranges((s)->codes[p], ranges, sizeof(ranges) / sizeof *(ranges)))

/* End of the run of categories in set from p. */
static size_t run_end(const struct splitter *s, size_t p, uint32_t set)
{
    while (is(s, p, set)) {
        p++;
    }
    return p;
}

/* ---- runs that several alternatives look at from each of their places ---- */

/* End of the white space that p stands in; also sets newline_end. */
static size_t space_end(struct splitter *s, size_t p)
{
    if (p >= s->space_start && p < s->space_end) {
        return s->space_end;
    }
    size_t end = p;
    s->newline_end = 0;
    while (is(s, end, UNICODE_SPACE)) {
        if (is_newline(s, end)) {
            s->newline_end = end + 1;
        }
        end++;
    }
    s->space_start = p;
    s->space_end = end;
    return end;
}

/* End of the numbers that p stands in. set is the same throughout a pass. */
static size_t number_end(struct splitter *s, size_t p, uint32_t set)
{
    if (p < s->number_start || p >= s->number_end) {
        s->number_start = p;
        s->number_end = run_end(s, p, set);
    }
    return s->number_end;
}

/* ---- white space ---- */

/* \s+(?!\S)|\s+ : all but the last one before a word, all at the end */
static size_t spaces(struct splitter *s, size_t p)
{
    size_t n = space_end(s, p) - p;
    return n > 1 && p + n < s->end ? n - 1 : n;
}

/* \s*[\r\n]+ : up to the last newline of the run. \s*[\r\n] matches the same. */
static size_t spaces_to_newline(struct splitter *s, size_t p)
{
    space_end(s, p);
    return is(s, p, UNICODE_SPACE) && s->newline_end > p ? s->newline_end - p : 0;
}

/* \s+$ */
static size_t spaces_at_end(struct splitter *s, size_t p)
{
    size_t end = space_end(s, p);
    return end == s->end ? end - p : 0;
}

/* \s{512}(?!\S)|\s{256}(?!\S)|...|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1} */
static size_t spaces_in_powers(struct splitter *s, size_t p)
{
    size_t end = space_end(s, p);
    size_t n = end - p;
    for (size_t take = 512; take >= 1; take /= 2) {
        if (n > take || (n == take && end == s->end)) {
            return take;
        }
    }
    return n ? 1 : 0;
}

/* [\r\n] */
static size_t one_newline(struct splitter *s, size_t p)
{
    return is_newline(s, p);
}

/* [^\n]+|[\n]+ */
static size_t lines_and_newlines(struct splitter *s, size_t p)
{
    size_t end = p;
    bool newline = is_code(s, p, '\n');
    while (end < s->end && is_code(s, end, '\n') == newline) {
        end++;
    }
    return end - p;
}

/* ---- numbers ---- */

/* \p{N} */
static size_t one_number(struct splitter *s, size_t p)
{
    return is(s, p, UNICODE_NUMBER);
}

/* \p{N}{1,3} */
static size_t three_numbers(struct splitter *s, size_t p)
{
    size_t n = 0;
    while (n < 3 && is(s, p + n, UNICODE_NUMBER)) {
        n++;
    }
    return n;
}

/* \p{N}+ */
static size_t numbers(struct splitter *s, size_t p)
{
    return run_end(s, p, UNICODE_NUMBER) - p;
}

/* The first of a run's groups of three, which are counted from its end. */
static size_t group_of(size_t n)
{
    return n == 0 ? 0 : n % 3 ? n % 3 : 3;
}

/* A run of \p{N} in groups of three from the right. */
static size_t numbers_from_right(struct splitter *s, size_t p)
{
    return group_of(number_end(s, p, UNICODE_NUMBER) - p);
}

/* The same as the reference has it: a run's first group stays with what stands before it. */
static size_t numbers_from_right_ref(struct splitter *s, size_t p)
{
    size_t at = run_end(s, p, ~UNICODE_NUMBER);
    return at + numbers_from_right(s, at) - p;
}

#define DIGIT UNICODE_BIT(UNICODE_ND)
#define REGEX_WORD                                                                                 \
    (UNICODE_LETTER | UNICODE_MARK | DIGIT | UNICODE_BIT(UNICODE_NL) | UNICODE_BIT(UNICODE_PC))

/* \d{1,3}(?=(?:\d{3})*\b) : groups of three from the right where no \w follows the run */
static size_t digits_from_right_alone(struct splitter *s, size_t p)
{
    size_t end = number_end(s, p, DIGIT);
    return is(s, end, REGEX_WORD) ? 0 : group_of(end - p);
}

/* [0-9][0-9][0-9] */
static size_t three_ascii_digits(struct splitter *s, size_t p)
{
    for (size_t i = 0; i < 3; i++) {
        if (p + i >= s->end || s->codes[p + i] < '0' || s->codes[p + i] > '9') {
            return 0;
        }
    }
    return 3;
}

/* ---- words ---- */

/* Length of 's 't 're 've 'm 'll 'd at p, letters compared after | with fold (0x20 folds ASCII case). */
static size_t contraction_folded(const struct splitter *s, size_t p, uint32_t fold)
{
    static const char endings[][3] = { "s", "t", "re", "ve", "m", "ll", "d" };
    if (!is_code(s, p, '\'')) {
        return 0;
    }
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t n = 0;
        while (endings[i][n] && p + 1 + n < s->end && s->codes[p + 1 + n] < 0x80 &&
               (s->codes[p + 1 + n] | fold) == (uint32_t)endings[i][n]) {
            n++;
        }
        if (!endings[i][n]) {
            return 1 + n;
        }
    }
    return 0;
}

/* 's|'t|'re|'ve|'m|'ll|'d */
static size_t contraction_lower(struct splitter *s, size_t p)
{
    return contraction_folded(s, p, 0);
}

/* The same in either case of each letter. */
static size_t contraction(struct splitter *s, size_t p)
{
    return contraction_folded(s, p, 0x20);
}

/* " ?" and a run of set, or of what is not in set */
static size_t spaced_run(const struct splitter *s, size_t p, uint32_t set)
{
    size_t from = is_code(s, p, ' ') && is(s, p + 1, set) ? p + 1 : p;
    size_t end = run_end(s, from, set);
    return end > from ? end - p : 0;
}

/*  ?\p{L}+ */
static size_t spaced_letters(struct splitter *s, size_t p)
{
    return spaced_run(s, p, UNICODE_LETTER);
}

/*  ?\p{N}+ */
static size_t spaced_numbers(struct splitter *s, size_t p)
{
    return spaced_run(s, p, UNICODE_NUMBER);
}

#define NOT_WORD (~(UNICODE_SPACE | UNICODE_LETTER | UNICODE_NUMBER))

/*  ?[^\s\p{L}\p{N}]+ */
static size_t spaced_others(struct splitter *s, size_t p)
{
    return spaced_run(s, p, NOT_WORD);
}

/* What follows a match of n at p: [\r\n]* with slash false, [\r\n/]* with slash true. */
static size_t with_newlines(const struct splitter *s, size_t p, size_t n, bool slash)
{
    while (n && (is_newline(s, p + n) || (slash && is_code(s, p + n, '/')))) {
        n++;
    }
    return n;
}

/*  ?[^\s\p{L}\p{N}]+[\r\n]* */
static size_t others_newlines(struct splitter *s, size_t p)
{
    return with_newlines(s, p, spaced_run(s, p, NOT_WORD), false);
}

/*  ?[^\s\p{L}\p{M}\p{N}]+[\r\n]* */
static size_t others_no_marks_newlines(struct splitter *s, size_t p)
{
    return with_newlines(s, p, spaced_run(s, p, NOT_WORD & ~UNICODE_MARK), false);
}

/*  ?[^\s\p{L}\p{N}]+[\r\n/]* */
static size_t others_newlines_slashes(struct splitter *s, size_t p)
{
    return with_newlines(s, p, spaced_run(s, p, NOT_WORD), true);
}

/*  ?[^\s\p{L}\p{N}]+[\r\n/]? */
static size_t others_one_newline_or_slash(struct splitter *s, size_t p)
{
    size_t n = spaced_run(s, p, NOT_WORD);
    return n && (is_newline(s, p + n) || is_code(s, p + n, '/')) ? n + 1 : n;
}

/* One optional character that is neither CR, LF nor in not_prefix, then a run of set. */
static size_t prefixed_run(const struct splitter *s, size_t p, uint32_t not_prefix, uint32_t set)
{
    bool prefix = !is_newline(s, p) && is(s, p, ~not_prefix) && is(s, p + 1, set);
    size_t from = prefix ? p + 1 : p;
    size_t end = run_end(s, from, set);
    return end > from ? end - p : 0;
}

/* [^\r\n\p{L}\p{N}]?\p{L}+ */
static size_t prefixed_letters(struct splitter *s, size_t p)
{
    return prefixed_run(s, p, UNICODE_LETTER | UNICODE_NUMBER, UNICODE_LETTER);
}

/* [^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+ */
static size_t prefixed_letters_marks(struct splitter *s, size_t p)
{
    return prefixed_run(s, p, UNICODE_LETTER | UNICODE_NUMBER, UNICODE_LETTER | UNICODE_MARK);
}

/* [^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+ : a phrase of words with single spaces */
static size_t prefixed_phrase(struct splitter *s, size_t p)
{
    bool prefix = !is_newline(s, p) && is(s, p, ~(UNICODE_LETTER | UNICODE_NUMBER)) &&
                  is(s, p + 1, UNICODE_LETTER);
    size_t at = prefix ? p + 1 : p;
    if (!is(s, at, UNICODE_LETTER)) {
        return 0;
    }
    do {
        at += is_code(s, at, ' ');
        at = run_end(s, at + 1, UNICODE_MARK);
    } while (is(s, at, UNICODE_LETTER) || (is_code(s, at, ' ') && is(s, at + 1, UNICODE_LETTER)));
    return at - p;
}

/* ---- words cut at a change of case ---- */

/* Script_Extensions=Han: ideographs and the marks used among them, as the vectors of the model's own
 * words have it. An engine that reads \p{Han} as the script alone cuts before some marks; a vocabulary
 * trained with that has no token across such a cut, so its ids come out the same. */
static const struct range han[] = {
    { 0x00b7, 0x00b7 },   { 0x2e80, 0x2e99 },   { 0x2e9b, 0x2ef3 },   { 0x2f00, 0x2fd5 },
    { 0x2ff0, 0x2fff },   { 0x3001, 0x3003 },   { 0x3005, 0x3011 },   { 0x3013, 0x301f },
    { 0x3021, 0x302d },   { 0x3030, 0x3030 },   { 0x3037, 0x303f },   { 0x30fb, 0x30fb },
    { 0x3190, 0x319f },   { 0x31c0, 0x31e3 },   { 0x3220, 0x3247 },   { 0x3280, 0x32b0 },
    { 0x32c0, 0x32cb },   { 0x32ff, 0x32ff },   { 0x3358, 0x3370 },   { 0x337b, 0x337f },
    { 0x33e0, 0x33fe },   { 0x3400, 0x4dbf },   { 0x4e00, 0x9fff },   { 0xa700, 0xa707 },
    { 0xf900, 0xfa6d },   { 0xfa70, 0xfad9 },   { 0xfe45, 0xfe46 },   { 0xff61, 0xff65 },
    { 0x16fe2, 0x16fe3 }, { 0x16ff0, 0x16ff1 }, { 0x1d360, 0x1d371 }, { 0x1f250, 0x1f251 },
    { 0x20000, 0x2a6df }, { 0x2a700, 0x2b739 }, { 0x2b740, 0x2b81d }, { 0x2b820, 0x2cea1 },
    { 0x2ceb0, 0x2ebe0 }, { 0x2ebf0, 0x2ee5d }, { 0x2f800, 0x2fa1d }, { 0x30000, 0x3134a },
    { 0x31350, 0x323af },
};

/* The blocks that the reference takes for it. */
static const struct range han_blocks[] = {
    { 0x3400, 0x4dbf },   { 0x4e00, 0x9fff },   { 0xf900, 0xfaff },
    { 0x20000, 0x2a6df }, { 0x2a700, 0x2b73f }, { 0x2b740, 0x2b81f },
    { 0x2b820, 0x2ceaf }, { 0x2ceb0, 0x2ebef }, { 0x2f800, 0x2fa1f },
};

/* Which characters may stand in the first, "upper", and in the second, "lower" part of a word. */
struct cased {
    uint32_t upper, lower;
    bool ascii_only; /* the parts differ by a-z and A-Z alone */
    bool not_han, not_han_blocks;
    bool contraction; /* an ending such as 's belongs to the word */
};

static bool in_word(const struct splitter *s, size_t p, const struct cased *c, bool upper)
{
    if (!is(s, p, upper ? c->upper : c->lower)) {
        return false;
    }
    if (c->ascii_only) {
        uint32_t first = upper ? 'a' : 'A'; /* what must not stand here */
        return s->codes[p] < first || s->codes[p] > first + 25;
    }
    return !(c->not_han && IN(s, p, han)) && !(c->not_han_blocks && IN(s, p, han_blocks));
}

/* upper* lower+ from p when need_lower, else upper+ lower*. The greedy first part gives back what the second
 * needs: the last of its characters that may be lower. */
static size_t cased_parts(const struct splitter *s, size_t p, const struct cased *c,
                          bool need_lower)
{
    size_t upper_end = p;
    while (in_word(s, upper_end, c, true)) {
        upper_end++;
    }
    size_t end = upper_end;
    while (in_word(s, end, c, false)) {
        end++;
    }
    if (!need_lower) {
        return upper_end > p ? end - p : 0;
    }
    if (end > upper_end) {
        return end - p;
    }
    while (end > p && !in_word(s, end - 1, c, false)) {
        end--;
    }
    return end - p;
}

/* [^\r\n\p{L}\p{N}]?upper*lower+C?|[^\r\n\p{L}\p{N}]?upper+lower*C? */
static size_t cased_word(struct splitter *s, size_t p, const struct cased *c)
{
    bool may_prefix = !is_newline(s, p) && is(s, p, ~(UNICODE_LETTER | UNICODE_NUMBER));
    for (int need_lower = 1; need_lower >= 0; need_lower--) {
        for (int prefix = may_prefix; prefix >= 0; prefix--) {
            size_t n = cased_parts(s, p + (size_t)prefix, c, need_lower);
            if (n) {
                n += (size_t)prefix;
                return n + (c->contraction ? contraction(s, p + n) : 0);
            }
        }
    }
    return 0;
}

#define NO_CASE (UNICODE_BIT(UNICODE_LM) | UNICODE_BIT(UNICODE_LO) | UNICODE_MARK)
#define UPPER   (UNICODE_BIT(UNICODE_LU) | UNICODE_BIT(UNICODE_LT) | NO_CASE)
#define LOWER   (UNICODE_BIT(UNICODE_LL) | NO_CASE)

static size_t word_by_case(struct splitter *s, size_t p)
{
    return cased_word(s, p, &(struct cased){ .upper = UPPER, .lower = LOWER, .contraction = true });
}

static size_t word_by_case_plain(struct splitter *s, size_t p)
{
    return cased_word(s, p, &(struct cased){ .upper = UPPER, .lower = LOWER });
}

static size_t word_by_ascii_case(struct splitter *s, size_t p)
{
    return cased_word(s, p,
                      &(struct cased){ .upper = UNICODE_LETTER,
                                       .lower = UNICODE_LETTER,
                                       .ascii_only = true,
                                       .contraction = true });
}

static size_t word_by_ascii_case_plain(struct splitter *s, size_t p)
{
    return cased_word(
        s, p,
        &(struct cased){ .upper = UNICODE_LETTER, .lower = UNICODE_LETTER, .ascii_only = true });
}

static size_t word_any_case(struct splitter *s, size_t p)
{
    uint32_t set = UNICODE_LETTER | UNICODE_MARK;
    return cased_word(s, p, &(struct cased){ .upper = set, .lower = set, .contraction = true });
}

static size_t word_by_case_no_han(struct splitter *s, size_t p)
{
    return cased_word(
        s, p,
        &(struct cased){ .upper = UPPER, .lower = LOWER, .not_han = true, .contraction = true });
}

static size_t word_any_case_no_han(struct splitter *s, size_t p)
{
    return cased_word(s, p,
                      &(struct cased){ .upper = UNICODE_LETTER,
                                       .lower = UNICODE_LETTER,
                                       .not_han_blocks = true,
                                       .contraction = true });
}

#define RANGES_RUN(function, ranges)                                                               \
    static size_t function(struct splitter *s, size_t p)                                           \
    {                                                                                              \
        size_t end = p;                                                                            \
        while (IN(s, end, ranges)) {                                                               \
            end++;                                                                                 \
        }                                                                                          \
        return end - p;                                                                            \
    }

/* \s?[ranges]+ : the space may be one that the class holds itself */
#define SPACED_RANGES_RUN(function, ranges)                                                        \
    static size_t function(struct splitter *s, size_t p)                                           \
    {                                                                                              \
        size_t end = is(s, p, UNICODE_SPACE) && IN(s, p + 1, ranges) ? p + 1 : p;                  \
        size_t from = end;                                                                         \
        while (IN(s, end, ranges)) {                                                               \
            end++;                                                                                 \
        }                                                                                          \
        return end > from ? end - p : 0;                                                           \
    }

RANGES_RUN(han_run, han)
RANGES_RUN(han_blocks_run, han_blocks)
RANGES_RUN(han_kana_run, han_kana)
RANGES_RUN(deepseek_cjk_run, deepseek_cjk)
RANGES_RUN(youtu_hangul_run, youtu_hangul)
RANGES_RUN(youtu_marks_run, youtu_marks)
RANGES_RUN(youtu_bopomofo_run, youtu_bopomofo)
RANGES_RUN(afmoe_asian_run, afmoe_asian)
SPACED_RANGES_RUN(deepseek_letters_run, deepseek_letters)
SPACED_RANGES_RUN(deepseek_marks_run, deepseek_marks)

/* \s? and a run of set, none of which is white space */
static size_t any_spaced_run(const struct splitter *s, size_t p, uint32_t set)
{
    size_t from = is(s, p, UNICODE_SPACE) ? p + 1 : p;
    size_t end = run_end(s, from, set);
    return end > from ? end - p : 0;
}

/* \s?\p{L}+ */
static size_t any_spaced_letters(struct splitter *s, size_t p)
{
    return any_spaced_run(s, p, UNICODE_LETTER);
}

/* \s?\p{P}+ */
static size_t any_spaced_punctuation(struct splitter *s, size_t p)
{
    return any_spaced_run(s, p, UNICODE_PUNCTUATION);
}

/* ---- deepseek-v3 ---- */

static bool is_ascii_letter(const struct splitter *s, size_t p)
{
    return p < s->end && (s->codes[p] | 0x20) >= 'a' && (s->codes[p] | 0x20) <= 'z';
}

/* [!-/:-@\[-`{-~][A-Za-z]+ : an ASCII mark and the ASCII letters behind it */
static size_t ascii_marked_letters(struct splitter *s, size_t p)
{
    uint32_t code = s->codes[p];
    size_t end = p + 1;
    if (code <= 0x20 || code >= 0x7f || is(s, p, UNICODE_LETTER | UNICODE_NUMBER)) {
        return 0;
    }
    while (is_ascii_letter(s, end)) {
        end++;
    }
    return end > p + 1 ? end - p : 0;
}

#define MARKED (UNICODE_PUNCTUATION | UNICODE_SYMBOL)

/* [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+ */
static size_t unmarked_letters(struct splitter *s, size_t p)
{
    return prefixed_run(s, p, UNICODE_LETTER | MARKED, UNICODE_LETTER | UNICODE_MARK);
}

/*  ?[\p{P}\p{S}]+[\r\n]* */
static size_t marks_newlines(struct splitter *s, size_t p)
{
    return with_newlines(s, p, spaced_run(s, p, MARKED), false);
}

/* The same two as the reference has them: without "~" among the symbols. */
static size_t unmarked_letters_ref(struct splitter *s, size_t p)
{
    size_t n = unmarked_letters(s, p);
    if (n == 0 && is_code(s, p, '~')) {
        size_t end = run_end(s, p + 1, UNICODE_LETTER | UNICODE_MARK);
        n = end > p + 1 ? end - p : 0;
    }
    return n;
}

static size_t marks_newlines_ref(struct splitter *s, size_t p)
{
    size_t from = is_code(s, p, ' ') ? p + 1 : p;
    size_t end = from;
    while (is(s, end, MARKED) && !is_code(s, end, '~')) {
        end++;
    }
    return end > from ? with_newlines(s, p, end - p, false) : 0;
}

/* ---- falcon and the default ---- */

static size_t falcon_marks(struct splitter *s, size_t p, const char *symbols)
{
    size_t end = p;
    while (is(s, end, UNICODE_PUNCTUATION) ||
           (end < s->end && s->codes[end] && s->codes[end] < 0x80 &&
            strchr(symbols, (int)s->codes[end]))) {
        end++;
    }
    return end - p;
}

/* [\p{P}\$\+<=>\^~\|`]+ */
static size_t marks_with_backtick(struct splitter *s, size_t p)
{
    return falcon_marks(s, p, "$+<=>^~|`");
}

/* [\p{P}\$\+<=>\^~\|]+ */
static size_t marks_no_backtick(struct splitter *s, size_t p)
{
    return falcon_marks(s, p, "$+<=>^~|");
}

/* ---- bloom ---- */

/*  ?[^(\s|.,!?…。，、।۔،)]+ : the parentheses and the bar belong to the class */
static bool is_bloom(const struct splitter *s, size_t p)
{
    static const struct range marks[] = {
        { 0x21, 0x21 },   { 0x28, 0x29 },     { 0x2c, 0x2c },     { 0x2e, 0x2e },
        { 0x3f, 0x3f },   { 0x7c, 0x7c },     { 0x60c, 0x60c },   { 0x6d4, 0x6d4 },
        { 0x964, 0x964 }, { 0x2026, 0x2026 }, { 0x3001, 0x3002 }, { 0xff0c, 0xff0c },
    };
    return is(s, p, ~UNICODE_SPACE) && !IN(s, p, marks);
}

static size_t bloom_words(struct splitter *s, size_t p)
{
    size_t from = is_code(s, p, ' ') ? p + 1 : p;
    size_t end = from;
    while (is_bloom(s, end)) {
        end++;
    }
    return end > from ? end - p : 0;
}

/* ---- chameleon ---- */

static size_t literal(const struct splitter *s, size_t p, const char *text)
{
    size_t n = 0;
    while (text[n]) {
        if (!is_code(s, p + n, (unsigned char)text[n])) {
            return 0;
        }
        n++;
    }
    return n;
}

/* <sentinel:[0-9]+> */
static size_t chameleon_sentinel(struct splitter *s, size_t p)
{
    size_t n = literal(s, p, "<sentinel:");
    size_t end = p + n;
    while (n && end < s->end && s->codes[end] >= '0' && s->codes[end] <= '9') {
        end++;
    }
    return end > p + n && is_code(s, end, '>') ? end + 1 - p : 0;
}

/* (IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z */
static size_t chameleon_image(struct splitter *s, size_t p)
{
    size_t n = literal(s, p, "IMGIMG");
    size_t end = p + n;
    while (n && end < p + n + 4 && end < s->end && s->codes[end] >= 'A' && s->codes[end] <= 'I') {
        end++;
    }
    return end > p + n && is_code(s, end, 'Z') ? end + 1 - p : 0;
}

/* [\t\n]|    |  (four spaces, then two) */
static size_t chameleon_space(struct splitter *s, size_t p)
{
    if (is_code(s, p, '\t') || is_code(s, p, '\n')) {
        return 1;
    }
    size_t n = literal(s, p, "    ");
    return n ? n : literal(s, p, "  ");
}

/* [\p{P}!-/:-@\[-`{-~] */
static size_t one_mark(struct splitter *s, size_t p)
{
    uint32_t code = s->codes[p];
    bool ascii = code > 0x20 && code < 0x7f && !is(s, p, UNICODE_LETTER | UNICODE_NUMBER);
    return ascii || is(s, p, UNICODE_PUNCTUATION);
}

/* ---- the passes ---- */

#define PASS(name, ...)                                                                            \
    static const struct pretoken_pass pass_##name = { .alternatives = { __VA_ARGS__ } };
#define PASSES(name, ...)                                                                          \
    const struct pretoken_pass *const pretoken_##name[] = { __VA_ARGS__, NULL };

PASS(one_number, one_number)
PASS(three_numbers, three_numbers)
PASS(numbers, numbers)
PASS(from_right, numbers_from_right)
PASS(from_right_ref, numbers_from_right_ref)
PASS(digits_alone, digits_from_right_alone)
PASS(three_digits, three_ascii_digits)
PASS(newline, one_newline)
PASS(han_kana, han_kana_run)
PASS(deepseek_cjk, deepseek_cjk_run)

PASS(gpt2, contraction_lower, spaced_letters, spaced_numbers, spaced_others, spaces)
PASSES(gpt2, &pass_gpt2)
PASSES(starcoder, &pass_one_number, &pass_gpt2)

PASS(llama_bpe, contraction, prefixed_letters, three_numbers, others_newlines, spaces_to_newline,
     spaces)
PASSES(llama_bpe, &pass_llama_bpe)
PASS(jais2, contraction, prefixed_letters, three_numbers, others_newlines, spaces_to_newline,
     spaces_in_powers)
PASSES(jais2, &pass_jais2)
PASS(qwen2, contraction, prefixed_letters, one_number, others_newlines, spaces_to_newline, spaces)
PASSES(qwen2, &pass_qwen2)
PASSES(bailingmoe, &pass_qwen2) /* spelled otherwise, but no text tells them apart */
PASS(qwen35, contraction, prefixed_letters_marks, one_number, others_no_marks_newlines,
     spaces_to_newline, spaces)
PASSES(qwen35, &pass_qwen35)
PASS(seed_coder, contraction, prefixed_letters, one_number, spaced_others, spaces_to_newline,
     spaces)
PASSES(seed_coder, &pass_seed_coder)
PASS(exaone_moe, contraction, prefixed_phrase, one_number, others_one_newline_or_slash,
     spaces_to_newline, spaces)
PASSES(exaone_moe, &pass_exaone_moe)

#define CASED_END(number) number, others_newlines_slashes, spaces_to_newline, spaces
PASS(gpt4o, word_by_case, CASED_END(three_numbers))
PASS(gpt4o_ref, word_by_ascii_case, CASED_END(three_numbers))
PASSES(gpt4o, &pass_gpt4o)
PASSES(gpt4o_ref, &pass_gpt4o_ref)
PASS(tekken, word_by_case_plain, CASED_END(one_number))
PASS(tekken_ref, word_by_ascii_case_plain, CASED_END(one_number))
PASSES(tekken, &pass_tekken)
PASSES(tekken_ref, &pass_tekken_ref)

PASS(youtu_scripts, youtu_hangul_run, youtu_marks_run, youtu_bopomofo_run, han_kana_run)
PASS(youtu, word_by_case, CASED_END(one_number))
PASS(youtu_ref, word_any_case, CASED_END(one_number))
PASSES(youtu, &pass_youtu_scripts, &pass_youtu)
PASSES(youtu_ref, &pass_youtu_scripts, &pass_youtu_ref)

PASS(tiny_aya_ref, word_any_case, CASED_END(three_numbers))
PASSES(tiny_aya, &pass_digits_alone, &pass_gpt4o)
PASSES(tiny_aya_ref, &pass_from_right_ref, &pass_tiny_aya_ref)

PASS(kimi_k2, han_run, word_by_case_no_han, three_numbers, others_newlines, spaces_to_newline,
     spaces)
PASS(kimi_k2_ref, han_blocks_run, word_any_case_no_han, three_numbers, others_newlines,
     spaces_to_newline, spaces)
PASSES(kimi_k2, &pass_kimi_k2)
PASSES(kimi_k2_ref, &pass_kimi_k2_ref)

PASS(deepseek_letters, deepseek_letters_run)
PASS(deepseek_marks, deepseek_marks_run)
PASS(spaces_at_end, spaces_at_end)
PASSES(deepseek_llm, &pass_newline, &pass_deepseek_letters, &pass_deepseek_marks,
       &pass_spaces_at_end, &pass_deepseek_cjk, &pass_numbers)
PASS(any_letters, any_spaced_letters)
PASS(any_punctuation, any_spaced_punctuation)
PASSES(deepseek_coder, &pass_newline, &pass_any_letters, &pass_any_punctuation, &pass_deepseek_cjk,
       &pass_one_number)
PASS(deepseek_v3, ascii_marked_letters, unmarked_letters, marks_newlines, spaces_to_newline, spaces)
PASS(deepseek_v3_ref, ascii_marked_letters, unmarked_letters_ref, marks_newlines_ref,
     spaces_to_newline, spaces)
PASSES(deepseek_v3, &pass_three_numbers, &pass_han_kana, &pass_deepseek_v3)
PASSES(deepseek_v3_ref, &pass_three_numbers, &pass_han_kana, &pass_deepseek_v3_ref)
PASS(afmoe_asian, afmoe_asian_run)
PASSES(afmoe, &pass_from_right, &pass_afmoe_asian, &pass_deepseek_v3)
PASSES(afmoe_ref, &pass_from_right_ref, &pass_afmoe_asian, &pass_deepseek_v3_ref)

PASS(with_backtick, marks_with_backtick)
PASS(no_backtick, marks_no_backtick)
PASSES(falcon, &pass_with_backtick, &pass_gpt2, &pass_three_digits)
PASSES(basic, &pass_no_backtick, &pass_gpt2, &pass_numbers, &pass_three_digits)

PASS(bloom, bloom_words)
PASSES(bloom, &pass_bloom)
PASSES(viking, &pass_bloom, &pass_one_number)

PASS(sentinel, chameleon_sentinel)
PASS(image, chameleon_image)
PASS(chameleon_space, chameleon_space)
PASS(one_mark, one_mark)
PASSES(chameleon, &pass_sentinel, &pass_image, &pass_chameleon_space, &pass_one_number,
       &pass_one_mark, &pass_gpt2)

PASSES(superbpe, &pass_numbers, &pass_from_right)
PASS(gemma4, lines_and_newlines)
PASSES(gemma4, &pass_gemma4)
