/* The line `http_key = HASH [name=NAME] [requests=N] [tokens_per_minute=N]` of the configuration: one API key of the HTTP gateway
 * and what it may. The broker checks the line, the gateway lives by it. A function of its text: any thread. */
#pragma once

#include <stdint.h>

#include "proto/err.h"

#define HTTP_KEYS_MAX       12 /* lines: they fit the gateway's arguments */
#define HTTP_KEY_HASH_BYTES 32 /* BLAKE2b-256 of the key */
#define HTTP_KEY_NAME_BYTES 32 /* with the NUL */
#define HTTP_KEY_LINE_BYTES 152

struct http_key {
    uint8_t hash[HTTP_KEY_HASH_BYTES];
    char name[HTTP_KEY_NAME_BYTES]; /* letters, digits, "._-"; not given: the hash's first digits */
    uint32_t requests;              /* at once; 0: no limit of its own */
    uint32_t tokens_per_minute;     /* prompt and answer; 0: no limit */
};

/* ERR_USAGE. */
int http_key_parse(const char *line, struct http_key *key, struct err *err);
