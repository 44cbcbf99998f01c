/* The compute threads of the CPU backend: one job at a time, its items handed out in runs of `grain`. The loop thread
 * owns the team and works along; the others sleep on a futex between jobs after a short spin, because a step is a few
 * hundred jobs of microseconds and a wake-up costs several. No job's result may depend on who computes which item. */
#pragma once

#include <stddef.h>

#include "proto/err.h"

#define TEAM_THREADS_MAX 256 /* threads of one team: more than any workstation has cores */

struct team;

/* Items [begin, end) for member `member` (0 is the caller of team_run); runs on that member's thread. */
typedef void team_job(void *arg, size_t begin, size_t end, unsigned member);

/* n_threads: with the caller; 0: as many as cores this process may use.
 * Errors: ERR_NO_MEMORY, ERR_IO. */
struct team *team_create(unsigned n_threads, struct err *err);

/* Joins the threads; accepts NULL inside, leaves NULL. */
void team_destroy(struct team **team);

unsigned team_size(const struct team *team);

/* Runs job over items 0 .. n_items - 1 and returns when all are done. Owner's thread only, not from inside a job.
 * grain: items taken at a time, at least 1. */
void team_run(struct team *team, team_job *job, void *arg, size_t n_items, size_t grain);

/* A grain that gives every member about `runs` runs. */
size_t team_grain(const struct team *team, size_t n_items, size_t runs);
