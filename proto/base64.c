#include "proto/base64.h"

#include <stdlib.h>
#include <string.h>

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

char *base64_encode(const void *data, size_t len)
{
    const uint8_t *p = data;
    char *text = malloc((len + 2) / 3 * 4 + 1), *out = text;
    if (!text) {
        return NULL;
    }
    for (size_t i = 0; i < len; i += 3) {
        size_t left = len - i;
        uint32_t group = (uint32_t)p[i] << 16 | (left > 1 ? (uint32_t)p[i + 1] << 8 : 0) |
                         (left > 2 ? p[i + 2] : 0);
        *out++ = digits[group >> 18];
        *out++ = digits[group >> 12 & 63];
        *out++ = left > 1 ? digits[group >> 6 & 63] : '=';
        *out++ = left > 2 ? digits[group & 63] : '=';
    }
    *out = 0;
    return text;
}

uint8_t *base64_decode(const char *text, size_t len, size_t *out_len)
{
    uint8_t *bytes = malloc(len / 4 * 3 + 4), *out = bytes;
    uint32_t group = 0;
    int n = 0;
    if (!bytes) {
        return NULL;
    }
    while (len > 0 && text[len - 1] == '=') {
        len--;
    }
    for (size_t i = 0; i < len; i++) {
        const char *digit = text[i] ? strchr(digits, text[i]) : NULL;
        if (!digit) {
            free(bytes);
            return NULL;
        }
        group = group << 6 | (uint32_t)(digit - digits);
        if (++n == 4) {
            *out++ = (uint8_t)(group >> 16);
            *out++ = (uint8_t)(group >> 8);
            *out++ = (uint8_t)group;
            n = 0;
            group = 0;
        }
    }
    if (n == 1) {
        free(bytes);
        return NULL;
    }
    if (n >= 2) {
        *out++ = (uint8_t)(group >> (n == 3 ? 10 : 4));
    }
    if (n == 3) {
        *out++ = (uint8_t)(group >> 2);
    }
    *out = 0;
    *out_len = (size_t)(out - bytes);
    return bytes;
}
