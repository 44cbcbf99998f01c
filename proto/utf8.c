#include "proto/utf8.h"

#include <stdint.h>

/* Bytes of the character that begins with `lead`, 0 when no character does. */
static int length_of(uint8_t lead)
{
    return lead < 0x80   ? 1
           : lead < 0xc2 ? 0
           : lead < 0xe0 ? 2
           : lead < 0xf0 ? 3
           : lead < 0xf5 ? 4
                         : 0;
}

/* Second bytes have narrower ranges after some leads: no overlong forms, no surrogates, no code point beyond U+10FFFF. */
static bool second_fits(uint8_t lead, uint8_t second)
{
    uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    return second >= low && second <= high;
}

bool utf8_valid(const char *text, size_t len)
{
    const uint8_t *p = (const uint8_t *)text, *end = p + len;
    while (p < end) {
        int n = length_of(*p);
        if (n == 0 || end - p < n || (n > 1 && !second_fits(p[0], p[1]))) {
            return false;
        }
        for (int i = 2; i < n; i++) {
            if ((p[i] & 0xc0) != 0x80) {
                return false;
            }
        }
        p += n;
    }
    return true;
}

size_t utf8_complete(const char *text, size_t len)
{
    const uint8_t *p = (const uint8_t *)text;
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        uint8_t byte = p[len - back];
        if ((byte & 0xc0) == 0x80) {
            continue;
        }
        int n = length_of(byte);
        bool waits = n > (int)back && (back == 1 || second_fits(byte, p[len - back + 1]));
        return waits ? len - back : len;
    }
    return len;
}

size_t utf8_decode(const uint8_t *text, size_t len, uint32_t *code, bool *valid)
{
    static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    uint8_t lead = text[0];
    if (valid) {
        *valid = true;
    }
    if (lead < 0x80) {
        *code = lead;
        return 1;
    }
    size_t need = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc2 ? 2 : 0;
    if (need && lead < 0xf8 && need <= len) {
        uint32_t value = lead & (0x7fu >> need);
        size_t i = 1;
        while (i < need && (text[i] & 0xc0) == 0x80) {
            value = value << 6 | (text[i] & 0x3fu);
            i++;
        }
        bool surrogate = value >= 0xd800 && value <= 0xdfff;
        if (i == need && value >= least[need] && value < UTF8_LIMIT && !surrogate) {
            *code = value;
            return need;
        }
    }
    *code = UTF8_REPLACEMENT;
    if (valid) {
        *valid = false;
    }
    return 1;
}

size_t utf8_encode(uint32_t code, uint8_t out[4])
{
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (uint8_t)(0xc0 | code >> 6);
        out[1] = (uint8_t)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (uint8_t)(0xe0 | code >> 12);
        out[1] = (uint8_t)(0x80 | (code >> 6 & 0x3f));
        out[2] = (uint8_t)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | code >> 18);
    out[1] = (uint8_t)(0x80 | (code >> 12 & 0x3f));
    out[2] = (uint8_t)(0x80 | (code >> 6 & 0x3f));
    out[3] = (uint8_t)(0x80 | (code & 0x3f));
    return 4;
}
