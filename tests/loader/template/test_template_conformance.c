/* Goal: every case of the reference renders as it does there: texts equal, what fails fails, and a template's own message is
 * the same. conformance/templates/README.md has the file format. */
#include "tests/loader/template/render.h"

/* The whole of a file, malloc'ed; NULL when it cannot be read. */
static char *read_file(const char *dir, const char *name, size_t *len)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/templates/%s", dir, name);
    FILE *f = fopen(path, "rb");
    if (!f) {
        return NULL;
    }
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    rewind(f);
    char *text = malloc((size_t)size + 1);
    *len = fread(text, 1, (size_t)size, f);
    text[*len] = '\0';
    fclose(f);
    return text;
}

static const char *str_of(const struct json *row, const char *key)
{
    const struct json *value = json_find(row, key);
    return json_kind(value) == JSON_STRING ? json_as_str(value, NULL) : NULL;
}

/* What the row wants: the text with `safe` as identity and mutable lists first (README). */
static const char *wanted_text(const struct json *row)
{
    static const char *const keys[] = { "expected_plain", "expected_relaxed", "expected" };
    for (size_t i = 0; i < 3; i++) {
        const char *text = str_of(row, keys[i]);
        if (text) {
            return text;
        }
    }
    return NULL;
}

static bool row_holds(const struct json *row, const struct template *t,
                      const struct err *compile_err)
{
    struct template_output out = { .text = NULL };
    struct err err = *compile_err;
    int rc = t ? template_render(t, json_find(row, "input"), RENDER_NOW, &out, &err) : -1;
    const char *wanted = wanted_text(row);
    const struct json *error = json_find(row, "error");
    const char *kind = str_of(error, "kind"), *message = str_of(error, "message");
    bool holds;
    if (wanted) {
        holds = rc == 0 && strcmp(out.text, wanted) == 0;
    } else if (kind && strcmp(kind, "raise_exception") == 0) {
        holds = rc < 0 && out.failure == TEMPLATE_RAISED && strcmp(out.message, message) == 0;
    } else {
        holds = rc < 0 && out.failure != TEMPLATE_LIMIT;
    }
    if (!holds) {
        const char *name = str_of(row, "name");
        print_error("%s %s: got %s\n", name ? name : str_of(row, "template"),
                    name ? "" : str_of(row, "scenario"), rc == 0 ? out.text : err.text);
    }
    template_output_clear(&out);
    return holds;
}

/* The file's rows; a template file is compiled once for all rows that follow each other. */
static void run_rows(const char *dir, const char *name, size_t n_wanted)
{
    size_t len, n = 0, n_bad = 0;
    char *text = read_file(dir, name, &len), *save = NULL;
    struct template *t = NULL;
    struct err err = { .code = ERR_NONE };
    char last[256] = "";
    assert_non_null(text);
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        struct err json_err;
        struct json *row = json_parse(line, strlen(line), &json_err);
        assert_non_null(row);
        const char *file = str_of(row, "template"), *source = str_of(row, "template_text");
        if (source || strcmp(file, last) != 0) {
            size_t source_len = source ? strlen(source) : 0;
            char *owned = source ? NULL : read_file(dir, file, &source_len);
            template_destroy(&t);
            t = template_compile(source ? source : owned, source_len, &err);
            snprintf(last, sizeof last, "%s", file ? file : "");
            free(owned);
        }
        n++;
        n_bad += !row_holds(row, t, &err);
        json_destroy(&row);
    }
    template_destroy(&t);
    free(text);
    assert_int_equal(n_bad, 0);
    assert_true(n >= n_wanted);
}

static void template_renders_the_reference_cases(void **state)
{
    (void)state;
    const char *dir = test_conformance();
    if (!dir) {
        skip();
    }
    run_rows(dir, "cases.jsonl", 3292);
}

static void template_renders_the_micro_cases(void **state)
{
    (void)state;
    const char *dir = test_conformance();
    if (!dir) {
        skip();
    }
    run_rows(dir, "micro.jsonl", 361);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(template_renders_the_reference_cases),
        cmocka_unit_test(template_renders_the_micro_cases),
    };
    setenv("TZ", "UTC", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
