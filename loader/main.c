/* hearth-loader FILE: a model file becomes a weights segment; its exit is the seal.
 *
 * Born of the keeper: descriptor 3 is the channel, descriptor 4 the segment, empty and without a size, to be filled.
 * It tells the broker by notes that the head was accepted (the segment can be mapped), that all is there, or why not.
 * --check: the head alone, before a changed file takes the place of one that serves.
 * By hand, for tests and timing: --out-fd N names the segment, the log says the rest.
 *
 * The order is the security: open every file, the ring and the threads; restrict; then parse the first byte. */
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "loader/load.h"
#include "loader/room.h"
#include "proto/channel.h"
#include "proto/confine.h"
#include "proto/heritage.h"
#include "proto/log.h"
#ifdef HEARTH_TEXT_MAIN
#include "loader/text/serve.h"
#include "proto/size.h"
#endif

struct options {
    const char *path;
    enum weights_layout layout;
    enum source_kind source;
    int n_threads;
    uint64_t budget_bytes;
    uint64_t rate;   /* bytes per second at most; 0: no limit */
    bool check;      /* only whether the head is accepted */
    int out_fd;      /* -1: the keeper's grant */
    char *lora;      /* PATH of an adapter, NULL: none */
    uint64_t window; /* bytes of data that may be there at once; 0: all of it stays */
    int window_fd;   /* the worker's word beside --window; -1: the keeper's second grant */
    float lora_scale;
};

static int parse_size(const char *text, const char *name, uint64_t *out, struct err *err)
{
    return size_parse(text, out) ? 0 : err_set(err, ERR_USAGE, "%s %s: not a size", name, text);
}

static int parse_int(const char *text, const char *name, int *out, struct err *err)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end || value < 0 || value > 1 << 20) {
        return err_set(err, ERR_USAGE, "--%s %s: not a number from 0", name, text);
    }
    *out = (int)value;
    return 0;
}

/* PATH:SCALE, cut in place. */
static int parse_lora(char *text, struct options *o, struct err *err)
{
    char *colon = strrchr(text, ':'), *end = colon;
    o->lora = text;
    o->lora_scale = colon ? strtof(colon + 1, &end) : 0.0f;
    if (!colon || end == colon + 1 || *end || !(fabsf(o->lora_scale) <= 1000.0f)) {
        return err_set(err, ERR_USAGE, "--lora %s: not PATH:SCALE", text);
    }
    *colon = '\0';
    return 0;
}

static int parse_options(struct options *o, int argc, char **argv, struct err *err)
{
    static const struct option longs[] = {
        { "layout", required_argument, NULL, 'l' },
        { "source", required_argument, NULL, 's' },
        { "threads", required_argument, NULL, 't' },
        { "ram-budget", required_argument, NULL, 'b' },
        { "out-fd", required_argument, NULL, 'o' },
        { "lora", required_argument, NULL, 'a' },
        { "check", no_argument, NULL, 'c' },
        { "window", required_argument, NULL, 'w' },
        { "window-fd", required_argument, NULL, 'f' },
        { NULL, 0, NULL, 0 },
    };
    *o = (struct options){ .budget_bytes = ROOM_NO_BUDGET, .out_fd = -1, .window_fd = -1 };
    const char *rate = getenv("HEARTH_LOAD_RATE"); /* a slow disk, for tests */
    if (rate && parse_size(rate, "HEARTH_LOAD_RATE", &o->rate, err) < 0) {
        return -1;
    }
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        int rc = 0, kind;
        switch (c) {
        case 'l':
            o->layout = strcmp(optarg, "rows16") == 0 ? WEIGHTS_LAYOUT_ROWS16 : WEIGHTS_LAYOUT_FILE;
            if (o->layout == WEIGHTS_LAYOUT_FILE && strcmp(optarg, "file") != 0) {
                rc = err_set(err, ERR_USAGE, "--layout %s: file or rows16", optarg);
            }
            break;
        case 's':
            kind = source_kind_of_name(optarg);
            o->source = (enum source_kind)kind;
            if (kind < 0) {
                rc = err_set(err, ERR_USAGE, "--source %s: auto, uring, pread or mmap", optarg);
            }
            break;
        case 't':
            rc = parse_int(optarg, "threads", &o->n_threads, err);
            break;
        case 'b':
            rc = parse_size(optarg, "--ram-budget", &o->budget_bytes, err);
            break;
        case 'a':
            rc = parse_lora(optarg, o, err);
            break;
        case 'o':
            rc = parse_int(optarg, "out-fd", &o->out_fd, err);
            break;
        case 'w':
            rc = parse_size(optarg, "--window", &o->window, err);
            break;
        case 'f':
            rc = parse_int(optarg, "window-fd", &o->window_fd, err);
            break;
        case 'c':
            o->check = true;
            break;
        default:
            rc = err_set(err, ERR_USAGE, "%s: not an option", argv[optind - 1]);
        }
        if (rc < 0) {
            return -1;
        }
    }
    if (optind + 1 != argc) {
        return err_set(err, ERR_USAGE, "one model file, not %d", argc - optind);
    }
    o->path = argv[optind];
    if (o->window && o->layout != WEIGHTS_LAYOUT_FILE) {
        return err_set(err, ERR_USAGE, "--window goes with --layout file");
    }
    return 0;
}

/* A word to the broker; nothing without a channel. */
static void note(int channel, enum channel_note code, uint64_t value, const char *text)
{
    if (channel < 0) {
        return;
    }
    struct channel_msg msg = { .magic = CHANNEL_MAGIC, .op = CHANNEL_NOTE, .code = code };
    msg.value = value;
    snprintf(msg.text, sizeof msg.text, "%s", text);
    struct err err = { 0 };
    if (channel_send(channel, &msg, NULL, 0, &err) < 0) {
        log_warn("channel: %s", err.text);
    }
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Room for all of it, or for a window: the one asked for, no less than this model needs, less where there is less room. */
static int make_room(struct load *l, const struct options *o, const struct uploaded *uploaded,
                     int meminfo, uint64_t *window, struct err *err)
{
    uint64_t data = load_data_bytes(l);
    *window = 0;
    if (!uploaded) {
        return room_check(meminfo, data, o->budget_bytes, err);
    }
    uint64_t least = load_window_least(l, err);
    if (least == 0) {
        return -1;
    }
    *window = o->window > least ? o->window : least;
    if (*window > least && room_check(meminfo, *window, o->budget_bytes, err) < 0) {
        *window = least;
    }
    if (room_check(meminfo, *window, o->budget_bytes, err) < 0) {
        return err_wrap(err, "a window over %.1f MiB of weights", (double)data / 0x1p20);
    }
    load_window(l, *window, uploaded);
    return 0;
}

/* The story, once everything that needs rights is open. uploaded: the worker's word, of a load by a window; else NULL. */
static int load(struct load *l, struct source *source, const struct options *o,
                const struct uploaded *uploaded, int fd, int meminfo, int channel, struct err *err)
{
    char arch[64];
    uint64_t window;
    if (load_parse(l, o->layout, err) < 0 || load_check_model(l, err) < 0) {
        return -1;
    }
    if (o->check) {
        return 0;
    }
    load_architecture(l, arch, sizeof arch);
    if (make_room(l, o, uploaded, meminfo, &window, err) < 0 || load_publish(l, fd, err) < 0) {
        return -1;
    }
    struct load_identity id;
    load_identity(l, &id);
    char text[256];
    snprintf(text, sizeof text,
             "device=%" PRIu64 " inode=%" PRIu64 " size=%" PRIu64 " mtime_ns=%" PRId64
             " digest=%016" PRIx64 " window=%" PRIu64 " kept=%" PRIu64 " arch=%s",
             id.device, id.inode, id.size_bytes, id.mtime_ns, id.digest, window,
             window ? load_kept_bytes(l) : load_segment_bytes(l), arch);
    log_info("head accepted: segment of %" PRIu64 " bytes, %s", load_segment_bytes(l), text);
    note(channel, CHANNEL_NOTE_HEADER, load_segment_bytes(l), text);

    load_limit(l, o->rate);
    double start = now_s();
    if (load_fill(l, source, err) < 0) {
        return -1;
    }
    double seconds = now_s() - start;
    uint64_t rate = (uint64_t)((double)load_data_bytes(l) / (seconds > 1e-6 ? seconds : 1e-6));
    log_info("loaded: %" PRIu64 " bytes by %s in %.3f s, %.2f GB/s", load_data_bytes(l),
             source_name(source), seconds, (double)rate * 1e-9);
    note(channel, CHANNEL_NOTE_LOADED, rate, "");
    return 0;
}

int main(int argc, char **argv)
{
#ifdef HEARTH_TEXT_MAIN
    if (argc > 1 && strcmp(argv[1], "--text") == 0) {
        return text_main(argc - 1, argv + 1);
    }
#endif
    log_init("loader");
    struct err err = { 0 };
    struct options o;
    struct heritage heritage;
    struct load *l = NULL;
    struct source *source = NULL;
    struct uploaded *uploaded = NULL;
    int channel = -1, meminfo = -1, rc = -1;
    if (parse_options(&o, argc, argv, &err) < 0) {
        fprintf(stderr,
                "hearth-loader: %s; hearth-loader [--layout file|rows16] "
                "[--source auto|uring|pread|mmap] [--threads N] [--ram-budget SIZE] "
                "[--lora PATH:SCALE] [--window SIZE] [--out-fd N] [--window-fd N] [--check] FILE\n",
                err.text);
        return err_exit_code(err.code);
    }
    int fd = o.out_fd;
    if (fd < 0) {
        if (heritage_read(&heritage, &err) < 0) {
            goto end;
        }
        channel = HERITAGE_CHANNEL_FD;
        fd = HERITAGE_GRANT_FD;
    }

    if (o.window && !o.check) {
        int word = o.window_fd >= 0 ? o.window_fd : HERITAGE_GRANT_FD + 1;
        uploaded = uploaded_map(word, false, &err);
        if (!uploaded) {
            goto end;
        }
    }
    bool direct = o.source == SOURCE_AUTO || o.source == SOURCE_URING;
    l = load_open(o.path, direct, &err);
    if (!l || (o.lora && load_open_adapter(l, o.lora, o.lora_scale, direct, &err) < 0)) {
        goto end;
    }
    uint32_t n_files;
    const struct source_file *files = load_files(l, &n_files);
    source = source_open(o.source, files, n_files, o.n_threads, &err);
    if (!source) {
        goto end;
    }
    meminfo = room_open();
    if (confine(CONFINE_LOADER, &err) < 0) {
        log_warn("%s: goes on unconfined", err.text);
        err = (struct err){ 0 };
    }
    rc = load(l, source, &o, uploaded, fd, meminfo, channel, &err);

end:
    source_close(&source);
    load_close(&l);
    uploaded_unmap(uploaded);
    if (rc < 0) {
        log_error("%s", err.text);
        note(channel, CHANNEL_NOTE_FAILED, err.code, err.text);
    }
    return rc < 0 ? err_exit_code(err.code) : 0;
}
