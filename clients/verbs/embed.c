/* hearth embed: the embedding of a text, from an embedding model or any other. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clients/verbs/verb.h"
#include "proto/json.h"

static const struct program program = {
    "embed",
    "[OPTIONS] TEXT",
    "Prints the embedding of a text, as a unit vector.",
    "Piped input comes before the text. Without --pooling it is the model's own way, or the "
    "mean over the tokens where it names none. The numbers stand one a line, or with --json in one "
    "object.",
};

static const struct {
    const char *name;
    enum hearth_eval_kind kind;
} poolings[] = { { "mean", HEARTH_EMBED_MEAN },
                 { "cls", HEARTH_EMBED_CLS },
                 { "last", HEARTH_EMBED_LAST } };

static void print_vector(struct verb *v, const float *x, uint64_t n, bool raw, size_t n_tokens)
{
    double sum = 0;
    for (uint64_t i = 0; i < n; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    double scale = raw || sum == 0 ? 1 : 1 / sqrt(sum);
    if (!v->json) {
        for (uint64_t i = 0; i < n; i++) {
            printf("%.8g\n", (double)x[i] * scale);
        }
        return;
    }
    struct json *o = json_new_object(), *list = json_new_array(), *usage = json_new_object();
    for (uint64_t i = 0; i < n; i++) {
        json_push(list, json_new_double((double)(float)((double)x[i] * scale)));
    }
    json_set(o, "embedding", list);
    json_set(usage, "prompt_tokens", json_new_int((int64_t)n_tokens));
    json_set(o, "usage", usage);
    printf("%s\n", json_text(o, NULL));
    json_destroy(&o);
}

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    struct hearth_text text = { .op = HEARTH_TOKENIZE, .add_special = true };
    struct hearth_evaluation ask = { .kind = HEARTH_EMBED };
    const char *pooling = NULL;
    bool raw = false;
    const struct option table[] = {
        { "model", 'm', OPTION_STRING, &ask.model, "MODEL", "whose embedding", NULL },
        { "pooling", 0, OPTION_STRING, &pooling, "HOW", "mean, cls or last", NULL },
        { "raw", 0, OPTION_FLAG, &raw, NULL, "do not scale to length 1", NULL },
        VERB_OPTIONS(v),
    };
    int n = options_parse(&program, table, argc, argv);
    bool known = !pooling;
    for (size_t i = 0; i < sizeof poolings / sizeof poolings[0]; i++) {
        if (pooling && strcmp(pooling, poolings[i].name) == 0) {
            ask.kind = poolings[i].kind;
            known = true;
        }
    }
    if (!known) {
        options_fail(&program, "--pooling wants mean, cls or last, not '%s'", pooling);
    }
    char *input = verb_prompt(&v, n, argv, &text.input_len);
    text.input = input;
    text.model = ask.model;
    verb_open(&v);
    struct hearth_error error;
    struct hearth_matrix m;
    size_t ids_len;
    int32_t *ids = hearth_text(v.h, &text, &ids_len, &error);
    if (!ids) {
        verb_fail(&v, &error);
    }
    ask.ids = ids;
    ask.n_ids = ids_len / sizeof *ids;
    if (hearth_evaluate(v.h, &ask, &m, &error) < 0) {
        verb_fail(&v, &error);
    }
    print_vector(&v, m.data, m.n_cols, raw, ask.n_ids);
    hearth_matrix_free(&m);
    free(ids);
    free(input);
    return verb_close(&v, 0);
}
