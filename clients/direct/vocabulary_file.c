#include "clients/direct/vocabulary.h"

#include <stdlib.h>

#include "loader/load.h"
#include "loader/text/detok.h"
#include "loader/text/tokenizer.h"

struct file_vocabulary {
    struct vocabulary base;
    struct tokenizer *tokenizer;
    struct ids ids;         /* of the last encode */
    struct detok_text text; /* of the last decode */
};

static int file_encode(struct vocabulary *v, const char *text, size_t len, unsigned flags,
                       const int32_t **ids, size_t *n, struct err *err)
{
    struct file_vocabulary *f = (struct file_vocabulary *)v;
    unsigned wanted = (flags & VOCABULARY_ADD_SPECIAL ? TOKENIZER_ADD_SPECIAL : 0) |
                      (flags & VOCABULARY_PARSE_SPECIAL ? TOKENIZER_PARSE_SPECIAL : 0);
    f->ids.n = 0;
    if (tokenizer_encode(f->tokenizer, text, len, wanted, &f->ids, err) < 0) {
        return -1;
    }
    *ids = f->ids.ids;
    *n = f->ids.n;
    return 0;
}

static int file_decode(struct vocabulary *v, const int32_t *ids, size_t n, unsigned flags,
                       const char **text, size_t *len, struct err *err)
{
    struct file_vocabulary *f = (struct file_vocabulary *)v;
    unsigned wanted = (flags & VOCABULARY_REMOVE_SPECIAL ? DETOK_REMOVE_SPECIAL : 0) |
                      (flags & VOCABULARY_UNPARSE_SPECIAL ? DETOK_UNPARSE_SPECIAL : 0);
    f->text.len = 0;
    if (detok_all(f->tokenizer, ids, n, wanted, &f->text, err) < 0) {
        return -1;
    }
    *text = f->text.len ? (const char *)f->text.text : "";
    *len = f->text.len;
    return 0;
}

static int file_piece(struct vocabulary *v, int32_t id, const char **bytes, size_t *len,
                      struct err *err)
{
    struct file_vocabulary *f = (struct file_vocabulary *)v;
    (void)err;
    *bytes = (const char *)tokenizer_piece(f->tokenizer, id, true, len);
    return 0;
}

static void file_close(struct vocabulary *v)
{
    struct file_vocabulary *f = (struct file_vocabulary *)v;
    tokenizer_destroy(&f->tokenizer);
    ids_clear(&f->ids);
    free(f->text.text);
    free(f);
}

static const struct vocabulary_ops file_ops = { file_encode, file_decode, file_piece, file_close };

struct vocabulary *vocabulary_open_file(const char *path, const char *pre, struct err *err)
{
    struct weights manifest = { 0 };
    struct file_vocabulary *f = calloc(1, sizeof *f);
    if (!f) {
        err_set(err, ERR_NO_MEMORY, "a vocabulary");
        return NULL;
    }
    f->base.ops = &file_ops;
    if (loader_open_manifest(path, &manifest, err) < 0) {
        free(f);
        return NULL;
    }
    f->tokenizer = tokenizer_create(&manifest, pre, err);
    weights_unmap(&manifest);
    if (!f->tokenizer) {
        err_wrap(err, "%s", path);
        free(f);
        return NULL;
    }
    return &f->base;
}

void vocabulary_close(struct vocabulary **v)
{
    if (*v) {
        (*v)->ops->close(*v);
        *v = NULL;
    }
}
