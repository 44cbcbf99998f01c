/* hearth complete: goes on with a text, without a template. */
#include <stdlib.h>

#include "clients/verbs/answer.h"
#include "clients/verbs/sampling.h"

static const struct program program = {
    "complete",
    "[OPTIONS] PROMPT",
    "Goes on with a text as it is, without a chat template.",
    "Piped input comes before the prompt.",
};

int main(int argc, char **argv)
{
    struct verb v = { .program = &program };
    struct sampling_options sampling = { 0 };
    struct hearth_ask ask = { .kind = HEARTH_TEXT };
    bool ids = false, no_stream = false, detach = false;
    const struct option table[] = {
        { "model", 'm', OPTION_STRING, &ask.model, "MODEL", "who goes on", NULL },
        { "ids", 0, OPTION_FLAG, &ids, NULL, "print token ids, one a line", NULL },
        { "detach", 0, OPTION_FLAG, &detach, NULL,
          "print the id and leave; hearth attach picks it up", NULL },
        { "no-stream", 0, OPTION_FLAG, &no_stream, NULL, "print the text when it is whole", NULL },
        SAMPLING_OPTIONS(sampling),
        VERB_OPTIONS(v),
    };
    int n = options_parse(&program, table, argc, argv);
    sampling_fill(&v, &sampling, &ask);
    char *prompt = verb_prompt(&v, n, argv, &ask.prompt_len);
    ask.prompt = prompt;
    verb_open(&v);
    if (detach) {
        answer_detach(&v, &ask);
        free(prompt);
        return verb_close(&v, 0);
    }
    struct answer a = answer_print(&v, &ask,
                                   (struct answer_style){ .json = v.json,
                                                          .ids = ids,
                                                          .whole = no_stream && !ids,
                                                          .logprobs = sampling.has_logprobs });
    free(a.text);
    free(prompt);
    return verb_close(&v, a.exit_code);
}
