/* The running service's vocabulary, through libhearth. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/direct/vocabulary.h"
#include "clients/hearth.h"

struct service_vocabulary {
    struct vocabulary base;
    struct hearth *h;
    char *model; /* NULL: the default */
    void *last;  /* the last answer, owned: results are borrowed until the next call */
};

static struct service_vocabulary *of(struct vocabulary *v)
{
    return (struct service_vocabulary *)v;
}

/* Asks; the answer replaces the last one. */
static int ask(struct vocabulary *v, struct hearth_text *text, size_t *len, struct err *err)
{
    struct service_vocabulary *s = of(v);
    struct hearth_error error;
    free(s->last);
    text->model = s->model;
    s->last = hearth_text(s->h, text, len, &error);
    if (!s->last) {
        return err_set(err, err_code_of_name(error.code), "%s", error.text);
    }
    return 0;
}

static int encode(struct vocabulary *v, const char *text, size_t len, unsigned flags,
                  const int32_t **ids, size_t *n, struct err *err)
{
    struct hearth_text t = { .op = HEARTH_TOKENIZE,
                             .input = text,
                             .input_len = len,
                             .add_special = flags & VOCABULARY_ADD_SPECIAL,
                             .parse_special = flags & VOCABULARY_PARSE_SPECIAL };
    size_t bytes;
    if (ask(v, &t, &bytes, err) < 0) {
        return -1;
    }
    *ids = of(v)->last;
    *n = bytes / sizeof **ids;
    return 0;
}

static int decode(struct vocabulary *v, const int32_t *ids, size_t n, unsigned flags,
                  const char **text, size_t *len, struct err *err)
{
    struct hearth_text t = { .op = HEARTH_DETOKENIZE,
                             .input = ids,
                             .input_len = n * sizeof *ids,
                             .remove_special = flags & VOCABULARY_REMOVE_SPECIAL,
                             .unparse_special = flags & VOCABULARY_UNPARSE_SPECIAL };
    if (ask(v, &t, len, err) < 0) {
        return -1;
    }
    *text = of(v)->last;
    return 0;
}

static int piece(struct vocabulary *v, int32_t id, const char **bytes, size_t *len, struct err *err)
{
    struct hearth_text t = { .op = HEARTH_PIECES, .input = &id, .input_len = sizeof id };
    size_t answer_len;
    if (ask(v, &t, &answer_len, err) < 0) {
        return -1;
    }
    if (answer_len < sizeof(uint32_t)) {
        return err_set(err, ERR_BAD_INPUT, "the service's answer is too short");
    }
    *bytes = (const char *)of(v)->last + sizeof(uint32_t);
    *len = answer_len - sizeof(uint32_t);
    return 0;
}

static void close_service(struct vocabulary *v)
{
    struct service_vocabulary *s = of(v);
    hearth_close(&s->h);
    free(s->last);
    free(s->model);
    free(s);
}

static const struct vocabulary_ops ops = { encode, decode, piece, close_service };

struct vocabulary *vocabulary_open_model(const char *run, const char *model, struct err *err)
{
    struct service_vocabulary *s = calloc(1, sizeof *s);
    struct hearth_error error;
    if (!s) {
        err_set(err, ERR_NO_MEMORY, "no memory for a connection");
        return NULL;
    }
    s->base.ops = &ops;
    s->model = model ? strdup(model) : NULL;
    s->h = hearth_open(run, "tokenize", &error);
    if (!s->h) {
        err_set(err, err_code_of_name(error.code), "%s", error.text);
        close_service(&s->base);
        return NULL;
    }
    return &s->base;
}
