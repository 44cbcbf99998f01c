/* The HTTP gateway's process (clients/gateway): born when the configuration names an address, born again when it dies, later
 * and later; nobody else waits for it. A port that is taken is a warning, and tried again. Keys that changed are told to it
 * (TELL), so that its streams go on. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "broker/config.h"
#include "proto/err.h"

struct broker;

#define GATEWAY_BACKOFF_MIN 500 /* ms, doubled by each death before it listened */
#define GATEWAY_BACKOFF_MAX 30000

struct gateway {
    uint32_t child;
    int32_t pid;
    bool spawning, listens;
    bool failed;                     /* the last one could not listen */
    bool untold;                     /* it may have other keys than the configuration */
    char address[CONFIG_WORD_BYTES]; /* that it was born with */
    char fields[CONFIG_WORD_BYTES], reasoning[CONFIG_WORD_BYTES];
    uint32_t births;
    uint64_t born_ms, next_ms, backoff_ms;
};

/* Whether the configuration wants one. */
bool gateway_wanted(const struct broker *b);
const char *gateway_state_name(const struct gateway *g);

/* A child of the last broker. */
void gateway_adopt(struct broker *b, uint32_t child, int32_t pid, const char *tag);
void gateway_on_spawn(struct broker *b, uint32_t child, int32_t pid, const struct err *err);
/* false: another child's. */
bool gateway_on_note(struct broker *b, uint32_t child, uint32_t code, const char *text);
bool gateway_on_died(struct broker *b, uint32_t child, int status);
/* The configuration was read again. */
void gateway_on_reload(struct broker *b);
void gateway_act(struct broker *b);
