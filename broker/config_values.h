/* What the value of a key may be: one row for a key, one function for a kind of value. For config_keys.c, whose tables are
 * made of these rows. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

struct config_key {
    const char *name;
    /* Reads value into the place `to`, which is `at` bytes into the section. Errors: ERR_USAGE with the value. */
    int (*take)(const struct config_key *key, void *to, const char *value, struct err *err);
    size_t at;
    double min, max;   /* numbers: from, to; texts: max is the size of their place, in bytes */
    const char *words; /* config_word: "a, b, c" */
    uint32_t bit;      /* sampling: of `has` */
};

int config_u32(const struct config_key *, void *, const char *, struct err *); /* uint32_t */
int config_u64(const struct config_key *, void *, const char *, struct err *); /* uint64_t */
int config_whole(const struct config_key *, void *, const char *,
                 struct err *); /* float, no fraction */
int config_float(const struct config_key *, void *, const char *, struct err *); /* float */
int config_bool(const struct config_key *, void *, const char *, struct err *);  /* bool */
int config_bytes(const struct config_key *, void *, const char *, struct err *); /* uint64_t: 24G */
int config_window(const struct config_key *, void *, const char *,
                  struct err *); /* uint64_t: a size, CONFIG_WINDOW_AUTO, CONFIG_WINDOW_OFF */
int config_text(const struct config_key *, void *, const char *, struct err *); /* char[max] */
int config_word(const struct config_key *, void *, const char *,
                struct err *); /* char[CONFIG_WORD_BYTES] */
int config_path(const struct config_key *, void *, const char *,
                struct err *); /* char[CONFIG_PATH_BYTES] */
int config_device(const struct config_key *, void *, const char *, struct err *);
int config_kv(const struct config_key *, void *, const char *, struct err *); /* struct config_kv */
int config_template(const struct config_key *, void *, const char *,
                    struct err *); /* char *, owned */
int config_lora(const struct config_key *, void *, const char *,
                struct err *); /* char[CONFIG_PATH_BYTES] */
