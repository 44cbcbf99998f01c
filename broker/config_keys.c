#include "broker/config_keys.h"

#include <pwd.h>
#include <stdlib.h>
#include <string.h>

#include "broker/config_values.h"

#define SECONDS_MAX (7.0 * 24 * 3600)

/* ---- keys that add to a list: the place is the whole configuration ---- */

static int add_dir(const struct config_key *key, void *to, const char *value, struct err *err)
{
    struct config *c = to;
    if (c->n_dirs == CONFIG_DIRS_MAX) {
        return err_set(err, ERR_USAGE, "more than %d model directories", CONFIG_DIRS_MAX);
    }
    if (config_path(key, c->dirs[c->n_dirs], value, err) < 0) {
        return -1;
    }
    c->n_dirs++;
    return 0;
}

static int add_http_key(const struct config_key *key, void *to, const char *value, struct err *err)
{
    struct config *c = to;
    struct http_key ignored; /* the gateway reads it again */
    (void)key;
    if (http_key_parse(value, &ignored, err) < 0) {
        return -1;
    }
    if (c->n_http_keys == HTTP_KEYS_MAX) {
        return err_set(err, ERR_USAGE, "more than %d keys", HTTP_KEYS_MAX);
    }
    strcpy(c->http_keys[c->n_http_keys++], value);
    return 0;
}

/* ---- the tables; each ends with a row without a name ---- */

#define AT(field) .at = offsetof(struct config, field)
#define TEXT(name, field)                                                                          \
    {                                                                                              \
        name, config_text, AT(field), .max = sizeof((struct config *)0)->field                     \
    }
#define SECONDS(name, at_)                                                                         \
    {                                                                                              \
        name, config_u32, AT(at_), .max = SECONDS_MAX                                              \
    }

static const struct config_key hearth_keys[] = {
    { "models", add_dir, .at = 0 },
    { "device", config_device, AT(device) },
    { "threads", config_u32, AT(threads), .max = 1024 },
    { "ram_budget", config_bytes, AT(ram_budget) },
    { "vram_budget", config_bytes, AT(vram_budget) },
    { "load_window", config_window, AT(load_window) },
    { "source", config_word, AT(source), .words = "uring, pread, mmap" },
    TEXT("default_model", default_model),
    { "ctx", config_u32, AT(ctx), .max = LIMIT_CTX_TOKENS },
    { "kv", config_kv, AT(kv) },
    { "sequences", config_u32, AT(sequences), .min = 1, .max = LIMIT_WORKER_SEQUENCES },
    { "journal", config_bytes, AT(journal_bytes), .min = 4u << 20 }, /* less holds no request */
    { "state_dir", config_path, AT(state_dir) },
    { "state_budget", config_bytes, AT(state_budget) },
    SECONDS("keep", keep_s),
    SECONDS("min_residency", min_residency_s),
    SECONDS("swap_wait_max", swap_wait_max_s),
    TEXT("http", http),
    { "http_fields", config_word, AT(http_fields), .words = "strict, lenient" },
    { "http_reasoning", config_word, AT(http_reasoning),
      .words = "reasoning_content, reasoning, both" },
    { "http_key", add_http_key, .at = 0 },
    { 0 },
};

#define OF_LIMITS(field) .at = offsetof(struct config_limits, field)

static const struct config_key limit_keys[] = {
    { "clients_max", config_u32, OF_LIMITS(clients), .max = 1u << 20 },
    { "waiting_max", config_u32, OF_LIMITS(waiting), .max = 1u << 20 },
    { "tokens_max", config_u64, OF_LIMITS(tokens), .max = UINT32_MAX },
    { 0 },
};

#define OF_ALIAS(field) .at = offsetof(struct config_alias, field)

static const struct config_key alias_keys[] = {
    { "model", config_text, OF_ALIAS(model), .max = CONFIG_PATH_BYTES },
    { "ctx", config_u32, OF_ALIAS(ctx), .max = LIMIT_CTX_TOKENS },
    { "kv", config_kv, OF_ALIAS(kv) },
    { "lora", config_lora, OF_ALIAS(lora) },
    { "template", config_template, OF_ALIAS(template) },
    { "pin", config_bool, OF_ALIAS(pin) },
    { "ttl", config_u32, OF_ALIAS(ttl_s), .max = SECONDS_MAX },
    { 0 },
};

#define SAMPLING(name, take, from, to, bit)                                                        \
    {                                                                                              \
#name, take, offsetof(struct config_sampling, name), from, to, NULL, bit                   \
    }

static const struct config_key sampling_keys[] = {
    SAMPLING(temp, config_float, 0, 100, CONFIG_TEMP),
    SAMPLING(top_p, config_float, 0, 1, CONFIG_TOP_P),
    SAMPLING(min_p, config_float, 0, 1, CONFIG_MIN_P),
    SAMPLING(typical_p, config_float, 0, 1, CONFIG_TYPICAL_P),
    SAMPLING(repeat_penalty, config_float, 0.01, 100, CONFIG_REPEAT_PENALTY),
    SAMPLING(presence_penalty, config_float, -100, 100, CONFIG_PRESENCE_PENALTY),
    SAMPLING(frequency_penalty, config_float, -100, 100, CONFIG_FREQUENCY_PENALTY),
    SAMPLING(dynatemp_range, config_float, 0, 100, CONFIG_DYNATEMP_RANGE),
    SAMPLING(dynatemp_exponent, config_float, 0, 100, CONFIG_DYNATEMP_EXPONENT),
    SAMPLING(top_n_sigma, config_float, -1, 1000, CONFIG_TOP_N_SIGMA),
    SAMPLING(xtc_probability, config_float, 0, 1, CONFIG_XTC_PROBABILITY),
    SAMPLING(xtc_threshold, config_float, 0, 1, CONFIG_XTC_THRESHOLD),
    SAMPLING(dry_multiplier, config_float, 0, 100, CONFIG_DRY_MULTIPLIER),
    SAMPLING(dry_base, config_float, 1, 100, CONFIG_DRY_BASE),
    SAMPLING(dry_allowed_length, config_whole, 1, LIMIT_CTX_TOKENS, CONFIG_DRY_ALLOWED_LENGTH),
    SAMPLING(dry_penalty_last_n, config_whole, -1, LIMIT_CTX_TOKENS, CONFIG_DRY_PENALTY_LAST_N),
    SAMPLING(mirostat, config_whole, 0, 2, CONFIG_MIROSTAT),
    SAMPLING(mirostat_tau, config_float, 0, 100, CONFIG_MIROSTAT_TAU),
    SAMPLING(mirostat_eta, config_float, 0, 1, CONFIG_MIROSTAT_ETA),
    SAMPLING(adaptive_target, config_float, -1, 1, CONFIG_ADAPTIVE_TARGET),
    SAMPLING(adaptive_decay, config_float, 0, 0.99, CONFIG_ADAPTIVE_DECAY),
    SAMPLING(top_k, config_u32, 0, 1u << 20, CONFIG_TOP_K),
    SAMPLING(repeat_last_n, config_u32, 0, LIMIT_CTX_TOKENS, CONFIG_REPEAT_LAST_N),
    { 0 },
};

static const struct config_key *find(const struct config_key *keys, const char *name)
{
    while (keys->name && strcmp(keys->name, name) != 0) {
        keys++;
    }
    return keys->name ? keys : NULL;
}

static int take(const struct config_key *key, void *section, const char *value, struct err *err)
{
    return key->take(key, (char *)section + key->at, value, err);
}

/* ---- sections ---- */

static int set_hearth(struct config *c, const char *name, const char *value, struct err *err)
{
    const struct config_key *key = find(hearth_keys, name);
    if (key) {
        return take(key, c, value, err);
    }
    key = find(limit_keys, name);
    return key ? take(key, &c->limits, value, err)
               : err_set(err, ERR_USAGE, "key %s is not known", name);
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

static int set_alias(struct config *c, const char *alias, const char *name, const char *value,
                     struct err *err)
{
    struct config_alias *a = alias_of(c, alias, err);
    if (!a) {
        return -1;
    }
    const struct config_key *key = find(alias_keys, name);
    if (key) {
        return take(key, a, value, err);
    }
    key = find(sampling_keys, name);
    if (!key) {
        return err_set(err, ERR_USAGE, "key %s is not known in an alias", name);
    }
    a->sampling.has |= key->bit;
    return take(key, &a->sampling, value, err);
}

/* A user by name or number; what the section does not say is as for everybody, so [hearth] comes first. */
static int set_user(struct config *c, const char *user, const char *name, const char *value,
                    struct err *err)
{
    static const struct config_key number = { .max = UINT32_MAX - 1 };
    struct config_user *u = NULL;
    uint32_t uid = 0;
    const struct passwd *entry = getpwnam(user);
    if (entry) {
        uid = entry->pw_uid;
    } else if (config_u32(&number, &uid, user, err) < 0) {
        return err_set(err, ERR_USAGE, "there is no user %s", user);
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
    const struct config_key *key = find(limit_keys, name);
    return key ? take(key, &u->limits, value, err)
               : err_set(err, ERR_USAGE, "key %s is not known of a user", name);
}

int config_set(struct config *c, const char *section, const char *key, const char *value,
               struct err *err)
{
    static const struct {
        const char *word;
        int (*set)(struct config *, const char *, const char *, const char *, struct err *);
    } named[] = { { "alias ", set_alias }, { "user ", set_user } };
    if (!*section || strcmp(section, "hearth") == 0) {
        return set_hearth(c, key, value, err);
    }
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        size_t len = strlen(named[i].word);
        if (strncmp(section, named[i].word, len) == 0) {
            const char *name = section + len;
            return named[i].set(c, name + strspn(name, " "), key, value, err);
        }
    }
    return err_set(err, ERR_USAGE,
                   "section [%s] is not known; there are [hearth], [alias NAME] and [user NAME]",
                   section);
}

/* Which keys are flags too: those that one says once, for one run. */
const char *config_key_of_flag(const char *flag, size_t len)
{
    static const char *const keys[] = {
        "models",        "device",       "threads", "ram_budget", "vram_budget",   "load_window",
        "state_dir",     "state_budget", "http",    "source",     "ctx",           "kv",
        "default_model", "sequences",    "journal", "keep",       "min_residency", "swap_wait_max",
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        size_t n = 0;
        while (n + 2 < len && keys[i][n] && flag[n + 2] == (keys[i][n] == '_' ? '-' : keys[i][n])) {
            n++;
        }
        if (len > 2 && strncmp(flag, "--", 2) == 0 && n + 2 == len && !keys[i][n]) {
            return keys[i];
        }
    }
    return NULL;
}
