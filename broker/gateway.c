#include "broker/gateway.h"

#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "broker/broker.h"
#include "broker/models.h"
#include "proto/log.h"

bool gateway_wanted(const struct broker *b)
{
    const char *at = b->config.http;
    return *at && strcmp(at, "off") != 0 && strcmp(at, "no") != 0;
}

const char *gateway_state_name(const struct gateway *g)
{
    return g->listens ? "ready" : g->failed ? "down" : "starting";
}

static void add_arg(struct channel_msg *msg, const char *arg)
{
    size_t len = strlen(arg) + 1;
    if (msg->argv_bytes + len <= sizeof msg->text) {
        memcpy(msg->text + msg->argv_bytes, arg, len);
        msg->argv_bytes += (uint32_t)len;
    }
}

static_assert(sizeof "--listen" + sizeof "--fields" + sizeof "--reasoning" + 2 * 20 +
                      CONFIG_WORD_BYTES + HTTP_KEYS_MAX * (sizeof "--key" + HTTP_KEY_LINE_BYTES) <=
                  LIMIT_ARGV_BYTES,
              "as many keys as there may be, with all that a line may hold");

/* What the configuration says now is what the next one is born with. */
static void settle(struct broker *b)
{
    struct gateway *g = &b->gateway;
    snprintf(g->address, sizeof g->address, "%s", b->config.http);
    snprintf(g->fields, sizeof g->fields, "%s", b->config.http_fields);
    snprintf(g->reasoning, sizeof g->reasoning, "%s", b->config.http_reasoning);
}

static void spawn(struct broker *b)
{
    struct gateway *g = &b->gateway;
    struct channel_msg msg = { .op = CHANNEL_SPAWN, .role = HERITAGE_HTTP };
    settle(b);
    add_arg(&msg, "--listen");
    add_arg(&msg, g->address);
    add_arg(&msg, "--fields");
    add_arg(&msg, g->fields);
    add_arg(&msg, "--reasoning");
    add_arg(&msg, g->reasoning);
    for (uint32_t i = 0; i < b->config.n_http_keys; i++) {
        add_arg(&msg, "--key");
        add_arg(&msg, b->config.http_keys[i]);
    }
    broker_random(msg.token, sizeof msg.token);
    snprintf(msg.tag, sizeof msg.tag, "http %s", g->address);
    g->spawning = true;
    g->untold = false;
    g->listens = false;
    g->births++;
    g->born_ms = b->now_ms;
    keeper_line_ask(b->keeper, &msg, NULL, 0, KEEPER_SPAWN_HTTP, 0, 0);
}

static void back_off(struct broker *b)
{
    struct gateway *g = &b->gateway;
    g->backoff_ms = g->backoff_ms ? g->backoff_ms * 2 : GATEWAY_BACKOFF_MIN;
    g->backoff_ms = g->backoff_ms > GATEWAY_BACKOFF_MAX ? GATEWAY_BACKOFF_MAX : g->backoff_ms;
    g->next_ms = b->now_ms + g->backoff_ms;
}

void gateway_on_spawn(struct broker *b, uint32_t child, int32_t pid, const struct err *err)
{
    struct gateway *g = &b->gateway;
    g->spawning = false;
    if (err->code != ERR_NONE) {
        log_warn("gateway: %s", err->text);
        g->failed = true;
        back_off(b);
        return;
    }
    g->child = child;
    g->pid = pid;
}

void gateway_adopt(struct broker *b, uint32_t child, int32_t pid, const char *tag)
{
    struct gateway *g = &b->gateway;
    g->child = child;
    g->pid = pid;
    g->births = 1;
    g->born_ms = b->now_ms;
    g->listens = false; /* the keeper says its notes again */
    g->untold = true;   /* the configuration was read anew by us, not by the one that bore it */
    settle(b);          /* all but the address is taken to be as it was */
    snprintf(g->address, sizeof g->address, "%s", strncmp(tag, "http ", 5) == 0 ? tag + 5 : "");
}

bool gateway_on_note(struct broker *b, uint32_t child, uint32_t code, const char *text)
{
    struct gateway *g = &b->gateway;
    if (!child || child != g->child) {
        return false;
    }
    if (code == CHANNEL_NOTE_LOADED) {
        g->listens = true;
        g->failed = false;
        g->backoff_ms = 0;
    } else if (code == CHANNEL_NOTE_FAILED) {
        g->failed = true; /* it has said why itself */
        log_debug("gateway: %s", text);
    }
    return true;
}

bool gateway_on_died(struct broker *b, uint32_t child, int status)
{
    struct gateway *g = &b->gateway;
    char how[64];
    if (!child || child != g->child) {
        return false;
    }
    models_status_text(status, how, sizeof how);
    if (!g->failed) {
        log_warn("gateway %u died: %s", child, how);
    }
    g->child = 0;
    g->pid = 0;
    g->next_ms = b->now_ms;
    if (!g->listens) {
        back_off(b);
    }
    g->listens = false;
    broker_alarm(b, g->next_ms);
    return true;
}

void gateway_on_reload(struct broker *b)
{
    b->gateway.untold = true;
}

static void tell_keys(struct broker *b)
{
    struct channel_msg msg = { .op = CHANNEL_TELL, .child = b->gateway.child };
    for (uint32_t i = 0; i < b->config.n_http_keys; i++) {
        add_arg(&msg, b->config.http_keys[i]);
    }
    keeper_line_ask(b->keeper, &msg, NULL, 0, KEEPER_NOTHING, 0, 0);
    b->gateway.untold = false;
}

void gateway_act(struct broker *b)
{
    struct gateway *g = &b->gateway;
    bool other = strcmp(g->address, b->config.http) != 0 ||
                 strcmp(g->fields, b->config.http_fields) != 0 ||
                 strcmp(g->reasoning, b->config.http_reasoning) != 0;
    if (g->child && other) { /* the configuration was read again */
        struct channel_msg kill = { .op = CHANNEL_KILL, .child = g->child, .value = SIGTERM };
        keeper_line_ask(b->keeper, &kill, NULL, 0, KEEPER_NOTHING, 0, 0);
        settle(b);
    } else if (g->child && g->untold) {
        tell_keys(b);
    } else if (!g->child && !g->spawning && !b->stopping && gateway_wanted(b)) {
        if (b->now_ms >= g->next_ms) {
            spawn(b);
        } else {
            broker_alarm(b, g->next_ms);
        }
    }
}
