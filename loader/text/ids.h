/* A growing list of token ids. Header only; zero it, ids_clear frees it. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "loader/text/grow.h"

struct ids {
    int32_t *ids; /* (n), owned */
    size_t n, cap;
};

static inline int ids_push(struct ids *list, int32_t id, struct err *err)
{
    if (GROW(&list->ids, &list->cap, list->n + 1, err) < 0) {
        return -1;
    }
    list->ids[list->n++] = id;
    return 0;
}

static inline void ids_clear(struct ids *list)
{
    free(list->ids);
    *list = (struct ids){ 0 };
}
