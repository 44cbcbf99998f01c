/* The codebooks as the kernels look them up, and the table of kernels for an instruction set: matmul_kernels.h. */
#include <pthread.h>
#include <string.h>

#include "worker/cpu/cpu.h"
#include "worker/cpu/matmul_kernels.h"
#include "worker/quant.h"
#include "worker/quant_grids.h"

uint32_t matmul_iq3xxs[256], matmul_iq3s[512], matmul_ue4m3[128];
uint32_t matmul_iq2xxs[512], matmul_iq2xs[1024], matmul_iq2s[2048], matmul_iq1s[4096];
struct matmul_grids matmul_grids;

/* n octets of two-bit levels; values: what the levels mean. */
static void expand_octets(const uint16_t *grid, unsigned n, const uint8_t values[3], uint32_t *out)
{
    for (unsigned i = 0; i < n; i++) {
        for (unsigned j = 0; j < 8; j++) {
            out[2 * i + j / 4] |= (uint32_t)values[(grid[i] >> (2 * j)) & 3] << (8 * (j % 4));
        }
    }
}

/* n octets of two-bit levels as nibbles: values 0..3 of all, then values 4..7. */
static void split_octets(const uint16_t *grid, unsigned n, uint8_t *low, uint8_t *high)
{
    for (unsigned i = 0; i < 2 * n; i++) {
        unsigned four = grid[i % n] >> (8 * (i / n));
        low[i] = (uint8_t)((four & 3) | (four >> 2 & 3) << 4);
        high[i] = (uint8_t)((four >> 4 & 3) | (four >> 6 & 3) << 4);
    }
}

static void fill_grids(void)
{
    struct matmul_grids *g = &matmul_grids;
    split_octets(quant_grid_iq2xxs, 256, g->iq2xxs[0], g->iq2xxs[1]);
    split_octets(quant_grid_iq2xs, 512, g->iq2xs[0], g->iq2xs[1]);
    split_octets(quant_grid_iq2s, 1024, g->iq2s[0], g->iq2s[1]);
    for (unsigned i = 0; i < 512; i++) {
        unsigned s = quant_grid_iq3s[i], xxs = quant_grid_iq3xxs[i % 256];
        for (unsigned h = 0; h < 2; h++) {
            g->iq3s[h][i] = (uint8_t)((s >> (6 * h) & 7) | (s >> (6 * h + 3) & 7) << 4);
            g->iq3xxs[h][i % 256] = (uint8_t)((xxs >> (6 * h) & 7) | (xxs >> (6 * h + 3) & 7) << 4);
        }
    }
    for (unsigned i = 0; i < 64; i++) {
        unsigned level = i & 7, iq2 = (unsigned)quant_level_iq2(level);
        unsigned iq3xxs = (unsigned)quant_level_iq3xxs(level), iq3s = 2 * level + 1;
        bool minus = i & 8;
        g->signs[0][i] = (uint8_t)((i & 1) << 3 | (i >> 1 & 1) << 7);
        g->signs[1][i] = (uint8_t)((i >> 2 & 1) << 3 | (i >> 3 & 1) << 7);
        g->code_iq2[i] = (uint8_t)(minus ? 64 - iq2 : 64 + iq2);
        g->code_iq3xxs[i] = (uint8_t)(minus ? 64 - iq3xxs : 64 + iq3xxs);
        g->code_iq3s[i] = (uint8_t)(minus ? 64 - iq3s : 64 + iq3s);
    }
    for (unsigned i = 0; i < 128; i++) {
        g->sign_code[0][i] = (uint8_t)(quant_signs(i) & 15);
        g->sign_code[1][i] = (uint8_t)(quant_signs(i) >> 4);
    }
}

static void fill_tables(void)
{
    static const uint8_t iq2[3] = { 8, 25, 43 }, iq1[3] = { 56, 64, 72 };
    expand_octets(quant_grid_iq2xxs, 256, iq2, matmul_iq2xxs);
    expand_octets(quant_grid_iq2xs, 512, iq2, matmul_iq2xs);
    expand_octets(quant_grid_iq2s, 1024, iq2, matmul_iq2s);
    expand_octets(quant_grid_iq1s, 2048, iq1, matmul_iq1s);
    for (unsigned i = 0; i < 512; i++) {
        uint32_t s = 0, xxs = 0;
        for (unsigned j = 0; j < 4; j++) {
            s |= (2 * ((quant_grid_iq3s[i] >> (3 * j)) & 7u) + 1) << (8 * j);
            xxs |= (uint32_t)quant_level_iq3xxs((quant_grid_iq3xxs[i % 256] >> (3 * j)) & 7)
                   << (8 * j);
        }
        matmul_iq3s[i] = s;
        matmul_iq3xxs[i % 256] = xxs;
    }
    for (unsigned i = 0; i < 128; i++) {
        float scale = quant_ue4m3(i);
        memcpy(&matmul_ue4m3[i], &scale, sizeof scale);
    }
    fill_grids();
}

void matmul_tables_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_tables);
}

const struct matmul_kernels *matmul_kernels_of(int isa)
{
#if defined(__x86_64__)
    static const struct matmul_kernels *const table[] = {
        [CPU_ISA_PORTABLE] = &matmul_portable,
        [CPU_ISA_AVX2] = &matmul_avx2,
        [CPU_ISA_AVX512] = &matmul_avx512,
    };
    return table[isa];
#else
    (void)isa;
    return &matmul_portable;
#endif
}
