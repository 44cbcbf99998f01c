/* A fuzzer for compilers without one: fuzz_x [-runs=N] [-seed=N] FILE-OR-DIRECTORY...
 * Each file as it is, then N mutations of random ones: flipped bits, boundary values, cut, doubled and swapped runs.
 * The same seed gives the same run. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"

#define INPUTS_MAX 1024
#define INPUT_MAX  (1u << 20) /* bytes of one input; longer files are cut */

struct input {
    uint8_t *data;
    size_t size;
};

static struct input inputs[INPUTS_MAX];
static size_t n_inputs;

static uint64_t next(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15ull;
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static void read_input(const char *path)
{
    struct stat st;
    if (n_inputs == INPUTS_MAX || stat(path, &st) < 0) {
        return;
    }
    if (S_ISDIR(st.st_mode)) {
        DIR *dir = opendir(path);
        for (struct dirent *e; dir && (e = readdir(dir));) {
            char child[4096];
            if (e->d_name[0] != '.' &&
                snprintf(child, sizeof child, "%s/%s", path, e->d_name) < (int)sizeof child) {
                read_input(child);
            }
        }
        if (dir) {
            closedir(dir);
        }
        return;
    }
    FILE *f = fopen(path, "rb");
    uint8_t *data = f ? malloc(INPUT_MAX) : NULL;
    if (data) {
        inputs[n_inputs].data = data;
        inputs[n_inputs++].size = fread(data, 1, INPUT_MAX, f);
    }
    if (f) {
        fclose(f);
    }
}

/* One change of a copy; the buffer has room for INPUT_MAX bytes. */
static size_t mutate(uint8_t *data, size_t size, uint64_t *seed)
{
    static const uint64_t edges[] = { 0,          1,          2,         0x7f,       0x80,
                                      0xff,       0x7fff,     0xffff,    0x7fffffff, 0x80000000,
                                      0xffffffff, 1ull << 32, INT64_MAX, 1ull << 63, UINT64_MAX };
    if (size == 0) {
        data[0] = (uint8_t)next(seed);
        return 1;
    }
    size_t at = next(seed) % size, n = 1 + next(seed) % 16;
    n = n < size - at ? n : size - at;
    switch (next(seed) % 6) {
    case 0:
        data[at] ^= (uint8_t)(1u << next(seed) % 8);
        return size;
    case 1: {
        uint64_t value = edges[next(seed) % (sizeof edges / sizeof *edges)];
        size_t width = (size_t)1 << next(seed) % 4;
        memcpy(data + at, &value, width < size - at ? width : size - at);
        return size;
    }
    case 2:
        return next(seed) % 8 ? size : at; /* cut */
    case 3:                                /* remove a run */
        memmove(data + at, data + at + n, size - at - n);
        return size - n;
    case 4: /* double a run */
        if (size + n > INPUT_MAX) {
            return size;
        }
        memmove(data + at + n, data + at, size - at);
        return size + n;
    default: /* copy a run elsewhere */
        memmove(data + next(seed) % (size - n + 1), data + at, n);
        return size;
    }
}

int main(int argc, char **argv)
{
    uint64_t runs = 20000, seed = 1;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "-runs=", 6) == 0) {
            runs = strtoull(argv[i] + 6, NULL, 10);
        } else if (strncmp(argv[i], "-seed=", 6) == 0) {
            seed = strtoull(argv[i] + 6, NULL, 10);
        } else if (argv[i][0] != '-') {
            read_input(argv[i]);
        }
    }
    if (n_inputs == 0) {
        inputs[n_inputs++] = (struct input){ calloc(1, INPUT_MAX), 0 };
    }
    uint8_t *work = malloc(INPUT_MAX);
    if (!work) {
        return 1;
    }
    LLVMFuzzerTestOneInput(work, 0);
    for (size_t i = 0; i < n_inputs; i++) {
        LLVMFuzzerTestOneInput(inputs[i].data, inputs[i].size);
    }
    for (uint64_t run = 0; run < runs; run++) {
        const struct input *in = &inputs[next(&seed) % n_inputs];
        memcpy(work, in->data, in->size);
        size_t size = in->size;
        for (uint64_t n = 1 + next(&seed) % 5; n > 0; n--) {
            size = mutate(work, size, &seed);
        }
        /* A block of its own size, so that a sanitizer sees the first byte beyond it. */
        uint8_t *exact = malloc(size + !size);
        if (exact) {
            memcpy(exact, work, size);
            LLVMFuzzerTestOneInput(exact, size);
            free(exact);
        }
    }
    printf("%zu inputs, %llu mutations\n", n_inputs, (unsigned long long)runs);
    free(work);
    for (size_t i = 0; i < n_inputs; i++) {
        free(inputs[i].data);
    }
    return 0;
}
