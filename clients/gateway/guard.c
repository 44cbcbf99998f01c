#include "clients/gateway/guard.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include <sodium.h>

#include "clients/gateway/problem.h"

static void hash_of(const char *key, size_t len, uint8_t hash[HTTP_KEY_HASH_BYTES])
{
    crypto_generichash(hash, HTTP_KEY_HASH_BYTES, (const unsigned char *)key, len, NULL, 0);
}

int guard_add(struct guard *g, const char *line, struct err *err)
{
    struct http_key key;
    if (g->n_keys == HTTP_KEYS_MAX) {
        return err_set(err, ERR_USAGE, "more than %d keys", HTTP_KEYS_MAX);
    }
    if (http_key_parse(line, &key, err) < 0) {
        return -1;
    }
    quota_init(&g->keys[g->n_keys++], &key);
    return 0;
}

void guard_new_key(char key[64], char hex[2 * HTTP_KEY_HASH_BYTES + 1])
{
    uint8_t random[32], hash[HTTP_KEY_HASH_BYTES];
    randombytes_buf(random, sizeof random);
    strcpy(key, "hearth-");
    sodium_bin2base64(key + 7, 64 - 7, random, sizeof random,
                      sodium_base64_VARIANT_URLSAFE_NO_PADDING);
    hash_of(key, strlen(key), hash);
    sodium_bin2hex(hex, 2 * HTTP_KEY_HASH_BYTES + 1, hash, sizeof hash);
    sodium_memzero(random, sizeof random);
}

/* "localhost", "127.x.y.z" or "[::1]", and perhaps a port behind. */
static bool is_local(const char *host)
{
    size_t n = 0;
    if (strncasecmp(host, "localhost", 9) == 0) {
        n = 9;
    } else if (strncmp(host, "[::1]", 5) == 0) {
        n = 5;
    } else if (strncmp(host, "127.", 4) == 0) {
        n = strspn(host, "0123456789."); /* a name that only begins so ends in letters */
    }
    if (n == 0) {
        return false;
    }
    if (host[n] == ':') {
        n += 1 + strspn(host + n + 1, "0123456789");
    }
    return host[n] == 0;
}

bool guard_local_origin(const char *origin)
{
    const char *host = strncmp(origin, "http://", 7) == 0    ? origin + 7
                       : strncmp(origin, "https://", 8) == 0 ? origin + 8
                                                             : NULL;
    return host && is_local(host);
}

int guard_host(const struct guard *g, const char *host, const char *origin, struct problem *p)
{
    /* A page of somewhere else whose name now points here would say its own name. */
    if (g->loopback && host && !is_local(host)) {
        return problem_set(p, 403, NULL, "host_not_allowed",
                           "the Host header names another machine; this gateway answers to "
                           "localhost, 127.0.0.1 and [::1]");
    }
    if (origin && !guard_local_origin(origin)) {
        return problem_set(p, 403, NULL, "origin_not_allowed",
                           "pages of other machines may not ask here");
    }
    return 0;
}

int guard_key(struct guard *g, const char *authorization, const char *x_api_key, struct quota **who,
              struct problem *p)
{
    uint8_t hash[HTTP_KEY_HASH_BYTES];
    const char *key = x_api_key ? x_api_key : "";
    *who = NULL;
    if (g->n_keys == 0) {
        return 0; /* clients insist on sending one: any is welcome */
    }
    if (authorization && strncasecmp(authorization, "Bearer ", 7) == 0) {
        key = authorization + 7;
        key += strspn(key, " ");
    }
    size_t len = strnlen(key, GUARD_KEY_BYTES);
    hash_of(key, len, hash);
    /* Every hash is compared, in time that tells nothing. */
    for (size_t i = 0; i < g->n_keys; i++) {
        if (sodium_memcmp(hash, g->keys[i].key.hash, sizeof hash) == 0) {
            *who = &g->keys[i];
        }
    }
    if (!*who || len == GUARD_KEY_BYTES) {
        return problem_set(p, 401, NULL, "invalid_api_key",
                           *key ? "this API key is not known here"
                                : "an API key is wanted: Authorization: Bearer KEY");
    }
    return 0;
}
