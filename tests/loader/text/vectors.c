#include "vectors.h"

#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "loader/load.h"
#include "tests/test.h"

bool vectors_open(struct vectors *v, const char *path)
{
    *v = (struct vectors){ .file = fopen(path, "r") };
    return v->file != NULL;
}

struct json *vectors_next(struct vectors *v)
{
    ssize_t len = getline(&v->line, &v->cap, v->file);
    if (len <= 0) {
        return NULL;
    }
    struct err err = { 0 };
    struct json *object = json_parse(v->line, (size_t)len, &err);
    if (!object) {
        fail_msg("line %zu: %s", v->number + 1, err.text);
    }
    v->number++;
    return object;
}

void vectors_close(struct vectors *v)
{
    if (v->file) {
        fclose(v->file);
    }
    free(v->line);
    *v = (struct vectors){ 0 };
}

static char *decode_base64(const char *text, size_t len, size_t *out_len)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *out = malloc(len + 1);
    unsigned value = 0, bits = 0;
    *out_len = 0;
    for (size_t i = 0; i < len && text[i] != '='; i++) {
        const char *digit = strchr(digits, text[i]);
        assert_non_null(digit);
        value = value << 6 | (unsigned)(digit - digits);
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            out[(*out_len)++] = (char)(value >> bits & 0xff);
        }
    }
    return out;
}

char *vectors_text(const struct json *object, const char *key, size_t *len)
{
    char name[64];
    size_t text_len;
    const struct json *value = json_find(object, key);
    if (value && json_kind(value) == JSON_STRING) {
        const char *text = json_as_str(value, len);
        char *out = malloc(*len + 1);
        memcpy(out, text, *len);
        return out;
    }
    snprintf(name, sizeof name, "%s_b64", key);
    value = json_find(object, name);
    if (!value) {
        return NULL;
    }
    const char *text = json_as_str(value, &text_len);
    return decode_base64(text, text_len, len);
}

void vectors_vocabulary(struct weights *w, const char *dir, const char *name)
{
    char path[512], command[600];
    struct err err = { 0 };
    snprintf(path, sizeof path, "%s/vocabs/%s.gguf", dir, name);
    if (access(path, R_OK) == 0) {
        assert_ok(loader_open_manifest(path, w, &err), err);
        return;
    }
    char unpacked[] = "/tmp/hearth-vocab-XXXXXX";
    int fd = mkstemp(unpacked);
    assert_true(fd >= 0);
    snprintf(command, sizeof command, "gzip -dc '%s.gz'", path);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    char block[1 << 16];
    size_t n;
    while ((n = fread(block, 1, sizeof block, pipe)) > 0) {
        assert_int_equal(write(fd, block, n), n);
    }
    assert_int_equal(pclose(pipe), 0);
    close(fd);
    int opened = loader_open_manifest(unpacked, w, &err);
    unlink(unpacked);
    assert_ok(opened, err);
}
