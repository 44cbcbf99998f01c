/* Every message that comes in by ZeroMQ: who says it, may he say it, who handles it. Loop thread only. */
#pragma once

#include "proto/err.h"
#include "proto/link.h"

struct broker;

/* One message, borrowed for the call. */
void door_on_message(struct broker *b, const struct link_msg *msg);

/* A frame that is not one of ours: counted, logged once, answered when it can be. */
void door_on_bad(struct broker *b, const struct link_peer *peer, const struct err *why);
