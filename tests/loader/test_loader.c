/* The process hearth-loader: exit codes, what it tells its keeper, what its sandbox leaves it. */
#include "tests/test.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/channel.h"
#include "proto/weights.h"

static const char *const fixture = HEARTH_FIXTURES "/four-kib.bin";

/* Runs the loader on a fresh segment, by hand (channel -1) or as a keeper's child. Returns its exit code. */
static int run(int segment, int channel, const char *const *args)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const char *argv[16] = { "hearth-loader" };
        int n = 1;
        if (channel >= 0) {
            int fds[2] = { fcntl(channel, F_DUPFD, 100), fcntl(segment, F_DUPFD, 100) };
            dup2(fds[0], HERITAGE_CHANNEL_FD);
            dup2(fds[1], HERITAGE_GRANT_FD);
            static char token[2 * LIMIT_TOKEN_BYTES + 1];
            memset(token, 'a', 2 * LIMIT_TOKEN_BYTES);
            setenv("HEARTH_TOKEN", token, 1);
            setenv("HEARTH_RUN", "/tmp", 1);
            setenv("HEARTH_CHILD", "7", 1);
        } else {
            dup2(segment, 10);
            argv[n++] = "--out-fd";
            argv[n++] = "10";
        }
        while (*args) {
            argv[n++] = *args++;
        }
        union {
            const char **given;
            char *const *wanted;
        } list = { .given = argv };
        setenv("HEARTH_LOG", "error", 1);
        execv(HEARTH_BIN "/hearth-loader", list.wanted);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int segment_new(void)
{
    int fd = memfd_create("segment", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    return fd;
}

static void loads_by_every_source(void **state)
{
    (void)state;
    static const char *const sources[] = { "auto", "pread", "mmap" };
    for (int i = 0; i < 3; i++) {
        int fd = segment_new();
        const char *const args[] = { "--source", sources[i], fixture, NULL };
        assert_int_equal(run(fd, -1, args), 0);
        struct weights w;
        struct err err = { 0 };
        assert_ok(weights_map(&w, fd, &err), err);
        assert_int_equal(weights_watermark(&w), w.header->data_bytes);
        weights_unmap(&w);
        /* Sealed: nobody takes the pages away. */
        assert_int_equal(ftruncate(fd, 0), -1);
        close(fd);
    }
}

static void exit_codes_say_why(void **state)
{
    (void)state;
    int fd = segment_new();
    const char *const none[] = { "/nowhere/x.gguf", NULL };
    assert_int_equal(run(fd, -1, none), 4);
    const char *const bad[] = { __FILE__, NULL };
    int rc = run(fd, -1, bad);
    assert_true(rc == 7 || rc == 4); /* 4 where the sources are not at hand */
    const char *const budget[] = { "--ram-budget", "16", fixture, NULL };
    assert_int_equal(run(fd, -1, budget), 5);
    const char *const usage[] = { "--layout", "columns", fixture, NULL };
    assert_int_equal(run(fd, -1, usage), 2);
    const char *const two[] = { fixture, fixture, NULL };
    assert_int_equal(run(fd, -1, two), 2);
    close(fd);
}

static void tells_its_keeper(void **state)
{
    (void)state;
    int pair[2], fd = segment_new();
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    const char *const good[] = { "--layout", "rows16", fixture, NULL };
    assert_int_equal(run(fd, pair[1], good), 0);
    struct channel_msg msg;
    int fds[CHANNEL_FDS_MAX];
    struct err err = { 0 };
    assert_int_equal(channel_recv(pair[0], &msg, fds, true, &err), 1);
    assert_int_equal(msg.op, CHANNEL_NOTE);
    assert_int_equal(msg.code, CHANNEL_NOTE_HEADER);
    off_t size = lseek(fd, 0, SEEK_END);
    assert_int_equal(msg.value, size);
    assert_non_null(strstr(msg.text, "digest="));
    assert_int_equal(channel_recv(pair[0], &msg, fds, true, &err), 1);
    assert_int_equal(msg.code, CHANNEL_NOTE_LOADED);
    close(fd);

    fd = segment_new();
    const char *const bad[] = { "/dev/null", NULL };
    assert_int_equal(run(fd, pair[1], bad), 7);
    assert_int_equal(channel_recv(pair[0], &msg, fds, true, &err), 1);
    assert_int_equal(msg.code, CHANNEL_NOTE_FAILED);
    assert_int_equal(msg.value, ERR_BAD_FILE);
    assert_non_null(strstr(msg.text, "not a regular file"));
    close(fd);
    close(pair[0]);
    close(pair[1]);
}

int main(void)
{
    if (access(fixture, R_OK) < 0) {
        fprintf(stderr, "skipped: no %s\n", fixture);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loads_by_every_source),
        cmocka_unit_test(exit_codes_say_why),
        cmocka_unit_test(tells_its_keeper),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
