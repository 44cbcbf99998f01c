#include "clients/gateway/fields.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "clients/gateway/server.h"
#include "proto/utf8.h"

struct json *fields_body(const struct exchange *x, struct problem *p)
{
    struct err err = { 0 };
    size_t len;
    const char *text = exchange_body(x, &len);
    bool clean = utf8_valid(text, len); /* json-c lets overlong forms through */
    struct json *body = len && clean ? json_parse(text, len, &err) : NULL;
    if (!len) {
        problem_set(p, 400, NULL, NULL, "the request has no body; a JSON object is wanted");
    } else if (!clean) {
        problem_set(p, 400, NULL, NULL, "the body is no JSON: it is not well-formed UTF-8");
    } else if (!body && err.code == ERR_NONE) {
        problem_set(p, 400, NULL, NULL, "the body is null; a JSON object is wanted");
    } else if (!body) {
        problem_set(p, 400, NULL, NULL, "the body is no JSON: %s", err.text);
    } else if (json_kind(body) != JSON_OBJECT) {
        json_destroy(&body);
        problem_set(p, 400, NULL, NULL, "the body is JSON, but no object");
    }
    return body;
}

int fields_ids(const struct json *list, const char *name, int32_t *to, struct problem *p)
{
    for (size_t i = 0; i < json_len(list); i++) {
        int64_t id = json_as_int(json_at(list, i));
        if (json_kind(json_at(list, i)) != JSON_INT || id < 0 || id > INT32_MAX) {
            return problem_set(p, 400, name, "invalid_value", "%s[%zu] is no token id", name, i);
        }
        to[i] = (int32_t)id;
    }
    return 0;
}

static int wrong(struct problem *p, const struct field *f, const char *wanted)
{
    return problem_set(p, 400, f->name, "invalid_type", "'%s' must be %s", f->name, wanted);
}

static int read_number(const struct field *f, const struct json *value, void *at, struct problem *p)
{
    enum json_kind kind = json_kind(value);
    double number = json_as_double(value);
    if ((kind != JSON_INT && kind != JSON_DOUBLE) ||
        (f->kind == FIELD_INT && kind != JSON_INT && number != floor(number))) {
        return wrong(p, f, f->kind == FIELD_INT ? "an integer" : "a number");
    }
    if (!(number >= f->low && number <= f->high)) {
        return problem_set(p, 400, f->name, "invalid_value", "'%s' is %g; it goes from %g to %g",
                           f->name, number, f->low, f->high);
    }
    if (f->kind == FIELD_INT) {
        *(struct field_int *)at = (struct field_int){ true, (long long)json_as_int(value) };
    } else {
        *(struct field_number *)at = (struct field_number){ true, number };
    }
    return 0;
}

/* Says nothing: false, "", [], {}. */
static bool is_empty(const struct json *value)
{
    size_t len = 1;
    switch (json_kind(value)) {
    case JSON_BOOL:
        return !json_as_bool(value);
    case JSON_STRING:
        json_as_str(value, &len);
        return len == 0;
    case JSON_ARRAY:
    case JSON_OBJECT:
        return json_len(value) == 0;
    default:
        return false;
    }
}

static int read_one(const struct field *f, const struct json *value, char *into, struct problem *p)
{
    void *at = into + f->off;
    size_t len;
    switch (f->kind) {
    case FIELD_NUMBER:
    case FIELD_INT:
        return read_number(f, value, at, p);
    case FIELD_BOOL:
        if (json_kind(value) != JSON_BOOL) {
            return wrong(p, f, "true or false");
        }
        *(bool *)at = json_as_bool(value);
        return 0;
    case FIELD_STRING:
        if (json_kind(value) != JSON_STRING) {
            return wrong(p, f, "a string");
        }
        *(const char **)at = json_as_str(value, &len);
        return strlen(*(const char **)at) == len ? 0 : wrong(p, f, "a string without NUL");
    case FIELD_ANY:
        *(const struct json **)at = value;
        return 0;
    case FIELD_REFUSED:
        return is_empty(value) ? 0
                               : problem_set(p, 400, f->name, "unsupported_parameter",
                                             "'%s' is not supported%s%s", f->name,
                                             f->why ? ": " : "", f->why ? f->why : "");
    default:
        return 0;
    }
}

/* One more name for the header, whose letters are a header's; a name of any others is the request's own affair. */
static void name_ignored(char *ignored, size_t room, const char *key)
{
    size_t n = strlen(ignored);
    bool clean = true;
    for (const char *c = key; *c; c++) {
        clean = clean && *c > ' ' && *c < 127 && *c != ',';
    }
    snprintf(ignored + n, room - n, "%s%s", n ? ", " : "", clean ? key : "?");
}

int fields_read(const struct field *table, const struct json *object, void *into,
                struct exchange *x, struct problem *p)
{
    const char *key;
    const struct json *value;
    char ignored[200] = "";
    for (struct json_walk w = json_walk_of(object); json_walk_next(&w, &key, &value);) {
        const struct field *f = table;
        while (f->kind != FIELD_END && strcmp(f->name, key) != 0) {
            f++;
        }
        bool passed = f->kind == FIELD_IGNORED ||
                      ((f->kind == FIELD_END || f->kind == FIELD_REFUSED) &&
                       exchange_options(x)->lenient);
        if (f->kind == FIELD_END && !passed) {
            return problem_set(p, 400, key, "unknown_parameter", "'%.60s' is not a known parameter",
                               key);
        }
        if (json_kind(value) == JSON_NULL) {
            continue;
        }
        if (passed) {
            name_ignored(ignored, sizeof ignored, key);
            continue;
        }
        if (read_one(f, value, into, p) < 0) {
            return -1;
        }
    }
    if (ignored[0]) {
        exchange_header(x, "x-hearth-ignored", ignored);
    }
    return 0;
}
