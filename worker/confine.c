#include "worker/confine.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#define ARCH 0
#endif

/* mask 0: allowed as it is; else allowed when (argument & mask) == value. */
struct rule {
    int number;
    int arg;
    uint32_t mask, value;
};

static const struct rule rules[] = {
    { SYS_read, 0, 0, 0 },
    { SYS_write, 0, 0, 0 },
    { SYS_readv, 0, 0, 0 },
    { SYS_writev, 0, 0, 0 },
    { SYS_close, 0, 0, 0 },
    { SYS_fstat, 0, 0, 0 },
    { SYS_newfstatat, 3, 0x1000, 0x1000 }, /* AT_EMPTY_PATH: how libc calls fstat */
    { SYS_fcntl, 0, 0, 0 },
    { SYS_lseek, 0, 0, 0 },
    { SYS_ppoll, 0, 0, 0 },
    { SYS_epoll_create1, 0, 0, 0 },
    { SYS_epoll_ctl, 0, 0, 0 },
    { SYS_epoll_pwait, 0, 0, 0 },
    { SYS_eventfd2, 0, 0, 0 },
    /* lines: AF_UNIX only */
    { SYS_socket, 0, UINT32_MAX, AF_UNIX },
    { SYS_connect, 0, 0, 0 },
    { SYS_getsockopt, 0, 0, 0 },
    { SYS_setsockopt, 0, 0, 0 },
    { SYS_getsockname, 0, 0, 0 },
    { SYS_getpeername, 0, 0, 0 },
    { SYS_sendmsg, 0, 0, 0 },
    { SYS_recvmsg, 0, 0, 0 },
    { SYS_sendto, 0, 0, 0 },
    { SYS_recvfrom, 0, 0, 0 },
    { SYS_shutdown, 0, 0, 0 },
    /* memory, never executable */
    { SYS_mmap, 2, PROT_EXEC, 0 },
    { SYS_mprotect, 2, PROT_EXEC, 0 },
    { SYS_munmap, 0, 0, 0 },
    { SYS_mremap, 0, 0, 0 },
    { SYS_madvise, 0, 0, 0 },
    { SYS_mlock, 0, 0, 0 },
    { SYS_brk, 0, 0, 0 },
    { SYS_membarrier, 0, 0, 0 },
    /* threads of our own */
    { SYS_clone, 0, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM },
    { SYS_futex, 0, 0, 0 },
    { SYS_set_robust_list, 0, 0, 0 },
    { SYS_rseq, 0, 0, 0 },
    { SYS_sched_yield, 0, 0, 0 },
    { SYS_sched_getaffinity, 0, 0, 0 },
    { SYS_sched_setaffinity, 0, 0, 0 },
    { SYS_sched_getparam, 0, 0, 0 },
    { SYS_sched_getscheduler, 0, 0, 0 },
    { SYS_sched_setscheduler, 0, 0, 0 },
    { SYS_getcpu, 0, 0, 0 },
    { SYS_prctl, 0, UINT32_MAX, PR_SET_NAME },
    { SYS_rt_sigprocmask, 0, 0, 0 },
    { SYS_rt_sigaction, 0, 0, 0 },
    { SYS_rt_sigreturn, 0, 0, 0 },
    { SYS_sigaltstack, 0, 0, 0 },
    { SYS_tgkill, 0, 0, 0 },
    { SYS_exit, 0, 0, 0 },
    { SYS_exit_group, 0, 0, 0 },
    { SYS_restart_syscall, 0, 0, 0 },
    /* clocks and numbers */
    { SYS_clock_gettime, 0, 0, 0 },
    { SYS_clock_nanosleep, 0, 0, 0 },
    { SYS_nanosleep, 0, 0, 0 },
    { SYS_gettimeofday, 0, 0, 0 },
    { SYS_getrandom, 0, 0, 0 },
    { SYS_getpid, 0, 0, 0 },
    { SYS_gettid, 0, 0, 0 },
    { SYS_getuid, 0, 0, 0 },
    { SYS_geteuid, 0, 0, 0 },
    { SYS_sysinfo, 0, 0, 0 },
    { SYS_getrusage, 0, 0, 0 },
#ifdef __x86_64__
    { SYS_poll, 0, 0, 0 },
    { SYS_epoll_wait, 0, 0, 0 },
    { SYS_time, 0, 0, 0 },
#endif
};

#define N_RULES (sizeof rules / sizeof rules[0])

int confine_worker(struct err *err)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)rules;
    (void)err;
    return 0; /* their run-time reads /proc and starts tracers */
#else
    struct sock_filter code[6 * N_RULES + 8];
    const struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    const struct sock_filter refuse = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    unsigned short n = 0;
#define EMIT(...) code[n++] = (struct sock_filter)__VA_ARGS__
    EMIT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)));
    EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0));
    EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
    EMIT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)));
    /* libc falls back to clone, whose flags can be judged. */
    EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1));
    EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS));
    for (size_t i = 0; i < N_RULES; i++) {
        const struct rule *r = &rules[i];
        EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)r->number, 0, r->mask ? 5 : 1));
        if (r->mask) {
            EMIT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                          (uint32_t)(offsetof(struct seccomp_data, args) + 8u * (unsigned)r->arg)));
            EMIT(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, r->mask));
            EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, r->value, 0, 1));
        }
        code[n++] = allow;
        if (r->mask) {
            code[n++] = refuse;
        }
    }
    code[n++] = refuse;
#undef EMIT
    struct sock_fprog program = { .len = n, .filter = code };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        return err_set_errno(err, ERR_UNSUPPORTED, "no new privileges");
    }
    long rc = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
    if (rc < 0) {
        return err_set_errno(err, ERR_UNSUPPORTED, "system call filter");
    }
    return rc > 0 ? err_set(err, ERR_UNSUPPORTED, "system call filter: thread %ld refused it", rc)
                  : 0;
#endif
}
