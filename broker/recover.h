/* A new broker finds what the last one left: shards with their requests, segments and children at the keeper. */
#pragma once

#include "proto/channel.h"

struct broker;

/* Asks the keeper for its list. */
void recover_begin(struct broker *b);

/* One row of the list. */
void recover_row(struct broker *b, const struct channel_msg *msg);

/* The list is complete: requests come back. */
void recover_end(struct broker *b);
