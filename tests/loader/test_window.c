/* Loads by a window: beside the loader a thread does what a worker does, tensor by tensor, and looks how much of the segment
 * is there. Whatever the source, the order of the file and the size of the window: no tensor is gone before it was uploaded,
 * there is never more than the window, and in the end only what the host reads. */
#include "tests/test.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "loader/load.h"
#include "loader/window.h"
#include "proto/shm.h"
#include "tests/loader/make_gguf.h"

#define TENSORS 30
#define PARTS   2
#define ROUNDS  6
#define SLACK   (8 * WEIGHTS_PAGE) /* ends of files that share a page with nothing, pages half read */

static char dir[] = "/tmp/hearth-test-window-XXXXXX";
static uint32_t seed = 1;

static uint32_t random_below(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

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

/* One part: tensors in any order, of any size, most of them beginning inside of a page. */
static void write_part(uint32_t no, uint32_t n_parts, uint32_t n_tensors, bool ropes)
{
    static struct maker m;
    char name[64], path[128];
    uint64_t off = 0;
    make_head(&m, n_tensors, 3 + (no == 0));
    if (no == 0) {
        make_kv_str(&m, "general.architecture", "llama");
    }
    make_kv_u32(&m, "split.no", no);
    make_kv_u32(&m, "split.count", n_parts);
    make_kv_u32(&m, "split.tensors.count", n_parts * n_tensors);
    for (uint32_t i = 0; i < n_tensors; i++) {
        snprintf(name, sizeof name, "%s%u.t%u.%u",
                 ropes && i == n_tensors - 1 ? "rope_"
                 : random_below(8) == 0      ? "output"
                 : random_below(8) == 0      ? "embd"
                                             : "blk.",
                 random_below(6), no, i);
        uint32_t n = 8 * (1 + random_below(random_below(3) ? 200 : 12000));
        make_tensor(&m, name, DTYPE_F32, n, 1, off);
        off += (n * 4ull + 31) / 32 * 32;
    }
    make_pad(&m, 32);
    snprintf(path, sizeof path, "%s/m-%05u-of-%05u.gguf", dir, no + 1, n_parts);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fwrite(m.data, 1, m.size, f);
    for (uint64_t i = 0; i < off; i++) {
        fputc((int)(1 + random_below(255)), f);
    }
    assert_int_equal(fclose(f), 0);
}

static const char *model_path(void)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/m-00001-of-%05u.gguf", dir, PARTS);
    return path;
}

/* ---- the worker's part ---- */

struct worker {
    int fd;
    const struct weights *want;
    struct uploaded *word;
    uint64_t stop_at;    /* it tells no more than this */
    uint64_t most_there; /* bytes of memory that the segment had */
    uint64_t n_waits;    /* looks at a loader that waited for it */
    bool good;
    atomic_bool over;
};

static uint64_t bytes_there(int fd)
{
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void *worker_thread(void *arg)
{
    struct worker *k = arg;
    struct weights w;
    struct err err;
    bool there[TENSORS * PARTS] = { 0 };
    uint64_t told = 0;
    k->good = weights_map(&w, k->fd, &err) == 0;
    while (k->good && told < w.header->data_bytes && !atomic_load(&k->over)) {
        uint64_t mark = weights_watermark(&w), bytes = bytes_there(k->fd);
        mark = mark < k->stop_at ? mark : k->stop_at;
        k->most_there = bytes > k->most_there ? bytes : k->most_there;
        k->n_waits += atomic_load(&w.header->wants) > told;
        for (size_t i = 0; i < w.n_tensors; i++) {
            const struct weights_tensor *t = &w.tensors[i];
            if (!there[i] && t->data_end <= mark) {
                k->good &= memcmp(t->data, k->want->tensors[i].data, t->size_bytes) == 0;
                there[i] = true;
            }
        }
        if (mark > told) {
            uploaded_tell(k->word, told = mark);
        }
        usleep(50);
    }
    weights_unmap(&w);
    return NULL;
}

/* ---- one load ---- */

struct trial {
    struct load *load;
    struct source *source;
    struct worker worker;
    int word_fd;
    uint64_t window, kept;
};

/* more: window beyond the least. false: this source is not at hand. */
static bool begin(struct trial *t, enum source_kind kind, const struct weights *want, uint64_t more)
{
    struct err err = { 0 };
    uint32_t n;
    *t = (struct trial){ .worker = { .want = want, .stop_at = UINT64_MAX } };
    t->load = load_open(model_path(), true, &err);
    assert_non_null(t->load);
    const struct source_file *files = load_files(t->load, &n);
    t->source = source_open(kind, files, n, 3, &err);
    if (!t->source) {
        assert_true(kind == SOURCE_URING && err.code == ERR_UNSUPPORTED);
        load_close(&t->load);
        return false;
    }
    t->word_fd = shm_create("word", UPLOADED_SEGMENT_BYTES, true, &err);
    t->worker.fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    t->worker.word = uploaded_map(t->word_fd, true, &err);
    assert_non_null(t->worker.word);
    assert_ok(load_parse(t->load, WEIGHTS_LAYOUT_FILE, &err), err);
    t->window = load_window_least(t->load, &err) + more;
    assert_true(t->window > more);
    load_window(t->load, t->window, t->worker.word);
    assert_ok(load_publish(t->load, t->worker.fd, &err), err);
    t->kept = load_kept_bytes(t->load);
    return true;
}

static void end(struct trial *t)
{
    source_close(&t->source);
    load_close(&t->load);
    uploaded_unmap(t->worker.word);
    close(t->word_fd);
    close(t->worker.fd);
}

static void the_window_is_never_exceeded(void **state)
{
    (void)state;
    struct err err = { 0 };
    uint64_t n_waits = 0;
    for (int round = 0; round < ROUNDS; round++) {
        for (uint32_t p = 0; p < PARTS; p++) {
            write_part(p, PARTS, TENSORS, round % 2 && p == 1);
        }
        struct weights want;
        assert_ok(loader_load_direct(model_path(), WEIGHTS_LAYOUT_FILE, &want, &err), err);
        for (int kind = SOURCE_URING; kind < SOURCE_N_KINDS; kind++) {
            struct trial t;
            pthread_t thread;
            if (!begin(&t, (enum source_kind)kind, &want, round % 3 * (150u << 10))) {
                continue;
            }
            assert_int_equal(pthread_create(&thread, NULL, worker_thread, &t.worker), 0);
            assert_ok(load_fill(t.load, t.source, &err), err);
            pthread_join(thread, NULL);
            assert_true(t.worker.good);
            n_waits += t.worker.n_waits;
            if (t.worker.most_there > t.kept + t.window + SLACK) {
                fail_msg("%llu bytes are there, window %llu, kept %llu",
                         (unsigned long long)t.worker.most_there, (unsigned long long)t.window,
                         (unsigned long long)t.kept);
            }
            assert_true(t.window < want.header->data_bytes / 2);
            /* What is left: the manifest, and what the host reads, whole. */
            assert_true(bytes_there(t.worker.fd) <= t.kept + SLACK);
            struct weights w;
            assert_ok(weights_map(&w, t.worker.fd, &err), err);
            assert_int_equal(w.header->window, t.window);
            assert_int_equal(weights_watermark(&w), w.header->data_bytes);
            for (size_t i = 0; i < w.n_tensors; i++) {
                const struct weights_tensor *a = &w.tensors[i], *b = &want.tensors[i];
                bool same = memcmp(a->data, b->data, b->size_bytes) == 0;
                assert_true(same == (strncmp(a->name, "rope_", 5) == 0) ||
                            b->size_bytes <
                                2 * WEIGHTS_PAGE); /* it may share the pages of one that stays */
            }
            weights_unmap(&w);
            end(&t);
        }
        weights_unmap(&want);
    }
    assert_true(n_waits > 0);
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

struct filler {
    struct trial *t;
    int rc;
    struct err err;
};

static void *fill_thread(void *arg)
{
    struct filler *f = arg;
    f->rc = load_fill(f->t->load, f->t->source, &f->err);
    return NULL;
}

/* The loader waits as long as nobody uploads, and costs nothing meanwhile; then the load goes on to its end, or to the
 * error that there is by then. */
static void a_late_worker(bool cut)
{
    struct err err = { 0 };
    struct weights want;
    for (uint32_t p = 0; p < PARTS; p++) {
        write_part(p, PARTS, TENSORS, false);
    }
    assert_ok(loader_load_direct(model_path(), WEIGHTS_LAYOUT_FILE, &want, &err), err);
    for (int kind = SOURCE_URING; kind < SOURCE_N_KINDS; kind++) {
        struct trial t;
        pthread_t filler, worker;
        if (!begin(&t, (enum source_kind)kind, &want, 0)) {
            continue;
        }
        struct filler f = { .t = &t };
        struct weights w;
        assert_ok(weights_map(&w, t.worker.fd, &err), err);
        assert_int_equal(pthread_create(&filler, NULL, fill_thread, &f), 0);
        while (atomic_load(&w.header->wants) == 0) {
            usleep(1000);
        }
        double before = cpu_seconds();
        uint64_t mark = weights_watermark(&w);
        usleep(200000);
        assert_true(cpu_seconds() - before < 0.1);
        assert_int_equal(weights_watermark(&w), mark);
        assert_true(mark < w.header->data_bytes && mark >= atomic_load(&w.header->wants));
        if (cut) {
            char path[128];
            snprintf(path, sizeof path, "%s/m-%05u-of-%05u.gguf", dir, PARTS, PARTS);
            assert_int_equal(truncate(path, 5000), 0);
        }
        assert_int_equal(pthread_create(&worker, NULL, worker_thread, &t.worker), 0);
        pthread_join(filler, NULL);
        if (cut) {
            assert_int_equal(f.rc, -1);
            assert_int_equal(f.err.code, ERR_BAD_FILE);
            assert_non_null(strstr(f.err.text, "the file ends here"));
        } else {
            assert_ok(f.rc, f.err);
        }
        atomic_store(&t.worker.over, true);
        pthread_join(worker, NULL);
        assert_true(t.worker.good);
        weights_unmap(&w);
        end(&t);
        for (uint32_t p = 0; p < PARTS && cut; p++) {
            seed = 77 + p;
            write_part(p, PARTS, TENSORS, false);
        }
        if (cut) {
            weights_unmap(&want);
            assert_ok(loader_load_direct(model_path(), WEIGHTS_LAYOUT_FILE, &want, &err), err);
        }
    }
    weights_unmap(&want);
}

static void a_loader_waits_for_a_late_worker_asleep(void **state)
{
    (void)state;
    a_late_worker(false);
}

static void a_file_cut_behind_the_window_is_an_error(void **state)
{
    (void)state;
    a_late_worker(true);
}

/* What went back is poison here: whoever reads it computes nonsense, and a neighbour on its pages would be nonsense too. */
static void poison_harms_no_neighbour(void **state)
{
    (void)state;
    struct err err = { 0 };
    for (uint32_t p = 0; p < PARTS; p++) {
        write_part(p, PARTS, TENSORS, true);
    }
    struct weights want, w;
    assert_ok(loader_load_direct(model_path(), WEIGHTS_LAYOUT_FILE, &want, &err), err);
    struct trial t;
    pthread_t thread;
    setenv("HEARTH_LOAD_POISON", "1", 1);
    assert_true(begin(&t, SOURCE_PREAD, &want, 0));
    unsetenv("HEARTH_LOAD_POISON");
    assert_int_equal(pthread_create(&thread, NULL, worker_thread, &t.worker), 0);
    assert_ok(load_fill(t.load, t.source, &err), err);
    pthread_join(thread, NULL);
    assert_true(t.worker.good);
    assert_ok(weights_map(&w, t.worker.fd, &err), err);
    size_t n_poisoned = 0;
    for (size_t i = 0; i < w.n_tensors; i++) {
        const struct weights_tensor *a = &w.tensors[i];
        n_poisoned += a->data[a->size_bytes / 2] == 0xff && a->data[a->size_bytes / 2 + 1] == 0xff;
    }
    assert_true(n_poisoned > w.n_tensors / 2);
    weights_unmap(&w);
    weights_unmap(&want);
    end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_window_is_never_exceeded),
        cmocka_unit_test(a_loader_waits_for_a_late_worker_asleep),
        cmocka_unit_test(a_file_cut_behind_the_window_is_an_error),
        cmocka_unit_test(poison_harms_no_neighbour),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
