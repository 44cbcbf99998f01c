#include "proto/json.h"

#include <json-c/json.h>
#include <limits.h>
#include <math.h>

/* struct json is json-c's object under another name: the casts stand here and nowhere else. */
static struct json_object *in(const struct json *value)
{
    return (struct json_object *)(uintptr_t)value;
}

static struct json *out(struct json_object *value)
{
    return (struct json *)value;
}

struct json *json_parse(const char *text, size_t len, struct err *err)
{
    if (len > INT_MAX) {
        err_set(err, ERR_BAD_INPUT, "JSON of %zu bytes is too long", len);
        return NULL;
    }
    struct json_tokener *tokener = json_tokener_new_ex(JSON_DEPTH_MAX);
    if (!tokener) {
        err_set(err, ERR_NO_MEMORY, "no memory to parse JSON");
        return NULL;
    }
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    struct json_object *value = json_tokener_parse_ex(tokener, text, (int)len);
    enum json_tokener_error status = json_tokener_get_error(tokener);
    size_t end = json_tokener_get_parse_end(tokener);
    if (status == json_tokener_continue) {
        /* A bare number or word ends only at the end of the text: a space says so. */
        value = json_tokener_parse_ex(tokener, " ", 1);
        status = json_tokener_get_error(tokener);
        end = len; /* the tokener counts within the space */
    }
    if (status == json_tokener_success) {
        while (end < len &&
               (text[end] == ' ' || text[end] == '\n' || text[end] == '\r' || text[end] == '\t')) {
            end++;
        }
        if (end < len) {
            err_set(err, ERR_BAD_INPUT, "JSON: something follows the value at byte %zu", end);
            json_object_put(value);
            json_tokener_free(tokener);
            return NULL;
        }
    } else {
        err_set(err, ERR_BAD_INPUT, "JSON: %s at byte %zu",
                status == json_tokener_continue ? "the text ends too early"
                                                : json_tokener_error_desc(status),
                end);
        value = NULL;
    }
    json_tokener_free(tokener);
    if (status == json_tokener_success && !value) {
        /* json-c's null is NULL, which is our error: callers see an explicit null as an empty object's member
         * only, never at the top. */
        err_set(err, ERR_BAD_INPUT, "JSON: a bare null says nothing");
    }
    return out(value);
}

void json_destroy(struct json **value)
{
    if (value && *value) {
        json_object_put(in(*value));
        *value = NULL;
    }
}

enum json_kind json_kind(const struct json *value)
{
    switch (json_object_get_type(in(value))) {
    case json_type_boolean:
        return JSON_BOOL;
    case json_type_int:
        return JSON_INT;
    case json_type_double:
        return JSON_DOUBLE;
    case json_type_string:
        return JSON_STRING;
    case json_type_array:
        return JSON_ARRAY;
    case json_type_object:
        return JSON_OBJECT;
    case json_type_null:
        break;
    }
    return JSON_NULL;
}

struct json *json_find(const struct json *object, const char *key)
{
    struct json_object *value = NULL;
    if (json_kind(object) == JSON_OBJECT) {
        json_object_object_get_ex(in(object), key, &value);
    }
    return out(value);
}

size_t json_len(const struct json *value)
{
    switch (json_kind(value)) {
    case JSON_ARRAY:
        return json_object_array_length(in(value));
    case JSON_OBJECT:
        return (size_t)json_object_object_length(in(value));
    default:
        return 0;
    }
}

struct json *json_at(const struct json *array, size_t i)
{
    return out(json_kind(array) == JSON_ARRAY && i < json_len(array)
                   ? json_object_array_get_idx(in(array), i)
                   : NULL);
}

struct json *json_member(const struct json *object, size_t i, const char **key)
{
    struct lh_entry *entry = json_object_get_object(in(object))->head;
    while (entry && i--) {
        entry = entry->next;
    }
    if (!entry) {
        return NULL;
    }
    *key = lh_entry_k(entry);
    return out((struct json_object *)(uintptr_t)lh_entry_v(entry));
}

struct json_walk json_walk_of(const struct json *object)
{
    struct json_walk walk = { .entry = NULL };
    if (json_kind(object) == JSON_OBJECT) {
        walk.entry = json_object_get_object(in(object))->head;
    }
    return walk;
}

bool json_walk_next(struct json_walk *walk, const char **key, const struct json **value)
{
    const struct lh_entry *entry = walk->entry;
    if (!entry) {
        return false;
    }
    *key = entry->k;
    *value = out((struct json_object *)(uintptr_t)entry->v);
    walk->entry = entry->next;
    return true;
}

bool json_as_bool(const struct json *value)
{
    return json_object_get_boolean(in(value));
}

int64_t json_as_int(const struct json *value)
{
    return json_object_get_int64(in(value));
}

double json_as_double(const struct json *value)
{
    return json_object_get_double(in(value));
}

const char *json_as_str(const struct json *value, size_t *len)
{
    if (len) {
        *len = (size_t)json_object_get_string_len(in(value));
    }
    return json_object_get_string(in(value));
}

struct json *json_new_object(void)
{
    return out(json_object_new_object());
}

struct json *json_new_array(void)
{
    return out(json_object_new_array());
}

struct json *json_new_null(void)
{
    return NULL;
}

struct json *json_new_bool(bool value)
{
    return out(json_object_new_boolean(value));
}

struct json *json_new_int(int64_t value)
{
    return out(json_object_new_int64(value));
}

struct json *json_new_double(double value)
{
    /* JSON has no infinities: null says that there is no number. */
    return isfinite(value) ? out(json_object_new_double(value)) : NULL;
}

struct json *json_new_str(const char *text, size_t len)
{
    return out(json_object_new_string_len(text, (int)len));
}

struct json *json_share(const struct json *value)
{
    return out(json_object_get(in(value)));
}

void json_set(struct json *object, const char *key, struct json *take_value)
{
    json_object_object_add(in(object), key, in(take_value));
}

void json_push(struct json *array, struct json *take_value)
{
    json_object_array_add(in(array), in(take_value));
}

const char *json_text(const struct json *value, size_t *len)
{
    return json_object_to_json_string_length(
        in(value), JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, len);
}

void json_pop(struct json *array)
{
    size_t n = json_len(array);
    if (n > 0 && json_kind(array) == JSON_ARRAY) {
        json_object_array_del_idx(in(array), n - 1, 1);
    }
}

void json_unset(struct json *object, const char *key)
{
    json_object_object_del(in(object), key);
}
