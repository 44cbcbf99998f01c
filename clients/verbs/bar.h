/* One line on stderr that says how far a model is read, while somebody waits for it; on a terminal only. */
#pragma once

#include "clients/verbs/verb.h"

struct bar {
    struct verb *v;
    const char *model; /* a name or an alias; borrowed */
    bool on, drawn;
};

/* Nothing is drawn before bar_draw. */
struct bar bar_open(struct verb *v, const char *model);

/* How long to wait for what is waited for before drawing again; -1 for ever, when nothing is drawn. */
int bar_wait_ms(const struct bar *bar);

/* Asks the broker and draws; a model that is not being read has no line. */
void bar_draw(struct bar *bar);

/* Takes the line away; draws no more. */
void bar_close(struct bar *bar);
