/* The table of backends: the only place that knows which ones this build has. */
#include "worker/backend.h"

#include <string.h>

#include "worker/cpu/cpu.h"

static const struct {
    const char *name;
    struct backend *(*open)(const struct backend_options *, struct err *);
} backends[] = {
    /* the best first */
    { "cpu", cpu_open },
};

struct backend *backend_open(const char *name, const struct backend_options *options,
                             struct err *err)
{
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++) {
        if (strcmp(name, backends[i].name) == 0) {
            return backends[i].open(options, err);
        }
    }
    err_set(err, ERR_UNSUPPORTED, "device %s: not in this build", name);
    return NULL;
}

const char *backend_best(void)
{
    return backends[0].name;
}

void backend_close(struct backend **b)
{
    if (*b) {
        (*b)->ops->close(*b);
        *b = NULL;
    }
}
