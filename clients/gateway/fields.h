/* The fields of a request's JSON body, by table: type, range, and what is not done is refused by its name. Nothing is dropped
 * in silence: a field that changes nothing here is named in the answer's header x-hearth-ignored. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "clients/gateway/problem.h"
#include "proto/json.h"

struct exchange;

enum field_kind {
    FIELD_END = 0,
    FIELD_NUMBER,  /* struct field_number */
    FIELD_INT,     /* struct field_int */
    FIELD_BOOL,    /* bool */
    FIELD_STRING,  /* const char *, borrowed; no NUL inside */
    FIELD_ANY,     /* const struct json *, borrowed: its reader judges it */
    FIELD_IGNORED, /* accepted, changes nothing */
    FIELD_REFUSED, /* would change the meaning; any value but null, false, and an empty one */
};

struct field_number {
    bool given;
    double value;
};

struct field_int {
    bool given;
    long long value;
};

struct field {
    const char *name;
    enum field_kind kind;
    size_t off; /* of the target in the struct that is filled */
    double low, high;
    const char *why; /* REFUSED: instead of what */
};

/* The exchange's body as a JSON object, owned; NULL with a problem. */
struct json *fields_body(const struct exchange *x, struct problem *p);

/* Token ids of an array into `to`, which has room for json_len of them. -1 with a problem that names the element. */
int fields_ids(const struct json *list, const char *name, int32_t *to, struct problem *p);

/* Fills `into` from the object. Null is as good as absent. */
int fields_read(const struct field *table, const struct json *object, void *into,
                struct exchange *x, struct problem *p);
