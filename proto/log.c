#include "proto/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024 /* one line; longer ones are cut */

static const char *const names[] = { "error", "warn", "info", "debug" };
static const char *process_name = "hearth";
static enum log_level level_max = LOG_INFO;

void log_init(const char *process)
{
    process_name = process;
    const char *wanted = getenv("HEARTH_LOG");
    for (int i = 0; wanted && i <= LOG_DEBUG; i++) {
        if (strcmp(wanted, names[i]) == 0) {
            level_max = (enum log_level)i;
        }
    }
}

void log_line(enum log_level level, const char *format, ...)
{
    if (level > level_max) {
        return;
    }
    char line[LINE_MAX_BYTES];
    int len = snprintf(line, sizeof line, "%s %s: ", names[level], process_name);
    va_list args;
    va_start(args, format);
    int more = vsnprintf(line + len, sizeof line - (size_t)len, format, args);
    va_end(args);
    len += more;
    if (len > LINE_MAX_BYTES - 2) {
        len = LINE_MAX_BYTES - 2;
    }
    for (int i = 0; i < len; i++) {
        if ((unsigned char)line[i] < 0x20) {
            line[i] = '?';
        }
    }
    line[len++] = '\n';
    if (write(STDERR_FILENO, line, (size_t)len) < 0) {
        return; /* nobody left to tell */
    }
}
