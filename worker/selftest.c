#include "worker/selftest.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "worker/forward.h"

#define CTX   64u
#define ROWS  20u
#define PAGES 4u
#define FAR                                                                                        \
    0.05 /* of the logits' own size: other roundings of the same sums stay below a tenth of it */
#define WAIT_MS 60000

/* Positions of one sequence, step by step: more rows than decode's kernels take, then one launch of each of those. */
static const uint32_t steps[] = { ROWS, 1, 3, 9 };

#define N_STEPS (sizeof steps / sizeof *steps)

/* One side of the comparison. */
struct side {
    struct model *model;
    struct forward *forward;
    struct kvcache kv;
    void *memory;
    float *logits; /* [N_STEPS][vocab_size] */
};

static int step(struct side *s, uint32_t seq, uint32_t pos, uint32_t n, float *logits,
                struct err *err)
{
    int32_t tokens[ROWS];
    uint32_t seqs[ROWS];
    int64_t positions[ROWS];
    uint8_t flags[ROWS] = { 0 };
    for (uint32_t i = 0; i < n; i++) {
        tokens[i] = (int32_t)((pos + i) * 37 % s->model->vocab_size);
        seqs[i] = seq;
        positions[i] = pos + i;
    }
    flags[n - 1] = FORWARD_LOGITS;
    const struct forward_batch batch = { n, tokens, seqs, positions, flags, NULL };
    return forward_step(s->forward, &s->kv, &batch, logits, NULL, err);
}

static int run(struct side *s, const struct weights *w, struct backend *b, struct err *err)
{
    const struct model_options options = { .k_type = DTYPE_F16,
                                           .v_type = DTYPE_F16,
                                           .ctx_len = CTX };
    s->model = model_bind(w, b, &options, err);
    s->forward = s->model ? forward_create(s->model, b, ROWS, 1, err) : NULL;
    if (!s->forward) {
        return -1;
    }
    size_t size = kvcache_size(&s->model->kv, PAGES, 1, CTX);
    size = (size + 4095) / 4096 * 4096;
    s->memory = aligned_alloc(4096, size);
    s->logits = calloc(N_STEPS * s->model->vocab_size, sizeof *s->logits);
    if (!s->memory || !s->logits) {
        return err_set(err, ERR_NO_MEMORY, "self-test");
    }
    memset(s->memory, 0, size);
    uint32_t seq, pos = 0;
    if (kvcache_init(&s->kv, &s->model->kv, s->memory, size, PAGES, 1, CTX, err) < 0 ||
        kvcache_place(&s->kv, b, err) < 0 ||
        kvcache_begin(&s->kv, (struct kvcache_tag){ 1, 0 }, 0, &seq, err) < 0) {
        return -1;
    }
    for (size_t i = 0; i < N_STEPS; pos += steps[i++]) {
        if (step(s, seq, pos, steps[i], s->logits + i * s->model->vocab_size, err) < 0) {
            return -1;
        }
    }
    return 0;
}

static void side_clear(struct side *s)
{
    kvcache_clear(&s->kv);
    forward_destroy(&s->forward);
    model_destroy(&s->model);
    free(s->memory);
    free(s->logits);
}

/* By the distance's share of the size: a wrong kernel is off by all of it. Not a number is far from everything. */
static int compare(const struct side *device, const struct side *cpu, struct err *err)
{
    uint32_t n = cpu->model->vocab_size;
    for (size_t i = 0; i < N_STEPS; i++) {
        double apart = 0, size = 0;
        for (uint32_t j = 0; j < n; j++) {
            double a = device->logits[i * n + j], b = cpu->logits[i * n + j];
            apart += (a - b) * (a - b);
            size += b * b;
        }
        if (!(sqrt(apart / size) < FAR)) {
            return err_set(err, ERR_FAILED,
                           "it computes wrongly: the logits of a step of %u rows are %.3g of "
                           "their size away from the CPU's, %.3g at most",
                           steps[i], sqrt(apart / size), FAR);
        }
    }
    return 0;
}

int selftest_run(struct backend *device, struct err *err)
{
    const struct backend_options options = { .n_threads = 1 };
    struct weights w = { 0 };
    struct side of_device = { 0 }, of_cpu = { 0 };
    struct backend *cpu = backend_open("cpu", &options, err);
    int rc = cpu ? selftest_model(&w, err) : -1;
    rc = rc == 0 ? run(&of_cpu, &w, cpu, err) : rc;
    rc = rc == 0 ? run(&of_device, &w, device, err) : rc;
    rc = rc == 0 ? compare(&of_device, &of_cpu, err) : rc;
    side_clear(&of_device);
    side_clear(&of_cpu);
    weights_unmap(&w);
    backend_close(&cpu);
    return rc;
}

/* In the child: its answer is its exit status, its reason travels as text. */
static _Noreturn void answer(const char *device, const struct backend_options *options, int to)
{
    struct err err = { 0 };
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct backend *b = backend_open(device, options, &err);
    int rc = b ? selftest_run(b, &err) : -1;
    if (rc < 0 && write(to, err.text, strlen(err.text)) < 0) {
        _exit(2);
    }
    _exit(rc < 0);
}

bool selftest_passes(const char *device, const struct backend_options *options, struct err *err)
{
    int pipe_fds[2], status = 0;
    if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
        err_set_errno(err, ERR_IO, "self-test of %s", device);
        return false;
    }
    pid_t child = fork();
    if (child == 0) {
        answer(device, options, pipe_fds[1]);
    }
    close(pipe_fds[1]);
    char text[sizeof err->text] = "";
    struct pollfd wait = { .fd = pipe_fds[0], .events = POLLIN };
    int got = child < 0 ? -1 : poll(&wait, 1, WAIT_MS);
    if (got == 0) {
        kill(child, SIGKILL); /* and not waited for: a hung driver may keep it */
    }
    ssize_t n = got > 0 ? read(pipe_fds[0], text, sizeof text - 1) : 0;
    text[n > 0 ? n : 0] = 0;
    close(pipe_fds[0]);
    while (got > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (child < 0 || got <= 0 || status != 0) {
        err_set(err, ERR_FAILED, "%s: %s", device,
                got == 0    ? "no answer to its self-test within a minute"
                : text[0]   ? text
                : child < 0 ? "no process for its self-test"
                            : "its self-test ended in a fault");
        return false;
    }
    return true;
}
