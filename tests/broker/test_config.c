/* The configuration: files and flags, and mistakes that are named with their line. */
#include <unistd.h>

#include "broker/config.h"
#include "tests/test.h"

/* argv wants char *; nobody writes to it. */
#define ARG(text) ((char *)(uintptr_t)(text))

static char path[64];

static void write_file(const char *text)
{
    strcpy(path, "/tmp/hearth-config-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (int)strlen(text));
    close(fd);
}

static void config_reads_keys_and_aliases(void **state)
{
    (void)state;
    struct config c;
    struct err err = { 0 };
    write_file(
        "; a comment\n[hearth]\nmodels = /a\nmodels = /b\nram_budget = 1.5G\nsource = pread\n"
        "kv = q8_0,q4_0\nsequences = 4\n\n[alias quick]\nmodel = tiny\nctx = 512\npin = yes\n"
        "temp = 0.5\nlora = /c/a:b.gguf\n[alias slow]\nmodel = /b/big.gguf\nttl = 60\n"
        "lora = /c/d.gguf:-0.25\n");
    config_init(&c);
    assert_ok(config_read(&c, path, &err), err);
    unlink(path);
    assert_int_equal(c.n_dirs, 2);
    assert_string_equal(c.dirs[1], "/b");
    assert_true(c.ram_budget == 3ull << 29);
    assert_string_equal(c.kv.k, "q8_0");
    assert_string_equal(c.kv.v, "q4_0");
    assert_int_equal(c.sequences, 4);
    assert_int_equal(c.n_aliases, 2);
    assert_string_equal(c.aliases[0].model, "tiny");
    assert_true(c.aliases[0].pin && c.aliases[0].sampling.has == CONFIG_TEMP);
    assert_int_equal(c.aliases[1].ttl_s, 60);
    assert_string_equal(c.aliases[0].lora, "/c/a:b.gguf:1");
    assert_string_equal(c.aliases[1].lora, "/c/d.gguf:-0.25");
    assert_null(c.aliases[1].template);
    assert_ptr_equal(config_find_alias(&c, "slow"), &c.aliases[1]);
    assert_null(config_find_alias(&c, "tiny"));
    config_clear(&c);
}

static void config_names_the_line_of_a_mistake(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want;
    } rows[] = {
        { "[hearth]\nthreads = 4\ncolour = red\n", ":3: colour: key colour is not known" },
        { "threads = many\n", ":1: threads: many is not a number" },
        { "[hearth]\n\nram_budget = 12Q\n", ":3: ram_budget: 12Q is not a size" },
        { "[models]\na = b\n", ":2: a: section [models] is not known" },
        { "[alias x]\nmodel = y\nmodell = z\n", ":3: modell: key modell is not known in an alias" },
        { "[alias x]\nmodel = y\nmirostat = 1.5\n", ":3: mirostat: 1.5 is not a whole number" },
        { "[alias x]\nmodel = y\ndry_base = 0\n", ":3: dry_base: 0 is not a number from 1 to 100" },
        { "[alias x]\nmodel = y\nadaptive_decay = 1\n",
          ":3: adaptive_decay: 1 is not a number from 0 to 0.99" },
        { "[hearth]\njust words\n", ":2: this is neither" },
        { "source = carrier\n", ":1: source: carrier is none of uring, pread, mmap" },
        { "source = read\n", ":1: source: read is none of uring, pread, mmap" },
        { "http_fields = strict, lenient\n", "is none of strict, lenient" },
        { "http_reasoning = content\n",
          ":1: http_reasoning: content is none of reasoning_content, reasoning, both" },
        { "[alias x]\nctx = 5\n", "alias x names no model" },
        { "[alias org/x:Q4]\nctx = 5\n", "alias org/x:Q4 names no model" },
        { "[alias ./x]\nmodel = y\n", "./x is no name for an alias" },
        { "[alias x]\nmodel = y\ntemplate = /nowhere/t.jinja\n",
          ":3: template: template /nowhere" },
        { "[alias x]\nmodel = y\ntemplate = /dev/null\n", "is no text of 1 to" },
        { "[alias x]\nmodel = y\nlora = a.gguf:1e9\n", ":3: lora: lora a.gguf:1e9: the factor" },
        { "[alias x]\nmodel = y\ntop_p = 7\n", ":3: top_p: 7 is not a number from 0 to 1" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct config c;
        struct err err = { 0 };
        write_file(rows[i].text);
        config_init(&c);
        assert_int_equal(config_read(&c, path, &err), -1);
        unlink(path);
        assert_int_equal(err.code, ERR_USAGE);
        if (!strstr(err.text, rows[i].want)) {
            fail_msg("%s is not in: %s", rows[i].want, err.text);
        }
        config_clear(&c);
    }
}

static void config_flags_go_before_the_file(void **state)
{
    (void)state;
    struct config c;
    struct err err = { 0 };
    write_file("models = /file\nthreads = 3\nctx = 100\n");
    char *argv[] = { ARG("hearth-broker"), ARG("--models"), ARG("/flag"),
                     ARG("--models=/two"), ARG("--config"), path,
                     ARG("--threads"),     ARG("9"),        ARG("--run"),
                     ARG("/run/x") };
    assert_ok(config_load(&c, 10, argv, &err), err);
    assert_int_equal(c.n_dirs, 2);
    assert_string_equal(c.dirs[0], "/flag");
    assert_int_equal(c.threads, 9);
    assert_int_equal(c.ctx, 100);
    assert_true(c.ram_budget > 0);
    config_clear(&c);
    char *wrong[] = { ARG("hearth-broker"), ARG("--config"), path, ARG("--modles"), ARG("/x") };
    assert_int_equal(config_load(&c, 5, wrong, &err), -1);
    assert_int_equal(err.code, ERR_USAGE);
    assert_non_null(strstr(err.text, "--modles"));
    char *missing[] = { ARG("hearth-broker"), ARG("--config"), ARG("/nowhere/hearth.conf") };
    assert_int_equal(config_load(&c, 3, missing, &err), -1);
    assert_int_equal(err.code, ERR_USAGE);
    unlink(path);
}

static void config_sizes(void **state)
{
    (void)state;
    struct err err;
    uint64_t bytes;
    assert_int_equal(config_size("24G", &bytes, &err), 0);
    assert_true(bytes == 24ull << 30);
    assert_int_equal(config_size("512MiB", &bytes, &err), 0);
    assert_true(bytes == 512ull << 20);
    assert_int_equal(config_size("4096", &bytes, &err), 0);
    assert_true(bytes == 4096);
    assert_int_equal(config_size("", &bytes, &err), -1);
    assert_int_equal(config_size("-1", &bytes, &err), -1);
    assert_int_equal(config_size("nan", &bytes, &err), -1);
    assert_int_equal(config_size("1Gx", &bytes, &err), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(config_reads_keys_and_aliases),
        cmocka_unit_test(config_names_the_line_of_a_mistake),
        cmocka_unit_test(config_flags_go_before_the_file),
        cmocka_unit_test(config_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
