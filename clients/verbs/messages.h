/* A conversation as the JSON context of a chat template: {"messages": [...], "add_generation_prompt": true}. */
#pragma once

#include <stddef.h>

struct messages;

struct messages *messages_create(void);
void messages_destroy(struct messages **m);

/* role: "system", "user", "assistant". Bytes that are no UTF-8 become U+FFFD. */
void messages_add(struct messages *m, const char *role, const char *text, size_t len);

/* Takes the last message back. */
void messages_drop_last(struct messages *m);

size_t messages_count(const struct messages *m);

/* The JSON text, borrowed until the conversation changes. */
const char *messages_json(const struct messages *m, size_t *len);
