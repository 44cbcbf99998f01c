/* Base64 (RFC 4648, with padding): bytes that are no text, inside JSON. Any thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* malloc'd, NUL-terminated; NULL without memory. */
char *base64_encode(const void *data, size_t len);

/* malloc'd bytes (a NUL follows); NULL when text is no base64 or there is no memory. */
uint8_t *base64_decode(const char *text, size_t len, size_t *out_len);
