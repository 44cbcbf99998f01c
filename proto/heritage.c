#include "proto/heritage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *program, *name;
} roles[HERITAGE_N_ROLES] = {
    [HERITAGE_BROKER] = { "hearth-broker", "broker" },
    [HERITAGE_WORKER] = { "hearth-worker", "worker" },
    [HERITAGE_LOADER] = { "hearth-loader", "loader" },
    [HERITAGE_TEXT] = { "hearth-loader", "text" },
    [HERITAGE_HTTP] = { "hearth-http", "http" },
};

const char *heritage_program(enum heritage_role role)
{
    return (unsigned)role < HERITAGE_N_ROLES ? roles[role].program : NULL;
}

const char *heritage_role_name(enum heritage_role role)
{
    return (unsigned)role < HERITAGE_N_ROLES ? roles[role].name : "unknown";
}

void heritage_token_hex(const uint8_t token[LIMIT_TOKEN_BYTES], char hex[2 * LIMIT_TOKEN_BYTES + 1])
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < LIMIT_TOKEN_BYTES; i++) {
        hex[2 * i] = digits[token[i] >> 4];
        hex[2 * i + 1] = digits[token[i] & 15];
    }
    hex[2 * LIMIT_TOKEN_BYTES] = 0;
}

static int digit_of(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int heritage_token_of_hex(const char *hex, uint8_t token[LIMIT_TOKEN_BYTES], struct err *err)
{
    if (strlen(hex) != 2 * LIMIT_TOKEN_BYTES) {
        return err_set(err, ERR_USAGE, "HEARTH_TOKEN has %zu digits, not %d", strlen(hex),
                       2 * LIMIT_TOKEN_BYTES);
    }
    for (int i = 0; i < LIMIT_TOKEN_BYTES; i++) {
        int high = digit_of(hex[2 * i]), low = digit_of(hex[2 * i + 1]);
        if (high < 0 || low < 0) {
            return err_set(err, ERR_USAGE, "HEARTH_TOKEN has a character that is no hex digit");
        }
        token[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

static uint32_t number_of_env(const char *name)
{
    const char *text = getenv(name);
    return text ? (uint32_t)strtoul(text, NULL, 10) : 0;
}

int heritage_find_run(const char *given, char run[HERITAGE_RUN_MAX], struct err *err)
{
    const char *own = getenv("HEARTH_RUNTIME_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
    int n = given         ? snprintf(run, HERITAGE_RUN_MAX, "%s", given)
            : own && *own ? snprintf(run, HERITAGE_RUN_MAX, "%s", own)
            : xdg && *xdg ? snprintf(run, HERITAGE_RUN_MAX, "%s/hearth", xdg)
                          : snprintf(run, HERITAGE_RUN_MAX, "/run/hearth");
    if (n <= 0 || n >= HERITAGE_RUN_MAX) {
        return err_set(err, ERR_USAGE,
                       "runtime directory: %d bytes, at most %d fit a socket's name", n,
                       HERITAGE_RUN_MAX - 1);
    }
    return 0;
}

int heritage_read(struct heritage *h, struct err *err)
{
    *h = (struct heritage){ .child = number_of_env("HEARTH_CHILD"),
                            .broker_epoch = number_of_env("HEARTH_BROKER_EPOCH") };
    const char *hex = getenv("HEARTH_TOKEN"), *run = getenv("HEARTH_RUN");
    if (!hex || !run || h->child == 0) {
        return err_set(err, ERR_USAGE,
                       "this program is started by the keeper (hearth serve), not by hand");
    }
    if (heritage_token_of_hex(hex, h->token, err) < 0) {
        return -1;
    }
    if (strlen(run) >= sizeof h->run) {
        return err_set(err, ERR_USAGE, "runtime directory %s is longer than %zu bytes", run,
                       sizeof h->run - 1);
    }
    strcpy(h->run, run);
    unsetenv("HEARTH_TOKEN");
    return 0;
}
