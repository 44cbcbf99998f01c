/* The principals' journals: where their files are, which the keeper holds under which number. A shard file outlives every
 * process: $RUN/journal when that is a tmpfs, else /dev/shm/hearth-<uid>-<random>, to which $RUN/journal is a link.
 * Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/err.h"
#include "proto/journal.h"

#define SHARDS_MAX        64 /* principals at once */
#define SHARDS_PATH_BYTES 4096

struct broker;

struct shard {
    uid_t uid;
    struct journal journal; /* writable */
    int fd;                 /* read and write, for the keeper */
    int fd_readonly;        /* what clients get */
    uint64_t segment;       /* its number at the keeper */
    bool deposited;         /* the keeper has it */
};

struct shards {
    char dir[SHARDS_PATH_BYTES];
    struct shard list[SHARDS_MAX];
    uint32_t n;
};

/* Finds or makes the directory. */
int shards_open_dir(struct shards *s, const char *run, struct err *err);

/* Maps every shard file that is there; a damaged one is set aside with an error in the log. ERR_NO_MEMORY, ERR_IO: one that
 * may be sound cannot be opened (no descriptor, no memory), and whoever went on without it would make a new one in its place. */
int shards_scan(struct shards *s, struct err *err);

/* The principal's shard, made when it is new. NULL: ERR_BUSY (too many), ERR_NO_MEMORY (the tmpfs is full), ERR_IO. */
struct shard *shards_get(struct broker *b, uid_t uid, struct err *err);

struct shard *shards_find(struct shards *s, uid_t uid);
struct shard *shards_find_segment(struct shards *s, uint64_t segment);

/* Gives the keeper a shard that it does not hold yet. */
void shards_deposit(struct broker *b, struct shard *shard);

/* Unmaps all. With remove_unused, files without a live request go, then the directory if it is empty. */
void shards_close(struct shards *s, const char *run, bool remove_unused);
