/* hearth ps: requests in flight. */
#include "clients/verbs/look.h"

static const struct program program = {
    "ps",
    "[OPTIONS]",
    "Lists the requests that wait or run.",
    NULL,
};

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    bool explain = false;
    const struct option table[] = {
        { "explain", 0, OPTION_FLAG, &explain, NULL, "say what each one waits for", NULL },
        VERB_OPTIONS(v),
    };
    if (options_parse(&program, table, argc, argv) > 0) {
        options_fail(&program, "'%s' is too much", argv[0]);
    }
    verb_open(&v);
    struct json *status = look_status(&v, false);
    const struct json *requests = json_find(status, "requests");
    if (!v.json) {
        printf("%-12s %-20s %-10s %-10s %7s %7s %-8s%s\n", "ID", "MODEL", "STATE", "CLIENT",
               "PROMPT", "TOKENS", "AGE", explain ? " WHY" : "");
    }
    for (size_t i = 0; i < json_len(requests); i++) {
        const struct json *r = json_at(requests, i);
        char age[32];
        if (v.json) {
            look_print(r);
            continue;
        }
        printf("%-12.12s %-20s %-10s %-10s %7lld %7lld %-8s%s%s\n", look_str(r, "id"),
               look_str(r, "model"), look_str(r, "state"), look_str(r, "client"),
               (long long)look_int(r, "prompt_tokens"), (long long)look_int(r, "completion_tokens"),
               look_age(look_int(r, "age_ms") / 1000, age), explain ? " " : "",
               explain ? look_str(r, "why") : "");
    }
    json_destroy(&status);
    return verb_close(&v, 0);
}
