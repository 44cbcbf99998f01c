/* Text work: prompts become tokens, tokens become text, in the text service of their model. A work is kept with its
 * payload until it is answered, so a service that dies costs nothing but time. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/link.h"
#include "proto/message.h"

struct broker;
struct model;
struct config_alias;
struct request;
struct post_to;

#define TEXTS_MAX        2048  /* works waiting */
#define TEXTS_DEATHS_MAX 2     /* services that died by a fault with this work first in line */
#define TEXTS_HUNG_MS    60000 /* a work that takes longer: its service is hung */

struct text_work {
    struct text_work *next;
    uint64_t number;
    struct model *model;
    uint64_t request; /* serial; 0: a client's question */
    struct link_peer peer;
    bool has_cookie;
    uint64_t cookie;
    uint32_t op, kind;
    bool add_special, parse_special, has_now, remove_special, unparse_special;
    bool has_add, has_parse, has_remove, has_unparse;
    uint64_t now;
    uint8_t *payload; /* owned */
    size_t payload_len;
    char *template;   /* the alias's, or NULL; owned */
    uint32_t sent_to; /* child; 0: not sent */
    uint64_t sent_ms;
    uint32_t deaths;
};

struct texts {
    struct text_work *first;
    uint32_t n;
};

/* A client's question; alias: the name that it used was one's, else NULL. */
void texts_ask(struct broker *b, const struct post_to *to, struct model *model,
               const struct config_alias *alias, const Hearth__TextAsk *ask, const void *payload,
               size_t payload_len);

/* A request's prompt; the payload is borrowed from its draft until the answer. */
int texts_prompt(struct broker *b, struct request *r, struct err *err);

/* The service's answer. */
void texts_done(struct broker *b, uint32_t child, const Hearth__TextDone *done, const void *payload,
                size_t payload_len);

/* The service is gone: its works will be sent again; by_fault blames the first. */
void texts_service_died(struct broker *b, uint32_t child, bool by_fault);

/* All works of a model fail. */
void texts_fail(struct broker *b, struct model *model, const struct err *why);

/* Works that wait for a model. */
uint32_t texts_waiting(const struct broker *b, const struct model *model);

/* Every turn: sends what can be sent. */
void texts_act(struct broker *b);
void texts_clear(struct texts *t);
