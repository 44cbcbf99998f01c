/* hearth status: each process, the device, memory, models, queue. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clients/verbs/look.h"
#include "proto/size.h"

static const struct program program = {
    "status",
    "[OPTIONS]",
    "Shows processes, device, memory, models and requests.",
    "With --wait it returns 0 as soon as everything is ready, and waits for the service to appear "
    "too; 6 when the time is up.",
};

#define POLL_MS 50 /* between two looks while waiting */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void print_processes(const struct json *list)
{
    printf("%-8s %-8s %-10s %-9s %-8s %s\n", "ROLE", "PID", "STATE", "RESTARTS", "SINCE", "MODEL");
    for (size_t i = 0; i < json_len(list); i++) {
        const struct json *p = json_at(list, i);
        char age[32];
        printf("%-8s %-8lld %-10s %-9lld %-8s %s\n", look_str(p, "role"),
               (long long)look_int(p, "pid"), look_str(p, "state"),
               (long long)look_int(p, "restarts"), look_age(look_int(p, "since_s"), age),
               look_str(p, "model"));
    }
}

static void print_status(const struct json *s)
{
    char used[32], budget[32], total[32];
    print_processes(json_find(s, "processes"));
    const struct json *d = json_find(s, "device"), *m = json_find(s, "memory");
    printf("\ndevice   %s, %s", look_str(d, "name"), look_str(d, "state"));
    if (look_int(d, "threads")) {
        printf(", %lld threads", (long long)look_int(d, "threads"));
    }
    if (*look_str(d, "isa")) {
        printf(", %s", look_str(d, "isa"));
    }
    if (look_int(d, "memory_bytes")) {
        printf(", %s", size_print((unsigned long long)look_int(d, "memory_bytes"), total));
    }
    printf("\nmemory   %s of %s for weights and state; journal %s of %s\n",
           size_print((unsigned long long)look_int(m, "ram_used_bytes"), used),
           size_print((unsigned long long)look_int(m, "ram_budget_bytes"), budget),
           size_print((unsigned long long)look_int(m, "journal_used_bytes"), (char[32]){ 0 }),
           size_print((unsigned long long)look_int(m, "journal_bytes"), total));
    const struct json *models = json_find(s, "models");
    for (size_t i = 0; i < json_len(models); i++) {
        const struct json *one = json_at(models, i);
        const struct json *loading = json_find(one, "loading");
        char percent[32] = "";
        if (look_int(loading, "of") > 0) {
            snprintf(percent, sizeof percent, " %.0f %%",
                     100.0 * (double)look_int(loading, "bytes") / (double)look_int(loading, "of"));
        }
        const char *window = !look_int(one, "window_bytes") ? ""
                             : *percent                     ? ", by a window"
                                                            : ", on the device alone";
        printf("model    %s: %s%s%s%s%s\n", look_str(one, "name"), look_str(one, "state"), percent,
               window, *look_str(one, "error") ? ", " : "", look_str(one, "error"));
    }
    printf("requests %zu\n", json_len(json_find(s, "requests")));
}

/* Waits until everything is ready or the time is up; the service may not be there yet. */
static int wait_ready(struct verb *v, double seconds)
{
    double until = now_s() + seconds;
    struct hearth_error error = { .exit_code = 6, .text = "not ready yet" };
    do {
        if (!v->h) {
            v->h = hearth_open(v->run, "status", &error);
        }
        char *text = v->h ? hearth_status(v->h, false, &error) : NULL;
        if (text) {
            struct err err;
            struct json *s = json_parse(text, strlen(text), &err);
            bool ready = s && json_as_bool(json_find(s, "ready"));
            json_destroy(&s);
            free(text);
            if (ready) {
                return 0;
            }
        } else {
            hearth_close(&v->h);
        }
        usleep(POLL_MS * 1000);
    } while (now_s() < until);
    fprintf(stderr, "hearth status: not ready after %g s%s%s\n", seconds, *error.text ? ": " : "",
            error.text);
    return 6;
}

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    double wait_s = 0;
    bool wait = false;
    const struct option table[] = {
        { "wait", 0, OPTION_FLOAT, &wait_s, "SECONDS", "return when all is ready", &wait },
        VERB_OPTIONS(v),
    };
    if (options_parse(&program, table, argc, argv) > 0) {
        options_fail(&program, "'%s' is too much", argv[0]);
    }
    if (wait) {
        int code = wait_ready(&v, wait_s);
        if (code != 0 || !v.json) {
            return verb_close(&v, code);
        }
    } else {
        verb_open(&v);
    }
    struct json *status = look_status(&v, false);
    if (v.json) {
        look_print(status);
    } else {
        print_status(status);
    }
    json_destroy(&status);
    return verb_close(&v, 0);
}
