/* Names of models are the running service's to know: hearth plan asks it for the file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/direct/plan.h"
#include "clients/hearth.h"
#include "proto/json.h"

static int find(const struct json *status, const char *name, char *path, size_t size,
                struct err *err)
{
    const struct json *models = json_find(status, "models");
    for (size_t i = 0; i < json_len(models); i++) {
        const struct json *model = json_at(models, i);
        const char *known = json_as_str(json_find(model, "name"), NULL);
        const char *file = json_as_str(json_find(model, "path"), NULL);
        if (known && file && strcmp(known, name) == 0) {
            int n = snprintf(path, size, "%s", file);
            return n >= 0 && (size_t)n < size ? 0
                                              : err_set(err, ERR_BAD_INPUT, "its path is too long");
        }
    }
    return err_set(err, ERR_NOT_FOUND,
                   "%s is neither a file nor a model of the running service; hint: hearth models",
                   name);
}

int plan_find_file(const char *run, const char *name, char *path, size_t size, struct err *err)
{
    struct hearth_error error;
    struct hearth *h = hearth_open(run, "hearth plan", &error);
    char *text = h ? hearth_status(h, true, &error) : NULL;
    if (!text) {
        hearth_close(&h);
        return err_set(err, err_code_of_name(error.code), "%s is no file; as a name: %s", name,
                       error.text);
    }
    struct json *status = json_parse(text, strlen(text), err);
    int rc = status ? find(status, name, path, size, err) : -1;
    json_destroy(&status);
    free(text);
    hearth_close(&h);
    return rc;
}
