/* hearth detokenize: token ids on standard input, their text on standard output. */
#include <stdlib.h>

#include "clients/direct/text_program.h"

static struct text_program p;
static bool remove_special, unparse_special;

static const struct program program = {
    .verb = "detokenize",
    .synopsis = "[-m MODEL | --file FILE.gguf] [OPTIONS] < IDS",
    .purpose = "show the text of token ids",
    .text = "The ids are a JSON array. With --jsonl each line of input is an object with \"ids\", "
            "and perhaps \"remove_special\" and \"unparse_special\"; each line of output is "
            "{\"text\":...}, or {\"text_b64\":...} where the bytes are no UTF-8 or hold a NUL.",
};

/* Ids of a JSON array, malloc'd. NULL: ERR_BAD_INPUT. */
static int32_t *read_ids(const struct json *array, size_t *n, struct err *err)
{
    if (json_kind(array) != JSON_ARRAY) {
        err_set(err, ERR_BAD_INPUT, "no JSON array of ids");
        return NULL;
    }
    *n = json_len(array);
    int32_t *ids = malloc((*n + 1) * sizeof *ids);
    if (!ids) {
        err_set(err, ERR_NO_MEMORY, "%zu ids", *n);
        return NULL;
    }
    for (size_t i = 0; i < *n; i++) {
        const struct json *id = json_at(array, i);
        int64_t value = json_as_int(id);
        if (json_kind(id) != JSON_INT || value < INT32_MIN || value > INT32_MAX) {
            err_set(err, ERR_BAD_INPUT, "id %zu is no token id", i);
            free(ids);
            return NULL;
        }
        ids[i] = (int32_t)value;
    }
    return ids;
}

static int decode(struct vocabulary *v, const struct json *array, bool remove, bool unparse,
                  const char **text, size_t *len, struct err *err)
{
    size_t n;
    int32_t *ids = read_ids(array, &n, err);
    if (!ids) {
        return -1;
    }
    unsigned flags = (remove ? VOCABULARY_REMOVE_SPECIAL : 0) |
                     (unparse ? VOCABULARY_UNPARSE_SPECIAL : 0);
    int result = v->ops->decode(v, ids, n, flags, text, len, err);
    free(ids);
    return result;
}

static int answer(struct vocabulary *v, const char *input, size_t len, struct err *err)
{
    const char *text;
    size_t text_len;
    struct json *array = json_parse(input, len, err);
    if (!array) {
        return -1;
    }
    int result = decode(v, array, remove_special, unparse_special, &text, &text_len, err);
    if (result == 0) {
        fwrite(text, 1, text_len, stdout);
    }
    json_destroy(&array);
    return result;
}

static int answer_line(struct vocabulary *v, const struct json *line, struct err *err)
{
    const char *text;
    size_t len;
    if (decode(v, json_find(line, "ids"), flag_of_line(line, "remove_special", remove_special),
               flag_of_line(line, "unparse_special", unparse_special), &text, &len, err) < 0) {
        return -1;
    }
    put_text_object(stdout, text, len);
    return 0;
}

int main(int argc, char **argv)
{
    const struct option table[] = {
        { "model", 'm', OPTION_STRING, &p.model, "MODEL", "of the running service", NULL },
        { "run", 0, OPTION_STRING, &p.run, "DIR", "the service's runtime directory", NULL },
        { "file", 0, OPTION_STRING, &p.file, "FILE", "vocabulary of a GGUF file", NULL },
        { "pre", 0, OPTION_STRING, &p.pre, "NAME", "replaces tokenizer.ggml.pre", NULL },
        { "remove-special", 0, OPTION_FLAG, &remove_special, NULL,
          "drop a BOS and EOS that the model adds itself", NULL },
        { "unparse-special", 0, OPTION_FLAG, &unparse_special, NULL,
          "print control tokens as their texts", NULL },
        { "jsonl", 0, OPTION_FLAG, &p.jsonl, NULL, "one request a line", NULL },
        { 0 },
    };
    int n = options_parse(&program, table, argc, argv);
    if (n != 0) {
        options_fail(&program, "\"%s\": the ids come on standard input", argv[0]);
    }
    p.program = &program;
    p.answer = answer;
    p.answer_line = answer_line;
    return text_program_run(&p);
}
