/* The running service's vocabulary, through libhearth. */
#include "clients/direct/vocabulary.h"

struct vocabulary *vocabulary_open_model(const char *model, struct err *err)
{
    err_set(err, ERR_UNSUPPORTED,
            "model %s: this build asks no service for tokens; --file FILE.gguf does without one",
            model);
    return NULL;
}
