/* Text that comes in pieces: whole characters of UTF-8 out, whatever comes in. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "proto/json.h"

/* A growing string; zero it, text_clear it. A lost allocation is remembered in `failed`. */
struct text {
    char *at; /* NUL-terminated; NULL while empty */
    size_t len, room;
    bool failed;
};

void text_add(struct text *t, const char *bytes, size_t n);
void text_cut(struct text *t, size_t n); /* off the front */
void text_clear(struct text *t);
const char *text_str(const struct text *t);

/* Appends with every byte that belongs to no character replaced by U+FFFD. */
void text_add_clean(struct text *t, const char *bytes, size_t n);

/* Moves what is whole from `from` (raw bytes) to the end of `to` (clean); all of it when `last`. */
void text_settle(struct text *to, struct text *from, bool last);

/* A JSON string of bytes that may be no UTF-8. */
struct json *text_json(const char *bytes, size_t n);
