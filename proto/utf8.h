/* UTF-8 checks shared by programs that must know what is text. Any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Whole, well-formed UTF-8 (no surrogates, no overlong forms, at most U+10FFFF). */
bool utf8_valid(const char *text, size_t len);

/* Length of the longest prefix that does not end in the middle of a character that could still become well-formed. */
size_t utf8_complete(const char *text, size_t len);
