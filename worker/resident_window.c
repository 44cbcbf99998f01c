/* Weights that come by a window (loader/README.md): what has been uploaded is told to the loader, which gives the memory behind
 * back. From then on the segment holds zeros there, or worse: so nobody here reads a tensor's bytes after telling, and a
 * segment of which anything was told before, by whomever, is not taken. */
#include "worker/resident_parts.h"

int resident_open_window(struct resident *r, int word_fd, struct err *err)
{
    r->word = uploaded_map(word_fd, true, err);
    if (!r->word) {
        return -1;
    }
    if (uploaded_bytes(r->word) > 0) {
        return err_set(err, ERR_BUSY, "its weights went to a device before and are gone here");
    }
    return 0;
}

int resident_check_window(const struct resident *r, struct err *err)
{
    if (!r->windowed) {
        return 0;
    }
    if (!r->backend->ops->mirror) {
        return err_set(err, ERR_UNSUPPORTED,
                       "its weights come by a window: %s computes from the whole of them",
                       r->backend->name);
    }
    return r->word ? 0 : err_set(err, ERR_BAD_INPUT, "weights by a window, and no word to tell");
}

void resident_tell_uploaded(struct resident *r, uint64_t bytes)
{
    if (r->windowed && bytes > uploaded_bytes(r->word)) {
        uploaded_tell(r->word, bytes);
    }
}
