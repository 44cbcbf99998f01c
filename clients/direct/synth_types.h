/* Which tensor gets which type in a file of a named type: the recipes of published files, as tables.
 * Source: formats/gguf.md section 5.3. Used by synth_model.c. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/dtype.h"

enum synth_role {
    SYNTH_EMBED,
    SYNTH_OUTPUT,
    SYNTH_QK,
    SYNTH_V,
    SYNTH_O,
    SYNTH_DOWN,
    SYNTH_GATE_UP,
    SYNTH_PLAIN, /* norms, biases, routers: F32 */
};

struct synth_recipe; /* opaque */

/* The recipe of a name, any case, or NULL. */
const struct synth_recipe *synth_recipe_find(const char *name);

/* The number in general.file_type. */
uint32_t synth_recipe_id(const struct synth_recipe *r);

/* What the rules ask about a tensor. */
struct synth_place {
    enum synth_role role;
    uint32_t layer, n_layers;
    uint32_t group; /* query heads per key/value head */
    uint32_t n_experts;
    bool expert; /* a stack of experts */
    bool big;    /* 80 layers and grouped heads: attn_v is kept better */
    bool tied;   /* the embedding is the output matrix too */
    uint64_t ne0;
};

enum dtype synth_recipe_type(const struct synth_recipe *r, const struct synth_place *p);
