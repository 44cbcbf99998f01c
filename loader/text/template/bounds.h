/* Every bound of the template engine, with its unit and reason. Real templates: at most 19 KB of text,
 * 4 levels of blocks, 10,000 steps and 100 KB of output. */
#pragma once

#define TEMPLATE_SOURCE_MAX       (1u << 20) /* bytes of template text */
#define TEMPLATE_NESTING_MAX      128 /* brackets, blocks and unary signs inside each other */
#define TEMPLATE_CODE_MAX         (48u << 20) /* bytes a compiled template may take */
#define TEMPLATE_MEMORY_MAX       (40u << 20) /* bytes one render may take, */
#define TEMPLATE_MEMORY_PER_INPUT 8           /* and so many more per byte of context */
#define TEMPLATE_TEXT_MAX         (16u << 20) /* bytes of one string: what a prompt frame can carry */
#define TEMPLATE_STEPS_MAX        8000000u /* evaluated nodes and units of work, about half a second */
#define TEMPLATE_WORK_UNIT        32       /* bytes looked at or copied that count as one step */
#define TEMPLATE_DEPTH_MAX        1200 /* evaluations inside each other: at most 2 MB of stack, and */
#define TEMPLATE_MACRO_MAX        200    /* macro calls and recursive loops inside each other */
#define TEMPLATE_VALUE_DEPTH      100    /* containers inside each other, to print or compare */
#define TEMPLATE_RANGE_MAX        100000 /* items of range(), as Jinja's own sandbox */
#define TEMPLATE_PAD_MAX          4096   /* width and precision of a format, indentation */
#define TEMPLATE_ARGS_MAX         64     /* arguments of one call, entries of * and ** included */
