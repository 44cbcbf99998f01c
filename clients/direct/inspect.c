/* hearth inspect FILE: what a GGUF file says about itself, and one of its tensors as numbers.
 * Reads the head alone, by the checks of a load; needs no service. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/options.h"
#include "loader/load.h"
#include "proto/err.h"
#include "proto/weights.h"
#include "worker/quant.h"

#define SHOWN_ELEMENTS 6     /* of an array, for people */
#define SHOWN_BYTES    70    /* of a string, for people */
#define PIECE_VALUES   65536 /* dequantised at once: whole blocks of every type */
#define WARNINGS_MAX   8

static const struct program program = {
    .verb = "inspect",
    .synopsis = "[OPTIONS] FILE",
    .purpose = "show metadata and tensors of a GGUF file",
    .text = "Needs no running service and no more than a valid container: missing keys are "
            "warnings. A file cut into parts is named by any of them. A malformed file exits 7 "
            "with one line that names the field and its byte offset.",
};

/* Missing keys that a model would need; texts are built from its architecture. */
struct warnings {
    char text[WARNINGS_MAX][160];
    int n;
};

/* ---- text of values ---- */

/* A string in JSON's quotes: control characters escaped, what is not UTF-8 as U+FFFD. */
static void put_string(FILE *out, const char *text, size_t len)
{
    const uint8_t *p = (const uint8_t *)text;
    fputc('"', out);
    for (size_t i = 0; i < len;) {
        uint8_t c = p[i];
        size_t n = c < 0x80                ? 1
                   : c >= 0xc2 && c < 0xe0 ? 2
                   : c >= 0xe0 && c < 0xf0 ? 3
                   : c >= 0xf0 && c < 0xf5 ? 4
                                           : 0;
        bool good = n && n <= len - i;
        for (size_t j = 1; good && j < n; j++) {
            good = (p[i + j] & 0xc0) == 0x80;
        }
        if (good && n > 2) { /* overlong, surrogate, beyond the last */
            good = !(c == 0xe0 && p[i + 1] < 0xa0) && !(c == 0xed && p[i + 1] >= 0xa0) &&
                   !(c == 0xf0 && p[i + 1] < 0x90) && !(c == 0xf4 && p[i + 1] >= 0x90);
        }
        if (!good) {
            fputs("\\ufffd", out);
            i++;
            continue;
        }
        if (c == '"' || c == '\\') {
            fprintf(out, "\\%c", c);
        } else if (c == '\n') {
            fputs("\\n", out);
        } else if (c < 0x20 || c == 0x7f) {
            fprintf(out, "\\u%04x", c);
        } else {
            fwrite(p + i, 1, n, out);
        }
        i += n;
    }
    fputc('"', out);
}

/* Element i of a key, as JSON; text_max cuts strings for people (0: whole). */
static void put_value(FILE *out, const struct weights_kv *kv, uint64_t i, size_t text_max)
{
    const char *text;
    size_t len;
    uint64_t u;
    int64_t s;
    double f;
    if (weights_kv_str(kv, i, &text, &len)) {
        put_string(out, text, text_max && len > text_max ? text_max : len);
        if (text_max && len > text_max) {
            fprintf(out, "... (%zu bytes)", len);
        }
    } else if (kv->elem == WEIGHTS_BOOL && weights_kv_u64(kv, i, &u)) {
        fputs(u ? "true" : "false", out);
    } else if ((kv->elem == WEIGHTS_F32 || kv->elem == WEIGHTS_F64) && weights_kv_f64(kv, i, &f)) {
        if (isfinite(f)) {
            fprintf(out, kv->elem == WEIGHTS_F32 ? "%.9g" : "%.17g", f);
        } else {
            fputs("null", out);
        }
    } else if (weights_kv_i64(kv, i, &s)) {
        fprintf(out, "%" PRId64, s);
    } else if (weights_kv_u64(kv, i, &u)) {
        fprintf(out, "%" PRIu64, u);
    } else {
        fputs("null", out);
    }
}

static void put_kv(FILE *out, const struct weights_kv *kv, uint64_t elements_max, size_t text_max)
{
    if (kv->type != WEIGHTS_ARRAY) {
        put_value(out, kv, 0, text_max);
        return;
    }
    fputc('[', out);
    uint64_t n = kv->n < elements_max ? kv->n : elements_max;
    for (uint64_t i = 0; i < n; i++) {
        fputs(i ? "," : "", out);
        put_value(out, kv, i, text_max);
    }
    if (n < kv->n) {
        fprintf(out, ", ... %" PRIu64 " in all", kv->n);
    }
    fputc(']', out);
}

/* ---- the whole ---- */

static void warn(struct warnings *w, const char *prefix, const char *key)
{
    if (w->n < WARNINGS_MAX) {
        snprintf(w->text[w->n++], sizeof w->text[0], "key %.60s%s is missing", prefix, key);
    }
}

static void find_warnings(struct warnings *w, const struct weights *m)
{
    static const char *const needed[] = { "context_length", "embedding_length", "block_count",
                                          "attention.head_count" };
    const struct weights_kv *arch = weights_find_kv(m, "general.architecture");
    const char *text;
    size_t len;
    if (!arch || !weights_kv_str(arch, 0, &text, &len)) {
        warn(w, "", "general.architecture");
    } else {
        for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
            char key[128];
            snprintf(key, sizeof key, "%.*s.%s", len < 60 ? (int)len : 60, text, needed[i]);
            if (!weights_find_kv(m, key)) {
                warn(w, "", key);
            }
        }
    }
    if (!weights_find_kv(m, "tokenizer.ggml.model")) {
        warn(w, "", "tokenizer.ggml.model");
    }
    if (m->n_tensors == 0 && w->n < WARNINGS_MAX) {
        snprintf(w->text[w->n++], sizeof w->text[0], "no tensors");
    }
}

static uint64_t values_of(const struct weights_tensor *t)
{
    return t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]; /* checked when it was mapped */
}

static void print_json(const char *path, const struct weights *m, const struct warnings *w)
{
    uint64_t parameters = 0;
    fputs("{\"file\":", stdout);
    put_string(stdout, path, strlen(path));
    printf(",\"version\":%" PRIu32 ",\"digest\":\"%016" PRIx64 "\",\"metadata\":{",
           m->header->file_version, m->header->digest);
    for (size_t i = 0; i < m->n_kvs; i++) {
        fputs(i ? "," : "", stdout);
        put_string(stdout, m->kvs[i].key, strlen(m->kvs[i].key));
        fputc(':', stdout);
        put_kv(stdout, &m->kvs[i], UINT64_MAX, 0);
    }
    fputs("},\"tensors\":[", stdout);
    for (size_t i = 0; i < m->n_tensors; i++) {
        const struct weights_tensor *t = &m->tensors[i];
        fputs(i ? ",{\"name\":" : "{\"name\":", stdout);
        put_string(stdout, t->name, strlen(t->name));
        printf(",\"type\":\"%s\",\"shape\":[", dtype_get(t->dtype)->name);
        for (uint32_t d = 0; d < t->n_dims; d++) {
            printf(d ? ",%" PRIu64 : "%" PRIu64, t->ne[d]);
        }
        printf("],\"offset\":%" PRIu64 ",\"size_bytes\":%" PRIu64 "}", t->data_off, t->size_bytes);
        parameters += values_of(t);
    }
    printf("],\"parameters\":%" PRIu64 ",\"data_bytes\":%" PRIu64 ",\"warnings\":[", parameters,
           m->header->data_bytes);
    for (int i = 0; i < w->n; i++) {
        fputs(i ? "," : "", stdout);
        put_string(stdout, w->text[i], strlen(w->text[i]));
    }
    fputs("]}\n", stdout);
}

static void print_text(const char *path, const struct weights *m)
{
    uint64_t parameters = 0;
    for (size_t i = 0; i < m->n_tensors; i++) {
        parameters += values_of(&m->tensors[i]);
    }
    printf("%s: GGUF version %" PRIu32 ", %zu keys, %zu tensors, %" PRIu64
           " parameters, %.3f GB of data\n\n",
           path, m->header->file_version, m->n_kvs, m->n_tensors, parameters,
           (double)m->header->data_bytes * 1e-9);
    for (size_t i = 0; i < m->n_kvs; i++) {
        const struct weights_kv *kv = &m->kvs[i];
        printf("%-48s %-7s ", kv->key, weights_type_name(kv->elem));
        put_kv(stdout, kv, SHOWN_ELEMENTS, SHOWN_BYTES);
        fputc('\n', stdout);
    }
    fputc('\n', stdout);
    for (size_t i = 0; i < m->n_tensors; i++) {
        const struct weights_tensor *t = &m->tensors[i];
        char shape[96] = "";
        size_t at = 0;
        for (uint32_t d = 0; d < t->n_dims; d++) {
            at += (size_t)snprintf(shape + at, sizeof shape - at, d ? ", %" PRIu64 : "%" PRIu64,
                                   t->ne[d]);
        }
        printf("%-48s %-7s [%s]  %" PRIu64 " bytes at %" PRIu64 "\n", t->name,
               dtype_get(t->dtype)->name, shape, t->size_bytes, t->data_off);
    }
}

/* Dequantises one tensor to little-endian f32, piece by piece. */
static int write_f32(const struct load *l, const char *name, const char *to, struct err *err)
{
    struct load_tensor t;
    if (load_find_tensor(l, name, &t, err) < 0) {
        return -1;
    }
    const struct dtype_info *info = dtype_get(t.dtype);
    uint64_t n = t.ne[0] * t.ne[1] * t.ne[2] * t.ne[3];
    uint64_t piece = PIECE_VALUES / info->block_values * info->block_values;
    void *blocks = malloc((size_t)(piece / info->block_values * info->block_bytes));
    float *values = malloc((size_t)piece * sizeof *values);
    FILE *out = strcmp(to, "-") == 0 ? stdout : fopen(to, "wb");
    int rc = 0;
    if (!blocks || !values) {
        rc = err_set(err, ERR_NO_MEMORY, "no memory to dequantise");
    } else if (!out) {
        rc = err_set_errno(err, ERR_IO, "open %s", to);
    }
    for (uint64_t done = 0; rc == 0 && done < n; done += piece) {
        uint64_t now = n - done < piece ? n - done : piece;
        uint64_t size = now / info->block_values * info->block_bytes;
        rc = load_read_tensor(l, &t, done / info->block_values * info->block_bytes, blocks, size,
                              err);
        if (rc == 0) {
            quant_dequantise(t.dtype, blocks, now, values);
            if (fwrite(values, sizeof *values, (size_t)now, out) != now) {
                rc = err_set_errno(err, ERR_IO, "write %s", to);
            }
        }
    }
    if (out && (out == stdout ? fflush(out) : fclose(out)) != 0 && rc == 0) {
        rc = err_set_errno(err, ERR_IO, "write %s", to);
    }
    free(blocks);
    free(values);
    return rc;
}

static int run(const char *path, bool json, const char *tensor, const char *f32, struct err *err)
{
    if (tensor) {
        struct load *l = load_open(path, false, err);
        int rc = -1;
        if (l && load_parse(l, WEIGHTS_LAYOUT_FILE, err) == 0) {
            rc = write_f32(l, tensor, f32, err);
        }
        load_close(&l);
        return rc;
    }
    struct weights m;
    if (loader_open_manifest(path, &m, err) < 0) {
        return -1;
    }
    struct warnings w = { 0 };
    find_warnings(&w, &m);
    if (json) {
        print_json(path, &m, &w);
    } else {
        print_text(path, &m);
        for (int i = 0; i < w.n; i++) {
            fprintf(stderr, "hearth inspect: warning: %s\n", w.text[i]);
        }
    }
    weights_unmap(&m);
    if (fflush(stdout) != 0) {
        return err_set_errno(err, ERR_IO, "write");
    }
    return 0;
}

int main(int argc, char **argv)
{
    bool json = false;
    const char *tensor = NULL, *f32 = NULL;
    const struct option table[] = {
        { .name = "json", .kind = OPTION_FLAG, .target = &json, .help = "one JSON object" },
        { .name = "tensor",
          .kind = OPTION_STRING,
          .target = &tensor,
          .value = "NAME",
          .help = "one tensor, dequantised into --f32" },
        { .name = "f32",
          .kind = OPTION_STRING,
          .target = &f32,
          .value = "OUT",
          .help = "where its little-endian f32 values go; - is stdout" },
        { 0 },
    };
    int n = options_parse(&program, table, argc, argv);
    if (n != 1) {
        options_fail(&program, "one FILE, not %d; see --help", n);
    }
    if (!tensor != !f32) {
        options_fail(&program, "--tensor and --f32 go together");
    }
    struct err err = { 0 };
    if (run(argv[0], json, tensor, f32, &err) < 0) {
        fprintf(stderr, "hearth inspect: %s\n", err.text);
        return err_exit_code(err.code);
    }
    return 0;
}
