/* What the emulated runtime counted, for tests in C. */
#pragma once

#include <stdint.h>

struct emulate_counts {
    uint64_t n_registered, n_unregistered, registered_bytes; /* ever; ever; now */
    uint64_t n_direct, direct_bytes; /* copies to the device from memory that was registered */
};

#ifdef __cplusplus
extern "C"
#endif
    struct emulate_counts
    emulate_counted(void);
