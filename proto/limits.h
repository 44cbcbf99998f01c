/* Every bound that two rooms share, with unit and reason. A bound of one room alone stands in that room. */
#pragma once

#include <assert.h>

/* ---- messages ---- */
#define LIMIT_ENVELOPE_BYTES (64u << 10) /* one packed envelope: everything but prompts is small */
#define LIMIT_PAYLOAD_BYTES  (16u << 20) /* the second, raw frame: a prompt; also ZMQ_MAXMSGSIZE */
#define LIMIT_ARENA_BYTES                                                                          \
    (256u << 10)                    /* unpacking one envelope: unknown fields cost 88 bytes each */
#define LIMIT_HWM_MESSAGES     1024 /* per peer, both ways: doorbells, not data */
#define LIMIT_HANDSHAKE_MS     2000 /* a silent connection is dropped after this */
#define LIMIT_RECONNECT_MIN_MS 1    /* measured: 1 ms makes a broker's restart a pause of 5 ms */
#define LIMIT_RECONNECT_MAX_MS 50

/* ---- requests ---- */
#define LIMIT_REQUEST_ID_BYTES  16  /* 128 bits, chosen by the client library */
#define LIMIT_STOP_STRINGS      16  /* per request */
#define LIMIT_STOP_BYTES        128 /* of one stop string */
#define LIMIT_LOGIT_BIASES      256 /* entries per request, banned tokens among them */
#define LIMIT_BANNED_STRINGS    64  /* per request, each at most LIMIT_STOP_BYTES */
#define LIMIT_DRY_BREAKERS      16  /* per request */
#define LIMIT_DRY_BREAKER_BYTES 40  /* of one of them */
#define LIMIT_ALTERNATIVES      20  /* log-probabilities beside the chosen one */
#define LIMIT_PROMPT_TOKENS     (LIMIT_PAYLOAD_BYTES / 4)
#define LIMIT_CTX_TOKENS        (1u << 20)  /* positions of one sequence */
#define LIMIT_ARCH_NAMES_BYTES  2048        /* names of all architectures that a worker computes */
#define LIMIT_MODEL_NAME_BYTES  256         /* alias, file name or path, with its NUL */
#define LIMIT_REASON_BYTES      384         /* text of an end's reason */
#define LIMIT_TEMPLATE_BYTES    (48u << 10) /* an alias's own template: travels in an envelope */
#define LIMIT_PIECE_BYTES       1024        /* longest piece of a vocabulary that hearth serves */

/* ---- processes ---- */
#define LIMIT_CHILDREN         64   /* alive at once under one keeper */
#define LIMIT_SEGMENTS         4096 /* held by the keeper */
#define LIMIT_TAG_BYTES        96   /* what the broker calls a child or a segment */
#define LIMIT_ARGV_BYTES       2048 /* packed arguments of a birth */
#define LIMIT_ARGS             48
#define LIMIT_GRANTS           32 /* named in one birth */
#define LIMIT_TOKEN_BYTES      32 /* a child's proof of birth, as hex twice that */
#define LIMIT_WORKER_SEQUENCES 64 /* generations in flight on one worker */

/* ---- the journal ---- */
#define LIMIT_SHARD_SLOTS 512         /* live requests of one principal */
#define LIMIT_SHARD_BYTES (64u << 20) /* default size of one shard */
#define LIMIT_SHARD_PAGE  4096u       /* unit of allocation in a shard */

/* ---- waiting ---- */
#define LIMIT_COME_BACK_S 10  /* after a broker's restart clients have this long */
#define LIMIT_SLEEP_MS    100 /* no wait on shared memory is longer without a look around */

static_assert(LIMIT_TEMPLATE_BYTES + 4096 < LIMIT_ENVELOPE_BYTES,
              "a template fits beside the rest");
static_assert(LIMIT_ENVELOPE_BYTES < LIMIT_ARENA_BYTES, "an envelope unpacks into its arena");
