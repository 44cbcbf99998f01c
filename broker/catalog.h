/* What models exist: the GGUF files of the model directories, the aliases of the configuration, and paths that
 * somebody names. The broker looks at names and sizes (stat) only and never opens a model file.
 * The parts of a split file (NAME-00001-of-00004.gguf ...) are one model called NAME. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "broker/config.h"
#include "proto/err.h"
#include "proto/limits.h"

#define CATALOG_FILES_MAX 4096 /* model files; more are left out with a warning */
#define CATALOG_NEAR      3    /* names that an error suggests */

/* Which file exactly: what a request's slot pins. */
struct catalog_file {
    char name[LIMIT_MODEL_NAME_BYTES];
    char path[CONFIG_PATH_BYTES]; /* of the first part */
    uint64_t device, inode, mtime_ns;
    uint64_t size_bytes; /* of all parts */
    uint32_t n_parts;    /* parts there are */
    uint32_t n_expected; /* parts that the name promises */
};

struct catalog {
    struct catalog_file *files; /* owned, sorted by name */
    uint32_t n_files;
};

/* A name resolved: the file and, when the name was an alias's, its options (borrowed from the configuration). */
struct catalog_pick {
    struct catalog_file file;
    const struct config_alias *alias;
};

/* Looks at all directories anew. A directory that cannot be read is a warning. */
void catalog_scan(struct catalog *c, const struct config *config);
void catalog_clear(struct catalog *c);

/* A name to a model: an alias, a file name with or without .gguf, or a path. ERR_NOT_FOUND suggests near names. */
int catalog_find(const struct catalog *c, const struct config *config, const char *name,
                 struct catalog_pick *pick, struct err *err);

/* What a file is now; the parts of a split file are counted. ERR_NOT_FOUND. */
int catalog_stat(const char *path, struct catalog_file *file, struct err *err);

/* Whether both are the same file with the same content, by inode, size and time. */
bool catalog_unchanged(const struct catalog_file *a, const struct catalog_file *b);

/* Edits between two names, ignoring case; the measure of nearness. */
unsigned catalog_distance(const char *a, const char *b);
