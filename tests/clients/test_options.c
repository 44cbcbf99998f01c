/* Options by table: what is taken, what is refused with exit code 2, what --help, --man and --words print. */
#include "proto/size.h"
#include "tests/test.h"

#include <sys/wait.h>
#include <unistd.h>

#include "clients/options.h"

static bool flag, given;
static const char *name;
static struct option_list stops;
static int64_t number;
static double ratio;
static uint64_t size;

static const struct program program = { "try", "[OPTIONS] WORD", "Tries things.", NULL };
static const struct option table[] = {
    { "flag", 'f', OPTION_FLAG, &flag, NULL, "a flag", NULL },
    { "name", 'm', OPTION_STRING, &name, "NAME", "a name", NULL },
    { NULL, 0, OPTION_GROUP, NULL, NULL, "Numbers", NULL },
    { "number", 'n', OPTION_INT, &number, "N", "a number", &given },
    { "ratio", 0, OPTION_FLOAT, &ratio, "R", "a ratio", NULL },
    { "size", 0, OPTION_SIZE, &size, "SIZE", "a size", NULL },
    { "stop", 0, OPTION_STRINGS, &stops, "TEXT", "a text", NULL },
    { 0 },
};

static int parse(int argc, char **argv)
{
    flag = given = false;
    name = NULL;
    stops.n = 0;
    return options_parse(&program, table, argc, argv);
}

#define ARGV(...)                                                                                  \
    char *argv[] = { (char[]){ "try" }, __VA_ARGS__, NULL };                                       \
    int argc = (int)(sizeof argv / sizeof argv[0]) - 1
#define S(text)                                                                                    \
    (char[])                                                                                       \
    {                                                                                              \
        text                                                                                       \
    }

static void options_stand_anywhere(void **state)
{
    (void)state;
    ARGV(S("one"), S("-f"), S("--name=x y"), S("two"), S("-n"), S("-5"), S("--ratio"), S("-0.5"),
         S("--size"), S("1.5K"), S("--stop"), S("a"), S("--stop=b"), S("--"), S("-f"));
    assert_int_equal(parse(argc, argv), 3);
    assert_string_equal(argv[0], "one");
    assert_string_equal(argv[1], "two");
    assert_string_equal(argv[2], "-f");
    assert_true(flag && given);
    assert_string_equal(name, "x y");
    assert_int_equal(number, -5);
    assert_true(ratio == -0.5);
    assert_int_equal(size, 1536);
    assert_int_equal(stops.n, 2);
    assert_string_equal(stops.items[1], "b");
}

static void a_letter_takes_its_value_with_or_without_a_space(void **state)
{
    (void)state;
    ARGV(S("-n12"), S("-m"), S("x"), S("-"));
    assert_int_equal(parse(argc, argv), 1);
    assert_int_equal(number, 12);
    assert_string_equal(name, "x");
    assert_string_equal(argv[0], "-");
}

static void sizes_have_units(void **state)
{
    (void)state;
    uint64_t bytes;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = { { "0", 0 },           { "17", 17 },           { "4K", 4096 }, { "2M", 2u << 20 },
                 { "1GiB", 1u << 30 }, { "1.5g", 3ull << 29 }, { "10B", 10 } };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(size_parse(good[i].text, &bytes));
        assert_int_equal(bytes, good[i].bytes);
    }
    static const char *const bad[] = { "", "x", "-1", "4Q", "1e400", "nan", "5GG", "99999999999T" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(size_parse(bad[i], &bytes));
    }
}

/* The exit code of a parse in a child, and what it printed. */
static int exit_of(int argc, char **argv, int stream, char *out, size_t out_size)
{
    int pipes[2], status;
    assert_int_equal(pipe(pipes), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(pipes[1], stream);
        parse(argc, argv);
        _exit(77);
    }
    close(pipes[1]);
    size_t n = 0;
    ssize_t got;
    while (n < out_size - 1 && (got = read(pipes[0], out + n, out_size - 1 - n)) > 0) {
        n += (size_t)got;
    }
    out[n] = 0;
    close(pipes[0]);
    waitpid(child, &status, 0);
    return WEXITSTATUS(status);
}

static void wrong_ones_end_with_2_and_one_line(void **state)
{
    (void)state;
    static const char *const wrong[] = { "--nonsense",    "-x",
                                         "--number=five", "--ratio=",
                                         "--size=huge",   "--flag=1",
                                         "--name",        "--number=99999999999999999999" };
    char out[4096];
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char word[64];
        strcpy(word, wrong[i]);
        ARGV(word);
        assert_int_equal(exit_of(argc, argv, STDERR_FILENO, out, sizeof out), 2);
        assert_true(strncmp(out, "hearth try: ", 12) == 0);
        assert_ptr_equal(strchr(out, '\n'), out + strlen(out) - 1);
    }
}

static void it_tells_about_itself(void **state)
{
    (void)state;
    char out[8192];
    {
        ARGV(S("--help"));
        assert_int_equal(exit_of(argc, argv, STDOUT_FILENO, out, sizeof out), 0);
        assert_non_null(strstr(out, "usage: hearth try [OPTIONS] WORD"));
        assert_non_null(strstr(out, "--number N"));
        assert_non_null(strstr(out, "\nNumbers:\n"));
    }
    {
        ARGV(S("--man"));
        assert_int_equal(exit_of(argc, argv, STDOUT_FILENO, out, sizeof out), 0);
        assert_true(strncmp(out, ".TH HEARTH-try 1", 16) == 0);
    }
    {
        ARGV(S("--words"));
        assert_int_equal(exit_of(argc, argv, STDOUT_FILENO, out, sizeof out), 0);
        assert_non_null(strstr(out, "--stop\n"));
        assert_null(strstr(out, "Numbers"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_stand_anywhere),
        cmocka_unit_test(a_letter_takes_its_value_with_or_without_a_space),
        cmocka_unit_test(sizes_have_units),
        cmocka_unit_test(wrong_ones_end_with_2_and_one_line),
        cmocka_unit_test(it_tells_about_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
