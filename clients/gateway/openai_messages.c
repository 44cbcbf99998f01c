/* A conversation as clients write it -> the template's context. */
#include <stdio.h>
#include <string.h>

#include "clients/gateway/openai_raw.h"
#include "clients/gateway/text.h"

/* Text, or parts of text joined by line breaks; null is nothing. A new string value; NULL with a problem. */
static struct json *content_of(const struct json *content, size_t i, struct problem *p)
{
    struct text all = { 0 };
    char where[48];
    size_t len;
    snprintf(where, sizeof where, "messages[%zu].content", i);
    if (json_kind(content) == JSON_STRING) {
        const char *text = json_as_str(content, &len);
        return json_new_str(text, len);
    }
    if (json_kind(content) != JSON_NULL && json_kind(content) != JSON_ARRAY) {
        problem_set(p, 400, where, "invalid_type", "'%s' is a string, null or an array of parts",
                    where);
        return NULL;
    }
    for (size_t k = 0; k < json_len(content); k++) {
        const struct json *part = json_at(content, k), *type = json_find(part, "type"),
                          *text = json_find(part, "text");
        const char *name = json_kind(type) == JSON_STRING ? json_as_str(type, NULL) : "";
        if (json_kind(text) != JSON_STRING ||
            (strcmp(name, "text") != 0 && strcmp(name, "input_text") != 0)) {
            problem_set(p, 400, where, "unsupported_parameter",
                        "part %zu of '%s' is '%.40s'; only parts of text are supported", k, where,
                        name);
            text_clear(&all);
            return NULL;
        }
        const char *bytes = json_as_str(text, &len);
        if (k > 0) {
            text_add(&all, "\n", 1);
        }
        text_add(&all, bytes, len);
    }
    struct json *value = json_new_str(text_str(&all), all.len);
    text_clear(&all);
    return value;
}

static struct json *copy_of(const struct json *value)
{
    struct err err;
    size_t len;
    const char *text = json_text(value, &len);
    return value ? json_parse(text, len, &err) : NULL;
}

/* Templates want a call's arguments as an object; OpenAI writes them as a string. */
static struct json *calls_of(const struct json *calls)
{
    struct json *list = copy_of(calls);
    struct err err;
    for (size_t i = 0; i < json_len(list); i++) {
        struct json *function = json_find(json_at(list, i), "function");
        const struct json *arguments = json_find(function, "arguments");
        if (json_kind(arguments) == JSON_STRING) {
            size_t len;
            const char *text = json_as_str(arguments, &len);
            struct json *object = json_parse(text, len, &err);
            if (json_kind(object) == JSON_OBJECT) {
                json_set(function, "arguments", object);
            } else {
                json_destroy(&object);
            }
        }
    }
    return list;
}

static const char *const roles[] = { "system", "developer", "user", "assistant", "tool" };

static struct json *message_of(const struct json *message, size_t i, struct problem *p)
{
    const struct json *role = json_find(message, "role");
    const char *name = json_kind(role) == JSON_STRING ? json_as_str(role, NULL) : "";
    char where[48];
    size_t k = 0, n_roles = sizeof roles / sizeof roles[0];
    snprintf(where, sizeof where, "messages[%zu].role", i);
    while (k < n_roles && strcmp(roles[k], name) != 0) {
        k++;
    }
    if (k == n_roles) {
        problem_set(p, 400, where, "invalid_value",
                    "'%s' is none of system, developer, user, assistant, tool", where);
        return NULL;
    }
    struct json *content = content_of(json_find(message, "content"), i, p);
    if (!content) {
        return NULL;
    }
    struct json *out = json_new_object();
    const char *as = strcmp(name, "developer") == 0 ? "system" : name;
    json_set(out, "role", json_new_str(as, strlen(as)));
    json_set(out, "content", content);
    const struct json *reasoning = json_find(message, "reasoning_content");
    reasoning = json_kind(reasoning) == JSON_NULL ? json_find(message, "reasoning") : reasoning;
    if (json_kind(reasoning) == JSON_STRING) {
        json_set(out, "reasoning_content", copy_of(reasoning));
    }
    if (json_kind(json_find(message, "tool_calls")) == JSON_ARRAY) {
        json_set(out, "tool_calls", calls_of(json_find(message, "tool_calls")));
    }
    static const char *const kept[] = { "tool_call_id", "name" };
    for (size_t j = 0; j < sizeof kept / sizeof kept[0]; j++) {
        if (json_kind(json_find(message, kept[j])) == JSON_STRING) {
            json_set(out, kept[j], copy_of(json_find(message, kept[j])));
        }
    }
    return out;
}

static bool says(const struct json *value, const char *word)
{
    return json_kind(value) == JSON_STRING && strcmp(json_as_str(value, NULL), word) == 0;
}

/* Whether the model goes on with the last message: as asked for, else when it is an answer that was begun. */
static bool goes_on(const struct json *body)
{
    const struct json *messages = json_find(body, "messages"),
                      *last = json_at(messages, json_len(messages) - 1),
                      *prompt = json_find(body, "add_generation_prompt"),
                      *asked = json_find(body, "continue_final_message");
    if (json_kind(prompt) == JSON_BOOL) {
        return !json_as_bool(prompt);
    }
    return json_kind(asked) == JSON_BOOL
               ? json_as_bool(asked)
               : says(json_find(last, "role"), "assistant") &&
                     json_kind(json_find(last, "tool_calls")) != JSON_ARRAY;
}

/* Members of chat_template_kwargs, but not those that are the conversation. */
static void add_kwargs(struct json *context, const struct json *kwargs)
{
    const char *key;
    const struct json *value;
    for (struct json_walk w = json_walk_of(kwargs); json_walk_next(&w, &key, &value);) {
        if (strcmp(key, "messages") != 0 && strcmp(key, "tools") != 0) {
            json_set(context, key, copy_of(value));
        }
    }
}

struct json *openai_context(const struct json *body, struct problem *p)
{
    const struct json *messages = json_find(body, "messages"), *tools = json_find(body, "tools"),
                      *effort = json_find(body, "reasoning_effort"),
                      *kwargs = json_find(body, "chat_template_kwargs");
    if (json_kind(messages) != JSON_ARRAY || json_len(messages) == 0) {
        problem_set(p, 400, "messages", "invalid_value",
                    "'messages' is an array with at least one message");
        return NULL;
    }
    if (json_kind(kwargs) != JSON_NULL && json_kind(kwargs) != JSON_OBJECT) {
        problem_set(p, 400, "chat_template_kwargs", "invalid_type",
                    "'chat_template_kwargs' is an object");
        return NULL;
    }
    struct json *context = json_new_object(), *list = json_new_array();
    json_set(context, "messages", list);
    for (size_t i = 0; i < json_len(messages); i++) {
        struct json *message = message_of(json_at(messages, i), i, p);
        if (!message) {
            json_destroy(&context);
            return NULL;
        }
        json_push(list, message);
    }
    add_kwargs(context, kwargs);
    if (json_len(tools) && !says(json_find(body, "tool_choice"), "none")) {
        json_set(context, "tools", copy_of(tools));
    }
    if (json_kind(effort) == JSON_NULL) {
        effort = json_find(json_find(body, "reasoning"), "effort");
    }
    if (json_kind(effort) == JSON_STRING) {
        json_set(context, "reasoning_effort", copy_of(effort));
    }
    json_set(context, "add_generation_prompt", json_new_bool(!goes_on(body)));
    return context;
}

static int check_tools(const struct raw *raw, struct problem *p)
{
    if (raw->tools && json_kind(raw->tools) != JSON_ARRAY) {
        return problem_set(p, 400, "tools", "invalid_type", "'tools' is an array");
    }
    for (size_t i = 0; i < json_len(raw->tools); i++) {
        const struct json *tool = json_at(raw->tools, i), *function = json_find(tool, "function");
        const struct json *name = json_find(function, "name");
        if (!says(json_find(tool, "type"), "function") || json_kind(name) != JSON_STRING) {
            return problem_set(p, 400, "tools", "invalid_value",
                               "tool %zu is no function with a name", i);
        }
    }
    if (raw->tool_choice && !says(raw->tool_choice, "auto") && !says(raw->tool_choice, "none")) {
        return problem_set(p, 400, "tool_choice", "unsupported_parameter",
                           "'tool_choice' may be \"auto\" or \"none\"; forcing a call is not "
                           "supported");
    }
    return 0;
}

int openai_read_chat(struct openai_request *r, const struct raw *raw, struct problem *p)
{
    struct generation *g = &r->generation;
    const struct json *format = json_find(raw->response_format, "type");
    if (raw->response_format && !says(format, "text")) {
        return problem_set(p, 400, "response_format", "unsupported_parameter",
                           "'response_format' may only be {\"type\":\"text\"}; constrained output "
                           "is not supported");
    }
    if (raw->modalities &&
        !(json_len(raw->modalities) == 1 && says(json_at(raw->modalities, 0), "text"))) {
        return problem_set(p, 400, "modalities", "unsupported_parameter",
                           "'modalities' may only be [\"text\"]");
    }
    if (raw->reasoning && json_kind(raw->reasoning) != JSON_OBJECT) {
        return problem_set(p, 400, "reasoning", "invalid_type", "'reasoning' is an object");
    }
    if (check_tools(raw, p) < 0) {
        return -1;
    }
    r->context = openai_context(r->body, p);
    if (!r->context) {
        return -1;
    }
    g->chat = true;
    g->tools = json_find(r->context, "tools");
    g->ask.kind = HEARTH_MESSAGES;
    r->prompts[0].at = json_text(r->context, &r->prompts[0].len);
    g->n_prompts = 1;
    return 0;
}
