/* Inside models.c and its parts: what one part asks of another. models.c has the table and room; models_act.c every turn; models_load.c
 * loading processes and text services; models_bind.c the worker's side; models_adopt.c what the last broker left; models_window.c
 * weights that never stand in RAM as a whole.
 * The broker's thread. */
#pragma once

#include "broker/models.h"

struct broker;
struct worker;

/* ---- models.c ---- */

void models_drop(struct broker *b, uint64_t *segment);

/* The one mover. */
void models_move(struct model *m, enum model_state to, const char *why);

void models_kill(struct broker *b, uint32_t child, int signal);

/* Weights leave RAM and the device: COLD. The text service goes with them. again: it comes back at once, so its room and its state
 * pages stay. */
void models_forget(struct broker *b, struct model *m, bool again, const char *why);

/* Whoever asked for it to be loaded hears how that ended; why NULL: it is there. */
void models_answer_asks(struct broker *b, struct model *m, const struct err *why);

/* ---- models_window.c ---- */

/* The word for a load that begins, before its weights are made. */
void window_begin(struct broker *b, struct model *m);

/* What the loader said with the head. */
void window_on_header(struct model *m, const char *text);

/* The load is over, one way or the other: a whole one is next, unless it is decided anew. */
void window_clear(struct broker *b, struct model *m);

/* After the last broker's segments and children are known. */
void window_adopted(struct broker *b, struct model *m);

/* What was lost is noticed, and the model COLD. true: nothing else is to be done with it this turn. */
bool window_act(struct broker *b, struct model *m);

/* ---- models_load.c ---- */

void models_start_load(struct broker *b, struct model *m);

/* The file's head as it is now: is it a model? */
void models_start_check(struct broker *b, struct model *m, const struct catalog_file *now);

void models_start_text(struct broker *b, struct model *m);

/* ---- models_bind.c ---- */

void models_say_bind(struct broker *b, struct model *m, struct worker *w);
