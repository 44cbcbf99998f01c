#include "clients/gateway/openai.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/gateway/generate.h"
#include "clients/gateway/openai_fields.h"
#include "clients/gateway/server.h"
#include "clients/gateway/sse.h"
#include "clients/gateway/text.h"

/* One of the answers. */
struct written {
    struct text content, reasoning; /* of a whole answer */
    struct json *calls;             /* owned */
    struct json *logprobs;          /* owned: said with the next chunk; or all, of a whole answer */
    size_t text_len;                /* legacy logprobs count from the answer's begin */
    char finish_reason[16];
};

/* What is being written: whole, or chunk by chunk. */
struct writer {
    struct sse sse;
    const struct openai_request *request;
    char id[64], model[LIMIT_MODEL_NAME_BYTES];
    int64_t created;
    struct written *answers; /* owned */
    size_t n;
};

static struct json *str(const char *text)
{
    return json_new_str(text, strlen(text));
}

/* ---- parts that both kinds of answer have ---- */

static struct json *envelope(const struct writer *w, bool chunk)
{
    struct json *o = json_new_object();
    json_set(o, "id", str(w->id));
    json_set(o, "object",
             str(!w->request->chat ? "text_completion"
                 : chunk           ? "chat.completion.chunk"
                                   : "chat.completion"));
    json_set(o, "created", json_new_int(w->created));
    json_set(o, "model", str(w->model));
    return o;
}

/* Thoughts, under the names that are configured. */
static void set_reasoning(const struct writer *w, struct json *o, const char *text, size_t len)
{
    const struct server_options *options = exchange_options(w->sse.x);
    if (options->reasoning_content) {
        json_set(o, "reasoning_content", json_new_str(text, len));
    }
    if (options->reasoning) {
        json_set(o, "reasoning", json_new_str(text, len));
    }
}

static struct json *usage_of(const struct generate_end *end)
{
    struct json *o = json_new_object(), *prompt = json_new_object(), *own = json_new_object();
    json_set(o, "prompt_tokens", json_new_int(end->n_prompt));
    json_set(o, "completion_tokens", json_new_int(end->n_tokens));
    json_set(o, "total_tokens", json_new_int((int64_t)end->n_prompt + end->n_tokens));
    json_set(prompt, "cached_tokens", json_new_int(end->n_cached));
    json_set(o, "prompt_tokens_details", prompt);
    json_set(own, "reasoning_tokens", json_new_int(end->n_reasoning));
    json_set(o, "completion_tokens_details", own);
    return o;
}

static struct json *timings_of(const struct generate_end *end)
{
    struct json *o = json_new_object();
    double s = end->predicted_ms / 1e3;
    json_set(o, "cache_n", json_new_int(end->n_cached));
    json_set(o, "prompt_n", json_new_int((int64_t)end->n_prompt - end->n_cached));
    json_set(o, "prompt_ms", json_new_double(end->prompt_ms));
    json_set(o, "predicted_n", json_new_int(end->n_tokens));
    json_set(o, "predicted_ms", json_new_double(end->predicted_ms));
    json_set(o, "predicted_per_second",
             json_new_double(end->n_tokens > 1 && s > 0 ? (end->n_tokens - 1) / s : 0));
    return o;
}

/* ---- logprobs ---- */

static struct json *logprob_of(const char *piece, size_t len, float logprob)
{
    struct json *o = json_new_object(), *bytes = json_new_array();
    json_set(o, "token", text_json(piece, len));
    json_set(o, "logprob", json_new_double((double)logprob));
    for (size_t i = 0; i < len; i++) {
        json_push(bytes, json_new_int((unsigned char)piece[i]));
    }
    json_set(o, "bytes", bytes);
    return o;
}

static void add_chat_logprob(struct written *w, const struct hearth_token *token,
                             const char *const *pieces, const size_t *lens)
{
    if (!w->logprobs) {
        w->logprobs = json_new_object();
        json_set(w->logprobs, "content", json_new_array());
    }
    struct json *o = logprob_of(pieces[0], lens[0], token->logprob), *top = json_new_array();
    for (size_t i = 0; i < token->n_alternatives; i++) {
        json_push(top, logprob_of(pieces[i + 1], lens[i + 1], token->alternatives[i].logprob));
    }
    json_set(o, "top_logprobs", top);
    json_push(json_find(w->logprobs, "content"), o);
}

static void add_legacy_logprob(struct written *w, const struct hearth_token *token,
                               const char *const *pieces, const size_t *lens)
{
    static const char *const lists[] = { "tokens", "token_logprobs", "top_logprobs",
                                         "text_offset" };
    if (!w->logprobs) {
        w->logprobs = json_new_object();
        for (size_t i = 0; i < 4; i++) {
            json_set(w->logprobs, lists[i], json_new_array());
        }
    }
    struct json *top = json_new_object();
    for (size_t i = 0; i < token->n_alternatives; i++) {
        struct text key = { 0 };
        text_add_clean(&key, pieces[i + 1], lens[i + 1]);
        json_set(top, text_str(&key), json_new_double((double)token->alternatives[i].logprob));
        text_clear(&key);
    }
    json_push(json_find(w->logprobs, "tokens"), text_json(pieces[0], lens[0]));
    json_push(json_find(w->logprobs, "token_logprobs"), json_new_double((double)token->logprob));
    json_push(json_find(w->logprobs, "top_logprobs"), top);
    json_push(json_find(w->logprobs, "text_offset"), json_new_int((int64_t)w->text_len));
    w->text_len += lens[0];
}

static int on_token(void *context, size_t choice, const struct hearth_token *token,
                    const char *const *pieces, const size_t *lens)
{
    struct writer *w = context;
    if (w->request->chat) {
        add_chat_logprob(&w->answers[choice], token, pieces, lens);
    } else {
        add_legacy_logprob(&w->answers[choice], token, pieces, lens);
    }
    return 0;
}

static struct json *take_logprobs(struct written *w)
{
    struct json *value = w->logprobs;
    w->logprobs = NULL;
    return value ? value : json_new_null();
}

/* ---- chunks ---- */

/* One choice: the delta of a chat, or the text of a completion; taken. */
static int chunk(struct writer *w, size_t index, struct json *delta_or_text,
                 const char *finish_reason)
{
    struct json *o = envelope(w, true), *choices = json_new_array(), *choice = json_new_object();
    json_set(choice, "index", json_new_int((int64_t)index));
    json_set(choice, w->request->chat ? "delta" : "text", delta_or_text);
    json_set(choice, "logprobs", take_logprobs(&w->answers[index]));
    json_set(choice, "finish_reason", finish_reason ? str(finish_reason) : json_new_null());
    json_push(choices, choice);
    json_set(o, "choices", choices);
    if (w->request->include_usage) {
        json_set(o, "usage", json_new_null());
    }
    return sse_json(&w->sse, o);
}

static int on_begun(void *context, const struct hearth_info *info)
{
    struct writer *w = context;
    snprintf(w->id, sizeof w->id, "%s%s", w->request->chat ? "chatcmpl-" : "cmpl-", info->id);
    snprintf(w->model, sizeof w->model, "%s", w->request->model ? w->request->model : info->model);
    if (!w->request->stream) {
        return 0;
    }
    if (w->n == 1) { /* the order of several is nobody's to repeat */
        snprintf(w->sse.id, sizeof w->sse.id, "%s", info->id);
    }
    exchange_stream(w->sse.x);
    for (size_t i = 0; w->request->chat && i < w->n; i++) {
        struct json *delta = json_new_object();
        json_set(delta, "role", str("assistant"));
        json_set(delta, "content", str(""));
        if (chunk(w, i, delta, NULL) < 0) {
            return -1;
        }
    }
    return 0;
}

static int on_text(void *context, size_t choice, enum generate_part part, const char *text,
                   size_t len)
{
    struct writer *w = context;
    struct written *a = &w->answers[choice];
    bool thinks = part == GENERATE_REASONING;
    if (!w->request->stream) {
        text_add(thinks ? &a->reasoning : &a->content, text, len);
        return a->reasoning.failed || a->content.failed ? -1 : 0;
    }
    if (!w->request->chat) {
        return chunk(w, choice, json_new_str(text, len), NULL);
    }
    struct json *delta = json_new_object();
    if (thinks) {
        set_reasoning(w, delta, text, len);
    } else {
        json_set(delta, "content", json_new_str(text, len));
    }
    return chunk(w, choice, delta, NULL);
}

/* A call as the message has it, or with its index as a delta has it. */
static struct json *call_of(const char *id, const char *name, const char *arguments, bool index,
                            size_t i)
{
    struct json *call = json_new_object(), *function = json_new_object();
    if (index) {
        json_set(call, "index", json_new_int((int64_t)i));
    }
    if (id) {
        json_set(call, "id", text_json(id, strlen(id)));
        json_set(call, "type", str("function"));
    }
    if (name) {
        json_set(function, "name", text_json(name, strlen(name)));
    }
    json_set(function, "arguments", text_json(arguments, strlen(arguments)));
    json_set(call, "function", function);
    return call;
}

static int call_chunk(struct writer *w, size_t choice, struct json *call)
{
    struct json *delta = json_new_object(), *list = json_new_array();
    json_push(list, call);
    json_set(delta, "tool_calls", list);
    return chunk(w, choice, delta, NULL);
}

static int on_call(void *context, size_t choice, size_t i, const char *id, const char *name,
                   const char *arguments)
{
    struct writer *w = context;
    struct written *a = &w->answers[choice];
    if (!w->request->stream) {
        if (!a->calls) {
            a->calls = json_new_array();
        }
        json_push(a->calls, call_of(id, name, arguments, false, 0));
        return 0;
    }
    /* The name comes once, before its arguments: some clients begin a new call at every name. */
    return call_chunk(w, choice, call_of(id, name, "", true, i)) < 0
               ? -1
               : call_chunk(w, choice, call_of(NULL, NULL, arguments, true, i));
}

/* ---- the end ---- */

static int on_end_choice(void *context, size_t choice, const char *finish_reason)
{
    struct writer *w = context;
    snprintf(w->answers[choice].finish_reason, sizeof w->answers[choice].finish_reason, "%s",
             finish_reason);
    return w->request->stream
               ? chunk(w, choice, w->request->chat ? json_new_object() : str(""), finish_reason)
               : 0;
}

static int end_stream(struct writer *w, const struct generate_end *end)
{
    if (w->request->include_usage) {
        struct json *o = envelope(w, true);
        json_set(o, "choices", json_new_array());
        json_set(o, "usage", usage_of(end));
        json_set(o, "timings", timings_of(end));
        if (sse_json(&w->sse, o) < 0) {
            return -1;
        }
    }
    sse_done(w->sse.x);
    return 0;
}

static struct json *message_of(const struct writer *w, struct written *a)
{
    struct json *message = json_new_object();
    json_set(message, "role", str("assistant"));
    json_set(message, "content",
             a->calls && !a->content.len ? json_new_null()
                                         : json_new_str(text_str(&a->content), a->content.len));
    if (a->reasoning.len) {
        set_reasoning(w, message, text_str(&a->reasoning), a->reasoning.len);
    }
    if (a->calls) {
        json_set(message, "tool_calls", a->calls);
        a->calls = NULL;
    }
    return message;
}

static struct json *choice_of(struct writer *w, size_t index)
{
    struct written *a = &w->answers[index];
    struct json *choice = json_new_object();
    json_set(choice, "index", json_new_int((int64_t)index));
    if (w->request->chat) {
        json_set(choice, "message", message_of(w, a));
    } else {
        json_set(choice, "text", json_new_str(text_str(&a->content), a->content.len));
    }
    json_set(choice, "logprobs", take_logprobs(a));
    json_set(choice, "finish_reason", str(a->finish_reason));
    return choice;
}

static int on_end(void *context, const struct generate_end *end)
{
    struct writer *w = context;
    if (w->request->stream) {
        return end_stream(w, end);
    }
    struct json *o = envelope(w, false), *choices = json_new_array();
    for (size_t i = 0; i < w->n; i++) {
        json_push(choices, choice_of(w, i));
    }
    json_set(o, "choices", choices);
    json_set(o, "usage", usage_of(end));
    json_set(o, "timings", timings_of(end));
    exchange_reply_json(w->sse.x, 200, o);
    return 0;
}

static void write_answer(struct exchange *x, struct hearth *h, const struct openai_request *request)
{
    struct writer w = { .sse.x = x, .request = request, .created = (int64_t)time(NULL) };
    const struct generate_events events = { &w,      on_begun,      on_token, on_text,
                                            on_call, on_end_choice, on_end };
    w.n = request->generation.n_prompts * request->generation.n;
    w.answers = calloc(w.n, sizeof *w.answers);
    exchange_last_event(x, &w.sse.skip);
    if (request->stream) {
        exchange_may_stream(x, SSE_PING);
    }
    if (w.answers) {
        generate(x, h, &request->generation, &events);
    } else {
        exchange_reply(x, 500, "text/plain", "", 0);
    }
    for (size_t i = 0; w.answers && i < w.n; i++) {
        text_clear(&w.answers[i].content);
        text_clear(&w.answers[i].reasoning);
        json_destroy(&w.answers[i].calls);
        json_destroy(&w.answers[i].logprobs);
    }
    free(w.answers);
}

static void answer(struct exchange *x, struct hearth *h, bool chat)
{
    struct openai_request *request = calloc(1, sizeof *request);
    struct problem problem;
    if (!request) {
        exchange_reply(x, 500, "text/plain", "", 0);
        return;
    }
    if (openai_request_read(request, x, chat, &problem) < 0) {
        problem_reply(x, &problem);
    } else {
        write_answer(x, h, request);
    }
    openai_request_clear(request);
    free(request);
}

void openai_chat(struct exchange *x, struct hearth *h)
{
    answer(x, h, true);
}

void openai_completions(struct exchange *x, struct hearth *h)
{
    answer(x, h, false);
}
