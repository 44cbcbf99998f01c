/* Goal: whenever the device fails, the process ends there and then with one line; a device that answers differently
 * than it did is found out. */
#include "tests/cuda/rig.h"

#include <sys/wait.h>
#include <unistd.h>

#include "worker/golden.h"
#include "worker/selftest.h"
#include "worker/state.h"

/* A worker's life on a device that fails at call n. */
static void live(unsigned n)
{
    char number[16];
    struct tiny t = tiny_default;
    struct rig r;
    float logits[80];
    snprintf(number, sizeof number, "%u", n);
    setenv("HEARTH_EMULATED_FAIL", number, 1);
    t.dtype = DTYPE_Q8_0;
    rig_start(&r, &t, true, DTYPE_F16);
    uint32_t seq = rig_begin(&r, 1);
    rig_step(&r, &seq, 1, 0, 20, logits);
    for (uint32_t i = 20; i < 26; i++) {
        rig_step(&r, &seq, 1, i, i + 1, logits);
    }
    rig_unbind(&r);
    rig_pin(&r, r.w.size);
    rig_bind(&r, DTYPE_F16);
    seq = rig_begin(&r, 1);
    rig_step(&r, &seq, 1, 0, 20, logits);
    rig_unbind(&r);
    rig_unpin(&r);
    rig_bind(&r, DTYPE_F16);
    rig_stop(&r);
}

/* Its exit status; what it said is in text. */
static int live_apart(unsigned n, char *text, size_t size)
{
    int out[2], status;
    size_t len = 0;
    assert_int_equal(pipe(out), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(out[1], STDERR_FILENO);
        dup2(out[1], STDOUT_FILENO);
        live(n);
        _exit(0);
    }
    close(out[1]);
    for (ssize_t got; len + 1 < size && (got = read(out[0], text + len, size - 1 - len)) > 0;) {
        len += (size_t)got;
    }
    text[len] = 0;
    close(out[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void every_fault_ends_the_process_with_one_line(void **state)
{
    (void)state;
    char text[4096];
    unsigned n = 1, alive = 0;
    for (; alive == 0 && n < 100000; n += 1 + n / 3) {
        int rc = live_apart(n, text, sizeof text);
        alive = rc == 0;
        if (!alive) {
            const char *line = strstr(text, "the device is lost to this process");
            if (rc != 1 || !line || strchr(line, '\n') != text + strlen(text) - 1 ||
                strstr(text, "error") != strstr(text, "error hearth: cuda:")) {
                fail_msg("call %u: exit %d: %s", n, rc, text);
            }
        }
    }
    assert_true(alive && n > 50); /* it went far, and without a fault it lives */
}

static void golden(struct tiny *t, bool other_weights, char out[GOLDEN_BYTES])
{
    struct err err = { 0 };
    struct weights w;
    const struct backend_options options = { .n_threads = 1 };
    const struct model_options model = { .k_type = DTYPE_F16,
                                         .v_type = DTYPE_F16,
                                         .ctx_len = RIG_CTX };
    const struct state_shape shape = { .max_seqs = 2, .ctx_len = RIG_CTX, .n_pages = 8 };
    struct state s;
    tiny_map(t, &w);
    struct backend *b = cuda_open("cuda", &options, &err);
    struct model *m = b ? model_bind(&w, b, &model, &err) : NULL;
    assert_non_null(m);
    struct forward *f = forward_create(m, b, 64, 4, &err);
    assert_non_null(f);
    size_t size = state_size(&m->kv, &shape);
    void *memory = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    assert_non_null(memory);
    memset(memory, 0, size);
    assert_ok(state_init(&s, &m->kv, &shape, 1, memory, size, &err), err);
    assert_ok(kvcache_place(&s.kv, b, &err), err);
    assert_ok(golden_compute(f, m, &s, 7, out, &err), err);
    if (other_weights) { /* a bit of the device's memory turns */
        float one;
        assert_ok(b->ops->download(b, &one, m->output_norm.w, sizeof one, &err), err);
        one *= 1.5f;
        assert_ok(b->ops->upload(b, (void *)(uintptr_t)m->output_norm.w, &one, sizeof one, &err),
                  err);
        assert_ok(golden_compute(f, m, &s, 7, out, &err), err);
    }
    for (uint32_t seq = 0; seq < 2; seq++) {
        assert_false(state_in_use(&s, seq)); /* it leaves nothing */
    }
    forward_destroy(&f);
    state_clear(&s);
    model_destroy(&m);
    backend_close(&b);
    free(memory);
    weights_unmap(&w);
}

static void a_device_that_answers_differently_is_found_out(void **state)
{
    (void)state;
    struct tiny t = tiny_default, other = tiny_default;
    char first[GOLDEN_BYTES], again[GOLDEN_BYTES], broken[GOLDEN_BYTES], model[GOLDEN_BYTES];
    t.dtype = DTYPE_Q8_0;
    other.n_layers = 2;
    golden(&t, false, first);
    golden(&t, false, again);
    golden(&t, true, broken);
    golden(&other, false, model);
    assert_string_equal(first, again);
    assert_false(golden_differs("", first));
    assert_false(golden_differs(first, again));
    assert_true(golden_differs(first, broken));
    assert_false(golden_differs(first, model)); /* another question */
}

/* "auto" takes the device that passes and lives on without the one that ends whoever touches it. */
static void auto_goes_on_without_a_device_that_fails(void **state)
{
    (void)state;
    const struct backend_options options = { .n_threads = 1 };
    struct err err = { 0 };
    if (!selftest_passes("cuda:0", &options, &err)) {
        fail_msg("%s", err.text);
    }
    setenv("HEARTH_EMULATED_FAIL", "60", 1);
    assert_false(selftest_passes("cuda:0", &options, &err));
    print_message("%s\n", err.text);
    unsetenv("HEARTH_EMULATED_FAIL");
    setenv("HEARTH_EMULATED_DEVICES", "0", 1);
    assert_false(selftest_passes("cuda:0", &options, &err));
    print_message("%s\n", err.text);
    unsetenv("HEARTH_EMULATED_DEVICES");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_goes_on_without_a_device_that_fails),
        cmocka_unit_test(every_fault_ends_the_process_with_one_line),
        cmocka_unit_test(a_device_that_answers_differently_is_found_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
