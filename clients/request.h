/* A generation inside libhearth: request.c begins and ends it, reading.c reads its tokens. One thread. */
#pragma once

#include "clients/connection.h"

struct hearth_request {
    struct hearth *h; /* borrowed */
    uint8_t id[LIMIT_REQUEST_ID_BYTES];
    struct hearth_info info;
    struct journal_reader reader;
    struct journal_view view;
    uint32_t resumed_on;               /* the connection's generation that knows this request */
    struct connection_pending resumed; /* what the broker says to a resumption */
    bool detach, ended;
    struct hearth_alternative alternatives[LIMIT_ALTERNATIVES];
};
