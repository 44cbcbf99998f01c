/* hearth synth: a model file with random weights of true shapes, at the speed of the disk. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clients/direct/synth_model.h"
#include "clients/options.h"
#include "proto/err.h"

#define BUFFER_BYTES (8u << 20) /* written at once */

static const struct program program = {
    .verb = "synth",
    .synopsis = "--arch A --preset P --type T -o FILE",
    .purpose = "write a model with random weights of true shapes",
    .text = "For benchmarks and tests where no real file is at hand. Architectures: llama, qwen2, "
            "qwen3, qwen3moe, gemma2, gemma3. Presets: tiny, 1b, 8b, 27b, 30b-a3b, 32b, 70b. Types "
            "are those of published files: Q8_0, Q4_K_M, IQ3_M and so on. The same arguments give "
            "the same bytes.",
};

struct writer {
    int fd;
    uint8_t *buffer; /* BUFFER_BYTES and a row more */
    size_t filled;
};

static int flush_all(struct writer *w, struct err *err)
{
    for (size_t done = 0; done < w->filled;) {
        ssize_t n = write(w->fd, w->buffer + done, w->filled - done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_set_errno(err, ERR_IO, "write");
        }
        done += (size_t)n;
    }
    w->filled = 0;
    return 0;
}

static int put(struct writer *w, const void *data, size_t size, struct err *err)
{
    const uint8_t *p = data;
    while (size) {
        size_t n = BUFFER_BYTES - w->filled < size ? BUFFER_BYTES - w->filled : size;
        memcpy(w->buffer + w->filled, p, n);
        w->filled += n;
        p += n;
        size -= n;
        if (w->filled == BUFFER_BYTES && flush_all(w, err) < 0) {
            return -1;
        }
    }
    return 0;
}

static int put_tensor(struct writer *w, struct synth_filler *f, const struct synth_tensor *t,
                      struct err *err)
{
    uint64_t n_rows = t->ne[1] * t->ne[2] * t->ne[3], row_bytes = t->size_bytes / n_rows;
    uint64_t at_once = BUFFER_BYTES / row_bytes;
    uint8_t *rows = malloc((size_t)(row_bytes * (at_once ? at_once : 1)));
    if (!rows) {
        return err_set(err, ERR_NO_MEMORY, "no memory for rows of %" PRIu64 " bytes", row_bytes);
    }
    int rc = 0;
    for (uint64_t row = 0; rc == 0 && row < n_rows;) {
        uint64_t n = at_once < 1 ? 1 : at_once < n_rows - row ? at_once : n_rows - row;
        rc = synth_fill(f, t, n, rows, err);
        rc = rc < 0 ? rc : put(w, rows, (size_t)(n * row_bytes), err);
        row += n;
    }
    free(rows);
    static const uint8_t zeros[32];
    return rc < 0 ? rc : put(w, zeros, (size_t)(-t->size_bytes & 31), err);
}

static int run(const char *arch, const char *preset, const char *type, const char *path,
               struct err *err)
{
    struct writer w = { .fd = -1 };
    struct synth_filler *f = NULL;
    int rc = -1;
    struct synth *s = synth_create(arch, preset, type, err);
    if (!s) {
        return -1;
    }
    w.buffer = malloc(BUFFER_BYTES);
    f = synth_filler_create(err);
    if (!w.buffer || !f) {
        err_set(err, ERR_NO_MEMORY, "no memory for a buffer");
        goto end;
    }
    w.fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w.fd < 0) {
        err_set_errno(err, ERR_IO, "open %s", path);
        goto end;
    }
    /* Says at once that the disk is full, where the file system can. */
    if (posix_fallocate(w.fd, 0, (off_t)(s->head_bytes + s->data_bytes)) == ENOSPC) {
        errno = ENOSPC;
        err_set_errno(err, ERR_IO, "%s: %" PRIu64 " bytes", path, s->head_bytes + s->data_bytes);
        goto end;
    }
    rc = put(&w, s->head, s->head_bytes, err);
    for (size_t i = 0; rc == 0 && i < s->n_tensors; i++) {
        rc = put_tensor(&w, f, &s->tensors[i], err);
    }
    if (rc == 0) {
        rc = flush_all(&w, err);
    }
    if (rc == 0) {
        fprintf(stderr, "%s: %zu tensors, %" PRIu64 " bytes of data\n", path, s->n_tensors,
                s->data_bytes);
    }
end:
    if (w.fd >= 0 && close(w.fd) < 0 && rc == 0) {
        rc = err_set_errno(err, ERR_IO, "close %s", path);
    }
    if (w.fd >= 0 && rc < 0) {
        unlink(path); /* half a model helps nobody */
    }
    free(w.buffer);
    synth_filler_destroy(&f);
    synth_destroy(&s);
    return rc;
}

int main(int argc, char **argv)
{
    const char *arch = "llama", *preset = NULL, *type = "Q8_0", *path = NULL;
    const struct option table[] = {
        { .name = "arch",
          .kind = OPTION_STRING,
          .target = &arch,
          .value = "A",
          .help = "architecture (llama)" },
        { .name = "preset",
          .kind = OPTION_STRING,
          .target = &preset,
          .value = "P",
          .help = "size: tiny, 1b, 8b, 27b, 30b-a3b, 32b, 70b" },
        { .name = "type",
          .kind = OPTION_STRING,
          .target = &type,
          .value = "T",
          .help = "file type (Q8_0)" },
        { .name = "output",
          .letter = 'o',
          .kind = OPTION_STRING,
          .target = &path,
          .value = "FILE",
          .help = "where it goes" },
        { 0 },
    };
    if (options_parse(&program, table, argc, argv) != 0 || !preset || !path) {
        options_fail(&program, "--preset and -o are needed, and nothing else; see --help");
    }
    struct err err = { 0 };
    if (run(arch, preset, type, path, &err) < 0) {
        fprintf(stderr, "hearth synth: %s\n", err.text);
        return err_exit_code(err.code);
    }
    return 0;
}
