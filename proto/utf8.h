/* UTF-8: what is text, where characters end, code points. Pure functions, any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UTF8_LIMIT       0x110000u /* code points are below it */
#define UTF8_REPLACEMENT 0xfffdu

/* Whole, well-formed UTF-8 (no surrogates, no overlong forms, at most U+10FFFF). */
bool utf8_valid(const char *text, size_t len);

/* Length of the longest prefix that does not end in the middle of a character that could still become well-formed. */
size_t utf8_complete(const char *text, size_t len);

/* Decodes one character from text (len >= 1 bytes). Returns its length in bytes and *code; where no valid
 * sequence starts (overlong forms, surrogates and values beyond the limit included) returns 1 and
 * UTF8_REPLACEMENT with *valid false. valid may be NULL. */
size_t utf8_decode(const uint8_t *text, size_t len, uint32_t *code, bool *valid);

/* Writes code (below UTF8_LIMIT) as 1 to 4 bytes; returns how many. */
size_t utf8_encode(uint32_t code, uint8_t out[4]);
