#include "worker/park.h"

#include <inttypes.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- whose bits ---- */

static uint64_t mix_bytes(uint64_t hash, const void *data, size_t n)
{
    return parked_sum(data, n) ^ (hash * 0x100000001b3ull);
}

/* The linker's name for this very program: any other build's bits may differ. */
static int mix_build_id(struct dl_phdr_info *info, size_t size, void *arg)
{
    uint64_t *hash = arg;
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
        if (ph->p_type == PT_NOTE) {
            *hash = mix_bytes(*hash, (const uint8_t *)info->dlpi_addr + ph->p_vaddr, ph->p_memsz);
        }
    }
    return 1; /* the first is the program itself */
}

uint64_t park_engine(void)
{
    static const char version[] = HEARTH_VERSION;
    const char *fixed = getenv("HEARTH_ISA");
    uint64_t hash = mix_bytes(PARKED_VERSION, version, sizeof version);
    dl_iterate_phdr(mix_build_id, &hash);
    hash = mix_bytes(hash, fixed ? fixed : "", fixed ? strlen(fixed) : 0);
#ifdef __x86_64__
    const int has[] = { __builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"),
                        __builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512vnni") };
    for (size_t i = 0; i < sizeof has / sizeof *has; i++) {
        hash = mix_bytes(hash, has[i] ? "y" : "n", 1); /* a file may travel to another machine */
    }
#endif
    return hash;
}

/* ---- common ---- */

static uint8_t *page_at(const struct state *s, uint32_t seq, uint32_t i)
{
    return s->kv.pages + kvcache_table(&s->kv, seq)[i] * s->kv.header->page_bytes;
}

static bool reads(const struct park *p)
{
    return p->n_pages > 0;
}

void park_clear(struct park *p)
{
    if (!p->state) {
        return;
    }
    if (reads(p)) {
        state_drop(p->state, p->seq);
    }
    if (p->fd >= 0) {
        close(p->fd);
    }
    parked_clear(&p->file);
    *p = (struct park){ 0 };
}

/* ---- to a file ---- */

int64_t park_next(const struct state *s)
{
    int64_t next = -1;
    for (uint32_t seq = 0; seq < s->header->max_seqs; seq++) {
        if (s->busy[seq] || !state_in_use(s, seq) || s->rows[seq].shard == STATE_SHARD_NONE ||
            s->rows[seq].parked == s->rows[seq].used || s->kv.seqs[seq].first_pos != 0 ||
            kvcache_pos(&s->kv, seq) < PARK_TOKENS_MIN || !kvcache_is_here(&s->kv, seq)) {
            continue;
        }
        if (next < 0 || s->rows[seq].used > s->rows[next].used) {
            next = seq;
        }
    }
    return next;
}

int park_write_begin(struct park *p, struct state *s, uint32_t seq, uint64_t key, int fd,
                     struct err *err)
{
    struct parked file;
    const struct kv_layout *layout = s->kv.layout;
    uint32_t n_tokens = (uint32_t)kvcache_pos(&s->kv, seq);
    if (parked_init(&file, key, n_tokens, KV_PAGE_TOKENS, layout->page_bytes, layout->state_bytes,
                    err) < 0) {
        close(fd);
        return -1;
    }
    file.head.tag_hi = s->kv.seqs[seq].tag.hi;
    file.head.tag_lo = s->kv.seqs[seq].tag.lo;
    memcpy(file.tokens, state_tokens(s, seq), n_tokens * sizeof *file.tokens);
    *p = (struct park){ .state = s, .fd = fd, .file = file, .seq = seq, .used = s->rows[seq].used };
    return 0;
}

static bool unchanged(const struct park *p)
{
    const struct state *s = p->state;
    return !s->busy[p->seq] && state_in_use(s, p->seq) && s->rows[p->seq].used == p->used;
}

/* The piece that is due: a page, or at the end the recurrent state. */
static int write_one(struct park *p, struct err *err)
{
    const struct parked_head *h = &p->file.head;
    bool page = p->next < h->n_pages;
    uint64_t off = page ? parked_page_off(h, p->next) : parked_state_off(h);
    const uint8_t *from = page ? page_at(p->state, p->seq, p->next)
                               : kvcache_host_state(&p->state->kv, p->seq, false);
    size_t n = page ? h->page_bytes : h->state_bytes;
    p->file.sums[p->next++] = parked_sum(from, n);
    return n ? parked_pwrite(p->fd, from, n, off, err) : 0;
}

int park_write(struct park *p, struct err *err)
{
    const struct parked_head *h = &p->file.head;
    if (!unchanged(p)) {
        err_set(err, ERR_CHANGED, "somebody took it up again");
        park_clear(p);
        return -1;
    }
    for (uint64_t moved = 0; p->next <= h->n_pages && moved < PARK_PIECE_BYTES;
         moved += h->page_bytes) {
        if (write_one(p, err) < 0) {
            park_clear(p);
            return -1;
        }
    }
    if (p->next <= h->n_pages) {
        return 0;
    }
    if (parked_finish(&p->file, p->fd, err) < 0) {
        park_clear(p);
        return -1;
    }
    p->state->rows[p->seq].parked = p->used;
    park_clear(p);
    return 1;
}

/* ---- from a file ---- */

/* Positions of the file that serve a request with these tokens, whose last one is fed in any case. */
static uint32_t useful(const struct parked *f, const struct kv_layout *layout,
                       const int32_t *tokens, uint32_t n_tokens)
{
    uint32_t most = f->head.n_tokens < n_tokens - 1 ? f->head.n_tokens : n_tokens - 1, n = 0;
    while (n < most && f->tokens[n] == tokens[n]) {
        n++;
    }
    return layout->state_bytes && n < f->head.n_tokens ? 0 : n; /* recurrent: all of it or none */
}

int64_t park_read_begin(struct park *p, struct state *s, uint64_t shard, uint64_t key,
                        const int32_t *tokens, uint32_t n_tokens, uint32_t have, int fd,
                        struct err *err)
{
    const struct kv_layout *layout = s->kv.layout;
    struct parked file;
    uint32_t seq;
    if (parked_read(&file, fd, err) < 0) {
        close(fd);
        return -1;
    }
    const struct parked_head *h = &file.head;
    const struct kvcache_tag tag = { h->tag_hi, h->tag_lo };
    uint32_t n = useful(&file, layout, tokens, n_tokens);
    int64_t result = n;
    if (h->key != key || h->page_tokens != KV_PAGE_TOKENS || h->page_bytes != layout->page_bytes ||
        h->state_bytes != layout->state_bytes) {
        result = err_set(err, ERR_CHANGED, "it was computed by another model or build");
    } else if (n < PARK_TOKENS_MIN || n < have + PARK_TOKENS_MIN) {
        result = 0;
    } else if (state_begin(s, shard, tag, 0, &seq, err) < 0) {
        result = -1;
    } else {
        *p = (struct park){ .state = s,
                            .fd = fd,
                            .file = file,
                            .seq = seq,
                            .n_tokens = n,
                            .n_pages = kvcache_pages_for(n) };
        while (result > 0 && kvcache_reserve(&s->kv, seq, n, err) < 0) {
            result = err->code == ERR_FULL && state_evict(s) ? (int64_t)n : -1;
        }
        if (result > 0 && !kvcache_has_room_here(&s->kv, seq)) {
            result = err_set(err, ERR_FULL, "its pages have no place in memory");
        }
        if (result < 0) {
            park_clear(p);
            return -1;
        }
        memcpy(state_tokens(s, seq), p->file.tokens, n * sizeof *tokens);
        return result;
    }
    parked_clear(&file);
    close(fd);
    return result;
}

/* The piece that is due goes straight to its place; it counts only when the whole is committed. */
static int read_one(struct park *p, struct err *err)
{
    const struct parked_head *h = &p->file.head;
    bool page = p->next < p->n_pages;
    uint32_t at = page ? p->next : h->n_pages;
    uint64_t off = page ? parked_page_off(h, at) : parked_state_off(h);
    uint8_t *to = page ? page_at(p->state, p->seq, at)
                       : kvcache_host_state(&p->state->kv, p->seq, true);
    size_t n = page ? h->page_bytes : h->state_bytes;
    p->next++;
    if (n && parked_pread(p->fd, to, n, off, err) < 0) {
        return -1;
    }
    return n == 0 || parked_sum(to, n) == p->file.sums[at]
               ? 0
               : err_set(err, ERR_BAD_FILE, "%s %u is damaged", page ? "page" : "state", at);
}

int park_read(struct park *p, struct err *err)
{
    for (uint64_t moved = 0; p->next <= p->n_pages && moved < PARK_PIECE_BYTES;
         moved += p->file.head.page_bytes) {
        if (read_one(p, err) < 0) {
            park_clear(p);
            return -1;
        }
    }
    if (p->next <= p->n_pages) {
        return 0;
    }
    struct state *s = p->state;
    bool whole = p->n_tokens == p->file.head.n_tokens;
    uint32_t seq = p->seq;
    if (kvcache_take(&s->kv, seq, p->n_tokens, err) < 0) {
        park_clear(p);
        return -1;
    }
    state_idle(s, seq);
    if (whole) {
        s->rows[seq].parked = s->rows[seq].used;
    }
    p->n_pages = 0; /* the sequence stays */
    park_clear(p);
    return 1;
}
