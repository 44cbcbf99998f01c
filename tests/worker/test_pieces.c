/* Token ids to bytes and end tokens: the shared vectors, and the bundled model. */
#include "tests/test.h"

#include <unistd.h>

#include "loader/load.h"
#include "proto/json.h"
#include "proto/pieces.h"

static const char *const names[] = { "bert-bge",      "falcon",    "gemma-like", "gemma4-like",
                                     "gpt-2",         "llama-bpe", "llama-spm",  "mistral-v3-spm",
                                     "o200k-harmony", "phi-3",     "qwen2",      "t5-ru" };

static struct json *read_json(const char *path)
{
    static char text[1 << 20];
    struct err err;
    FILE *f = fopen(path, "r");
    if (!f) {
        return NULL;
    }
    size_t n = fread(text, 1, sizeof text, f);
    fclose(f);
    return json_parse(text, n, &err);
}

static bool holds(const struct json *array, int64_t id)
{
    for (size_t i = 0; i < json_len(array); i++) {
        if (json_as_int(json_at(array, i)) == id) {
            return true;
        }
    }
    return false;
}

/* Ours is between the two versions of the reference: all of the older set, nothing that neither has. */
static void check_ends(const struct pieces *p, const struct json *info, const char *name)
{
    const struct json *older = json_find(info, "eog"), *newer = json_find(info, "eog_alt");
    for (uint32_t id = 0; id < p->n; id++) {
        bool end = pieces_is_end(p, (int32_t)id);
        if ((end && !holds(older, id) && !holds(newer, id)) || (!end && holds(older, id))) {
            fail_msg("%s: id %u: end %d, the reference %d", name, id, end, holds(older, id));
        }
    }
}

static void check_pieces(const struct pieces *p, const char *path, const char *name)
{
    static char line[1 << 18];
    struct err err;
    uint32_t n_checked = 0;
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        struct json *row = json_parse(line, strlen(line), &err);
        assert_non_null(row);
        const char *op = json_as_str(json_find(row, "op"), NULL);
        if (op && strcmp(op, "piece") == 0 && json_as_int(json_find(row, "lstrip")) == 0 &&
            json_find(row, "text")) {
            size_t len;
            const char *want = json_as_str(json_find(row, "text"), &len);
            uint32_t got_len;
            int32_t id = (int32_t)json_as_int(json_find(row, "id"));
            const uint8_t *got = pieces_bytes(p, id, json_as_bool(json_find(row, "special")),
                                              &got_len);
            /* Bytes that are no UTF-8 stand as U+FFFD in the vectors. */
            if (!memmem(want, len, "\xef\xbf\xbd", 3) &&
                (got_len != len || memcmp(got, want, len) != 0)) {
                fail_msg("%s: id %d: '%.*s', the reference has '%s'", name, id, (int)got_len, got,
                         want);
            }
            n_checked++;
        }
        json_destroy(&row);
    }
    fclose(f);
    assert_true(n_checked > 10);
}

static void pieces_and_ends_are_the_references(void **state)
{
    (void)state;
    const char *dir = test_conformance();
    if (!dir) {
        skip();
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[512];
        struct weights w;
        struct pieces p;
        struct err err;
        snprintf(path, sizeof path, "%s/tokenizers/vocabs/%s.gguf", dir, names[i]);
        if (access(path, R_OK) != 0) {
            print_message("no vocabulary %s\n", names[i]);
            continue;
        }
        assert_ok(loader_open_manifest(path, &w, &err), err);
        assert_ok(pieces_build(&p, &w, &err), err);
        snprintf(path, sizeof path, "%s/tokenizers/%s/info.json", dir, names[i]);
        struct json *info = read_json(path);
        if (info) {
            check_ends(&p, info, names[i]);
            json_destroy(&info);
        }
        snprintf(path, sizeof path, "%s/tokenizers/%s/pieces.jsonl", dir, names[i]);
        check_pieces(&p, path, names[i]);
        pieces_clear(&p);
        weights_unmap(&w);
    }
}

static void a_bundled_model_has_pieces(void **state)
{
    (void)state;
    struct weights w;
    struct pieces p;
    struct err err;
    assert_ok(loader_open_manifest(HEARTH_FIXTURES "/hearth-tiny.gguf", &w, &err), err);
    assert_ok(pieces_build(&p, &w, &err), err);
    assert_true(p.n > 256 && p.n <= 2048);
    uint32_t n_ends = 0, len;
    for (uint32_t id = 0; id < p.n; id++) {
        n_ends += pieces_is_end(&p, (int32_t)id);
    }
    assert_true(n_ends >= 1);
    pieces_bytes(&p, -1, true, &len);
    assert_int_equal(len, 0);
    pieces_bytes(&p, (int32_t)p.n, true, &len);
    assert_int_equal(len, 0);
    assert_true(p.bytes_max > 1 && p.bytes_max < 1024);
    pieces_clear(&p);
    weights_unmap(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bundled_model_has_pieces),
        cmocka_unit_test(pieces_and_ends_are_the_references),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
