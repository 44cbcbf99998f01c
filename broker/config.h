/* What the person who runs hearth decided: a file of keys (INI), then the flags of `hearth serve` over it.
 * Only the broker reads the configuration; the other processes are told. deploy/hearth.conf explains every key.
 * inih is used here and nowhere else. Loop thread only; a config is replaced as a whole on SIGHUP. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/err.h"
#include "proto/http_key.h"
#include "proto/limits.h"

#define CONFIG_DIRS_MAX    16   /* model directories */
#define CONFIG_ALIASES_MAX 128  /* [alias NAME] sections */
#define CONFIG_PATH_BYTES  4096 /* PATH_MAX */
#define CONFIG_USERS_MAX   64   /* [user NAME] sections */
#define CONFIG_WORD_BYTES  64   /* device, KV type, address */
#define CONFIG_WINDOW_AUTO 0ull /* weights by a window where the whole file finds no room */
#define CONFIG_WINDOW_OFF  UINT64_MAX

/* What an alias says beyond the file it names. The `has` bits tell which sampling fields were given. */
struct config_sampling {
    uint32_t has; /* CONFIG_TEMP, ... */
    float temp, top_p, min_p, typical_p, repeat_penalty, presence_penalty, frequency_penalty;
    float dynatemp_range, dynatemp_exponent, top_n_sigma, xtc_probability, xtc_threshold,
        dry_multiplier, dry_base, mirostat_tau, mirostat_eta, adaptive_target, adaptive_decay;
    float dry_allowed_length, dry_penalty_last_n, mirostat; /* whole numbers */
    uint32_t top_k, repeat_last_n;
};
enum {
    CONFIG_TEMP = 1,
    CONFIG_TOP_P = 2,
    CONFIG_MIN_P = 4,
    CONFIG_TYPICAL_P = 8,
    CONFIG_REPEAT_PENALTY = 16,
    CONFIG_PRESENCE_PENALTY = 32,
    CONFIG_FREQUENCY_PENALTY = 64,
    CONFIG_TOP_K = 128,
    CONFIG_REPEAT_LAST_N = 256,
    CONFIG_DYNATEMP_RANGE = 1 << 9,
    CONFIG_DYNATEMP_EXPONENT = 1 << 10,
    CONFIG_TOP_N_SIGMA = 1 << 11,
    CONFIG_XTC_PROBABILITY = 1 << 12,
    CONFIG_XTC_THRESHOLD = 1 << 13,
    CONFIG_DRY_MULTIPLIER = 1 << 14,
    CONFIG_DRY_BASE = 1 << 15,
    CONFIG_DRY_ALLOWED_LENGTH = 1 << 16,
    CONFIG_DRY_PENALTY_LAST_N = 1 << 17,
    CONFIG_MIROSTAT = 1 << 18,
    CONFIG_MIROSTAT_TAU = 1 << 19,
    CONFIG_MIROSTAT_ETA = 1 << 20,
    CONFIG_ADAPTIVE_TARGET = 1 << 21,
    CONFIG_ADAPTIVE_DECAY = 1 << 22,
};

struct config_kv {
    char k[CONFIG_WORD_BYTES], v[CONFIG_WORD_BYTES]; /* types by name */
};

struct config_alias {
    char name[LIMIT_MODEL_NAME_BYTES];
    char model[CONFIG_PATH_BYTES]; /* a file name in a model directory, or a path */
    uint32_t ctx;                  /* 0: as configured for all */
    struct config_kv kv;           /* empty: as configured for all */
    char lora[CONFIG_PATH_BYTES];  /* PATH:SCALE of an adapter; empty: none */
    bool pin;
    uint32_t ttl_s; /* idle this long: leaves RAM; 0: only when room is needed */
    char *template; /* chat template instead of the model's own, NULL: the model's; owned */
    struct config_sampling sampling;
};

/* What one principal may have at once; 0: no limit but the machine's. */
struct config_limits {
    uint32_t clients; /* attached */
    uint32_t waiting; /* requests */
    uint64_t tokens;  /* prompts, and answers at most, of what waits and runs */
};

struct config_user {
    uid_t uid;
    struct config_limits limits;
};

struct config {
    char dirs[CONFIG_DIRS_MAX][CONFIG_PATH_BYTES];
    uint32_t n_dirs;
    char device[CONFIG_WORD_BYTES]; /* "auto", "cpu", "cuda:0" */
    uint32_t threads;               /* 0: the worker's own choice */
    uint64_t ram_budget;            /* bytes; 0 until config_defaults */
    uint64_t vram_budget;           /* bytes; 0: all */
    uint64_t load_window;           /* bytes, CONFIG_WINDOW_AUTO or CONFIG_WINDOW_OFF */
    char source[CONFIG_WORD_BYTES]; /* "uring", "pread", "mmap"; empty: the loader's own choice */
    char default_model[LIMIT_MODEL_NAME_BYTES];
    uint32_t ctx; /* 0: the model's own, up to what fits */
    struct config_kv kv;
    uint32_t sequences;                /* generations in flight of one model */
    uint64_t journal_bytes;            /* of one shard */
    char state_dir[CONFIG_PATH_BYTES]; /* where idle conversations are parked; empty: memory */
    uint64_t state_budget;             /* bytes of them; 0: built in */
    uint32_t keep_s;                   /* an end that nobody acknowledged expires after this */
    uint32_t min_residency_s;          /* a model that was wanted stays at least so long */
    uint32_t swap_wait_max_s;          /* who waits longer gets the room of a model at work */
    char http[CONFIG_WORD_BYTES];
    char http_fields[CONFIG_WORD_BYTES], http_reasoning[CONFIG_WORD_BYTES];
    char http_keys[HTTP_KEYS_MAX][HTTP_KEY_LINE_BYTES]; /* the gateway's, as their lines are */
    uint32_t n_http_keys;
    struct config_limits limits; /* of everybody without a section */
    struct config_user *users;   /* owned */
    uint32_t n_users;
    struct config_alias *aliases; /* owned */
    uint32_t n_aliases;
};

/* The built-in values. */
void config_init(struct config *c);
void config_clear(struct config *c);

/* Reads one file over what stands. ERR_USAGE names file and line; ERR_NOT_FOUND when there is none. */
int config_read(struct config *c, const char *path, struct err *err);

/* The whole configuration as `hearth serve` wants it: built-in values, the file of --config (else the first of
 * $XDG_CONFIG_HOME/hearth/hearth.conf and /etc/hearth/hearth.conf that exists), then the flags. argv[0] is skipped. */
int config_load(struct config *c, int argc, char *const argv[], struct err *err);

/* The alias of this name, or NULL. */
const struct config_alias *config_find_alias(const struct config *c, const char *name);

/* "24G", "512M", "1000000" -> bytes. */
int config_size(const char *text, uint64_t *bytes, struct err *err);
