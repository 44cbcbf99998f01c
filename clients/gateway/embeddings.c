/* POST /v1/embeddings: each input a unit vector, as floats or as base64 of little-endian floats. Many inputs are asked for in
 * pieces, so that other keys' have their turns in between. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clients/gateway/fields.h"
#include "clients/gateway/openai.h"
#include "clients/gateway/server.h"
#include "clients/gateway/text.h"
#include "clients/hearth.h"
#include "proto/base64.h"

#define INPUTS_MAX   2048 /* OpenAI's own bound */
#define PIECE_TOKENS 4096 /* asked for at once, at least one input: a second or less on a CPU */

struct raw {
    const char *model, *encoding, *pooling;
    const struct json *input;
    struct field_int dimensions;
};

#define AT(member) offsetof(struct raw, member)

static const struct field fields[] = {
    { "model", FIELD_STRING, AT(model), 0, 0, NULL },
    { "input", FIELD_ANY, AT(input), 0, 0, NULL },
    { "encoding_format", FIELD_STRING, AT(encoding), 0, 0, NULL },
    { "dimensions", FIELD_INT, AT(dimensions), 1, 1 << 20, NULL },
    { "pooling", FIELD_STRING, AT(pooling), 0, 0, NULL }, /* ours: mean, cls, last */
    { "user", FIELD_IGNORED, 0, 0, 0, NULL },
    { 0 },
};

static const struct {
    const char *name;
    enum hearth_eval_kind kind;
} poolings[] = {
    { "mean", HEARTH_EMBED_MEAN },
    { "cls", HEARTH_EMBED_CLS },
    { "last", HEARTH_EMBED_LAST },
};

#define N_POOLINGS (sizeof poolings / sizeof poolings[0])

/* All inputs' ids, one after another. */
struct inputs {
    int32_t *ids;
    size_t n_ids;
    uint32_t *lens;
    size_t n;
};

static int add_input(struct inputs *in, struct hearth *h, const char *model,
                     const struct json *value, struct problem *p)
{
    struct hearth_text ask = { .model = model, .op = HEARTH_TOKENIZE, .add_special = true };
    struct hearth_error error;
    size_t len;
    ask.input = json_as_str(value, &ask.input_len);
    int32_t *ids = hearth_text(h, &ask, &len, &error);
    if (!ids) {
        return problem_of_error(p, &error);
    }
    size_t n = len / sizeof *ids;
    int32_t *larger = n ? realloc(in->ids, (in->n_ids + n) * sizeof *ids) : NULL;
    if (larger) {
        memcpy(larger + in->n_ids, ids, n * sizeof *ids);
        in->ids = larger;
        in->n_ids += n;
        in->lens[in->n++] = (uint32_t)n;
    }
    free(ids);
    return larger
               ? 0
               : problem_set(p, 400, "input", "invalid_value", "an input without a single token");
}

static int read_inputs(struct inputs *in, struct hearth *h, const struct raw *raw,
                       struct problem *p)
{
    bool list = json_kind(raw->input) == JSON_ARRAY;
    size_t n = list ? json_len(raw->input) : raw->input ? 1 : 0;
    if (n == 0 || n > INPUTS_MAX) {
        return problem_set(p, 400, "input", "invalid_value",
                           "'input' is a string or an array of 1 to %d strings", INPUTS_MAX);
    }
    in->lens = calloc(n, sizeof *in->lens);
    for (size_t i = 0; in->lens && i < n; i++) {
        const struct json *one = list ? json_at(raw->input, i) : raw->input;
        if (json_kind(one) != JSON_STRING) {
            /* Ids of another vocabulary would give wrong vectors without a word. */
            return problem_set(p, 400, "input", "unsupported_parameter",
                               "'input' must be text, not token ids; LangChain: "
                               "check_embedding_ctx_length=False");
        }
        if (add_input(in, h, raw->model, one, p) < 0) {
            return -1;
        }
    }
    return in->lens ? 0 : problem_set(p, 500, NULL, NULL, "no memory for %zu inputs", n);
}

/* The first n_dims values, scaled to length 1. */
static struct json *vector_json(const float *from, size_t n_dims, bool base64)
{
    double sum = 0;
    float *unit = malloc(n_dims * sizeof *unit);
    struct json *value = NULL;
    for (size_t i = 0; i < n_dims; i++) {
        sum += (double)from[i] * (double)from[i];
    }
    double scale = sum > 0 ? 1 / sqrt(sum) : 1;
    for (size_t i = 0; unit && i < n_dims; i++) {
        unit[i] = (float)((double)from[i] * scale);
    }
    if (base64) {
        char *text = unit ? base64_encode(unit, n_dims * sizeof *unit) : NULL;
        value = json_new_str(text ? text : "", text ? strlen(text) : 0);
        free(text);
    } else {
        value = json_new_array();
        for (size_t i = 0; unit && i < n_dims; i++) {
            json_push(value, json_new_double((double)unit[i]));
        }
    }
    free(unit);
    return value;
}

/* ---- the answer ---- */

/* So many inputs from the first one on are asked for together. */
static size_t piece_of(const struct inputs *in, size_t first, size_t *n_ids)
{
    size_t n = 0;
    *n_ids = 0;
    while (first + n < in->n && (n == 0 || *n_ids + in->lens[first + n] <= PIECE_TOKENS)) {
        *n_ids += in->lens[first + n++];
    }
    return n;
}

/* The vectors of a piece, whose first input has the number `first`, into data. */
static int add_vectors(struct json *data, const struct raw *raw, const struct hearth_matrix *m,
                       size_t first, struct problem *p)
{
    bool base64 = raw->encoding && strcmp(raw->encoding, "base64") == 0;
    size_t n_dims = raw->dimensions.given ? (size_t)raw->dimensions.value : m->n_cols;
    if (n_dims > m->n_cols) {
        return problem_set(p, 400, "dimensions", "invalid_value",
                           "'dimensions' is %zu, the model has %llu", n_dims,
                           (unsigned long long)m->n_cols);
    }
    for (size_t i = 0; i < m->n_rows; i++) {
        struct json *one = json_new_object();
        json_set(one, "object", json_new_str("embedding", 9));
        json_set(one, "index", json_new_int((int64_t)(first + i)));
        json_set(one, "embedding", vector_json(m->data + i * m->n_cols, n_dims, base64));
        json_push(data, one);
    }
    return 0;
}

static int evaluate(struct exchange *x, struct hearth *h, const struct raw *raw,
                    const struct inputs *in, enum hearth_eval_kind kind, struct json *data,
                    struct problem *p)
{
    struct hearth_evaluation ask = {
        .model = raw->model, .kind = kind, .ids = in->ids, .flow = exchange_flow(x)
    };
    int result = 0;
    for (size_t first = 0; first < in->n && result == 0; first += ask.n_lens) {
        struct hearth_matrix m;
        struct hearth_error error;
        ask.lens = in->lens + first;
        ask.n_lens = piece_of(in, first, &ask.n_ids);
        if (exchange_left(x)) {
            return problem_set(p, 499, NULL, NULL, "the client left");
        }
        if (hearth_evaluate(h, &ask, &m, &error) < 0) {
            return problem_of_error(p, &error);
        }
        exchange_spend(x, (uint32_t)ask.n_ids);
        result = add_vectors(data, raw, &m, first, p);
        hearth_matrix_free(&m);
        ask.ids += ask.n_ids;
    }
    return result;
}

/* Takes data. */
static struct json *answer_json(const struct raw *raw, const struct inputs *in, struct json *data)
{
    struct json *o = json_new_object(), *usage = json_new_object();
    json_set(o, "object", json_new_str("list", 4));
    json_set(o, "data", data);
    json_set(o, "model",
             raw->model ? text_json(raw->model, strlen(raw->model)) : json_new_str("default", 7));
    json_set(usage, "prompt_tokens", json_new_int((int64_t)in->n_ids));
    json_set(usage, "total_tokens", json_new_int((int64_t)in->n_ids));
    json_set(o, "usage", usage);
    return o;
}

static int embed(struct exchange *x, struct hearth *h, const struct raw *raw, struct inputs *in,
                 struct problem *p)
{
    size_t row = 0;
    while (row < N_POOLINGS && raw->pooling && strcmp(poolings[row].name, raw->pooling) != 0) {
        row++;
    }
    if (row == N_POOLINGS) {
        return problem_set(p, 400, "pooling", "invalid_value", "'pooling' is mean, cls or last");
    }
    if (raw->encoding && strcmp(raw->encoding, "base64") != 0 &&
        strcmp(raw->encoding, "float") != 0) {
        return problem_set(p, 400, "encoding_format", "invalid_value",
                           "'encoding_format' is float or base64");
    }
    if (read_inputs(in, h, raw, p) < 0) {
        return -1;
    }
    struct json *data = json_new_array();
    if (evaluate(x, h, raw, in, raw->pooling ? poolings[row].kind : HEARTH_EMBED, data, p) < 0) {
        json_destroy(&data);
        return -1;
    }
    exchange_reply_json(x, 200, answer_json(raw, in, data));
    return 0;
}

void openai_embeddings(struct exchange *x, struct hearth *h)
{
    struct problem problem;
    struct raw raw = { 0 };
    struct inputs in = { 0 };
    struct json *body = fields_body(x, &problem);
    if (!body || fields_read(fields, body, &raw, x, &problem) < 0 ||
        embed(x, h, &raw, &in, &problem) < 0) {
        problem_reply(x, &problem);
    }
    free(in.ids);
    free(in.lens);
    json_destroy(&body);
}
