/* hearth ask: one turn through the model's chat template. */
#include <stdlib.h>
#include <string.h>

#include "clients/verbs/answer.h"
#include "clients/verbs/messages.h"
#include "clients/verbs/sampling.h"

static const struct program program = {
    "ask",
    "[OPTIONS] PROMPT",
    "Asks a model one question and prints its answer as it comes.",
    "Piped input comes before the prompt: cat file | hearth ask \"summarise\". A model without a "
    "chat template gets the\n"
    "prompt as plain text.",
};

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    struct sampling_options sampling = { 0 };
    struct hearth_ask ask = { .kind = HEARTH_MESSAGES };
    const char *system = NULL;
    bool no_stream = false, detach = false;
    const struct option table[] = {
        { "model", 'm', OPTION_STRING, &ask.model, "MODEL", "who answers", NULL },
        { "system", 's', OPTION_STRING, &system, "TEXT", "the system message", NULL },
        { "no-stream", 0, OPTION_FLAG, &no_stream, NULL, "print the answer when it is whole",
          NULL },
        { "detach", 0, OPTION_FLAG, &detach, NULL,
          "print the id and leave; hearth attach picks it up", NULL },
        SAMPLING_OPTIONS(sampling),
        VERB_OPTIONS(v),
    };
    int n = options_parse(&program, table, argc, argv);
    sampling_fill(&v, &sampling, &ask);
    size_t len;
    char *prompt = verb_prompt(&v, n, argv, &len);
    struct messages *messages = messages_create();
    if (system) {
        messages_add(messages, "system", system, strlen(system));
    }
    messages_add(messages, "user", prompt, len);
    ask.prompt = messages_json(messages, &ask.prompt_len);
    verb_open(&v);
    int code;
    if (detach) {
        answer_detach(&v, &ask);
        code = 0;
    } else {
        struct answer a = answer_print(&v, &ask,
                                       (struct answer_style){ .json = v.json,
                                                              .whole = no_stream,
                                                              .logprobs = sampling.has_logprobs });
        free(a.text);
        code = a.exit_code;
    }
    messages_destroy(&messages);
    free(prompt);
    return verb_close(&v, code);
}
