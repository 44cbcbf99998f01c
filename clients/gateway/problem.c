#include "clients/gateway/problem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "clients/gateway/server.h"
#include "clients/gateway/sse.h"
#include "clients/gateway/text.h"
#include "proto/err.h"

/* OpenAI's types; the SDKs know some of them by the status alone. */
static const struct {
    unsigned status;
    const char *type;
} types[] = {
    { 401, "authentication_error" }, { 403, "permission_error" },    { 404, "not_found_error" },
    { 429, "rate_limit_error" },     { 501, "not_supported_error" }, { 503, "unavailable_error" },
};

static const char *type_of(unsigned status)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (types[i].status == status) {
            return types[i].type;
        }
    }
    return status >= 500 ? "server_error" : "invalid_request_error";
}

int problem_set(struct problem *p, unsigned status, const char *param, const char *code,
                const char *format, ...)
{
    va_list args;
    *p = (struct problem){ .status = status, .retry = status == 429 || status == 503 };
    snprintf(p->type, sizeof p->type, "%s", type_of(status));
    snprintf(p->param, sizeof p->param, "%s", param ? param : "");
    snprintf(p->code, sizeof p->code, "%s", code ? code : "");
    va_start(args, format);
    vsnprintf(p->text, sizeof p->text, format, args);
    va_end(args);
    return -1;
}

int problem_of_error(struct problem *p, const struct hearth_error *error)
{
    enum err_code code = err_code_of_name(error->code);
    unsigned status = (unsigned)err_http_status(code);
    const char *name = error->code, *param = NULL;
    if (code == ERR_NOT_FOUND) {
        name = "model_not_found";
        param = "model";
    } else if (code == ERR_NO_FIT) {
        /* Codex looks for exactly this word when a prompt is too long. */
        name = strstr(error->text, "context") ? "context_length_exceeded" : "does_not_fit";
    } else if (code == ERR_INTERRUPTED || code == ERR_CANCELLED) {
        status =
            503; /* 499 is nobody's but ours: who left reads nothing, who stays is told that we stop */
    }
    problem_set(p, status, param, name, "%s", error->text);
    p->retry_s = (error->retry_after_ms + 999) / 1000;
    p->n_prompt = error->n_prompt;
    p->n_ctx = error->n_ctx;
    return -1;
}

struct json *problem_json(const struct problem *p)
{
    struct json *outer = json_new_object(), *o = json_new_object();
    json_set(o, "message", text_json(p->text, strlen(p->text)));
    json_set(o, "type", json_new_str(p->type, strlen(p->type)));
    json_set(o, "param", p->param[0] ? text_json(p->param, strlen(p->param)) : json_new_null());
    json_set(o, "code", p->code[0] ? json_new_str(p->code, strlen(p->code)) : json_new_null());
    if (p->n_ctx) {
        json_set(o, "n_prompt_tokens", json_new_int(p->n_prompt));
        json_set(o, "n_ctx", json_new_int(p->n_ctx));
    }
    json_set(outer, "error", o);
    return outer;
}

void problem_reply(struct exchange *x, const struct problem *p)
{
    if (exchange_streams(x)) {
        sse_plain(x, problem_json(p));
        exchange_close(x);
        return;
    }
    if (p->retry) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%u", p->retry_s ? p->retry_s : 1);
        exchange_header(x, "Retry-After", seconds);
    } else {
        exchange_header(x, "x-should-retry", "false"); /* the SDKs try 5xx again unless told */
    }
    if (p->status == 401) {
        exchange_header(x, "WWW-Authenticate", "Bearer");
    }
    exchange_reply_json(x, p->status, problem_json(p));
}
