/* hearth template: render a chat template with a context, or many from JSON lines. The engine alone: no
 * service, no model loaded. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/hearth.h"
#include "clients/options.h"
#include "clients/whole.h"
#include "loader/text/template/template.h"
#include "proto/json.h"

#define FILE_MAX (64u << 20) /* bytes of a template or an input */

static struct {
    const char *run, *model, *file, *input;
    int64_t now;
    bool jsonl, spans, now_given;
} options;

static const struct program program = {
    .verb = "template",
    .synopsis = "(-m MODEL | --file T.jinja) --input INPUT.json [--now EPOCH]",
    .purpose = "Render a chat template.",
    .text = "Prints the prompt that the template makes of the input, a JSON object with every "
            "variable. A template's own "
            "raise_exception exits 1 with its message.\n\n"
            "With --jsonl each line of stdin is {\"template_text\" or \"template_file\":..., "
            "\"input\":{...}}, and each line "
            "of stdout {\"text\":...} or {\"error\":{\"kind\":..., \"message\":...}}. --spans adds "
            "which bytes of the text "
            "the template wrote itself.",
};

static const struct option table[] = {
    { "model", 'm', OPTION_STRING, &options.model, "MODEL",
      "the template of a running service's model", NULL },
    { "run", 0, OPTION_STRING, &options.run, "DIR", "the service's runtime directory", NULL },
    { "file", 0, OPTION_STRING, &options.file, "FILE", "the template", NULL },
    { "input", 0, OPTION_STRING, &options.input, "FILE", "its context, JSON; - is stdin", NULL },
    { "now", 0, OPTION_INT, &options.now, "EPOCH", "the time strftime_now shows, seconds UTC",
      &options.now_given },
    { "jsonl", 0, OPTION_FLAG, &options.jsonl, NULL, "many templates and inputs from stdin", NULL },
    { "spans", 0, OPTION_FLAG, &options.spans, NULL, "say which bytes are the template's own",
      NULL },
    { 0 },
};

static struct json *spans_json(const struct template_output *out)
{
    struct json *spans = json_new_array();
    for (size_t i = 0; i < out->n_spans; i++) {
        struct json *span = json_new_object();
        json_set(span, "off", json_new_int((int64_t)out->spans[i].off));
        json_set(span, "len", json_new_int((int64_t)out->spans[i].len));
        json_set(span, "trusted", json_new_bool(out->spans[i].trusted));
        json_push(spans, span);
    }
    return spans;
}

static struct json *error_json(const char *kind, const char *message)
{
    struct json *answer = json_new_object(), *error = json_new_object();
    json_set(error, "kind", json_new_str(kind, strlen(kind)));
    json_set(error, "message", json_new_str(message, strlen(message)));
    json_set(answer, "error", error);
    return answer;
}

static struct json *render_text(const char *text, size_t len, const struct json *input)
{
    struct err err;
    struct template *t = template_compile(text, len, &err);
    if (!t) {
        return error_json("compile", err.text);
    }
    struct template_output out;
    struct json *answer;
    if (template_render(t, input, options.now, &out, &err) < 0) {
        const char *kind = out.failure ? template_failure_name(out.failure) : "input";
        bool raised = out.failure == TEMPLATE_RAISED && out.message;
        answer = error_json(kind, raised ? out.message : err.text);
    } else {
        answer = json_new_object();
        json_set(answer, "text", json_new_str(out.text, out.len));
        if (options.spans) {
            json_set(answer, "spans", spans_json(&out));
        }
    }
    template_output_clear(&out);
    template_destroy(&t);
    return answer;
}

/* One line of input to one line of output. */
static struct json *answer_line(const char *line, size_t len)
{
    struct err err;
    struct json *request = json_parse(line, len, &err);
    if (!request) {
        return error_json("input", err.text);
    }
    const struct json *text = json_find(request, "template_text");
    const struct json *file = json_find(request, "template_file");
    const struct json *input = json_find(request, "input");
    struct json *answer;
    size_t n;
    if (json_kind(text) == JSON_STRING) {
        const char *p = json_as_str(text, &n);
        answer = render_text(p, n, input);
    } else if (json_kind(file) == JSON_STRING) {
        char *p = whole_read(json_as_str(file, NULL), FILE_MAX, &n, &err);
        answer = p ? render_text(p, n, input) : error_json("input", err.text);
        free(p);
    } else {
        answer = error_json("input", "neither template_text nor template_file");
    }
    json_destroy(&request);
    return answer;
}

static int run_lines(void)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    while ((len = getline(&line, &cap, stdin)) >= 0) {
        struct json *answer = answer_line(line, (size_t)len);
        size_t n;
        const char *text = json_text(answer, &n);
        fwrite(text, 1, n, stdout);
        putchar('\n');
        json_destroy(&answer);
    }
    free(line);
    return ferror(stdout) || fflush(stdout) ? 1 : 0;
}

static int run_one(struct err *err)
{
    size_t text_len, input_len;
    char *text = NULL, *input_text = NULL;
    struct json *input = NULL;
    struct template *t = NULL;
    struct template_output out = { .text = NULL };
    int rc = -1;
    if (!(text = whole_read(options.file, FILE_MAX, &text_len, err)) ||
        !(input_text = whole_read(options.input, FILE_MAX, &input_len, err)) ||
        !(input = json_parse(input_text, input_len, err)) ||
        !(t = template_compile(text, text_len, err)) ||
        template_render(t, input, options.now, &out, err) < 0) {
        goto done;
    }
    if (options.spans) {
        struct json *spans = spans_json(&out);
        fprintf(stderr, "%s\n", json_text(spans, NULL));
        json_destroy(&spans);
    }
    fwrite(out.text, 1, out.len, stdout);
    rc = fflush(stdout) ? err_set_errno(err, ERR_IO, "write the prompt") : 0;
done:
    if (rc < 0 && out.failure == TEMPLATE_RAISED && out.message) {
        fprintf(stderr, "hearth template: %s\n", out.message);
    } else if (rc < 0) {
        fprintf(stderr, "hearth template: %s\n", err->text);
    }
    template_output_clear(&out);
    template_destroy(&t);
    json_destroy(&input);
    free(input_text);
    free(text);
    return rc;
}

/* The model's own template, rendered by its text service. */
static int run_model(struct err *err)
{
    size_t input_len, len;
    struct hearth_error error;
    char *input = whole_read(options.input, FILE_MAX, &input_len, err);
    struct hearth *h = input ? hearth_open(options.run, "template", &error) : NULL;
    struct hearth_text ask = { .model = options.model,
                               .op = HEARTH_RENDER,
                               .now = (uint64_t)options.now,
                               .input = input,
                               .input_len = input_len };
    char *text = h ? hearth_text(h, &ask, &len, &error) : NULL;
    if (input && !text) {
        err_set(err, err_code_of_name(error.code), "%s", error.text);
    }
    int rc = text && fwrite(text, 1, len, stdout) == len && fflush(stdout) == 0 ? 0 : -1;
    if (rc < 0) {
        fprintf(stderr, "hearth template: %s\n",
                text ? "standard output cannot be written" : err->text);
    }
    hearth_close(&h);
    free(text);
    free(input);
    return rc;
}

int main(int argc, char **argv)
{
    if (options_parse(&program, table, argc, argv) > 0) {
        options_fail(&program, "one argument too many: %s", argv[0]);
    }
    if (!options.now_given) {
        options.now = (int64_t)time(NULL);
    }
    if (options.jsonl) {
        return run_lines();
    }
    if (!options.input || (options.file && options.model)) {
        options_fail(&program, "--input INPUT.json is needed, and -m or --file; or --jsonl");
    }
    struct err err = { 0 };
    return (options.file ? run_one(&err) : run_model(&err)) < 0 ? err_exit_code(err.code) : 0;
}
