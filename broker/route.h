/* Who takes which request, and who must make room. Every turn, for each resident model: the waiting request whose flow was served
 * least is handed to the worker while it has sequences free; when all are taken, a flow that has several in flight gives
 * one back to a flow that has none (without loss: it goes on later). A request that is suspected to kill workers runs
 * alone. Loop thread only. */
#pragma once

struct broker;
struct request;

void route_act(struct broker *b);

/* Asks the worker to give a request back. */
void route_release(struct broker *b, struct request *r, const char *why);
