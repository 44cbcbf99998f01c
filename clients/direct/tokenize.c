/* hearth tokenize: text on standard input, token ids on standard output. */
#include <inttypes.h>
#include <stdlib.h>

#include "clients/direct/text_program.h"

static struct text_program p;
static bool add_special, parse_special, pieces;

static const struct program program = {
    .verb = "tokenize",
    .synopsis = "[-m MODEL | --file FILE.gguf] [OPTIONS] < TEXT",
    .purpose = "show the token ids of a text",
    .text = "The ids are a JSON array; with --pieces, of {\"id\":N,\"bytes_b64\":\"...\"}. With "
            "--jsonl each line of input is an object with \"text\" or \"text_b64\", and perhaps "
            "\"add_special\" and \"parse_special\"; each line of output is one array.\n\n"
            "--file needs no service and reads only the vocabulary: any architecture will do, and "
            "tensors may be missing. --pre reference/NAME cuts words as the reference "
            "implementation does where it differs from the model's own tokenizer.",
};

static int put_ids(struct vocabulary *v, const int32_t *ids, size_t n, struct err *err)
{
    putchar('[');
    for (size_t i = 0; i < n; i++) {
        if (i) {
            putchar(',');
        }
        if (!pieces) {
            printf("%" PRId32, ids[i]);
            continue;
        }
        const char *bytes;
        size_t len;
        if (v->ops->piece(v, ids[i], &bytes, &len, err) < 0) {
            return -1;
        }
        printf("{\"id\":%" PRId32 ",\"bytes_b64\":\"", ids[i]);
        put_base64(stdout, bytes, len);
        fputs("\"}", stdout);
    }
    putchar(']');
    return 0;
}

static int encode(struct vocabulary *v, const char *text, size_t len, bool add, bool parse,
                  struct err *err)
{
    const int32_t *ids;
    size_t n;
    unsigned flags = (add ? VOCABULARY_ADD_SPECIAL : 0) | (parse ? VOCABULARY_PARSE_SPECIAL : 0);
    if (v->ops->encode(v, text, len, flags, &ids, &n, err) < 0) {
        return -1;
    }
    return put_ids(v, ids, n, err);
}

static int answer(struct vocabulary *v, const char *input, size_t len, struct err *err)
{
    return encode(v, input, len, add_special, parse_special, err);
}

static int answer_line(struct vocabulary *v, const struct json *line, struct err *err)
{
    size_t len;
    char *text = text_of_line(line, &len, err);
    if (!text) {
        return -1;
    }
    int result = encode(v, text, len, flag_of_line(line, "add_special", add_special),
                        flag_of_line(line, "parse_special", parse_special), err);
    free(text);
    return result;
}

int main(int argc, char **argv)
{
    const struct option table[] = {
        { "model", 'm', OPTION_STRING, &p.model, "MODEL", "of the running service", NULL },
        { "run", 0, OPTION_STRING, &p.run, "DIR", "the service's runtime directory", NULL },
        { "file", 0, OPTION_STRING, &p.file, "FILE", "vocabulary of a GGUF file", NULL },
        { "pre", 0, OPTION_STRING, &p.pre, "NAME", "replaces tokenizer.ggml.pre", NULL },
        { "add-special", 0, OPTION_FLAG, &add_special, NULL, "put BOS, EOS as the model wants",
          NULL },
        { "parse-special", 0, OPTION_FLAG, &parse_special, NULL,
          "control tokens in the text become ids", NULL },
        { "pieces", 0, OPTION_FLAG, &pieces, NULL, "show the bytes of each token", NULL },
        { "jsonl", 0, OPTION_FLAG, &p.jsonl, NULL, "one request a line", NULL },
        { 0 },
    };
    int n = options_parse(&program, table, argc, argv);
    if (n != 0) {
        options_fail(&program, "\"%s\": the text comes on standard input", argv[0]);
    }
    p.program = &program;
    p.answer = answer;
    p.answer_line = answer_line;
    return text_program_run(&p);
}
