/* The table of formats, and which template texts give them away. A new family that writes calls in a known
 * way is one row here. Source: how each family's own template renders past calls. */
#include <string.h>

#include "proto/parse/answer.h"

#define THINK                                                                                      \
    {                                                                                              \
        {                                                                                          \
            "<think>", "</think>"                                                                  \
        }                                                                                          \
    }

static const struct parse_format formats[] = {
    { .name = "hermes",
      .reasoning = THINK,
      .parse = parse_blocks,
      .open = "<tool_call>",
      .close = "</tool_call>" },
    { .name = "qwen3-coder",
      .reasoning = THINK,
      .parse = parse_xml,
      .open = "<tool_call>",
      .close = "</tool_call>",
      .name_open = "<function=",
      .name_close = ">",
      .args_close = "</function>",
      .key_open = "<parameter=",
      .key_close = ">",
      .value_close = "</parameter>" },
    { .name = "llama-3", .parse = parse_whole_json, .open = "<|python_tag|>" },
    { .name = "mistral-nemo", .parse = parse_blocks, .open = "[TOOL_CALLS]" },
    { .name = "mistral-args",
      .reasoning = { { "[THINK]", "[/THINK]" } },
      .parse = parse_named,
      .open = "[TOOL_CALLS]",
      .args_open = "[ARGS]" },
    { .name = "mistral-call-id",
      .parse = parse_named,
      .open = "[TOOL_CALLS]",
      .id_open = "[CALL_ID]",
      .args_open = "[ARGS]" },
    { .name = "deepseek-r1",
      .reasoning = THINK,
      .wrapping = { "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool_calls_begin｜>",
                    "<｜tool calls begin｜>", "<｜tool\\_calls\\_begin｜>", "<｜tool▁calls｜>" },
      .parse = parse_named,
      .open = "<｜tool▁call▁begin｜>",
      .close = "<｜tool▁call▁end｜>",
      .name_open = "function<｜tool▁sep｜>",
      .args_open = "```json",
      .args_close = "```" },
    { .name = "deepseek-v3.1",
      .reasoning = THINK,
      .wrapping = { "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>" },
      .parse = parse_named,
      .open = "<｜tool▁call▁begin｜>",
      .close = "<｜tool▁call▁end｜>",
      .args_open = "<｜tool▁sep｜>" },
    { .name = "deepseek-v3.2",
      .reasoning = THINK,
      .parse = parse_xml,
      .open = "<｜DSML｜function_calls>",
      .close = "</｜DSML｜function_calls>",
      .name_open = "<｜DSML｜invoke name=\"",
      .name_close = ">",
      .args_close = "</｜DSML｜invoke>",
      .key_open = "<｜DSML｜parameter name=\"",
      .key_close = ">",
      .value_close = "</｜DSML｜parameter>" },
    { .name = "deepseek-v4",
      .reasoning = THINK,
      .parse = parse_xml,
      .open = "<｜DSML｜tool_calls>",
      .close = "</｜DSML｜tool_calls>",
      .name_open = "<｜DSML｜invoke name=\"",
      .name_close = ">",
      .args_close = "</｜DSML｜invoke>",
      .key_open = "<｜DSML｜parameter name=\"",
      .key_close = ">",
      .value_close = "</｜DSML｜parameter>" },
    { .name = "glm-4.5",
      .reasoning = THINK,
      .parse = parse_xml,
      .open = "<tool_call>",
      .close = "</tool_call>",
      .key_open = "<arg_key>",
      .key_close = "</arg_key>",
      .value_open = "<arg_value>",
      .value_close = "</arg_value>" },
    { .name = "glm-4.7",
      .reasoning = THINK,
      .parse = parse_xml,
      .open = "<tool_call>",
      .close = "</tool_call>",
      .key_open = "<arg_key>",
      .key_close = "</arg_key>",
      .value_open = "<arg_value>",
      .value_close = "</arg_value>" },
    { .name = "kimi-k2",
      .reasoning = THINK,
      .wrapping = { "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>" },
      .parse = parse_named,
      .open = "<|tool_call_begin|>",
      .close = "<|tool_call_end|>",
      .args_open = "<|tool_call_argument_begin|>",
      .calls_end_reasoning = true },
    { .name = "command-r7b",
      .reasoning = { { "<|START_THINKING|>", "<|END_THINKING|>" } },
      .framed = true,
      .wrapping = { "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>" },
      .parse = parse_blocks,
      .open = "<|START_ACTION|>",
      .close = "<|END_ACTION|>" },
    { .name = "command-r", .framed = true, .parse = parse_command_r },
    { .name = "functionary-3.1",
      .parse = parse_named,
      .open = "<function=",
      .close = "</function>",
      .args_open = ">" },
    { .name = "functionary-3.2", .framed = true, .parse = parse_recipients },
    { .name = "firefunction-2", .parse = parse_blocks, .open = " functools" },
    { .name = "gpt-oss", .framed = true, .parse = parse_harmony },
    { .name = "gemma-4",
      .reasoning = { { "<|channel>thought", "<channel|>" } },
      .parse = parse_gemma,
      .open = "<|tool_call>",
      .close = "<tool_call|>" },
    { .name = "lfm2",
      .reasoning = THINK,
      .parse = parse_python,
      .open = "<|tool_call_start|>",
      .close = "<|tool_call_end|>" },
    { .name = "apertus",
      .reasoning = { { "<|inner_prefix|>", "<|inner_suffix|>" } },
      .parse = parse_blocks,
      .open = "<|tools_prefix|>",
      .close = "<|tools_suffix|>" },
    { .name = "seed-oss",
      .reasoning = { { "<seed:think>", "</seed:think>" } },
      .parse = parse_xml,
      .open = "<seed:tool_call>",
      .close = "</seed:tool_call>",
      .name_open = "<function=",
      .name_close = ">",
      .args_close = "</function>",
      .key_open = "<parameter=",
      .key_close = ">",
      .value_close = "</parameter>" },
    { .name = "minimax-m2",
      .reasoning = THINK,
      .parse = parse_xml,
      .open = "<minimax:tool_call>",
      .close = "</minimax:tool_call>",
      .name_open = "<invoke name=\"",
      .name_close = ">",
      .args_close = "</invoke>",
      .key_open = "<parameter name=\"",
      .key_close = ">",
      .value_close = "</parameter>" },
    { .name = "granite-3",
      .reasoning = { { "<think>", "</think>" },
                     { "Here is my thought process:", "Here is my response:" } },
      .framed = true,
      .wrapping = { "<response>", "</response>" },
      .parse = parse_blocks,
      .open = "<|tool_call|>" },
    { .name = "phi-4-mini",
      .parse = parse_blocks,
      .open = "<|tool_call|>",
      .close = "<|/tool_call|>" },
    { .name = "apriel",
      .reasoning = { { "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]" } },
      .framed = true,
      .wrapping = { "[END FINAL RESPONSE]" },
      .parse = parse_blocks,
      .open = "<tool_calls>",
      .close = "</tool_calls>" },
    { .name = "gigachat-3", .parse = parse_blocks, .open = "function call<|role_sep|>" },
    { .name = "mirothinker", .reasoning = THINK, .parse = parse_mcp, .open = "<use_mcp_tool>" },
    { .name = "generic", .reasoning = THINK, .parse = parse_whole_json },
};

/* Marks of template texts, most specific first: all that a row names must be there. */
static const struct {
    const char *marks[2], *format;
} marks[] = {
    { { "[CALL_ID]" }, "mistral-call-id" },
    { { "[ARGS]" }, "mistral-args" },
    { { "<|channel|>" }, "gpt-oss" },
    { { ">>>all" }, "functionary-3.2" },
    { { "<|tool_calls_section_begin|>" }, "kimi-k2" },
    { { "<|START_TEXT|>" }, "command-r7b" },
    { { "<use_mcp_tool>" }, "mirothinker" },
    { { "<|tool_list_start|>" }, "lfm2" },
    { { "List of tools: [" }, "lfm2" },
    { { "DSML", "function_calls" }, "deepseek-v3.2" },
    { { "DSML" }, "deepseek-v4" },
    { { "<|tool_call>call:" }, "gemma-4" },
    { { "<｜tool▁sep｜>", "```json" }, "deepseek-r1" },
    { { "<｜tool▁sep｜>" }, "deepseek-v3.1" },
    { { "<|tools_prefix|>" }, "apertus" },
    { { "<|START_ACTION|>" }, "command-r7b" },
    { { " functools[" }, "firefunction-2" },
    { { "<seed:" }, "seed-oss" },
    { { "<minimax:" }, "minimax-m2" },
    { { "<arg_key>" }, "glm-4.5" },
    { { "<parameter=" }, "qwen3-coder" },
    { { "<tool_calls>" }, "apriel" },
    { { "function call<|role_sep|>" }, "gigachat-3" },
    { { "<|/tool_call|>" }, "phi-4-mini" },
    { { "<tool_call>" }, "hermes" },
    { { "<|tool_call|>" }, "granite-3" },
    { { "<function=" }, "functionary-3.1" },
    { { "Action:", "```json" }, "command-r" },
    { { "ipython" }, "llama-3" },
    { { "[TOOL_CALLS]" }, "mistral-nemo" },
};

const struct parse_format *parse_at(size_t i)
{
    return i < sizeof formats / sizeof formats[0] ? &formats[i] : NULL;
}

const char *parse_name(const struct parse_format *format)
{
    return format->name;
}

const struct parse_format *parse_find(const char *name)
{
    for (size_t i = 0; parse_at(i); i++) {
        if (strcmp(formats[i].name, name) == 0) {
            return &formats[i];
        }
    }
    return NULL;
}

const struct parse_format *parse_recognise(const char *template_text, size_t len)
{
    struct span text = { .p = template_text, .len = len };
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++) {
        const char *second = marks[i].marks[1];
        if (span_find(text, marks[i].marks[0]) && (!second || span_find(text, second))) {
            return parse_find(marks[i].format);
        }
    }
    return parse_find("generic");
}
