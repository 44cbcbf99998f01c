#include "broker/shards.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "broker/broker.h"
#include "proto/log.h"

static bool is_tmpfs(const char *path)
{
    struct statfs fs;
    return statfs(path, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
}

/* A directory that nobody else may write to. */
static bool is_ours(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid() &&
           (st.st_mode & 0077) == 0;
}

int shards_open_dir(struct shards *s, const char *run, struct err *err)
{
    if (snprintf(s->dir, sizeof s->dir, "%s/journal", run) >= (int)sizeof s->dir) {
        return err_set(err, ERR_USAGE, "runtime directory %s is too long", run);
    }
    struct stat st;
    if (lstat(s->dir, &st) == 0) {
        if (is_ours(s->dir)) {
            return 0;
        }
        /* A link whose target a reboot took away, or somebody's else: begun anew. */
        if (!S_ISLNK(st.st_mode) || unlink(s->dir) < 0) {
            return err_set(err, ERR_REFUSED, "journal directory %s is not ours alone", s->dir);
        }
    }
    if (is_tmpfs(run) || !is_tmpfs("/dev/shm")) {
        if (mkdir(s->dir, 0700) < 0) {
            return err_set_errno(err, ERR_IO, "make %s", s->dir);
        }
        return 0;
    }
    char target[64];
    uint64_t random;
    broker_random(&random, sizeof random);
    snprintf(target, sizeof target, "/dev/shm/hearth-%u-%016" PRIx64, geteuid(), random);
    if (mkdir(target, 0700) < 0) {
        return err_set_errno(err, ERR_IO, "make %s", target);
    }
    if (symlink(target, s->dir) < 0) {
        err_set_errno(err, ERR_IO, "link %s to %s", s->dir, target);
        rmdir(target);
        return -1;
    }
    return 0;
}

static void path_of(const struct shards *s, uid_t uid, char *path, size_t size)
{
    int n = snprintf(path, size, "%s/shard-%u", s->dir, (unsigned)uid);
    (void)n; /* dir is shorter than the buffer by more than this */
}

static void shard_close(struct shard *shard)
{
    journal_unmap(&shard->journal);
    if (shard->fd >= 0) {
        close(shard->fd);
    }
    if (shard->fd_readonly >= 0) {
        close(shard->fd_readonly);
    }
}

/* Opens and maps an existing file into the next row. */
static struct shard *open_shard(struct shards *s, uid_t uid, struct err *err)
{
    char path[SHARDS_PATH_BYTES + 32];
    if (s->n == SHARDS_MAX) {
        err_set(err, ERR_BUSY, "all %d journal shards are taken", SHARDS_MAX);
        return NULL;
    }
    path_of(s, uid, path, sizeof path);
    struct shard *shard = &s->list[s->n];
    *shard = (struct shard){ .uid = uid, .fd = -1, .fd_readonly = -1 };
    shard->fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    shard->fd_readonly = shard->fd < 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (shard->fd_readonly < 0) {
        bool scarce = errno == EMFILE || errno == ENFILE || errno == ENOMEM;
        err_set_errno(err, scarce ? ERR_NO_MEMORY : ERR_IO, "open %s", path);
        goto fail;
    }
    if (journal_map(&shard->journal, shard->fd, true, err) < 0) {
        err_wrap(err, "%s", path);
        goto fail;
    }
    if (shard->journal.header.uid != uid) {
        err_set(err, ERR_BAD_FILE, "%s says it is of uid %u", path, shard->journal.header.uid);
        goto fail;
    }
    s->n++;
    return shard;
fail:
    shard_close(shard);
    return NULL;
}

int shards_scan(struct shards *s, struct err *err)
{
    DIR *dir = opendir(s->dir);
    struct dirent *entry;
    int status = dir || errno == ENOENT ? 0 : err_set_errno(err, ERR_IO, "read %s", s->dir);
    while (dir && status == 0 && (entry = readdir(dir))) {
        unsigned uid;
        int used = 0;
        struct err why = { 0 };
        if (sscanf(entry->d_name, "shard-%u%n", &uid, &used) != 1 || entry->d_name[used]) {
            continue;
        }
        if (open_shard(s, uid, &why)) {
            continue;
        }
        if (why.code == ERR_BAD_FILE || why.code == ERR_IO) {
            char from[SHARDS_PATH_BYTES + 32], to[SHARDS_PATH_BYTES + 64];
            path_of(s, uid, from, sizeof from);
            snprintf(to, sizeof to, "%s/damaged-%u", s->dir, uid);
            log_error("journal: %s; it is set aside as %s", why.text, to);
            rename(from, to);
        } else { /* no descriptor, no memory: what is in it is as good as ever */
            *err = why;
            status = -1;
        }
    }
    if (dir) {
        closedir(dir);
    }
    return status;
}

struct shard *shards_find(struct shards *s, uid_t uid)
{
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->list[i].uid == uid) {
            return &s->list[i];
        }
    }
    return NULL;
}

struct shard *shards_find_segment(struct shards *s, uint64_t segment)
{
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->list[i].segment == segment) {
            return &s->list[i];
        }
    }
    return NULL;
}

struct shard *shards_get(struct broker *b, uid_t uid, struct err *err)
{
    struct shards *s = &b->shards;
    struct shard *shard = shards_find(s, uid);
    if (shard) {
        return shard;
    }
    char path[SHARDS_PATH_BYTES + 32], final[SHARDS_PATH_BYTES + 32];
    path_of(s, uid, final, sizeof final);
    /* Made under another name: a broker that dies in the middle leaves no half shard behind. */
    snprintf(path, sizeof path, "%s/new-%u", s->dir, (unsigned)uid);
    unlink(path);
    int fd = journal_create(path, b->config.journal_bytes, uid, err);
    if (fd < 0) {
        return NULL;
    }
    close(fd);
    if (rename(path, final) < 0) {
        err_set_errno(err, ERR_IO, "rename to %s", final);
        unlink(path);
        return NULL;
    }
    return open_shard(s, uid, err);
}

void shards_deposit(struct broker *b, struct shard *shard)
{
    if (shard->segment) {
        return;
    }
    struct channel_msg msg = { .op = CHANNEL_DEPOSIT, .segment = broker_segment(b) };
    snprintf(msg.tag, sizeof msg.tag, "shard %u", (unsigned)shard->uid);
    shard->segment = msg.segment;
    int fd = dup(shard->fd);
    keeper_line_ask(b->keeper, &msg, &fd, fd < 0 ? 0 : 1, KEEPER_DEPOSIT_SHARD, shard->uid, 0);
}

static bool in_use(const struct shard *shard)
{
    for (uint32_t i = 0; i < shard->journal.header.n_slots; i++) {
        enum journal_state state = journal_get_state(journal_slot_at(&shard->journal, i));
        if (state == JOURNAL_QUEUED || state == JOURNAL_PREFILL || state == JOURNAL_DECODE) {
            return true;
        }
    }
    return false;
}

void shards_close(struct shards *s, const char *run, bool remove_unused)
{
    for (uint32_t i = 0; i < s->n; i++) {
        struct shard *shard = &s->list[i];
        if (remove_unused && shard->journal.base && !in_use(shard)) {
            char path[SHARDS_PATH_BYTES + 32];
            path_of(s, shard->uid, path, sizeof path);
            unlink(path);
        }
        shard_close(shard);
    }
    s->n = 0;
    char real[SHARDS_PATH_BYTES], link[SHARDS_PATH_BYTES + 32];
    snprintf(link, sizeof link, "%s/journal", run);
    if (remove_unused && s->dir[0] && realpath(s->dir, real) && rmdir(real) == 0) {
        unlink(link);
    }
}
