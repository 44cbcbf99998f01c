/* Between the readers of a request: openai_fields.c (tables, prompts), openai_sampling.c, openai_messages.c. */
#pragma once

#include "clients/gateway/fields.h"
#include "clients/gateway/openai_fields.h"

/* Everything of the tables, as it came. */
struct raw {
    const char *model, *reasoning_effort;
    const struct json *messages, *prompt, *stop, *tools, *tool_choice, *response_format,
        *stream_options, *logit_bias, *template_kwargs, *logprobs, *modalities, *samplers,
        *dry_sequence_breakers, *banned_strings, *banned_tokens, *suffix, *reasoning;
    bool stream, ignore_eos, parallel_tool_calls, add_generation_prompt, continue_final_message;
    struct field_number dynatemp_range, dynatemp_exponent, top_n_sigma, xtc_probability,
        xtc_threshold, dry_multiplier, dry_base, mirostat_tau, mirostat_eta, adaptive_target,
        adaptive_decay;
    struct field_int dry_allowed_length, dry_penalty_last_n, mirostat;
    struct field_number temperature, top_p, min_p, typical_p, presence, frequency, repeat;
    struct field_int max_tokens, max_completion_tokens, n, best_of, seed, top_k, repeat_last_n,
        top_logprobs;
};

/* Each reads its part of raw into r; -1 with a problem. */
int openai_read_sampling(struct openai_request *r, const struct raw *raw, struct problem *p);
int openai_read_chat(struct openai_request *r, const struct raw *raw, struct problem *p);
