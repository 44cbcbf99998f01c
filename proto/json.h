/* JSON values: read, build, walk, write. The only user of json-c; other rooms see opaque values.
 * Numbers keep integers and doubles apart; object order is the order of insertion. Not thread safe per value. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

#define JSON_DEPTH_MAX 64 /* nesting of outside JSON */

enum json_kind {
    JSON_NULL,
    JSON_BOOL,
    JSON_INT,
    JSON_DOUBLE,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
};

struct json; /* opaque */

/* Parses exactly one value from text (len bytes; trailing white space allowed). NULL: ERR_BAD_INPUT with offset.
 * Owned by the caller: json_destroy. Strict: no comments. */
struct json *json_parse(const char *text, size_t len, struct err *err);
void json_destroy(struct json **value);

enum json_kind json_kind(const struct json *value); /* NULL is JSON_NULL */

/* Object member, or array element, borrowed; NULL when there is none, also of a value of another kind. */
struct json *json_find(const struct json *object, const char *key);
size_t json_len(const struct json *array_or_object);
struct json *json_at(const struct json *array, size_t i);
/* Member i in order: key borrowed. */
struct json *json_member(const struct json *object, size_t i, const char **key);

/* All members in order, in linear time: for (w = json_walk_of(o); json_walk_next(&w, &key, &value);).
 * Key and value borrowed; the object must not change meanwhile. Anything but an object has none. */
struct json_walk {
    const void *entry; /* json-c's next one */
};
struct json_walk json_walk_of(const struct json *object);
bool json_walk_next(struct json_walk *walk, const char **key, const struct json **value);

bool json_as_bool(const struct json *value);
int64_t json_as_int(const struct json *value);   /* doubles are truncated, saturating */
double json_as_double(const struct json *value); /* integers convert */
/* Bytes of a string, borrowed; len may be NULL. May hold NUL bytes. */
const char *json_as_str(const struct json *value, size_t *len);

/* Building; each returns an owned value (never NULL: memory exhaustion aborts inside json-c's allocator
 * contract is avoided by small sizes). Set/append take ownership of the value. */
struct json *json_new_object(void);
struct json *json_new_array(void);
struct json *json_new_null(void); /* NULL stands for null */
struct json *json_new_bool(bool value);
struct json *json_new_int(int64_t value);
struct json *json_new_double(double value);
struct json *json_new_str(const char *text,
                          size_t len); /* invalid UTF-8 must be replaced by the caller */
void json_set(struct json *object, const char *key, struct json *take_value);
/* One more owner of the same value, for a second place in a tree; changes are seen in both. NULL gives NULL. */
struct json *json_share(const struct json *value);
void json_push(struct json *array, struct json *take_value);
/* Removes a member, if it is there. */
void json_unset(struct json *object, const char *key);
/* Removes the last element, if any. */
void json_pop(struct json *array);

/* The text of a value on one line, without spaces, borrowed until the value changes or is destroyed. */
const char *json_text(const struct json *value, size_t *len);
