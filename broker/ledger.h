/* Where the memory is: every segment, file and process of this house by name (`hearth ps --explain`). Looked up when somebody asks;
 * reads /proc of our own children. Loop thread only. */
#pragma once

#include <stddef.h>

#include "proto/message.h"

struct broker;

#define LEDGER_ROWS 256

/* Fills rows (borrowed until the next call) and returns how many. */
size_t ledger_rows(struct broker *b, Hearth__LedgerRow ***rows);
