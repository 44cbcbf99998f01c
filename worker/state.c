#include "worker/state.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "proto/bytes.h"
#include "proto/shm.h"

static uint64_t row_tokens(uint32_t ctx_len)
{
    return align_up(ctx_len, KV_PAGE_TOKENS);
}

static bool lay_out(const struct kv_layout *layout, const struct state_shape *shape,
                    struct state_header *h)
{
    uint64_t kv_bytes = kvcache_mirror_size(layout, shape->n_pages - shape->n_unmirrored,
                                            shape->max_seqs, shape->ctx_len);
    h->rows_off = align_up(sizeof *h, 64);
    h->tokens_off = align_up(h->rows_off + shape->max_seqs * sizeof(struct state_row), 64);
    uint64_t tokens_bytes = shape->max_seqs * row_tokens(shape->ctx_len) * sizeof(int32_t);
    h->kv_off = align_up(h->tokens_off + tokens_bytes, 4096);
    return kv_bytes < INT64_MAX && size_add(h->kv_off, kv_bytes, &h->total_bytes);
}

uint64_t state_size(const struct kv_layout *layout, const struct state_shape *shape)
{
    struct state_header h;
    return lay_out(layout, shape, &h) ? h.total_bytes : UINT64_MAX;
}

int state_fit(const struct kv_layout *layout, uint32_t n_sequences, uint32_t ctx_len,
              uint64_t bytes_max, struct state_shape *shape, struct err *err)
{
    assert(n_sequences > 0 && ctx_len > 0);
    *shape = (struct state_shape){ .max_seqs = 2 * n_sequences, .ctx_len = ctx_len };
    for (;;) {
        uint32_t per_seq = kvcache_pages_for(shape->ctx_len);
        uint64_t wanted = (uint64_t)per_seq * n_sequences;
        shape->n_pages = 0;
        uint64_t fixed = state_size(layout, shape);
        uint64_t room = fixed < bytes_max ? (bytes_max - fixed) / layout->page_bytes : 0;
        uint64_t pages = room < wanted ? room : wanted;
        if (pages >= per_seq && pages < KV_PAGE_NONE) {
            shape->n_pages = (uint32_t)pages;
            return 0;
        }
        if (shape->ctx_len <= KV_PAGE_TOKENS) {
            return err_set(err, ERR_NO_FIT,
                           "one page of %u positions needs %" PRIu64 " bytes of state, %" PRIu64
                           " are allowed",
                           KV_PAGE_TOKENS, fixed + layout->page_bytes, bytes_max);
        }
        /* A shorter context, a multiple of pages; an eighth less each time keeps most of what fits. */
        uint32_t shorter = shape->ctx_len - shape->ctx_len / 8;
        shape->ctx_len = shorter > KV_PAGE_TOKENS ? shorter / KV_PAGE_TOKENS * KV_PAGE_TOKENS
                                                  : KV_PAGE_TOKENS;
    }
}

int state_fit_mirror(const struct kv_layout *layout, uint64_t bytes_max, struct state_shape *shape,
                     struct err *err)
{
    shape->n_unmirrored = shape->n_pages;
    uint64_t fixed = state_size(layout, shape);
    if (fixed > bytes_max) {
        return err_set(err, ERR_NO_FIT,
                       "the state's tables take %" PRIu64 " bytes of memory, %" PRIu64
                       " are allowed",
                       fixed, bytes_max);
    }
    uint64_t mirrored = (bytes_max - fixed) / layout->page_bytes;
    shape->n_unmirrored = mirrored < shape->n_pages ? shape->n_pages - (uint32_t)mirrored : 0;
    return 0;
}

static int attach(struct state *s, void *memory, const struct state_header *where, struct err *err)
{
    s->base = memory;
    s->header = memory;
    s->rows = (struct state_row *)(void *)(s->base + where->rows_off);
    s->tokens = (int32_t *)(void *)(s->base + where->tokens_off);
    s->busy = calloc(where->max_seqs, sizeof *s->busy);
    return s->busy ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for %u sequences", where->max_seqs);
}

static struct state_header header_of(const struct state_shape *shape, uint64_t fingerprint)
{
    return (struct state_header){
        .version = STATE_VERSION,
        .max_seqs = shape->max_seqs,
        .ctx_len = shape->ctx_len,
        .n_pages = shape->n_pages,
        .n_unmirrored = shape->n_unmirrored,
        .fingerprint = fingerprint,
    };
}

int state_init(struct state *s, const struct kv_layout *layout, const struct state_shape *shape,
               uint64_t fingerprint, void *memory, size_t bytes, struct err *err)
{
    struct state_header h = header_of(shape, fingerprint);
    *s = (struct state){ 0 };
    if (!lay_out(layout, shape, &h) || h.total_bytes > bytes) {
        return err_set(err, ERR_BAD_INPUT, "a state segment of %zu bytes, %" PRIu64 " are needed",
                       bytes, h.total_bytes);
    }
    if (shm_populate(memory, h.tokens_off, err) < 0) {
        return err_wrap(err, "state: tables");
    }
    struct state_header *header = memory;
    header->magic = 0;
    atomic_thread_fence(memory_order_release);
    *header = h;
    memset((uint8_t *)memory + h.rows_off, 0, h.tokens_off - h.rows_off);
    if (attach(s, memory, &h, err) < 0 ||
        kvcache_init_mirror(&s->kv, layout, s->base + h.kv_off, bytes - h.kv_off, shape->n_pages,
                            shape->n_pages - shape->n_unmirrored, shape->max_seqs, shape->ctx_len,
                            err) < 0) {
        state_clear(s);
        return -1;
    }
    atomic_thread_fence(memory_order_release);
    header->magic = STATE_MAGIC;
    return 0;
}

int state_adopt(struct state *s, const struct kv_layout *layout, const struct state_shape *shape,
                uint64_t fingerprint, void *memory, size_t bytes, struct err *err)
{
    struct state_header h = header_of(shape, fingerprint);
    const struct state_header *had = memory;
    *s = (struct state){ 0 };
    if (!lay_out(layout, shape, &h) || h.total_bytes > bytes || had->magic != STATE_MAGIC ||
        had->version != STATE_VERSION || had->fingerprint != fingerprint ||
        had->max_seqs != h.max_seqs || had->ctx_len != h.ctx_len || had->n_pages != h.n_pages ||
        had->n_unmirrored != h.n_unmirrored || had->total_bytes != h.total_bytes) {
        return err_set(err, ERR_CHANGED, "state pages of another model, shape or build");
    }
    if (attach(s, memory, &h, err) < 0 ||
        kvcache_adopt(&s->kv, layout, s->base + h.kv_off, bytes - h.kv_off, err) < 0) {
        state_clear(s);
        return -1;
    }
    if (s->kv.header->max_seqs != h.max_seqs || s->kv.header->n_pages != h.n_pages) {
        state_clear(s);
        return err_set(err, ERR_CHANGED, "state pages of another shape");
    }
    for (uint32_t seq = 0; seq < h.max_seqs; seq++) {
        if (state_in_use(s, seq) && s->rows[seq].shard == STATE_SHARD_NONE) {
            kvcache_end(&s->kv, seq);
        }
    }
    return 0;
}

void state_clear(struct state *s)
{
    if (s->kv.header) {
        kvcache_clear(&s->kv);
    }
    free(s->busy);
    *s = (struct state){ 0 };
}

int32_t *state_tokens(const struct state *s, uint32_t seq)
{
    assert(seq < s->header->max_seqs);
    return s->tokens + (uint64_t)seq * row_tokens(s->header->ctx_len);
}

bool state_in_use(const struct state *s, uint32_t seq)
{
    const struct kvcache_tag *tag = &s->kv.seqs[seq].tag;
    return tag->hi != 0 || tag->lo != 0;
}

static void touch(struct state *s, uint32_t seq)
{
    s->rows[seq].used = atomic_fetch_add_explicit(&s->header->clock, 1, memory_order_relaxed) + 1;
}

int state_begin(struct state *s, uint64_t shard, struct kvcache_tag tag, int64_t first_pos,
                uint32_t *seq, struct err *err)
{
    struct err full;
    if (tag.hi == 0 && tag.lo == 0) {
        tag.lo = 1; /* an id of zeros is a name like any other */
    }
    while (kvcache_begin(&s->kv, tag, first_pos, seq, &full) < 0) {
        if (full.code != ERR_FULL || !state_evict(s)) {
            return err_set(err, full.code, "%s", full.text);
        }
    }
    if (shm_populate(state_tokens(s, *seq), row_tokens(s->header->ctx_len) * sizeof(int32_t), err) <
        0) {
        kvcache_end(&s->kv, *seq);
        return err_wrap(err, "tokens of a sequence");
    }
    /* The sequence is empty until its first step or copy, so the row is in time. */
    s->rows[*seq].shard = shard;
    s->rows[*seq].parked = 0;
    s->busy[*seq] = true;
    touch(s, *seq);
    return 0;
}

void state_resume(struct state *s, uint32_t seq, struct kvcache_tag tag)
{
    assert(!s->busy[seq] && state_in_use(s, seq));
    if (tag.hi != 0 || tag.lo != 0) {
        s->kv.seqs[seq].tag = tag;
    }
    s->busy[seq] = true;
    touch(s, seq);
}

void state_idle(struct state *s, uint32_t seq)
{
    struct err err;
    assert(s->busy[seq]);
    s->busy[seq] = false;
    touch(s, seq);
    (void)kvcache_send(&s->kv, seq, true, &err); /* a device that fails says so at its next step */
    if (kvcache_pos(&s->kv, seq) == s->kv.seqs[seq].first_pos) {
        kvcache_end(&s->kv, seq); /* holds nothing */
    }
}

void state_drop(struct state *s, uint32_t seq)
{
    assert(s->busy[seq]);
    s->busy[seq] = false;
    kvcache_end(&s->kv, seq);
}

bool state_evict(struct state *s)
{
    int64_t oldest = -1;
    for (uint32_t seq = 0; seq < s->header->max_seqs; seq++) {
        if (!s->busy[seq] && state_in_use(s, seq) &&
            (oldest < 0 || s->rows[seq].used < s->rows[oldest].used)) {
            oldest = seq;
        }
    }
    if (oldest < 0) {
        return false;
    }
    kvcache_end(&s->kv, (uint32_t)oldest);
    return true;
}
