#include "worker/sequence.h"

#include <assert.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/bytes.h"

/* ---- reading what the journal has ---- */

static bool inside(const struct journal *j, uint64_t off, uint64_t bytes)
{
    return off >= j->header.arena_off && off <= j->size && bytes <= j->size - off;
}

/* One string of the room before the prompt goes where it belongs: they come in this order. */
static int take_string(struct sequence *s, const struct journal_params *p, uint32_t i,
                       const uint8_t *text, uint32_t len, struct err *err)
{
    if (i < p->n_stops) {
        return stops_add(&s->stops, text, len, err);
    }
    if (i < p->n_stops + p->n_breakers) {
        return dry_add_breaker(&s->sampler.dry, text, len, err);
    }
    return banned_add(&s->held->banned, text, len, err);
}

/* Biases and strings, from the room before the prompt. */
static int read_extra(struct sequence *s, const struct journal *j, const struct journal_slot *slot,
                      struct err *err)
{
    const struct journal_params *p = &slot->params;
    uint64_t room = slot->prompt_off - slot->extra_off;
    if (slot->extra_off > slot->prompt_off || !inside(j, slot->extra_off, room)) {
        return err_set(err, ERR_BAD_FILE, "slot %u: its parameters are out of bounds",
                       s->name.slot);
    }
    if (p->n_biases > LIMIT_LOGIT_BIASES || p->n_stops > LIMIT_STOP_STRINGS ||
        p->n_breakers > LIMIT_DRY_BREAKERS || p->n_banned > LIMIT_BANNED_STRINGS) {
        return err_set(err, ERR_BAD_FILE,
                       "slot %u: %u biases, %u stop strings, %u breakers, %u banned strings",
                       s->name.slot, p->n_biases, p->n_stops, p->n_breakers, p->n_banned);
    }
    uint32_t n_strings = p->n_stops + p->n_breakers + p->n_banned;
    if (p->n_biases == 0 && n_strings == 0) {
        return 0;
    }
    if (p->n_banned > 0) {
        s->held = calloc(1, sizeof *s->held);
        if (!s->held) {
            return err_set(err, ERR_NO_MEMORY, "no memory for banned strings");
        }
    }
    struct bytes b = bytes_of(j->base + slot->extra_off, room);
    bytes_take(&b, sizeof(struct journal_extra));
    for (uint32_t i = 0; i < p->n_biases; i++) {
        struct journal_bias bias = { .token = (int32_t)bytes_u32(&b) };
        uint32_t bits = bytes_u32(&b);
        memcpy(&bias.bias, &bits, sizeof bits);
        if (!b.failed && !isnan(bias.bias)) {
            bias.bias = bias.bias > FLT_MAX / 4 ? FLT_MAX / 4 : bias.bias;
            s->sampler.biases[s->sampler.n_biases++] = bias;
        }
    }
    for (uint32_t i = 0; i < n_strings; i++) {
        uint32_t len = bytes_u32(&b);
        const uint8_t *text = bytes_take(&b, len);
        if (text && take_string(s, p, i, text, len, err) < 0) {
            return -1;
        }
    }
    return b.failed
               ? err_set(err, ERR_BAD_FILE, "slot %u: its strings are out of bounds", s->name.slot)
               : 0;
}

static int read_prompt(struct sequence *s, const struct journal *j, const struct journal_slot *slot,
                       uint32_t ctx_len, struct err *err)
{
    s->n_prompt = slot->n_prompt;
    s->n_max = slot->params.n_max;
    s->n_ctx = slot->params.n_ctx;
    s->cut = s->n_ctx > ctx_len && (uint64_t)s->n_prompt + s->n_max > ctx_len;
    s->n_ctx = s->n_ctx == 0 || s->n_ctx > ctx_len ? ctx_len : s->n_ctx;
    if (s->n_prompt > LIMIT_PROMPT_TOKENS || slot->prompt_off % sizeof(int32_t) ||
        !inside(j, slot->prompt_off, s->n_prompt * sizeof(int32_t))) {
        return err_set(err, ERR_BAD_FILE, "slot %u: its prompt is out of bounds", s->name.slot);
    }
    uint64_t room = (uint64_t)s->n_prompt + s->n_max;
    uint32_t most = s->n_ctx > s->n_prompt ? s->n_ctx : s->n_prompt;
    s->n_room = room < most ? (uint32_t)room : most;
    s->tokens = malloc((s->n_room + 1ull) * sizeof *s->tokens);
    if (!s->tokens) {
        return err_set(err, ERR_NO_MEMORY, "no memory for a request of %u tokens", s->n_room);
    }
    memcpy(s->tokens, j->base + slot->prompt_off, s->n_prompt * sizeof *s->tokens);
    s->n_tokens = s->n_prompt;
    return 0;
}

/* Walks the committed records: tokens, and what is held back after them. */
static int replay(struct sequence *s, struct err *err)
{
    struct journal_view *view = malloc(sizeof *view);
    uint8_t out[STOPS_OUT_MAX];
    int got = view ? 0 : err_set(err, ERR_NO_MEMORY, "no memory to read a token log");
    while (view && (got = journal_read(&s->writer.at, view, err)) > 0) {
        const struct journal_record *r = &view->record;
        if (r->flags & JOURNAL_TOKEN) {
            if (s->n_tokens == s->n_room || r->token < 0) {
                got = err_set(err, ERR_BAD_FILE, "token log: record %" PRIu64 " is one too many",
                              r->seq);
                break;
            }
            uint32_t len, n_out;
            const uint8_t *bytes = pieces_bytes(s->pieces, r->token, false, &len);
            stops_push(&s->stops, bytes, len, out, &n_out);
            s->tokens[s->n_tokens++] = r->token;
            sampler_follow(&s->sampler, r->feedback);
        }
        s->ended = (r->flags & JOURNAL_ENDED) != 0;
        if (s->ended) {
            got = 0;
            break;
        }
    }
    free(view);
    return got;
}

/* A request that can never run is ended here, in its own log. */
static int check(struct sequence *s, uint32_t n_vocab, uint32_t ctx_len, struct err *err)
{
    char reason[LIMIT_REASON_BYTES];
    if (s->n_prompt == 0) {
        return sequence_end(s, JOURNAL_END_ERROR, ERR_BAD_INPUT, "the prompt has no tokens", err);
    }
    if (s->n_prompt > ctx_len) {
        snprintf(reason, sizeof reason, "a prompt of %u tokens, the context is %u", s->n_prompt,
                 ctx_len);
        return sequence_end(s, JOURNAL_END_ERROR, ERR_NO_FIT, reason, err);
    }
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        if (s->tokens[i] < 0 || (uint32_t)s->tokens[i] >= n_vocab) {
            snprintf(reason, sizeof reason, "token %d at position %u: the vocabulary has %u",
                     s->tokens[i], i, n_vocab);
            return sequence_end(s, JOURNAL_END_ERROR, ERR_BAD_INPUT, reason, err);
        }
    }
    return 0;
}

bool sequence_at_length(const struct sequence *s, uint32_t n_tokens)
{
    return n_tokens - s->n_prompt >= s->n_max || n_tokens >= s->n_ctx;
}

/* It was admitted to a longer context than the model is bound with now: not an end that its client was told to expect. */
static int end_cut(struct sequence *s, struct err *err)
{
    char reason[LIMIT_REASON_BYTES];
    snprintf(reason, sizeof reason,
             "the model's context is now %u tokens, less than when this request was admitted",
             s->n_ctx);
    return sequence_end(s, JOURNAL_END_ERROR, ERR_NO_FIT, reason, err);
}

static bool is_cut(const struct sequence *s, uint32_t n_tokens)
{
    return s->cut && n_tokens >= s->n_ctx && n_tokens - s->n_prompt < s->n_max;
}

int sequence_open(struct sequence *s, const struct journal *journal, struct sequence_name name,
                  uint32_t epoch, const struct pieces *pieces, uint32_t n_vocab, uint32_t ctx_len,
                  struct err *err)
{
    *s = (struct sequence){ .name = name, .pieces = pieces, .kv = SEQUENCE_NO_KV, .parked_fd = -1 };
    assert(journal->writable);
    s->writer.epoch = epoch;
    if (journal_reader_init(&s->writer.at, journal, name.slot, name.generation, err) < 0) {
        return -1;
    }
    s->slot = journal_slot_at(journal, name.slot);
    if (atomic_load_explicit(&s->slot->owner, memory_order_acquire) != epoch) {
        return err_set(err, ERR_REFUSED, "slot %u: its log is not this worker's", name.slot);
    }
    struct journal_slot copy;
    memcpy(&copy, s->slot, sizeof copy);
    memcpy(&s->tag, copy.id, sizeof s->tag);
    sampler_init(&s->sampler, &copy.params);
    if (read_prompt(s, journal, &copy, ctx_len, err) < 0 ||
        read_extra(s, journal, &copy, err) < 0 || replay(s, err) < 0) {
        goto fail;
    }
    s->open = true;
    if (!s->ended && check(s, n_vocab, ctx_len, err) < 0) {
        goto fail;
    }
    if (!s->ended && sequence_at_length(s, s->n_tokens) &&
        (is_cut(s, s->n_tokens) ? end_cut(s, err)
                                : sequence_end(s, JOURNAL_END_LENGTH, ERR_NONE, NULL, err)) < 0) {
        goto fail;
    }
    return 0;
fail:
    sequence_close(s);
    return -1;
}

void sequence_close(struct sequence *s)
{
    free(s->tokens);
    free(s->held);
    if (s->open && s->parked_fd >= 0) {
        close(s->parked_fd);
    }
    *s = (struct sequence){ .kv = SEQUENCE_NO_KV, .parked_fd = -1 };
}

/* ---- writing ---- */

static int append(struct sequence *s, struct journal_record *record,
                  const struct journal_alternative *alternatives, const void *bytes,
                  uint32_t n_bytes, struct err *err)
{
    record->n_cached = s->n_cached;
    if (journal_append(&s->writer, record, alternatives, bytes, n_bytes, err) < 0) {
        return -1;
    }
    s->spoke = true;
    s->ended = (record->flags & JOURNAL_ENDED) != 0;
    return 0;
}

/* Commits the token at position pos, which stands in `tokens` already. */
static int commit(struct sequence *s, uint32_t pos, const struct sampler_choice *choice,
                  struct err *err)
{
    uint8_t out[STOPS_OUT_MAX + STOPS_HELD_MAX];
    uint32_t n_out = 0, len;
    const uint8_t *bytes = pieces_bytes(s->pieces, choice->token, false, &len);
    bool stopped = stops_push(&s->stops, bytes, len, out, &n_out);
    struct journal_record record = {
        .flags = JOURNAL_TOKEN,
        .token = choice->token,
        .logprob = choice->logprob,
        .feedback = choice->feedback,
        .n_alternatives = (uint16_t)choice->n_alternatives,
    };
    bool cut = !stopped && is_cut(s, pos + 1);
    if (stopped || (sequence_at_length(s, pos + 1) && !cut)) {
        record.flags |= JOURNAL_ENDED;
        record.end = stopped ? JOURNAL_END_STOP : JOURNAL_END_LENGTH;
        n_out += stops_flush(&s->stops, out + n_out);
    }
    if (append(s, &record, choice->alternatives, out, n_out, err) < 0) {
        return -1;
    }
    return cut ? end_cut(s, err) : 0;
}

/* Commits the oldest held tokens until `left` are. */
static int commit_held(struct sequence *s, uint32_t left, struct err *err)
{
    struct held *h = s->held;
    while (h->n > left && !s->ended) {
        uint32_t pos = s->n_tokens - h->n;
        if (commit(s, pos, &h->tokens[0].choice, err) < 0) {
            return -1;
        }
        held_pop(h, pos);
    }
    return 0;
}

/* Whether the text of the held tokens has a stop string: then the generation ends there, and what would follow cannot
 * make it a banned one. */
static bool stops_within(const struct sequence *s)
{
    struct stops ahead = s->stops;
    uint8_t out[STOPS_OUT_MAX];
    bool stopped = false;
    for (uint32_t i = 0; i < s->held->n && !stopped; i++) {
        uint32_t len, n_out;
        const uint8_t *bytes = pieces_bytes(s->pieces, s->held->tokens[i].choice.token, false,
                                            &len);
        stopped = stops_push(&ahead, bytes, len, out, &n_out);
    }
    return stopped;
}

/* The tokens from position pos on did not happen, and the one there is not to come there again. */
static int take_back(struct sequence *s, uint32_t pos, struct err *err)
{
    struct held *h = s->held;
    uint32_t first = s->n_tokens -
                     h->n; /* what is committed stays: what is left of the string goes */
    pos = pos < first ? first : pos;
    if (held_refuse(h, pos, s->tokens[pos], err) < 0) {
        return -1;
    }
    sampler_rewind(&s->sampler, &h->tokens[pos - first].before);
    h->n = pos - first;
    s->n_tokens = pos;
    s->rewound = true;
    return 0;
}

static int hold(struct sequence *s, const struct sampler_choice *choice,
                const struct sampler_mark *before, struct err *err)
{
    struct held *h = s->held;
    assert(h->n < BANNED_HELD_MAX);
    h->tokens[h->n++] = (struct held_token){ .choice = *choice, .before = *before };
    uint32_t from = s->n_tokens, left = 0;
    switch (banned_look(&h->banned, s->pieces, s->tokens, s->n_prompt, s->n_tokens, &from)) {
    case BANNED_WHOLE:
        return take_back(s, from, err);
    case BANNED_BEGUN:
        left = s->n_tokens - from;
        break;
    case BANNED_NONE:
        break;
    }
    if (sequence_at_length(s, s->n_tokens) || stops_within(s)) {
        left = 0;
    }
    return commit_held(s, left < BANNED_HELD_MAX ? left : BANNED_HELD_MAX - 1, err);
}

int sequence_accept(struct sequence *s, const struct sampler_choice *choice, struct err *err)
{
    assert(s->open && !s->ended && s->n_tokens < s->n_room);
    if (pieces_is_end(s->pieces, choice->token) && !s->sampler.ignore_eos) {
        if (s->held && commit_held(s, 0, err) < 0) {
            return -1;
        }
        struct journal_record end = { .flags = JOURNAL_ENDED, .end = JOURNAL_END_STOP };
        uint8_t out[STOPS_HELD_MAX];
        uint32_t n_out = stops_flush(&s->stops, out);
        return s->ended ? 0 : append(s, &end, NULL, out, n_out, err);
    }
    struct sampler_mark before = sampler_mark(&s->sampler);
    s->tokens[s->n_tokens++] = choice->token;
    sampler_follow(&s->sampler, choice->feedback);
    return s->held ? hold(s, choice, &before, err) : commit(s, s->n_tokens - 1, choice, err);
}

struct sampler_refused sequence_refused(const struct sequence *s)
{
    return s->held ? held_refused(s->held, s->n_tokens) : (struct sampler_refused){ 0 };
}

int sequence_end(struct sequence *s, enum journal_end end, enum err_code code, const char *reason,
                 struct err *err)
{
    assert(s->open && !s->ended);
    struct journal_record record = {
        .flags = JOURNAL_ENDED,
        .end = (uint16_t)end,
        .code = (uint16_t)code,
    };
    if (end == JOURNAL_END_ERROR) {
        size_t n = strnlen(reason, LIMIT_REASON_BYTES);
        return append(s, &record, NULL, reason, (uint32_t)n, err);
    }
    uint8_t out[STOPS_HELD_MAX];
    uint32_t n_out = stops_flush(&s->stops, out);
    return append(s, &record, NULL, out, n_out, err);
}

bool sequence_cancelled(const struct sequence *s)
{
    return atomic_load_explicit(&s->slot->cancel, memory_order_relaxed) != 0;
}
