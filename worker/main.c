/* hearth-worker: owns one device and computes; ids in, token records out. Born of the keeper (proto/heritage.h). */
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "proto/confine.h"
#include "proto/heritage.h"
#include "proto/log.h"
#include "worker/backend.h"
#include "worker/selftest.h"
#include "worker/serve.h"

struct arguments {
    const char *device;
    uint32_t threads;     /* 0: all cores that we may use */
    uint64_t vram_budget; /* bytes; 0: all of the device's memory */
};

static int read_arguments(int argc, char **argv, struct arguments *a, struct err *err)
{
    static const struct option options[] = {
        { "device", required_argument, NULL, 'd' },
        { "threads", required_argument, NULL, 't' },
        { "vram-budget", required_argument, NULL, 'v' },
        { NULL, 0, NULL, 0 },
    };
    *a = (struct arguments){ .device = "cpu" };
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        char *end = NULL;
        long n = 0;
        switch (c) {
        case 'd':
            a->device = optarg;
            break;
        case 't':
            n = strtol(optarg, &end, 10);
            if (end == optarg || *end || n < 0 || n > 1024) {
                return err_set(err, ERR_USAGE, "--threads %s: a number of 0 to 1024 is wanted",
                               optarg);
            }
            a->threads = (uint32_t)n;
            break;
        case 'v':
            a->vram_budget = strtoull(optarg, &end, 10);
            if (end == optarg || *end) {
                return err_set(err, ERR_USAGE, "--vram-budget %s: a number of bytes is wanted",
                               optarg);
            }
            break;
        default:
            return err_set(err, ERR_USAGE,
                           "hearth-worker [--device cpu] [--threads N] [--vram-budget BYTES]");
        }
    }
    return 0;
}

/* For backend_choose. */
static bool passes(void *arg, const char *device, struct err *err)
{
    return selftest_passes(device, arg, err);
}

/* The device that is meant, open and tested: what "auto" takes has passed in a process of its own, what was named passes
 * here, once it is known to be no CPU. NULL on failure. */
static struct backend *open_device(struct arguments *a, struct backend_options *options,
                                   struct err *err)
{
    bool named = strcmp(a->device, "auto") != 0;
    a->device = backend_choose(a->device, passes, options);
    struct backend *b = backend_open(a->device, options, err);
    if (b && named && b->ops->mirror && selftest_run(b, err) < 0) {
        err_wrap(err, "device %s", a->device);
        backend_close(&b);
    }
    return b;
}

static uint32_t cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
}

/* Blocked in every thread that is born from here on; read in the loop. */
static int open_signals(struct err *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGPIPE);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? err_set_errno(err, ERR_IO, "signalfd") : fd;
}

int main(int argc, char **argv)
{
    struct err err = { 0 };
    struct heritage heritage;
    struct arguments arguments;
    char endpoint[sizeof heritage.run + 16];
    struct backend *backend = NULL;
    struct serve *serve = NULL;
    int going = -1;

    log_init("worker");
    if (read_arguments(argc, argv, &arguments, &err) < 0 || heritage_read(&heritage, &err) < 0) {
        fprintf(stderr, "hearth-worker: %s\n", err.text);
        return err_exit_code(err.code);
    }
    snprintf(endpoint, sizeof endpoint, "ipc://%s/broker", heritage.run);

    struct serve_options options = {
        .endpoint = endpoint,
        .child = heritage.child,
        .threads = arguments.threads ? arguments.threads : cores(),
        .channel_fd = HERITAGE_CHANNEL_FD,
    };
    memcpy(options.token, heritage.token, sizeof options.token);
    options.signal_fd = open_signals(&err);
    if (options.signal_fd < 0) {
        goto out;
    }

    struct backend_options backend_options = { .n_threads = options.threads,
                                               .budget_bytes = arguments.vram_budget };
    backend = open_device(&arguments, &backend_options, &err);
    if (!backend) {
        goto out;
    }
    options.device = arguments.device;

    if (confine(CONFINE_WORKER, &err) < 0) {
        log_warn("%s: it goes on unconfined", err.text);
        err = (struct err){ 0 };
    }

    serve = serve_create(&options, backend, &err);
    if (!serve) {
        goto out;
    }
    log_info("device %s, %u threads", arguments.device, options.threads);
    do {
        going = serve_turn(serve, -1, &err);
    } while (going > 0);

out:
    if (going < 0) {
        log_error("%s", err.text);
    }
    serve_destroy(&serve);
    backend_close(&backend);
    return going < 0 ? err_exit_code(err.code) : 0;
}
