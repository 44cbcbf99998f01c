#include "proto/size.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

bool size_parse(const char *text, uint64_t *bytes)
{
    static const char units[] = "kmgt";
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (!isdigit((unsigned char)text[0]) || errno) { /* no sign, blank, nan or inf */
        return false;
    }
    const char *unit = *end ? strchr(units, tolower((unsigned char)*end)) : NULL;
    if (unit) {
        value *= (double)(1ull << (10 * (unit - units + 1)));
        end++;
    }
    if (strcasecmp(end, "B") == 0 || (unit && strcasecmp(end, "iB") == 0)) {
        end += strlen(end);
    }
    if (*end || value >= 0x1p62) {
        return false;
    }
    *bytes = (uint64_t)value;
    return true;
}

const char *size_print(uint64_t bytes, char text[32])
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1024 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1024;
        unit++;
    }
    snprintf(text, 32, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return text;
}
