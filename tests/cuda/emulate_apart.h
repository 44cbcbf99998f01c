/* Device memory that is told apart from the host's, as on a real machine: HEARTH_EMULATED_APART (emulate_runtime.h). One thread. */
#pragma once

#include <cstddef>

long apart_level(); /* what the environment says: 0, 1 or 2 */

void *apart_alloc(size_t size); /* addresses that nobody had before; NULL: no more */
void apart_free(void *p, size_t size);
bool apart_has(const void *p); /* whether it is the device's */

/* While the device does something its memory is there; otherwise, on level 2, it is not. Calls may nest. */
void apart_device_acts(bool begins);
