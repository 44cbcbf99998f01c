/* A build of engine and loader alone has no client library. */
#include "clients/direct/plan.h"

int plan_find_file(const char *run, const char *name, char *path, size_t size, struct err *err)
{
    (void)run, (void)path, (void)size;
    return err_set(err, ERR_NOT_FOUND, "%s: there is no such file", name);
}
