/* One file in memory through the whole head: parse, manifest, segment, the readers' own checks. The bytes are copied into
 * a block of exactly their size, so that a sanitizer sees a read beyond them. */
#pragma once

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "loader/gguf.h"
#include "loader/publish.h"
#include "proto/weights.h"

/* 0 when the file was accepted and its segment mapped, else -1 with the error of whoever refused it. */
static inline int try_gguf(const void *data, size_t size, struct err *err)
{
    uint8_t *copy = malloc(size + !size);
    memcpy(copy, data, size);
    struct head head;
    struct gguf g;
    head_init_bytes(&head, copy, size);
    *err = (struct err){ 0 };
    int rc = gguf_parse(&g, &head, err);
    if (rc == 0) {
        struct weights_builder *b = weights_builder_create(err);
        for (uint64_t i = 0; rc == 0 && i < g.n_kvs; i++) {
            const struct gguf_kv *kv = &g.kvs[i];
            rc = weights_builder_borrow(b, kv->key, kv->key_len, kv->type, kv->elem, kv->n,
                                        kv->data, kv->size_bytes, false, err);
        }
        for (uint64_t i = 0; rc == 0 && i < g.n_tensors; i++) {
            const struct gguf_tensor *t = &g.tensors[i];
            rc = weights_builder_add_tensor(b, t->name, t->name_len, t->dtype, WEIGHTS_LAYOUT_FILE,
                                            t->n_dims, t->ne, t->data_off, t->size_bytes, err);
        }
        int fd = memfd_create("try", MFD_CLOEXEC);
        uint64_t data_off;
        struct weights w;
        if (rc == 0) {
            rc = weights_builder_write(b, fd, g.data_off, g.data_bytes, g.digest, g.version,
                                       &data_off, err);
        }
        if (rc == 0) {
            rc = weights_map(&w, fd, err);
        }
        if (rc == 0) {
            /* Walk everything, as a reader would. */
            for (size_t i = 0; i < w.n_kvs; i++) {
                const char *text;
                size_t len;
                double value;
                for (uint64_t k = 0; k < w.kvs[i].n; k++) {
                    if (!weights_kv_str(&w.kvs[i], k, &text, &len)) {
                        (void)weights_kv_f64(&w.kvs[i], k, &value);
                    }
                }
            }
            weights_unmap(&w);
        }
        close(fd);
        weights_builder_destroy(&b);
        gguf_clear(&g);
    }
    free(copy);
    return rc;
}

/* Reads a whole file; the block is the caller's. */
static inline uint8_t *try_read(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        return NULL;
    }
    uint8_t *data = malloc(1 << 20);
    *size = fread(data, 1, 1 << 20, f);
    fclose(f);
    return data;
}
