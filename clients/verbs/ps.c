/* hearth ps: requests in flight. */
#include "clients/verbs/look.h"
#include "proto/size.h"

static const struct program program = {
    "ps",
    "[OPTIONS]",
    "Lists the requests that wait or run.",
    NULL,
};

/* Every segment, file and process by name: what it takes of what was set aside for it. */
static void print_ledger(const struct verb *v, const struct json *status)
{
    const struct json *rows = json_find(status, "ledger"), *memory = json_find(status, "memory");
    char used[32], size[32];
    if (v->json) {
        look_print(memory);
        for (size_t i = 0; i < json_len(rows); i++) {
            look_print(json_at(rows, i));
        }
        return;
    }
    printf("\n%-10s %12s %12s  %s\n", "MEMORY", "USED", "OF", "NAME");
    for (size_t i = 0; i < json_len(rows); i++) {
        const struct json *r = json_at(rows, i);
        printf("%-10s %12s %12s  %s\n", look_str(r, "kind"),
               size_print((unsigned long long)look_int(r, "used_bytes"), used),
               size_print((unsigned long long)look_int(r, "bytes"), size), look_str(r, "name"));
    }
    printf("%-10s %12s %12s  weights and state, of ram_budget\n", "all models",
           size_print((unsigned long long)look_int(memory, "ram_used_bytes"), used),
           size_print((unsigned long long)look_int(memory, "ram_budget_bytes"), size));
}

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    bool explain = false;
    const struct option table[] = {
        { "explain", 0, OPTION_FLAG, &explain, NULL,
          "say what each one waits for, and where the memory is", NULL },
        VERB_OPTIONS(v),
    };
    if (options_parse(&program, table, argc, argv) > 0) {
        options_fail(&program, "'%s' is too much", argv[0]);
    }
    verb_open(&v);
    struct json *status = explain ? look_ledger(&v) : look_status(&v, false);
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
    if (explain) {
        print_ledger(&v, status);
    }
    json_destroy(&status);
    return verb_close(&v, 0);
}
