#include "broker/config_values.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "broker/config.h"

int config_u64(const struct config_key *key, void *to, const char *value, struct err *err)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(value, &end, 10);
    if (end == value || *end || errno || *value == '-' || (double)n < key->min ||
        (double)n > key->max) {
        return err_set(err, ERR_USAGE, "%s is not a number from %.0f to %.0f", value, key->min,
                       key->max);
    }
    *(uint64_t *)to = n;
    return 0;
}

int config_u32(const struct config_key *key, void *to, const char *value, struct err *err)
{
    uint64_t n;
    if (config_u64(key, &n, value, err) < 0) {
        return -1;
    }
    *(uint32_t *)to = (uint32_t)n;
    return 0;
}

int config_float(const struct config_key *key, void *to, const char *value, struct err *err)
{
    char *end;
    double v = strtod(value, &end);
    if (end == value || *end || !(v >= key->min && v <= key->max)) {
        return err_set(err, ERR_USAGE, "%s is not a number from %g to %g", value, key->min,
                       key->max);
    }
    *(float *)to = (float)v;
    return 0;
}

int config_whole(const struct config_key *key, void *to, const char *value, struct err *err)
{
    return strspn(value, "-0123456789") == strlen(value)
               ? config_float(key, to, value, err)
               : err_set(err, ERR_USAGE, "%s is not a whole number", value);
}

int config_bool(const struct config_key *key, void *to, const char *value, struct err *err)
{
    static const char *const yes[] = { "yes", "true", "on", "1" }, *const no[] = { "no", "false",
                                                                                   "off", "0" };
    (void)key;
    for (int i = 0; i < 4; i++) {
        if (strcasecmp(value, yes[i]) == 0 || strcasecmp(value, no[i]) == 0) {
            *(bool *)to = strcasecmp(value, yes[i]) == 0;
            return 0;
        }
    }
    return err_set(err, ERR_USAGE, "%s is neither yes nor no", value);
}

int config_bytes(const struct config_key *key, void *to, const char *value, struct err *err)
{
    uint64_t n;
    if (config_size(value, &n, err) < 0) {
        return -1;
    }
    if ((double)n < key->min) {
        return err_set(err, ERR_USAGE, "%s is less than %.0f bytes", value, key->min);
    }
    *(uint64_t *)to = n;
    return 0;
}

int config_window(const struct config_key *key, void *to, const char *value, struct err *err)
{
    const struct config_key some = { .min = 1 };
    (void)key;
    if (strcmp(value, "auto") == 0 || strcmp(value, "off") == 0) {
        *(uint64_t *)to = value[0] == 'a' ? CONFIG_WINDOW_AUTO : CONFIG_WINDOW_OFF;
        return 0;
    }
    return config_bytes(&some, to, value, err);
}

int config_text(const struct config_key *key, void *to, const char *value, struct err *err)
{
    if (strlen(value) >= (size_t)key->max) {
        return err_set(err, ERR_USAGE, "the value is longer than %.0f bytes", key->max - 1);
    }
    strcpy(to, value);
    return 0;
}

static int take_word(char *to, const char *value, struct err *err)
{
    const struct config_key word = { .max = CONFIG_WORD_BYTES };
    return config_text(&word, to, value, err);
}

int config_word(const struct config_key *key, void *to, const char *value, struct err *err)
{
    size_t len = strlen(value);
    const char *at = len ? strstr(key->words, value) : NULL;
    while (at && ((at > key->words && at[-1] != ' ') || (at[len] && at[len] != ','))) {
        at = strstr(at + 1, value);
    }
    return at && !strpbrk(value, " ,")
               ? take_word(to, value, err)
               : err_set(err, ERR_USAGE, "%s is none of %s", value, key->words);
}

/* A leading ~/ is what people write in a configuration; nothing else expands. */
int config_path(const struct config_key *key, void *to, const char *value, struct err *err)
{
    const char *home = getenv("HOME");
    int n = value[0] == '~' && value[1] == '/' && home
                ? snprintf(to, CONFIG_PATH_BYTES, "%s%s", home, value + 1)
                : snprintf(to, CONFIG_PATH_BYTES, "%s", value);
    (void)key;
    return n >= 0 && n < CONFIG_PATH_BYTES
               ? 0
               : err_set(err, ERR_USAGE, "the path is longer than %d bytes", CONFIG_PATH_BYTES - 1);
}

int config_device(const struct config_key *key, void *to, const char *value, struct err *err)
{
    unsigned n;
    char end;
    (void)key;
    return strcmp(value, "auto") == 0 || strcmp(value, "cpu") == 0 ||
                   strcmp(value, "reference") == 0 || sscanf(value, "cuda:%u%c", &n, &end) == 1 ||
                   sscanf(value, "reference:%u%c", &n, &end) == 1
               ? take_word(to, value, err)
               : err_set(err, ERR_USAGE, "device %s: auto, cpu, cuda:N or reference[:RATE]", value);
}

/* "q8_0" is both, "q8_0,q4_0" is K and V. Which types exist is the worker's knowledge. */
int config_kv(const struct config_key *key, void *to, const char *value, struct err *err)
{
    struct config_kv *kv = to;
    const char *comma = strchr(value, ',');
    size_t n = comma ? (size_t)(comma - value) : strlen(value);
    const char *second = comma ? comma + 1 : value;
    (void)key;
    if (n == 0 || n >= sizeof kv->k || !*second || strlen(second) >= sizeof kv->v) {
        return err_set(err, ERR_USAGE, "%s is no KV type; write f16, q8_0 or q8_0,q4_0", value);
    }
    memcpy(kv->k, value, n);
    kv->k[n] = 0;
    strcpy(kv->v, second);
    return 0;
}

/* The file's text: read now, so that a request never waits for a disk and never meets half an edit. */
int config_template(const struct config_key *key, void *to, const char *value, struct err *err)
{
    char path[CONFIG_PATH_BYTES], **place = to;
    if (config_path(key, path, value, err) < 0) {
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
    free(*place);
    *place = text;
    return 0;
}

/* PATH or PATH:SCALE; kept as PATH:SCALE, as the loader wants it. */
int config_lora(const struct config_key *key, void *to, const char *value, struct err *err)
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
    if (config_path(key, path, text, err) < 0) {
        return -1;
    }
    int n = snprintf(to, CONFIG_PATH_BYTES, "%s:%.6g", path, scale);
    return n > 0 && n < CONFIG_PATH_BYTES
               ? 0
               : err_set(err, ERR_USAGE, "lora %s: a path too long", value);
}
