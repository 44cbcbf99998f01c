/* What every fuzz target is: one function over bytes. With HEARTH_FUZZ and clang it is a libFuzzer target; otherwise
 * driver.c runs the corpus and seeded mutations of it, so that every build exercises the same code for a while. */
#pragma once

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
