#include "clients/direct/text_program.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clients/whole.h"
#include "proto/base64.h"
#include "proto/utf8.h"

/* ---- JSON ---- */

char *text_of_line(const struct json *line, size_t *len, struct err *err)
{
    const struct json *text = json_find(line, "text"), *coded = json_find(line, "text_b64");
    char *out = NULL;
    if (json_kind(text) == JSON_STRING) {
        const char *bytes = json_as_str(text, len);
        out = malloc(*len + 1);
        if (out) {
            memcpy(out, bytes, *len);
        }
    } else if (json_kind(coded) == JSON_STRING) {
        size_t coded_len;
        const char *bytes = json_as_str(coded, &coded_len);
        out = (char *)base64_decode(bytes, coded_len, len);
    }
    if (!out) {
        err_set(err, ERR_BAD_INPUT, "neither \"text\" nor base64 in \"text_b64\"");
    }
    return out;
}

bool flag_of_line(const struct json *line, const char *key, bool otherwise)
{
    const struct json *value = json_find(line, key);
    return value ? json_as_bool(value) : otherwise;
}

void put_base64(FILE *out, const char *bytes, size_t len)
{
    char *text = base64_encode(bytes, len);
    assert(text); /* a third longer than what is in memory already */
    fputs(text, out);
    free(text);
}

void put_text_object(FILE *out, const char *bytes, size_t len)
{
    if (len == 0 || (utf8_valid(bytes, len) && !memchr(bytes, 0, len))) {
        struct json *text = json_new_str(bytes, len);
        fprintf(out, "{\"text\":%s}", json_text(text, NULL));
        json_destroy(&text);
    } else {
        fputs("{\"text_b64\":\"", out);
        put_base64(out, bytes, len);
        fputs("\"}", out);
    }
}

/* ---- the run ---- */

static int run_whole(const struct text_program *p, struct vocabulary *v, struct err *err)
{
    size_t len;
    char *input = whole_read("-", TEXT_PROGRAM_INPUT_MAX, &len, err);
    if (!input) {
        return -1;
    }
    int result = p->answer(v, input, len, err);
    free(input);
    if (result == 0 && isatty(STDOUT_FILENO)) {
        putchar('\n');
    }
    return result;
}

static int run_line(const struct text_program *p, struct vocabulary *v, const char *text,
                    size_t len, struct err *err)
{
    struct json *line = json_parse(text, len, err);
    if (!line) {
        return -1;
    }
    int result = json_kind(line) == JSON_OBJECT ? p->answer_line(v, line, err)
                                                : err_set(err, ERR_BAD_INPUT, "not a JSON object");
    json_destroy(&line);
    if (result < 0) {
        return -1;
    }
    putchar('\n');
    fflush(stdout); /* a program may wait for this line before it writes the next */
    return 0;
}

static int run_lines(const struct text_program *p, struct vocabulary *v, struct err *err)
{
    char *text = NULL;
    size_t cap = 0, number = 0;
    ssize_t len;
    int result = 0;
    while (result == 0 && (len = getline(&text, &cap, stdin)) > 0) {
        number++;
        if (text[strspn(text, " \t\r\n")]) {
            result = run_line(p, v, text, (size_t)len, err);
        }
    }
    free(text);
    return result < 0 ? err_wrap(err, "line %zu", number) : 0;
}

static int run(const struct text_program *p, struct err *err)
{
    struct vocabulary *v = p->file ? vocabulary_open_file(p->file, p->pre, err)
                                   : vocabulary_open_model(p->run, p->model, err);
    if (!v) {
        return -1;
    }
    int result = p->jsonl ? run_lines(p, v, err) : run_whole(p, v, err);
    if (fflush(stdout) != 0 && result == 0) {
        result = err_set_errno(err, ERR_IO, "write");
    }
    vocabulary_close(&v);
    return result;
}

int text_program_run(const struct text_program *p)
{
    if (p->file && p->model) {
        options_fail(p->program, "either -m MODEL or --file FILE.gguf, not both");
    }
    if (p->pre && !p->file) {
        options_fail(p->program, "--pre goes with --file: a running service keeps to the model's");
    }
    struct err err = { 0 };
    if (run(p, &err) < 0) {
        fprintf(stderr, "hearth %s: %s\n", p->program->verb, err.text);
        return err_exit_code(err.code);
    }
    return 0;
}
