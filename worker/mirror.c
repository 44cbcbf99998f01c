/* See mirror.h. Copies leave in order and arrive in order: a ring of those on their way, the oldest first. */
#include "worker/mirror.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proto/bytes.h"

#define ON_WAY_MAX 64 /* sends whose arrival has not been seen */

/* A sequence on the device. Private: what survives is what the shared memory says. */
struct mirror_seq {
    int64_t end;         /* position that comes next */
    int64_t sent;        /* positions before it are copied or on their way */
    uint32_t state;      /* which copy of the recurrent state is the committed one, on the device */
    uint32_t sent_state; /* the same in the mirror, of the last that was sent */
    uint64_t birth;      /* counts those who had the slot, and truncations */
};

/* When it has arrived, `seq` (if it is still that one) ends at `end` in the mirror. */
struct on_way {
    uint64_t ticket, birth;
    uint32_t seq, state;
    int64_t end;
};

struct mirror {
    struct backend *backend; /* borrowed */
    uint8_t *pages, *states; /* on the device */
    struct mirror_seq *seqs; /* [max_seqs] */
    struct backend_run *runs;
    uint32_t n_runs_max;
    struct on_way on_way[ON_WAY_MAX]; /* a ring */
    uint32_t first, n;
};

uint8_t *mirror_pages(const struct kvcache *kv)
{
    return kv->mirror->pages;
}

static uint8_t *state_at(const struct kvcache *kv, uint8_t *states, uint32_t seq, uint32_t idx)
{
    return states + (2ull * seq + idx) * kv->layout->state_bytes;
}

uint8_t *mirror_state(const struct kvcache *kv, uint32_t seq, bool next)
{
    uint32_t idx = kv->mirror->seqs[seq].state ^ (next ? 1u : 0u);
    return state_at(kv, kv->mirror->states, seq, idx);
}

int64_t mirror_pos(const struct kvcache *kv, uint32_t seq)
{
    return kv->mirror->seqs[seq].end;
}

/* ---- creation ---- */

uint64_t mirror_states_bytes(const struct kv_layout *layout, uint32_t max_seqs)
{
    return align_up(2ull * max_seqs * layout->state_bytes, 4096);
}

/* Positions [first_pos, committed) of a sequence; pages that several share travel once (there: those that have, or NULL). */
static int restore_seq(const struct kvcache *kv, struct mirror *m, uint32_t seq, uint8_t *there,
                       struct err *err)
{
    const struct kvcache_seq *s = &kv->seqs[seq];
    const struct backend_ops *ops = m->backend->ops;
    struct mirror_seq *own = &m->seqs[seq];
    uint64_t committed = atomic_load_explicit(&s->committed, memory_order_acquire);
    uint64_t page_bytes = kv->header->page_bytes, state_bytes = kv->layout->state_bytes;
    own->end = own->sent = (int64_t)(committed >> 1);
    own->sent_state = own->state = (uint32_t)committed & 1;
    const uint32_t *table = kvcache_table(kv, seq);
    for (int64_t pos = s->first_pos / KV_PAGE_TOKENS * KV_PAGE_TOKENS; pos < own->end;
         pos += KV_PAGE_TOKENS) {
        uint32_t page = table[pos / KV_PAGE_TOKENS];
        if (there && there[page]) {
            continue;
        }
        if (there) {
            there[page] = 1;
        }
        kv->backed[page] = true;
        if (ops->upload(m->backend, m->pages + page * page_bytes, kv->pages + page * page_bytes,
                        page_bytes, err) < 0) {
            return -1;
        }
    }
    return state_bytes == 0
               ? 0
               : ops->upload(m->backend, state_at(kv, m->states, seq, own->state),
                             state_at(kv, kv->states, seq, own->state), state_bytes, err);
}

int mirror_fetch(struct kvcache *kv, uint32_t seq, struct err *err)
{
    return restore_seq(kv, kv->mirror, seq, NULL, err);
}

static int restore(const struct kvcache *kv, struct mirror *m, struct err *err)
{
    uint8_t *there = calloc(kv->header->n_pages + 1ull, 1);
    int rc = there ? 0 : err_set(err, ERR_NO_MEMORY, "kv cache: its mirror");
    for (uint32_t seq = 0; rc == 0 && seq < kv->header->max_seqs; seq++) {
        if (kv->seqs[seq].tag.hi != 0 || kv->seqs[seq].tag.lo != 0) {
            rc = restore_seq(kv, m, seq, there, err);
        }
    }
    free(there);
    return rc;
}

static void destroy(const struct kvcache *kv, struct mirror *m)
{
    m->backend->ops->unlend(m->backend, kv->header);
    m->backend->ops->free(m->backend, m->pages);
    m->backend->ops->free(m->backend, m->states);
    free(m->seqs);
    free(m->runs);
    free(m);
}

struct mirror *mirror_create(const struct kvcache *kv, struct backend *backend, struct err *err)
{
    const struct kvcache_header *h = kv->header;
    struct mirror *m = calloc(1, sizeof *m);
    if (!m) {
        err_set(err, ERR_NO_MEMORY, "kv cache: its mirror");
        return NULL;
    }
    m->backend = backend;
    m->n_runs_max = h->pages_per_seq + 4 * kv->layout->n_layers + 1;
    m->seqs = calloc(h->max_seqs, sizeof *m->seqs);
    m->runs = calloc(m->n_runs_max, sizeof *m->runs);
    if (!m->seqs || !m->runs) {
        err_set(err, ERR_NO_MEMORY, "kv cache: its mirror");
        goto fail;
    }
    m->pages = backend->ops->alloc(backend, h->n_pages * h->page_bytes, err);
    if (!m->pages) {
        err_wrap(err, "%u pages of keys and values", h->n_pages);
        goto fail;
    }
    if (h->state_bytes > 0) {
        m->states = backend->ops->alloc(backend, mirror_states_bytes(kv->layout, h->max_seqs), err);
    }
    if ((h->state_bytes > 0 && !m->states) ||
        backend->ops->lend(backend, kv->header, h->total_bytes, err) < 0 ||
        restore(kv, m, err) < 0) {
        err_wrap(err, "recurrent states of %u sequences", h->max_seqs);
        goto fail;
    }
    return m;
fail:
    destroy(kv, m);
    return NULL;
}

/* ---- arrivals ---- */

static void arrive(struct kvcache *kv, const struct on_way *w)
{
    if (kv->mirror->seqs[w->seq].birth == w->birth) {
        kvcache_set_end(&kv->seqs[w->seq], w->end, w->state);
    }
}

/* Takes note of what has arrived; at most `left` may still be on their way afterwards. */
static int look(struct kvcache *kv, uint32_t left, struct err *err)
{
    struct mirror *m = kv->mirror;
    while (m->n > 0) {
        const struct on_way *w = &m->on_way[m->first];
        int there = m->backend->ops->mirrored(m->backend, w->ticket, m->n > left, err);
        if (there <= 0) {
            return there;
        }
        arrive(kv, w);
        m->first = (m->first + 1) % ON_WAY_MAX;
        m->n--;
    }
    return 0;
}

void mirror_destroy(struct kvcache *kv)
{
    struct err err;
    if (kv->mirror) {
        (void)look(kv, 0, &err); /* what a broken device does not bring is not there */
        destroy(kv, kv->mirror);
        kv->mirror = NULL;
    }
}

/* ---- sequences ---- */

int mirror_begin(struct kvcache *kv, uint32_t seq, int64_t first_pos, struct err *err)
{
    struct mirror *m = kv->mirror;
    struct mirror_seq *own = &m->seqs[seq];
    *own = (struct mirror_seq){ .end = first_pos, .sent = first_pos, .birth = own->birth + 1 };
    return kv->layout->state_bytes == 0
               ? 0
               : m->backend->ops->clear(m->backend, mirror_state(kv, seq, false),
                                        kv->layout->state_bytes, err);
}

void mirror_end(struct kvcache *kv, uint32_t seq)
{
    kv->mirror->seqs[seq].birth++;
}

void mirror_commit(struct kvcache *kv, uint32_t seq, uint32_t n_tokens)
{
    struct mirror_seq *own = &kv->mirror->seqs[seq];
    own->end += n_tokens;
    own->state ^= kv->layout->state_bytes ? 1 : 0;
}

int mirror_truncate(struct kvcache *kv, uint32_t seq, int64_t pos, struct err *err)
{
    struct mirror *m = kv->mirror;
    struct mirror_seq *own = &m->seqs[seq];
    struct kvcache_seq *s = &kv->seqs[seq];
    if (look(kv, 0, err) < 0) {
        return -1;
    }
    own->end = pos;
    own->birth++;
    if (kv->layout->state_bytes) { /* pos is the beginning */
        own->state = own->sent_state = 0;
        own->sent = pos;
        kvcache_set_end(s, pos, 0);
        memset(state_at(kv, kv->states, seq, 0), 0, kv->layout->state_bytes);
        return m->backend->ops->clear(m->backend, mirror_state(kv, seq, false),
                                      kv->layout->state_bytes, err);
    }
    if (own->sent > pos) {
        own->sent = pos;
        kvcache_set_end(s, pos, 0);
    }
    return 0;
}

int mirror_take_back(struct kvcache *kv, uint32_t seq, struct err *err)
{
    struct mirror_seq *own = &kv->mirror->seqs[seq];
    int64_t pos = own->end - 1;
    assert(pos >= kv->seqs[seq].first_pos);
    if (own->sent > pos) { /* for one who shares its prefix; never a recurrent state */
        assert(kv->layout->state_bytes == 0);
        return mirror_truncate(kv, seq, pos, err);
    }
    own->end = pos;
    own->state ^= kv->layout->state_bytes ? 1 : 0;
    return 0;
}

void mirror_share(struct kvcache *kv, uint32_t dst, uint32_t src, int64_t pos)
{
    struct mirror *m = kv->mirror;
    int64_t sent = m->seqs[src].sent < pos ? m->seqs[src].sent : pos;
    m->seqs[dst].end = pos;
    m->seqs[dst].sent = sent;
    kvcache_set_end(&kv->seqs[dst], sent, 0); /* src's sends have arrived: kvcache_copy_prefix */
}

int mirror_copy_page(struct kvcache *kv, uint32_t to, uint32_t from, struct err *err)
{
    const struct kvcache_header *h = kv->header;
    struct mirror *m = kv->mirror;
    if (look(kv, 0, err) < 0) {
        return -1;
    }
    if (kv->backed[to] && kv->backed[from]) {
        memcpy(kv->pages + to * h->page_bytes, kv->pages + from * h->page_bytes, h->page_bytes);
    }
    return m->backend->ops->copy(m->backend, m->pages + to * h->page_bytes,
                                 m->pages + from * h->page_bytes, h->page_bytes, err);
}

/* ---- sending ---- */

/* Positions [from, to) of one page: whole pages as they are, else the tiles that hold them, head by head. */
static uint32_t page_runs(const struct kvcache *kv, uint32_t page, uint32_t from, uint32_t to,
                          struct backend_run *runs)
{
    uint8_t *host = kv->pages + page * kv->header->page_bytes;
    const uint8_t *device = kv->mirror->pages + page * kv->header->page_bytes;
    if (from == 0 && to == KV_PAGE_TOKENS) {
        runs[0] = (struct backend_run){ host, device, kv->header->page_bytes, 0, 1 };
        return 1;
    }
    uint32_t n = 0, first = from / KV_TILE * KV_TILE;
    uint32_t n_tiles = (to + KV_TILE - 1) / KV_TILE - from / KV_TILE;
    for (uint32_t i = 0; i < kv->layout->n_layers; i++) {
        const struct kv_layer *l = &kv->layout->layer[i];
        const uint64_t off[2] = { l->k_off, l->v_off };
        const uint32_t row[2] = { l->k_row_bytes, l->v_row_bytes };
        for (int side = 0; side < 2 && l->n_kv_heads > 0; side++) {
            if (row[side] == 0) {
                continue;
            }
            uint64_t at = off[side] + (uint64_t)first * row[side];
            runs[n++] = (struct backend_run){ host + at, device + at,
                                              (uint64_t)n_tiles * KV_TILE * row[side],
                                              (uint64_t)KV_PAGE_TOKENS * row[side], l->n_kv_heads };
        }
    }
    return n;
}

/* How far the mirror has room: up to the first page that it has no place for. */
static int64_t reach(const struct kvcache *kv, uint32_t seq, int64_t from, int64_t to)
{
    const uint32_t *table = kvcache_table(kv, seq);
    for (int64_t i = from / KV_PAGE_TOKENS; i * KV_PAGE_TOKENS < to; i++) {
        if (!kv->backed[table[i]]) {
            return i * KV_PAGE_TOKENS > from ? i * KV_PAGE_TOKENS : from;
        }
    }
    return to;
}

int mirror_send(struct kvcache *kv, uint32_t seq, bool all, struct err *err)
{
    struct mirror *m = kv->mirror;
    struct mirror_seq *own = &m->seqs[seq];
    bool recurrent = kv->layout->state_bytes > 0;
    uint32_t step = recurrent ? MIRROR_STATE_TOKENS : KV_TILE, n = 0;
    if (look(kv, ON_WAY_MAX - 1, err) < 0) {
        return -1;
    }
    int64_t end = reach(kv, seq, own->sent, own->end);
    bool due = own->end / step != own->sent / step || all;
    if (end > own->sent && due && (!recurrent || end == own->end)) {
        const uint32_t *table = kvcache_table(kv, seq);
        for (int64_t pos = own->sent, next; pos < end; pos = next) {
            int64_t page = pos / KV_PAGE_TOKENS, begin = page * KV_PAGE_TOKENS;
            next = begin + KV_PAGE_TOKENS < end ? begin + KV_PAGE_TOKENS : end;
            n += page_runs(kv, table[page], (uint32_t)(pos - begin), (uint32_t)(next - begin),
                           m->runs + n);
        }
        if (recurrent) {
            own->sent_state ^= 1;
            m->runs[n++] = (struct backend_run){ state_at(kv, kv->states, seq, own->sent_state),
                                                 mirror_state(kv, seq, false),
                                                 kv->layout->state_bytes, 0, 1 };
        }
        assert(n <= m->n_runs_max);
        struct on_way *w = &m->on_way[(m->first + m->n) % ON_WAY_MAX];
        *w = (struct on_way){
            .birth = own->birth, .seq = seq, .state = own->sent_state, .end = end
        };
        if (m->backend->ops->mirror(m->backend, m->runs, n, recurrent, &w->ticket, err) < 0) {
            return -1;
        }
        m->n++;
        own->sent = end;
    }
    return look(kv, all ? 0 : ON_WAY_MAX, err);
}
