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

/* The same hash, name and limits: a reference, else a new one. */
static struct quota *quota_of(struct guard *g, const struct http_key *key)
{
    for (size_t i = 0; i < g->n_keys; i++) {
        const struct http_key *old = &g->keys[i]->key;
        if (memcmp(old->hash, key->hash, sizeof old->hash) == 0 &&
            strcmp(old->name, key->name) == 0 && old->requests == key->requests &&
            old->tokens_per_minute == key->tokens_per_minute) {
            return quota_ref(g->keys[i]);
        }
    }
    return quota_create(key);
}

int guard_set(struct guard *g, const char *const *lines, size_t n_lines, struct err *err)
{
    struct http_key keys[HTTP_KEYS_MAX];
    struct guard fresh = { .loopback = g->loopback };
    if (n_lines > HTTP_KEYS_MAX) {
        return err_set(err, ERR_USAGE, "%zu keys, at most %d", n_lines, HTTP_KEYS_MAX);
    }
    if (n_lines == 0 && !g->loopback) {
        return err_set(err, ERR_REFUSED, "beyond this machine an API key is wanted (http_key)");
    }
    for (size_t i = 0; i < n_lines; i++) {
        if (http_key_parse(lines[i], &keys[i], err) < 0) {
            return -1;
        }
    }
    for (; fresh.n_keys < n_lines; fresh.n_keys++) {
        fresh.keys[fresh.n_keys] = quota_of(g, &keys[fresh.n_keys]);
        if (!fresh.keys[fresh.n_keys]) {
            err_set(err, ERR_NO_MEMORY, "no memory for a key");
            guard_clear(&fresh);
            return -1;
        }
    }
    guard_clear(g);
    *g = fresh;
    return 0;
}

void guard_clear(struct guard *g)
{
    while (g->n_keys > 0) {
        quota_unref(&g->keys[--g->n_keys]);
    }
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
    struct quota *found = NULL;
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
        if (sodium_memcmp(hash, g->keys[i]->key.hash, sizeof hash) == 0) {
            found = g->keys[i];
        }
    }
    if (!found || len == GUARD_KEY_BYTES) {
        return problem_set(p, 401, NULL, "invalid_api_key",
                           *key ? "this API key is not known here"
                                : "an API key is wanted: Authorization: Bearer KEY");
    }
    *who = quota_ref(found);
    return 0;
}
