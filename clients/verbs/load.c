/* hearth load: loads models and waits until they are there. */
#include "clients/verbs/bar.h"

static const struct program program = {
    "load",
    "[OPTIONS] MODEL...",
    "Loads models and waits until they are on the device.",
    NULL,
};

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    bool pin = false;
    const struct option table[] = {
        { "pin", 0, OPTION_FLAG, &pin, NULL, "keep it until it is unloaded", NULL },
        VERB_OPTIONS(v),
    };
    int n = options_parse(&program, table, argc, argv), code = 0;
    if (n == 0) {
        options_fail(&program, "which model? hearth models lists them");
    }
    verb_open(&v);
    for (int i = 0; i < n; i++) {
        struct hearth_error error;
        struct bar bar = bar_open(&v, argv[i]);
        enum hearth_result got = HEARTH_FAILED;
        if (hearth_load_begin(v.h, argv[i], pin, &error) == 0) {
            while ((got = hearth_load_next(v.h, bar_wait_ms(&bar), &error)) == HEARTH_TIMEOUT) {
                bar_draw(&bar);
            }
        }
        bar_close(&bar);
        if (got != HEARTH_TOKEN) {
            fprintf(stderr, "hearth load: %s\n", error.text);
            code = error.exit_code;
        } else {
            verb_say_done(&v, "model", argv[i], "loaded");
        }
    }
    return verb_close(&v, code);
}
