/* A LoRA adapter that is loaded beside its model: its file is one more part, whose tensors (NAME.lora_a, NAME.lora_b) stand in
 * the segment under their names; the worker adds what they give (worker/bind_lora.c). Whether shapes fit is found there,
 * where the model's are known. Source: the adapter keys of GGUF. */
#pragma once

#include "loader/gguf.h"
#include "proto/err.h"

/* Is it an adapter, and of this model's architecture? alpha: its adapter.lora.alpha, 0 without one. ERR_UNSUPPORTED,
 * ERR_BAD_FILE. */
int adapter_check(const struct gguf *model, const struct gguf *adapter, float *alpha,
                  struct err *err);
