/* hearth plan: what a model takes on a device, before a byte of it is loaded. Only the file's head is read; the sizes are
 * the engine's own (worker/plan.h), on a backend that counts instead of allocating. */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "clients/direct/plan.h"
#include "clients/direct/synth_model.h"
#include "clients/options.h"
#include "loader/load.h"
#include "loader/window.h"
#include "worker/plan.h"

#define SEQUENCES 16 /* in flight, as a worker takes when nobody says otherwise */
#define GIB       ((double)(1u << 30))

/* What bounds a step of one sequence, as --device-gbs and --bus-gbs say: an RTX 5090 on PCIe 5.0 x16. */
#define DEVICE_GBS 1590
#define BUS_GBS    56

struct speeds {
    int64_t device_gbs, bus_gbs;
};

static const struct program program = {
    .verb = "plan",
    .synopsis = "[OPTIONS] MODEL|FILE.gguf|synth:ARCH:PRESET:TYPE",
    .purpose = "say what a model takes before it is loaded",
    .text =
        "Prints what weights, keys and values, recurrent states and work space take on the "
        "device, beside what there is: the bytes that loading it allocates. A context that does "
        "not fit is shortened, down to 2048 positions; then weights stay in the machine's memory "
        "and come over the bus in every step, at most a third of them; the table says so. Exit 5: "
        "it does not fit at all.",
};

static uint64_t quarter_of_memory(void)
{
    struct sysinfo info;
    return sysinfo(&info) == 0 ? (uint64_t)info.totalram * info.mem_unit / 4 : 1ull << 30;
}

static int open_model(const char *name, const char *run, struct weights *w, struct err *err)
{
    char text[128], *save = NULL, path[PATH_MAX];
    if (strncmp(name, "synth:", 6) != 0) {
        bool file = strchr(name, '/') || access(name, F_OK) == 0;
        return !file && plan_find_file(run, name, path, sizeof path, err) < 0
                   ? -1
                   : loader_open_manifest(file ? name : path, w, err);
    }
    if (strlen(name) >= sizeof text) {
        return err_set(err, ERR_USAGE, "%.40s...: synth:ARCH:PRESET:TYPE", name);
    }
    strcpy(text, name + 6);
    const char *arch = strtok_r(text, ":", &save), *preset = strtok_r(NULL, ":", &save);
    const char *type = strtok_r(NULL, ":", &save);
    if (!arch || !preset || !type) {
        return err_set(err, ERR_USAGE, "%s: synth:ARCH:PRESET:TYPE", name);
    }
    return synth_open_manifest(arch, preset, type, w, err);
}

/* "q8_0", or keys and values apart: "q8_0,q4_0". */
static int read_kv(const char *text, struct plan_question *q)
{
    char name[32];
    if (strlen(text) >= sizeof name) {
        return -1;
    }
    strcpy(name, text);
    char *comma = strchr(name, ',');
    if (comma) {
        *comma = 0;
    }
    int k = dtype_of_name(name), v = comma ? dtype_of_name(comma + 1) : k;
    if (k < 0 || v < 0) {
        return -1;
    }
    q->k_type = (enum dtype)k;
    q->v_type = (enum dtype)v;
    return 0;
}

/* What passes through memory on the way to a device, and the least of it that must be there at once (loader/window.h). */
struct passage {
    uint64_t file_bytes, window_bytes; /* window 0: the device computes where they stand */
};

static struct passage passage_of(const struct weights *w, const struct backend *b)
{
    struct passage p = { w->header->data_bytes, 0 };
    for (size_t i = 0; b->ops->mirror && i < w->n_tensors; i++) {
        uint64_t bytes = w->tensors[i].size_bytes + w->tensors[i].size_bytes / WINDOW_READS;
        p.window_bytes = bytes > p.window_bytes ? bytes : p.window_bytes;
    }
    return p;
}

/* Tokens a second at most: weights and n positions are read on the device while others come over the bus. */
static double tokens_per_s(const struct plan *p, const struct speeds *s, uint32_t n)
{
    double kv = p->shape.n_pages ? (double)p->bytes[PLAN_KV] / p->shape.n_pages / KV_PAGE_TOKENS * n
                                 : 0;
    double here = ((double)p->step_bytes + kv) / (double)s->device_gbs;
    double bus = (double)p->streamed_bytes / (double)s->bus_gbs;
    return 1e9 / (here > bus ? here : bus);
}

static void print_text(const char *device, const struct plan *p, const struct speeds *s,
                       struct passage way, uint32_t wanted)
{
    for (int i = 0; i < PLAN_N_PARTS; i++) {
        if (p->bytes[i] > 0) {
            printf("%-18s %9.3f GiB\n", plan_part_names[i], (double)p->bytes[i] / GIB);
        }
    }
    printf("%-18s %9.3f GiB", "total", (double)p->total_bytes / GIB);
    if (p->room_bytes != UINT64_MAX) {
        printf(" of %.3f on %s", (double)p->room_bytes / GIB, device);
    }
    if (p->host_weights_bytes) {
        printf("\n%-18s %9.3f GiB of memory, pinned", "host weights",
               (double)p->host_weights_bytes / GIB);
    }
    if (p->streamed_bytes) {
        printf(", %.3f of them streamed in every step", (double)p->streamed_bytes / GIB);
    }
    printf("\n%-18s %9u positions for %u sequences at once, %u kept beside\n", "context",
           p->shape.ctx_len, p->shape.max_seqs / 2, p->shape.max_seqs / 2);
    printf("%-18s %9u of %u positions: all sequences together hold %" PRIu64 "\n", "pages",
           p->shape.n_pages, KV_PAGE_TOKENS, (uint64_t)p->shape.n_pages * KV_PAGE_TOKENS);
    printf("%-18s %9.3f GiB of memory", "state segment", (double)p->host_bytes / GIB);
    if (p->shape.n_unmirrored) {
        printf(", %u pages are not mirrored in it", p->shape.n_unmirrored);
    }
    printf("\n");
    if (strcmp(device, "cpu") != 0) {
        printf(
            "%-18s %9.1f tokens/s for one sequence at most, %.1f when its context is full, where "
            "the device reads %" PRId64 " GB/s and the bus brings %" PRId64 "\n",
            "speed", tokens_per_s(p, s, 0), tokens_per_s(p, s, p->shape.ctx_len), s->device_gbs,
            s->bus_gbs);
    }
    if (way.window_bytes) {
        printf(
            "%-18s %9.3f GiB of memory, so that it comes back fast; where that is short, a window "
            "of %.3f\n%-18s           or more, and coming back means reading the file again\n",
            "on its way", (double)way.file_bytes / GIB, (double)way.window_bytes / GIB, "");
    }
    if (p->shape.ctx_len < wanted) {
        fprintf(stderr, "hearth plan: a context of %u does not fit: %u; hint: --kv q8_0, --ctx\n",
                wanted, p->shape.ctx_len);
    }
}

static void print_json(const char *device, const struct plan *p, const struct speeds *s,
                       struct passage way, bool fits, uint32_t wanted)
{
    static const char *const keys[PLAN_N_PARTS] = {
        [PLAN_BEFORE] = "in_use",       [PLAN_WEIGHTS] = "weights",      [PLAN_KV] = "kv",
        [PLAN_RECURRENT] = "recurrent", [PLAN_WORKSPACE] = "work_space", [PLAN_MARGIN] = "margin",
        [PLAN_RING] = "stream_ring",
    };
    printf("{\"fits\":%s,\"device\":\"%s\",\"bytes\":{", fits ? "true" : "false", device);
    for (int i = 0; i < PLAN_N_PARTS; i++) {
        printf("%s\"%s\":%" PRIu64, i ? "," : "", keys[i], p->bytes[i]);
    }
    printf("},\"total_bytes\":%" PRIu64, p->total_bytes);
    if (p->room_bytes != UINT64_MAX) {
        printf(",\"room_bytes\":%" PRIu64, p->room_bytes);
    }
    printf(",\"host_weights_bytes\":%" PRIu64 ",\"streamed_bytes\":%" PRIu64
           ",\"step_bytes\":%" PRIu64,
           p->host_weights_bytes, p->streamed_bytes, p->step_bytes);
    if (fits && strcmp(device, "cpu") != 0) {
        printf(",\"decode_tps\":%.2f,\"decode_full_tps\":%.2f", tokens_per_s(p, s, 0),
               tokens_per_s(p, s, p->shape.ctx_len));
    }
    printf(",\"state_bytes\":%" PRIu64 ",\"ctx\":%u,\"ctx_wanted\":%u,\"sequences\":%u,"
           "\"pages\":%u,\"pages_unmirrored\":%u,\"ram_bytes\":%" PRIu64,
           p->host_bytes, p->shape.ctx_len, wanted, p->shape.max_seqs / 2, p->shape.n_pages,
           p->shape.n_unmirrored, way.file_bytes);
    if (way.window_bytes) {
        printf(",\"window_bytes_min\":%" PRIu64, way.window_bytes);
    }
    printf("}\n");
}

static int run(const char *name, const char *run_dir, const char *device,
               const struct backend_options *options, struct plan_question *q,
               const struct speeds *speeds, bool json, struct err *err)
{
    struct weights w = { 0 };
    struct plan plan;
    if (open_model(name, run_dir, &w, err) < 0) {
        return -1;
    }
    int rc = -1;
    struct backend *b = backend_open(device, options, err);
    if (b) {
        rc = plan_compute(&w, b, q, &plan, err);
        uint32_t wanted = q->ctx_len ? q->ctx_len : plan.train_ctx_len;
        bool known = rc == 0 || (err->code == ERR_NO_FIT && plan.total_bytes > 0);
        if (known && json) {
            print_json(device, &plan, speeds, passage_of(&w, b), rc == 0, wanted);
        } else if (rc == 0) {
            print_text(device, &plan, speeds, passage_of(&w, b), wanted);
        }
    }
    backend_close(&b);
    weights_unmap(&w);
    return rc;
}

int main(int argc, char **argv)
{
    const char *device = "auto", *kv = NULL, *run_dir = NULL;
    int64_t ctx = 0, seqs = SEQUENCES, threads = 0;
    bool json = false;
    struct speeds speeds = { DEVICE_GBS, BUS_GBS };
    struct backend_options options = { 0 };
    struct plan_question q = { .k_type = DTYPE_F16,
                               .v_type = DTYPE_F16,
                               .state_bytes_max = quarter_of_memory() };
    const struct option table[] = {
        { "device", 0, OPTION_STRING, &device, "D", "auto, cpu, cuda:N; default: auto", NULL },
        { "ctx", 0, OPTION_INT, &ctx, "N", "positions of a sequence; default: the file's", NULL },
        { "seqs", 0, OPTION_INT, &seqs, "N", "sequences at once; default: 16", NULL },
        { "kv", 0, OPTION_STRING, &kv, "TYPE", "f16, bf16, q8_0, q4_0, f32; K,V apart by a comma",
          NULL },
        { "vram-budget", 0, OPTION_SIZE, &options.budget_bytes, "SIZE",
          "device memory to use; default: what is free", NULL },
        { "state-budget", 0, OPTION_SIZE, &q.state_bytes_max, "SIZE",
          "memory for the state segment; default: a quarter of the machine's", NULL },
        { "device-gbs", 0, OPTION_INT, &speeds.device_gbs, "N",
          "what the device reads of its memory, for the speed; default: 1590", NULL },
        { "bus-gbs", 0, OPTION_INT, &speeds.bus_gbs, "N",
          "what comes to it from the machine's; default: 56", NULL },
        { "threads", 0, OPTION_INT, &threads, "N", "of the CPU; default: all cores", NULL },
        { "run", 0, OPTION_STRING, &run_dir, "DIR", "the service's runtime directory, for names",
          NULL },
        { "json", 0, OPTION_FLAG, &json, NULL, "one object", NULL },
        { 0 },
    };
    int n = options_parse(&program, table, argc, argv);
    if (n != 1) {
        options_fail(&program, "one MODEL, not %d; see --help", n);
    }
    if (ctx < 0 || ctx > UINT32_MAX / 2 || seqs < 1 || seqs > 1024 || threads < 0 ||
        threads > 1024 || speeds.device_gbs < 1 || speeds.bus_gbs < 1) {
        options_fail(&program,
                     "--ctx, --seqs, --threads, --device-gbs or --bus-gbs is out of range");
    }
    if (kv && read_kv(kv, &q) < 0) {
        options_fail(&program, "--kv %s: f32, f16, bf16, q8_0 or q4_0", kv);
    }
    options.n_threads = (uint32_t)threads;
    q.ctx_len = (uint32_t)ctx;
    q.n_sequences = (uint32_t)seqs;
    device = backend_choose(device, NULL, NULL);
    struct err err = { 0 };
    if (run(argv[0], run_dir, device, &options, &q, &speeds, json, &err) < 0) {
        fprintf(stderr, "hearth plan: %s\n", err.text);
        return err_exit_code(err.code);
    }
    return 0;
}
