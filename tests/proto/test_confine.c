/* The sandbox: what each profile forbids fails with EPERM, what it needs goes on. */
#include "tests/test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/confine.h"

static void *nothing(void *arg)
{
    return arg;
}

static int refused(long rc)
{
    return rc < 0 && errno == EPERM;
}

/* In a child: the sandbox is for life. Returns the number of the first check that failed, 0 if none. */
static int inside(enum confine_profile profile)
{
    struct err err;
    if (confine(profile, &err) < 0) {
        return 100;
    }
    bool linked = profile != CONFINE_LOADER; /* has a line to the broker */
    char byte;
    if (!refused(open("/etc/passwd", O_RDONLY))) {
        return 1;
    }
    if (!refused(socket(AF_INET, SOCK_STREAM, 0))) {
        return 2;
    }
    int unix_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (linked ? unix_fd < 0 : !refused(unix_fd)) {
        return 3;
    }
    if (!refused(fork())) {
        return 4;
    }
    char *const argv[] = { NULL };
    if (!refused(execve("/bin/true", argv, argv))) {
        return 5;
    }
    if (mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) {
        return 6;
    }
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, nothing, NULL);
    if (rc != 0 || pthread_join(thread, NULL) != 0) {
        return 7;
    }
    void *block = malloc(8 << 20);
    if (!block || (memset(block, 1, 8 << 20), false)) {
        return 8;
    }
    free(block);
    if (pread(0, &byte, 1, 0) < 0 && errno == EPERM) {
        return 9;
    }
    if (!refused(kill(getppid(), 0)) || !refused(memfd_create("x", 0))) {
        return 10;
    }
    return 0;
}

static void forbids_what_a_profile_does_not_need(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* these builds go unconfined */
#endif
    for (int profile = 0; profile < CONFINE_N_PROFILES; profile++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            _exit(inside((enum confine_profile)profile));
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 100) {
            fprintf(stderr, "skipped: no system call filter here\n");
            continue;
        }
        assert_int_equal(status, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(forbids_what_a_profile_does_not_need) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
