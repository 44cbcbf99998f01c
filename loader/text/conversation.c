#include "loader/text/conversation.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ID_LEN 9 /* letters and digits: what the strictest templates want of a call's id */

bool conversation_is_generic(const struct conversation *c)
{
    return !c->tools;
}

/* Calls and results that the template does not write are told in words; all of them where tools are. */
static bool speaks_calls(const struct conversation *c)
{
    return !c->tools || !c->calls;
}

static bool speaks_results(const struct conversation *c)
{
    return !c->tools || !c->results;
}

/* ---- text that grows ---- */

struct text {
    char *p;
    size_t len, cap;
    bool failed; /* no memory: seen once, at the end */
};

static void add(struct text *t, const char *p, size_t len)
{
    if (len > t->cap - t->len) {
        size_t cap = (t->len + len) * 2;
        char *grown = t->failed ? NULL : realloc(t->p, cap);
        if (!grown) {
            t->failed = true;
            return;
        }
        t->p = grown;
        t->cap = cap;
    }
    if (len) {
        memcpy(t->p + t->len, p, len);
        t->len += len;
    }
}

static void add_str(struct text *t, const char *s)
{
    add(t, s, strlen(s));
}

static void add_json(struct text *t, const struct json *value)
{
    size_t len;
    const char *p = json_kind(value) == JSON_STRING ? json_as_str(value, &len)
                                                    : json_text(value, &len);
    add(t, p, len);
}

/* The text as JSON; taken. */
static struct json *text_json(struct text *t)
{
    struct json *value = t->failed ? NULL : json_new_str(t->len ? t->p : "", t->len);
    free(t->p);
    *t = (struct text){ 0 };
    return value;
}

static struct json *str(const char *s)
{
    return json_new_str(s, strlen(s));
}

static bool is(const struct json *value, const char *word)
{
    return json_kind(value) == JSON_STRING && strcmp(json_as_str(value, NULL), word) == 0;
}

/* ---- one message: members and shapes ---- */

/* A list of parts: checked; text alone is joined with line breaks when the template wants strings. */
static int take_parts(const struct conversation *c, struct json *message, size_t number,
                      struct err *err)
{
    const struct json *parts = json_find(message, "content");
    struct text joined = { 0 };
    struct json *texts = json_new_array();
    int rc = 0;
    for (size_t i = 0, n = 0; rc == 0 && i < json_len(parts); i++) {
        struct json *part = json_at(parts, i);
        const struct json *type = json_find(part, "type"), *text = json_find(part, "text");
        if (is(type, "refusal")) {
            continue;
        }
        if (is(type, "image_url") || is(type, "image") || is(type, "input_audio") ||
            is(type, "audio") || is(type, "video") || is(type, "video_url") || is(type, "file")) {
            rc = err_set(err, ERR_UNSUPPORTED, "message %zu: %s: the model takes text alone",
                         number, json_as_str(type, NULL));
        } else if (!is(type, "text") || json_kind(text) != JSON_STRING) {
            rc = err_set(err, ERR_BAD_INPUT, "message %zu: part %zu of content is no text", number,
                         i);
        } else {
            add(&joined, "\n", n++ ? 1 : 0);
            add_json(&joined, text);
            json_push(texts, json_share(part));
        }
    }
    if (rc == 0 && joined.failed) {
        rc = err_set(err, ERR_NO_MEMORY, "no memory for the parts of message %zu", number);
    }
    if (rc == 0 && c->lists) {
        json_set(message, "content", json_share(texts));
    } else if (rc == 0) {
        json_set(message, "content", text_json(&joined));
    }
    json_destroy(&texts);
    free(joined.p);
    return rc;
}

/* Nine letters and digits that depend on the id alone, so that a call and its result keep to each other. */
static struct json *short_id(const char *p, size_t len)
{
    static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < len; i++) {
        hash = (hash ^ (uint8_t)p[i]) * 0x100000001b3u;
    }
    char id[ID_LEN];
    for (int i = 0; i < ID_LEN; i++, hash /= 62) {
        id[i] = digits[hash % 62];
    }
    return json_new_str(id, ID_LEN);
}

static bool is_short(const char *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (!isalnum((unsigned char)p[i])) {
            return false;
        }
    }
    return len == ID_LEN;
}

static void fit_id(const struct conversation *c, struct json *object, const char *key)
{
    size_t len;
    const char *id = json_as_str(json_find(object, key), &len);
    if (c->short_ids && !is_short(id, len)) {
        json_set(object, key, short_id(id, len));
    }
}

/* Arguments in the shape that the template takes: text that holds JSON, or the value. */
static void fit_arguments(const struct conversation *c, struct json *function)
{
    const struct json *arguments = json_find(function, "arguments");
    bool spoken = speaks_calls(c);
    size_t len;
    struct err ignored;
    if (!arguments) {
        json_set(function, "arguments",
                 c->text_arguments && !spoken ? str("{}") : json_new_object());
    } else if (json_kind(arguments) == JSON_STRING && (!c->text_arguments || spoken)) {
        const char *text = json_as_str(arguments, &len);
        struct json *value = json_parse(text, len, &ignored);
        if (json_kind(value) == JSON_OBJECT) {
            json_set(function, "arguments", json_share(value));
        } else if (text[strspn(text, " \t\r\n")] == 0) {
            json_set(function, "arguments", json_new_object());
        }
        json_destroy(&value);
    } else if (json_kind(arguments) != JSON_STRING && c->text_arguments && !spoken) {
        const char *text = json_text(arguments, &len);
        json_set(function, "arguments", json_new_str(text, len));
    }
}

static int take_calls(const struct conversation *c, struct json *message, size_t number,
                      struct err *err)
{
    const struct json *old = json_find(message, "function_call");
    if (old && !json_len(json_find(message, "tool_calls"))) { /* the older way of one call */
        struct json *list = json_new_array(), *call = json_new_object();
        json_set(call, "function", json_share(old));
        json_push(list, call);
        json_set(message, "tool_calls", list);
    }
    json_unset(message, "function_call");
    const struct json *calls = json_find(message, "tool_calls");
    if (calls && json_kind(calls) != JSON_ARRAY) {
        return err_set(err, ERR_BAD_INPUT, "message %zu: tool_calls is no array", number);
    }
    if (json_len(calls) == 0) {
        json_unset(message, "tool_calls");
        return 0;
    }
    for (size_t i = 0; i < json_len(calls); i++) {
        struct json *call = json_at(calls, i), *function = json_find(call, "function");
        if (json_kind(json_find(function, "name")) != JSON_STRING) {
            return err_set(err, ERR_BAD_INPUT, "message %zu: call %zu has no function.name", number,
                           i);
        }
        if (json_kind(json_find(call, "id")) != JSON_STRING) {
            char seed[64];
            int n = snprintf(seed, sizeof seed, "%zu %zu", number, i);
            json_set(call, "id", short_id(seed, (size_t)n));
        }
        fit_id(c, call, "id");
        json_set(call, "type", str("function"));
        fit_arguments(c, function);
    }
    return 0;
}

/* Earlier reasoning under the name that the template reads, or not at all. */
static void fit_thoughts(const struct conversation *c, struct json *message)
{
    static const char *const names[] = { "reasoning_content", "reasoning", "thinking" };
    struct json *thought = NULL;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct json *value = json_find(message, names[i]);
        if (!thought && json_kind(value) == JSON_STRING) {
            thought = json_share(value);
        }
        json_unset(message, names[i]);
    }
    if (thought && c->thoughts) {
        json_set(message, c->thoughts, thought);
    } else {
        json_destroy(&thought);
    }
}

static int take_message(const struct conversation *c, struct json *message, size_t number,
                        struct err *err)
{
    if (json_kind(message) != JSON_OBJECT || json_kind(json_find(message, "role")) != JSON_STRING) {
        return err_set(err, ERR_BAD_INPUT, "message %zu has no role", number);
    }
    if (is(json_find(message, "role"), "function")) {
        json_set(message, "role", str("tool"));
    } else if (is(json_find(message, "role"), "developer") && !c->developer) {
        json_set(message, "role", str("system"));
    }
    if (take_calls(c, message, number, err) < 0) {
        return -1;
    }
    fit_thoughts(c, message);
    json_unset(message, "refusal");
    const struct json *content = json_find(message, "content");
    switch (json_kind(content)) {
    case JSON_STRING:
        return 0;
    case JSON_ARRAY:
        return take_parts(c, message, number, err);
    case JSON_NULL:
        if (json_find(message, "tool_calls")) {
            json_set(message, "content", str(""));
            return 0;
        }
        return err_set(err, ERR_BAD_INPUT, "message %zu has neither content nor tool_calls",
                       number);
    default:
        return err_set(err, ERR_BAD_INPUT,
                       "message %zu: content is neither text nor a list of parts", number);
    }
}

/* ---- results find their calls ---- */

/* The results behind message i, put into the order of its calls, named after them and given their ids. Returns how many. */
static size_t order_results(const struct conversation *c, const struct json *messages, size_t i,
                            struct json *out)
{
    const struct json *calls = json_find(json_at(messages, i), "tool_calls");
    size_t n = 0, n_calls = json_len(calls), total = json_len(messages);
    while (i + 1 + n < total && is(json_find(json_at(messages, i + 1 + n), "role"), "tool")) {
        n++;
    }
    for (size_t k = 0; k < n; k++) {
        struct json *result = json_at(messages, i + 1 + k);
        if (json_kind(json_find(result, "tool_call_id")) == JSON_STRING) {
            fit_id(c, result, "tool_call_id");
        } else if (k < n_calls) {
            json_set(result, "tool_call_id", json_share(json_find(json_at(calls, k), "id")));
        }
    }
    bool *taken = calloc(n + 1, 1);
    for (size_t at = 0; taken && at < n_calls; at++) {
        const struct json *call = json_at(calls, at);
        for (size_t k = 0; k < n; k++) {
            struct json *result = json_at(messages, i + 1 + k);
            if (taken[k] || !json_find(result, "tool_call_id") ||
                !is(json_find(result, "tool_call_id"), json_as_str(json_find(call, "id"), NULL))) {
                continue;
            }
            if (json_kind(json_find(result, "name")) != JSON_STRING) {
                json_set(result, "name",
                         json_share(json_find(json_find(call, "function"), "name")));
            }
            json_push(out, json_share(result));
            taken[k] = true;
            break;
        }
    }
    for (size_t k = 0; k < n; k++) { /* of no call that is there: as they came */
        if (!taken || !taken[k]) {
            json_push(out, json_share(json_at(messages, i + 1 + k)));
        }
    }
    free(taken);
    return n;
}

/* ---- other orders of messages: each takes an array and gives its successor ---- */

static struct json *with_results(const struct conversation *c, const struct json *messages)
{
    struct json *out = json_new_array();
    for (size_t i = 0; i < json_len(messages); i++) {
        struct json *message = json_at(messages, i);
        json_push(out, json_share(message));
        if (!json_find(message, "tool_calls")) {
            continue;
        }
        size_t first = json_len(out), n = order_results(c, messages, i, out);
        i += n;
        if (c->responses && n) {
            struct json *responses = json_new_array();
            for (size_t k = first; k < first + n; k++) {
                const struct json *result = json_at(out, k);
                struct json *response = json_new_object(), *name = json_find(result, "name");
                json_set(response, "name", name ? json_share(name) : str(""));
                json_set(response, "response", json_share(json_find(result, "content")));
                json_push(responses, response);
            }
            for (size_t k = 0; k < n; k++) {
                json_pop(out);
            }
            json_set(message, "tool_responses", responses);
        }
    }
    return out;
}

static struct json *new_message(const char *role, struct text *content)
{
    struct json *message = json_new_object();
    json_set(message, "role", str(role));
    json_set(message, "content", text_json(content));
    return message;
}

/* Content as text, parts joined. */
static void add_content(struct text *t, const struct json *message)
{
    const struct json *content = json_find(message, "content");
    if (json_kind(content) == JSON_STRING) {
        add_json(t, content);
    }
    for (size_t i = 0; json_kind(content) == JSON_ARRAY && i < json_len(content); i++) {
        add(t, "\n", i ? 1 : 0);
        add_json(t, json_find(json_at(content, i), "text"));
    }
}

static void add_tools(struct text *t, const struct json *tools)
{
    add_str(t, "You can call these tools:\n");
    for (size_t i = 0; i < json_len(tools); i++) {
        add_json(t, json_at(tools, i));
        add_str(t, "\n");
    }
    add_str(t, "Answer with one JSON object and nothing else. To call a tool: {\"tool_call\": "
               "{\"name\": NAME, \"arguments\": {...}}}. To call several: {\"tool_calls\": "
               "[{\"name\": NAME, \"arguments\": {...}}, ...]}. To answer: {\"response\": TEXT}.");
}

/* What the assistant called, in the words it would have used. */
static struct json *spoken_calls(const struct json *message)
{
    const struct json *calls = json_find(message, "tool_calls");
    struct json *list = json_new_array(), *whole = json_new_object();
    for (size_t i = 0; i < json_len(calls); i++) {
        const struct json *function = json_find(json_at(calls, i), "function");
        struct json *call = json_new_object();
        json_set(call, "name", json_share(json_find(function, "name")));
        json_set(call, "arguments", json_share(json_find(function, "arguments")));
        json_push(list, call);
    }
    if (json_len(list) == 1) {
        json_set(whole, "tool_call", json_share(json_at(list, 0)));
        json_destroy(&list);
    } else {
        json_set(whole, "tool_calls", list);
    }
    struct text text = { 0 };
    add_content(&text, message);
    add(&text, "\n", text.len ? 1 : 0);
    add_json(&text, whole);
    json_destroy(&whole);
    return new_message("assistant", &text);
}

/* Tools in the system message, calls and results as words. Several results and what the user says behind them are one
 * message: templates without tools want the two sides to take turns. */
static struct json *spoken_tools(const struct conversation *c, const struct json *messages,
                                 const struct json *tools)
{
    struct json *out = json_new_array();
    struct text text = { 0 };
    size_t i = 0, n = json_len(messages);
    if (json_len(tools)) {
        if (n && is(json_find(json_at(messages, 0), "role"), "system")) {
            add_content(&text, json_at(messages, i++));
            add_str(&text, "\n\n");
        }
        add_tools(&text, tools);
        json_push(out, new_message("system", &text));
    }
    for (; i < n; i++) {
        struct json *message = json_at(messages, i);
        if (json_find(message, "tool_calls")) {
            json_push(out, speaks_calls(c) ? spoken_calls(message) : json_share(message));
            continue;
        }
        bool any = false;
        for (; speaks_results(c) && i < n && is(json_find(json_at(messages, i), "role"), "tool");
             i++, any = true) {
            const struct json *name = json_find(json_at(messages, i), "name");
            add(&text, "\n\n", any ? 2 : 0);
            add_str(&text, "Result of ");
            add_str(&text, json_kind(name) == JSON_STRING ? json_as_str(name, NULL) : "the tool");
            add_str(&text, ":\n");
            add_content(&text, json_at(messages, i));
        }
        if (!any) {
            json_push(out, json_share(message));
            continue;
        }
        if (i < n && is(json_find(json_at(messages, i), "role"), "user")) {
            add_str(&text, "\n\n");
            add_content(&text, json_at(messages, i++));
        }
        json_push(out, new_message("user", &text));
        i--;
    }
    return out;
}

/* System messages in front of what the user says next. */
static struct json *without_system(const struct json *messages)
{
    struct json *out = json_new_array();
    struct text text = { 0 };
    for (size_t i = 0; i < json_len(messages); i++) {
        struct json *message = json_at(messages, i);
        if (is(json_find(message, "role"), "system")) {
            add(&text, "\n\n", text.len ? 2 : 0);
            add_content(&text, message);
        } else if (text.len && is(json_find(message, "role"), "user")) {
            add_str(&text, "\n\n");
            add_content(&text, message);
            json_push(out, new_message("user", &text));
        } else {
            json_push(out, json_share(message));
        }
    }
    if (text.len) { /* nobody spoke after it */
        json_push(out, new_message("user", &text));
    }
    free(text.p);
    return out;
}

static bool any_with(const struct json *messages, const char *key, const char *role)
{
    for (size_t i = 0; i < json_len(messages); i++) {
        if (role ? is(json_find(json_at(messages, i), "role"), role)
                 : json_find(json_at(messages, i), key) != NULL) {
            return true;
        }
    }
    return false;
}

/* ---- the whole ---- */

/* Members of chat_template_kwargs under their own names; one switch of thinking stands for both. */
static void spread(struct json *context)
{
    struct json *options = json_find(context, "chat_template_kwargs");
    if (json_kind(options) == JSON_OBJECT) {
        const char *key;
        const struct json *value;
        for (struct json_walk w = json_walk_of(options); json_walk_next(&w, &key, &value);) {
            if (strcmp(key, "messages") != 0 && strcmp(key, "chat_template_kwargs") != 0) {
                json_set(context, key, value ? json_share(value) : NULL);
            }
        }
    }
    json_unset(context, "chat_template_kwargs");
    struct json *enable = json_find(context, "enable_thinking"),
                *thinking = json_find(context, "thinking");
    if (enable && !thinking) {
        json_set(context, "thinking", json_share(enable));
    } else if (thinking && !enable) {
        json_set(context, "enable_thinking", json_share(thinking));
    }
}

/* Members that clients may leave out and templates read all the same. */
static void complete_tool(struct json *function)
{
    if (!json_find(function, "description")) {
        json_set(function, "description", str(""));
    }
    if (!json_find(function, "parameters")) {
        struct json *parameters = json_new_object();
        json_set(parameters, "type", str("object"));
        json_set(parameters, "properties", json_new_object());
        json_set(function, "parameters", parameters);
    }
}

static int take_tools(const struct conversation *c, struct json *context, int64_t now,
                      struct err *err)
{
    const struct json *tools = json_find(context, "tools");
    if (tools && json_kind(tools) != JSON_ARRAY) {
        return err_set(err, ERR_BAD_INPUT, "tools is no array");
    }
    for (size_t i = 0; i < json_len(tools); i++) {
        struct json *function = json_find(json_at(tools, i), "function");
        if (json_kind(json_find(function, "name")) != JSON_STRING) {
            return err_set(err, ERR_BAD_INPUT, "tool %zu has no function.name", i);
        }
        complete_tool(function);
    }
    if (json_len(tools) == 0 || is(json_find(context, "tool_choice"), "none")) {
        json_set(context, "tools", NULL);
    }
    json_unset(context, "tool_choice");
    if (!json_find(context, "documents")) {
        json_set(context, "documents", NULL);
    }
    if (c->firefunction && !json_find(context, "functions")) {
        struct text text = { 0 };
        add_str(&text, "");
        add_json(&text, json_find(context, "tools"));
        json_set(context, "functions", text_json(&text));
    }
    if (c->firefunction && !json_find(context, "datetime")) {
        char date[64];
        struct tm tm;
        time_t at = (time_t)now;
        size_t n = localtime_r(&at, &tm) ? strftime(date, sizeof date, "%b %d %Y %H:%M:%S", &tm)
                                         : 0;
        json_set(context, "datetime", json_new_str(date, n));
    }
    return 0;
}

int conversation_normalise(const struct conversation *c, struct json *context, int64_t now,
                           struct err *err)
{
    spread(context);
    if (take_tools(c, context, now, err) < 0) {
        return -1;
    }
    const struct json *messages = json_find(context, "messages");
    for (size_t i = 0; i < json_len(messages); i++) {
        if (take_message(c, json_at(messages, i), i, err) < 0) {
            return -1;
        }
    }
    bool called = any_with(messages, "tool_calls", NULL), answered = any_with(messages, "", "tool");
    if (called) {
        json_set(context, "messages", with_results(c, messages));
        messages = json_find(context, "messages");
    }
    const struct json *told = conversation_is_generic(c) ? json_find(context, "tools") : NULL;
    if (told || (called && speaks_calls(c)) || (answered && speaks_results(c))) {
        json_set(context, "messages", spoken_tools(c, messages, told));
        messages = json_find(context, "messages");
        if (told) {
            json_set(context, "tools", NULL);
        }
    }
    if (!c->system && any_with(messages, "", "system")) {
        json_set(context, "messages", without_system(messages));
        messages = json_find(context, "messages");
    }
    for (size_t i = 0; c->needs_lists && i < json_len(messages); i++) {
        struct json *message = json_at(messages, i), *content = json_find(message, "content");
        if (json_kind(content) == JSON_STRING) {
            struct json *list = json_new_array(), *part = json_new_object();
            json_set(part, "type", str("text"));
            json_set(part, "text", json_share(content));
            json_push(list, part);
            json_set(message, "content", list);
        }
    }
    return 0;
}
