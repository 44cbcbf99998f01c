/* Inside models.c and its parts: what one part asks of another. models.c has the table, room and every turn; models_load.c
 * loading processes and text services; models_bind.c the worker's side; models_adopt.c what the last broker left.
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

/* ---- models_load.c ---- */

void models_start_load(struct broker *b, struct model *m);

/* The file's head as it is now: is it a model? */
void models_start_check(struct broker *b, struct model *m, const struct catalog_file *now);

void models_start_text(struct broker *b, struct model *m);

/* ---- models_bind.c ---- */

void models_say_bind(struct broker *b, struct model *m, struct worker *w);
