#include "broker/config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ini.h>

#include "broker/config_keys.h"
#include "proto/size.h"

#define RAM_SHARE_NUM 3 /* of the machine's memory that models may take when nobody says */
#define RAM_SHARE_DEN 4

void config_init(struct config *c)
{
    *c = (struct config){
        .device = "auto",
        .kv = { "f16", "f16" },
        .sequences = 16,
        .journal_bytes = LIMIT_SHARD_BYTES,
        .keep_s = 600,
        .limits = { .waiting = 256 },
        .min_residency_s = 10,
        .swap_wait_max_s = 30,
        .http = "127.0.0.1:4327",
        .http_fields = "strict",
        .http_reasoning = "reasoning_content",
    };
}

void config_clear(struct config *c)
{
    for (uint32_t i = 0; i < c->n_aliases; i++) {
        free(c->aliases[i].template);
    }
    free(c->aliases);
    free(c->users);
    *c = (struct config){ 0 };
}

/* ---- values ---- */

int config_size(const char *text, uint64_t *bytes, struct err *err)
{
    return size_parse(text, bytes)
               ? 0
               : err_set(err, ERR_USAGE, "%s is not a size; write 24G, 512M or a count of bytes",
                         text);
}

const struct config_alias *config_find_alias(const struct config *c, const char *name)
{
    for (uint32_t i = 0; i < c->n_aliases; i++) {
        if (strcmp(c->aliases[i].name, name) == 0) {
            return &c->aliases[i];
        }
    }
    return NULL;
}

/* ---- the file ---- */

struct reading {
    struct config *config;
    struct err first; /* the first line's error; inih goes on after it */
};

/* inih calls this for every key; 0 makes it remember the line's number. */
static int on_key(void *user, const char *section, const char *key, const char *value)
{
    struct reading *r = user;
    struct err err = { 0 };
    int rc = config_set(r->config, section, key, value, &err);
    if (rc < 0 && r->first.code == ERR_NONE) {
        err_wrap(&err, "%s", key);
        r->first = err;
    }
    return rc == 0;
}

int config_read(struct config *c, const char *path, struct err *err)
{
    FILE *file = fopen(path, "re");
    if (!file) {
        return err_set_errno(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_USAGE, "configuration %s",
                             path);
    }
    struct reading r = { .config = c };
    int line = ini_parse_file(file, on_key, &r);
    fclose(file);
    if (line != 0 && r.first.code == ERR_NONE) {
        return err_set(err, ERR_USAGE, "%s:%d: this is neither a [section] nor key = value", path,
                       line);
    }
    if (line != 0) {
        return err_set(err, ERR_USAGE, "%s:%d: %s", path, line, r.first.text);
    }
    for (uint32_t i = 0; i < c->n_aliases; i++) {
        if (!c->aliases[i].model[0]) {
            return err_set(err, ERR_USAGE, "%s: alias %s names no model", path, c->aliases[i].name);
        }
    }
    return 0;
}

/* ---- flags ---- */

/* The flag at argv[*i] and its value, "--flag value" or "--flag=value": the flag's length, 0 when it has no value. */
static size_t flag_at(int argc, char *const argv[], int *i, const char **flag, const char **value)
{
    *flag = argv[*i];
    size_t len = strcspn(*flag, "=");
    if ((*flag)[len] == '=') {
        *value = *flag + len + 1;
        return len;
    }
    if (*i + 1 >= argc) {
        return 0;
    }
    *value = argv[++*i];
    return len;
}

static bool is(const char *flag, size_t len, const char *name)
{
    return strlen(name) == len && strncmp(flag, name, len) == 0;
}

static int read_flags(struct config *c, int argc, char *const argv[], struct err *err)
{
    bool dirs_replaced = false;
    for (int i = 1; i < argc; i++) {
        const char *flag, *value = NULL;
        size_t len = flag_at(argc, argv, &i, &flag, &value);
        if (is(flag, len, "--config") || is(flag, len, "--run")) {
            continue; /* read before, or the keeper's */
        }
        const char *key = config_key_of_flag(flag, len);
        if (!key) {
            return err_set(err, ERR_USAGE,
                           "%s: not a flag of hearth serve, or its value is missing", flag);
        }
        if (strcmp(key, "models") == 0 && !dirs_replaced) {
            c->n_dirs = 0; /* a flag replaces what the file says, it does not add to it */
            dirs_replaced = true;
        }
        if (config_set(c, "hearth", key, value, err) < 0) {
            return err_wrap(err, "%.*s", (int)len, flag);
        }
    }
    return 0;
}

/* The machine's memory, or the control group's where that is less. */
static uint64_t memory_total(void)
{
    uint64_t total = 0, limit = 0;
    char line[256];
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f)) {
        unsigned long long kb;
        if (sscanf(line, "MemTotal: %llu kB", &kb) == 1) {
            total = kb << 10;
        }
    }
    if (f) {
        fclose(f);
    }
    f = fopen("/sys/fs/cgroup/memory.max", "re");
    if (f) {
        unsigned long long bytes;
        limit = fscanf(f, "%llu", &bytes) == 1 ? bytes : 0;
        fclose(f);
    }
    return limit && limit < total ? limit : total;
}

int config_load(struct config *c, int argc, char *const argv[], struct err *err)
{
    const char *given = NULL, *flag, *value = NULL;
    for (int i = 1; i < argc; i++) {
        size_t len = flag_at(argc, argv, &i, &flag, &value);
        given = is(flag, len, "--config") ? value : given;
    }
    config_init(c);
    if (given) {
        if (config_read(c, given, err) < 0) {
            err->code = ERR_USAGE;
            goto fail;
        }
    } else {
        char path[CONFIG_PATH_BYTES];
        const char *xdg = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
        int n = xdg && *xdg ? snprintf(path, sizeof path, "%s/hearth/hearth.conf", xdg)
                            : snprintf(path, sizeof path, "%s/.config/hearth/hearth.conf",
                                       home ? home : "");
        struct err none = { 0 };
        int rc = n > 0 && (size_t)n < sizeof path ? config_read(c, path, &none) : 0;
        if (rc < 0 && none.code == ERR_NOT_FOUND) {
            rc = config_read(c, "/etc/hearth/hearth.conf", &none);
        }
        if (rc < 0 && none.code != ERR_NOT_FOUND) {
            *err = none;
            goto fail;
        }
    }
    if (read_flags(c, argc, argv, err) < 0) {
        goto fail;
    }
    if (c->ram_budget == 0) {
        c->ram_budget = memory_total() / RAM_SHARE_DEN * RAM_SHARE_NUM;
    }
    return 0;
fail:
    config_clear(c);
    return -1;
}
