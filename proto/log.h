/* One log line on stderr, lower case: "info broker: model x: cold -> loading: it is wanted".
 * error = someone must act, warn = we coped, info = lifecycle, debug = per request. Nothing per token,
 * never prompt text. Any thread: a line is one write(). */
#pragma once

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* Names the process in every line ("broker") and reads HEARTH_LOG=error|warn|info|debug (default info).
 * process is borrowed for the program's life. Call once, before threads. */
void log_init(const char *process);

void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)
