/* hearth bench without a service: only --direct works. */
#include "clients/direct/bench.h"

int bench_service(const struct bench_question *q, struct bench_result *r, struct err *err)
{
    (void)r;
    return err_set(err, ERR_UNSUPPORTED, "-m %s: this build measures only --direct", q->model);
}
