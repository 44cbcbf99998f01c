/* Counters of this gateway's life, and the page that Prometheus reads. Any thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct exchange;
struct hearth;
struct pool;

void metrics_pool(struct pool *pool); /* borrowed; NULL at the end */
void metrics_answer(unsigned status);

/* One generation, as it goes: admitted, first token (ms since it was asked for), each further one (ms since the one before),
 * end. */
void metrics_begin(uint32_t n_prompt);
void metrics_first(double ms, uint32_t n_cached);
void metrics_next(double ms);
void metrics_end(bool had_tokens);

#define METRICS_STUCK_S 60
/* Generations that have begun and do not go on for so long are stuck, and so is their engine: /health says so. At the start. */
void metrics_stuck_after(uint32_t seconds);

/* GET /metrics and GET /health. */
void metrics_page(struct exchange *x, struct hearth *h);
void metrics_health(struct exchange *x, struct hearth *h);
