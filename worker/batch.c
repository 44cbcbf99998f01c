#include "worker/batch.h"

uint32_t batch_plan(struct batch_item *items, uint32_t n_items, uint32_t budget, uint32_t rows_max)
{
    uint32_t rows = 0, waiting = 0;
    for (uint32_t i = 0; i < n_items; i++) {
        items[i].n_rows = items[i].n_left == 1 && rows < rows_max ? 1 : 0;
        rows += items[i].n_rows;
        waiting += items[i].n_left > 1;
    }
    uint32_t room = rows_max - rows < budget ? rows_max - rows : budget;
    /* Even shares; what a short prompt does not need goes to the others in the next round. Each round serves a prompt to
     * its end or uses the room up, so there are at most n_items rounds. */
    while (waiting > 0 && room > 0) {
        uint32_t share = room / waiting > 0 ? room / waiting : 1;
        waiting = 0;
        for (uint32_t i = 0; i < n_items && room > 0; i++) {
            if (items[i].n_left <= 1) {
                continue;
            }
            uint32_t more = items[i].n_left - items[i].n_rows;
            more = more < share ? more : share;
            more = more < room ? more : room;
            items[i].n_rows += more;
            rows += more;
            room -= more;
            waiting += items[i].n_rows < items[i].n_left;
        }
    }
    return rows;
}

void batch_pace_init(struct batch_pace *pace)
{
    *pace = (struct batch_pace){ .shared_rows = 2 * BATCH_ROWS_MIN };
}

static double clamp(double value, double low, double high)
{
    return value < low ? low : value > high ? high : value;
}

uint32_t batch_budget(const struct batch_pace *pace, bool others_decode)
{
    return others_decode ? (uint32_t)pace->shared_rows : BATCH_ROWS_MAX;
}

void batch_observe(struct batch_pace *pace, bool others_decode, uint32_t prefill_rows,
                   double seconds)
{
    if (!others_decode || prefill_rows < (uint32_t)pace->shared_rows || seconds <= 0) {
        return;
    }
    /* At most a doubling or halving at a time: one odd step must not decide. */
    pace->shared_rows = clamp(pace->shared_rows * clamp(BATCH_SHARED_S / seconds, 0.5, 2),
                              BATCH_ROWS_MIN, BATCH_ROWS_MAX);
}
