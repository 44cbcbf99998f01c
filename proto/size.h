/* Sizes as people write them: "17", "512M", "1.5g", "24GiB". Units are powers of 1024. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* A number, then K, M, G or T if wanted, then B or iB if wanted; letters of either case. False, and *bytes untouched, for anything
 * else and from 2^62 on. */
bool size_parse(const char *text, uint64_t *bytes);

/* "3.0 GiB"; returns text. */
const char *size_print(uint64_t bytes, char text[32]);
