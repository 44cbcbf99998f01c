/* hearth serve: becomes the keeper, in the foreground. The options are the broker's, so it is the broker that knows and
 * refuses them; here they are only listed, for --help, the man page and completion. */
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "clients/options.h"

static const struct program program = {
    "serve",
    "[OPTIONS]",
    "Runs everything in the foreground until SIGTERM or Ctrl-C; SIGHUP reads configuration and "
    "catalog again.",
    "Prints 'hearth: ready' on stderr when broker and worker answer. Every option is also a key of "
    "the\n"
    "configuration file, $XDG_CONFIG_HOME/hearth/hearth.conf or /etc/hearth/hearth.conf.",
};

int main(int argc, char **argv)
{
    static struct option_list models;
    static const char *text;
    static const struct option table[] = {
        { "models", 0, OPTION_STRINGS, &models, "DIR", "a directory of GGUF files", NULL },
        { "device", 0, OPTION_STRING, &text, "DEVICE",
          "auto, cpu or cuda:N; reference[:RATE] for trials", NULL },
        { "config", 0, OPTION_STRING, &text, "FILE", "the configuration file", NULL },
        { "run", 0, OPTION_STRING, &text, "DIR", "the runtime directory", NULL },
        { "threads", 0, OPTION_STRING, &text, "N", "threads of the CPU backend", NULL },
        { "ctx", 0, OPTION_STRING, &text, "N", "positions of one sequence at most", NULL },
        { "kv", 0, OPTION_STRING, &text, "TYPE", "KV type: f16, bf16, q8_0 or q4_0", NULL },
        { "source", 0, OPTION_STRING, &text, "HOW", "uring, pread or mmap", NULL },
        { "ram-budget", 0, OPTION_STRING, &text, "SIZE", "RAM for weights and state", NULL },
        { "state-dir", 0, OPTION_STRING, &text, "DIR", "idle conversations, kept over restarts",
          NULL },
        { "state-budget", 0, OPTION_STRING, &text, "SIZE", "of them", NULL },
        { "vram-budget", 0, OPTION_STRING, &text, "SIZE", "device memory to use", NULL },
        { "http", 0, OPTION_STRING, &text, "HOST:PORT", "where the HTTP gateway listens, or off",
          NULL },
        { 0 },
    };
    /* --help and its like are answered here; anything else is the broker's to judge. */
    for (int i = 1; i < argc; i++) {
        static const char *const own[] = { "--help", "-h", "--version", "-V", "--man", "--words" };
        for (size_t k = 0; k < sizeof own / sizeof own[0]; k++) {
            if (strcmp(argv[i], own[k]) == 0) {
                char *word[] = { argv[0], argv[i], NULL };
                options_parse(&program, table, 2, word);
            }
        }
    }
    char self[PATH_MAX], path[PATH_MAX + 64];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) {
        fprintf(stderr, "hearth serve: where this program is: %s\n", strerror(errno));
        return 1;
    }
    self[n] = 0;
    snprintf(path, sizeof path, "%s/hearth-keeper", dirname(self));
    argv[0] = path;
    execv(path, argv);
    fprintf(stderr, "hearth serve: %s: %s\n", path, strerror(errno));
    return 1;
}
