/* hearth attach: picks up the stream of a request, from its first token or a later one. */
#include <stdlib.h>

#include "clients/verbs/answer.h"

static const struct program program = {
    "attach",
    "[OPTIONS] ID",
    "Picks up a request's stream by its id, or by the beginning of it.",
    NULL,
};

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    int64_t from = 0;
    bool ids = false;
    const struct option table[] = {
        { "from", 0, OPTION_INT, &from, "N", "after sequence number N", NULL },
        { "ids", 0, OPTION_FLAG, &ids, NULL, "print token ids, one a line", NULL },
        VERB_OPTIONS(v),
    };
    int n = options_parse(&program, table, argc, argv);
    if (n != 1 || from < 0) {
        options_fail(&program, "one id is wanted, and --from is at least 0");
    }
    verb_open(&v);
    struct hearth_error error;
    double started_ms = answer_now_ms();
    struct hearth_request *r = hearth_attach(v.h, argv[0], (uint64_t)from, &error);
    if (!r) {
        verb_fail(&v, &error);
    }
    struct answer a = answer_follow(&v, r, (struct answer_style){ .json = v.json, .ids = ids },
                                    started_ms);
    hearth_end(&r);
    free(a.text);
    return verb_close(&v, a.exit_code);
}
