#include "broker/keeper/children.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define FD_CLEAR 100 /* descriptors are lifted above this before they are put in place */
#define SEND_BUF                                                                                   \
    (1 << 20) /* bytes: some three hundred messages, so that a burst of deaths is not held back */

int children_init(struct children *c, const char *run, int lock_fd, struct err *err)
{
    memset(c, 0, sizeof *c);
    c->run = run;
    c->lock_fd = lock_fd;
    char path[sizeof c->bin_dir];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n < 0) {
        return err_set_errno(err, ERR_IO, "where this program is");
    }
    path[n] = 0;
    snprintf(c->bin_dir, sizeof c->bin_dir, "%s", dirname(path));
    return 0;
}

/* In the new process: only async-signal-safe work until exec. Descriptors are lifted first, so that none is overwritten
 * before it was moved. */
_Noreturn static void become(const struct birth *birth, const char *program, char *const argv[],
                             char *const envp[], int channel, int lock_fd, pid_t parent)
{
    int lifted[LIMIT_GRANTS], lifted_channel = fcntl(channel, F_DUPFD, FD_CLEAR),
                              lifted_lock = fcntl(lock_fd, F_DUPFD, FD_CLEAR);
    for (int i = 0; i < birth->n_fds; i++) {
        lifted[i] = fcntl(birth->fds[i], F_DUPFD, FD_CLEAR);
    }
    int null = open("/dev/null", O_RDWR);
    dup2(null, STDIN_FILENO);
    dup2(STDERR_FILENO, STDOUT_FILENO); /* stdout belongs to answers: children have none */
    dup2(lifted_channel, HERITAGE_CHANNEL_FD);
    dup2(lifted_lock, HERITAGE_LOCK_FD);
    for (int i = 0; i < birth->n_fds; i++) {
        dup2(lifted[i], HERITAGE_GRANT_FD + i);
    }
    int first_free = HERITAGE_GRANT_FD + birth->n_fds;
    close_range((unsigned)first_free, HERITAGE_LOCK_FD - 1, 0);
    close_range(HERITAGE_LOCK_FD + 1, ~0u, 0);
    setpgid(0, 0); /* Ctrl-C reaches the keeper alone */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(1); /* the keeper died before we asked to be told */
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(program, argv, envp);
    _exit(127);
}

struct child *children_spawn(struct children *c, const struct birth *birth, struct err *err)
{
    struct child *row = NULL;
    for (int i = 0; i < LIMIT_CHILDREN && !row; i++) {
        row = c->rows[i].number == 0 ? &c->rows[i] : NULL;
    }
    if (!row || birth->n_fds > LIMIT_GRANTS) {
        err_set(err, ERR_FULL, "all %d children or %d descriptors are taken", LIMIT_CHILDREN,
                LIMIT_GRANTS);
        return NULL;
    }
    const char *name = heritage_program(birth->role);
    char program[sizeof c->bin_dir + 32];
    snprintf(program, sizeof program, "%s/%s", c->bin_dir, name);
    if (access(program, X_OK) < 0) {
        err_set_errno(err, ERR_IO, "start %s", program);
        return NULL;
    }

    char *argv[LIMIT_ARGS + 2] = { (char *)(uintptr_t)name };
    int n_args = 1;
    for (uint32_t off = 0; off < birth->argv_bytes;) {
        const char *arg = birth->argv_packed + off;
        size_t len = strnlen(arg, birth->argv_bytes - off);
        if (off + len == birth->argv_bytes || n_args > LIMIT_ARGS) {
            err_set(err, ERR_USAGE, "arguments without an end, or more than %d", LIMIT_ARGS);
            return NULL;
        }
        argv[n_args++] = (char *)(uintptr_t)arg;
        off += (uint32_t)len + 1;
    }

    /* The environment is ours plus the heritage. */
    static char *envp[512];
    char hex[2 * LIMIT_TOKEN_BYTES + 1], token[128], run[256], number[64], epoch[64];
    heritage_token_hex(birth->token, hex);
    snprintf(token, sizeof token, "HEARTH_TOKEN=%s", hex);
    snprintf(run, sizeof run, "HEARTH_RUN=%s", c->run);
    snprintf(number, sizeof number, "HEARTH_CHILD=%u", c->last_number + 1);
    snprintf(epoch, sizeof epoch, "HEARTH_BROKER_EPOCH=%u", birth->broker_epoch);
    int n_env = 0;
    for (char **e = environ; *e && n_env < 500; e++) {
        envp[n_env++] = *e;
    }
    envp[n_env++] = token;
    envp[n_env++] = run;
    envp[n_env++] = number;
    envp[n_env++] = epoch;
    envp[n_env] = NULL;

    int pair[2], size = SEND_BUF;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        err_set_errno(err, ERR_IO, "channel for %s", name);
        return NULL;
    }
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        become(birth, program, argv, envp, pair[1], c->lock_fd, parent);
    }
    close(pair[1]);
    if (pid < 0) {
        err_set_errno(err, ERR_IO, "fork %s", name);
        close(pair[0]);
        return NULL;
    }
    memset(row, 0, sizeof *row);
    row->number = ++c->last_number;
    row->role = birth->role;
    row->pid = pid;
    row->channel = pair[0];
    row->held_fds[0] = row->held_fds[1] = -1;
    memcpy(row->token, birth->token, sizeof row->token);
    memcpy(row->tag, birth->tag, sizeof row->tag);
    return row;
}

struct child *children_find(struct children *c, uint32_t number)
{
    for (int i = 0; i < LIMIT_CHILDREN && number; i++) {
        if (c->rows[i].number == number) {
            return &c->rows[i];
        }
    }
    return NULL;
}

struct child *children_find_pid(struct children *c, pid_t pid)
{
    for (int i = 0; i < LIMIT_CHILDREN; i++) {
        if (c->rows[i].number && c->rows[i].pid == pid && !c->rows[i].dead) {
            return &c->rows[i];
        }
    }
    return NULL;
}

void children_forget(struct child *child)
{
    if (child->channel >= 0) {
        close(child->channel);
    }
    for (int i = 0; i < CHANNEL_FDS_MAX; i++) {
        if (child->held_fds[i] >= 0) {
            close(child->held_fds[i]);
        }
    }
    memset(child, 0, sizeof *child);
    child->channel = -1;
}
