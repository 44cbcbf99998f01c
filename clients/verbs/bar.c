#include "clients/verbs/bar.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clients/verbs/look.h"
#include "proto/size.h"

#define LOOK_MS 200
#define CELLS   24

struct bar bar_open(struct verb *v, const char *model)
{
    const char *term = getenv("TERM");
    bool dumb = !term || strcmp(term, "dumb") == 0; /* it cannot take a line away again */
    return (struct bar){ .v = v,
                         .model = model,
                         .on = isatty(STDERR_FILENO) && verb_colored(v, stderr) && !dumb };
}

int bar_wait_ms(const struct bar *bar)
{
    return bar->on ? LOOK_MS : -1;
}

static bool is_called(const struct json *model, const char *name)
{
    const struct json *aliases = json_find(model, "aliases");
    bool found = strcmp(look_str(model, "name"), name) == 0 ||
                 strcmp(look_str(model, "path"), name) == 0;
    for (size_t i = 0; i < json_len(aliases); i++) {
        found |= strcmp(json_as_str(json_at(aliases, i), NULL), name) == 0;
    }
    return found;
}

static void take_away(struct bar *bar)
{
    if (bar->drawn) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
    }
    bar->drawn = false;
}

static void draw(struct bar *bar, const struct json *loading)
{
    char cells[CELLS + 1], there[32], all[32], rate[32];
    unsigned long long bytes = (unsigned long long)look_int(loading, "bytes"),
                       of = (unsigned long long)look_int(loading, "of"),
                       per_s = (unsigned long long)look_int(loading, "bytes_per_s");
    double part = (double)bytes / (double)of;
    for (int i = 0; i < CELLS; i++) {
        cells[i] = i < (int)(part * CELLS) ? '#' : '-';
    }
    cells[CELLS] = 0;
    fprintf(stderr, "\r%.30s [%s] %3.0f %%, %s of %s", bar->model, cells, 100 * part,
            size_print(bytes, there), size_print(of, all));
    if (per_s) {
        fprintf(stderr, ", %s/s", size_print(per_s, rate));
    }
    fputs("\033[K", stderr);
    fflush(stderr);
    bar->drawn = true;
}

void bar_draw(struct bar *bar)
{
    struct hearth_error error;
    struct err err;
    char *text = bar->on ? hearth_status(bar->v->h, false, &error) : NULL;
    struct json *status = text ? json_parse(text, strlen(text), &err) : NULL;
    const struct json *models = json_find(status, "models"), *loading = NULL;
    for (size_t i = 0; i < json_len(models); i++) {
        const struct json *one = json_at(models, i);
        if (is_called(one, bar->model)) {
            loading = json_find(one, "loading");
            bar->on = strcmp(look_str(one, "state"), "resident") != 0; /* no more to be seen */
        }
    }
    if (look_int(loading, "of") > 0) {
        draw(bar, loading);
    } else {
        take_away(bar);
    }
    json_destroy(&status);
    free(text);
}

void bar_close(struct bar *bar)
{
    take_away(bar);
    bar->on = false;
}
