#include "clients/gateway/ids.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#define ID_BYTES 16

/* Hex of the first n_bytes of a digest over parts with a NUL behind each. */
static void digest(const char *const *parts, size_t n, size_t n_bytes, char *hex)
{
    crypto_generichash_state state;
    uint8_t bytes[ID_BYTES];
    crypto_generichash_init(&state, NULL, 0, sizeof bytes);
    for (size_t i = 0; i < n; i++) {
        crypto_generichash_update(&state, (const uint8_t *)parts[i], strlen(parts[i]) + 1);
    }
    crypto_generichash_final(&state, bytes, sizeof bytes);
    sodium_bin2hex(hex, 2 * n_bytes + 1, bytes, n_bytes);
}

void ids_of_key(const char *owner, const char *key, char id[33])
{
    digest((const char *const[]){ "idempotency", owner, key }, 3, ID_BYTES, id);
}

void ids_of_choice(const char *id, size_t i, char out[33])
{
    char number[24];
    snprintf(number, sizeof number, "%zu", i);
    if (i == 0) {
        snprintf(out, 33, "%s", id);
    } else {
        digest((const char *const[]){ "choice", id, number }, 3, ID_BYTES, out);
    }
}

void ids_of_call(const char *id, size_t choice, size_t call, char out[32])
{
    char number[48];
    snprintf(number, sizeof number, "%zu.%zu", choice, call);
    memcpy(out, "call_", 5);
    digest((const char *const[]){ "call", id, number }, 3, 12, out + 5);
}

int ids_read_event(const char *text, char id[33], uint64_t *number)
{
    char *end;
    if (strspn(text, "0123456789abcdef") != 2 * ID_BYTES || text[2 * ID_BYTES] != '-' ||
        strspn(text + 2 * ID_BYTES + 1, "0123456789") == 0 || strlen(text) >= IDS_EVENT_BYTES) {
        return -1;
    }
    snprintf(id, 33, "%.32s", text);
    *number = strtoull(text + 2 * ID_BYTES + 1, &end, 10);
    return *end ? -1 : 0;
}
