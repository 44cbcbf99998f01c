#include "clients/verbs/sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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
        { "--dynatemp-range", s->has_dynatemp_range, s->dynatemp_range, 0, 100 },
        { "--dynatemp-exponent", s->has_dynatemp_exponent, s->dynatemp_exponent, 0, 100 },
        { "--top-n-sigma", s->has_top_n_sigma, s->top_n_sigma, -1, 1000 },
        { "--xtc-probability", s->has_xtc_probability, s->xtc_probability, 0, 1 },
        { "--xtc-threshold", s->has_xtc_threshold, s->xtc_threshold, 0, 1 },
        { "--dry-multiplier", s->has_dry_multiplier, s->dry_multiplier, 0, 100 },
        { "--dry-base", s->has_dry_base, s->dry_base, 1, 100 },
        { "--dry-allowed-length", s->has_dry_allowed_length, (double)s->dry_allowed_length, 1,
          LIMIT_CTX_TOKENS },
        { "--dry-penalty-last-n", s->has_dry_penalty_last_n, (double)s->dry_penalty_last_n, -1,
          LIMIT_CTX_TOKENS },
        { "--mirostat", s->has_mirostat, (double)s->mirostat, 0, 2 },
        { "--mirostat-tau", s->has_mirostat_tau, s->mirostat_tau, 0, 100 },
        { "--mirostat-eta", s->has_mirostat_eta, s->mirostat_eta, 0, 1 },
        { "--adaptive-target", s->has_adaptive_target, s->adaptive_target, -1, 1 },
        { "--adaptive-decay", s->has_adaptive_decay, s->adaptive_decay, 0, 0.99 },
        { "--deadline", s->has_deadline, s->deadline, 0.001, 7 * 24 * 3600 },
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

static void fill_bans(struct verb *v, struct sampling_options *s)
{
    for (int i = 0; i < s->banned_tokens.n; i++) {
        const char *text = s->banned_tokens.items[i];
        char *end;
        long id = strtol(text, &end, 10);
        if (end == text || *end || id < 0 || id > INT32_MAX) {
            options_fail(v->program, "--banned-token wants an id, not '%s'", text);
        }
        s->banned[i] = (int32_t)id;
    }
}

static int priority_of(const struct verb *v, const char *name)
{
    static const char *const names[] = { "normal", "interactive",
                                         "batch" }; /* as hearth_ask has them */
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) == 0) {
            return i;
        }
    }
    options_fail(v->program, "--priority is interactive, normal or batch, not '%s'", name);
}

void sampling_fill(struct verb *v, struct sampling_options *s, struct hearth_ask *ask)
{
    check_ranges(v, s);
    fill_biases(v, s);
    fill_bans(v, s);
    if (s->priority) {
        ask->priority = priority_of(v, s->priority);
    }
    ask->deadline_ms = s->has_deadline ? (uint32_t)ceil(s->deadline * 1000) : 0;
    ask->flow = s->flow;
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
        .has_dynatemp_range = s->has_dynatemp_range,
        .dynatemp_range = (float)s->dynatemp_range,
        .has_dynatemp_exponent = s->has_dynatemp_exponent,
        .dynatemp_exponent = (float)s->dynatemp_exponent,
        .has_top_n_sigma = s->has_top_n_sigma,
        .top_n_sigma = (float)s->top_n_sigma,
        .has_xtc_probability = s->has_xtc_probability,
        .xtc_probability = (float)s->xtc_probability,
        .has_xtc_threshold = s->has_xtc_threshold,
        .xtc_threshold = (float)s->xtc_threshold,
        .has_dry_multiplier = s->has_dry_multiplier,
        .dry_multiplier = (float)s->dry_multiplier,
        .has_dry_base = s->has_dry_base,
        .dry_base = (float)s->dry_base,
        .has_dry_allowed_length = s->has_dry_allowed_length,
        .dry_allowed_length = (int32_t)s->dry_allowed_length,
        .has_dry_penalty_last_n = s->has_dry_penalty_last_n,
        .dry_penalty_last_n = (int32_t)s->dry_penalty_last_n,
        .has_mirostat = s->has_mirostat,
        .mirostat = (uint32_t)s->mirostat,
        .has_mirostat_tau = s->has_mirostat_tau,
        .mirostat_tau = (float)s->mirostat_tau,
        .has_mirostat_eta = s->has_mirostat_eta,
        .mirostat_eta = (float)s->mirostat_eta,
        .has_adaptive_target = s->has_adaptive_target,
        .adaptive_target = (float)s->adaptive_target,
        .has_adaptive_decay = s->has_adaptive_decay,
        .adaptive_decay = (float)s->adaptive_decay,
        .samplers = s->samplers,
        .dry_sequence_breakers = s->dry_breakers.items,
        .n_dry_sequence_breakers = (size_t)s->dry_breakers.n,
        .banned_strings = s->banned_strings.items,
        .n_banned_strings = (size_t)s->banned_strings.n,
        .banned_tokens = s->banned,
        .n_banned_tokens = (size_t)s->banned_tokens.n,
    };
    ask->has_n_max = s->has_n_max;
    ask->n_max = (uint32_t)s->n_max;
    ask->stops = s->stops.items;
    ask->n_stops = (size_t)s->stops.n;
}
