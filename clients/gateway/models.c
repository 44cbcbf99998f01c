#include "clients/gateway/models.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/gateway/exchange.h"
#include "clients/gateway/fields.h"
#include "clients/gateway/problem.h"
#include "clients/gateway/server.h"
#include "clients/gateway/sse.h"
#include "clients/gateway/text.h"
#include "clients/hearth.h"

/* llama.cpp's words for our states. */
static const char *value_of(const struct json *state)
{
    const char *name = json_kind(state) == JSON_STRING ? json_as_str(state, NULL) : "";
    return strcmp(name, "resident") == 0  ? "loaded"
           : strcmp(name, "warm") == 0    ? "sleeping"
           : strcmp(name, "loading") == 0 ? "loading"
                                          : "unloaded";
}

static struct json *copy_str(const struct json *value)
{
    size_t len = 0;
    const char *text = json_kind(value) == JSON_STRING ? json_as_str(value, &len) : "";
    return json_new_str(text, len);
}

/* {"fraction", "bytes", "of", "bytes_per_s"} of a model that is being read. */
static struct json *loading_json(const struct json *loading)
{
    static const char *const keys[] = { "bytes", "of", "bytes_per_s" };
    struct json *o = json_new_object();
    double of = (double)json_as_int(json_find(loading, "of"));
    json_set(o, "fraction", json_new_double((double)json_as_int(json_find(loading, "bytes")) / of));
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        json_set(o, keys[i], json_new_int(json_as_int(json_find(loading, keys[i]))));
    }
    return o;
}

/* id: the model's name, or one of its aliases. */
static struct json *model_json(const struct json *model, const struct json *id)
{
    struct json *o = json_new_object(), *meta = json_new_object(), *status = json_new_object(),
                *architecture = json_new_object(), *in = json_new_array(), *out = json_new_array(),
                *aliases = json_new_array();
    const char *value = value_of(json_find(model, "state"));
    json_set(o, "id", copy_str(id));
    json_set(o, "object", json_new_str("model", 5));
    json_set(o, "created", json_new_int(0)); /* a file's date says nothing about the model's */
    json_set(o, "owned_by", json_new_str("hearth", 6));
    json_set(o, "root", copy_str(json_find(model, "name")));
    for (size_t i = 0; i < json_len(json_find(model, "aliases")); i++) {
        json_push(aliases, copy_str(json_at(json_find(model, "aliases"), i)));
    }
    json_set(o, "aliases", aliases);
    json_set(status, "value", json_new_str(value, strlen(value)));
    if (json_find(model, "error")) {
        json_set(status, "error", copy_str(json_find(model, "error")));
    }
    const struct json *loading = json_find(model, "loading");
    if (json_as_int(json_find(loading, "of")) > 0) {
        json_set(status, "progress", loading_json(loading));
    }
    json_set(o, "status", status);
    if (json_find(model, "ctx")) {
        json_set(o, "context_length", json_new_int(json_as_int(json_find(model, "ctx"))));
        json_set(meta, "n_ctx", json_new_int(json_as_int(json_find(model, "ctx"))));
    }
    json_set(meta, "size", json_new_int(json_as_int(json_find(model, "size_bytes"))));
    json_set(o, "meta", meta);
    json_push(in, json_new_str("text", 4));
    json_push(out, json_new_str("text", 4));
    json_set(architecture, "input_modalities", in);
    json_set(architecture, "output_modalities", out);
    json_set(o, "architecture", architecture);
    return o;
}

/* Every name that may be asked for, into list; or only the one wanted, which ends the walk. */
static struct json *models_of(const struct json *status, struct json *list, const char *wanted)
{
    const struct json *models = json_find(status, "models");
    for (size_t i = 0; i < json_len(models); i++) {
        const struct json *model = json_at(models, i), *aliases = json_find(model, "aliases");
        for (size_t k = 0; k <= json_len(aliases); k++) {
            const struct json *id = k == 0 ? json_find(model, "name") : json_at(aliases, k - 1);
            if (list) {
                json_push(list, model_json(model, id));
            } else if (json_kind(id) == JSON_STRING && strcmp(json_as_str(id, NULL), wanted) == 0) {
                return model_json(model, id);
            }
        }
    }
    return NULL;
}

static struct json *status_of(struct exchange *x, struct hearth *h)
{
    struct hearth_error error;
    struct problem problem;
    struct err err = { 0 };
    char *text = hearth_status(h, true, &error);
    struct json *status = text ? json_parse(text, strlen(text), &err) : NULL;
    if (!status) {
        text ? problem_set(&problem, 500, NULL, NULL, "%s", err.text)
             : problem_of_error(&problem, &error);
        problem_reply(x, &problem);
    }
    free(text);
    return status;
}

void models_list(struct exchange *x, struct hearth *h)
{
    struct json *status = status_of(x, h);
    if (status) {
        struct json *o = json_new_object(), *list = json_new_array();
        json_set(o, "object", json_new_str("list", 4));
        json_set(o, "data", list);
        models_of(status, list, NULL);
        exchange_reply_json(x, 200, o);
        json_destroy(&status);
    }
}

void models_one(struct exchange *x, struct hearth *h)
{
    struct json *status = status_of(x, h);
    if (status) {
        struct json *one = models_of(status, NULL, exchange_rest(x));
        if (one) {
            exchange_reply_json(x, 200, one);
        } else {
            struct problem problem;
            problem_set(&problem, 404, "model", "model_not_found", "there is no model '%.300s'",
                        exchange_rest(x));
            problem_reply(x, &problem);
        }
        json_destroy(&status);
    }
}

/* ---- load and unload ---- */

#define LOAD_LOOK_MS 200 /* so often a load in progress is looked at */

struct wish {
    const char *model;
    bool stream;
};

static const struct field wish_fields[] = {
    { "model", FIELD_STRING, offsetof(struct wish, model), 0, 0, NULL },
    { "stream", FIELD_BOOL, offsetof(struct wish, stream), 0, 0, NULL },
    { 0 },
};

/* {"model", "status": {"value", "progress" while it is read}, "elapsed_ms"}. progress is taken; NULL: none. */
static struct json *progress_json(const char *model, const char *value, struct json *progress,
                                  uint64_t ms)
{
    struct json *o = json_new_object(), *status = json_new_object();
    json_set(o, "model", text_json(model, strlen(model)));
    json_set(status, "value", json_new_str(value, strlen(value)));
    if (progress) {
        json_set(status, "progress", progress);
    }
    json_set(o, "status", status);
    json_set(o, "elapsed_ms", json_new_int((int64_t)ms));
    return o;
}

/* What a model is just now, in llama.cpp's words; "unloaded" when nobody can say. *progress: how far it is read, the
 * caller's; NULL when it is not being read. */
static const char *look_at(struct hearth *h, const char *model, struct json **progress)
{
    struct hearth_error error;
    struct err err;
    const char *value = "unloaded";
    char *text = hearth_status(h, true, &error);
    struct json *status = text ? json_parse(text, strlen(text), &err) : NULL;
    struct json *one = models_of(status, NULL, model);
    const struct json *loading = json_find(json_find(one, "status"), "progress");
    const char *now = json_as_str(json_find(json_find(one, "status"), "value"), NULL);
    *progress = loading ? loading_json(loading) : NULL;
    static const char *const words[] = { "loaded", "loading", "sleeping" };
    for (size_t i = 0; one && i < sizeof words / sizeof words[0]; i++) {
        value = strcmp(now, words[i]) == 0 ? words[i] : value; /* its text dies with the answer */
    }
    json_destroy(&one);
    json_destroy(&status);
    free(text);
    return value;
}

/* Loads, and says in a stream how that goes: an event for each look while it is read, for each change, and one a second. */
static int load(struct exchange *x, struct hearth *h, const struct wish *wish, struct problem *p)
{
    struct sse sse = { .x = x };
    struct hearth_error error;
    const char *said = "";
    uint64_t begun = exchange_now_ms(), said_ms = 0;
    enum hearth_result got;
    if (hearth_load_begin(h, wish->model, false, &error) < 0) {
        return problem_of_error(p, &error);
    }
    while ((got = hearth_load_next(h, wish->stream ? LOAD_LOOK_MS : -1, &error)) ==
           HEARTH_TIMEOUT) {
        struct json *progress;
        const char *value = look_at(h, wish->model, &progress);
        uint64_t now = exchange_now_ms();
        if (strcmp(value, said) == 0 && now - said_ms < 1000 && !progress) {
            continue;
        }
        said = value;
        said_ms = now;
        if (sse_json(&sse, progress_json(wish->model, value, progress, now - begun)) < 0) {
            return problem_set(p, 499, NULL, NULL, "the client left");
        }
    }
    if (got != HEARTH_TOKEN) {
        return problem_of_error(p, &error);
    }
    if (wish->stream) {
        sse_json(&sse, progress_json(wish->model, "loaded", NULL, exchange_now_ms() - begun));
    }
    return 0;
}

static int unload(struct exchange *x, struct hearth *h, const struct wish *wish, struct problem *p)
{
    struct sse sse = { .x = x };
    struct hearth_error error;
    if (hearth_unload(h, wish->model, &error) < 0) {
        return problem_of_error(p, &error);
    }
    if (wish->stream) {
        sse_json(&sse, progress_json(wish->model, "unloaded", NULL, 0));
    }
    return 0;
}

static void load_or_unload(struct exchange *x, struct hearth *h, bool loads)
{
    struct wish wish = { 0 };
    struct problem problem;
    struct json *body = fields_body(x, &problem);
    int result = body ? fields_read(wish_fields, body, &wish, x, &problem) : -1;
    if (result == 0 && !wish.model) {
        result = problem_set(&problem, 400, "model", "invalid_value", "'model' is wanted");
    }
    if (result == 0) {
        result = loads ? load(x, h, &wish, &problem) : unload(x, h, &wish, &problem);
    }
    if (result < 0) {
        problem_reply(x, &problem);
    } else if (wish.stream) {
        sse_done(x);
    } else {
        struct json *o = json_new_object();
        json_set(o, "success", json_new_bool(true));
        exchange_reply_json(x, 200, o);
    }
    json_destroy(&body);
}

void models_load(struct exchange *x, struct hearth *h)
{
    load_or_unload(x, h, true);
}

void models_unload(struct exchange *x, struct hearth *h)
{
    load_or_unload(x, h, false);
}
