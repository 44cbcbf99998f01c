#include "loader/text/partition.h"

#include <stdlib.h>
#include <string.h>

#include "loader/text/grow.h"
#include "loader/text/heap.h"

static int longest_first(const void *a, const void *b, void *context)
{
    const struct vocab *v = context;
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    size_t left_len, right_len;
    vocab_text(v, left, &left_len);
    vocab_text(v, right, &right_len);
    return left_len != right_len ? (left_len < right_len) - (left_len > right_len)
                                 : (left > right) - (left < right);
}

int partition_init(struct partition *p, const struct vocab *v, struct err *err)
{
    uint32_t *ids = malloc(2 * v->n_tokens * sizeof *ids);
    p->rank_of = malloc(v->n_tokens * sizeof *p->rank_of);
    if (!ids || !p->rank_of) {
        free(ids);
        return err_set(err, ERR_NO_MEMORY, "the special tokens");
    }
    uint32_t *always = ids + v->n_tokens;
    size_t n = 0, n_always = 0;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        uint8_t type = v->pieces.types[id];
        if (type == TOKEN_USER_DEFINED) {
            always[n_always++] = id;
        }
        if (type == TOKEN_USER_DEFINED || type == TOKEN_CONTROL || type == TOKEN_UNKNOWN) {
            ids[n++] = id;
        }
    }
    struct vocab context = *v;
    qsort_r(ids, n, sizeof *ids, longest_first, &context);
    p->n_ranks = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        p->rank_of[ids[i]] = (uint32_t)i;
    }
    int result = -1;
    if (trie_init(&p->always, &v->texts, always, n_always, err) == 0) {
        result = trie_init(&p->all, &v->texts, ids, n, err);
    }
    free(ids);
    return result;
}

void partition_clear(struct partition *p)
{
    trie_clear(&p->always);
    trie_clear(&p->all);
    free(p->rank_of);
    *p = (struct partition){ 0 };
}

/* The search: every place where a candidate starts stands once, under the longest candidate that may still fit
 * there. Places are visited by (rank, position); one that has meanwhile been cut short comes back under the longest
 * candidate that fits what is free. So a place costs one step for each candidate that begins alike. */
struct search {
    const struct vocab *v;
    const struct partition *p;
    const struct trie *trie;
    const uint8_t *text;
    size_t len;
    uint8_t *taken;   /* (len): 1 where a token stands already */
    uint64_t *places; /* rank << 32 | position, by position, later by rank */
    size_t n, cap;
    struct heap returns; /* places that came back; key as above, value: the id */
};

static uint64_t place(const struct search *s, uint32_t id, size_t at)
{
    return (uint64_t)s->p->rank_of[id] << 32 | at;
}

static int collect(struct search *s, struct err *err)
{
    for (size_t at = 0; at < s->len; at++) {
        if (s->trie->first[s->text[at]] == s->trie->first[s->text[at] + 1]) {
            continue; /* no candidate begins with this byte */
        }
        size_t match_len;
        uint32_t id = trie_longest(s->trie, s->text + at, s->len - at, &match_len);
        if (id == TEXTS_NONE) {
            continue;
        }
        if (GROW(&s->places, &s->cap, s->n + 1, err) < 0) {
            return -1;
        }
        s->places[s->n++] = place(s, id, at);
    }
    return 0;
}

/* Sorts places by rank; equal ranks keep the order of positions. Counting, because a text of nothing but
 * spaces has as many places as bytes. */
static int sort_places(struct search *s, struct err *err)
{
    size_t *starts = calloc((size_t)s->p->n_ranks + 1, sizeof *starts);
    uint64_t *sorted = malloc(s->n * sizeof *sorted);
    if (!starts || !sorted) {
        free(starts);
        free(sorted);
        return err_set(err, ERR_NO_MEMORY, "%zu special tokens in a text", s->n);
    }
    for (size_t i = 0; i < s->n; i++) {
        starts[(s->places[i] >> 32) + 1]++;
    }
    for (size_t rank = 0; rank < s->p->n_ranks; rank++) {
        starts[rank + 1] += starts[rank];
    }
    for (size_t i = 0; i < s->n; i++) {
        sorted[starts[s->places[i] >> 32]++] = s->places[i];
    }
    free(starts);
    free(s->places);
    s->places = sorted;
    s->cap = s->n;
    return 0;
}

static bool eats(uint8_t byte)
{
    return byte == ' ' || (byte >= '\t' && byte <= '\r');
}

static int take(struct search *s, size_t at, size_t len, uint32_t id, struct cuts *out,
                struct err *err)
{
    struct cut cut = { .start = at, .end = at + len, .id = (int32_t)id };
    while (s->v->pieces.flags[id] & VOCAB_LSTRIP && cut.start > 0 && !s->taken[cut.start - 1] &&
           eats(s->text[cut.start - 1])) {
        cut.start--;
    }
    while (s->v->pieces.flags[id] & VOCAB_RSTRIP && cut.end < s->len && !s->taken[cut.end] &&
           eats(s->text[cut.end])) {
        cut.end++;
    }
    memset(s->taken + cut.start, 1, cut.end - cut.start);
    if (GROW(&out->cuts, &out->cap, out->n + 1, err) < 0) {
        return -1;
    }
    out->cuts[out->n++] = cut;
    return 0;
}

static int visit(struct search *s, uint64_t where, struct cuts *out, struct err *err)
{
    size_t at = (uint32_t)where, len = 0;
    uint32_t rank = (uint32_t)(where >> 32);
    if (s->taken[at]) {
        return 0;
    }
    size_t most = s->len - at < s->v->text_len_max ? s->len - at : s->v->text_len_max;
    const uint8_t *wall = memchr(s->taken + at, 1, most);
    size_t room = wall ? (size_t)(wall - s->taken) - at : most;
    uint32_t id = trie_longest(s->trie, s->text + at, room, &len);
    if (id == TEXTS_NONE) {
        return 0;
    }
    if (s->p->rank_of[id] != rank) { /* what stood here no longer fits */
        return heap_push(&s->returns, place(s, id, at), id, err);
    }
    return take(s, at, len, id, out, err);
}

static int by_start(const void *a, const void *b)
{
    const struct cut *left = a, *right = b;
    return (left->start > right->start) - (left->start < right->start);
}

int partition_run(const struct partition *p, const struct vocab *v, const uint8_t *text, size_t len,
                  bool parse_special, struct cuts *out, struct err *err)
{
    struct search s = {
        .v = v, .p = p, .trie = parse_special ? &p->all : &p->always, .text = text, .len = len
    };
    int result = -1;
    if (collect(&s, err) < 0) {
        goto done;
    }
    if (s.n == 0) {
        result = 0;
        goto done;
    }
    s.taken = calloc(len, 1);
    if (!s.taken) {
        err_set(err, ERR_NO_MEMORY, "a text of %zu bytes", len);
        goto done;
    }
    if (sort_places(&s, err) < 0) {
        goto done;
    }
    for (size_t i = 0; i < s.n || s.returns.n;) {
        bool returned = s.returns.n && (i == s.n || s.returns.items[0].key < s.places[i]);
        uint64_t where = returned ? heap_pop(&s.returns).key : s.places[i++];
        if (visit(&s, where, out, err) < 0) {
            goto done;
        }
    }
    if (out->n > 1) {
        qsort(out->cuts, out->n, sizeof *out->cuts, by_start);
    }
    result = 0;
done:
    free(s.taken);
    free(s.places);
    heap_clear(&s.returns);
    return result;
}
