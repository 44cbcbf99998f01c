#include "worker/pick.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "worker/candidates.h"
#include "worker/mass.h"
#include "worker/rng.h"

struct picker {
    uint32_t n_vocab, n_ids;
    uint32_t n_ends;
    int32_t *ends;   /* owned: ids that ignore_eos refuses */
    uint32_t *place; /* [n_vocab]: 1 + where a token stands among the changes; zero between calls */
};

struct picker *picker_create(uint32_t n_vocab, const struct pieces *pieces, struct err *err)
{
    struct picker *p = calloc(1, sizeof *p);
    if (p) {
        *p = (struct picker){
            .n_vocab = n_vocab,
            .n_ids = pieces->n > 0 && pieces->n < n_vocab ? pieces->n : n_vocab,
            .ends = calloc(OP_PICK_CHANGES_MAX, sizeof *p->ends),
            .place = calloc(n_vocab, sizeof *p->place),
        };
    }
    if (!p || !p->ends || !p->place) {
        err_set(err, ERR_NO_MEMORY, "no memory to sample from %u tokens", n_vocab);
        picker_destroy(&p);
        return NULL;
    }
    for (uint32_t id = 0; id < p->n_ids; id++) {
        if (pieces_is_end(pieces, (int32_t)id) && p->n_ends++ < OP_PICK_CHANGES_MAX) {
            p->ends[p->n_ends - 1] = (int32_t)id;
        }
    }
    return p;
}

void picker_destroy(struct picker **p)
{
    if (*p) {
        free((*p)->ends);
        free((*p)->place);
        free(*p);
    }
    *p = NULL;
}

/* ---- whether ---- */

static bool greedy(const struct sampler *s)
{
    return s->temp <= 0 && s->dynatemp_range <= 0;
}

static bool penalises(const struct sampler *s)
{
    return s->repeat_last_n != 0 &&
           (s->repeat_penalty != 1 || s->presence_penalty != 0 || s->frequency_penalty != 0);
}

/* Whether the order's steps are those of op_sample: penalties once and first, then its filters. */
static bool order_fits(const struct sampler *s)
{
    uint32_t n_filters = 0;
    bool acted = false;
    for (uint32_t i = 0; i < s->n_order; i++) {
        switch (s->order[i]) {
        case JOURNAL_PENALTIES:
            if (penalises(s) && acted) {
                return false;
            }
            acted = acted || penalises(s);
            break;
        case JOURNAL_DRY:
            if (s->dry.multiplier > 0) {
                return false;
            }
            break;
        case JOURNAL_TOP_K:
            n_filters += s->top_k > 0;
            acted = acted || s->top_k > 0;
            break;
        case JOURNAL_TOP_P:
            n_filters += s->top_p < 1;
            acted = acted || s->top_p < 1;
            break;
        case JOURNAL_MIN_P:
            n_filters += s->min_p > 0;
            acted = acted || s->min_p > 0;
            break;
        case JOURNAL_TEMPERATURE:
            acted = true;
            break;
        case JOURNAL_TOP_N_SIGMA:
            if (!greedy(s) && s->top_n_sigma > 0) {
                return false;
            }
            break;
        case JOURNAL_TYPICAL_P:
            if (!greedy(s) && s->typical_p < 1) {
                return false;
            }
            break;
        case JOURNAL_XTC:
            if (!greedy(s) && s->xtc_probability > 0) {
                return false;
            }
            break;
        default:
            break;
        }
    }
    return n_filters <= OP_PICK_FILTERS_MAX;
}

static bool bias_twice(const struct sampler *s)
{
    for (uint32_t i = 1; i < s->n_biases; i++) {
        for (uint32_t k = 0; k < i; k++) {
            if (s->biases[k].token == s->biases[i].token) {
                return true;
            }
        }
    }
    return false;
}

bool pick_can(const struct picker *p, const struct sampler *s, uint32_t n_tokens)
{
    uint32_t window = !penalises(s)          ? 0
                      : s->repeat_last_n < 0 ? n_tokens
                                             : (uint32_t)s->repeat_last_n;
    window = window < n_tokens ? window : n_tokens;
    return s->n_alternatives == 0 && s->mirostat.version == 0 && !s->adaptive.on &&
           s->dynatemp_range <= 0 && p->n_vocab <= MASS_TOKENS_MAX &&
           (uint64_t)window + s->n_biases + p->n_ends <= OP_PICK_CHANGES_MAX && order_fits(s) &&
           !bias_twice(s);
}

/* ---- how ---- */

static struct op_pick_change *change_of(struct picker *p, struct op_pick_change *changes,
                                        uint32_t *n, int32_t token)
{
    uint32_t *place = &p->place[token];
    if (*place == 0) {
        assert(*n < OP_PICK_CHANGES_MAX);
        changes[*n] = (struct op_pick_change){ .token = token, .add = 0 };
        *place = ++*n;
    }
    return &changes[*place - 1];
}

static bool may_come(const struct picker *p, int32_t token)
{
    return token >= 0 && (uint32_t)token < p->n_ids;
}

/* Biases, end tokens, and how often the window's tokens stand there. */
static uint32_t make_changes(struct picker *p, const struct sampler *s, const int32_t *tokens,
                             uint32_t n_tokens, bool follows, struct op_pick_change *changes)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_biases; i++) {
        if (may_come(p, s->biases[i].token)) {
            change_of(p, changes, &n, s->biases[i].token)->add = s->biases[i].bias;
        }
    }
    for (uint32_t i = 0; s->ignore_eos && i < p->n_ends; i++) {
        change_of(p, changes, &n, p->ends[i])->add = -INFINITY;
    }
    uint32_t window = penalises(s) ? (uint32_t)s->repeat_last_n : 0; /* -1: all */
    window -= follows && window > 0 && s->repeat_last_n > 0;
    for (uint32_t i = n_tokens > window ? n_tokens - window : 0; i < n_tokens; i++) {
        if (may_come(p, tokens[i])) {
            change_of(p, changes, &n, tokens[i])->count++;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        p->place[changes[i].token] = 0;
    }
    return n;
}

static void add_filter(struct op_pick *pick, enum op_pick_kind kind, double scale, double value)
{
    pick->filters[pick->n_filters++] = (struct op_pick_filter){ kind, (float)scale, value };
}

uint32_t pick_make(struct picker *p, const struct sampler *s, const int32_t *tokens,
                   uint32_t n_tokens, bool follows, struct op_pick *pick,
                   struct op_pick_change *changes)
{
    uint64_t position = (uint64_t)n_tokens + follows;
    double scale = 1;
    bool penalties = false;
    *pick = (struct op_pick){ .row = pick->row, .slot = pick->slot, .n_ids = p->n_ids };
    pick->greedy = greedy(s);
    pick->weigh = s->logprobs;
    for (uint32_t i = 0; i < s->n_order; i++) {
        enum journal_sampler which = s->order[i];
        if (which == JOURNAL_PENALTIES) {
            penalties = penalises(s);
        } else if (which == JOURNAL_TEMPERATURE && s->temp > 0) {
            scale *= (double)s->temp;
        } else if (which == JOURNAL_TOP_K && s->top_k > 0) {
            add_filter(pick, OP_PICK_TOP_K, scale, s->top_k);
        } else if (which == JOURNAL_TOP_P && s->top_p < 1) {
            add_filter(pick, OP_PICK_TOP_P, scale, (double)s->top_p);
        } else if (which == JOURNAL_MIN_P && s->min_p > 0) {
            add_filter(pick, OP_PICK_MIN_P, scale,
                       scale * log(s->min_p < 1 ? (double)s->min_p : 1.0));
        }
    }
    pick->scale = (float)scale;
    pick->draw = mass_draw(rng_uniform(s->seed, position, 0, RNG_TOKEN));
    pick->follows = penalties && follows;
    pick->repeat = s->repeat_penalty;
    pick->presence = s->presence_penalty;
    pick->frequency = s->frequency_penalty;
    pick->n_changes = make_changes(p, s, tokens, penalties ? n_tokens : 0, follows, changes);
    return pick->n_changes;
}

struct sampler_choice pick_choice(const struct sampler *s, const struct op_picked *picked)
{
    struct sampler_choice choice = { .token = picked->token };
    if (s->logprobs) {
        choice.logprob = (float)((double)picked->logit - (double)picked->max -
                                 candidates_log_mass(picked->mass));
    }
    return choice;
}
