#include "proto/dtype.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>
#include <strings.h>

#include "proto/bytes.h"

static const struct dtype_info table[DTYPE_N] = {
    [DTYPE_F32] = { "F32", 1, 4, false },
    [DTYPE_F16] = { "F16", 1, 2, false },
    [DTYPE_Q4_0] = { "Q4_0", 32, 18, true },
    [DTYPE_Q4_1] = { "Q4_1", 32, 20, true },
    [DTYPE_Q5_0] = { "Q5_0", 32, 22, true },
    [DTYPE_Q5_1] = { "Q5_1", 32, 24, true },
    [DTYPE_Q8_0] = { "Q8_0", 32, 34, true },
    [DTYPE_Q8_1] = { "Q8_1", 32, 36, true },
    [DTYPE_Q2_K] = { "Q2_K", 256, 84, true },
    [DTYPE_Q3_K] = { "Q3_K", 256, 110, true },
    [DTYPE_Q4_K] = { "Q4_K", 256, 144, true },
    [DTYPE_Q5_K] = { "Q5_K", 256, 176, true },
    [DTYPE_Q6_K] = { "Q6_K", 256, 210, true },
    [DTYPE_Q8_K] = { "Q8_K", 256, 292, true },
    [DTYPE_IQ2_XXS] = { "IQ2_XXS", 256, 66, true },
    [DTYPE_IQ2_XS] = { "IQ2_XS", 256, 74, true },
    [DTYPE_IQ3_XXS] = { "IQ3_XXS", 256, 98, true },
    [DTYPE_IQ1_S] = { "IQ1_S", 256, 50, true },
    [DTYPE_IQ4_NL] = { "IQ4_NL", 32, 18, true },
    [DTYPE_IQ3_S] = { "IQ3_S", 256, 110, true },
    [DTYPE_IQ2_S] = { "IQ2_S", 256, 82, true },
    [DTYPE_IQ4_XS] = { "IQ4_XS", 256, 136, true },
    [DTYPE_I8] = { "I8", 1, 1, false },
    [DTYPE_I16] = { "I16", 1, 2, false },
    [DTYPE_I32] = { "I32", 1, 4, false },
    [DTYPE_I64] = { "I64", 1, 8, false },
    [DTYPE_F64] = { "F64", 1, 8, false },
    [DTYPE_IQ1_M] = { "IQ1_M", 256, 56, true },
    [DTYPE_BF16] = { "BF16", 1, 2, false },
    [DTYPE_TQ1_0] = { "TQ1_0", 256, 54, true },
    [DTYPE_TQ2_0] = { "TQ2_0", 256, 66, true },
    [DTYPE_MXFP4] = { "MXFP4", 32, 17, true },
    [DTYPE_NVFP4] = { "NVFP4", 64, 36, true },
    [DTYPE_Q1_0] = { "Q1_0", 128, 18, true },
    [DTYPE_Q2_0] = { "Q2_0", 64, 18, true },
};

const struct dtype_info *dtype_find(uint32_t id)
{
    return id < DTYPE_N && table[id].name ? &table[id] : NULL;
}

const struct dtype_info *dtype_get(enum dtype id)
{
    const struct dtype_info *info = dtype_find((uint32_t)id);
    assert(info);
    return info;
}

int dtype_of_name(const char *name)
{
    for (int id = 0; id < DTYPE_N; id++) {
        if (table[id].name && strcasecmp(table[id].name, name) == 0) {
            return id;
        }
    }
    return -1;
}

int dtype_size(enum dtype id, uint64_t n_values, uint64_t *size_bytes, struct err *err)
{
    const struct dtype_info *info = dtype_get(id);
    if (n_values % info->block_values) {
        return err_set(err, ERR_BAD_FILE, "%" PRIu64 " values are not whole blocks of %u (%s)",
                       n_values, info->block_values, info->name);
    }
    if (!size_mul(n_values / info->block_values, info->block_bytes, size_bytes) ||
        *size_bytes > INT64_MAX) {
        return err_set(err, ERR_BAD_FILE, "%" PRIu64 " values of %s are more than 63 bits of bytes",
                       n_values, info->name);
    }
    return 0;
}

float dtype_f32_of_f16(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = (bits >> 10) & 31,
             mantissa = bits & 0x3ff, out;
    if (exponent == 0) {
        /* Zero and subnormals: mantissa * 2^-24, exact. */
        float value = (float)mantissa * 0x1p-24f;
        memcpy(&out, &value, sizeof out);
        out |= sign;
    } else if (exponent == 31) {
        out = sign | 0x7f800000u | (mantissa << 13);
    } else {
        out = sign | ((exponent + 112) << 23) | (mantissa << 13);
    }
    float value;
    memcpy(&value, &out, sizeof value);
    return value;
}

uint16_t dtype_f16_of_f32(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00);
    }
    if (bits >= 0x477ff000u) {
        return (uint16_t)(sign | 0x7c00); /* rounds beyond 65504 */
    }
    if (bits < 0x38800000u) {
        /* Subnormal: adding 0.5 lets the float unit round to multiples of 2^-24. */
        float magnitude;
        memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    bits += 0xfffu + ((bits >> 13) & 1);
    return (uint16_t)(sign | ((bits - 0x38000000u) >> 13));
}
