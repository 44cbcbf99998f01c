#include "clients/whole.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_stream(FILE *in, const char *name, size_t max, size_t *len, struct err *err)
{
    size_t room = 1 << 16;
    char *text = malloc(room);
    *len = 0;
    while (text) {
        *len += fread(text + *len, 1, room - *len, in);
        if (*len > max) {
            err_set(err, ERR_NO_FIT, "%s is longer than %zu bytes", name, max);
            break;
        }
        if (ferror(in)) {
            err_set_errno(err, ERR_IO, "read %s", name);
            break;
        }
        if (*len < room) {
            text[*len] = 0;
            return text;
        }
        char *larger = realloc(text, room *= 2);
        if (!larger) {
            free(text);
        }
        text = larger;
    }
    if (!text) {
        err_set(err, ERR_NO_MEMORY, "%s: no memory for %zu bytes", name, room);
    }
    free(text);
    return NULL;
}

char *whole_read(const char *path, size_t max, size_t *len, struct err *err)
{
    if (strcmp(path, "-") == 0) {
        return read_stream(stdin, "standard input", max, len, err);
    }
    FILE *in = fopen(path, "rb");
    if (!in) {
        err_set_errno(err, ERR_IO, "open %s", path);
        return NULL;
    }
    char *text = read_stream(in, path, max, len, err);
    fclose(in);
    return text;
}
