/* Text without a generation, in llama.cpp's shapes: /tokenize, /detokenize, /apply-template. */
#pragma once

struct exchange;
struct hearth;

void texts_tokenize(struct exchange *x, struct hearth *h);
void texts_detokenize(struct exchange *x, struct hearth *h);
void texts_apply_template(struct exchange *x, struct hearth *h);
