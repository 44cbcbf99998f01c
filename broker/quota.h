/* What one principal may have at once: connections, requests that wait, tokens in flight. The numbers are the administrator's
 * (configuration: for everybody, and [user NAME] for one); a client cannot change them. A refusal says the limit, the count, how many
 * are before, and after how long a place is likely to be free: as fast as requests ended lately. Loop thread only. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "broker/config.h"
#include "proto/err.h"

struct broker;
struct model;
struct shard;

#define QUOTA_RETRY_MIN_MS 100
#define QUOTA_RETRY_MAX_MS 60000

/* How fast places become free, and what the last refusal said. */
struct quota {
    uint64_t last_end_ms;
    uint32_t end_interval_ms; /* smoothed over the last dozen ends; 0: none yet */
    uint32_t retry_ms,
        position;             /* for the Failed that is about to be said; post_failed takes them */
    uint32_t n_prompt, n_ctx; /* the same, of a request that is too long */
};

const struct config_limits *quota_limits(const struct broker *b, uid_t uid);

/* One more attached client? ERR_BUSY. */
int quota_client(struct broker *b, uid_t uid, struct err *err);

/* One more request that waits, of model m? ERR_BUSY. */
int quota_request(struct broker *b, const struct shard *shard, const struct model *m,
                  struct err *err);

/* n more tokens, prompt and answer at most? ERR_BUSY; ERR_NO_FIT when even alone they are too many. */
int quota_tokens(struct broker *b, const struct shard *shard, uint64_t n, struct err *err);

/* A request ended. */
void quota_ended(struct broker *b);

/* When a place is likely to be free, of n that must become free first. */
uint32_t quota_retry_ms(const struct broker *b, uint32_t n);
