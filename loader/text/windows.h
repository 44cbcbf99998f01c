/* Joining the symbols of a long text window by window: the same ids, with memory for one window. For spm.c and bpe.c, whose
 * loop joins, of all adjacent pairs, the one of least rank, leftmost first, where a pair's rank depends on its two symbols
 * alone.
 *
 * Why that is exact. Cut the text at the borders of the symbols that the loop ends with. Between two borders the loop does
 * what it would do there alone, for it never looks further than at neighbours. So two neighbours among the results, joined
 * alone, stay two. And the other way round: a row of symbols of which each two neighbours, joined alone, stay two is the
 * result; for the first join across one of its borders would also happen to these two alone. So results of one window may
 * be followed by those of a window that begins behind them if the two symbols at the seam stay two. */
#pragma once

#include "loader/text/ids.h"

/* A result: bytes [start, end) of the text. */
struct windows_symbol {
    size_t start, end;
};

struct windows_ops {
    /* Joins the characters that begin in [from, to); what it made before is forgotten. Errors: ERR_NO_MEMORY. */
    int (*join)(void *work, size_t from, size_t to, struct err *err);
    /* The first result. */
    struct windows_symbol (*first)(const void *work);
    /* Appends the ids of the results that begin before byte `before`; *last: the last of them. */
    int (*emit)(void *work, size_t before, struct windows_symbol *last, struct ids *out,
                struct err *err);
};

/* Appends the ids of the text's bytes [from, to), both ends of which are ends of characters; there is at least one. */
int windows_run(const struct windows_ops *ops, void *work, size_t from, size_t to, struct ids *out,
                struct err *err);
