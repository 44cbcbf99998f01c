/* hearth models: what can be asked. */
#include "clients/verbs/look.h"
#include "proto/size.h"

static const struct program program = {
    "models",
    "[OPTIONS]",
    "Lists the models that can be asked, loaded or not.",
    NULL,
};

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    const struct option table[] = { VERB_OPTIONS(v) };
    if (options_parse(&program, table, argc, argv) > 0) {
        options_fail(&program, "'%s' is too much", argv[0]);
    }
    verb_open(&v);
    struct json *status = look_status(&v, true);
    const struct json *models = json_find(status, "models");
    if (!v.json) {
        printf("%-32s %-10s %-10s %-10s %s\n", "NAME", "STATE", "SIZE", "ARCH", "CONTEXT");
    }
    for (size_t i = 0; i < json_len(models); i++) {
        const struct json *m = json_at(models, i);
        if (v.json) {
            look_print(m);
            continue;
        }
        char size[32], ctx[32] = "";
        if (look_int(m, "ctx")) {
            snprintf(ctx, sizeof ctx, "%lld", (long long)look_int(m, "ctx"));
        }
        printf("%-32s %-10s %-10s %-10s %s\n", look_str(m, "name"), look_str(m, "state"),
               size_print((unsigned long long)look_int(m, "size_bytes"), size), look_str(m, "arch"),
               ctx);
    }
    json_destroy(&status);
    return verb_close(&v, 0);
}
