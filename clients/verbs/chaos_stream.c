/* One stream of hearth chaos and whether it is right: compared with the solo run, or computed. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/verbs/chaos.h"
#include "proto/chain.h"

#define HEADS 4 /* beginnings that prompts share */

uint64_t chaos_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

uint64_t chaos_draw(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}

/* ---- durations ---- */

void spread_note(struct spread *s, uint64_t us)
{
    unsigned octave = us < 8 ? 0 : 60u - (unsigned)__builtin_clzll(us); /* 8..15 us is the first */
    unsigned i = us < 8 ? (unsigned)us : 8 * octave + (unsigned)(us >> (octave - 1) & 7);
    atomic_fetch_add_explicit(&s->n[i < SPREAD_BUCKETS ? i : SPREAD_BUCKETS - 1], 1,
                              memory_order_relaxed);
}

double spread_ms(const struct spread *s, double part)
{
    uint64_t all = 0, below = 0;
    for (unsigned i = 0; i < SPREAD_BUCKETS; i++) {
        all += s->n[i];
    }
    for (unsigned i = 0; i < SPREAD_BUCKETS && all > 0; i++) {
        below += s->n[i];
        if ((double)below >= part * (double)all) {
            return (double)(i < 8 ? i : (8ull + i % 8) << (i / 8 - 1)) / 1000;
        }
    }
    return 0;
}

/* A gap between two tokens counts for every fault that fell into it; faults stand in order of time. */
static void note_gap(uint64_t from_us, uint64_t to_us)
{
    uint32_t n = atomic_load(&chaos.n_faults);
    for (uint32_t i = n; i-- > 0 && chaos.faults[i].at_us >= from_us;) {
        struct chaos_fault *f = &chaos.faults[i];
        uint64_t known = atomic_load(&f->pause_us), gap = to_us - from_us;
        while (f->at_us <= to_us && gap > known &&
               !atomic_compare_exchange_weak(&f->pause_us, &known, gap)) {
        }
    }
    spread_note(&chaos.gaps, to_us - from_us);
}

/* ---- what is asked ---- */

void job_fixed(struct job *job, uint32_t i)
{
    *job = (struct job){ .model = chaos.models[i % chaos.n_models] };
    snprintf(job->prompt, sizeof job->prompt, "Story %u: once upon a time", i % 6);
    job->n = 32 + i * 7 % 65;
    job->seed = i + 1;
}

void job_draw(struct job *job, uint64_t *chance)
{
    memset(job, 0, offsetof(struct job, ids));
    job->model = chaos.models[chaos_draw(chance) % chaos.n_models];
    uint64_t head = chaos_draw(chance) % HEADS, same = head * 90; /* none, 90, 180, 270 tokens */
    job->n_tokens = (uint32_t)(same + 1 + chaos_draw(chance) % (CHAOS_PROMPT_MAX - 270));
    for (uint32_t i = 0; i < job->n_tokens; i++) {
        uint64_t what = i < same ? head : chaos_draw(chance);
        job->tokens[i] = (int32_t)(CHAIN_FIRST + (what + i * head) % CHAIN_IDS);
    }
    uint32_t most = CHAOS_FITS - job->n_tokens;
    job->n = 1 +
             (uint32_t)(chaos_draw(chance) % (most < CHAOS_TOKENS_MAX ? most : CHAOS_TOKENS_MAX));
}

struct hearth_request *job_submit(struct hearth *h, const struct job *job, bool detach,
                                  struct hearth_error *error)
{
    struct hearth_ask ask = { .model = job->model,
                              .kind = HEARTH_TEXT,
                              .prompt = job->prompt,
                              .prompt_len = strlen(job->prompt),
                              .has_n_max = true,
                              .n_max = job->n,
                              .detach = detach };
    ask.sampling.has_temp = ask.sampling.has_seed = ask.sampling.ignore_eos = true;
    ask.sampling.temp = 0.8f;
    ask.sampling.seed = job->seed;
    if (job->n_tokens > 0) {
        ask.kind = HEARTH_TOKENS;
        ask.prompt = job->tokens;
        ask.prompt_len = job->n_tokens * sizeof *job->tokens;
        ask.sampling.temp = 0;
    }
    return hearth_submit(h, &ask, error);
}

/* ---- what comes ---- */

/* All that a chain has said: the prompt, then what is expected. */
struct story {
    uint64_t links[CHAOS_PROMPT_MAX + CHAOS_TOKENS_MAX];
    uint32_t n;
};

static void story_push(struct story *s, int32_t id)
{
    uint64_t last = s->n > 0 ? s->links[s->n - 1] : CHAIN_SEED;
    uint64_t older = s->n > 0 ? s->links[chain_older(last, s->n)] : 0;
    s->links[s->n++] = chain_link(last, older, id);
}

/* The answer that a chain gives, into job->ids. */
static void tell(struct job *job)
{
    struct story s = { .n = 0 };
    for (uint32_t i = 0; i < job->n_tokens; i++) {
        story_push(&s, job->tokens[i]);
    }
    for (uint32_t i = 0; i < job->n; i++) {
        job->ids[i] = chain_id(s.links[s.n - 1]);
        story_push(&s, job->ids[i]);
    }
}

static enum verdict compare(struct job *job, uint32_t n, int32_t id, bool learn)
{
    if (n >= job->n) {
        return DOUBLED;
    }
    if (learn) {
        job->ids[n] = id;
    }
    if (id == job->ids[n]) {
        return SAME;
    }
    return n > 0 && id == job->ids[n - 1] ? DOUBLED : CHANGED;
}

enum verdict job_follow(struct hearth_request *r, struct job *job, uint64_t submitted_us,
                        bool learn, struct hearth_error *error)
{
    struct hearth_token t = { 0 };
    enum verdict verdict = SAME;
    uint64_t last_us = 0;
    uint32_t n = 0;
    if (job->n_tokens > 0) {
        tell(job);
    }
    while (!t.ended) {
        enum hearth_result got = hearth_next(r, &t, CHAOS_STREAM_MS, error);
        if (got != HEARTH_TOKEN) {
            if (got == HEARTH_TIMEOUT) {
                snprintf(error->text, sizeof error->text, "no token for %d s",
                         CHAOS_STREAM_MS / 1000);
            }
            verdict = LOST;
            break;
        }
        uint64_t us = chaos_now_us();
        if (last_us) {
            note_gap(last_us, us);
        } else if (submitted_us) {
            spread_note(&chaos.firsts, us - submitted_us);
        }
        last_us = us;
        if (t.has_token) {
            verdict = verdict == SAME ? compare(job, n, t.id, learn) : verdict;
            n++;
        }
    }
    if (verdict == SAME && t.ended && strcmp(t.finish_reason, "error") == 0) {
        *error = t.error;
        verdict = LOST;
    } else if (verdict == SAME && n < job->n) {
        snprintf(error->text, sizeof error->text, "%u tokens of %u, ended by %s", n, job->n,
                 t.finish_reason);
        verdict = LOST;
    } else if (verdict == DOUBLED || verdict == CHANGED) {
        snprintf(error->text, sizeof error->text, "request %.32s: %s at token %u of %u",
                 hearth_info(r)->id, verdict == DOUBLED ? "a token twice" : "another token", n,
                 job->n);
    }
    atomic_fetch_add(&chaos.tokens, n);
    hearth_end(&r);
    return verdict;
}

void job_count(enum verdict verdict, const struct hearth_error *error)
{
    atomic_fetch_add(&chaos.requests, 1);
    if (verdict != SAME) {
        atomic_fetch_add(verdict == LOST      ? &chaos.lost
                         : verdict == DOUBLED ? &chaos.doubled
                                              : &chaos.changed,
                         1);
        chaos_note_error(error->text);
    }
}
