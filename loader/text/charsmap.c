#include "loader/text/charsmap.h"

#include <stdbool.h>
#include <string.h>

#define KEY "tokenizer.ggml.precompiled_charsmap"

int charsmap_init(struct charsmap *m, const uint8_t *data, size_t len, struct err *err)
{
    uint32_t size;
    *m = (struct charsmap){ 0 };
    if (len < sizeof size) {
        return err_set(err, ERR_BAD_FILE, "key %s: %zu bytes are too few", KEY, len);
    }
    memcpy(&size, data, sizeof size);
    if (size > len - sizeof size || size % 4 != 0) {
        return err_set(err, ERR_BAD_FILE, "key %s: an array of %u bytes in %zu", KEY, size, len);
    }
    m->nodes = data + sizeof size;
    m->n_nodes = size / 4;
    m->texts = m->nodes + size;
    m->texts_len = len - sizeof size - size;
    if (m->texts_len && m->texts[m->texts_len - 1] != 0) {
        return err_set(err, ERR_BAD_FILE, "key %s: the last replacement has no end", KEY);
    }
    return 0;
}

/* Node i's value; false beyond the array. */
static bool node_at(const struct charsmap *m, size_t i, uint32_t *value)
{
    if (i >= m->n_nodes) {
        return false;
    }
    memcpy(value, m->nodes + 4 * i, sizeof *value);
    return true;
}

static uint32_t base_of(uint32_t value)
{
    return (value >> 10) << ((value & 0x200) >> 6);
}

size_t charsmap_match(const struct charsmap *m, const uint8_t *text, size_t len,
                      const uint8_t **replacement, size_t *replacement_len)
{
    uint32_t value;
    size_t matched = 0, text_off = 0;
    if (!node_at(m, 0, &value)) {
        return 0;
    }
    uint32_t node = base_of(value);
    for (size_t i = 0; i < len && text[i]; i++) {
        node ^= text[i];
        if (!node_at(m, node, &value) || (value & 0x800000ffu) != text[i]) {
            break;
        }
        bool leaf = value & 0x100;
        node ^= base_of(value);
        if (leaf) {
            if (!node_at(m, node, &value)) {
                break;
            }
            matched = i + 1;
            text_off = value & 0x7fffffffu;
        }
    }
    if (matched == 0 || text_off >= m->texts_len) {
        return 0;
    }
    *replacement = m->texts + text_off;
    *replacement_len = strlen((const char *)*replacement); /* the last byte is a NUL */
    return matched;
}
