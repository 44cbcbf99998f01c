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

/* Milliseconds since the last token of any generation that is in its midst; 0 when none is. */
uint64_t metrics_stuck_ms(void);

/* GET /metrics and GET /health. */
void metrics_page(struct exchange *x, struct hearth *h);
void metrics_health(struct exchange *x, struct hearth *h);
