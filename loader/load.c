#include "loader/load.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "loader/adapter.h"
#include "loader/gguf.h"
#include "loader/layout.h"
#include "loader/order.h"
#include "loader/publish.h"
#include "loader/room.h"
#include "loader/window.h"
#include "proto/bytes.h"
#include "proto/log.h"

struct part {
    char *path;
    struct head head;
    struct gguf gguf;
    uint64_t base; /* of its data within the segment's data section */
};

struct load {
    struct part parts[SOURCE_PARTS_MAX];
    struct source_file files[SOURCE_PARTS_MAX];
    uint32_t n_parts;
    bool adapted; /* the last part is an adapter */
    float lora_scale;
    enum weights_layout layout;
    uint64_t data_bytes;
    struct order order;
    struct window window;
    uint64_t rate; /* bytes per second at most; 0: no limit */
    uint64_t digest;
    struct publish publish;
};

/* ---- files ---- */

/* "prefix-00002-of-00003.gguf": the length of the prefix and the number of parts. */
static bool split_name(const char *path, size_t *prefix_len, uint32_t *n_parts)
{
    static const char tail[] = "-NNNNN-of-NNNNN.gguf";
    size_t len = strlen(path), tail_len = sizeof tail - 1;
    if (len <= tail_len) {
        return false;
    }
    const char *p = path + len - tail_len;
    for (size_t i = 0; i < tail_len; i++) {
        bool digit = p[i] >= '0' && p[i] <= '9';
        if (tail[i] == 'N' ? !digit : p[i] != tail[i]) {
            return false;
        }
    }
    *prefix_len = len - tail_len;
    *n_parts = (uint32_t)strtoul(p + 10, NULL, 10);
    return true;
}

static int open_file(struct load *l, uint32_t idx, bool direct, struct err *err)
{
    struct part *part = &l->parts[idx];
    struct source_file *file = &l->files[idx];
    *file = (struct source_file){ .fd = -1, .direct_fd = -1 };
    part->head.fd = -1;
    /* O_NONBLOCK: a FIFO in a model directory must not hold us; it means nothing to a regular file. */
    file->fd = open(part->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (file->fd < 0) {
        return err_set_errno(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%s", part->path);
    }
    struct stat st;
    if (fstat(file->fd, &st) < 0) {
        return err_set_errno(err, ERR_IO, "%s: fstat", part->path);
    }
    if (!S_ISREG(st.st_mode)) {
        return err_set(err, ERR_BAD_FILE, "%s: not a regular file", part->path);
    }
    if (direct) {
        file->direct_fd = open(part->path, O_RDONLY | O_CLOEXEC | O_DIRECT | O_NOCTTY);
        struct stat again;
        if (file->direct_fd >= 0 && (fstat(file->direct_fd, &again) < 0 ||
                                     again.st_dev != st.st_dev || again.st_ino != st.st_ino)) {
            return err_set(err, ERR_IO, "%s: replaced while it was opened", part->path);
        }
    }
    file->size = (uint64_t)st.st_size;
    file->dev = st.st_dev;
    file->ino = st.st_ino;
    file->mtime_ns = st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec;
    return 0;
}

struct load *load_open(const char *path, bool direct, struct err *err)
{
    struct load *l = calloc(1, sizeof *l);
    if (!l) {
        err_set(err, ERR_NO_MEMORY, "no memory for a load");
        return NULL;
    }
    size_t prefix_len = 0;
    uint32_t n_parts = 1;
    bool split = split_name(path, &prefix_len, &n_parts);
    if (n_parts == 0 || n_parts > SOURCE_PARTS_MAX) {
        err_set(err, ERR_BAD_FILE, "%s: %" PRIu32 " parts by its name, 1 to %d are read", path,
                n_parts, SOURCE_PARTS_MAX);
        load_close(&l);
        return NULL;
    }
    for (uint32_t i = 0; i < n_parts; i++) {
        int rc = split ? asprintf(&l->parts[i].path, "%.*s-%05" PRIu32 "-of-%05" PRIu32 ".gguf",
                                  (int)prefix_len, path, i + 1, n_parts)
                       : asprintf(&l->parts[i].path, "%s", path);
        if (rc < 0) {
            l->parts[i].path = NULL;
            err_set(err, ERR_NO_MEMORY, "no memory for a path");
            load_close(&l);
            return NULL;
        }
        l->n_parts = i + 1;
        if (open_file(l, i, direct, err) < 0) {
            load_close(&l);
            return NULL;
        }
    }
    return l;
}

int load_open_adapter(struct load *l, const char *path, float scale, bool direct, struct err *err)
{
    struct part *part = &l->parts[l->n_parts];
    if (l->n_parts == SOURCE_PARTS_MAX || l->adapted) {
        return err_set(err, ERR_UNSUPPORTED, "%s: no room for an adapter", path);
    }
    part->path = strdup(path);
    if (!part->path) {
        return err_set(err, ERR_NO_MEMORY, "no memory for a path");
    }
    l->n_parts++;
    l->adapted = true;
    l->lora_scale = scale;
    return open_file(l, l->n_parts - 1, direct, err);
}

void load_close(struct load **l)
{
    if (!*l) {
        return;
    }
    for (uint32_t i = 0; i < (*l)->n_parts; i++) {
        struct part *part = &(*l)->parts[i];
        gguf_clear(&part->gguf);
        head_clear(&part->head);
        if ((*l)->files[i].fd >= 0) {
            close((*l)->files[i].fd);
        }
        if ((*l)->files[i].direct_fd >= 0) {
            close((*l)->files[i].direct_fd);
        }
        free(part->path);
    }
    window_clear(&(*l)->window);
    order_clear(&(*l)->order);
    publish_end(&(*l)->publish);
    free(*l);
    *l = NULL;
}

const struct source_file *load_files(const struct load *l, uint32_t *n_files)
{
    *n_files = l->n_parts;
    return l->files;
}

/* ---- heads ---- */

/* An integer key; absent leaves *out alone. A key of another type is an error. */
static int get_u64(const struct part *part, const char *key, uint64_t *out, struct err *err)
{
    const struct gguf_kv *kv = gguf_find(&part->gguf, key);
    if (kv && !gguf_kv_u64(kv, out)) {
        return err_set(err, ERR_BAD_FILE, "%s: byte %" PRIu64 ": key %s: not a count but a %s",
                       part->path, kv->off, key, weights_type_name(kv->type));
    }
    return 0;
}

/* The parts' own words about the split agree with their names. */
static int check_split(const struct load *l, struct err *err)
{
    uint64_t n_tensors = 0, wanted = UINT64_MAX;
    uint32_t n_parts = l->n_parts - l->adapted;
    for (uint32_t i = 0; i < n_parts; i++) {
        const struct part *part = &l->parts[i];
        uint64_t no = i, count = n_parts > 1 ? 0 : 1;
        if (get_u64(part, "split.no", &no, err) < 0 ||
            get_u64(part, "split.count", &count, err) < 0 ||
            get_u64(part, "split.tensors.count", &wanted, err) < 0) {
            return -1;
        }
        if (count != n_parts && !(n_parts == 1 && count <= 1)) {
            return err_set(err, ERR_BAD_FILE,
                           "%s: split.count is %" PRIu64 ", by the file's name it is %" PRIu32,
                           part->path, count, n_parts);
        }
        if (no != i) {
            return err_set(err, ERR_BAD_FILE,
                           "%s: split.no is %" PRIu64 ", by the file's name it is %" PRIu32,
                           part->path, no, i);
        }
        n_tensors += part->gguf.n_tensors;
    }
    if (wanted != UINT64_MAX && wanted != n_tensors) {
        return err_set(err, ERR_BAD_FILE,
                       "%s: split.tensors.count is %" PRIu64 ", the parts hold %" PRIu64,
                       l->parts[0].path, wanted, n_tensors);
    }
    return 0;
}

/* Where each part's data goes: the same place modulo 4 KiB as in its file, on pages of its own. */
static int place_parts(struct load *l, struct err *err)
{
    uint64_t first = l->parts[0].gguf.data_off % WEIGHTS_PAGE, end = 0;
    for (uint32_t i = 0; i < l->n_parts; i++) {
        struct part *part = &l->parts[i];
        if (i > 0) {
            uint64_t page = align_up(first + end, WEIGHTS_PAGE);
            part->base = page + part->gguf.data_off % WEIGHTS_PAGE - first;
        }
        if (part->gguf.n_tensors == 0) {
            part->base = end;
            continue;
        }
        if (!size_add(part->base, part->gguf.data_bytes, &end) || end > INT64_MAX / 2) {
            return err_set(err, ERR_BAD_FILE, "%s: the parts' data is more than 2^62 bytes",
                           part->path);
        }
    }
    l->data_bytes = end;
    return 0;
}

/* All tensors, by file and then as each file names them: an array for the caller to free, or NULL. */
static struct order_tensor *list_tensors(const struct load *l,
                                         struct order_file files[SOURCE_PARTS_MAX],
                                         uint64_t *n_tensors_out, struct err *err)
{
    uint64_t n_tensors = 0, n = 0;
    for (uint32_t i = 0; i < l->n_parts; i++) {
        const struct part *part = &l->parts[i];
        files[i] = (struct order_file){ .off = part->base,
                                        .size_bytes = part->gguf.n_tensors ? part->gguf.data_bytes
                                                                           : 0 };
        n_tensors += part->gguf.n_tensors;
    }
    struct order_tensor *tensors = calloc(n_tensors + 1, sizeof *tensors);
    if (!tensors) {
        err_set(err, ERR_NO_MEMORY, "no memory for the order of reading");
        return NULL;
    }
    for (uint32_t i = 0; i < l->n_parts; i++) {
        const struct gguf *g = &l->parts[i].gguf;
        for (uint64_t t = 0; t < g->n_tensors; t++) {
            const struct gguf_tensor *from = &g->tensors[t];
            tensors[n++] = (struct order_tensor){ .name = from->name,
                                                  .name_len = from->name_len,
                                                  .off = l->parts[i].base + from->data_off,
                                                  .size_bytes = from->size_bytes };
        }
    }
    *n_tensors_out = n;
    return tensors;
}

/* As the forward pass will ask for it. */
static int plan_reads(struct load *l, struct err *err)
{
    struct order_file files[SOURCE_PARTS_MAX];
    uint64_t n;
    struct order_tensor *tensors = list_tensors(l, files, &n, err);
    int rc = tensors ? order_init(&l->order, tensors, n, files, l->n_parts,
                                  l->parts[0].gguf.data_off % WEIGHTS_PAGE, err)
                     : -1;
    free(tensors);
    return rc;
}

uint64_t load_window_least(struct load *l, struct err *err)
{
    struct order_file files[SOURCE_PARTS_MAX];
    uint64_t n;
    struct order_tensor *tensors = list_tensors(l, files, &n, err);
    if (tensors) {
        order_sort(tensors, n);
    }
    int rc = tensors ? window_init(&l->window, &l->order, tensors, n, files, l->n_parts,
                                   l->parts[0].gguf.data_off % WEIGHTS_PAGE, err)
                     : -1;
    free(tensors);
    return rc < 0 ? 0 : window_least(&l->window);
}

void load_window(struct load *l, uint64_t bytes, const struct uploaded *uploaded)
{
    assert(l->layout ==
           WEIGHTS_LAYOUT_FILE); /* what is laid by groups of rows goes through memory twice */
    const char *poison = getenv("HEARTH_LOAD_POISON");
    window_open(&l->window, bytes, uploaded);
    l->window.poison = poison && *poison == '1';
}

uint64_t load_kept_bytes(const struct load *l)
{
    return l->publish.data_off + l->window.kept_bytes;
}

int load_parse(struct load *l, enum weights_layout layout, struct err *err)
{
    l->layout = layout;
    for (uint32_t i = 0; i < l->n_parts; i++) {
        struct part *part = &l->parts[i];
        if (head_init(&part->head, l->files[i].fd, l->files[i].size, err) < 0 ||
            gguf_parse(&part->gguf, &part->head, err) < 0) {
            return err_wrap(err, "%s", part->path);
        }
        l->digest = (l->digest ^ part->gguf.digest) * 0x9fb21c651e98df25ull;
    }
    if (l->adapted) { /* keys and values under another factor are others */
        uint32_t bits;
        memcpy(&bits, &l->lora_scale, sizeof bits);
        l->digest = (l->digest ^ bits) * 0x9fb21c651e98df25ull;
    }
    if (check_split(l, err) < 0 || place_parts(l, err) < 0) {
        return -1;
    }
    return plan_reads(l, err);
}

int load_check_model(const struct load *l, struct err *err)
{
    const struct part *part = &l->parts[0];
    const struct gguf_kv *kind = gguf_find(&part->gguf, "general.type");
    const char *text;
    uint64_t len;
    if (kind && gguf_kv_str(kind, &text, &len) && (len != 5 || memcmp(text, "model", 5) != 0)) {
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: byte %" PRIu64 ": general.type is %.*s, not model", part->path,
                       kind->off, len < 60 ? (int)len : 60, text);
    }
    uint64_t version = 2;
    if (get_u64(part, "general.quantization_version", &version, err) < 0) {
        return -1;
    }
    if (l->adapted) {
        const struct part *adapter = &l->parts[l->n_parts - 1];
        float alpha;
        if (adapter_check(&part->gguf, &adapter->gguf, &alpha, err) < 0) {
            return err_wrap(err, "%s", adapter->path);
        }
    }
    for (uint32_t i = 0; i < l->n_parts && version != 2; i++) {
        for (uint64_t t = 0; t < l->parts[i].gguf.n_tensors; t++) {
            if (dtype_get(l->parts[i].gguf.tensors[t].dtype)->quantised) {
                return err_set(err, ERR_UNSUPPORTED,
                               "%s: general.quantization_version is %" PRIu64 ", 2 is read",
                               part->path, version);
            }
        }
    }
    return 0;
}

void load_architecture(const struct load *l, char *out, size_t size)
{
    const struct gguf_kv *kv = gguf_find(&l->parts[0].gguf, "general.architecture");
    const char *text;
    uint64_t len;
    if (!kv || !gguf_kv_str(kv, &text, &len)) {
        len = 0;
    }
    len = len < size ? len : size - 1;
    for (uint64_t i = 0; i < len; i++) {
        out[i] = text[i];
        if (text[i] <= ' ' || text[i] > '~') {
            out[i] = '?';
        }
    }
    out[len] = '\0';
}

uint64_t load_data_bytes(const struct load *l)
{
    return l->data_bytes;
}

uint64_t load_segment_bytes(const struct load *l)
{
    return l->publish.size_bytes;
}

void load_identity(const struct load *l, struct load_identity *id)
{
    *id = (struct load_identity){ .device = l->files[0].dev,
                                  .inode = l->files[0].ino,
                                  .mtime_ns = l->files[0].mtime_ns,
                                  .digest = l->digest };
    for (uint32_t i = 0; i < l->n_parts; i++) {
        id->size_bytes += l->files[i].size;
    }
}

int load_find_tensor(const struct load *l, const char *name, struct load_tensor *t, struct err *err)
{
    size_t len = strlen(name);
    for (uint32_t p = 0; p < l->n_parts; p++) {
        const struct gguf *g = &l->parts[p].gguf;
        for (uint64_t i = 0; i < g->n_tensors; i++) {
            const struct gguf_tensor *found = &g->tensors[i];
            if (found->name_len == len && memcmp(found->name, name, len) == 0) {
                *t = (struct load_tensor){ .dtype = found->dtype,
                                           .n_dims = found->n_dims,
                                           .size_bytes = found->size_bytes,
                                           .file_idx = p,
                                           .file_off = g->data_off + found->data_off };
                memcpy(t->ne, found->ne, sizeof t->ne);
                return 0;
            }
        }
    }
    return err_set(err, ERR_NOT_FOUND, "%s: no tensor %s", l->parts[0].path, name);
}

int load_read_tensor(const struct load *l, const struct load_tensor *t, uint64_t off, void *to,
                     uint64_t size_bytes, struct err *err)
{
    assert(off <= t->size_bytes && size_bytes <= t->size_bytes - off);
    uint8_t *out = to;
    for (uint64_t got = 0; got < size_bytes;) {
        uint64_t at = t->file_off + off + got;
        ssize_t n = pread(l->files[t->file_idx].fd, out + got, (size_t)(size_bytes - got),
                          (off_t)at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_set_errno(err, ERR_IO, "read at byte %" PRIu64, at);
        }
        if (n == 0) {
            return err_set(err, ERR_BAD_FILE, "byte %" PRIu64 ": the file became shorter", at);
        }
        got += (uint64_t)n;
    }
    return 0;
}

/* ---- the segment ---- */

/* What the worker needs to know of the adapter. */
static int collect_adapter(const struct load *l, struct weights_builder *manifest, struct err *err)
{
    const struct gguf *adapter = &l->parts[l->n_parts - 1].gguf;
    const char *scale = "hearth.lora.scale", *key = "hearth.lora.alpha";
    float alpha;
    if (!l->adapted) {
        return 0;
    }
    return adapter_check(&l->parts[0].gguf, adapter, &alpha, err) < 0 ||
                   weights_builder_add(manifest, scale, strlen(scale), WEIGHTS_F32, WEIGHTS_F32, 1,
                                       &l->lora_scale, err) < 0 ||
                   weights_builder_add(manifest, key, strlen(key), WEIGHTS_F32, WEIGHTS_F32, 1,
                                       &alpha, err) < 0
               ? -1
               : 0;
}

static int collect(const struct load *l, struct weights_builder *manifest, struct err *err)
{
    if (collect_adapter(l, manifest, err) < 0) {
        return -1;
    }
    const struct gguf *first = &l->parts[0].gguf;
    for (uint64_t i = 0; i < first->n_kvs; i++) {
        const struct gguf_kv *kv = &first->kvs[i];
        if (weights_builder_borrow(manifest, kv->key, kv->key_len, kv->type, kv->elem, kv->n,
                                   kv->data, kv->size_bytes, true, err) < 0) {
            return -1;
        }
    }
    for (uint32_t p = 0; p < l->n_parts; p++) {
        const struct part *part = &l->parts[p];
        for (uint64_t i = 0; i < part->gguf.n_tensors; i++) {
            const struct gguf_tensor *t = &part->gguf.tensors[i];
            if (weights_builder_add_tensor(manifest, t->name, t->name_len, t->dtype,
                                           layout_of(t, l->layout), t->n_dims, t->ne,
                                           part->base + t->data_off, t->size_bytes, err) < 0) {
                return err_wrap(err, "%s", part->path);
            }
            weights_builder_ready(manifest,
                                  order_ready(&l->order, part->base + t->data_off, t->size_bytes));
        }
    }
    return 0;
}

int load_publish(struct load *l, int fd, struct err *err)
{
    struct weights_builder *manifest = weights_builder_create(err);
    if (!manifest) {
        return -1;
    }
    const struct gguf *first = &l->parts[0].gguf;
    weights_builder_window(manifest, l->window.bytes);
    int rc = collect(l, manifest, err);
    if (rc == 0) {
        rc = publish_begin(&l->publish, fd, manifest, first->data_off, l->data_bytes, l->digest,
                           first->version, err);
    }
    weights_builder_destroy(&manifest);
    return rc;
}

void load_limit(struct load *l, uint64_t bytes_per_s)
{
    l->rate = bytes_per_s;
}

#define LIMITED_STEP (64u << 10) /* bytes announced at a time by a load with a limit */

/* Announces what has been read, from `from` bytes on. */
static void announce(struct load *l, struct layout *layout, uint64_t from, uint64_t upto)
{
    while (l->rate && from + LIMITED_STEP < upto) {
        from += LIMITED_STEP;
        publish_advance(&l->publish, layout_advance(layout, from));
        uint64_t ns = LIMITED_STEP * 1000000000ull / l->rate;
        struct timespec pause = { (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
        nanosleep(&pause, NULL);
    }
    publish_advance(&l->publish, layout_advance(layout, upto));
}

int load_fill(struct load *l, struct source *s, struct err *err)
{
    struct weights w;
    if (weights_map(&w, l->publish.fd, err) < 0) {
        return -1; /* a name in two parts, found by the readers' own check */
    }
    struct layout *layout = layout_create(&w, l->publish.base, err);
    struct source_target target = { .fd = l->publish.fd,
                                    .base = l->publish.base,
                                    .size_bytes = l->publish.size_bytes };
    struct source_span *spans = calloc(l->order.n_reads + 1, sizeof *spans);
    for (size_t i = 0; spans && i < l->order.n_reads; i++) {
        const struct order_run *run = &l->order.reads[i];
        const struct part *part = &l->parts[run->file_idx];
        spans[i] = (struct source_span){ .file_idx = run->file_idx,
                                         .file_off = part->gguf.data_off + run->off - part->base,
                                         .seg_off = l->publish.data_off + run->off,
                                         .size_bytes = run->size_bytes };
    }
    struct weights_header *header = (struct weights_header *)(void *)l->publish.base;
    bool windowed = l->window.bytes != 0;
    int rc = -1;
    if (windowed) {
        source_hold(s, l->window.read_bytes_max);
    }
    if (!spans) {
        err_set(err, ERR_NO_MEMORY, "no memory for the parts");
    } else if (layout) {
        rc = source_start(s, &target, spans, (uint32_t)l->order.n_reads, err);
    }
    for (uint64_t upto = 0; rc == 0 && upto < l->order.total_bytes;) {
        uint64_t before = upto;
        rc = windowed ? window_move(&l->window, s, l->publish.fd, header, false, err) : 0;
        rc = rc == 0 ? source_wait(s, &upto, err) : rc;
        if (rc == 0) {
            announce(l, layout, before, upto);
        }
    }
    if (rc == 0) {
        publish_advance(&l->publish, l->data_bytes); /* what lies between the parts is nobody's */
        rc = windowed ? window_move(&l->window, s, l->publish.fd, header, true, err) : 0;
    }
    free(spans);
    layout_destroy(&layout);
    weights_unmap(&w);
    return rc;
}

/* ---- in one process ---- */

static int direct(const char *path, enum weights_layout layout, bool fill, struct weights *out,
                  struct err *err)
{
    *out = (struct weights){ 0 };
    struct source *source = NULL;
    int rc = -1, fd = -1;
    struct load *l = load_open(path, false, err);
    if (!l || load_parse(l, layout, err) < 0) {
        goto end;
    }
    if (fill) {
        int meminfo = room_open();
        int fits = load_check_model(l, err) < 0
                       ? -1
                       : room_check(meminfo, l->data_bytes, ROOM_NO_BUDGET, err);
        if (meminfo >= 0) {
            close(meminfo);
        }
        if (fits < 0) {
            goto end;
        }
    }
    fd = memfd_create("hearth-weights", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        err_set_errno(err, ERR_NO_MEMORY, "memfd");
        goto end;
    }
    if (load_publish(l, fd, err) < 0) {
        goto end;
    }
    if (fill) {
        source = source_open(SOURCE_PREAD, l->files, l->n_parts, 0, err);
        if (!source || load_fill(l, source, err) < 0) {
            goto end;
        }
    }
    rc = weights_map(out, fd, err);
end:
    source_close(&source);
    load_close(&l);
    if (fd >= 0) {
        close(fd);
    }
    return rc;
}

int loader_load_direct(const char *path, enum weights_layout layout, struct weights *out,
                       struct err *err)
{
    return direct(path, layout, true, out, err);
}

int loader_open_manifest(const char *path, struct weights *out, struct err *err)
{
    return direct(path, WEIGHTS_LAYOUT_FILE, false, out, err);
}
