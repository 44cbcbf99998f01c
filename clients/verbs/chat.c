/* hearth chat: a conversation with line editing and history. Ctrl-C stops the answer, not the session; Ctrl-D ends it. */
#include <histedit.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clients/verbs/answer.h"
#include "clients/verbs/messages.h"
#include "clients/verbs/sampling.h"

static const struct program program = {
    "chat",
    "[OPTIONS]",
    "Talks with a model: a conversation with line editing and history.",
    "Ctrl-C stops the answer, Ctrl-D ends the session. Lines that begin with '/' are commands: "
    "/help lists them.",
};

#define HISTORY_LINES 500

struct chat {
    struct verb v;
    struct sampling_options sampling;
    struct hearth_ask ask;
    const char *system;
    struct messages *messages;
    EditLine *edit;
    History *history;
    char *line; /* of a pipe, when there is no terminal */
    size_t line_size;
};

static char prompt_text[] = "> ";

static char *prompt_of(EditLine *edit)
{
    (void)edit;
    return prompt_text;
}

static void open_editor(struct chat *c)
{
    HistEvent event;
    if (!isatty(STDIN_FILENO)) {
        return;
    }
    c->edit = el_init("hearth", stdin, stderr, stderr);
    c->history = history_init();
    if (!c->edit || !c->history) {
        return;
    }
    history(c->history, &event, H_SETSIZE, HISTORY_LINES);
    el_set(c->edit, EL_PROMPT, prompt_of);
    el_set(c->edit, EL_EDITOR, "emacs");
    el_set(c->edit, EL_SIGNAL, 1);
    el_set(c->edit, EL_HIST, history, c->history);
}

/* The next line without its newline, borrowed; NULL at the end. */
static char *next_line(struct chat *c)
{
    static char copy[65536];
    if (c->edit && c->history) {
        int n;
        HistEvent event;
        const char *line = el_gets(c->edit, &n);
        if (!line || n <= 0) {
            return NULL;
        }
        history(c->history, &event, H_ENTER, line);
        snprintf(copy, sizeof copy, "%s", line);
        copy[strcspn(copy, "\n")] = 0;
        return copy;
    }
    ssize_t n = getline(&c->line, &c->line_size, stdin);
    if (n < 0) {
        return NULL;
    }
    if (n > 0 && c->line[n - 1] == '\n') {
        c->line[n - 1] = 0;
    }
    return c->line;
}

static void start_over(struct chat *c)
{
    messages_destroy(&c->messages);
    c->messages = messages_create();
    if (c->system) {
        messages_add(c->messages, "system", c->system, strlen(c->system));
    }
}

/* A line that begins with '/'. False: the session ends. */
static bool command(struct chat *c, const char *line)
{
    if (strcmp(line, "/bye") == 0 || strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0) {
        return false;
    }
    if (strcmp(line, "/clear") == 0) {
        start_over(c);
        fprintf(stderr, "a new conversation\n");
    } else {
        fprintf(stderr, "/clear  a new conversation\n/bye    end (so does Ctrl-D)\n");
    }
    return true;
}

static int talk(struct chat *c)
{
    char *line;
    int code = 0;
    while ((line = next_line(c))) {
        if (line[0] == '/') {
            if (!command(c, line)) {
                break;
            }
            continue;
        }
        if (line[strspn(line, " \t")] == 0) {
            continue;
        }
        messages_add(c->messages, "user", line, strlen(line));
        c->ask.prompt = messages_json(c->messages, &c->ask.prompt_len);
        struct answer a = answer_print(&c->v, &c->ask, (struct answer_style){ .json = c->v.json });
        if (!isatty(STDOUT_FILENO) && !c->v.json) {
            putchar('\n'); /* answers of a piped session stand on lines of their own */
        }
        if (a.len > 0) {
            messages_add(c->messages, "assistant", a.text, a.len);
        } else if (a.exit_code != 0) {
            messages_drop_last(c->messages); /* it was not answered: as if it had not been said */
        }
        free(a.text);
        code = a.exit_code == 130 ? 0 : a.exit_code;
        if (code == 3 || code == 4) {
            break;
        }
    }
    return code;
}

int main(int argc, char **argv)
{
    static struct chat chat;
    struct chat *c = &chat;
    c->v.program = &program;
    c->ask = (struct hearth_ask){ .kind = HEARTH_MESSAGES, .priority = 1 };
    const struct option table[] = {
        { "model", 'm', OPTION_STRING, &c->ask.model, "MODEL", "who answers", NULL },
        { "system", 's', OPTION_STRING, &c->system, "TEXT", "the system message", NULL },
        SAMPLING_OPTIONS(c->sampling),
        VERB_OPTIONS(c->v),
    };
    if (options_parse(&program, table, argc, argv) > 0) {
        options_fail(&program, "'%s' is too much: lines are typed, or piped in", argv[0]);
    }
    sampling_fill(&c->v, &c->sampling, &c->ask);
    verb_open(&c->v);
    start_over(c);
    open_editor(c);
    int code = talk(c);
    messages_destroy(&c->messages);
    if (c->history) {
        history_end(c->history);
    }
    if (c->edit) {
        el_end(c->edit);
    }
    free(c->line);
    return verb_close(&c->v, code);
}
