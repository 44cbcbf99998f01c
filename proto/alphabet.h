/* The 256 characters in which byte-level BPE writes bytes: printable Latin-1 stands for itself, the 68 others for
 * U+0100 onwards in increasing order. Header only, pure. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

static inline bool alphabet_is_plain(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) ||
           (byte >= 0xae && byte <= 0xff);
}

/* The code point that stands for a byte. The others are 0x00-0x20, 0x7f-0xa0 and 0xad. */
static inline uint32_t alphabet_code(uint8_t byte)
{
    return alphabet_is_plain(byte) ? byte
           : byte <= 0x20          ? 0x100u + byte
           : byte <= 0xa0          ? 0x121u + byte - 0x7f
                                   : 0x143u;
}

/* The byte that a code point stands for, or -1. */
static inline int alphabet_byte(uint32_t code)
{
    if (code < 0x100) {
        return alphabet_is_plain(code) ? (int)code : -1;
    }
    return code <= 0x120   ? (int)code - 0x100
           : code <= 0x142 ? (int)code - 0x121 + 0x7f
           : code == 0x143 ? 0xad
                           : -1;
}
