/* status, models and ps are three views of one answer: asked once here, printed as JSON or as a table. */
#pragma once

#include "clients/verbs/verb.h"
#include "proto/json.h"

/* The status, parsed; json_destroy. Exits on errors. */
struct json *look_status(struct verb *v, bool all_models);

/* The same with the ledger of memory. */
struct json *look_ledger(struct verb *v);

/* Strings and numbers of an object; "" and 0 when absent. */
const char *look_str(const struct json *object, const char *key);
int64_t look_int(const struct json *object, const char *key);

/* Prints a JSON value as one line. */
void look_print(const struct json *value);

/* "3 s", "5 min", "2 h". */
const char *look_age(int64_t seconds, char text[32]);
