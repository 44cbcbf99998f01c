/* An adapter (LoRA) that the loader put beside the model's own tensors: for a matrix NAME the tensors NAME.lora_a and
 * NAME.lora_b, whose product is added to what the matrix gives. Nothing is merged, so weights of any type keep their bits.
 * Source: GGUF adapter files; the keys hearth.lora.* are the loader's. */
#include <stdlib.h>
#include <string.h>

#include "worker/bind.h"

int bind_adapter(struct bind *b)
{
    const struct weights_kv *scale = weights_find_kv(b->w, "hearth.lora.scale");
    const struct weights_kv *alpha = weights_find_kv(b->w, "hearth.lora.alpha");
    b->adapted = scale != NULL;
    if (scale && (!weights_kv_f64(scale, 0, &b->lora_scale) || !alpha ||
                  !weights_kv_f64(alpha, 0, &b->lora_alpha))) {
        return err_set(b->err, ERR_BAD_FILE, "key %s: no number, or without its alpha", scale->key);
    }
    return 0;
}

int bind_low_rank(struct bind *b, struct matrix *w)
{
    char name[BIND_NAME_BYTES];
    bind_name(name, "%s.lora_a", w->name);
    if (!b->adapted || !weights_find_tensor(b->w, name)) {
        return 0;
    }
    struct low_rank *r = calloc(1, sizeof *r);
    if (!r) {
        return err_set(b->err, ERR_NO_MEMORY, "tensor %s", name);
    }
    r->next = b->m->low_ranks;
    b->m->low_ranks = r;
    if (bind_matrix(b, name, w->k, 0, 1, WANT_REQUIRED, &r->a) < 0) {
        return -1;
    }
    bind_name(name, "%s.lora_b", w->name);
    if (bind_matrix(b, name, r->a.m, w->m, 1, WANT_REQUIRED, &r->b) < 0) {
        return -1;
    }
    /* alpha 0 means: the factor alone. */
    double alpha = b->lora_alpha != 0.0 ? b->lora_alpha / r->a.m : 1.0;
    r->scale = (float)(b->lora_scale * alpha);
    w->low_rank = r;
    return 0;
}

int bind_adapter_end(struct bind *b)
{
    for (size_t i = 0; b->adapted && i < b->w->n_tensors; i++) {
        const char *name = b->w->tensors[i].name;
        size_t len = strlen(name);
        const struct low_rank *r = b->m->low_ranks;
        if (len < 7 || strncmp(name + len - 7, ".lora_", 6) != 0) {
            continue;
        }
        while (r && r->a.name != name && r->b.name != name) {
            r = r->next;
        }
        if (!r) {
            return err_set(b->err, ERR_UNSUPPORTED,
                           "tensor %s: adapters change plain matrices of layers and the output",
                           name);
        }
    }
    return 0;
}
