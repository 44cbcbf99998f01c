#include "clients/verbs/answer.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clients/verbs/bar.h"
#include "proto/base64.h"
#include "proto/json.h"
#include "proto/utf8.h"

double answer_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static bool keep(struct answer *a, const char *bytes, size_t n)
{
    char *larger = realloc(a->text, a->len + n + 1);
    if (!larger) {
        return false;
    }
    a->text = larger;
    if (n) {
        memcpy(a->text + a->len, bytes, n);
    }
    a->len += n;
    a->text[a->len] = 0;
    return true;
}

static void print_line(struct json *object)
{
    size_t len;
    const char *text = json_text(object, &len);
    fwrite(text, 1, len, stdout);
    putchar('\n');
    fflush(stdout);
    json_destroy(&object);
}

static struct json *text_json(struct json *object, const char *bytes, size_t n)
{
    if (utf8_valid(bytes, n)) {
        json_set(object, "text", json_new_str(bytes, n));
    } else {
        char *b64 = base64_encode(bytes, n);
        json_set(object, "text", json_new_str("", 0));
        json_set(object, "bytes_b64", json_new_str(b64 ? b64 : "", b64 ? strlen(b64) : 0));
        free(b64);
    }
    return object;
}

static void print_token_json(const struct hearth_token *t, bool logprobs)
{
    struct json *o = json_new_object();
    json_set(o, "type", json_new_str("token", 5));
    json_set(o, "seq", json_new_int((int64_t)t->seq));
    json_set(o, "id", json_new_int(t->id));
    text_json(o, t->bytes, t->n_bytes);
    if (logprobs) {
        json_set(o, "logprob", json_new_double((double)t->logprob));
        struct json *list = json_new_array();
        for (size_t i = 0; i < t->n_alternatives; i++) {
            struct json *one = json_new_object();
            json_set(one, "id", json_new_int(t->alternatives[i].token));
            json_set(one, "logprob", json_new_double((double)t->alternatives[i].logprob));
            json_push(list, one);
        }
        json_set(o, "alternatives", list);
    }
    print_line(o);
}

struct times {
    double started_ms, first_ms, last_ms;
    uint32_t n_tokens, n_cached;
    uint64_t first_us, last_us; /* of the commits: what the worker saw */
};

static void print_done_json(const struct hearth_info *info, const struct hearth_token *t,
                            const struct times *times, const struct answer *a, bool whole)
{
    struct json *o = json_new_object(), *usage = json_new_object(), *timings = json_new_object();
    json_set(o, "type", json_new_str("done", 4));
    json_set(o, "id", json_new_str(info->id, strlen(info->id)));
    json_set(o, "model", json_new_str(info->model, strlen(info->model)));
    json_set(o, "finish_reason", json_new_str(t->finish_reason, strlen(t->finish_reason)));
    if (strcmp(t->finish_reason, "error") == 0) {
        json_set(o, "error", json_new_str(t->error.text, strlen(t->error.text)));
    }
    if (whole) {
        text_json(o, a->text ? a->text : "", a->len);
    }
    json_set(usage, "prompt_tokens", json_new_int(info->n_prompt));
    json_set(usage, "cached_tokens", json_new_int(times->n_cached));
    json_set(usage, "completion_tokens", json_new_int(times->n_tokens));
    json_set(o, "usage", usage);
    double ttft_ms = times->n_tokens ? times->first_ms - times->started_ms : 0;
    double decode_s = (double)(times->last_us - times->first_us) / 1e6;
    json_set(timings, "ttft_ms", json_new_double(ttft_ms));
    json_set(timings, "prefill_tps",
             json_new_double(ttft_ms > 0 ? (info->n_prompt - times->n_cached) / ttft_ms * 1e3 : 0));
    json_set(timings, "decode_tps",
             json_new_double(times->n_tokens > 1 && decode_s > 0 ? (times->n_tokens - 1) / decode_s
                                                                 : 0));
    json_set(o, "timings", timings);
    json_set(o, "seed", json_new_int((int64_t)info->seed));
    print_line(o);
}

static void one_token(struct answer *a, struct times *times, const struct hearth_token *t,
                      struct answer_style style)
{
    times->n_cached = t->n_cached;
    if (t->has_token) {
        times->last_ms = answer_now_ms();
        times->last_us = t->time_us;
        if (times->n_tokens++ == 0) {
            times->first_ms = times->last_ms;
            times->first_us = t->time_us;
        }
    }
    if (!keep(a, t->bytes, t->n_bytes)) {
        return;
    }
    if (style.whole) {
        return;
    }
    if (style.json) {
        if (t->has_token) {
            print_token_json(t, style.logprobs);
        }
    } else if (style.ids) {
        if (t->has_token) {
            printf("%d\n", t->id);
            fflush(stdout);
        }
    } else if (t->n_bytes) {
        fwrite(t->bytes, 1, t->n_bytes, stdout);
        fflush(stdout);
    }
}

static void finish(struct verb *v, struct hearth_request *r, const struct hearth_token *t,
                   const struct times *times, struct answer *a, struct answer_style style)
{
    if (style.json) {
        print_done_json(hearth_info(r), t, times, a, style.whole);
    } else if (!style.ids) {
        if (style.whole && a->len) {
            fwrite(a->text, 1, a->len, stdout);
        }
        if (isatty(STDOUT_FILENO)) {
            putchar('\n');
        }
        fflush(stdout);
    }
    if (strcmp(t->finish_reason, "error") == 0) {
        fprintf(stderr, "hearth %s: %s\n", v->program->verb, t->error.text);
        a->exit_code = t->error.exit_code;
    } else if (strcmp(t->finish_reason, "cancelled") == 0 && a->exit_code == 0) {
        fprintf(stderr, "hearth %s: cancelled\n", v->program->verb);
        a->exit_code = 1;
    }
}

struct answer answer_follow(struct verb *v, struct hearth_request *r, struct answer_style style,
                            double started_ms)
{
    struct answer a = { 0 };
    struct times times = { .started_ms = started_ms };
    struct hearth_token t = { 0 };
    struct hearth_error error;
    struct bar bar = bar_open(v, hearth_info(r)->model);
    for (;;) {
        enum hearth_result got = hearth_next(r, &t, bar_wait_ms(&bar), &error);
        if (got != HEARTH_TIMEOUT) {
            bar_close(&bar);
        }
        switch (got) {
        case HEARTH_TOKEN:
            one_token(&a, &times, &t, style);
            break;
        case HEARTH_INTERRUPTED:
            /* The first Ctrl-C cancels on the server and what came stays; its end is waited for, another one is not. */
            verb_take_signal(v);
            if (a.exit_code == 130) {
                return a;
            }
            a.exit_code = 130;
            hearth_cancel(r, NULL);
            break;
        case HEARTH_TIMEOUT:
            bar_draw(&bar);
            break;
        case HEARTH_FAILED:
            fprintf(stderr, "hearth %s: %s\n", v->program->verb, error.text);
            a.exit_code = error.exit_code;
            return a;
        }
        if (t.ended) {
            finish(v, r, &t, &times, &a, style);
            return a;
        }
        if (ferror(stdout)) {
            a.exit_code = 1; /* the reader of our output left: so does the request */
            return a;
        }
    }
}

struct answer answer_print(struct verb *v, const struct hearth_ask *ask, struct answer_style style)
{
    struct hearth_error error;
    double started_ms = answer_now_ms();
    struct hearth_request *r = hearth_submit(v->h, ask, &error);
    if (!r) {
        verb_take_signal(v);
        fprintf(stderr, "hearth %s: %s\n", v->program->verb, error.text);
        return (struct answer){ .exit_code = error.exit_code };
    }
    struct answer a = answer_follow(v, r, style, started_ms);
    hearth_end(&r);
    return a;
}

void answer_detach(struct verb *v, struct hearth_ask *ask)
{
    struct hearth_error error;
    ask->detach = true;
    struct hearth_request *r = hearth_submit(v->h, ask, &error);
    if (!r) {
        verb_fail(v, &error);
    }
    if (v->json) {
        printf("{\"id\":\"%s\"}\n", hearth_info(r)->id);
    } else {
        printf("%s\n", hearth_info(r)->id);
    }
    hearth_end(&r);
}
