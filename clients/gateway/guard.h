/* Who may ask: API keys, the Host header on loopback (DNS rebinding), and the origin of a browser's page. Loop thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clients/gateway/quota.h"
#include "proto/err.h"

#define GUARD_KEY_BYTES 256 /* longest key that is looked at */

struct guard {
    bool loopback;                     /* the listener is */
    struct quota *keys[HTTP_KEYS_MAX]; /* a reference to each */
    size_t n_keys;
};

struct problem;

/* The keys' lines (proto/http_key.h) from now on. A line that was there before goes on with its counts; requests at work
 * keep what they have. On error all stays as it was: ERR_USAGE; ERR_REFUSED beyond loopback without a key. */
int guard_set(struct guard *g, const char *const *lines, size_t n_lines, struct err *err);
void guard_clear(struct guard *g);

/* A new random key ("hearth-" and 43 characters) and its hash in hex. */
void guard_new_key(char key[64], char hex[2 * HTTP_KEY_HASH_BYTES + 1]);

/* The headers as they came, NULL where absent. 0, or -1 with a problem (401 or 403). */
int guard_host(const struct guard *g, const char *host, const char *origin, struct problem *p);
/* *who: what the key that was shown may have, a new reference; NULL when no key is wanted. */
int guard_key(struct guard *g, const char *authorization, const char *x_api_key, struct quota **who,
              struct problem *p);

/* A page of this machine: "http://localhost:3000". */
bool guard_local_origin(const char *origin);
