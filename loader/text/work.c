#include "loader/text/work.h"

#include <stdlib.h>
#include <string.h>

#include "loader/text/detok.h"
#include "proto/json.h"

/* ---- opening ---- */

static char *text_of_token(const struct tokenizer *t, enum token_role special)
{
    int32_t id = tokenizer_special(t, special);
    size_t len = 0;
    const uint8_t *text = id >= 0 ? vocab_text(tokenizer_vocab(t), (uint32_t)id, &len) : NULL;
    char *copy = calloc(1, len + 1);
    if (copy && len) {
        memcpy(copy, text, len);
    }
    return copy;
}

/* What models without a template of their own are asked with when their vocabulary has these two tokens. */
static const char chatml[] = "{% for message in messages %}"
                             "<|im_start|>{{ message.role ~ '\\n' ~ message.content }}<|im_end|>\n"
                             "{% endfor %}"
                             "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

static bool knows_chatml(const struct tokenizer *t)
{
    static const char *const tokens[] = { "<|im_start|>", "<|im_end|>" };
    for (size_t i = 0; i < 2; i++) {
        if (vocab_find(tokenizer_vocab(t), (const uint8_t *)tokens[i], strlen(tokens[i])) < 0) {
            return false;
        }
    }
    return true;
}

static void voice_open(const struct work *w, struct work_voice *v, const char *text, size_t len)
{
    v->has_template = true;
    v->template = template_compile(text, len, &v->err);
    v->format = parse_recognise(text, len);
    if (v->template) {
        conversation_probe(&v->conversation, v->template, text, len, w->bos, w->eos);
    }
}

static void voice_close(struct work_voice *v)
{
    template_destroy(&v->template);
    *v = (struct work_voice){ .format = parse_recognise("", 0) };
}

int work_open(struct work *w, const struct weights *manifest, struct err *err)
{
    *w = (struct work){ .tokenizer = tokenizer_create(manifest, NULL, err) };
    w->voice = &w->own;
    if (!w->tokenizer) {
        return -1;
    }
    w->bos = text_of_token(w->tokenizer, ROLE_BOS);
    w->eos = text_of_token(w->tokenizer, ROLE_EOS);
    voice_close(&w->own);
    if (!w->bos || !w->eos) {
        work_close(w);
        return err_set(err, ERR_NO_MEMORY, "no memory for the token texts");
    }
    const struct weights_kv *kv = weights_find_kv(manifest, "tokenizer.chat_template");
    const char *text = chatml;
    size_t len = sizeof chatml - 1;
    if (kv && !weights_kv_str(kv, 0, &text, &len)) {
        w->own.has_template = true;
        err_set(&w->own.err, ERR_BAD_FILE, "key tokenizer.chat_template is no string");
    } else if (kv || knows_chatml(w->tokenizer)) {
        voice_open(w, &w->own, text, len);
    }
    return 0;
}

void work_close(struct work *w)
{
    tokenizer_destroy(&w->tokenizer);
    voice_close(&w->own);
    voice_close(&w->other);
    free(w->bos);
    free(w->eos);
    free(w->other_text);
    *w = (struct work){ 0 };
}

int work_speak(struct work *w, const char *text, size_t len, struct err *err)
{
    w->voice = text ? &w->other : &w->own;
    if (!text || (w->other_text && len == w->other_len && memcmp(text, w->other_text, len) == 0)) {
        return 0;
    }
    char *copy = malloc(len + 1);
    if (!copy) {
        return err_set(err, ERR_NO_MEMORY, "no memory for a template of %zu bytes", len);
    }
    memcpy(copy, text, len);
    free(w->other_text);
    w->other_text = copy;
    w->other_len = len;
    voice_close(&w->other);
    voice_open(w, &w->other, text, len);
    return 0;
}

/* ---- answers ---- */

static int give(struct work_answer *out, const void *data, size_t len, struct err *err)
{
    uint8_t *larger = realloc(out->data, out->len + len + 1);
    if (!larger) {
        return err_set(err, ERR_NO_MEMORY, "no memory for an answer of %zu bytes", out->len + len);
    }
    out->data = larger;
    if (len) {
        memcpy(out->data + out->len, data, len);
    }
    out->len += len;
    return 0;
}

/* The ids become the answer; taken. */
static int give_ids(struct work_answer *out, struct ids *ids, struct err *err)
{
    int result = give(out, ids->ids, ids->n * sizeof *ids->ids, err);
    ids_clear(ids);
    return result;
}

/* A checked copy of an array of ids, aligned; NULL on error. malloc'd. */
static int32_t *copy_ids(const struct work *w, const void *data, size_t len, size_t *n,
                         struct err *err)
{
    if (len % sizeof(int32_t)) {
        err_set(err, ERR_BAD_INPUT, "%zu bytes are no whole number of 32-bit ids", len);
        return NULL;
    }
    int32_t *ids = malloc(len + 1);
    if (!ids) {
        err_set(err, ERR_NO_MEMORY, "no memory for %zu bytes of ids", len);
        return NULL;
    }
    if (len) {
        memcpy(ids, data, len);
    }
    *n = len / sizeof *ids;
    for (size_t i = 0; i < *n; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= tokenizer_n_vocab(w->tokenizer)) {
            err_set(err, ERR_BAD_INPUT, "token %zu is %d, the vocabulary has 0 to %u", i, ids[i],
                    tokenizer_n_vocab(w->tokenizer) - 1);
            free(ids);
            return NULL;
        }
    }
    return ids;
}

/* ---- the works ---- */

int work_tokenize(const struct work *w, const void *text, size_t len, bool add_special,
                  bool parse_special, struct work_answer *out, struct err *err)
{
    struct ids ids = { 0 };
    unsigned flags = (add_special ? TOKENIZER_ADD_SPECIAL : 0) |
                     (parse_special ? TOKENIZER_PARSE_SPECIAL : 0);
    if (tokenizer_encode(w->tokenizer, text, len, flags, &ids, err) < 0) {
        ids_clear(&ids);
        return -1;
    }
    return give_ids(out, &ids, err);
}

int work_detokenize(const struct work *w, const void *data, size_t len, bool remove_special,
                    bool unparse_special, struct work_answer *out, struct err *err)
{
    size_t n;
    int32_t *ids = copy_ids(w, data, len, &n, err);
    struct detok_text text = { 0 };
    unsigned flags = (remove_special ? DETOK_REMOVE_SPECIAL : 0) |
                     (unparse_special ? DETOK_UNPARSE_SPECIAL : 0);
    int result = ids ? detok_all(w->tokenizer, ids, n, flags, &text, err) : -1;
    if (result == 0) {
        result = give(out, text.text, text.len, err);
    }
    free(text.text);
    free(ids);
    return result;
}

int work_pieces(const struct work *w, const void *data, size_t len, struct work_answer *out,
                struct err *err)
{
    size_t n, piece_len;
    int32_t *ids = copy_ids(w, data, len, &n, err);
    int result = ids ? 0 : -1;
    for (size_t i = 0; result == 0 && i < n; i++) {
        const uint8_t *piece = tokenizer_piece(w->tokenizer, ids[i], true, &piece_len);
        uint32_t length = (uint32_t)piece_len;
        result = give(out, &length, sizeof length, err);
        if (result == 0) {
            result = give(out, piece, piece_len, err);
        }
    }
    free(ids);
    return result;
}

/* Renders; the token names are the model's, whatever the request says: they speak with the template's voice. */
static int render(const struct work *w, struct json *context, int64_t now,
                  struct template_output *output, struct err *err)
{
    if (!w->voice->template) {
        return w->voice->has_template
                   ? (*err = w->voice->err, -1)
                   : err_set(err, ERR_UNSUPPORTED, "the model has no chat template");
    }
    json_set(context, "bos_token", json_new_str(w->bos, strlen(w->bos)));
    json_set(context, "eos_token", json_new_str(w->eos, strlen(w->eos)));
    json_unset(context, "unk_token");
    json_unset(context, "pad_token");
    return template_render(w->voice->template, context, now, output, err);
}

static struct json *parse_context(const void *text, size_t len, struct err *err)
{
    struct json *context = json_parse(text, len, err);
    if (context && json_kind(context) != JSON_OBJECT) {
        json_destroy(&context);
        err_set(err, ERR_BAD_INPUT, "a template's context is a JSON object");
    }
    return context;
}

int work_render(const struct work *w, const void *text, size_t len, int64_t now,
                struct work_answer *out, struct err *err)
{
    struct json *context = parse_context(text, len, err);
    struct template_output output = { 0 };
    int result = context ? render(w, context, now, &output, err) : -1;
    if (result == 0) {
        result = give(out, output.text, output.len, err);
    }
    template_output_clear(&output);
    json_destroy(&context);
    return result;
}

/* Whether the prompt of this context leaves the reasoning block open. A template that fails opens nothing here: who asks for the
 * prompt itself is told. */
static bool opens_reasoning(const struct work *w, struct json *context, int64_t now)
{
    struct template_output output = { 0 };
    struct err ignored;
    bool open = false;
    if (json_kind(context) == JSON_OBJECT && w->voice->template &&
        parse_marker(w->voice->format, 0, NULL)) {
        if (!json_find(context, "add_generation_prompt")) {
            json_set(context, "add_generation_prompt", json_new_bool(true));
        }
        if (conversation_normalise(&w->voice->conversation, context, now, &ignored) == 0 &&
            render(w, context, now, &output, &ignored) == 0) {
            open = parse_opens_reasoning(w->voice->format, (const char *)output.text, output.len);
        }
    }
    template_output_clear(&output);
    return open;
}

int work_parse(const struct work *w, const void *input, size_t len, int64_t now,
               struct work_answer *out, struct err *err)
{
    struct json *ask = parse_context(input, len, err), *answer = NULL;
    int result = -1;
    size_t n = 0;
    const char *text = NULL, *close = NULL;
    if (ask && json_kind(json_find(ask, "text")) != JSON_STRING) {
        err_set(err, ERR_BAD_INPUT, "nothing to parse: there is no string 'text'");
    } else if (ask) {
        struct parse_options how = {
            .reasoning_open = json_as_bool(json_find(ask, "reasoning_open")) ||
                              opens_reasoning(w, json_find(ask, "context"), now)
        };
        text = json_as_str(json_find(ask, "text"), &n);
        const struct json *tools = json_find(ask, "tools");
        const struct parse_format *format = w->voice->format;
        if (json_len(tools) && w->voice->template &&
            conversation_is_generic(&w->voice->conversation)) {
            format = parse_find("generic"); /* that is how the prompt asked for calls */
        }
        answer = parse_answer(format, text, n, tools, &how, err);
        if (answer) {
            struct json *markers = json_new_array();
            const char *open = parse_marker(format, 0, &close);
            if (open) {
                json_push(markers, json_new_str(open, strlen(open)));
                json_push(markers, json_new_str(close, strlen(close)));
            }
            const char *name = parse_name(format);
            json_set(answer, "format", json_new_str(name, strlen(name)));
            json_set(answer, "reasoning_open", json_new_bool(how.reasoning_open));
            json_set(answer, "reasoning_markers", markers);
            json_set(answer, "plain", json_new_bool(parse_is_plain(format)));
            text = json_text(answer, &n);
            result = give(out, text, n, err);
        }
    }
    json_destroy(&answer);
    json_destroy(&ask);
    return result;
}

/* A model without a template gets the messages' contents, one after another, as plain text. */
static int plain_messages(const struct work *w, const struct json *context, struct work_answer *out,
                          struct err *err)
{
    const struct json *messages = json_find(context, "messages");
    struct work_answer text = { 0 };
    int result = 0;
    for (size_t i = 0; result == 0 && i < json_len(messages); i++) {
        const struct json *content = json_find(json_at(messages, i), "content");
        size_t len;
        if (json_kind(content) != JSON_STRING) {
            result = err_set(err, ERR_BAD_INPUT, "message %zu has no content that is a string", i);
            break;
        }
        const char *bytes = json_as_str(content, &len);
        result = i > 0 ? give(&text, "\n", 1, err) : 0;
        if (result == 0) {
            result = give(&text, bytes, len, err);
        }
    }
    if (result == 0) {
        result = work_tokenize(w, text.data ? (const char *)text.data : "", text.len, true, false,
                               out, err);
    }
    free(text.data);
    return result;
}

/* The rendered text's ids: special tokens where the template wrote them. A start token that the vocabulary wants and the
 * template did not write is put in front. */
static int encode_output(const struct work *w, const struct template_output *output,
                         struct work_answer *out, struct err *err)
{
    struct ids ids = { 0 };
    struct tokenizer_span *spans = calloc(output->n_spans + 1, sizeof *spans);
    int result = spans ? 0
                       : err_set(err, ERR_NO_MEMORY, "no memory for %zu spans", output->n_spans);
    int32_t bos = tokenizer_special(w->tokenizer, ROLE_BOS);
    bool wants_bos = tokenizer_vocab(w->tokenizer)->add_bos && bos >= 0;
    for (size_t i = 0; result == 0 && i < output->n_spans; i++) {
        spans[i] = (struct tokenizer_span){ .off = output->spans[i].off,
                                            .len = output->spans[i].len,
                                            .parse_special = output->spans[i].trusted };
    }
    if (result == 0) {
        result = tokenizer_encode_spans(w->tokenizer, output->text, output->len, spans,
                                        output->n_spans, false, &ids, err);
    }
    if (result == 0 && wants_bos && (ids.n == 0 || ids.ids[0] != bos)) {
        result = give(out, &bos, sizeof bos, err);
    }
    free(spans);
    if (result < 0) {
        ids_clear(&ids);
        return -1;
    }
    return give_ids(out, &ids, err);
}

static bool continues(const struct json *context)
{
    const struct json *messages = json_find(context, "messages"),
                      *role = json_find(json_at(messages, json_len(messages) - 1), "role"),
                      *more = json_find(context, "add_generation_prompt");
    return json_kind(more) == JSON_BOOL && !json_as_bool(more) && json_kind(role) == JSON_STRING &&
           strcmp(json_as_str(role, NULL), "assistant") == 0;
}

/* The assistant's last message, which the prompt continues: what the template wrote behind its text goes. */
static int cut_behind(struct template_output *output, const struct json *message, struct err *err)
{
    const struct json *content = json_find(message, "content");
    content = json_kind(content) == JSON_ARRAY
                  ? json_find(json_at(content, json_len(content) - 1), "text")
                  : content;
    size_t len = 0;
    const char *text = json_kind(content) == JSON_STRING ? json_as_str(content, &len) : "";
    for (int trimmed = 0; trimmed < 2; trimmed++) {
        for (size_t i = output->n_spans; len && i-- > 0;) {
            struct template_span *span = &output->spans[i];
            for (size_t at = span->len; !span->trusted && at >= len; at--) {
                if (memcmp(output->text + span->off + at - len, text, len) == 0) {
                    span->len = at;
                    output->len = span->off + at;
                    output->n_spans = i + 1;
                    return 0;
                }
            }
        }
        while (len && strchr(" \t\r\n", text[len - 1])) { /* many templates trim */
            len--;
        }
        while (len && strchr(" \t\r\n", text[0])) {
            text++;
            len--;
        }
    }
    return err_set(err, ERR_BAD_INPUT,
                   "the template does not write the last message as it is: it cannot be continued");
}

static int prompt_of_messages(const struct work *w, const void *input, size_t len, int64_t now,
                              struct work_answer *out, struct err *err)
{
    struct json *context = parse_context(input, len, err);
    struct template_output output = { 0 };
    int result = -1;
    if (context && json_kind(json_find(context, "messages")) != JSON_ARRAY) {
        err_set(err, ERR_BAD_INPUT, "a conversation has an array 'messages'");
    } else if (context && !w->voice->has_template) {
        result = plain_messages(w, context, out, err);
    } else if (context) {
        if (!json_find(context, "add_generation_prompt")) {
            json_set(context, "add_generation_prompt", json_new_bool(true));
        }
        result = w->voice->template
                     ? conversation_normalise(&w->voice->conversation, context, now, err)
                     : 0;
        result = result == 0 ? render(w, context, now, &output, err) : -1;
        if (result == 0 && continues(context)) {
            const struct json *messages = json_find(context, "messages");
            result = cut_behind(&output, json_at(messages, json_len(messages) - 1), err);
        }
        if (result == 0) {
            result = encode_output(w, &output, out, err);
        }
    }
    template_output_clear(&output);
    json_destroy(&context);
    return result;
}

/* Fill in the middle: the mark of the prefix, the prefix, the mark of the suffix, the suffix, the mark behind which the middle
 * comes (Bavarian et al. 2022, the order prefix, suffix, middle, with which such models are trained). */
static int prompt_of_infill(const struct work *w, const void *input, size_t len,
                            struct work_answer *out, struct err *err)
{
    static const struct {
        enum token_role mark;
        const char *member; /* the text behind it */
    } parts[] = { { ROLE_FIM_PRE, "prefix" }, { ROLE_FIM_SUF, "suffix" }, { ROLE_FIM_MID, NULL } };
    struct json *ask = json_parse(input, len, err);
    int32_t bos = tokenizer_special(w->tokenizer, ROLE_BOS);
    int result = ask ? 0 : -1;
    if (result == 0 && tokenizer_vocab(w->tokenizer)->add_bos && bos >= 0) {
        result = give(out, &bos, sizeof bos, err);
    }
    for (size_t i = 0; result == 0 && i < sizeof parts / sizeof parts[0]; i++) {
        int32_t mark = tokenizer_special(w->tokenizer, parts[i].mark);
        const struct json *text = parts[i].member ? json_find(ask, parts[i].member) : NULL;
        size_t n = 0;
        if (mark < 0) {
            result = err_set(err, ERR_UNSUPPORTED,
                             "the model has no tokens for filling in the middle");
        } else if (parts[i].member && json_kind(text) != JSON_STRING) {
            result = err_set(err, ERR_BAD_INPUT, "'%s' is no string", parts[i].member);
        } else if ((result = give(out, &mark, sizeof mark, err)) == 0 && parts[i].member) {
            const char *bytes = json_as_str(text, &n);
            result = work_tokenize(w, bytes, n, false, false, out, err);
        }
    }
    json_destroy(&ask);
    return result;
}

int work_prompt(const struct work *w, enum work_prompt kind, const void *input, size_t len,
                int64_t now, struct work_answer *out, struct err *err)
{
    int result;
    size_t n;
    int32_t *ids;
    switch (kind) {
    case WORK_MESSAGES:
        return prompt_of_messages(w, input, len, now, out, err);
    case WORK_TOKENS:
        ids = copy_ids(w, input, len, &n, err);
        result = ids ? give(out, ids, len, err) : -1;
        free(ids);
        return result;
    case WORK_INFILL:
        return prompt_of_infill(w, input, len, out, err);
    case WORK_TEXT:
        break;
    }
    return work_tokenize(w, input, len, true, false, out, err);
}
