/* Thousands of malformed files by rule: every field of a valid file takes every boundary value, and the kinds of
 * damage that no single field makes. Each is refused with one line that has a byte offset, or is a sound file. */
#include "tests/test.h"

#include "tests/loader/make_gguf.h"
#include "tests/loader/try_gguf.h"

#define FIELDS_MAX 256

struct field {
    size_t off;
    size_t size; /* 1, 4 or 8 */
};

struct plan {
    struct maker m;
    struct field fields[FIELDS_MAX];
    size_t n_fields;
    size_t n_cases, n_refused;
};

static void field(struct plan *p, size_t size)
{
    assert_true(p->n_fields < FIELDS_MAX);
    p->fields[p->n_fields++] = (struct field){ p->m.size, size };
}

static void put_u32(struct plan *p, uint32_t value)
{
    field(p, 4);
    make_u32(&p->m, value);
}

static void put_u64(struct plan *p, uint64_t value)
{
    field(p, 8);
    make_u64(&p->m, value);
}

static void put_str(struct plan *p, const char *text)
{
    put_u64(p, strlen(text));
    field(p, 1);
    make_bytes(&p->m, text, strlen(text));
}

/* A file with a vocabulary, a template, arrays of most types and tensors of several; every field noted. */
static void build(struct plan *p)
{
    *p = (struct plan){ 0 };
    make_bytes(&p->m, "GGUF", 4);
    put_u32(p, 3);
    put_u64(p, 4);
    put_u64(p, 10);
    put_str(p, "general.architecture");
    put_u32(p, WEIGHTS_STRING);
    put_str(p, "llama");
    put_str(p, "general.alignment");
    put_u32(p, WEIGHTS_U32);
    put_u32(p, 64);
    put_str(p, "llama.block_count");
    put_u32(p, WEIGHTS_U64);
    put_u64(p, 1);
    put_str(p, "llama.rope.freq_base");
    put_u32(p, WEIGHTS_F32);
    put_u32(p, 0x461c4000);
    put_str(p, "tokenizer.ggml.model");
    put_u32(p, WEIGHTS_STRING);
    put_str(p, "gpt2");
    put_str(p, "tokenizer.ggml.tokens");
    put_u32(p, WEIGHTS_ARRAY);
    put_u32(p, WEIGHTS_STRING);
    put_u64(p, 3);
    put_str(p, "a");
    put_str(p, "bc");
    put_str(p, "def");
    put_str(p, "tokenizer.ggml.scores");
    put_u32(p, WEIGHTS_ARRAY);
    put_u32(p, WEIGHTS_F32);
    put_u64(p, 3);
    put_u32(p, 0);
    put_u32(p, 1);
    put_u32(p, 2);
    put_str(p, "tokenizer.ggml.merges");
    put_u32(p, WEIGHTS_ARRAY);
    put_u32(p, WEIGHTS_STRING);
    put_u64(p, 0);
    put_str(p, "tokenizer.chat_template");
    put_u32(p, WEIGHTS_STRING);
    put_str(p, "{{ messages }}");
    put_str(p, "some.flag");
    put_u32(p, WEIGHTS_BOOL);
    field(p, 1);
    make_u8(&p->m, 1);
    static const struct {
        const char *name;
        uint32_t type;
        uint64_t ne0, ne1, off;
    } tensors[] = {
        { "token_embd.weight", DTYPE_F32, 16, 3, 0 },
        { "blk.0.attn_q.weight", DTYPE_Q8_0, 32, 4, 192 },
        { "blk.0.attn_k.weight", DTYPE_Q4_K, 256, 1, 384 },
        { "output.weight", DTYPE_F16, 16, 3, 576 },
    };
    for (size_t i = 0; i < 4; i++) {
        put_str(p, tensors[i].name);
        put_u32(p, 2);
        put_u64(p, tensors[i].ne0);
        put_u64(p, tensors[i].ne1);
        put_u32(p, tensors[i].type);
        put_u64(p, tensors[i].off);
    }
    make_pad(&p->m, 64);
    make_data(&p->m, 672, 7);
}

static void judge(struct plan *p, const uint8_t *data, size_t size)
{
    struct err err;
    int rc = try_gguf(data, size, &err);
    p->n_cases++;
    if (rc == 0) {
        return;
    }
    p->n_refused++;
    if (err.code != ERR_BAD_FILE || !strstr(err.text, "byte ") || strchr(err.text, '\n')) {
        fail_msg("case %zu: %s: %s", p->n_cases, err_name(err.code), err.text);
    }
}

/* Every field takes every boundary value. */
static void boundaries(struct plan *p)
{
    for (size_t f = 0; f < p->n_fields; f++) {
        const struct field *field = &p->fields[f];
        uint64_t rest = p->m.size - field->off - field->size;
        const uint64_t values[] = {
            0,
            1,
            2,
            4,
            5,
            7,
            9,
            10,
            12,
            13,
            31,
            43,
            127,
            128,
            255,
            rest - 1,
            rest,
            rest + 1,
            p->m.size - 1,
            p->m.size,
            p->m.size + 1,
            (1ull << 30) - 1,
            1ull << 30,
            (1ull << 30) + 1,
            (1ull << 31) - 1,
            1ull << 31,
            (1ull << 31) + 1,
            (1ull << 32) - 1,
            1ull << 32,
            (1ull << 32) + 1,
            (1ull << 63) - 1,
            1ull << 63,
            UINT64_MAX - 1,
            UINT64_MAX,
        };
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            struct maker m = p->m;
            memcpy(m.data + field->off, &values[v], field->size);
            judge(p, m.data, m.size);
        }
    }
}

/* Every key of a vocabulary and template in every wrong type, and every tensor type number. */
static void types(struct plan *p)
{
    static const char *const keys[] = {
        "general.alignment",     "general.architecture",
        "tokenizer.ggml.model",  "tokenizer.ggml.tokens",
        "tokenizer.ggml.scores", "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges", "tokenizer.chat_template",
        "split.count",           "split.no",
    };
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        for (uint32_t type = 0; type < 16; type++) {
            for (uint32_t elem = 0; elem < (type == WEIGHTS_ARRAY ? 14u : 1u); elem++) {
                struct maker m;
                make_head(&m, 0, 1);
                make_str(&m, keys[k]);
                make_u32(&m, type);
                if (type == WEIGHTS_ARRAY) {
                    make_u32(&m, elem);
                    make_u64(&m, 1);
                }
                make_u64(&m, 8);
                make_data(&m, 64, type);
                judge(p, m.data, m.size);
            }
        }
    }
    for (uint32_t type = 0; type < 256; type++) {
        for (int sign = 0; sign < 2; sign++) {
            struct maker m;
            make_head(&m, 1, 0);
            make_tensor(&m, "t", sign ? 0u - type : type, 256, 2, 0);
            make_pad(&m, 32);
            make_data(&m, 4096, type);
            judge(p, m.data, m.size);
        }
    }
}

static void prefixes(struct plan *p)
{
    for (size_t n = 0; n < p->m.size; n++) {
        judge(p, p->m.data, n);
    }
}

static void refuses_thousands_of_malformed_files(void **state)
{
    (void)state;
    static struct plan p;
    build(&p);
    struct err err;
    assert_ok(try_gguf(p.m.data, p.m.size, &err), err);
    boundaries(&p);
    types(&p);
    prefixes(&p);
    fprintf(stderr, "%zu cases, %zu refused\n", p.n_cases, p.n_refused);
    assert_true(p.n_cases >= 3000);
    assert_true(p.n_refused >= 2000);
}

/* Names made to be equal: found by sorting, not by comparing each with each. */
static void many_equal_names_are_refused_at_once(void **state)
{
    (void)state;
    enum { N = 60000 };
    size_t each = 8 + 6 + 4 + 1, size = 24 + N * each;
    uint8_t *data = malloc(size), *q = data + 24;
    uint64_t zero = 0, n = N, len = 6;
    memcpy(data, "GGUF\3\0\0\0", 8);
    memcpy(data + 8, &zero, 8);
    memcpy(data + 16, &n, 8);
    for (int i = 0; i < N; i++, q += each) {
        uint32_t type = WEIGHTS_U8;
        memcpy(q, &len, 8);
        memcpy(q + 8, "a.same", 6);
        memcpy(q + 14, &type, 4);
        q[18] = 1;
    }
    struct err err;
    assert_int_equal(try_gguf(data, size, &err), -1);
    assert_non_null(strstr(err.text, "stands twice"));
    n = 100000;
    memcpy(data + 16, &n, 8);
    assert_int_equal(try_gguf(data, size, &err), -1);
    assert_non_null(strstr(err.text, "key count"));
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_thousands_of_malformed_files),
        cmocka_unit_test(many_equal_names_are_refused_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
