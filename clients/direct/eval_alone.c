/* A build of engine and loader alone has no client library. */
#include "clients/direct/eval.h"

int eval_service(const struct eval_question *q, double *perplexity)
{
    (void)perplexity;
    fprintf(stderr, "hearth eval: -m %s: this build has no client; hint: --direct FILE\n",
            q->model);
    return 1;
}
