#include "clients/verbs/verb.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "clients/whole.h"
#include "proto/json.h"
#include "proto/limits.h"

void verb_fail(struct verb *v, const struct hearth_error *error)
{
    fprintf(stderr, "hearth %s: %s\n", v->program->verb, error->text);
    exit(verb_close(v, error->exit_code));
}

void verb_say_done(const struct verb *v, const char *what, const char *name, const char *done)
{
    if (v->json) {
        struct json *o = json_new_object();
        json_set(o, what, json_new_str(name, strlen(name)));
        json_set(o, done, json_new_bool(true));
        puts(json_text(o, NULL));
        json_destroy(&o);
    }
}

int verb_close(struct verb *v, int exit_code)
{
    hearth_close(&v->h);
    if (fflush(stdout) != 0 && exit_code == 0) {
        fprintf(stderr, "hearth %s: standard output cannot be written\n", v->program->verb);
        exit_code = 1;
    }
    return exit_code;
}

void verb_signals(struct verb *v)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    v->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

void verb_take_signal(struct verb *v)
{
    struct signalfd_siginfo info;
    while (read(v->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
    }
}

void verb_open(struct verb *v)
{
    struct hearth_error error;
    if (v->color && strcmp(v->color, "auto") != 0 && strcmp(v->color, "always") != 0 &&
        strcmp(v->color, "never") != 0) {
        options_fail(v->program, "--color wants auto, always or never, not '%s'", v->color);
    }
    verb_signals(v);
    v->h = hearth_open(v->run, v->program->verb, &error);
    if (!v->h) {
        verb_fail(v, &error);
    }
    hearth_interrupt_fd(v->h, v->signal_fd);
}

bool verb_colored(const struct verb *v, FILE *stream)
{
    const char *no = getenv("NO_COLOR");
    if (v->color && strcmp(v->color, "auto") != 0) {
        return strcmp(v->color, "always") == 0;
    }
    return !(no && *no) && isatty(fileno(stream));
}

char *verb_prompt(struct verb *v, int n_args, char **args, size_t *len)
{
    /* Piped input comes first; a "-" asks for it by name, also from a terminal. */
    bool want_stdin = !isatty(STDIN_FILENO);
    for (int i = 0; i < n_args; i++) {
        if (strcmp(args[i], "-") == 0) {
            want_stdin = true;
        }
    }
    size_t piped_len = 0;
    struct err err = { 0 };
    char *piped = want_stdin ? whole_read("-", LIMIT_PAYLOAD_BYTES, &piped_len, &err) : NULL;
    if (want_stdin && !piped) {
        fprintf(stderr, "hearth %s: %s\n", v->program->verb, err.text);
        exit(verb_close(v, err_exit_code(err.code)));
    }
    size_t size = piped_len + 3;
    for (int i = 0; i < n_args; i++) {
        size += strlen(args[i]) + 1;
    }
    char *text = malloc(size);
    if (!text) {
        options_fail(v->program, "no memory for the prompt");
    }
    size_t used = 0;
    if (piped_len) {
        memcpy(text, piped, piped_len);
        used = piped_len;
    }
    free(piped);
    bool first = true;
    for (int i = 0; i < n_args; i++) {
        if (strcmp(args[i], "-") == 0) {
            continue;
        }
        const char *gap = !first ? " " : used ? "\n\n" : "";
        used += (size_t)sprintf(text + used, "%s%s", gap, args[i]);
        first = false;
    }
    if (used == 0) {
        options_fail(v->program, "there is no prompt: give one, or pipe one in");
    }
    text[used] = 0;
    *len = used;
    return text;
}
