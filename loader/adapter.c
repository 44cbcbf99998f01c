#include "loader/adapter.h"

#include <stdbool.h>
#include <string.h>

struct word {
    const char *text;
    uint64_t len;
};

static struct word word_of(const struct gguf *g, const char *key)
{
    struct word w = { "nothing", 7 };
    const struct gguf_kv *kv = gguf_find(g, key);
    if (kv && !gguf_kv_str(kv, &w.text, &w.len)) {
        w = (struct word){ "no string", 9 };
    }
    return w;
}

static bool equal(struct word a, struct word b)
{
    return a.len == b.len && memcmp(a.text, b.text, a.len) == 0;
}

static int refuse(const char *key, struct word is, struct word wanted, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, "adapter: %s is %.*s, not %.*s", key,
                   is.len < 60 ? (int)is.len : 60, is.text, wanted.len < 60 ? (int)wanted.len : 60,
                   wanted.text);
}

int adapter_check(const struct gguf *model, const struct gguf *adapter, float *alpha,
                  struct err *err)
{
    const struct {
        const char *key;
        struct word wanted;
    } words[] = {
        { "general.type", { "adapter", 7 } },
        { "adapter.type", { "lora", 4 } },
        { "general.architecture", word_of(model, "general.architecture") },
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        struct word is = word_of(adapter, words[i].key);
        if (!equal(is, words[i].wanted)) {
            return refuse(words[i].key, is, words[i].wanted, err);
        }
    }
    const struct gguf_kv *kv = gguf_find(adapter, "adapter.lora.alpha");
    *alpha = 0.0f;
    if (kv && kv->type != WEIGHTS_F32) {
        return err_set(err, ERR_BAD_FILE, "adapter: adapter.lora.alpha is a %s, not an f32",
                       weights_type_name(kv->type));
    }
    if (kv) {
        memcpy(alpha, kv->data, sizeof *alpha);
    }
    if (!(*alpha > -1e6f && *alpha < 1e6f)) {
        return err_set(err, ERR_BAD_FILE, "adapter: adapter.lora.alpha is %g", (double)*alpha);
    }
    return 0;
}
