/* The head of a model file: parse, manifest, the readers' checks. */
#include <stdio.h>

#include "tests/fuzz/fuzz.h"
#include "tests/loader/try_gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err;
    (void)try_gguf(data, size, &err);
    return 0;
}
