#include "broker/config.h"

#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <ini.h>

#include "proto/size.h"

#define RAM_SHARE_NUM 3 /* of the machine's memory that models may take when nobody says */
#define RAM_SHARE_DEN 4

void config_init(struct config *c)
{
    *c = (struct config){
        .device = "auto",
        .kv_k = "f16",
        .kv_v = "f16",
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

static int take_text(char *out, size_t size, const char *value, struct err *err)
{
    if (strlen(value) >= size) {
        return err_set(err, ERR_USAGE, "the value is longer than %zu bytes", size - 1);
    }
    strcpy(out, value);
    return 0;
}

static int take_u32(uint32_t *out, const char *value, uint32_t max, struct err *err)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(value, &end, 10);
    if (end == value || *end || errno || n > max || *value == '-') {
        return err_set(err, ERR_USAGE, "%s is not a number from 0 to %u", value, max);
    }
    *out = (uint32_t)n;
    return 0;
}

static int take_bool(bool *out, const char *value, struct err *err)
{
    static const char *const yes[] = { "yes", "true", "on", "1" }, *const no[] = { "no", "false",
                                                                                   "off", "0" };
    for (int i = 0; i < 4; i++) {
        if (strcasecmp(value, yes[i]) == 0 || strcasecmp(value, no[i]) == 0) {
            *out = strcasecmp(value, yes[i]) == 0;
            return 0;
        }
    }
    return err_set(err, ERR_USAGE, "%s is neither yes nor no", value);
}

static int take_float(float *out, const char *value, double min, double max, struct err *err)
{
    char *end;
    double v = strtod(value, &end);
    if (end == value || *end || !(v >= min && v <= max)) {
        return err_set(err, ERR_USAGE, "%s is not a number from %g to %g", value, min, max);
    }
    *out = (float)v;
    return 0;
}

/* "q8_0" is both, "q8_0,q4_0" is K and V. Which types exist is the worker's knowledge. */
static int take_kv(char k[CONFIG_WORD_BYTES], char v[CONFIG_WORD_BYTES], const char *value,
                   struct err *err)
{
    const char *comma = strchr(value, ',');
    size_t n = comma ? (size_t)(comma - value) : strlen(value);
    const char *second = comma ? comma + 1 : value;
    if (n == 0 || n >= CONFIG_WORD_BYTES || !*second || strlen(second) >= CONFIG_WORD_BYTES) {
        return err_set(err, ERR_USAGE, "%s is no KV type; write f16, q8_0 or q8_0,q4_0", value);
    }
    memcpy(k, value, n);
    k[n] = 0;
    strcpy(v, second);
    return 0;
}

/* One of these words, "a, b, c". */
static int take_word(char word[CONFIG_WORD_BYTES], const char *value, const char *words,
                     struct err *err)
{
    size_t len = strlen(value);
    const char *at = len ? strstr(words, value) : NULL;
    while (at && ((at > words && at[-1] != ' ') || (at[len] && at[len] != ','))) {
        at = strstr(at + 1, value);
    }
    if (!at || strpbrk(value, " ,")) {
        return err_set(err, ERR_USAGE, "%s is none of %s", value, words);
    }
    return take_text(word, CONFIG_WORD_BYTES, value, err);
}

/* A leading ~/ is what people write in a configuration; nothing else expands. */
static int take_path(char path[CONFIG_PATH_BYTES], const char *value, struct err *err)
{
    const char *home = getenv("HOME");
    int n = value[0] == '~' && value[1] == '/' && home
                ? snprintf(path, CONFIG_PATH_BYTES, "%s%s", home, value + 1)
                : snprintf(path, CONFIG_PATH_BYTES, "%s", value);
    return n >= 0 && n < CONFIG_PATH_BYTES
               ? 0
               : err_set(err, ERR_USAGE, "the path is longer than %d bytes", CONFIG_PATH_BYTES - 1);
}

static int take_dir(struct config *c, const char *value, struct err *err)
{
    if (c->n_dirs == CONFIG_DIRS_MAX) {
        return err_set(err, ERR_USAGE, "more than %d model directories", CONFIG_DIRS_MAX);
    }
    char path[CONFIG_PATH_BYTES];
    if (take_path(path, value, err) < 0) {
        return -1;
    }
    strcpy(c->dirs[c->n_dirs++], path);
    return 0;
}

static int set_limit(struct config_limits *l, const char *key, const char *value, bool *known,
                     struct err *err)
{
    *known = true;
    if (strcmp(key, "clients_max") == 0) {
        return take_u32(&l->clients, value, 1u << 20, err);
    }
    if (strcmp(key, "waiting_max") == 0) {
        return take_u32(&l->waiting, value, 1u << 20, err);
    }
    if (strcmp(key, "tokens_max") == 0) {
        uint32_t n = 0;
        int rc = take_u32(&n, value, UINT32_MAX, err);
        l->tokens = n;
        return rc;
    }
    *known = false;
    return 0;
}

/* ---- keys: one row each, used by the file and by the flags ---- */

#define SECONDS_MAX (7u * 24 * 3600)

static int set_key(struct config *c, const char *key, const char *value, bool *known,
                   struct err *err)
{
    *known = true;
    if (strcmp(key, "models") == 0) {
        return take_dir(c, value, err);
    }
    if (strcmp(key, "device") == 0) {
        unsigned n;
        char end;
        if (strcmp(value, "auto") != 0 && strcmp(value, "cpu") != 0 &&
            sscanf(value, "cuda:%u%c", &n, &end) != 1 && strcmp(value, "reference") != 0 &&
            sscanf(value, "reference:%u%c", &n, &end) != 1) {
            return err_set(err, ERR_USAGE, "device %s: auto, cpu, cuda:N or reference[:RATE]",
                           value);
        }
        return take_text(c->device, sizeof c->device, value, err);
    }
    if (strcmp(key, "threads") == 0) {
        return take_u32(&c->threads, value, 1024, err);
    }
    if (strcmp(key, "ram_budget") == 0) {
        return config_size(value, &c->ram_budget, err);
    }
    if (strcmp(key, "vram_budget") == 0) {
        return config_size(value, &c->vram_budget, err);
    }
    if (strcmp(key, "source") == 0) {
        return take_word(c->source, value, "uring, pread, mmap", err);
    }
    if (strcmp(key, "default_model") == 0) {
        return take_text(c->default_model, sizeof c->default_model, value, err);
    }
    if (strcmp(key, "ctx") == 0) {
        return take_u32(&c->ctx, value, LIMIT_CTX_TOKENS, err);
    }
    if (strcmp(key, "kv") == 0) {
        return take_kv(c->kv_k, c->kv_v, value, err);
    }
    if (strcmp(key, "sequences") == 0) {
        if (take_u32(&c->sequences, value, LIMIT_WORKER_SEQUENCES, err) < 0) {
            return -1;
        }
        return c->sequences ? 0 : err_set(err, ERR_USAGE, "0 sequences could not answer anybody");
    }
    if (strcmp(key, "journal") == 0) {
        if (config_size(value, &c->journal_bytes, err) < 0) {
            return -1;
        }
        return c->journal_bytes >= (4u << 20)
                   ? 0
                   : err_set(err, ERR_USAGE, "a journal of less than 4M holds no request");
    }
    if (strcmp(key, "state_dir") == 0) {
        return take_path(c->state_dir, value, err);
    }
    if (strcmp(key, "state_budget") == 0) {
        return config_size(value, &c->state_budget, err);
    }
    if (strcmp(key, "keep") == 0) {
        return take_u32(&c->keep_s, value, SECONDS_MAX, err);
    }
    if (strcmp(key, "min_residency") == 0) {
        return take_u32(&c->min_residency_s, value, SECONDS_MAX, err);
    }
    if (strcmp(key, "swap_wait_max") == 0) {
        return take_u32(&c->swap_wait_max_s, value, SECONDS_MAX, err);
    }
    if (strcmp(key, "http") == 0) {
        return take_text(c->http, sizeof c->http, value, err);
    }
    if (strcmp(key, "http_fields") == 0) {
        return take_word(c->http_fields, value, "strict, lenient", err);
    }
    if (strcmp(key, "http_reasoning") == 0) {
        return take_word(c->http_reasoning, value, "reasoning_content, reasoning, both", err);
    }
    if (strcmp(key, "http_key") == 0) {
        struct http_key ignored; /* the gateway reads it again */
        if (http_key_parse(value, &ignored, err) < 0) {
            return -1;
        }
        if (c->n_http_keys == HTTP_KEYS_MAX) {
            return err_set(err, ERR_USAGE, "more than %d keys", HTTP_KEYS_MAX);
        }
        strcpy(c->http_keys[c->n_http_keys++], value);
        return 0;
    }
    int limit = set_limit(&c->limits, key, value, known, err);
    return *known ? limit : err_set(err, ERR_USAGE, "key %s is not known", key);
}

static int set_sampling(struct config_sampling *s, const char *key, const char *value, bool *known,
                        struct err *err)
{
    const struct {
        const char *key;
        float *at;
        double min, max;
        uint32_t bit;
    } rows[] = {
        { "temp", &s->temp, 0, 100, CONFIG_TEMP },
        { "top_p", &s->top_p, 0, 1, CONFIG_TOP_P },
        { "min_p", &s->min_p, 0, 1, CONFIG_MIN_P },
        { "typical_p", &s->typical_p, 0, 1, CONFIG_TYPICAL_P },
        { "repeat_penalty", &s->repeat_penalty, 0.01, 100, CONFIG_REPEAT_PENALTY },
        { "presence_penalty", &s->presence_penalty, -100, 100, CONFIG_PRESENCE_PENALTY },
        { "frequency_penalty", &s->frequency_penalty, -100, 100, CONFIG_FREQUENCY_PENALTY },
        { "dynatemp_range", &s->dynatemp_range, 0, 100, CONFIG_DYNATEMP_RANGE },
        { "dynatemp_exponent", &s->dynatemp_exponent, 0, 100, CONFIG_DYNATEMP_EXPONENT },
        { "top_n_sigma", &s->top_n_sigma, -1, 1000, CONFIG_TOP_N_SIGMA },
        { "xtc_probability", &s->xtc_probability, 0, 1, CONFIG_XTC_PROBABILITY },
        { "xtc_threshold", &s->xtc_threshold, 0, 1, CONFIG_XTC_THRESHOLD },
        { "dry_multiplier", &s->dry_multiplier, 0, 100, CONFIG_DRY_MULTIPLIER },
        { "dry_base", &s->dry_base, 1, 100, CONFIG_DRY_BASE },
        { "mirostat_tau", &s->mirostat_tau, 0, 100, CONFIG_MIROSTAT_TAU },
        { "mirostat_eta", &s->mirostat_eta, 0, 1, CONFIG_MIROSTAT_ETA },
        { "adaptive_target", &s->adaptive_target, -1, 1, CONFIG_ADAPTIVE_TARGET },
        { "adaptive_decay", &s->adaptive_decay, 0, 0.99, CONFIG_ADAPTIVE_DECAY },
    }, whole[] = {
        { "dry_allowed_length", &s->dry_allowed_length, 1, LIMIT_CTX_TOKENS,
          CONFIG_DRY_ALLOWED_LENGTH },
        { "dry_penalty_last_n", &s->dry_penalty_last_n, -1, LIMIT_CTX_TOKENS,
          CONFIG_DRY_PENALTY_LAST_N },
        { "mirostat", &s->mirostat, 0, 2, CONFIG_MIROSTAT },
    };
    *known = true;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (strcmp(key, rows[i].key) == 0) {
            s->has |= rows[i].bit;
            return take_float(rows[i].at, value, rows[i].min, rows[i].max, err);
        }
    }
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        if (strcmp(key, whole[i].key) == 0) {
            s->has |= whole[i].bit;
            if (strspn(value, "-0123456789") != strlen(value)) {
                return err_set(err, ERR_USAGE, "%s is not a whole number", value);
            }
            return take_float(whole[i].at, value, whole[i].min, whole[i].max, err);
        }
    }
    uint32_t n = 0;
    if (strcmp(key, "top_k") == 0) {
        s->has |= CONFIG_TOP_K;
        int rc = take_u32(&n, value, 1u << 20, err);
        s->top_k = (int32_t)n;
        return rc;
    }
    if (strcmp(key, "repeat_last_n") == 0) {
        s->has |= CONFIG_REPEAT_LAST_N;
        int rc = take_u32(&n, value, LIMIT_CTX_TOKENS, err);
        s->repeat_last_n = (int32_t)n;
        return rc;
    }
    *known = false;
    return 0;
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

static struct config_alias *alias_of(struct config *c, const char *name, struct err *err)
{
    for (uint32_t i = 0; i < c->n_aliases; i++) {
        if (strcmp(c->aliases[i].name, name) == 0) {
            return &c->aliases[i];
        }
    }
    /* "org/model:Q4" is a name; what begins like a path is one. */
    if (!*name || strlen(name) >= LIMIT_MODEL_NAME_BYTES || strchr("/.~", *name)) {
        err_set(err, ERR_USAGE, "%s is no name for an alias", *name ? name : "nothing");
        return NULL;
    }
    if (c->n_aliases == CONFIG_ALIASES_MAX) {
        err_set(err, ERR_USAGE, "more than %d aliases", CONFIG_ALIASES_MAX);
        return NULL;
    }
    if (!c->aliases) {
        c->aliases = calloc(CONFIG_ALIASES_MAX, sizeof *c->aliases);
        if (!c->aliases) {
            err_set(err, ERR_NO_MEMORY, "no memory for aliases");
            return NULL;
        }
    }
    struct config_alias *a = &c->aliases[c->n_aliases++];
    strcpy(a->name, name);
    return a;
}

/* The file's text: read now, so that a request never waits for a disk and never meets half an edit. */
static int take_template(struct config_alias *a, const char *value, struct err *err)
{
    char path[CONFIG_PATH_BYTES];
    if (take_path(path, value, err) < 0) {
        return -1;
    }
    FILE *f = fopen(path, "re");
    if (!f) {
        return err_set_errno(err, ERR_USAGE, "template %s", path);
    }
    char *text = malloc(LIMIT_TEMPLATE_BYTES + 1);
    size_t n = text ? fread(text, 1, LIMIT_TEMPLATE_BYTES + 1, f) : 0;
    bool bad = ferror(f);
    fclose(f);
    if (!text || bad || n == 0 || n > LIMIT_TEMPLATE_BYTES || memchr(text, 0, n)) {
        free(text);
        return err_set(err, ERR_USAGE, "template %s is no text of 1 to %u bytes", path,
                       LIMIT_TEMPLATE_BYTES);
    }
    text[n] = 0;
    free(a->template);
    a->template = text;
    return 0;
}

/* PATH or PATH:SCALE; kept as PATH:SCALE, as the loader wants it. */
static int take_lora(struct config_alias *a, const char *value, struct err *err)
{
    char path[CONFIG_PATH_BYTES], text[CONFIG_PATH_BYTES];
    const char *colon = strrchr(value, ':');
    char *end = NULL;
    double scale = colon ? strtod(colon + 1, &end) : 1.0;
    bool scaled = colon && end != colon + 1 && *end == '\0';
    scale = scaled ? scale : 1.0;
    if (!(scale >= -1000.0 && scale <= 1000.0)) {
        return err_set(err, ERR_USAGE, "lora %s: the factor is beyond 1000", value);
    }
    snprintf(text, sizeof text, "%.*s", scaled ? (int)(colon - value) : (int)strlen(value), value);
    if (take_path(path, text, err) < 0) {
        return -1;
    }
    int n = snprintf(a->lora, sizeof a->lora, "%s:%.6g", path, scale);
    return n > 0 && n < (int)sizeof a->lora
               ? 0
               : err_set(err, ERR_USAGE, "lora %s: a path too long", value);
}

static int set_alias_key(struct config *c, const char *name, const char *key, const char *value,
                         struct err *err)
{
    struct config_alias *a = alias_of(c, name, err);
    bool known;
    if (!a) {
        return -1;
    }
    if (strcmp(key, "model") == 0) {
        return take_text(a->model, sizeof a->model, value, err);
    }
    if (strcmp(key, "ctx") == 0) {
        return take_u32(&a->ctx, value, LIMIT_CTX_TOKENS, err);
    }
    if (strcmp(key, "kv") == 0) {
        return take_kv(a->kv_k, a->kv_v, value, err);
    }
    if (strcmp(key, "lora") == 0) {
        return take_lora(a, value, err);
    }
    if (strcmp(key, "template") == 0) {
        return take_template(a, value, err);
    }
    if (strcmp(key, "pin") == 0) {
        return take_bool(&a->pin, value, err);
    }
    if (strcmp(key, "ttl") == 0) {
        return take_u32(&a->ttl_s, value, SECONDS_MAX, err);
    }
    int rc = set_sampling(&a->sampling, key, value, &known, err);
    return known ? rc : err_set(err, ERR_USAGE, "key %s is not known in an alias", key);
}

/* A user by name or number; what the section does not say is as for everybody, so [hearth] comes first. */
static int set_user_key(struct config *c, const char *name, const char *key, const char *value,
                        struct err *err)
{
    struct config_user *u = NULL;
    uint32_t uid = 0;
    bool known;
    const struct passwd *entry = getpwnam(name);
    if (entry) {
        uid = entry->pw_uid;
    } else if (!*name || take_u32(&uid, name, UINT32_MAX - 1, err) < 0) {
        return err_set(err, ERR_USAGE, "there is no user %s", name);
    }
    for (uint32_t i = 0; i < c->n_users; i++) {
        u = c->users[i].uid == uid ? &c->users[i] : u;
    }
    if (!u && !c->users) {
        c->users = calloc(CONFIG_USERS_MAX, sizeof *c->users);
    }
    if (!u && (!c->users || c->n_users == CONFIG_USERS_MAX)) {
        return err_set(err, ERR_USAGE, "more than %d users", CONFIG_USERS_MAX);
    }
    if (!u) {
        u = &c->users[c->n_users++];
        *u = (struct config_user){ .uid = uid, .limits = c->limits };
    }
    int rc = set_limit(&u->limits, key, value, &known, err);
    return known ? rc : err_set(err, ERR_USAGE, "key %s is not known of a user", key);
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
    bool known;
    int rc;
    if (!*section || strcmp(section, "hearth") == 0) {
        rc = set_key(r->config, key, value, &known, &err);
    } else if (strncmp(section, "alias ", 6) == 0) {
        const char *name = section + 6;
        rc = set_alias_key(r->config, name + strspn(name, " "), key, value, &err);
    } else if (strncmp(section, "user ", 5) == 0) {
        const char *name = section + 5;
        rc = set_user_key(r->config, name + strspn(name, " "), key, value, &err);
    } else {
        rc = err_set(&err, ERR_USAGE,
                     "section [%s] is not known; there are [hearth], [alias NAME] and [user NAME]",
                     section);
    }
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

/* The value of --flag in argv[*i], as "--flag value" or "--flag=value"; NULL when it is another flag. */
static const char *flag_value(int argc, char *const argv[], int *i, const char *flag)
{
    size_t n = strlen(flag);
    if (strncmp(argv[*i], flag, n) != 0) {
        return NULL;
    }
    if (argv[*i][n] == '=') {
        return argv[*i] + n + 1;
    }
    return argv[*i][n] == 0 && *i + 1 < argc ? argv[++*i] : NULL;
}

static const struct {
    const char *flag, *key; /* key NULL: not the configuration's */
} flags[] = {
    { "--models", "models" },
    { "--device", "device" },
    { "--threads", "threads" },
    { "--ram-budget", "ram_budget" },
    { "--vram-budget", "vram_budget" },
    { "--state-dir", "state_dir" },
    { "--state-budget", "state_budget" },
    { "--http", "http" },
    { "--source", "source" },
    { "--ctx", "ctx" },
    { "--kv", "kv" },
    { "--default-model", "default_model" },
    { "--sequences", "sequences" },
    { "--journal", "journal" },
    { "--keep", "keep" },
    { "--min-residency", "min_residency" },
    { "--swap-wait-max", "swap_wait_max" },
    { "--config", NULL },
    { "--run", NULL },
};

static int read_flags(struct config *c, int argc, char *const argv[], struct err *err)
{
    bool dirs_replaced = false, known;
    for (int i = 1; i < argc; i++) {
        size_t row = 0;
        const char *value = NULL;
        while (row < sizeof flags / sizeof *flags &&
               !(value = flag_value(argc, argv, &i, flags[row].flag))) {
            row++;
        }
        if (!value) {
            return err_set(err, ERR_USAGE,
                           "%s: not a flag of hearth serve, or its value is missing", argv[i]);
        }
        if (!flags[row].key) {
            continue;
        }
        if (strcmp(flags[row].key, "models") == 0 && !dirs_replaced) {
            c->n_dirs = 0; /* a flag replaces what the file says, it does not add to it */
            dirs_replaced = true;
        }
        if (set_key(c, flags[row].key, value, &known, err) < 0) {
            return err_wrap(err, "%s", flags[row].flag);
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
    const char *given = NULL, *value;
    for (int i = 1; i < argc; i++) {
        if ((value = flag_value(argc, argv, &i, "--config"))) {
            given = value;
        }
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
