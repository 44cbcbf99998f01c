/* OpenAI's dialect: chat completions and completions, whole and as a stream. Specification: OpenAI's API reference; what real
 * clients need beyond it is in docs/COMPAT.md. */
#pragma once

struct exchange;
struct hearth;

void openai_chat(struct exchange *x, struct hearth *h);
void openai_completions(struct exchange *x, struct hearth *h);
void openai_embeddings(struct exchange *x, struct hearth *h);
