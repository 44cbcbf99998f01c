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
