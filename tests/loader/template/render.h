/* What the tests of the template engine share: render a text with a JSON context, look at what came. */
#pragma once

#include "tests/test.h"

#include "loader/text/template/template.h"

#define RENDER_NOW 1753538709 /* Saturday, 2025-07-26 14:05:09 UTC */

/* Compiles and renders; a compile error counts as a failed render of kind TEMPLATE_COMPILE. The caller clears out. */
static inline int render(const char *text, size_t len, const char *context,
                         struct template_output *out, struct err *err)
{
    *out = (struct template_output){ .text = NULL };
    *err = (struct err){ .code = ERR_NONE };
    struct template *t = template_compile(text, len, err);
    if (!t) {
        out->failure = TEMPLATE_COMPILE;
        return -1;
    }
    struct err json_err;
    struct json *input = context ? json_parse(context, strlen(context), &json_err) : NULL;
    int rc = template_render(t, input, RENDER_NOW, out, err);
    json_destroy(&input);
    template_destroy(&t);
    return rc;
}

/* The template gives this text. */
static inline void expect(const char *text, const char *context, const char *wanted)
{
    struct template_output out;
    struct err err;
    if (render(text, strlen(text), context, &out, &err) < 0) {
        fail_msg("%s: %s", text, err.text);
    }
    assert_string_equal(out.text, wanted);
    template_output_clear(&out);
}

/* The template fails in this way, with one line of text. */
static inline void expect_failure(const char *text, const char *context,
                                  enum template_failure wanted)
{
    struct template_output out;
    struct err err;
    if (render(text, strlen(text), context, &out, &err) == 0) {
        fail_msg("%.200s: rendered \"%.200s\"", text, out.text);
    }
    if (out.failure != wanted) {
        fail_msg("%.200s: failed as %s (%s), not as %s", text, template_failure_name(out.failure),
                 err.text, template_failure_name(wanted));
    }
    assert_int_not_equal(err.code, ERR_NONE);
    assert_true(err.text[0] != '\0' && !strchr(err.text, '\n'));
    template_output_clear(&out);
}
