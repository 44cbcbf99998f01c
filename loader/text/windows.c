#include "loader/text/windows.h"

#include <stdbool.h>

#ifndef WINDOW_BYTES /* fuzzers make them small */
#define WINDOW_BYTES                                                                               \
    (64u << 10) /* its symbols and pairs fit a core's cache; four times the longest token */
#define WINDOW_TAIL                                                                                \
    (4u << 10) /* at a window's end that the next one joins anew: it has not seen what follows */
#endif

/* Whether the symbol left, joined alone with the one behind it, ends where it does. */
static int stays(const struct windows_ops *ops, void *work, struct windows_symbol left,
                 struct windows_symbol right, bool *result, struct err *err)
{
    if (ops->join(work, left.start, right.end, err) < 0) {
        return -1;
    }
    *result = ops->first(work).end == left.end;
    return 0;
}

/* In one piece; also what is left to do where a seam did not hold, which no known vocabulary and word showed. */
static int run_whole(const struct windows_ops *ops, void *work, size_t from, size_t to,
                     struct ids *out, struct err *err)
{
    struct windows_symbol last;
    return ops->join(work, from, to, err) < 0 ? -1 : ops->emit(work, to, &last, out, err);
}

int windows_run(const struct windows_ops *ops, void *work, size_t from, size_t to, struct ids *out,
                struct err *err)
{
    size_t before = out->n;
    struct windows_symbol last = { from, from };
    if (to - from <= WINDOW_BYTES) {
        return run_whole(ops, work, from, to, out, err);
    }
    while (last.end < to) {
        struct windows_symbol left = last;
        bool ends = to - left.end <= WINDOW_BYTES, holds = true;
        size_t end = ends ? to : left.end + WINDOW_BYTES;
        if (ops->join(work, left.end, end, err) < 0) {
            return -1;
        }
        struct windows_symbol first = ops->first(work);
        if (ops->emit(work, ends ? to : end - WINDOW_TAIL, &last, out, err) < 0 ||
            (left.end > from && stays(ops, work, left, first, &holds, err) < 0)) {
            return -1;
        }
        if (!holds) {
            out->n = before;
            return run_whole(ops, work, from, to, out, err);
        }
    }
    return 0;
}
