#include "loader/text/template/template.h"

#include <stdlib.h>
#include <string.h>

#include "loader/text/template/eval.h"
#include "loader/text/template/parser.h"

struct template
{
    struct vm vm; /* owns the nodes */
    struct node *body;
};

static const struct {
    const char *name;
    enum err_code code;
} failures[TEMPLATE_N_FAILURES] = {
    [TEMPLATE_OK] = { "", ERR_NONE },
    [TEMPLATE_RAISED] = { "raise_exception", ERR_TEMPLATE },
    [TEMPLATE_UNDEFINED] = { "undefined", ERR_BAD_INPUT },
    [TEMPLATE_RUNTIME] = { "runtime", ERR_BAD_INPUT },
    [TEMPLATE_MISUSE] = { "template", ERR_BAD_FILE },
    [TEMPLATE_SANDBOX] = { "sandbox", ERR_BAD_FILE },
    [TEMPLATE_COMPILE] = { "compile", ERR_BAD_FILE },
    [TEMPLATE_LIMIT] = { "limit", ERR_BAD_FILE },
};

const char *template_failure_name(enum template_failure failure)
{
    return (unsigned)failure < TEMPLATE_N_FAILURES ? failures[failure].name : "";
}

/* What the vm failed with, as an err. The template's own message stands alone, without a line. */
static void report(const struct vm *vm, struct err *err)
{
    const char *message = vm->message ? vm->message : "no memory";
    if (vm->no_memory || !vm->message) {
        err_set(err, ERR_NO_MEMORY, "template line %d: no memory", vm->line);
    } else if (vm->failure == TEMPLATE_RAISED) {
        err_set(err, ERR_TEMPLATE, "%s", message);
    } else {
        err_set(err, failures[vm->failure].code, "template line %d: %s", vm->line, message);
    }
}

struct template *template_compile(const char *text, size_t len, struct err *err)
{
    struct template *t = calloc(1, sizeof *t);
    if (!t) {
        err_set(err, ERR_NO_MEMORY, "no memory for a template");
        return NULL;
    }
    t->vm.arena.limit = TEMPLATE_CODE_MAX;
    if (setjmp(t->vm.escape)) {
        report(&t->vm, err);
        template_destroy(&t);
        return NULL;
    }
    t->body = parse_template(&t->vm, text, len);
    return t;
}

void template_destroy(struct template **t)
{
    if (t && *t) {
        vm_free(&(*t)->vm);
        free(*t);
        *t = NULL;
    }
}

/* Bytes of all strings and nodes of a context: what its copy will roughly take. */
static size_t json_weight(const struct json *json, int depth)
{
    size_t weight = 64, len;
    if (depth > JSON_DEPTH_MAX) {
        return weight; /* value_of_json refuses it */
    }
    switch (json_kind(json)) {
    case JSON_STRING:
        json_as_str(json, &len);
        return weight + len;
    case JSON_ARRAY:
        for (size_t i = 0; i < json_len(json); i++) {
            weight += json_weight(json_at(json, i), depth + 1);
        }
        return weight;
    case JSON_OBJECT: {
        struct json_walk walk = json_walk_of(json);
        const char *key;
        const struct json *member;
        while (json_walk_next(&walk, &key, &member)) {
            weight += 64 + strlen(key) + json_weight(member, depth + 1);
        }
        return weight;
    }
    default:
        return weight;
    }
}

/* The four token texts speak with the template's voice; all else in the context is the user's. */
static bool is_token_name(const char *key)
{
    static const char *const names[] = { "bos_token", "eos_token", "unk_token", "pad_token" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(key, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

static void load_context(struct vm *vm, const struct json *context)
{
    vm->context = dict_new(vm, VALUE_DICT).dict;
    struct json_walk walk = json_walk_of(context);
    const char *key;
    const struct json *member;
    while (json_walk_next(&walk, &key, &member)) {
        size_t len = strlen(key);
        char *copy = vm_alloc(vm, len + 1);
        memcpy(copy, key, len);
        bool trusted = is_token_name(key) && json_kind(member) == JSON_STRING;
        struct value value = value_of_json(vm, member, trusted, 1);
        dict_put(vm, vm->context, str_value(vm, copy, len, true), value);
    }
    vm->steps = 0; /* the context's size is the caller's matter, the steps are the template's */
}

/* Copies the printed text and its spans out of the arena. */
static int take_output(const struct text *text, struct template_output *out, struct err *err)
{
    out->text = malloc(text->len + 1);
    out->spans = malloc((text->n_parts + 1) * sizeof *out->spans);
    if (!out->text || !out->spans) {
        return err_set(err, ERR_NO_MEMORY, "no memory for a prompt of %zu bytes", text->len);
    }
    if (text->len) {
        memcpy(out->text, text->p, text->len);
    }
    out->text[text->len] = '\0';
    out->len = text->len;
    size_t off = 0;
    for (size_t i = 0; i < text->n_parts; i++) {
        out->spans[out->n_spans++] = (struct template_span){ .off = off,
                                                             .len = text->parts[i].end - off,
                                                             .trusted = text->parts[i].trusted };
        off = text->parts[i].end;
    }
    return 0;
}

/* What a render needs across the jump: on the heap, so that its state is defined after it. */
struct render {
    struct vm vm;
    struct text text;
};

static int render(struct render *r, const struct template *t, const struct json *context,
                  struct template_output *out, struct err *err)
{
    struct vm *vm = &r->vm;
    if (setjmp(vm->escape)) {
        report(vm, err);
        out->failure = vm->failure;
        out->line = vm->line;
        out->message = vm->message;
        vm->message = NULL;
        return -1;
    }
    load_context(vm, context);
    vm->globals = scope_new(vm, NULL);
    text_init(&r->text, vm, 0);
    vm->out = &r->text;
    exec(vm, t->body, vm->globals);
    return take_output(&r->text, out, err);
}

int template_render(const struct template *t, const struct json *context, int64_t now_epoch,
                    struct template_output *out, struct err *err)
{
    *out = (struct template_output){ .text = NULL };
    if (context && json_kind(context) != JSON_OBJECT) {
        return err_set(err, ERR_BAD_INPUT, "a template's context must be a JSON object");
    }
    struct render *r = calloc(1, sizeof *r);
    if (!r) {
        return err_set(err, ERR_NO_MEMORY, "no memory to render a template");
    }
    r->vm.now = now_epoch;
    r->vm.arena.limit = TEMPLATE_MEMORY_MAX + json_weight(context, 0) * TEMPLATE_MEMORY_PER_INPUT;
    int rc = render(r, t, context, out, err);
    vm_free(&r->vm);
    free(r);
    return rc;
}

void template_output_clear(struct template_output *out)
{
    free(out->text);
    free(out->spans);
    free(out->message);
    *out = (struct template_output){ .text = NULL };
}
