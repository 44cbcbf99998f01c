#include "broker/catalog.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "proto/log.h"

#define SUFFIX     ".gguf"
#define SUFFIX_LEN 5
#define PART_LEN   15 /* "-00001-of-00004" */
#define PARTS_MAX  99999u
#define DEPTH_MAX  3 /* folders below a model directory: people sort by maker */

/* The part's number and count when the stem (without suffix) ends like a split file's. */
static bool part_of(const char *stem, size_t len, unsigned *part, unsigned *count)
{
    if (len <= PART_LEN) {
        return false;
    }
    const char *at = stem + len - PART_LEN;
    for (int i = 0; i < PART_LEN; i++) {
        static const char shape[] = "-00000-of-00000";
        if (shape[i] == '0' ? at[i] < '0' || at[i] > '9' : at[i] != shape[i]) {
            return false;
        }
    }
    *part = (unsigned)strtoul(at + 1, NULL, 10);
    *count = (unsigned)strtoul(at + 10, NULL, 10);
    return *part >= 1 && *part <= *count;
}

static uint64_t mtime_of(const struct stat *st)
{
    return (uint64_t)st->st_mtim.tv_sec * 1000000000u + (uint64_t)st->st_mtim.tv_nsec;
}

int catalog_stat(const char *path, struct catalog_file *file, struct err *err)
{
    struct stat st;
    *file = (struct catalog_file){ .n_parts = 1, .n_expected = 1 };
    if (strlen(path) >= sizeof file->path) {
        return err_set(err, ERR_NOT_FOUND, "a path of %zu bytes is too long", strlen(path));
    }
    if (stat(path, &st) < 0) {
        return err_set_errno(err, ERR_NOT_FOUND, "model file %s", path);
    }
    if (!S_ISREG(st.st_mode)) {
        return err_set(err, ERR_NOT_FOUND, "model file %s is not a regular file", path);
    }
    strcpy(file->path, path);
    file->device = st.st_dev;
    file->inode = st.st_ino;
    file->mtime_ns = mtime_of(&st);
    file->size_bytes = (uint64_t)st.st_size;
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    size_t stem = strlen(base);
    if (stem > SUFFIX_LEN && strcasecmp(base + stem - SUFFIX_LEN, SUFFIX) == 0) {
        stem -= SUFFIX_LEN;
    }
    unsigned part, count;
    bool split = part_of(base, stem, &part, &count);
    if (split) {
        file->n_expected = count;
        size_t at = (size_t)(base - path) + stem - PART_LEN;
        char other[CONFIG_PATH_BYTES];
        for (unsigned i = 2; i <= count && count <= PARTS_MAX; i++) {
            strcpy(other, path);
            char number[16];
            snprintf(number, sizeof number, "%05u", i % 100000);
            memcpy(other + at + 1, number, 5);
            if (stat(other, &st) < 0) {
                break;
            }
            file->n_parts++;
            file->size_bytes += (uint64_t)st.st_size;
        }
        stem -= PART_LEN;
    }
    snprintf(file->name, sizeof file->name, "%.*s", (int)(stem < 255 ? stem : 255), base);
    return 0;
}

static void add_file(struct catalog *c, const char *path)
{
    struct catalog_file file;
    struct err ignored;
    if (catalog_stat(path, &file, &ignored) < 0) {
        return; /* it went away between listing and looking */
    }
    for (uint32_t i = 0; i < c->n_files; i++) {
        if (strcmp(c->files[i].name, file.name) == 0) {
            return; /* the first directory wins, as in PATH */
        }
    }
    if (c->n_files == CATALOG_FILES_MAX) {
        return;
    }
    if (c->n_files % 64 == 0) {
        struct catalog_file *grown = realloc(c->files, (c->n_files + 64) * sizeof *grown);
        if (!grown) {
            return;
        }
        c->files = grown;
    }
    c->files[c->n_files++] = file;
}

static void scan_dir(struct catalog *c, const char *path, int depth)
{
    DIR *dir = opendir(path);
    if (!dir) {
        log_warn("model directory %s: %s", path, strerror(errno));
        return;
    }
    struct dirent *entry;
    while ((entry = readdir(dir))) {
        char full[CONFIG_PATH_BYTES];
        struct stat st;
        size_t len = strlen(entry->d_name);
        if (entry->d_name[0] == '.' ||
            snprintf(full, sizeof full, "%s/%s", path, entry->d_name) >= (int)sizeof full) {
            continue;
        }
        if (len <= SUFFIX_LEN || strcasecmp(entry->d_name + len - SUFFIX_LEN, SUFFIX) != 0) {
            if (depth < DEPTH_MAX && stat(full, &st) == 0 && S_ISDIR(st.st_mode)) {
                scan_dir(c, full, depth + 1);
            }
            continue;
        }
        unsigned part, count;
        if (part_of(entry->d_name, len - SUFFIX_LEN, &part, &count) && part != 1) {
            continue; /* a later part: its first part stands for all */
        }
        add_file(c, full);
    }
    closedir(dir);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct catalog_file *)a)->name, ((const struct catalog_file *)b)->name);
}

void catalog_scan(struct catalog *c, const struct config *config)
{
    catalog_clear(c);
    for (uint32_t i = 0; i < config->n_dirs; i++) {
        char real[PATH_MAX];
        /* Loaders are born elsewhere: paths are made absolute here. */
        scan_dir(c, realpath(config->dirs[i], real) ? real : config->dirs[i], 0);
    }
    if (c->n_files == CATALOG_FILES_MAX) {
        log_warn("catalog: %d model files, no more are looked at", CATALOG_FILES_MAX);
    }
    if (c->n_files) {
        qsort(c->files, c->n_files, sizeof *c->files, by_name);
    }
}

void catalog_clear(struct catalog *c)
{
    free(c->files);
    *c = (struct catalog){ 0 };
}

/* ---- names ---- */

static char lower(char ch)
{
    return ch >= 'A' && ch <= 'Z' ? (char)(ch + 32) : ch;
}

bool catalog_unchanged(const struct catalog_file *a, const struct catalog_file *b)
{
    return a->device == b->device && a->inode == b->inode && a->size_bytes == b->size_bytes &&
           a->mtime_ns == b->mtime_ns;
}

unsigned catalog_distance(const char *a, const char *b)
{
    enum { LEN = LIMIT_MODEL_NAME_BYTES };
    unsigned row[LEN + 1];
    size_t na = strlen(a), nb = strlen(b);
    if (na > LEN || nb > LEN) {
        return UINT_MAX;
    }
    for (size_t j = 0; j <= nb; j++) {
        row[j] = (unsigned)j;
    }
    for (size_t i = 1; i <= na; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= nb; j++) {
            unsigned up = row[j];
            unsigned best = diagonal + (lower(a[i - 1]) != lower(b[j - 1]));
            best = up + 1 < best ? up + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            row[j] = best;
            diagonal = up;
        }
    }
    return row[nb];
}

/* Names near to what was asked: few edits, or one holds the other. Appends them to err's text. */
static void suggest(const struct catalog *c, const struct config *config, const char *name,
                    struct err *err)
{
    const char *best[CATALOG_NEAR] = { 0 };
    unsigned score[CATALOG_NEAR];
    size_t len = strlen(name);
    for (uint32_t i = 0; i < c->n_files + config->n_aliases; i++) {
        const char *other = i < c->n_files ? c->files[i].name
                                           : config->aliases[i - c->n_files].name;
        unsigned d = catalog_distance(name, other);
        bool holds = len >= 2 && (strcasestr(other, name) || strcasestr(name, other));
        unsigned far = (unsigned)(len > strlen(other) ? len : strlen(other)) / 3 + 1;
        if (!holds && d > far) {
            continue;
        }
        d = holds ? d / 4 : d;
        for (int k = 0; k < CATALOG_NEAR; k++) {
            if (!best[k] || d < score[k]) {
                for (int m = CATALOG_NEAR - 1; m > k; m--) {
                    best[m] = best[m - 1];
                    score[m] = score[m - 1];
                }
                best[k] = other;
                score[k] = d;
                break;
            }
        }
    }
    size_t used = strlen(err->text);
    if (best[0]) {
        used += (size_t)snprintf(err->text + used, sizeof err->text - used, "; did you mean ");
    } else if (c->n_files + config->n_aliases == 0) {
        snprintf(err->text + used, sizeof err->text - used,
                 "; there are no models: name a directory with --models");
    } else {
        snprintf(err->text + used, sizeof err->text - used, "; hearth models lists what there is");
    }
    for (int k = 0; k < CATALOG_NEAR && best[k] && used < sizeof err->text; k++) {
        used += (size_t)snprintf(err->text + used, sizeof err->text - used, "%s%s", k ? ", " : "",
                                 best[k]);
    }
}

/* By its name, its file's name with or without the suffix, or the name of any of its parts. */
static const struct catalog_file *find_file(const struct catalog *c, const char *name)
{
    size_t len = strlen(name);
    unsigned part, count = 1;
    len -= len > SUFFIX_LEN && strcasecmp(name + len - SUFFIX_LEN, SUFFIX) == 0 ? SUFFIX_LEN : 0;
    size_t stem = part_of(name, len, &part, &count) ? len - PART_LEN : len;
    for (uint32_t i = 0; i < c->n_files; i++) {
        const char *have = c->files[i].name;
        size_t have_len = strlen(have);
        if (strcmp(have, name) == 0 || (have_len == len && strncmp(have, name, len) == 0) ||
            (have_len == stem && strncmp(have, name, stem) == 0 &&
             c->files[i].n_expected == count)) {
            return &c->files[i];
        }
    }
    return NULL;
}

int catalog_find(const struct catalog *c, const struct config *config, const char *name,
                 struct catalog_pick *pick, struct err *err)
{
    *pick = (struct catalog_pick){ 0 };
    const char *target = name;
    for (uint32_t i = 0; i < config->n_aliases && !pick->alias; i++) {
        if (strcmp(config->aliases[i].name, name) == 0) {
            pick->alias = &config->aliases[i];
            target = pick->alias->model;
        }
    }
    const struct catalog_file *file = find_file(c, target);
    if (file) {
        /* The file may have changed since the scan; what it is now counts. */
        if (catalog_stat(file->path, &pick->file, err) < 0) {
            return -1;
        }
    } else if (strchr(target, '/')) {
        char real[PATH_MAX];
        if (!realpath(target, real)) {
            return err_set_errno(err, ERR_NOT_FOUND, "model file %s", target);
        }
        if (catalog_stat(real, &pick->file, err) < 0) {
            return -1;
        }
        /* A path is its own name: two files of one name must not be taken for each other. */
        file = find_file(c, pick->file.name);
        if (!file || strcmp(file->path, pick->file.path) != 0) {
            if (strlen(real) >= sizeof pick->file.name) {
                return err_set(err, ERR_NOT_FOUND, "model path %s is longer than %zu bytes", real,
                               sizeof pick->file.name - 1);
            }
            strcpy(pick->file.name, real);
        }
    } else {
        err_set(err, ERR_NOT_FOUND, "model %s is not known", name);
        if (pick->alias) {
            err_set(err, ERR_NOT_FOUND, "alias %s names %s, which is not there", name, target);
        }
        suggest(c, config, target, err);
        return -1;
    }
    if (pick->file.n_parts < pick->file.n_expected) {
        return err_set(err, ERR_NOT_FOUND, "model %s: part %u of %u is missing", pick->file.name,
                       pick->file.n_parts + 1, pick->file.n_expected);
    }
    return 0;
}
