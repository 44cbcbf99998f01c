/* CRC-32C (Castagnoli, polynomial 0x1EDC6F41, reflected): the checksum of token records. Any thread. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Continues crc (0 at first) over len bytes; data may be NULL when len is 0. */
uint32_t crc32c(uint32_t crc, const void *data, size_t len);
