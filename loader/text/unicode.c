#include "loader/text/unicode.h"

#include "loader/text/unicode_data.h"

enum unicode_category unicode_category(uint32_t code)
{
    if (code >= UNICODE_LIMIT) {
        return UNICODE_CN;
    }
    size_t block = unicode_block_of[code >> UNICODE_BLOCK_SHIFT];
    size_t in_block = code & ((1u << UNICODE_BLOCK_SHIFT) - 1);
    return (enum unicode_category)(unicode_blocks[block][in_block] - 'A');
}

uint32_t unicode_lowercase(uint32_t code)
{
    size_t low = 0, high = unicode_n_lower;
    while (low < high) {
        size_t mid = (low + high) / 2;
        const struct unicode_lower *run = &unicode_lower[mid];
        if (code > run->last) {
            low = mid + 1;
        } else if (code < run->first) {
            high = mid;
        } else {
            bool moves = (code - run->first) % (uint32_t)run->step == 0;
            return moves ? (uint32_t)((int32_t)code + run->delta) : code;
        }
    }
    return code;
}

uint32_t unicode_decomposed_base(uint32_t code)
{
    if (code >= 0xac00 && code <= 0xd7a3) { /* Hangul: 588 syllables for each leading consonant */
        return 0x1100 + (code - 0xac00) / 588;
    }
    size_t low = 0, high = unicode_n_base;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (code > unicode_base[mid].last) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    bool inside = low < unicode_n_base && code >= unicode_base[low].first;
    return inside ? unicode_base[low].base : code;
}

size_t unicode_decode(const uint8_t *text, size_t len, uint32_t *code, bool *valid)
{
    static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    uint8_t lead = text[0];
    if (valid) {
        *valid = true;
    }
    if (lead < 0x80) {
        *code = lead;
        return 1;
    }
    size_t need = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc2 ? 2 : 0;
    if (need && lead < 0xf8 && need <= len) {
        uint32_t value = lead & (0x7fu >> need);
        size_t i = 1;
        while (i < need && (text[i] & 0xc0) == 0x80) {
            value = value << 6 | (text[i] & 0x3fu);
            i++;
        }
        bool surrogate = value >= 0xd800 && value <= 0xdfff;
        if (i == need && value >= least[need] && value < UNICODE_LIMIT && !surrogate) {
            *code = value;
            return need;
        }
    }
    *code = UNICODE_REPLACEMENT;
    if (valid) {
        *valid = false;
    }
    return 1;
}

size_t unicode_encode(uint32_t code, uint8_t out[4])
{
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (uint8_t)(0xc0 | code >> 6);
        out[1] = (uint8_t)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (uint8_t)(0xe0 | code >> 12);
        out[1] = (uint8_t)(0x80 | (code >> 6 & 0x3f));
        out[2] = (uint8_t)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | code >> 18);
    out[1] = (uint8_t)(0x80 | (code >> 12 & 0x3f));
    out[2] = (uint8_t)(0x80 | (code >> 6 & 0x3f));
    out[3] = (uint8_t)(0x80 | (code & 0x3f));
    return 4;
}

size_t unicode_incomplete_tail(const uint8_t *text, size_t len)
{
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        uint8_t byte = text[len - back];
        if ((byte & 0xc0) == 0x80) {
            continue; /* a continuation byte: its lead byte is further back */
        }
        size_t need = byte >= 0xf8 ? 1 : byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
        return need > back ? back : 0;
    }
    return 0;
}
