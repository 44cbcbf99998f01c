/* hearth cancel: ends a request; what it has so far stays for its client. */
#include "clients/verbs/verb.h"

static const struct program program = {
    "cancel",
    "[OPTIONS] ID...",
    "Ends requests by their ids, or the beginnings of them.",
    NULL,
};

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    const struct option table[] = { VERB_OPTIONS(v) };
    int n = options_parse(&program, table, argc, argv), code = 0;
    if (n == 0) {
        options_fail(&program, "which request? hearth ps lists them");
    }
    verb_open(&v);
    for (int i = 0; i < n; i++) {
        struct hearth_error error;
        if (hearth_cancel_id(v.h, argv[i], &error) < 0) {
            fprintf(stderr, "hearth cancel: %s\n", error.text);
            code = error.exit_code;
        } else {
            verb_say_done(&v, "id", argv[i], "cancelled");
        }
    }
    return verb_close(&v, code);
}
