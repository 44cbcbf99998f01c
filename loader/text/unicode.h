/* The few facts of Unicode that tokenizers ask for: category, white space, lower case, the first
 * code point of the canonical decomposition. Used by the text service's tokenizers; pure functions, any thread.
 * Data: Unicode 15.1 (unicode_data.c). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/utf8.h"

/* General categories by make_unicode.py's numbers. CONTROL_SPACE is Cc that is white space. */
enum unicode_category {
    UNICODE_CN,
    UNICODE_LU,
    UNICODE_LL,
    UNICODE_LT,
    UNICODE_LM,
    UNICODE_LO,
    UNICODE_MN,
    UNICODE_MC,
    UNICODE_ME,
    UNICODE_ND,
    UNICODE_NL,
    UNICODE_NO,
    UNICODE_PC,
    UNICODE_PD,
    UNICODE_PS,
    UNICODE_PE,
    UNICODE_PI,
    UNICODE_PF,
    UNICODE_PO,
    UNICODE_SM,
    UNICODE_SC,
    UNICODE_SK,
    UNICODE_SO,
    UNICODE_ZS,
    UNICODE_ZL,
    UNICODE_ZP,
    UNICODE_CC,
    UNICODE_CF,
    UNICODE_CS,
    UNICODE_CO,
    UNICODE_CONTROL_SPACE,
    UNICODE_N_CATEGORIES,
};

/* Sets of categories, one bit each: UNICODE_BIT(cat) & set. */
#define UNICODE_BIT(cat) (1u << (cat))
#define UNICODE_LETTER                                                                             \
    (UNICODE_BIT(UNICODE_LU) | UNICODE_BIT(UNICODE_LL) | UNICODE_BIT(UNICODE_LT) |                 \
     UNICODE_BIT(UNICODE_LM) | UNICODE_BIT(UNICODE_LO))
#define UNICODE_MARK   (UNICODE_BIT(UNICODE_MN) | UNICODE_BIT(UNICODE_MC) | UNICODE_BIT(UNICODE_ME))
#define UNICODE_NUMBER (UNICODE_BIT(UNICODE_ND) | UNICODE_BIT(UNICODE_NL) | UNICODE_BIT(UNICODE_NO))
#define UNICODE_PUNCTUATION                                                                        \
    (UNICODE_BIT(UNICODE_PC) | UNICODE_BIT(UNICODE_PD) | UNICODE_BIT(UNICODE_PS) |                 \
     UNICODE_BIT(UNICODE_PE) | UNICODE_BIT(UNICODE_PI) | UNICODE_BIT(UNICODE_PF) |                 \
     UNICODE_BIT(UNICODE_PO))
#define UNICODE_SYMBOL                                                                             \
    (UNICODE_BIT(UNICODE_SM) | UNICODE_BIT(UNICODE_SC) | UNICODE_BIT(UNICODE_SK) |                 \
     UNICODE_BIT(UNICODE_SO))
#define UNICODE_SPACE                                                                              \
    (UNICODE_BIT(UNICODE_ZS) | UNICODE_BIT(UNICODE_ZL) | UNICODE_BIT(UNICODE_ZP) |                 \
     UNICODE_BIT(UNICODE_CONTROL_SPACE))
#define UNICODE_CONTROL                                                                            \
    (UNICODE_BIT(UNICODE_CC) | UNICODE_BIT(UNICODE_CF) | UNICODE_BIT(UNICODE_CS) |                 \
     UNICODE_BIT(UNICODE_CO) | UNICODE_BIT(UNICODE_CONTROL_SPACE))

/* Category of a code point; UNICODE_CN at and beyond UTF8_LIMIT. */
enum unicode_category unicode_category(uint32_t code);

/* The simple lower-case letter, or code itself. */
uint32_t unicode_lowercase(uint32_t code);

/* First code point of the full canonical decomposition, or code itself. */
uint32_t unicode_decomposed_base(uint32_t code);

/* Length in bytes that a lead byte announces, by its high nibble alone (1 for continuation bytes). */
static inline size_t unicode_lead_len(uint8_t lead)
{
    static const uint8_t lens[16] = { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4 };
    return lens[lead >> 4];
}
