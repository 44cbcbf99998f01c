/* hearth-loader --text: a model's text service. It reads the manifest of the segment it was granted (descriptor 4, read only) and
 * answers the broker's TextWork, one after another. The tightest sandbox of all: no files, no devices; a dead one is replaced
 * from the same segment. */
#pragma once

/* The process: argv[0] is "--text". Returns the exit code. */
int text_main(int argc, char **argv);
