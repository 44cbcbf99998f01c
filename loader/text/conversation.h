/* A conversation as clients write it -> the context that this model's template wants (formats/chat-templates.md, section 6).
 * What the template can do is found out once, by rendering small conversations and looking at what comes: names of models
 * say nothing. Used by work.c. One thread per object; it is read-only once probed.
 *
 * Everything stays a string of the context, so the template engine marks it untrusted: nothing here speaks with the
 * template's voice. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loader/text/template/template.h"
#include "proto/err.h"
#include "proto/json.h"

/* What a template was found to do. */
struct conversation {
    bool lists;           /* takes content that is a list of parts */
    bool needs_lists;     /* and no other */
    bool system;          /* writes system messages */
    bool developer;       /* knows the developer's role itself */
    bool tools;           /* writes the tools, */
    bool calls;           /* past calls */
    bool results;         /* and their results */
    bool responses;       /* results as tool_responses of the assistant's message */
    bool text_arguments;  /* wants arguments as JSON text; else as an object */
    bool short_ids;       /* refuses ids of calls that are not nine letters and digits */
    bool firefunction;    /* wants `functions` and `datetime` */
    const char *thoughts; /* the member it reads earlier reasoning from; NULL: it drops it */
};

/* Looks at a template (source: its text, len bytes). bos, eos: the tokens' texts. Up to 18 small renders; a template
 * that fails in all of them is taken for one that does everything, and its own error is what the request gets. */
void conversation_probe(struct conversation *c, const struct template *t, const char *source,
                        size_t len, const char *bos, const char *eos);

/* Whether tools go the generic way, because the template has no place for them: described in the system message, called by
 * a JSON answer. */
bool conversation_is_generic(const struct conversation *c);

/* Changes context (an object with "messages") in place. chat_template_kwargs are spread; tools and documents are set to null
 * when absent. Errors: ERR_BAD_INPUT naming message and member; ERR_UNSUPPORTED for parts that are not text. */
int conversation_normalise(const struct conversation *c, struct json *context, int64_t now,
                           struct err *err);
