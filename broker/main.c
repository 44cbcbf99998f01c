/* hearth-broker: decides who gets what, when; the one address that clients know. Started by the keeper. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>

#include "broker/broker.h"
#include "proto/log.h"

static struct broker broker; /* large: not on the stack */

int main(int argc, char **argv)
{
    struct err err = { 0 };
    struct broker *b = &broker;
    log_init("broker");
    if (heritage_read(&b->heritage, &err) < 0) {
        goto fail;
    }
    b->argc = argc;
    b->argv = argv;
    if (config_load(&b->config, argc, argv, &err) < 0) {
        goto fail;
    }
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGPIPE); /* never read: a broken line is an error of its call */
    sigprocmask(SIG_BLOCK, &signals, NULL);
    sigdelset(&signals, SIGPIPE);
    int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signal_fd < 0) {
        err_set_errno(&err, ERR_IO, "signalfd");
        goto fail;
    }
    if (broker_open(b, &err) < 0) {
        goto fail;
    }
    int code = broker_loop(b, signal_fd);
    broker_close(b);
    return code;
fail:
    fprintf(stderr, "hearth serve: %s\n", err.text);
    return err_exit_code(err.code);
}
