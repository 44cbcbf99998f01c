#include "worker/held.h"

#include <assert.h>
#include <string.h>

struct sampler_refused held_refused(const struct held *h, uint32_t pos)
{
    uint32_t first = h->n_refused;
    while (first > 0 && h->refused_pos[first - 1] >= pos) {
        assert(h->refused_pos[first - 1] == pos);
        first--;
    }
    return (struct sampler_refused){ .tokens = h->refused + first, .n = h->n_refused - first };
}

int held_refuse(struct held *h, uint32_t pos, int32_t token, struct err *err)
{
    while (h->n_refused > 0 && h->refused_pos[h->n_refused - 1] > pos) {
        h->n_refused--;
    }
    if (h->n_refused == HELD_REFUSED_MAX) {
        return err_set(err, ERR_FAILED,
                       "the banned strings leave no way on: %d tokens were taken back at position "
                       "%u and before",
                       HELD_REFUSED_MAX, pos);
    }
    h->refused_pos[h->n_refused] = pos;
    h->refused[h->n_refused++] = token;
    return 0;
}

void held_pop(struct held *h, uint32_t pos)
{
    assert(h->n > 0);
    memmove(h->tokens, h->tokens + 1, --h->n * sizeof *h->tokens);
    uint32_t gone = 0;
    while (gone < h->n_refused && h->refused_pos[gone] <= pos) {
        gone++;
    }
    h->n_refused -= gone;
    memmove(h->refused_pos, h->refused_pos + gone, h->n_refused * sizeof *h->refused_pos);
    memmove(h->refused, h->refused + gone, h->n_refused * sizeof *h->refused);
}
