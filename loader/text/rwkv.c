/* RWKV's tokenizer (tokenizers.md section 10): the longest token from the left, over bytes; where none matches, the
 * unknown token stands for one byte. */
#include "loader/text/algorithm.h"
#include "loader/text/trie.h"

static void rwkv_destroy(void *state)
{
    struct trie *trie = state;
    trie_destroy(&trie);
}

static int rwkv_create(void **state, struct vocab *v, const struct weights *w, struct err *err)
{
    (void)w;
    *state = trie_of_vocab(v, TRIE_TYPE(TOKEN_NORMAL) | TRIE_TYPE(TOKEN_BYTE), err);
    return *state ? 0 : -1;
}

static int rwkv_encode(const void *state, const struct vocab *v, const struct fragment *f,
                       struct ids *out, struct err *err)
{
    int32_t unknown = v->pieces.roles[ROLE_UNK];
    for (size_t at = 0; at < f->len;) {
        size_t len = 1;
        uint32_t found = trie_longest(state, f->text + at, f->len - at, &len);
        int32_t id = found == TEXTS_NONE ? unknown : (int32_t)found;
        if (id >= 0 && ids_push(out, id, err) < 0) {
            return -1;
        }
        at += len;
    }
    return 0;
}

const struct algorithm algorithm_rwkv = { .create = rwkv_create,
                                          .destroy = rwkv_destroy,
                                          .encode = rwkv_encode };
