/* hearth yield: gives memory to another application, and takes it back. */
#include <stdlib.h>
#include <string.h>

#include "clients/verbs/verb.h"
#include "proto/size.h"

static const struct program program = {
    "yield",
    "[OPTIONS] SIZE | --all | 0",
    "Lends memory of the models to another application; answers pause meanwhile and go on "
    "afterwards.",
    "Returns when the memory is free. Without --for it is lent until `hearth yield 0`. SIZE is "
    "taken off ram_budget.",
};

/* "90", "90s", "10m", "2h" */
static uint32_t seconds_of(const char *text)
{
    char *end;
    double value = strtod(text, &end);
    value *= *end == 'h' ? 3600 : *end == 'm' ? 60 : 1;
    end += *end == 'h' || *end == 'm' || *end == 's';
    if (end == text || *end || !(value >= 1 && value <= 7 * 24 * 3600)) {
        options_fail(&program, "--for %s: write 90, 10m or 2h, a week at most", text);
    }
    return (uint32_t)value;
}

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    bool all = false;
    const char *duration = NULL;
    const struct option table[] = {
        { "all", 0, OPTION_FLAG, &all, NULL, "everything", NULL },
        { "for", 0, OPTION_STRING, &duration, "DURATION", "take it back after 90, 10m, 2h", NULL },
        VERB_OPTIONS(v),
    };
    int n = options_parse(&program, table, argc, argv);
    if (n != (all ? 0 : 1)) {
        options_fail(&program, "how much? SIZE, --all, or 0 to take it back");
    }
    uint64_t bytes = UINT64_MAX, left, of;
    if (!all && !size_parse(argv[0], &bytes)) {
        options_fail(&program, "%s is not a size; write 12G or 512M", argv[0]);
    }
    uint32_t seconds = duration ? seconds_of(duration) : 0;
    struct hearth_error error;
    char left_text[32], of_text[32];
    verb_open(&v);
    if (hearth_yield(v.h, bytes, seconds, &left, &of, &error) < 0) {
        verb_fail(&v, &error);
    }
    if (v.json) {
        printf("{\"lent_bytes\":%llu,\"models_bytes\":%llu}\n", (unsigned long long)(of - left),
               (unsigned long long)left);
    } else {
        fprintf(stderr, "hearth yield: %s of %s for models\n", size_print(left, left_text),
                size_print(of, of_text));
    }
    return verb_close(&v, 0);
}
