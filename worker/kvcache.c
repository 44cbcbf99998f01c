/* See kvcache.h. A page belongs to the tables that name it; refs counts them and is never stored. */
#include "worker/kvcache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proto/bytes.h"
#include "proto/shm.h"
#include "worker/mirror.h"

#define SECTION_ALIGN 4096u

struct sections {
    uint64_t seqs_off, tables_off, states_off, pages_off, total;
};

/* Where the parts stand; false when it does not fit 64 bits. */
static bool lay_out(const struct kv_layout *layout, uint64_t n_pages, uint64_t max_seqs,
                    uint64_t pages_per_seq, struct sections *s)
{
    uint64_t tables, states, pages;
    if (!size_mul(max_seqs * sizeof(uint32_t), pages_per_seq, &tables) ||
        !size_mul(2 * max_seqs, layout->state_bytes, &states) ||
        !size_mul(n_pages, layout->page_bytes, &pages) || (tables | states | pages) >> 62) {
        return false;
    }
    s->seqs_off = align_up(sizeof(struct kvcache_header), 64);
    s->tables_off = align_up(s->seqs_off + max_seqs * sizeof(struct kvcache_seq), 64);
    s->states_off = align_up(s->tables_off + tables, 64);
    s->pages_off = align_up(s->states_off + states, SECTION_ALIGN);
    s->total = s->pages_off + pages;
    return true;
}

uint32_t kvcache_pages_for(uint32_t n_tokens)
{
    return (uint32_t)(((uint64_t)n_tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS);
}

size_t kvcache_mirror_size(const struct kv_layout *layout, uint32_t n_host_pages, uint32_t max_seqs,
                           uint32_t ctx_len)
{
    struct sections s;
    return lay_out(layout, n_host_pages, max_seqs, kvcache_pages_for(ctx_len), &s) ? s.total
                                                                                   : SIZE_MAX;
}

size_t kvcache_size(const struct kv_layout *layout, uint32_t n_pages, uint32_t max_seqs,
                    uint32_t ctx_len)
{
    return kvcache_mirror_size(layout, n_pages, max_seqs, ctx_len);
}

/* Points into memory whose header is good, and makes the private tables. */
static int attach(struct kvcache *kv, const struct kv_layout *layout, void *memory,
                  const struct sections *s, struct err *err)
{
    uint8_t *base = memory;
    *kv = (struct kvcache){ .layout = layout, .header = memory };
    kv->seqs = (struct kvcache_seq *)(void *)(base + s->seqs_off);
    kv->tables = (uint32_t *)(void *)(base + s->tables_off);
    kv->states = base + s->states_off;
    kv->pages = base + s->pages_off;
    kv->refs = calloc(kv->header->n_pages + 1ull, sizeof *kv->refs);
    kv->free_list = calloc(kv->header->n_pages + 1ull, sizeof *kv->free_list);
    kv->backed = calloc(kv->header->n_pages + 1ull, sizeof *kv->backed);
    if (!kv->refs || !kv->free_list || !kv->backed) {
        kvcache_clear(kv);
        return err_set(err, ERR_NO_MEMORY, "kv cache: table of pages");
    }
    return 0;
}

/* Low page numbers are handed out first. */
static void rebuild_free_list(struct kvcache *kv)
{
    kv->n_free = 0;
    for (uint32_t i = kv->header->n_pages; i-- > 0;) {
        if (kv->refs[i] == 0) {
            kv->free_list[kv->n_free++] = i;
        }
    }
}

int kvcache_init_mirror(struct kvcache *kv, const struct kv_layout *layout, void *memory,
                        size_t size_bytes, uint32_t n_pages, uint32_t n_host_pages,
                        uint32_t max_seqs, uint32_t ctx_len, struct err *err)
{
    uint32_t pages_per_seq = kvcache_pages_for(ctx_len);
    struct sections s;
    *kv = (struct kvcache){ 0 };
    if (max_seqs == 0 || pages_per_seq == 0 || n_host_pages > n_pages ||
        !lay_out(layout, n_host_pages, max_seqs, pages_per_seq, &s) || s.total > size_bytes) {
        return err_set(err, ERR_BAD_INPUT,
                       "kv cache: %u pages, %u sequences of %u: not in %zu bytes", n_pages,
                       max_seqs, ctx_len, size_bytes);
    }
    if (shm_populate(memory, s.states_off, err) < 0) {
        return err_wrap(err, "kv cache: tables");
    }
    struct kvcache_header *h = memory;
    *h = (struct kvcache_header){
        .version = KVCACHE_VERSION,
        .max_seqs = max_seqs,
        .pages_per_seq = pages_per_seq,
        .n_pages = n_pages,
        .n_host_pages = n_host_pages,
        .page_bytes = layout->page_bytes,
        .state_bytes = layout->state_bytes,
        .fingerprint = layout->fingerprint,
        .total_bytes = s.total,
    };
    if (attach(kv, layout, memory, &s, err) < 0) {
        return -1;
    }
    memset(kv->seqs, 0, max_seqs * sizeof *kv->seqs);
    memset(kv->tables, 0xff, (size_t)max_seqs * pages_per_seq * sizeof *kv->tables);
    rebuild_free_list(kv);
    atomic_thread_fence(memory_order_release);
    h->magic = KVCACHE_MAGIC;
    return 0;
}

int kvcache_init(struct kvcache *kv, const struct kv_layout *layout, void *memory,
                 size_t size_bytes, uint32_t n_pages, uint32_t max_seqs, uint32_t ctx_len,
                 struct err *err)
{
    return kvcache_init_mirror(kv, layout, memory, size_bytes, n_pages, n_pages, max_seqs, ctx_len,
                               err);
}

static uint32_t *table_of(const struct kvcache *kv, uint32_t seq)
{
    assert(seq < kv->header->max_seqs);
    return kv->tables + (size_t)seq * kv->header->pages_per_seq;
}

/* What stands in this memory, which is all there is without a mirror. */
static int64_t end_of(const struct kvcache_seq *s)
{
    return (int64_t)(atomic_load_explicit(&s->committed, memory_order_acquire) >> 1);
}

static uint32_t state_of(const struct kvcache_seq *s)
{
    return (uint32_t)atomic_load_explicit(&s->committed, memory_order_relaxed) & 1;
}

void kvcache_set_end(struct kvcache_seq *s, int64_t end, uint32_t state)
{
    atomic_store_explicit(&s->committed, (uint64_t)end << 1 | state, memory_order_release);
}

static bool in_use(const struct kvcache_seq *s)
{
    return s->tag.hi != 0 || s->tag.lo != 0;
}

static void forget(struct kvcache *kv, uint32_t seq)
{
    kv->seqs[seq].tag = (struct kvcache_tag){ 0 };
    memset(table_of(kv, seq), 0xff, kv->header->pages_per_seq * sizeof(uint32_t));
}

/* A predecessor's sequence counts when every committed position has a page that exists. Pages beyond the end
 * were reserved for a step that never ended: they are given back. */
static bool adopt_seq(struct kvcache *kv, uint32_t seq)
{
    struct kvcache_seq *s = &kv->seqs[seq];
    uint32_t *table = table_of(kv, seq);
    int64_t end = end_of(s);
    int64_t limit = (int64_t)kv->header->pages_per_seq * KV_PAGE_TOKENS;
    if (!in_use(s) || s->first_pos < 0 || end < s->first_pos || end > limit) {
        return false;
    }
    uint32_t first = (uint32_t)(s->first_pos / KV_PAGE_TOKENS);
    uint32_t last = end > s->first_pos ? (uint32_t)((end - 1) / KV_PAGE_TOKENS) + 1 : first;
    for (uint32_t i = first; i < last; i++) {
        if (table[i] >= kv->header->n_host_pages) {
            return false;
        }
    }
    for (uint32_t i = 0; i < kv->header->pages_per_seq; i++) {
        if (i >= first && i < last) {
            kv->refs[table[i]]++;
        } else {
            table[i] = KV_PAGE_NONE;
        }
    }
    return true;
}

int kvcache_adopt(struct kvcache *kv, const struct kv_layout *layout, void *memory,
                  size_t size_bytes, struct err *err)
{
    struct sections s;
    *kv = (struct kvcache){ 0 };
    if (size_bytes < sizeof(struct kvcache_header)) {
        return err_set(err, ERR_CHANGED, "kv cache: %zu bytes hold no header", size_bytes);
    }
    const struct kvcache_header *h = memory;
    if (h->magic != KVCACHE_MAGIC || h->version != KVCACHE_VERSION ||
        h->fingerprint != layout->fingerprint || h->page_bytes != layout->page_bytes ||
        h->state_bytes != layout->state_bytes || h->max_seqs == 0 || h->pages_per_seq == 0 ||
        h->n_host_pages > h->n_pages ||
        !lay_out(layout, h->n_host_pages, h->max_seqs, h->pages_per_seq, &s) ||
        s.total != h->total_bytes || s.total > size_bytes) {
        return err_set(err, ERR_CHANGED, "kv cache: made by another model or build");
    }
    if (attach(kv, layout, memory, &s, err) < 0) {
        return -1;
    }
    for (uint32_t seq = 0; seq < kv->header->max_seqs; seq++) {
        if (!adopt_seq(kv, seq)) {
            forget(kv, seq);
        }
    }
    rebuild_free_list(kv);
    return 0;
}

int kvcache_place(struct kvcache *kv, struct backend *backend, struct err *err)
{
    assert(!kv->mirror);
    if (!backend->ops->mirror) {
        return 0;
    }
    kv->mirror = mirror_create(kv, backend, err);
    return kv->mirror ? 0 : -1;
}

int kvcache_send(struct kvcache *kv, uint32_t seq, bool all, struct err *err)
{
    return kv->mirror ? mirror_send(kv, seq, all, err) : 0;
}

void kvcache_clear(struct kvcache *kv)
{
    mirror_destroy(kv);
    free(kv->refs);
    free(kv->free_list);
    free(kv->backed);
    *kv = (struct kvcache){ 0 };
}

static uint8_t *host_state(const struct kvcache *kv, uint32_t seq, uint32_t idx)
{
    return kv->states + (2ull * seq + idx) * kv->layout->state_bytes;
}

int kvcache_begin(struct kvcache *kv, struct kvcache_tag tag, int64_t first_pos, uint32_t *seq,
                  struct err *err)
{
    if ((tag.hi == 0 && tag.lo == 0) || first_pos < 0 ||
        first_pos > (int64_t)kv->header->pages_per_seq * KV_PAGE_TOKENS) {
        return err_set(err, ERR_BAD_INPUT, "kv cache: a sequence needs a tag and a position");
    }
    for (uint32_t i = 0; i < kv->header->max_seqs; i++) {
        struct kvcache_seq *s = &kv->seqs[i];
        if (!in_use(s)) {
            if (kv->layout->state_bytes &&
                shm_populate(kv->states + 2ull * i * kv->layout->state_bytes,
                             2 * kv->layout->state_bytes, err) < 0) {
                return -1;
            }
            s->first_pos = first_pos;
            kvcache_set_end(s, first_pos, 0);
            if (kv->layout->state_bytes) {
                memset(host_state(kv, i, 0), 0, kv->layout->state_bytes);
            }
            if (kv->mirror && mirror_begin(kv, i, first_pos, err) < 0) {
                return -1;
            }
            atomic_thread_fence(memory_order_release);
            s->tag = tag;
            *seq = i;
            return 0;
        }
    }
    return err_set(err, ERR_FULL, "kv cache: all %u sequences are in use", kv->header->max_seqs);
}

static void drop_page(struct kvcache *kv, uint32_t *entry)
{
    uint32_t page = *entry;
    if (page == KV_PAGE_NONE) {
        return;
    }
    *entry = KV_PAGE_NONE;
    assert(kv->refs[page] > 0);
    if (--kv->refs[page] == 0) {
        kv->free_list[kv->n_free++] = page;
    }
}

void kvcache_end(struct kvcache *kv, uint32_t seq)
{
    uint32_t *table = table_of(kv, seq);
    assert(in_use(&kv->seqs[seq]));
    for (uint32_t i = 0; i < kv->header->pages_per_seq; i++) {
        drop_page(kv, &table[i]);
    }
    if (kv->mirror) {
        mirror_end(kv, seq);
    }
    forget(kv, seq);
}

int64_t kvcache_find(const struct kvcache *kv, struct kvcache_tag tag)
{
    for (uint32_t i = 0; i < kv->header->max_seqs; i++) {
        const struct kvcache_seq *s = &kv->seqs[i];
        if (in_use(s) && s->tag.hi == tag.hi && s->tag.lo == tag.lo) {
            return i;
        }
    }
    return -1;
}

int64_t kvcache_pos(const struct kvcache *kv, uint32_t seq)
{
    assert(seq < kv->header->max_seqs);
    return kv->mirror ? mirror_pos(kv, seq) : end_of(&kv->seqs[seq]);
}

/* A page for itself where one was shared and partly ours. */
static int copy_page(struct kvcache *kv, uint32_t to, uint32_t from, struct err *err)
{
    if (kv->mirror) {
        return mirror_copy_page(kv, to, from, err);
    }
    memcpy(kv->pages + to * kv->header->page_bytes, kv->pages + from * kv->header->page_bytes,
           kv->header->page_bytes);
    return 0;
}

/* Memory behind the pages that are taken next. Their number says nothing of how far the memory reaches: those that were
 * given back are taken first. A mirror goes without those that it cannot have. */
static int back_pages(struct kvcache *kv, uint32_t n, struct err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t page = kv->free_list[kv->n_free - 1 - i];
        struct err why;
        if (kv->backed[page] || page >= kv->header->n_host_pages) {
            continue;
        }
        kv->backed[page] = shm_populate(kv->pages + page * kv->header->page_bytes,
                                        kv->header->page_bytes, &why) == 0;
        if (!kv->backed[page] && !kv->mirror) {
            return err_set(err, ERR_FULL, "kv cache: %s", why.text);
        }
    }
    return 0;
}

int kvcache_reserve(struct kvcache *kv, uint32_t seq, uint32_t n_tokens, struct err *err)
{
    uint32_t *table = table_of(kv, seq);
    int64_t pos = kvcache_pos(kv, seq), end = pos + n_tokens;
    if (end > (int64_t)kv->header->pages_per_seq * KV_PAGE_TOKENS) {
        return err_set(err, ERR_NO_FIT, "kv cache: position %lld, the context is %u",
                       (long long)end, kv->header->pages_per_seq * KV_PAGE_TOKENS);
    }
    if (n_tokens == 0) {
        return 0;
    }
    uint32_t first = (uint32_t)(pos / KV_PAGE_TOKENS);
    uint32_t last = (uint32_t)((end - 1) / KV_PAGE_TOKENS) + 1, wanted = 0;
    for (uint32_t i = first; i < last; i++) {
        wanted += table[i] == KV_PAGE_NONE || kv->refs[table[i]] > 1;
    }
    if (wanted > kv->n_free) {
        return err_set(err, ERR_FULL, "kv cache: %u pages wanted, %u free", wanted, kv->n_free);
    }
    if (back_pages(kv, wanted, err) < 0) {
        return -1;
    }
    for (uint32_t i = first; i < last; i++) {
        uint32_t old = table[i];
        if (old != KV_PAGE_NONE && kv->refs[old] == 1) {
            continue;
        }
        uint32_t page = kv->free_list[kv->n_free - 1];
        if (old != KV_PAGE_NONE) {
            if (copy_page(kv, page, old, err) < 0) {
                return -1;
            }
            kv->refs[old]--;
        }
        kv->n_free--;
        kv->refs[page] = 1;
        table[i] = page;
    }
    return 0;
}

void kvcache_commit(struct kvcache *kv, uint32_t seq, uint32_t n_tokens)
{
    struct kvcache_seq *s = &kv->seqs[seq];
    if (kv->mirror) {
        mirror_commit(kv, seq, n_tokens);
        return;
    }
    uint32_t state = kv->layout->state_bytes ? state_of(s) ^ 1 : 0;
    kvcache_set_end(s, end_of(s) + n_tokens, state);
}

static void drop_pages_from(struct kvcache *kv, uint32_t seq, int64_t pos)
{
    uint32_t *table = table_of(kv, seq);
    uint32_t keep = (uint32_t)((pos + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS);
    for (uint32_t i = keep; i < kv->header->pages_per_seq; i++) {
        drop_page(kv, &table[i]);
    }
}

int kvcache_truncate(struct kvcache *kv, uint32_t seq, int64_t pos, struct err *err)
{
    struct kvcache_seq *s = &kv->seqs[seq];
    int64_t end = kvcache_pos(kv, seq);
    if (pos == end) {
        return 0;
    }
    if (pos < s->first_pos || pos > end) {
        return err_set(err, ERR_BAD_INPUT, "kv cache: cannot go back to position %lld from %lld",
                       (long long)pos, (long long)end);
    }
    if (kv->layout->state_bytes && pos != s->first_pos) {
        return err_set(err, ERR_UNSUPPORTED, "kv cache: a recurrent model cannot rewind");
    }
    if (kv->mirror) {
        if (mirror_truncate(kv, seq, pos, err) < 0) {
            return -1;
        }
    } else {
        kvcache_set_end(s, pos, state_of(s));
        if (kv->layout->state_bytes) {
            memset(kvcache_state(kv, seq, false), 0, kv->layout->state_bytes);
        }
    }
    drop_pages_from(kv, seq, pos);
    return 0;
}

int kvcache_take_back(struct kvcache *kv, uint32_t seq, struct err *err)
{
    assert(kv->mirror);
    if (mirror_take_back(kv, seq, err) < 0) {
        return -1;
    }
    drop_pages_from(kv, seq, kvcache_pos(kv, seq));
    return 0;
}

int kvcache_copy_prefix(struct kvcache *kv, uint32_t dst, uint32_t src, uint32_t n_tokens,
                        uint32_t *n_copied, struct err *err)
{
    struct kvcache_seq *to = &kv->seqs[dst];
    const struct kvcache_seq *from = &kv->seqs[src];
    *n_copied = 0;
    if (!in_use(to) || !in_use(from) || kvcache_pos(kv, dst) != to->first_pos) {
        return err_set(err, ERR_BAD_INPUT, "kv cache: a prefix goes into an empty sequence");
    }
    if (kv->layout->state_bytes || to->first_pos != from->first_pos ||
        from->first_pos % KV_PAGE_TOKENS != 0) {
        return 0;
    }
    if (kvcache_send(kv, src, true, err) < 0) {
        return -1;
    }
    int64_t have = kvcache_pos(kv, src) - from->first_pos;
    uint32_t n = n_tokens < have ? n_tokens : (uint32_t)have;
    uint32_t first = (uint32_t)(from->first_pos / KV_PAGE_TOKENS), n_pages = n / KV_PAGE_TOKENS;
    uint32_t *to_table = table_of(kv, dst);
    const uint32_t *from_table = table_of(kv, src);
    for (uint32_t i = first; i < first + n_pages; i++) {
        drop_page(kv, &to_table[i]);
        to_table[i] = from_table[i];
        kv->refs[from_table[i]]++;
    }
    *n_copied = n_pages * KV_PAGE_TOKENS;
    if (kv->mirror) {
        mirror_share(kv, dst, src, to->first_pos + *n_copied);
    } else {
        kvcache_set_end(to, to->first_pos + *n_copied, 0);
    }
    return 0;
}

uint8_t *kvcache_pages(const struct kvcache *kv)
{
    return kv->mirror ? mirror_pages(kv) : kv->pages;
}

const uint32_t *kvcache_table(const struct kvcache *kv, uint32_t seq)
{
    return table_of(kv, seq);
}

uint8_t *kvcache_state(const struct kvcache *kv, uint32_t seq, bool next)
{
    if (!kv->layout->state_bytes) {
        return NULL;
    }
    if (kv->mirror) {
        return mirror_state(kv, seq, next);
    }
    return host_state(kv, seq, state_of(&kv->seqs[seq]) ^ (next ? 1u : 0u));
}

bool kvcache_is_here(const struct kvcache *kv, uint32_t seq)
{
    return kvcache_pos(kv, seq) == end_of(&kv->seqs[seq]);
}

bool kvcache_has_room_here(const struct kvcache *kv, uint32_t seq)
{
    const uint32_t *table = table_of(kv, seq);
    for (uint32_t i = 0; kv->mirror && i < kv->header->pages_per_seq; i++) {
        if (table[i] != KV_PAGE_NONE && !kv->backed[table[i]]) {
            return false;
        }
    }
    return true;
}

uint8_t *kvcache_host_state(const struct kvcache *kv, uint32_t seq, bool next)
{
    return kv->layout->state_bytes
               ? host_state(kv, seq, state_of(&kv->seqs[seq]) ^ (next ? 1u : 0u))
               : NULL;
}

int kvcache_take(struct kvcache *kv, uint32_t seq, uint32_t n_tokens, struct err *err)
{
    struct kvcache_seq *s = &kv->seqs[seq];
    kvcache_set_end(s, end_of(s) + n_tokens, kv->layout->state_bytes ? state_of(s) ^ 1 : 0);
    return kv->mirror ? mirror_fetch(kv, seq, err) : 0;
}
