/* hearth unload: lets models go; their unfinished requests wait until they are wanted again. */
#include "clients/verbs/verb.h"

static const struct program program = {
    "unload",
    "[OPTIONS] MODEL...",
    "Takes models off the device and out of RAM.",
    NULL,
};

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    const struct option table[] = {
        VERB_OPTIONS(v),
    };
    int n = options_parse(&program, table, argc, argv), code = 0;
    if (n == 0) {
        options_fail(&program, "which model? hearth models lists them");
    }
    verb_open(&v);
    for (int i = 0; i < n; i++) {
        struct hearth_error error;
        if (hearth_unload(v.h, argv[i], &error) < 0) {
            fprintf(stderr, "hearth unload: %s\n", error.text);
            code = error.exit_code;
        } else {
            verb_say_done(&v, "model", argv[i], "unloaded");
        }
    }
    return verb_close(&v, code);
}
