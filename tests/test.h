/* What every cmocka test includes: cmocka's own list of headers in the order it wants, and the paths
 * of fixtures and of the conformance directory. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The conformance directory, or NULL with one line saying why its tests are skipped. */
static inline const char *test_conformance(void)
{
    const char *dir = getenv("HEARTH_CONFORMANCE");
    if (!dir || !*dir) {
        fprintf(stderr, "skipped: HEARTH_CONFORMANCE names no directory\n");
        return NULL;
    }
    return dir;
}

/* A call that must succeed: prints the error's text when it does not. */
#define assert_ok(call, err)                                                                       \
    do {                                                                                           \
        if ((call) != 0) {                                                                         \
            fail_msg("%s: %s", #call, (err).text);                                                 \
        }                                                                                          \
    } while (0)
