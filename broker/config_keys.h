/* Every key of the configuration: the tables, and the sections that they fill. For config.c. */
#pragma once

#include "broker/config.h"

/* One line of the file: [hearth], [alias NAME] or [user NAME]; an empty section is [hearth]. Errors: ERR_USAGE with what is
 * wrong, ERR_NO_MEMORY. */
int config_set(struct config *c, const char *section, const char *key, const char *value,
               struct err *err);

/* The key that a flag of `hearth serve` stands for: "--ram-budget" is ram_budget. NULL when there is no such flag. */
const char *config_key_of_flag(const char *flag, size_t len);
