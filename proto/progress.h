/* The watchdog's word, shared by worker and broker: a worker counts it up before every layer of every step, in the head of a
 * model's state segment (worker/state.h); the broker, which may take that segment, looks whether it still moves
 * (broker/watch.h). It says nothing but "something happened", so it needs no order with anything else. */
#pragma once

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define PROGRESS_OFF 72 /* bytes from the start of a state segment: an _Atomic uint32_t */

static_assert(PROGRESS_OFF % sizeof(_Atomic uint32_t) == 0, "an atomic word is aligned");
