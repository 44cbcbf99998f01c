/* Names to models: aliases, files, split files, paths, and names that are nearly right. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/catalog.h"
#include "tests/test.h"

static char dir[64];
static struct config config;
static struct catalog catalog;

static void touch(const char *name, size_t bytes)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    close(fd);
}

static const char *const files[] = {
    "hearth-tiny.gguf",        "Llama-3-8B.Q4_K_M.gguf",   "big-00001-of-00002.gguf",
    "big-00002-of-00002.gguf", "half-00001-of-00003.gguf", "half-00002-of-00003.gguf",
    "not-a-model.txt",
};

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/hearth-catalog-XXXXXX");
    assert_non_null(mkdtemp(dir));
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        touch(files[i], 100);
    }
    config_init(&config);
    strcpy(config.dirs[0], dir);
    config.n_dirs = 1;
    config.aliases = calloc(CONFIG_ALIASES_MAX, sizeof *config.aliases);
    strcpy(config.aliases[0].name, "quick");
    strcpy(config.aliases[0].model, "hearth-tiny");
    strcpy(config.aliases[1].name, "lost");
    strcpy(config.aliases[1].model, "hearth-tin");
    config.n_aliases = 2;
    catalog_scan(&catalog, &config);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        unlink(path);
    }
    rmdir(dir);
    catalog_clear(&catalog);
    config_clear(&config);
    return 0;
}

static void catalog_lists_split_files_as_one(void **state)
{
    (void)state;
    struct catalog_pick pick;
    struct err err = { 0 };
    assert_int_equal(catalog.n_files, 4);
    assert_ok(catalog_find(&catalog, &config, "big", &pick, &err), err);
    assert_int_equal(pick.file.n_parts, 2);
    assert_true(pick.file.size_bytes == 200);
    static const char *const parts[] = { "big-00001-of-00002", "big-00002-of-00002.gguf" };
    for (int i = 0; i < 2; i++) {
        assert_ok(catalog_find(&catalog, &config, parts[i], &pick, &err), err);
        assert_string_equal(pick.file.name, "big");
    }
    assert_int_equal(catalog_find(&catalog, &config, "big-00001-of-00003", &pick, &err), -1);
    assert_int_equal(catalog_find(&catalog, &config, "half", &pick, &err), -1);
    assert_non_null(strstr(err.text, "part 3 of 3 is missing"));
}

static void catalog_finds_names_aliases_and_paths(void **state)
{
    (void)state;
    struct catalog_pick pick;
    struct err err = { 0 };
    char path[128];
    assert_ok(catalog_find(&catalog, &config, "hearth-tiny", &pick, &err), err);
    assert_null(pick.alias);
    assert_ok(catalog_find(&catalog, &config, "hearth-tiny.gguf", &pick, &err), err);
    assert_ok(catalog_find(&catalog, &config, "quick", &pick, &err), err);
    assert_ptr_equal(pick.alias, &config.aliases[0]);
    assert_string_equal(pick.file.name, "hearth-tiny");
    snprintf(path, sizeof path, "%s/hearth-tiny.gguf", dir);
    assert_ok(catalog_find(&catalog, &config, path, &pick, &err), err);
    assert_string_equal(pick.file.name, "hearth-tiny"); /* the same file is the same model */
    assert_int_equal(catalog_find(&catalog, &config, "/nowhere/x.gguf", &pick, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void catalog_suggests_near_names(void **state)
{
    (void)state;
    struct catalog_pick pick;
    struct err err = { 0 };
    static const struct {
        const char *asked, *want;
    } rows[] = {
        { "hearth-tyni", "did you mean hearth-tiny" },
        { "HEARTH-TINY", "did you mean hearth-tiny" },
        { "llama", "did you mean Llama-3-8B.Q4_K_M" },
        { "lost", "alias lost names hearth-tin, which is not there; did you mean hearth-tiny" },
        { "completely-else", "hearth models lists" },
        { "../../nowhere/at-all", "model file" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(catalog_find(&catalog, &config, rows[i].asked, &pick, &err), -1);
        assert_int_equal(err.code, ERR_NOT_FOUND);
        if (!strstr(err.text, rows[i].want)) {
            fail_msg("%s is not in: %s", rows[i].want, err.text);
        }
    }
    assert_int_equal(catalog_distance("kitten", "Sitting"), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(catalog_lists_split_files_as_one),
        cmocka_unit_test(catalog_finds_names_aliases_and_paths),
        cmocka_unit_test(catalog_suggests_near_names),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
