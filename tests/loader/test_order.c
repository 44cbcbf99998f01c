/* The order of reading: every byte once, every page once, and a tensor is called ready when all of it has been read, for
 * random files of random tensors. */
#include "tests/test.h"

#include "loader/order.h"
#include "proto/weights.h"

#define ROUNDS  300
#define TENSORS 40
#define FILES   3

static uint32_t seed = 1;

static uint32_t random_below(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

struct plan {
    struct order_tensor tensors[TENSORS];
    char names[TENSORS][24];
    size_t n_tensors;
    struct order_file files[FILES];
    uint32_t n_files;
    uint64_t phase, end;
};

static void name_tensor(char *name, size_t size)
{
    switch (random_below(5)) {
    case 0:
        snprintf(name, size, "token_embd.weight");
        break;
    case 1:
        snprintf(name, size, "output.weight");
        break;
    default:
        snprintf(name, size, "blk.%u.x", random_below(12));
    }
}

/* Files as load.c places them: each on pages of its own, at its own offset within a page. */
static void make_plan(struct plan *p)
{
    *p = (struct plan){ .n_files = 1 + random_below(FILES), .phase = random_below(128) * 32 };
    uint64_t at = 0;
    for (uint32_t f = 0; f < p->n_files; f++) {
        if (f > 0) {
            uint64_t page = (p->phase + at + WEIGHTS_PAGE - 1) / WEIGHTS_PAGE * WEIGHTS_PAGE;
            at = page + random_below(128) * 32 - p->phase;
        }
        p->files[f].off = at;
        uint32_t n = random_below(TENSORS / FILES + 1);
        for (uint32_t i = 0; i < n; i++) {
            struct order_tensor *t = &p->tensors[p->n_tensors];
            name_tensor(p->names[p->n_tensors], sizeof p->names[0]);
            t->name = p->names[p->n_tensors];
            t->name_len = (uint32_t)strlen(t->name);
            t->off = at;
            t->size_bytes = 32 + 32 * random_below(random_below(2) ? 20 : 900);
            at += t->size_bytes + 32 * random_below(2) * random_below(200);
            p->files[f].size_bytes = t->off + t->size_bytes - p->files[f].off;
            p->n_tensors++;
        }
        at = p->files[f].off + p->files[f].size_bytes;
    }
    p->end = at;
    for (size_t i = p->n_tensors; i > 1; i--) { /* any order will do */
        size_t k = random_below((uint32_t)i);
        struct order_tensor other = p->tensors[k];
        p->tensors[k] = p->tensors[i - 1];
        p->tensors[i - 1] = other;
    }
}

static void check_plan(struct plan *p)
{
    struct order o;
    struct err err;
    assert_ok(order_init(&o, p->tensors, p->n_tensors, p->files, p->n_files, p->phase, &err), err);
    /* when[x]: bytes read when byte x is there; 0: not read. */
    uint64_t *when = calloc(p->end + 1, sizeof *when), n_read = 0, wanted = 0;
    uint64_t n_pages = (p->end + p->phase) / WEIGHTS_PAGE + 1;
    uint8_t *page_read = calloc(n_pages + 1, 1);
    for (size_t r = 0; r < o.n_reads; r++) {
        const struct order_run *run = &o.reads[r];
        const struct order_file *file = &p->files[run->file_idx];
        assert_true(run->size_bytes > 0 && run->off >= file->off &&
                    run->off + run->size_bytes <= file->off + file->size_bytes);
        assert_true(run->off == file->off || (run->off + p->phase) % WEIGHTS_PAGE == 0);
        for (uint64_t x = run->off; x < run->off + run->size_bytes; x++) {
            assert_int_equal(when[x], 0);
            when[x] = ++n_read;
        }
        for (uint64_t g = (run->off + p->phase) / WEIGHTS_PAGE;
             g <= (run->off + run->size_bytes - 1 + p->phase) / WEIGHTS_PAGE; g++) {
            assert_int_equal(page_read[g]++, 0);
        }
    }
    for (uint32_t f = 0; f < p->n_files; f++) {
        wanted += p->files[f].size_bytes;
    }
    assert_int_equal(n_read, wanted);
    assert_int_equal(o.total_bytes, wanted);
    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct order_tensor *t = &p->tensors[i];
        uint64_t last = 0;
        for (uint64_t x = t->off; x < t->off + t->size_bytes; x++) {
            last = when[x] > last ? when[x] : last;
        }
        assert_int_equal(order_ready(&o, t->off, t->size_bytes), last);
    }
    free(when);
    free(page_read);
    order_clear(&o);
}

static void every_page_is_read_once_and_ready_means_read(void **unused)
{
    (void)unused;
    for (int round = 0; round < ROUNDS; round++) {
        static struct plan p;
        make_plan(&p);
        check_plan(&p);
    }
}

static void layers_come_in_their_order_and_the_output_last(void **unused)
{
    (void)unused;
    struct err err;
    static const char *const names[] = { "output.weight",     "blk.10.a", "blk.2.a",
                                         "token_embd.weight", "blk.0.a",  "blk.1.a" };
    static const size_t order[] = { 3, 4, 5, 2, 1, 0 };
    struct order_tensor tensors[6];
    const struct order_file file = { .off = 0, .size_bytes = 6 * 65536 };
    for (size_t i = 0; i < 6; i++) {
        tensors[i] = (struct order_tensor){ names[i], (uint32_t)strlen(names[i]), i * 65536,
                                            65536 };
    }
    struct order o;
    assert_ok(order_init(&o, tensors, 6, &file, 1, 0, &err), err);
    uint64_t before = 0;
    for (size_t i = 0; i < 6; i++) {
        uint64_t ready = order_ready(&o, order[i] * 65536, 65536);
        assert_int_equal(ready, before + 65536);
        before = ready;
    }
    order_clear(&o);
    assert_int_equal(order_group("blk.7", 5), 9);
    assert_int_equal(order_group("blk.", 4), 1);
    assert_int_equal(order_group("rope_freqs.weight", 17), ORDER_FIRST);
    assert_int_equal(order_group("output_norm.weight", 18), UINT32_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_page_is_read_once_and_ready_means_read),
        cmocka_unit_test(layers_come_in_their_order_and_the_output_last),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
