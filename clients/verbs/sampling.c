#include "clients/verbs/sampling.h"

#include <math.h>
#include <stdlib.h>

#include "proto/limits.h"

/* Every numeric option has its range in one table. */
struct range {
    const char *name;
    bool given;
    double value, low, high;
};

static void check_ranges(struct verb *v, const struct sampling_options *s)
{
    const struct range ranges[] = {
        { "-n", s->has_n_max, (double)s->n_max, 0, LIMIT_CTX_TOKENS },
        { "--temp", s->has_temp, s->temp, 0, 100 },
        { "--top-k", s->has_top_k, (double)s->top_k, 0, 1 << 30 },
        { "--top-p", s->has_top_p, s->top_p, 0, 1 },
        { "--min-p", s->has_min_p, s->min_p, 0, 1 },
        { "--typical-p", s->has_typical_p, s->typical_p, 0, 1 },
        { "--repeat-penalty", s->has_repeat_penalty, s->repeat_penalty, 0.01, 100 },
        { "--repeat-last-n", s->has_repeat_last_n, (double)s->repeat_last_n, -1, LIMIT_CTX_TOKENS },
        { "--presence-penalty", s->has_presence_penalty, s->presence_penalty, -100, 100 },
        { "--frequency-penalty", s->has_frequency_penalty, s->frequency_penalty, -100, 100 },
        { "--logprobs", s->has_logprobs, (double)s->logprobs, 0, LIMIT_ALTERNATIVES },
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        const struct range *r = &ranges[i];
        if (r->given && !(r->value >= r->low && r->value <= r->high)) {
            options_fail(v->program, "%s %g is not between %g and %g", r->name, r->value, r->low,
                         r->high);
        }
    }
}

static void fill_biases(struct verb *v, struct sampling_options *s)
{
    for (int i = 0; i < s->logit_biases.n; i++) {
        const char *text = s->logit_biases.items[i];
        char *end;
        long id = strtol(text, &end, 10);
        char *value_end = end;
        double bias = *end == '=' ? strtod(end + 1, &value_end) : NAN;
        if (end == text || *end != '=' || value_end == end + 1 || *value_end || isnan(bias) ||
            id < 0 || id > INT32_MAX) {
            options_fail(v->program, "--logit-bias wants ID=BIAS, not '%s'", text);
        }
        s->biases[i] = (struct hearth_bias){ (int32_t)id, (float)bias };
    }
}

void sampling_fill(struct verb *v, struct sampling_options *s, struct hearth_ask *ask)
{
    check_ranges(v, s);
    fill_biases(v, s);
    ask->sampling = (struct hearth_sampling){
        .has_temp = s->has_temp,
        .temp = (float)s->temp,
        .has_top_k = s->has_top_k,
        .top_k = (int32_t)s->top_k,
        .has_top_p = s->has_top_p,
        .top_p = (float)s->top_p,
        .has_min_p = s->has_min_p,
        .min_p = (float)s->min_p,
        .has_typical_p = s->has_typical_p,
        .typical_p = (float)s->typical_p,
        .has_repeat_penalty = s->has_repeat_penalty,
        .repeat_penalty = (float)s->repeat_penalty,
        .has_repeat_last_n = s->has_repeat_last_n,
        .repeat_last_n = (int32_t)s->repeat_last_n,
        .has_presence_penalty = s->has_presence_penalty,
        .presence_penalty = (float)s->presence_penalty,
        .has_frequency_penalty = s->has_frequency_penalty,
        .frequency_penalty = (float)s->frequency_penalty,
        .has_seed = s->has_seed,
        .seed = (uint64_t)s->seed,
        .has_logprobs = s->has_logprobs,
        .logprobs = (uint32_t)s->logprobs,
        .ignore_eos = s->ignore_eos,
        .biases = s->biases,
        .n_biases = (size_t)s->logit_biases.n,
    };
    ask->has_n_max = s->has_n_max;
    ask->n_max = (uint32_t)s->n_max;
    ask->stops = s->stops.items;
    ask->n_stops = (size_t)s->stops.n;
}
