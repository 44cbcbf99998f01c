/* What `hearth status` and `hearth ps` show. Loop thread only. */
#pragma once

#include "proto/message.h"

struct broker;
struct post_to;

void stats_status(struct broker *b, const struct post_to *to, const Hearth__StatusAsk *ask);
