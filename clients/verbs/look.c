#include "clients/verbs/look.h"

#include <stdlib.h>
#include <string.h>

static struct json *parse(struct verb *v, char *text, const struct hearth_error *error)
{
    struct err err;
    if (!text) {
        verb_fail(v, error);
    }
    struct json *status = json_parse(text, strlen(text), &err);
    free(text);
    if (!status) {
        fprintf(stderr, "hearth %s: %s\n", v->program->verb, err.text);
        exit(1);
    }
    return status;
}

struct json *look_status(struct verb *v, bool all_models)
{
    struct hearth_error error;
    char *text = hearth_status(v->h, all_models, &error);
    return parse(v, text, &error);
}

struct json *look_ledger(struct verb *v)
{
    struct hearth_error error;
    char *text = hearth_ledger(v->h, &error);
    return parse(v, text, &error);
}

const char *look_str(const struct json *object, const char *key)
{
    const struct json *value = json_find(object, key);
    return value ? json_as_str(value, NULL) : "";
}

int64_t look_int(const struct json *object, const char *key)
{
    const struct json *value = json_find(object, key);
    return value ? json_as_int(value) : 0;
}

void look_print(const struct json *value)
{
    size_t len;
    const char *text = json_text(value, &len);
    fwrite(text, 1, len, stdout);
    putchar('\n');
}

const char *look_age(int64_t seconds, char text[32])
{
    if (seconds < 120) {
        snprintf(text, 32, "%lld s", (long long)seconds);
    } else if (seconds < 7200) {
        snprintf(text, 32, "%lld min", (long long)(seconds / 60));
    } else {
        snprintf(text, 32, "%lld h", (long long)(seconds / 3600));
    }
    return text;
}
