/* The tokens that eat white space beside them. The file does not say which they are; a few models are known by name
 * (tokenizers.md section 11). */
#include <ctype.h>
#include <string.h>

#include "loader/text/pretoken.h"
#include "loader/text/vocab.h"

static bool text_is(const struct vocab *v, uint32_t id, const char *text)
{
    size_t len;
    const uint8_t *have = vocab_text(v, id, &len);
    return len == strlen(text) && memcmp(have, text, len) == 0;
}

static void flag_text(struct vocab *v, const char *text, uint8_t flag)
{
    int32_t id = vocab_find(v, text, strlen(text));
    if (id >= 0) {
        v->pieces.flags[id] |= flag;
    }
}

int vocab_find_strips(struct vocab *v, const struct weights *w, struct err *err)
{
    char name[256], arch[64];
    if (vocab_read_str(w, "general.name", name, sizeof name, err) < 0 ||
        vocab_read_str(w, "general.architecture", arch, sizeof arch, err) < 0) {
        return -1;
    }
    for (char *c = name; *c; c++) {
        *c = (char)tolower((unsigned char)*c);
    }
    if (strstr(name, "phi-3") || strstr(name, "phi3")) {
        for (uint32_t id = 0; id < v->n_tokens; id++) {
            uint8_t type = v->pieces.types[id];
            bool special = type == TOKEN_CONTROL || type == TOKEN_USER_DEFINED ||
                           type == TOKEN_UNKNOWN;
            bool plain = text_is(v, id, "<unk>") || text_is(v, id, "<s>") ||
                         text_is(v, id, "<|endoftext|>");
            if (special && !plain) {
                v->pieces.flags[id] |= VOCAB_RSTRIP;
            }
        }
        flag_text(v, "</s>", VOCAB_RSTRIP);
    }
    const char *pre = v->pre ? v->pre->name : "";
    if (strcmp(pre, "jina-v2-de") == 0 || strcmp(pre, "jina-v2-es") == 0 ||
        strcmp(pre, "jina-v2-code") == 0 || strcmp(arch, "nomic-bert-moe") == 0 ||
        strcmp(arch, "jina-bert-v3") == 0) {
        flag_text(v, "<mask>", VOCAB_LSTRIP);
    }
    if (strstr(name, "modern-bert")) {
        flag_text(v, "[MASK]", VOCAB_LSTRIP);
    }
    return 0;
}
