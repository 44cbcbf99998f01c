/* hearth-http: the HTTP door, a client like any other. A child of the keeper, started by the broker where `http` names an
 * address; by hand it serves whichever hearth runs. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "clients/gateway/listen.h"
#include "clients/gateway/metrics.h"
#include "clients/gateway/models.h"
#include "clients/gateway/openai.h"
#include "clients/gateway/server.h"
#include "clients/gateway/texts.h"
#include "clients/options.h"
#include "proto/channel.h"
#include "proto/heritage.h"
#include "proto/log.h"

static const struct program program = {
    "http",
    "[OPTIONS]",
    "Serves the OpenAI API over HTTP for a running hearth.",
    "`hearth serve` starts it by itself (key http of the configuration). Beyond this machine it "
    "wants "
    "an API key:\n"
    "--new-key prints one, and the line for the configuration.",
};

static void hello(struct exchange *x, struct hearth *h)
{
    (void)h;
    struct json *o = json_new_object();
    json_set(o, "hearth", json_new_str(HEARTH_VERSION, strlen(HEARTH_VERSION)));
    exchange_reply_json(x, 200, o);
}

static const struct route routes[] = {
    { "POST", "chat/completions", openai_chat, false, false },
    { "POST", "completions", openai_completions, false, false },
    { "POST", "embeddings", openai_embeddings, false, false },
    { "GET", "models", models_list, true, false },
    { "GET", "models/", models_one, true, false },
    { "POST", "models/load", models_load, false, false },
    { "POST", "models/unload", models_unload, false, false },
    { "POST", "tokenize", texts_tokenize, false, false },
    { "POST", "detokenize", texts_detokenize, false, false },
    { "POST", "apply-template", texts_apply_template, false, false },
    { "GET", "health", metrics_health, true, true },
    { "GET", "metrics", metrics_page, true, false },
    { "GET", "", hello, true, true },
};

/* A word to the broker, by the keeper. */
static void note(int channel_fd, enum channel_note code, uint64_t value, const char *text)
{
    struct channel_msg msg = { .op = CHANNEL_NOTE, .code = code, .value = value };
    struct err ignored;
    if (channel_fd >= 0) {
        snprintf(msg.text, sizeof msg.text, "%s", text);
        channel_send(channel_fd, &msg, NULL, 0, &ignored);
    }
}

static int print_new_key(void)
{
    char key[64], hex[2 * HTTP_KEY_HASH_BYTES + 1];
    guard_new_key(key, hex);
    printf("# The key, for its client; it is shown only here:\n%s\n"
           "# Its line for section [hearth] of the configuration; then SIGHUP to hearth serve:\n"
           "http_key = %s\n",
           key, hex);
    return 0;
}

/* What requests are answered like: words of the options. */
static int read_manners(struct server_options *o, const char *fields, const char *reasoning,
                        struct err *err)
{
    bool both = strcmp(reasoning, "both") == 0;
    o->lenient = strcmp(fields, "lenient") == 0;
    o->reasoning_content = both || strcmp(reasoning, "reasoning_content") == 0;
    o->reasoning = both || strcmp(reasoning, "reasoning") == 0;
    if (!o->lenient && strcmp(fields, "strict") != 0) {
        return err_set(err, ERR_USAGE, "--fields is strict or lenient, not %s", fields);
    }
    return o->reasoning_content || o->reasoning
               ? 0
               : err_set(err, ERR_USAGE,
                         "--reasoning is reasoning_content, reasoning or both, not %s", reasoning);
}

static int serve(const char *address, const struct option_list *keys,
                 struct server_options *options, struct err *err)
{
    static struct heritage heritage;
    static struct guard guard;
    struct listen listen = { .fd = -1 };
    struct err none;
    int channel_fd = heritage_read(&heritage, &none) == 0 ? HERITAGE_CHANNEL_FD : -1;
    int result = listen_open(&listen, address, err);
    guard.loopback = listen.loopback;
    if (result == 0 && guard_set(&guard, keys->items, (size_t)keys->n, err) < 0) {
        result = err_wrap(err, "not served at %s", address);
    }
    if (result < 0) {
        note(channel_fd, CHANNEL_NOTE_FAILED, (uint64_t)err->code, err->text);
        listen_close(&listen);
        return -1;
    }
    log_info("listens at http://%s%s", listen.where, guard.n_keys ? ", with keys" : "");
    note(channel_fd, CHANNEL_NOTE_LOADED, (uint64_t)listen.port, "");
    options->listen_fd = listen.fd;
    options->channel_fd = channel_fd;
    options->run = channel_fd >= 0 ? heritage.run : NULL;
    options->routes = routes;
    options->n_routes = sizeof routes / sizeof routes[0];
    options->guard = &guard;
    result = server_run(options, err);
    guard_clear(&guard);
    return result;
}

int main(int argc, char **argv)
{
    static struct option_list keys;
    const char *address = "127.0.0.1:4327", *fields = "strict", *reasoning = "reasoning_content";
    struct server_options options = { 0 };
    bool new_key = false;
    int64_t stuck_s = METRICS_STUCK_S;
    struct err err = { 0 };
    const struct option table[] = {
        { "listen", 0, OPTION_STRING, &address, "HOST:PORT", "where to listen; port 0: any", NULL },
        { "key", 0, OPTION_STRINGS, &keys, "LINE", "a key that may ask, as http_key has it", NULL },
        { "fields", 0, OPTION_STRING, &fields, "HOW",
          "strict: unknown ones are refused; or lenient", NULL },
        { "reasoning", 0, OPTION_STRING, &reasoning, "NAME",
          "of thoughts: reasoning_content, reasoning or both", NULL },
        { "stuck", 0, OPTION_INT, &stuck_s, "SECONDS",
          "without a token /health calls the engine stuck", NULL },
        { "new-key", 0, OPTION_FLAG, &new_key, NULL,
          "print a new key, and its line for the configuration", NULL },
        { 0 },
    };
    options_parse(&program, table, argc, argv);
    log_init("http");
    if (sodium_init() < 0) {
        log_error("libsodium does not start");
        return 1;
    }
    if (new_key) {
        return print_new_key();
    }
    metrics_stuck_after((uint32_t)stuck_s);
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);  /* the broker's affair */
    sigaddset(&signals, SIGPIPE); /* a broken line is an error of its call */
    sigprocmask(SIG_BLOCK, &signals, NULL);
    if (read_manners(&options, fields, reasoning, &err) < 0 ||
        serve(address, &keys, &options, &err) < 0) {
        log_warn("%s", err.text);
        return err_exit_code(err.code);
    }
    return 0;
}
