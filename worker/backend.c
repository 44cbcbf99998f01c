/* The table of backends: the only place that knows which ones this build has. */
#include "worker/backend.h"

#include <stdbool.h>
#include <string.h>

#include "proto/log.h"
#include "worker/cpu/cpu.h"
#if HEARTH_HAVE_CUDA
#include "worker/cuda/cuda.h"
#endif
#include "worker/reference/reference.h"

static struct backend *open_cpu(const char *name, const struct backend_options *options,
                                struct err *err)
{
    (void)name;
    return cpu_open(options, err);
}

static const struct row {
    const char *name; /* a device may be numbered behind it: "cuda:0" */
    const char *best; /* what "auto" becomes */
    bool numbered;
    bool (*available)(struct err *); /* NULL: always */
    struct backend *(*open)(const char *name, const struct backend_options *, struct err *);
} backends[] = {
/* the best first */
#if HEARTH_HAVE_CUDA
    { "cuda", "cuda:0", true, cuda_available, cuda_open },
#endif
    { "cpu", "cpu", false, NULL, open_cpu },
    { "reference", NULL, true, NULL, reference_open }, /* for trials: behind what "auto" looks at */
};

#define N_BACKENDS (sizeof backends / sizeof backends[0])

static bool names(const struct row *row, const char *name)
{
    size_t n = strlen(row->name);
    return strncmp(name, row->name, n) == 0 &&
           (name[n] == '\0' || (row->numbered && name[n] == ':'));
}

struct backend *backend_open(const char *name, const struct backend_options *options,
                             struct err *err)
{
    for (size_t i = 0; i < N_BACKENDS; i++) {
        if (names(&backends[i], name)) {
            return backends[i].open(name, options, err);
        }
    }
    err_set(err, ERR_USAGE, "device %s: not in this build", name);
    return NULL;
}

const char *backend_choose(const char *name,
                           bool (*judge)(void *arg, const char *device, struct err *err), void *arg)
{
    if (!name || strcmp(name, "auto") != 0) {
        return name ? name : "cpu";
    }
    struct err err = { 0 };
    size_t i = 0;
    while (backends[i].available &&
           !(judge ? judge(arg, backends[i].best, &err) : backends[i].available(&err))) {
        i++;
        log_info("%s; auto means %s", err.text, backends[i].best);
    }
    return backends[i].best;
}

void backend_close(struct backend **b)
{
    if (*b) {
        (*b)->ops->close(*b);
        *b = NULL;
    }
}
