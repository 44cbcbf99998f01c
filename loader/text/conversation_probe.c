/* What a template does with a conversation, seen by rendering small ones: a word that was put in shows up, or not. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "loader/text/conversation.h"

#define PROBE_JSON_MAX 2048 /* bytes of one probe's context */

struct probe {
    const struct template *template;
    const char *bos, *eos;
    const char *source;
    size_t len;
    struct template_output out; /* of the last render */
};

static bool has(const char *text, size_t len, const char *word)
{
    return text && memmem(text, len, word, strlen(word)) != NULL;
}

static bool mentions(const struct probe *p, const char *word)
{
    return has(p->source, p->len, word);
}

static bool shows(const struct probe *p, const char *word)
{
    return has(p->out.text, p->out.len, word);
}

/* Renders messages (JSON), perhaps with a tool; false when the template refuses. */
static bool probe_render(struct probe *p, const char *messages, bool with_tool)
{
    static const char tool[] =
        "[{\"type\":\"function\",\"function\":{\"name\":\"probename\",\"description\":"
        "\"probetool\","
        "\"parameters\":{\"type\":\"object\",\"properties\":{\"probeparam\":{\"type\":\"string\","
        "\"description\":\"d\"}},\"required\":[\"probeparam\"]}}}]";
    char text[PROBE_JSON_MAX];
    int n = snprintf(text, sizeof text,
                     "{\"messages\":%s,\"tools\":%s,\"documents\":null,"
                     "\"add_generation_prompt\":false,\"functions\":\"probetool\","
                     "\"datetime\":\"1\"}",
                     messages, with_tool ? tool : "null");
    assert(n > 0 && n < PROBE_JSON_MAX);
    struct err err;
    struct json *context = json_parse(text, (size_t)n, &err);
    assert(context);
    if (!mentions(p, "datetime")) { /* a template may ask whether it is there */
        json_unset(context, "functions");
        json_unset(context, "datetime");
    }
    json_set(context, "bos_token", json_new_str(p->bos, strlen(p->bos)));
    json_set(context, "eos_token", json_new_str(p->eos, strlen(p->eos)));
    template_output_clear(&p->out);
    bool good = template_render(p->template, context, 0, &p->out, &err) == 0;
    if (!good) {
        template_output_clear(&p->out);
    }
    json_destroy(&context);
    return good;
}

/* {"role":..., "content":...} in the shape that the template takes, with more members behind it. */
static const char *message(const struct conversation *c, char out[512], const char *role,
                           const char *text, const char *more)
{
    int n = snprintf(out, 512,
                     c->needs_lists
                         ? "{\"role\":\"%s\",\"content\":[{\"type\":\"text\",\"text\":\"%s\"}]%s}"
                         : "{\"role\":\"%s\",\"content\":\"%s\"%s}",
                     role, text, more);
    assert(n > 0 && n < 512);
    return out;
}

static bool probe_messages(struct probe *p, bool with_tool, const char *one, const char *two,
                           const char *three)
{
    char list[PROBE_JSON_MAX / 2];
    int n = snprintf(list, sizeof list, "[%s%s%s%s%s]", one, two ? "," : "", two ? two : "",
                     three ? "," : "", three ? three : "");
    assert(n > 0 && n < (int)sizeof list);
    return probe_render(p, list, with_tool);
}

static void probe_content(struct conversation *c, struct probe *p)
{
    static const char list[] =
        "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"probeuser\"}]}]";
    bool string = probe_render(p, "[{\"role\":\"user\",\"content\":\"probeuser\"}]", false) &&
                  shows(p, "probeuser");
    struct template_output plain = p->out;
    p->out = (struct template_output){ 0 };
    bool parts = probe_render(p, list, false) && shows(p, "probeuser");
    /* A list that is printed as such also shows the word. */
    c->needs_lists = parts && !string;
    c->lists = c->needs_lists || (parts && string && plain.len == p->out.len &&
                                  memcmp(plain.text, p->out.text, plain.len) == 0);
    template_output_clear(&plain);
}

/* The assistant calls a tool and is answered. arguments: JSON. */
static bool probe_call(const struct conversation *c, struct probe *p, const char *id,
                       const char *arguments, const char *more)
{
    char user[512], call[512], result[512], members[384];
    snprintf(members, sizeof members,
             "%s,\"tool_calls\":[{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":"
             "\"probecall\",\"arguments\":%s}}]",
             more, id, arguments);
    snprintf(result, sizeof result, ",\"tool_call_id\":\"%s\",\"name\":\"probecall\"", id);
    char answered[512];
    return probe_messages(p, c->tools, message(c, user, "user", "probeuser", ""),
                          message(c, call, "assistant", "", members),
                          message(c, answered, "tool", "proberesult", result));
}

static void probe_calls(struct conversation *c, struct probe *p)
{
    static const char id[] = "probeid01", object[] = "{\"probekey\":\"probevalue\"}",
                      text[] = "\"{\\\"probekey\\\": \\\"probevalue\\\"}\"";
    bool as_object = probe_call(c, p, id, object, "") && shows(p, "probecall");
    bool good_object = as_object && shows(p, "probekey") && shows(p, "probevalue") &&
                       !shows(p, "'probekey'") && !shows(p, "\\\"probekey");
    bool as_text = false;
    if (!good_object) {
        bool results = shows(p, "proberesult");
        as_text = probe_call(c, p, id, text, "") && shows(p, "probecall");
        bool good_text = as_text && shows(p, "probekey") && !shows(p, "\\\"probekey");
        c->text_arguments = good_text || (as_text && !as_object);
        c->results = c->text_arguments ? shows(p, "proberesult") : results;
    } else {
        c->results = shows(p, "proberesult");
    }
    c->calls = as_object || as_text;
    const char *arguments = c->text_arguments ? text : object;
    if (c->calls && !c->results && mentions(p, "tool_responses")) {
        char user[512], call[512], members[384];
        snprintf(members, sizeof members,
                 ",\"tool_calls\":[{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":"
                 "\"probecall\",\"arguments\":%s}}],\"tool_responses\":[{\"name\":\"probecall\","
                 "\"response\":\"proberesult\"}]",
                 id, arguments);
        c->responses = c->results = probe_messages(
                                        p, c->tools, message(c, user, "user", "probeuser", ""),
                                        message(c, call, "assistant", "", members), NULL) &&
                                    shows(p, "proberesult");
    }
    c->short_ids = c->calls && !probe_call(c, p, "call_of_the_probe_1", arguments, "");
}

static void probe_thoughts(struct conversation *c, struct probe *p)
{
    static const char *const names[] = { "reasoning_content", "reasoning", "thinking" };
    static const char arguments[] = "{\"probekey\":\"probevalue\"}";
    char user[512], answer[512], member[64];
    for (size_t i = 0; i < sizeof names / sizeof names[0] && !c->thoughts; i++) {
        if (!mentions(p, names[i])) {
            continue;
        }
        snprintf(member, sizeof member, ",\"%s\":\"probethought\"", names[i]);
        bool read = probe_messages(p, false, message(c, user, "user", "probeuser", ""),
                                   message(c, answer, "assistant", "probeanswer", member), NULL) &&
                    shows(p, "probethought");
        if (!read && c->calls && !c->text_arguments) { /* some only beside a call */
            read = probe_call(c, p, "probeid01", arguments, member) && shows(p, "probethought");
        }
        c->thoughts = read ? names[i] : NULL;
    }
}

void conversation_probe(struct conversation *c, const struct template *t, const char *source,
                        size_t len, const char *bos, const char *eos)
{
    struct probe p = { .template = t, .bos = bos, .eos = eos, .source = source, .len = len };
    char system[512], user[512];
    *c = (struct conversation){ .developer = mentions(&p, "<|channel|>"),
                                .firefunction = mentions(&p, "datetime") &&
                                                mentions(&p, "functions") };
    probe_content(c, &p);
    message(c, user, "user", "probeuser", "");
    if (!probe_messages(&p, false, user, NULL, NULL)) { /* it refuses anything: let it say why */
        c->system = c->tools = c->calls = c->results = true;
        template_output_clear(&p.out);
        return;
    }
    message(c, system, "system", "probesystem", "");
    c->system = probe_messages(&p, false, system, user, NULL) && shows(&p, "probesystem");
    c->tools = probe_messages(&p, true, user, NULL, NULL) && shows(&p, "probetool");
    if (!c->tools && c->system) { /* some write them behind the system message alone */
        c->tools = probe_messages(&p, true, system, user, NULL) && shows(&p, "probetool");
    }
    probe_calls(c, &p);
    probe_thoughts(c, &p);
    template_output_clear(&p.out);
}
