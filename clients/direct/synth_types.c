#include "clients/direct/synth_types.h"

#include <stddef.h>
#include <strings.h>

enum when { NEVER, ALWAYS, MORE, EARLY, FIRST_2, FIRST_4, GROUPED, FIRST_16TH, MIDDLE };

/* A row of the tables: in this role and case the tensor has this type instead of the base. The first that fits. */
struct rule {
    enum synth_role role;
    enum when when;
    enum dtype type;
};

struct synth_recipe {
    const char *name;
    uint32_t id;
    enum dtype base, embed, output;
    bool low; /* IQ1 and IQ2 files: experts keep attn_v at Q4_K, 70B does not lift it */
    struct rule rules[7];
};

#define SAME(t)      DTYPE_##t, DTYPE_##t, DTYPE_##t
#define MIX(b, e, o) DTYPE_##b, DTYPE_##e, DTYPE_##o
#define R(role, when, type)                                                                        \
    {                                                                                              \
        SYNTH_##role, when, DTYPE_##type                                                           \
    }

static const struct synth_recipe recipes[] = {
    { "F32", 0, SAME(F32), false, { { 0 } } },
    { "F16", 1, SAME(F16), false, { { 0 } } },
    { "BF16", 32, SAME(BF16), false, { { 0 } } },
    { "Q4_0", 2, MIX(Q4_0, Q4_0, Q6_K), false, { { 0 } } },
    { "Q4_1", 3, MIX(Q4_1, Q4_1, Q6_K), false, { { 0 } } },
    { "Q5_0", 8, MIX(Q5_0, Q5_0, Q6_K), false, { { 0 } } },
    { "Q5_1", 9, MIX(Q5_1, Q5_1, Q6_K), false, { { 0 } } },
    { "Q8_0", 7, SAME(Q8_0), false, { { 0 } } },
    { "Q6_K", 18, SAME(Q6_K), false, { { 0 } } },
    { "Q5_K_S", 16, MIX(Q5_K, Q5_K, Q6_K), false, { { 0 } } },
    { "Q5_K_M", 17, MIX(Q5_K, Q5_K, Q6_K), false, { R(V, MORE, Q6_K), R(DOWN, MORE, Q6_K) } },
    { "Q4_K_S", 14, MIX(Q4_K, Q4_K, Q6_K), false, { R(V, FIRST_4, Q5_K), R(DOWN, EARLY, Q5_K) } },
    { "Q4_K_M", 15, MIX(Q4_K, Q4_K, Q6_K), false, { R(V, MORE, Q6_K), R(DOWN, MORE, Q6_K) } },
    { "Q3_K_S", 11, MIX(Q3_K, Q3_K, Q6_K), false, { { 0 } } },
    { "Q3_K_M",
      12,
      MIX(Q3_K, Q3_K, Q6_K),
      false,
      { R(V, FIRST_2, Q5_K), R(V, ALWAYS, Q4_K), R(O, ALWAYS, Q4_K), R(DOWN, FIRST_16TH, Q5_K),
        R(DOWN, ALWAYS, Q4_K) } },
    { "Q3_K_L",
      13,
      MIX(Q3_K, Q3_K, Q6_K),
      false,
      { R(V, ALWAYS, Q5_K), R(O, ALWAYS, Q5_K), R(DOWN, ALWAYS, Q5_K) } },
    { "Q2_K",
      10,
      MIX(Q2_K, Q2_K, Q6_K),
      false,
      { R(V, GROUPED, Q4_K), R(V, ALWAYS, Q3_K), R(O, ALWAYS, Q3_K), R(DOWN, ALWAYS, Q3_K) } },
    { "Q2_K_S", 21, MIX(Q2_K, Q2_K, Q6_K), false, { R(V, GROUPED, Q4_K), R(DOWN, EARLY, Q4_K) } },
    { "IQ4_XS", 30, MIX(IQ4_XS, IQ4_XS, Q6_K), false, { R(V, GROUPED, Q5_K) } },
    { "IQ4_NL", 25, MIX(IQ4_NL, IQ4_NL, Q6_K), false, { R(V, GROUPED, Q5_K) } },
    { "IQ3_M",
      27,
      MIX(IQ3_S, IQ3_S, Q6_K),
      false,
      { R(V, ALWAYS, Q4_K), R(O, ALWAYS, Q4_K), R(DOWN, EARLY, Q4_K) } },
    { "IQ3_S", 26, MIX(IQ3_S, IQ3_S, Q6_K), false, { R(V, GROUPED, Q4_K) } },
    { "IQ3_XS",
      22,
      MIX(IQ3_S, IQ3_S, Q6_K),
      false,
      { R(QK, ALWAYS, IQ3_XXS), R(V, GROUPED, Q4_K), R(GATE_UP, MIDDLE, IQ3_XXS) } },
    { "IQ3_XXS",
      23,
      MIX(IQ3_XXS, IQ3_S, Q5_K),
      false,
      { R(QK, ALWAYS, IQ2_S), R(V, GROUPED, Q4_K), R(O, ALWAYS, IQ3_S) } },
    { "IQ2_M",
      29,
      MIX(IQ2_S, IQ3_S, Q5_K),
      true,
      { R(V, GROUPED, Q4_K), R(V, ALWAYS, IQ3_S), R(O, ALWAYS, IQ3_S), R(DOWN, EARLY, IQ3_S) } },
    { "IQ2_S",
      28,
      MIX(IQ2_XS, IQ3_S, Q5_K),
      true,
      { R(V, GROUPED, Q4_K), R(V, ALWAYS, IQ3_S), R(O, ALWAYS, IQ3_S), R(DOWN, EARLY, IQ3_S) } },
    { "IQ2_XS",
      20,
      MIX(IQ2_XS, Q2_K, Q5_K),
      true,
      { R(V, GROUPED, Q4_K), R(V, ALWAYS, Q2_K), R(DOWN, EARLY, Q2_K) } },
    { "IQ2_XXS",
      19,
      MIX(IQ2_XXS, Q2_K, Q5_K),
      true,
      { R(V, GROUPED, Q4_K), R(V, ALWAYS, Q2_K), R(DOWN, EARLY, Q2_K) } },
    { "IQ1_M",
      31,
      MIX(IQ1_M, Q2_K, Q5_K),
      true,
      { R(V, GROUPED, Q4_K), R(V, ALWAYS, Q2_K), R(O, ALWAYS, IQ2_XXS), R(DOWN, EARLY, Q2_K) } },
    { "IQ1_S",
      24,
      MIX(IQ1_S, Q2_K, Q5_K),
      true,
      { R(V, GROUPED, Q4_K), R(V, ALWAYS, Q2_K), R(O, ALWAYS, IQ2_XXS), R(DOWN, EARLY, Q2_K) } },
    { "TQ1_0", 36, MIX(TQ1_0, Q4_K, Q6_K), false, { { 0 } } },
    { "TQ2_0", 37, MIX(TQ2_0, Q4_K, Q6_K), false, { { 0 } } },
    { "MXFP4_MOE", 38, SAME(Q8_0), false, { { 0 } } },
};

const struct synth_recipe *synth_recipe_find(const char *name)
{
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        if (strcasecmp(recipes[i].name, name) == 0) {
            return &recipes[i];
        }
    }
    return NULL;
}

uint32_t synth_recipe_id(const struct synth_recipe *r)
{
    return r->id;
}

static bool applies(enum when when, const struct synth_place *p)
{
    uint32_t i = p->layer, n = p->n_layers;
    switch (when) {
    case NEVER:
        return false;
    case ALWAYS:
        return true;
    case MORE:
        return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
    case EARLY:
        return i < n / 8;
    case FIRST_2:
        return i < 2;
    case FIRST_4:
        return i < 4;
    case GROUPED:
        return p->group >= 4;
    case FIRST_16TH:
        return i < n / 16;
    case MIDDLE:
        return i >= n / 8 && i < 7 * n / 8;
    }
    return false;
}

/* A type of smaller blocks for rows that are not whole blocks of the wanted one. */
static enum dtype narrow(enum dtype type, uint64_t ne0)
{
    if (ne0 % dtype_get(type)->block_values == 0) {
        return type;
    }
    if (ne0 % 32) {
        return DTYPE_F16;
    }
    switch (type) {
    case DTYPE_Q4_K:
        return DTYPE_Q5_0;
    case DTYPE_Q5_K:
        return DTYPE_Q5_1;
    case DTYPE_Q6_K:
        return DTYPE_Q8_0;
    case DTYPE_TQ1_0:
    case DTYPE_TQ2_0:
        return DTYPE_Q4_0;
    default:
        return DTYPE_IQ4_NL;
    }
}

enum dtype synth_recipe_type(const struct synth_recipe *r, const struct synth_place *p)
{
    if (p->role == SYNTH_PLAIN) {
        return DTYPE_F32;
    }
    if (p->role == SYNTH_OUTPUT || (p->role == SYNTH_EMBED && p->tied)) {
        return narrow(r->output, p->ne0);
    }
    if (p->role == SYNTH_EMBED) {
        return narrow(r->embed, p->ne0);
    }
    if (r->id == 38 && p->expert) {
        return narrow(DTYPE_MXFP4, p->ne0);
    }
    enum dtype type = r->base;
    for (size_t i = 0; i < sizeof r->rules / sizeof *r->rules; i++) {
        if (r->rules[i].role == p->role && applies(r->rules[i].when, p)) {
            type = r->rules[i].type;
            break;
        }
    }
    if (p->role == SYNTH_V) {
        if (r->low && p->n_experts >= 4) {
            type = DTYPE_Q4_K;
        } else if (!r->low && p->big && (type == DTYPE_Q3_K || type == DTYPE_Q4_K)) {
            type = DTYPE_Q5_K;
        }
    }
    return narrow(type, p->ne0);
}
