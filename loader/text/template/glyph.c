/* Classes and case of code points, by binary search in tables made from the Unicode Character
 * Database (make_glyphs.py). libc's own need a locale's file, and the text service opens none. */
#include <stdlib.h>

#include "loader/text/template/str.h"

struct range {
    uint32_t first, last;
};

struct mapping {
    uint32_t first, last, stride;
    int32_t delta;
};

struct expansion {
    uint32_t cp, n, to[3];
};

#include "loader/text/template/glyph_tables.h"

#define N_ROWS(table) (sizeof(table) / sizeof(table)[0])

static bool in_ranges(const struct range *rows, size_t n, uint32_t cp)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (cp > rows[mid].last) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low < n && cp >= rows[low].first;
}

static size_t map(const struct mapping *rows, size_t n, const struct expansion *longs,
                  size_t n_longs, uint32_t cp, uint32_t out[3])
{
    for (size_t i = 0; i < n_longs && longs[i].cp <= cp; i++) {
        if (longs[i].cp == cp) {
            for (size_t k = 0; k < longs[i].n; k++) {
                out[k] = longs[i].to[k];
            }
            return longs[i].n;
        }
    }
    /* Rows with stride 2 may overlap their neighbour by one: look at the row found and the one before. */
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (cp >= rows[mid].first) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    out[0] = cp;
    for (size_t back = 1; back <= 2 && back <= low; back++) {
        const struct mapping *row = &rows[low - back];
        if (cp <= row->last && (cp - row->first) % row->stride == 0) {
            out[0] = (uint32_t)((int64_t)cp + row->delta);
            break;
        }
    }
    return 1;
}

bool glyph_printable(uint32_t cp)
{
    return !in_ranges(not_printable, N_ROWS(not_printable), cp);
}

bool glyph_alpha(uint32_t cp)
{
    return in_ranges(alpha, N_ROWS(alpha), cp);
}

bool glyph_digit(uint32_t cp)
{
    return in_ranges(digit, N_ROWS(digit), cp);
}

bool glyph_upper(uint32_t cp)
{
    return in_ranges(upper, N_ROWS(upper), cp);
}

bool glyph_lower(uint32_t cp)
{
    return in_ranges(lower, N_ROWS(lower), cp);
}

bool glyph_space(uint32_t cp)
{
    return (cp >= 9 && cp <= 13) || (cp >= 0x1c && cp <= 0x20) || cp == 0x85 || cp == 0xa0 ||
           cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 ||
           cp == 0x202f || cp == 0x205f || cp == 0x3000;
}

#define MAP(table, cp, out) map(table, N_ROWS(table), table##_long, N_ROWS(table##_long), cp, out)

size_t glyph_to_upper(uint32_t cp, uint32_t out[3])
{
    return MAP(to_upper, cp, out);
}

size_t glyph_to_lower(uint32_t cp, uint32_t out[3])
{
    return MAP(to_lower, cp, out);
}

size_t glyph_to_title(uint32_t cp, uint32_t out[3])
{
    return MAP(to_title, cp, out);
}
