/* A load from end to end in one process: every source gives the same bytes, parts come together, readers see the
 * watermark only behind the data, a file that changes is an error, large metadata costs no memory of its own. */
#include "tests/test.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "loader/load.h"
#include "proto/rows16.h"
#include "tests/loader/make_gguf.h"

static char dir[] = "/tmp/hearth-test-load-XXXXXX";

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", dir);
    return system(command);
}

static const char *path_of(const char *name)
{
    static char path[2][256];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

static void write_file(const char *name, const struct maker *head, uint64_t data_bytes,
                       uint32_t seed)
{
    FILE *f = fopen(path_of(name), "wb");
    assert_non_null(f);
    fwrite(head->data, 1, head->size, f);
    uint8_t block[4096];
    for (uint64_t done = 0; done < data_bytes; done += sizeof block) {
        for (size_t i = 0; i < sizeof block; i++) {
            seed = seed * 1664525u + 1013904223u;
            block[i] = (uint8_t)(seed >> 24);
        }
        uint64_t n = data_bytes - done < sizeof block ? data_bytes - done : sizeof block;
        fwrite(block, 1, (size_t)n, f);
    }
    assert_int_equal(fclose(f), 0);
}

#define BIG_ROWS  1600
#define BIG_COLS  4096
#define BIG_BYTES (BIG_ROWS * (BIG_COLS / 32) * 34ull) /* 7 MB: several chunks of every source */

/* One large matrix and a vector. */
static void write_big(const char *name)
{
    static struct maker m;
    make_head(&m, 2, 1);
    make_kv_str(&m, "general.architecture", "llama");
    make_tensor(&m, "blk.0.ffn_up.weight", DTYPE_Q8_0, BIG_COLS, BIG_ROWS, 0);
    make_tensor(&m, "blk.0.ffn_norm.weight", DTYPE_F32, 37, 1,
                BIG_BYTES + (32 - BIG_BYTES % 32) % 32);
    make_pad(&m, 32);
    write_file(name, &m, BIG_BYTES + (32 - BIG_BYTES % 32) % 32 + 37 * 4, 5);
}

/* Loads by a source of this kind. The descriptor is the caller's. */
static int load_by(const char *path, enum source_kind kind, enum weights_layout layout,
                   struct err *err)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING), rc = -1;
    struct source *source = NULL;
    struct load *l = load_open(path, true, err);
    uint32_t n;
    if (l) {
        const struct source_file *files = load_files(l, &n);
        source = source_open(kind, files, n, 3, err);
    }
    if (source && load_parse(l, layout, err) == 0 && load_publish(l, fd, err) == 0) {
        rc = load_fill(l, source, err);
    }
    source_close(&source);
    load_close(&l);
    if (rc < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void every_source_gives_the_same_bytes(void **state)
{
    (void)state;
    write_big("big.gguf");
    struct err err = { 0 };
    struct weights want;
    assert_ok(loader_load_direct(path_of("big.gguf"), WEIGHTS_LAYOUT_FILE, &want, &err), err);
    const struct weights_tensor *t = weights_find_tensor(&want, "blk.0.ffn_up.weight");
    assert_non_null(t);
    assert_int_equal(t->size_bytes, BIG_BYTES);
    assert_int_equal(weights_watermark(&want), want.header->data_bytes);
    /* The file's own bytes. */
    FILE *f = fopen(path_of("big.gguf"), "rb");
    fseek(f, -(long)want.header->data_bytes, SEEK_END);
    uint8_t *raw = malloc((size_t)want.header->data_bytes);
    assert_int_equal(fread(raw, 1, (size_t)want.header->data_bytes, f), want.header->data_bytes);
    fclose(f);
    assert_memory_equal(raw, t->data, t->size_bytes);
    for (int kind = SOURCE_AUTO; kind < SOURCE_N_KINDS; kind++) {
        int fd = load_by(path_of("big.gguf"), (enum source_kind)kind, WEIGHTS_LAYOUT_FILE, &err);
        if (fd < 0 && kind == SOURCE_URING && err.code == ERR_UNSUPPORTED) {
            fprintf(stderr, "skipped uring: %s\n", err.text);
            continue;
        }
        assert_ok(fd < 0, err);
        struct weights w;
        assert_ok(weights_map(&w, fd, &err), err);
        assert_int_equal(w.header->digest, want.header->digest);
        assert_memory_equal(w.base + w.header->data_off, raw, (size_t)w.header->data_bytes);
        weights_unmap(&w);
        close(fd);
    }
    free(raw);
    weights_unmap(&want);
}

static void rows_are_laid_behind_the_reads(void **state)
{
    (void)state;
    write_big("rows.gguf");
    struct err err = { 0 };
    struct weights plain, laid;
    assert_ok(loader_load_direct(path_of("rows.gguf"), WEIGHTS_LAYOUT_FILE, &plain, &err), err);
    assert_ok(loader_load_direct(path_of("rows.gguf"), WEIGHTS_LAYOUT_ROWS16, &laid, &err), err);
    const struct weights_tensor *a = weights_find_tensor(&plain, "blk.0.ffn_up.weight"),
                                *b = weights_find_tensor(&laid, "blk.0.ffn_up.weight");
    if (b->layout != WEIGHTS_LAYOUT_ROWS16) {
        fprintf(stderr, "skipped: Q8_0 is not laid\n");
    } else {
        uint64_t row = BIG_COLS / 32 * 34;
        uint8_t *group = malloc(row * ROWS16_ROWS);
        for (uint64_t r = 0; r < BIG_ROWS; r += ROWS16_ROWS) {
            rows16_pack(a->dtype, a->data + r * row, row, group);
            assert_memory_equal(group, b->data + r * row, row * ROWS16_ROWS);
        }
        free(group);
    }
    weights_unmap(&plain);
    weights_unmap(&laid);
}

/* ---- parts ---- */

static void write_part(const char *name, uint16_t no, uint16_t count, const char *tensor,
                       uint32_t rows, uint32_t total)
{
    static struct maker m;
    make_head(&m, rows ? 1 : 0, 3 + (no == 0));
    if (no == 0) {
        make_kv_str(&m, "general.architecture", "llama");
    }
    make_kv_u32(&m, "split.no", no);
    make_kv_u32(&m, "split.count", count);
    make_kv_u32(&m, "split.tensors.count", total);
    if (rows) {
        make_tensor(&m, tensor, DTYPE_F32, 16, rows, 0);
    }
    make_pad(&m, 32);
    write_file(name, &m, rows * 64ull, 100u + no);
}

static void parts_come_together(void **state)
{
    (void)state;
    write_part("m-00001-of-00003.gguf", 0, 3, "a", 33, 2);
    write_part("m-00002-of-00003.gguf", 1, 3, "none", 0, 2);
    write_part("m-00003-of-00003.gguf", 2, 3, "b", 70, 2);
    struct err err = { 0 };
    for (int kind = SOURCE_AUTO; kind < SOURCE_N_KINDS; kind++) {
        /* Any part's name means all of them. */
        int fd = load_by(path_of("m-00002-of-00003.gguf"), (enum source_kind)kind,
                         WEIGHTS_LAYOUT_FILE, &err);
        if (fd < 0 && kind == SOURCE_URING && err.code == ERR_UNSUPPORTED) {
            continue;
        }
        assert_ok(fd < 0, err);
        struct weights w;
        assert_ok(weights_map(&w, fd, &err), err);
        assert_int_equal(w.n_tensors, 2);
        assert_int_equal(weights_watermark(&w), w.header->data_bytes);
        for (int i = 0; i < 2; i++) {
            const struct weights_tensor *t = weights_find_tensor(&w, i ? "b" : "a");
            assert_non_null(t);
            uint32_t seed = 100u + (i ? 2 : 0);
            for (size_t k = 0; k < t->size_bytes; k++) {
                seed = seed * 1664525u + 1013904223u;
                assert_int_equal(t->data[k], (uint8_t)(seed >> 24));
            }
        }
        weights_unmap(&w);
        close(fd);
    }
}

static void refused(const char *name, enum err_code code, const char *words)
{
    struct err err = { 0 };
    struct weights w;
    assert_int_equal(loader_open_manifest(path_of(name), &w, &err), -1);
    if (err.code != code || !strstr(err.text, words)) {
        fail_msg("%s: %s, wanted %s", err_name(err.code), err.text, words);
    }
}

static void parts_that_disagree_are_refused(void **state)
{
    (void)state;
    write_part("n-00001-of-00002.gguf", 0, 2, "a", 3, 2);
    refused("n-00001-of-00002.gguf", ERR_NOT_FOUND, "n-00002-of-00002.gguf");
    write_part("n-00002-of-00002.gguf", 0, 2, "b", 3, 2);
    refused("n-00001-of-00002.gguf", ERR_BAD_FILE, "split.no is 0");
    write_part("n-00002-of-00002.gguf", 1, 5, "b", 3, 2);
    refused("n-00001-of-00002.gguf", ERR_BAD_FILE, "split.count is 5");
    write_part("n-00002-of-00002.gguf", 1, 2, "b", 3, 9);
    refused("n-00001-of-00002.gguf", ERR_BAD_FILE, "split.tensors.count is 9");
    write_part("n-00002-of-00002.gguf", 1, 2, "a", 3, 2);
    refused("n-00001-of-00002.gguf", ERR_BAD_FILE, "tensor a stands twice");
    write_part("whole.gguf", 0, 2, "a", 3, 2);
    refused("whole.gguf", ERR_BAD_FILE, "split.count is 2");
    refused("none.gguf", ERR_NOT_FOUND, "none.gguf");
    refused(".", ERR_BAD_FILE, "not a regular file");
}

/* ---- the watermark ---- */

#define MIXED_ROWS  35 /* two groups of 16 rows and three rows more */
#define MIXED_COLS  2048
#define MIXED_BYTES (MIXED_ROWS * (MIXED_COLS / 32) * 34ull)
#define MIXED_N     7

/* Layers in the order of the alphabet, the output first, as some files have them: what is needed first comes late. Each
 * tensor begins and ends inside of pages that it shares. */
static void write_mixed(const char *name)
{
    static const char *const names[MIXED_N] = { "output.weight",       "blk.0.ffn_up.weight",
                                                "blk.1.ffn_up.weight", "blk.10.ffn_up.weight",
                                                "blk.2.ffn_up.weight", "blk.2.ffn_norm.weight",
                                                "token_embd.weight" };
    static struct maker m;
    uint64_t off = 0;
    make_head(&m, MIXED_N, 1);
    make_kv_str(&m, "general.architecture", "llama");
    for (int i = 0; i < MIXED_N; i++) {
        bool norm = strstr(names[i], "norm") != NULL;
        make_tensor(&m, names[i], norm ? DTYPE_F32 : DTYPE_Q8_0, norm ? 37 : MIXED_COLS,
                    norm ? 1 : MIXED_ROWS, off);
        off += norm ? 160 : MIXED_BYTES + (32 - MIXED_BYTES % 32) % 32;
    }
    make_pad(&m, 32);
    write_file(name, &m, off, 9);
}

struct watch {
    int fd;
    const struct weights *want; /* what it must become */
    atomic_bool over;
    bool good;
    uint64_t seen;
    size_t n_early; /* tensors that were there before all was */
};

/* Follows the watermark as a worker does: the tensors that it covers are there, laid and all. */
static void *watch_thread(void *arg)
{
    struct watch *watch = arg;
    struct weights w;
    struct err err;
    bool checked[MIXED_N] = { 0 }, over = false;
    watch->good = weights_map(&w, watch->fd, &err) == 0;
    while (watch->good) {
        bool last = over;
        over = atomic_load(&watch->over);
        uint64_t mark = weights_watermark(&w);
        watch->good = mark >= watch->seen && mark <= w.header->data_bytes;
        for (size_t i = 0; i < w.n_tensors; i++) {
            const struct weights_tensor *t = &w.tensors[i], *want = &watch->want->tensors[i];
            if (!checked[i] && mark >= t->data_end) {
                checked[i] = true;
                watch->good &= memcmp(t->data, want->data, (size_t)t->size_bytes) == 0;
                watch->n_early += mark < w.header->data_bytes;
            }
        }
        watch->seen = mark;
        if (mark == w.header->data_bytes || last) {
            break;
        }
        usleep(100);
    }
    weights_unmap(&w);
    return NULL;
}

static void the_watermark_follows_the_data(void **state)
{
    (void)state;
    write_mixed("mark.gguf");
    struct err err = { 0 };
    for (int kind = SOURCE_AUTO; kind < SOURCE_N_KINDS; kind++) {
        for (int layout = WEIGHTS_LAYOUT_FILE; layout <= WEIGHTS_LAYOUT_ROWS16; layout++) {
            struct weights want;
            assert_ok(
                loader_load_direct(path_of("mark.gguf"), (enum weights_layout)layout, &want, &err),
                err);
            int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
            struct load *l = load_open(path_of("mark.gguf"), true, &err);
            assert_non_null(l);
            uint32_t n;
            const struct source_file *files = load_files(l, &n);
            struct source *source = source_open((enum source_kind)kind, files, n, 2, &err);
            struct watch watch = { .fd = fd, .want = &want };
            pthread_t thread;
            if (source) {
                assert_ok(load_parse(l, (enum weights_layout)layout, &err), err);
                assert_ok(load_publish(l, fd, &err), err);
                load_limit(l, 16 << 20); /* many small steps */
                assert_int_equal(pthread_create(&thread, NULL, watch_thread, &watch), 0);
                assert_ok(load_fill(l, source, &err), err);
                atomic_store(&watch.over, true);
                pthread_join(thread, NULL);
                assert_true(watch.good);
                assert_int_equal(watch.seen, want.header->data_bytes);
            } else if (kind != SOURCE_URING || err.code != ERR_UNSUPPORTED) {
                fail_msg("%s", err.text);
            }
            source_close(&source);
            load_close(&l);
            close(fd);
            weights_unmap(&want);
        }
    }
}

/* The same bytes, whatever the order of reading: each tensor against the file. */
static void a_file_in_any_order_loads_the_same(void **state)
{
    (void)state;
    write_mixed("mixed.gguf");
    struct err err = { 0 };
    struct weights plain, laid;
    assert_ok(loader_load_direct(path_of("mixed.gguf"), WEIGHTS_LAYOUT_FILE, &plain, &err), err);
    assert_ok(loader_load_direct(path_of("mixed.gguf"), WEIGHTS_LAYOUT_ROWS16, &laid, &err), err);
    FILE *f = fopen(path_of("mixed.gguf"), "rb");
    fseek(f, -(long)plain.header->data_bytes, SEEK_END);
    uint8_t *raw = malloc((size_t)plain.header->data_bytes);
    assert_int_equal(fread(raw, 1, (size_t)plain.header->data_bytes, f), plain.header->data_bytes);
    fclose(f);
    uint64_t row = MIXED_COLS / 32 * 34;
    uint8_t *group = malloc(row * ROWS16_ROWS);
    for (size_t i = 0; i < plain.n_tensors; i++) {
        const struct weights_tensor *a = &plain.tensors[i], *b = &laid.tensors[i];
        assert_memory_equal(a->data, raw + a->data_off, a->size_bytes);
        uint64_t done = 0;
        for (; b->layout == WEIGHTS_LAYOUT_ROWS16 && done + row * ROWS16_ROWS <= a->size_bytes;
             done += row * ROWS16_ROWS) {
            rows16_pack(a->dtype, a->data + done, row, group);
            assert_memory_equal(group, b->data + done, row * ROWS16_ROWS);
        }
        assert_memory_equal(a->data + done, b->data + done, a->size_bytes - done);
    }
    const struct weights_tensor *first = weights_find_tensor(&laid, "token_embd.weight");
    const struct weights_tensor *second = weights_find_tensor(&laid, "blk.0.ffn_up.weight");
    const struct weights_tensor *tenth = weights_find_tensor(&laid, "blk.10.ffn_up.weight");
    const struct weights_tensor *last = weights_find_tensor(&laid, "output.weight");
    assert_true(first->data_end < second->data_end && second->data_end < tenth->data_end &&
                tenth->data_end < last->data_end && last->data_off == 0);
    free(group);
    free(raw);
    weights_unmap(&plain);
    weights_unmap(&laid);
}

static void a_file_cut_during_its_load_is_an_error(void **state)
{
    (void)state;
    for (int kind = SOURCE_URING; kind < SOURCE_N_KINDS; kind++) {
        write_big("cut.gguf");
        struct err err = { 0 };
        int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        struct load *l = load_open(path_of("cut.gguf"), true, &err);
        assert_non_null(l);
        uint32_t n;
        const struct source_file *files = load_files(l, &n);
        struct source *source = source_open((enum source_kind)kind, files, n, 2, &err);
        if (source) {
            assert_ok(load_parse(l, WEIGHTS_LAYOUT_FILE, &err), err);
            assert_ok(load_publish(l, fd, &err), err);
            assert_int_equal(truncate(path_of("cut.gguf"), 3000000), 0);
            assert_int_equal(load_fill(l, source, &err), -1);
            if (err.code != ERR_BAD_FILE || !strstr(err.text, "the file ends here")) {
                fail_msg("%s: %s", err_name(err.code), err.text);
            }
        }
        source_close(&source);
        load_close(&l);
        close(fd);
    }
}

/* ---- memory ---- */

/* 40 MB of keys: more than any tokenizer, in two arrays. */
static void write_large_metadata(const char *name)
{
    static struct maker m;
    make_head(&m, 1, 3);
    make_kv_str(&m, "general.architecture", "llama");
    FILE *f = fopen(path_of(name), "wb");
    fwrite(m.data, 1, m.size, f);
    static const char text[16] = "twelve bytes";
    uint64_t len = 12;
    for (int array = 0; array < 2; array++) {
        m.size = 0;
        make_str(&m, array ? "tokenizer.ggml.tokens" : "tokenizer.ggml.merges");
        make_u32(&m, WEIGHTS_ARRAY);
        make_u32(&m, WEIGHTS_STRING);
        make_u64(&m, 1000000);
        fwrite(m.data, 1, m.size, f);
        for (int i = 0; i < 1000000; i++) {
            fwrite(&len, 8, 1, f);
            fwrite(text, 1, 12, f);
        }
    }
    m.size = 0;
    make_tensor(&m, "t", DTYPE_F32, 16, 4, 0);
    make_data(&m, 4096, 1); /* padding and data in one */
    fwrite(m.data, 1, m.size, f);
    assert_int_equal(fclose(f), 0);
}

static void large_metadata_takes_no_memory_of_its_own(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* their shadows are memory */
#endif
    write_large_metadata("meta.gguf");
    pid_t child = fork();
    if (child == 0) {
        struct err err;
        struct weights w;
        int rc = loader_load_direct(path_of("meta.gguf"), WEIGHTS_LAYOUT_FILE, &w, &err);
        struct rusage usage;
        getrusage(RUSAGE_SELF, &usage);
        fprintf(stderr, "peak %ld KiB for 40000 KB\n", usage.ru_maxrss);
        _exit(rc < 0 ? 1 : usage.ru_maxrss > 40000 + 64 * 1024 ? 2 : 0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_source_gives_the_same_bytes),
        cmocka_unit_test(rows_are_laid_behind_the_reads),
        cmocka_unit_test(parts_come_together),
        cmocka_unit_test(parts_that_disagree_are_refused),
        cmocka_unit_test(the_watermark_follows_the_data),
        cmocka_unit_test(a_file_in_any_order_loads_the_same),
        cmocka_unit_test(a_file_cut_during_its_load_is_an_error),
        cmocka_unit_test(large_metadata_takes_no_memory_of_its_own),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
