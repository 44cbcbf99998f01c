#include "clients/options.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/size.h"

#define HELP_COLUMN 30 /* where the explanations begin */

_Noreturn void options_fail(const struct program *program, const char *format, ...)
{
    va_list args;
    fprintf(stderr, "hearth %s: ", program->verb);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "; hearth %s --help tells more\n", program->verb);
    exit(2);
}

/* ---- what the table tells ---- */

static void print_head(const struct option *o, char *out, size_t size)
{
    char letter[8] = "    ";
    if (o->letter) {
        snprintf(letter, sizeof letter, "-%c, ", o->letter);
    }
    if (o->name) {
        snprintf(out, size, "%s--%s%s%s", letter, o->name, o->value ? " " : "",
                 o->value ? o->value : "");
    } else {
        snprintf(out, size, "-%c%s%s", o->letter, o->value ? " " : "", o->value ? o->value : "");
    }
}

static const struct option common[] = {
    { "help", 'h', OPTION_FLAG, NULL, NULL, "this text", NULL },
    { "version", 'V', OPTION_FLAG, NULL, NULL, "the version", NULL },
    { 0 },
};

static void print_options(const struct option *table)
{
    for (const struct option *o = table; o->kind != OPTION_END; o++) {
        if (o->kind == OPTION_GROUP) {
            printf("\n%s:\n", o->help);
            continue;
        }
        char head[128];
        print_head(o, head, sizeof head);
        printf("  %-*s %s%s\n", HELP_COLUMN, head, o->help,
               o->kind == OPTION_STRINGS ? " (repeatable)" : "");
    }
}

static void print_help(const struct program *program, const struct option *table)
{
    printf("usage: hearth %s %s\n\n%s\n\nOptions:\n", program->verb, program->synopsis,
           program->purpose);
    print_options(table);
    print_options(common);
    if (program->text) {
        printf("\n%s\n", program->text);
    }
}

/* roff takes a leading dot or quote for a command, and backslashes and dashes for itself. */
static void print_roff(const char *text)
{
    bool line_start = true;
    for (; *text; text++) {
        if (line_start && (*text == '.' || *text == '\'')) {
            fputs("\\&", stdout);
        }
        if (*text == '\\' || *text == '-') {
            putchar('\\');
        }
        putchar(*text);
        line_start = *text == '\n';
    }
}

static void print_roff_options(const struct option *table)
{
    for (const struct option *o = table; o->kind != OPTION_END; o++) {
        if (o->kind == OPTION_GROUP) {
            printf(".SS %s\n", o->help);
            continue;
        }
        char head[128];
        print_head(o, head, sizeof head);
        printf(".TP\n.B ");
        print_roff(head + strspn(head, " "));
        printf("\n");
        print_roff(o->help);
        printf("\n");
    }
}

static void print_man(const struct program *program, const struct option *table)
{
    printf(".TH HEARTH-%s 1 \"\" \"hearth %s\"\n.SH NAME\nhearth\\-%s \\- ", program->verb,
           HEARTH_VERSION, program->verb);
    print_roff(program->purpose);
    printf("\n.SH SYNOPSIS\n.B hearth %s\n", program->verb);
    print_roff(program->synopsis);
    printf("\n.SH OPTIONS\n");
    print_roff_options(table);
    print_roff_options(common);
    if (program->text) {
        printf(".SH DESCRIPTION\n");
        print_roff(program->text);
        printf("\n");
    }
    printf(".SH EXIT STATUS\n0 ok, 1 failed, 2 usage, 3 broker unreachable, 4 model not found, 5 "
           "does not fit, 6 "
           "busy or timed out, 7 bad model file, 8 refused, 130 interrupted.\n");
}

static void print_words(const struct option *table)
{
    for (const struct option *o = table; o->kind != OPTION_END; o++) {
        if (o->name && o->kind != OPTION_GROUP) {
            printf("--%s\n", o->name);
        }
    }
    printf("--help\n--version\n");
}

/* ---- parsing ---- */

static void take_value(const struct program *program, const struct option *o, const char *shown,
                       const char *text)
{
    char *end = NULL;
    errno = 0;
    switch (o->kind) {
    case OPTION_STRING:
        *(const char **)o->target = text;
        break;
    case OPTION_STRINGS: {
        struct option_list *list = o->target;
        if (list->n == OPTION_LIST_MAX) {
            options_fail(program, "%s came more than %d times", shown, OPTION_LIST_MAX);
        }
        list->items[list->n++] = text;
        break;
    }
    case OPTION_INT: {
        long long value = strtoll(text, &end, 10);
        if (end == text || *end || errno) {
            options_fail(program, "%s wants a whole number, not '%s'", shown, text);
        }
        *(int64_t *)o->target = value;
        break;
    }
    case OPTION_FLOAT: {
        double value = strtod(text, &end);
        if (end == text || *end || errno || !isfinite(value)) {
            options_fail(program, "%s wants a number, not '%s'", shown, text);
        }
        *(double *)o->target = value;
        break;
    }
    case OPTION_SIZE:
        if (!size_parse(text, o->target)) {
            options_fail(program, "%s wants a size like 512M or 4G, not '%s'", shown, text);
        }
        break;
    case OPTION_END:
    case OPTION_FLAG:
    case OPTION_GROUP:
        break;
    }
    if (o->given) {
        *o->given = true;
    }
}

static const struct option *find_long(const struct option *table, const char *name, size_t len)
{
    for (const struct option *o = table; o->kind != OPTION_END; o++) {
        if (o->name && o->kind != OPTION_GROUP && strlen(o->name) == len &&
            memcmp(o->name, name, len) == 0) {
            return o;
        }
    }
    return NULL;
}

static const struct option *find_letter(const struct option *table, char letter)
{
    for (const struct option *o = table; o->kind != OPTION_END; o++) {
        if (o->letter == letter && o->kind != OPTION_GROUP) {
            return o;
        }
    }
    return NULL;
}

static void answer_common(const struct program *program, const struct option *table,
                          const char *word)
{
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        print_help(program, table);
    } else if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) {
        printf("hearth %s\n", HEARTH_VERSION);
    } else if (strcmp(word, "--man") == 0) {
        print_man(program, table);
    } else if (strcmp(word, "--words") == 0) {
        print_words(table);
    } else {
        return;
    }
    exit(0);
}

int options_parse(const struct program *program, const struct option *table, int argc, char **argv)
{
    int n = 0;
    bool ended = false;
    for (int i = 1; i < argc; i++) {
        char *word = argv[i];
        if (ended || word[0] != '-' || word[1] == 0) {
            argv[n++] = word;
            continue;
        }
        if (strcmp(word, "--") == 0) {
            ended = true;
            continue;
        }
        const struct option *o;
        const char *value = NULL;
        if (word[1] == '-') {
            size_t len = strcspn(word + 2, "=");
            o = find_long(table, word + 2, len);
            value = word[2 + len] == '=' ? word + 3 + len : NULL;
        } else {
            o = find_letter(table, word[1]);
            value = word[2] ? word + 2 : NULL;
        }
        if (!o) {
            answer_common(program, table, word);
            options_fail(program, "there is no option %s", word);
        }
        if (o->kind == OPTION_FLAG) {
            if (value) {
                options_fail(program, "%s takes no value", word);
            }
            *(bool *)o->target = true;
            if (o->given) {
                *o->given = true;
            }
            continue;
        }
        if (!value) {
            if (i + 1 == argc) {
                options_fail(program, "%s wants a value (%s)", word, o->value);
            }
            value = argv[++i];
        }
        take_value(program, o, word, value);
    }
    return n;
}
