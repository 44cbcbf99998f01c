/* hearth VERB: runs hearth-VERB from this program's own directory, then from PATH. A verb is any such program. */
#include <dirent.h>
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *verb, *purpose;
} listed[] = {
    { "serve", "run hearth in the foreground" },
    { "status", "processes, device, models, queue" },
    { "models", "what can be asked" },
    { "load", "load a model" },
    { "unload", "let a model go" },
    { "ps", "requests in flight, memory" },
    { "yield", "lend memory to another application" },
    { "ask", "one question, one answer" },
    { "complete", "go on with a text" },
    { "chat", "a conversation" },
    { "embed", "embeddings of a text" },
    { "cancel", "end a request" },
    { "attach", "pick up a request's stream" },
    { "tokenize", "text to token ids" },
    { "detokenize", "token ids to text" },
    { "template", "render a chat template" },
    { "parse", "split an answer into content, reasoning and tool calls" },
    { "inspect", "look into a GGUF file" },
    { "plan", "what a model takes before it is loaded" },
    { "eval", "logits and embeddings of given tokens" },
    { "bench", "measure speed" },
    { "chaos", "kill its processes and see that nothing is lost" },
    { "synth", "make a model file with random weights" },
};

/* Edits that turn a into b, for near names. */
static size_t distance(const char *a, const char *b)
{
    size_t row[32], n = strlen(b);
    if (n >= 31 || strlen(a) >= 31) {
        return 99;
    }
    for (size_t j = 0; j <= n; j++) {
        row[j] = j;
    }
    for (size_t i = 1; a[i - 1]; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            best = row[j] + 1 < best ? row[j] + 1 : best;
            row[j] = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
        }
    }
    return row[n];
}

static void print_help(void)
{
    printf("usage: hearth VERB [OPTIONS]\n\nOne GPU, every tool around it.\n\n");
    for (size_t i = 0; i < sizeof listed / sizeof listed[0]; i++) {
        printf("  %-12s %s\n", listed[i].verb, listed[i].purpose);
    }
    printf("\nhearth VERB --help tells more about each.\n");
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        (strcmp(argv[1], "help") == 0 && argc == 2)) {
        print_help();
        return argc < 2 ? 2 : 0;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        printf("hearth %s\n", HEARTH_VERSION);
        return 0;
    }
    char *verb = argv[1], self[PATH_MAX], path[PATH_MAX + 64];
    char help[] = "--help", *help_argv[] = { NULL, help, NULL };
    char **rest = argv + 1;
    if (strcmp(verb, "help") == 0) {
        verb = argv[2]; /* hearth help VERB */
        rest = help_argv;
    }
    if (verb[0] == '-' || strchr(verb, '/') || strlen(verb) > 40) {
        fprintf(stderr, "hearth: '%s' is no verb; hearth --help lists them\n", verb);
        return 2;
    }
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n > 0) {
        self[n] = 0;
        snprintf(path, sizeof path, "%s/hearth-%s", dirname(self), verb);
        rest[0] = path;
        execv(path, rest);
    }
    char name[64];
    snprintf(name, sizeof name, "hearth-%s", verb);
    rest[0] = name;
    execvp(name, rest);
    if (errno != ENOENT) {
        fprintf(stderr, "hearth: %s: %s\n", name, strerror(errno));
        return 1;
    }
    const char *near = NULL;
    size_t best = 3;
    for (size_t i = 0; i < sizeof listed / sizeof listed[0]; i++) {
        size_t d = distance(verb, listed[i].verb);
        if (d < best) {
            best = d;
            near = listed[i].verb;
        }
    }
    fprintf(stderr, "hearth: there is no verb '%s'%s%s%s; hearth --help lists them\n", verb,
            near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    return 2;
}
