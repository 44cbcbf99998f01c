#include "proto/http_key.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

static int take_hash(const char *word, struct http_key *key, struct err *err)
{
    static const char digits[] = "0123456789abcdef";
    if (strlen(word) != 2 * HTTP_KEY_HASH_BYTES || strspn(word, digits) != strlen(word)) {
        return err_set(err, ERR_USAGE, "this is no key's hash; `hearth-http --new-key` makes both");
    }
    for (size_t i = 0; i < HTTP_KEY_HASH_BYTES; i++) {
        key->hash[i] = (uint8_t)((strchr(digits, word[2 * i]) - digits) << 4 |
                                 (strchr(digits, word[2 * i + 1]) - digits));
    }
    snprintf(key->name, sizeof key->name, "%.8s", word);
    return 0;
}

static int take_name(const char *value, struct http_key *key, struct err *err)
{
    size_t len = strlen(value);
    if (len == 0 || len >= sizeof key->name || strspn(value, NAME_LETTERS) != len) {
        return err_set(err, ERR_USAGE, "a key's name has 1 to %zu letters, digits and . _ -",
                       sizeof key->name - 1);
    }
    memcpy(key->name, value, len + 1);
    return 0;
}

static int take_limit(const char *name, const char *value, uint32_t *out, struct err *err)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(value, &end, 10);
    if (*value < '0' || *value > '9' || *end || errno || n == 0 || n > UINT32_MAX) {
        return err_set(err, ERR_USAGE, "%s=%s: a whole number from 1 is wanted", name, value);
    }
    *out = (uint32_t)n;
    return 0;
}

static int take_word(char *word, struct http_key *key, struct err *err)
{
    char *value = strchr(word, '=');
    if (value) {
        *value++ = 0;
    }
    if (value && strcmp(word, "name") == 0) {
        return take_name(value, key, err);
    }
    if (value && strcmp(word, "requests") == 0) {
        return take_limit(word, value, &key->requests, err);
    }
    if (value && strcmp(word, "tokens_per_minute") == 0) {
        return take_limit(word, value, &key->tokens_per_minute, err);
    }
    return err_set(err, ERR_USAGE,
                   "%s is not known of a key; name=, requests= and tokens_per_minute= are", word);
}

int http_key_parse(const char *line, struct http_key *key, struct err *err)
{
    char words[HTTP_KEY_LINE_BYTES], *rest;
    *key = (struct http_key){ 0 };
    if (strlen(line) >= sizeof words) {
        return err_set(err, ERR_USAGE, "a key's line has at most %zu bytes", sizeof words - 1);
    }
    strcpy(words, line);
    char *word = strtok_r(words, " \t", &rest);
    int result = take_hash(word ? word : "", key, err);
    while (result == 0 && (word = strtok_r(NULL, " \t", &rest))) {
        result = take_word(word, key, err);
    }
    return result;
}
