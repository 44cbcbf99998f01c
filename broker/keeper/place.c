#include "broker/keeper/place.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/channel.h"
#include "proto/heritage.h"

#define ROUTER_BACKLOG 1024 /* clients that connect while a broker is being born */

/* Children are born elsewhere: they need the whole path. */
static int make_absolute(struct place *p, struct err *err)
{
    if (p->run[0] != '/') {
        char relative[sizeof p->run], *absolute;
        strcpy(relative, p->run);
        if (mkdir(relative, 0700) < 0 && errno != EEXIST) {
            return err_set_errno(err, ERR_IO, "make runtime directory %s", relative);
        }
        absolute = realpath(relative, NULL);
        if (!absolute || strlen(absolute) >= sizeof p->run) {
            free(absolute);
            return err_set(err, ERR_USAGE, "runtime directory %s: too long when absolute",
                           relative);
        }
        strcpy(p->run, absolute);
        free(absolute);
    }
    return 0;
}

static int make_run(struct place *p, struct err *err)
{
    struct stat st;
    if (mkdir(p->run, 0700) < 0 && errno != EEXIST) {
        return err_set_errno(err, ERR_IO, "make runtime directory %s", p->run);
    }
    if (stat(p->run, &st) < 0 || !S_ISDIR(st.st_mode)) {
        return err_set(err, ERR_IO, "runtime directory %s is not a directory", p->run);
    }
    if (st.st_uid != geteuid()) {
        return err_set(err, ERR_REFUSED, "runtime directory %s belongs to user %u, not to us (%u)",
                       p->run, st.st_uid, geteuid());
    }
    return 0;
}

static int take_lock(struct place *p, struct err *err)
{
    char path[PLACE_PATH_MAX];
    snprintf(path, sizeof path, "%s/lock", p->run);
    p->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (p->lock_fd < 0) {
        return err_set_errno(err, ERR_IO, "open %s", path);
    }
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    if (fcntl(p->lock_fd, F_OFD_SETLK, &lock) < 0) {
        if (errno == EAGAIN || errno == EACCES) {
            return err_set(err, ERR_BUSY, "%s: another hearth (or a child of it) runs here",
                           p->run);
        }
        return err_set_errno(err, ERR_IO, "lock %s", path);
    }
    return 0;
}

/* The router's listener: a stream socket, which is what ZeroMQ's ipc transport accepts. */
static int listen_router(struct place *p, struct err *err)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    snprintf(address.sun_path, sizeof address.sun_path, "%s/broker", p->run);
    unlink(address.sun_path);
    p->router_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (p->router_fd < 0 || bind(p->router_fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        chmod(address.sun_path, 0600) < 0 || listen(p->router_fd, ROUTER_BACKLOG) < 0) {
        return err_set_errno(err, ERR_IO, "listen at %s", address.sun_path);
    }
    return 0;
}

int place_open(struct place *p, const char *run, struct err *err)
{
    *p = (struct place){ .lock_fd = -1, .router_fd = -1, .attach_fd = -1 };
    if (heritage_find_run(run, p->run, err) < 0 || make_absolute(p, err) < 0 ||
        make_run(p, err) < 0 || take_lock(p, err) < 0 || listen_router(p, err) < 0) {
        return -1;
    }
    char path[PLACE_PATH_MAX];
    snprintf(path, sizeof path, "%s/attach", p->run);
    p->attach_fd = channel_listen(path, 0600, err);
    return p->attach_fd < 0 ? -1 : 0;
}

void place_close(struct place *p)
{
    static const char *const names[] = { "broker", "attach" };
    int fds[] = { p->router_fd, p->attach_fd };
    for (int i = 0; i < 2; i++) {
        if (fds[i] >= 0) {
            char path[PLACE_PATH_MAX];
            snprintf(path, sizeof path, "%s/%s", p->run, names[i]);
            unlink(path);
            close(fds[i]);
        }
    }
    if (p->lock_fd >= 0) {
        close(p->lock_fd);
    }
}
