/* What a text service is asked for, without the line it comes by: tokenize, detokenize, render, prompt. Used by serve.c and,
 * through it, by every client; the direct programs call the tokenizer and template libraries themselves.
 * One thread per object. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loader/text/conversation.h"
#include "loader/text/template/template.h"
#include "loader/text/tokenizer.h"
#include "proto/parse/parse.h"

/* How prompts are written for a model, and answers read. */
struct work_voice {
    struct template *template; /* NULL: there is none, or a broken one (see err) */
    struct err err;            /* why there is none, said to who asks for it */
    bool has_template;         /* the manifest names one, or the vocabulary has ChatML's tokens */
    struct conversation conversation;  /* what the template does with a request */
    const struct parse_format *format; /* how this model writes reasoning and calls */
};

struct work { /* points into itself: never copied */
    struct tokenizer *tokenizer;
    char *bos, *eos;              /* texts of the tokens, for templates; owned */
    struct work_voice own, other; /* the model's, and an alias's that was wanted last */
    char *other_text;             /* the template that `other` was made of, owned; NULL: none yet */
    size_t other_len;
    const struct work_voice *voice; /* the one that speaks: work_speak */
};

/* An answer that grows; zero it, free(data). */
struct work_answer {
    uint8_t *data;
    size_t len;
};

/* Reads vocabulary and template from a manifest. A broken template is no error: plain text still works.
 * Errors: those of tokenizer_create. */
int work_open(struct work *w, const struct weights *manifest, struct err *err);
void work_close(struct work *w);

/* Which template the works that follow use: this text, or the model's own when it is NULL. A broken one is no error here:
 * it is when it is needed. Errors: ERR_NO_MEMORY. */
int work_speak(struct work *w, const char *text, size_t len, struct err *err);

/* text -> int32 ids. */
int work_tokenize(const struct work *w, const void *text, size_t len, bool add_special,
                  bool parse_special, struct work_answer *out, struct err *err);

/* int32 ids -> bytes. ERR_BAD_INPUT for ids that are none, or a length that is no multiple of 4. */
int work_detokenize(const struct work *w, const void *ids, size_t len, bool remove_special,
                    bool unparse_special, struct work_answer *out, struct err *err);

/* int32 ids -> {uint32 length, bytes} each. */
int work_pieces(const struct work *w, const void *ids, size_t len, struct work_answer *out,
                struct err *err);

/* The template's context as JSON -> rendered text. bos_token and eos_token are the model's. now: epoch UTC. */
int work_render(const struct work *w, const void *json, size_t len, int64_t now,
                struct work_answer *out, struct err *err);

/* What a model said -> content, reasoning and tool calls, by the format that its template gives away. In:
 *   {"text":"...", "tools":[...], "reasoning_open":bool, "context":{...}}
 * tools: nothing is taken for a call without them; context: the template's, from which is found out whether the prompt opens
 * the reasoning block. Out: parse_answer's members and
 *   "format":"...", "reasoning_open":bool, "reasoning_markers":["<think>","</think>"] (empty: none),
 *   "plain":bool (content without tools and reasoning is the text as it is: it may be shown while it comes). */
int work_parse(const struct work *w, const void *json, size_t len, int64_t now,
               struct work_answer *out, struct err *err);

enum work_prompt { WORK_TEXT, WORK_MESSAGES, WORK_TOKENS, WORK_INFILL };

/* A request's prompt -> int32 ids. A conversation is normalised first (conversation.h); with add_generation_prompt false its
 * last message, when it is the assistant's, is continued: the prompt ends with its text. User text never becomes special tokens: only what the template itself wrote does.
 * TOKENS are checked against the vocabulary's size. INFILL: JSON {"prefix", "suffix"}, each text alone; ERR_UNSUPPORTED where the
 * vocabulary has no tokens for it. */
int work_prompt(const struct work *w, enum work_prompt kind, const void *input, size_t len,
                int64_t now, struct work_answer *out, struct err *err);
