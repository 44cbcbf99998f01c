/* Fuzz target: a chat template and its context. Input: template text, a NUL, then JSON (or none: a small
 * conversation). Whatever comes, compile and render end within their bounds with text or one error. */
#include <stdlib.h>
#include <string.h>

#include "loader/text/template/template.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char plain[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"a<b>\\u00e9\"},{"
                                "\"role\":\"assistant\",\"content\":null,"
                                "\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{"
                                "\"n\":1.5,\"items\":[1,true]}}}]}],\"tools\":null,"
                                "\"bos_token\":\"<s>\",\"add_generation_prompt\":true}";
    const uint8_t *cut = size ? memchr(data, 0, size) : NULL;
    size_t len = cut ? (size_t)(cut - data) : size;
    struct err err;
    struct template *t = template_compile((const char *)data, len, &err);
    if (!t) {
        return 0;
    }
    struct json *context = cut ? json_parse((const char *)cut + 1, size - len - 1, &err)
                               : json_parse(plain, sizeof plain - 1, &err);
    struct template_output out;
    if (template_render(t, context, 1753538709, &out, &err) == 0) {
        size_t off = 0;
        for (size_t i = 0; i < out.n_spans; i++) {
            if (out.spans[i].off != off || out.spans[i].len == 0) {
                abort();
            }
            off += out.spans[i].len;
        }
        if (off != out.len) {
            abort();
        }
    }
    template_output_clear(&out);
    json_destroy(&context);
    template_destroy(&t);
    return 0;
}
