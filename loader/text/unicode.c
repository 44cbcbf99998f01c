#include "loader/text/unicode.h"

#include "loader/text/unicode_data.h"

enum unicode_category unicode_category(uint32_t code)
{
    if (code >= UTF8_LIMIT) {
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
