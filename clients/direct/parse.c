/* hearth parse: model answers from JSON lines -> content, reasoning and tool calls. No service needed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/options.h"
#include "proto/json.h"
#include "proto/parse/parse.h"

static struct {
    const char *format;
    bool jsonl, list;
} options;

static const struct program program = {
    .verb = "parse",
    .synopsis = "--format NAME --jsonl",
    .purpose = "Find content, reasoning and tool calls in model answers.",
    .text = "Each line of stdin is {\"text\":..., \"tools\":[...]}, each line of stdout "
            "{\"content\":..., "
            "\"reasoning_content\":..., \"tool_calls\":[{\"name\":..., \"arguments\":{...}}]}. A "
            "member "
            "\"reasoning_open\":true says that the prompt had opened the reasoning block.",
};

static const struct option table[] = {
    { "format", 0, OPTION_STRING, &options.format, "NAME", "how the model family writes calls",
      NULL },
    { "jsonl", 0, OPTION_FLAG, &options.jsonl, NULL, "JSON lines in and out", NULL },
    { "list", 0, OPTION_FLAG, &options.list, NULL, "print the names of the formats", NULL },
    { 0 },
};

static void print_line(struct json **value)
{
    size_t len;
    const char *text = json_text(*value, &len);
    fwrite(text, 1, len, stdout);
    putchar('\n');
    json_destroy(value);
}

static int run_line(const struct parse_format *format, const char *line, size_t len,
                    struct err *err)
{
    struct json *request = json_parse(line, len, err);
    const struct json *text = json_find(request, "text");
    struct json *answer = NULL;
    if (request && json_kind(text) != JSON_STRING) {
        err_set(err, ERR_BAD_INPUT, "a line without \"text\"");
    } else if (request) {
        size_t n;
        const char *p = json_as_str(text, &n);
        struct parse_options how = { .reasoning_open = json_as_bool(
                                         json_find(request, "reasoning_open")) };
        answer = parse_answer(format, p, n, json_find(request, "tools"), &how, err);
    }
    json_destroy(&request);
    if (!answer) {
        return -1;
    }
    print_line(&answer);
    return 0;
}

int main(int argc, char **argv)
{
    if (options_parse(&program, table, argc, argv) > 0) {
        options_fail(&program, "one argument too many: %s", argv[0]);
    }
    if (options.list) {
        for (size_t i = 0; parse_at(i); i++) {
            puts(parse_name(parse_at(i)));
        }
        return 0;
    }
    if (!options.format || !options.jsonl) {
        options_fail(&program, "--format NAME and --jsonl are needed (--list shows the names)");
    }
    const struct parse_format *format = parse_find(options.format);
    if (!format) {
        options_fail(&program, "no format '%s'; --list shows the names", options.format);
    }
    char *line = NULL;
    size_t cap = 0, n = 0;
    ssize_t len;
    struct err err = { .code = ERR_NONE };
    while (err.code == ERR_NONE && (len = getline(&line, &cap, stdin)) >= 0) {
        n++;
        if (run_line(format, line, (size_t)len, &err) < 0) {
            fprintf(stderr, "hearth parse: line %zu: %s\n", n, err.text);
        }
    }
    free(line);
    if (fflush(stdout) || ferror(stdout)) {
        return 1;
    }
    return err.code == ERR_NONE ? 0 : err_exit_code(err.code);
}
