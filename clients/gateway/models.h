/* What can be asked for: the list of models as OpenAI has it, and loading and unloading. */
#pragma once

struct exchange;
struct hearth;

void models_list(struct exchange *x, struct hearth *h); /* GET /v1/models */
void models_one(struct exchange *x,
                struct hearth *h); /* GET /v1/models/ID; an id may hold slashes */
void models_load(struct exchange *x, struct hearth *h); /* POST /models/load {"model"} */
void models_unload(struct exchange *x, struct hearth *h);
