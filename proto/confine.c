#include "proto/confine.h"

#include <assert.h>
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

#include "proto/log.h"

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#endif

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#else
#define SANITIZED 0
#endif

#define ON_LOADER (1u << CONFINE_LOADER)
#define ON_TEXT   (1u << CONFINE_TEXT)
#define ON_WORKER (1u << CONFINE_WORKER)
#define ON_LINKED (ON_TEXT | ON_WORKER) /* those with a line to the broker of their own */
#define ON_ALL    (ON_LOADER | ON_LINKED)
#define RULES_MAX 128

/* What is allowed, and to whom; arg and mask narrow it: allowed when (argument & mask) == value. */
struct rule {
    int number;
    unsigned profiles;
    int arg; /* index of the argument, -1: none */
    uint32_t mask, value;
};

static const struct rule rules[] = {
    /* bytes by descriptors that are open */
    { SYS_read, ON_ALL, -1, 0, 0 },
    { SYS_write, ON_ALL, -1, 0, 0 },
    { SYS_readv, ON_ALL, -1, 0, 0 },
    { SYS_writev, ON_ALL, -1, 0, 0 },
    { SYS_pread64, ON_ALL, -1, 0, 0 },
    { SYS_pwrite64, ON_LOADER | ON_WORKER, -1, 0, 0 },
    { SYS_io_uring_enter, ON_LOADER, -1, 0, 0 },
    { SYS_lseek, ON_ALL, -1, 0, 0 },
    { SYS_close, ON_ALL, -1, 0, 0 },
    { SYS_fcntl, ON_ALL, -1, 0, 0 },
    { SYS_fstat, ON_ALL, -1, 0, 0 },
    { SYS_newfstatat, ON_ALL, 3, 0x1000, 0x1000 }, /* AT_EMPTY_PATH: how libc calls fstat */
    { SYS_ftruncate, ON_LOADER, -1, 0, 0 },
    { SYS_fallocate, ON_LOADER, -1, 0, 0 },
    /* lines that are open; new ones only AF_UNIX */
    { SYS_sendmsg, ON_ALL, -1, 0, 0 },
    { SYS_recvmsg, ON_ALL, -1, 0, 0 },
    { SYS_sendto, ON_LINKED, -1, 0, 0 },
    { SYS_recvfrom, ON_LINKED, -1, 0, 0 },
    { SYS_ppoll, ON_ALL, -1, 0, 0 },
    { SYS_socket, ON_LINKED, 0, UINT32_MAX, AF_UNIX },
    { SYS_connect, ON_LINKED, -1, 0, 0 },
    { SYS_getsockopt, ON_LINKED, -1, 0, 0 },
    { SYS_setsockopt, ON_LINKED, -1, 0, 0 },
    { SYS_getsockname, ON_LINKED, -1, 0, 0 },
    { SYS_getpeername, ON_LINKED, -1, 0, 0 },
    { SYS_shutdown, ON_LINKED, -1, 0, 0 },
    { SYS_eventfd2, ON_LINKED, -1, 0, 0 },
    { SYS_timerfd_settime, ON_LINKED, -1, 0, 0 },
    { SYS_epoll_create1, ON_LINKED, -1, 0, 0 },
    { SYS_epoll_ctl, ON_LINKED, -1, 0, 0 },
    { SYS_epoll_pwait, ON_LINKED, -1, 0, 0 },
    /* memory, never executable */
    { SYS_mmap, ON_ALL, 2, PROT_EXEC, 0 },
    { SYS_mprotect, ON_ALL, 2, PROT_EXEC, 0 },
    { SYS_munmap, ON_ALL, -1, 0, 0 },
    { SYS_mremap, ON_ALL, -1, 0, 0 },
    { SYS_madvise, ON_ALL, -1, 0, 0 },
    { SYS_brk, ON_ALL, -1, 0, 0 },
    { SYS_mlock, ON_WORKER, -1, 0, 0 },
    { SYS_membarrier, ON_ALL, -1, 0, 0 },
    /* threads of our own; processes never */
    { SYS_clone, ON_ALL, 0, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM },
    { SYS_set_robust_list, ON_ALL, -1, 0, 0 },
    { SYS_rseq, ON_ALL, -1, 0, 0 },
    { SYS_futex, ON_ALL, -1, 0, 0 },
    { SYS_sched_yield, ON_ALL, -1, 0, 0 },
    { SYS_sched_getaffinity, ON_ALL, -1, 0, 0 },
    { SYS_sched_setaffinity, ON_WORKER, -1, 0, 0 },
    { SYS_getcpu, ON_WORKER, -1, 0, 0 },
    { SYS_sched_setscheduler, ON_LINKED, -1, 0, 0 },
    { SYS_sched_getscheduler, ON_LINKED, -1, 0, 0 },
    { SYS_sched_getparam, ON_LINKED, -1, 0, 0 },
    { SYS_rt_sigaction, ON_ALL, -1, 0, 0 },
    { SYS_rt_sigprocmask, ON_ALL, -1, 0, 0 },
    { SYS_rt_sigreturn, ON_ALL, -1, 0, 0 },
    { SYS_sigaltstack, ON_ALL, -1, 0, 0 },
    { SYS_tgkill, ON_ALL, -1, 0, 0 }, /* abort() */
    { SYS_restart_syscall, ON_ALL, -1, 0, 0 },
    { SYS_exit, ON_ALL, -1, 0, 0 },
    { SYS_exit_group, ON_ALL, -1, 0, 0 },
    /* clocks and numbers */
    { SYS_clock_gettime, ON_ALL, -1, 0, 0 },
    { SYS_clock_nanosleep, ON_ALL, -1, 0, 0 },
    { SYS_nanosleep, ON_ALL, -1, 0, 0 },
    { SYS_gettimeofday, ON_ALL, -1, 0, 0 },
    { SYS_getrandom, ON_ALL, -1, 0, 0 },
    { SYS_getpid, ON_ALL, -1, 0, 0 },
    { SYS_gettid, ON_ALL, -1, 0, 0 },
    { SYS_getuid, ON_LINKED, -1, 0, 0 },
    { SYS_geteuid, ON_LINKED, -1, 0, 0 },
    { SYS_getrusage, ON_ALL, -1, 0, 0 },
    { SYS_sysinfo, ON_ALL, -1, 0, 0 },
    { SYS_prctl, ON_ALL, 0, UINT32_MAX, PR_SET_NAME }, /* names of threads */
#ifdef __x86_64__
    { SYS_poll, ON_ALL, -1, 0, 0 },
    { SYS_epoll_wait, ON_LINKED, -1, 0, 0 },
    { SYS_time, ON_ALL, -1, 0, 0 },
#endif
};
static_assert(sizeof rules / sizeof *rules <= RULES_MAX, "the filter has room for every rule");

#ifdef ARCH
static struct sock_filter load(size_t off)
{
    return (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)off);
}

static struct sock_filter answer(uint32_t what)
{
    return (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, what);
}

static struct sock_filter unless(uint32_t value, uint8_t skip)
{
    return (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip);
}

/* Fills the program; returns its length. Arguments are judged by their low 32 bits: flags and families. */
static unsigned short compile(enum confine_profile profile, struct sock_filter *out)
{
    const uint32_t refuse = SECCOMP_RET_ERRNO | EPERM;
    unsigned short n = 0;
    out[n++] = load(offsetof(struct seccomp_data, arch));
    out[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0);
    out[n++] = answer(SECCOMP_RET_KILL_PROCESS);
    out[n++] = load(offsetof(struct seccomp_data, nr));
    /* libc falls back to clone, whose flags can be judged. */
    out[n++] = unless(SYS_clone3, 1);
    out[n++] = answer(SECCOMP_RET_ERRNO | ENOSYS);
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        const struct rule *r = &rules[i];
        if (!(r->profiles & (1u << profile))) {
            continue;
        }
        if (r->arg < 0) {
            out[n++] = unless((uint32_t)r->number, 1);
            out[n++] = answer(SECCOMP_RET_ALLOW);
            continue;
        }
        out[n++] = unless((uint32_t)r->number, 5);
        out[n++] = load(offsetof(struct seccomp_data, args) + 8 * (size_t)r->arg);
        out[n++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, r->mask);
        out[n++] = unless(r->value, 1);
        out[n++] = answer(SECCOMP_RET_ALLOW);
        out[n++] = answer(refuse);
    }
    out[n++] = answer(refuse);
    return n;
}
#endif

int confine(enum confine_profile profile, struct err *err)
{
    assert((unsigned)profile < CONFINE_N_PROFILES);
    if (SANITIZED) {
        log_warn("confine: a build with sanitizers goes unconfined");
        return 0;
    }
#ifndef ARCH
    return err_set(err, ERR_UNSUPPORTED, "no system call filter for this processor");
#else
    struct sock_filter code[6 * RULES_MAX + 8];
    struct sock_fprog program = { .filter = code };
    program.len = compile(profile, code);
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
