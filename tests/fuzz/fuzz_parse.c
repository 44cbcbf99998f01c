/* Fuzz target: a model's answer. The first byte chooses the format and whether the prompt opened the
 * reasoning; the rest is the text (it reaches the parser as UTF-8 only by luck, and must not matter). */
#include <stdlib.h>

#include "loader/text/parse/parse.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char tools_text[] = "[{\"function\":{\"name\":\"f\",\"parameters\":{"
                                     "\"properties\":{\"s\":{\"type\":\"string\"},"
                                     "\"b\":{\"type\":\"boolean\"},\"n\":{\"type\":\"integer\"}}}}}"
                                     ",{\"function\":{\"name\":\"python\"}}]";
    struct err err;
    size_t n_formats = 0;
    if (size == 0) {
        return 0;
    }
    while (parse_at(n_formats)) {
        n_formats++;
    }
    struct json *tools = json_parse(tools_text, sizeof tools_text - 1, &err);
    const struct parse_options options = { .reasoning_open = data[0] & 0x80 };
    struct json *answer = parse_answer(parse_at((data[0] & 0x7f) % n_formats),
                                       (const char *)data + 1, size - 1, tools, &options, &err);
    if (!answer) {
        abort();
    }
    json_destroy(&answer);
    json_destroy(&tools);
    return 0;
}
