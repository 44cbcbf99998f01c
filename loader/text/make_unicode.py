#!/usr/bin/env python3
"""Writes unicode_data.c from three tables: categories.tsv, lowercase.tsv, nfd-base.tsv (see README.md).

usage: make_unicode.py DIR > unicode_data.c
"""
import sys

CATEGORIES = ("Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So "
              "Zs Zl Zp Cc Cf Cs Co").split()
CONTROL_SPACE = len(CATEGORIES)  # Cc that is white space: TAB, LF, VT, FF, CR, NEL
BLOCK = 128
LIMIT = 0x110000


def rows(directory, name):
    for line in open(f"{directory}/{name}.tsv", encoding="ascii"):
        if not line.startswith("#") and line.strip():
            yield line.split()


def category_table(directory):
    table = [0] * LIMIT
    for first, last, major, *minor in rows(directory, "categories"):
        value = CATEGORIES.index(minor[0]) if major != "-" else 0
        assert major == "-" or minor[0][0] == major
        for code in range(int(first, 16), int(last, 16) + 1):
            table[code] = value
    for code in (9, 10, 11, 12, 13, 0x85):
        assert CATEGORIES[table[code]] == "Cc"
        table[code] = CONTROL_SPACE
    return table


def numbers(values):
    lines, line = [], "    "
    for value in values:
        text = f"{value},"
        if len(line) + len(text) > 99:
            lines.append(line)
            line = "    "
        line += text
    return "\n".join(lines + [line])


def lower_ranges(directory):
    """Runs of (first, last, step, delta)."""
    pairs = sorted((int(a, 16), int(b, 16)) for a, b in rows(directory, "lowercase"))
    runs = []
    for code, lower in pairs:
        delta = lower - code
        if runs and runs[-1][3] == delta:
            first, last, step, _ = runs[-1]
            gap = code - last
            if gap in (1, 2) and (first == last or gap == step):
                runs[-1] = (first, code, gap, delta)
                continue
        runs.append((code, code, 1, delta))
    return runs


def main():
    directory = sys.argv[1]
    table = category_table(directory)
    blocks, index = [], []
    seen = {}
    for start in range(0, LIMIT, BLOCK):
        block = tuple(table[start:start + BLOCK])
        if block not in seen:
            seen[block] = len(blocks)
            blocks.append(block)
        index.append(seen[block])
    assert len(blocks) <= 256
    print("/* Written by make_unicode.py; change that, not this. */")
    print('#include "loader/text/unicode_data.h"\n')
    print("/* clang-format off */")
    print(f"const uint8_t unicode_block_of[{len(index)}] = {{\n{numbers(index)}\n}};\n")
    print(f"const char unicode_blocks[{len(blocks)}][{BLOCK} + 1] = {{")
    for block in blocks:
        print(' "' + "".join(chr(ord("A") + value) for value in block).replace("\\", "\\\\") + '",')
    print("};\n")
    lower = [f"{{{a},{b},{s},{d}}}" for a, b, s, d in lower_ranges(directory)]
    print(f"const struct unicode_lower unicode_lower[] = {{\n{numbers(lower)}\n}};")
    print("const size_t unicode_n_lower = sizeof unicode_lower / sizeof unicode_lower[0];\n")
    nfd = []
    for first, last, base in rows(directory, "nfd-base"):
        first, last, base = int(first, 16), int(last, 16), int(base, 16)
        if 0xac00 <= first <= 0xd7a3:
            assert last <= 0xd7a3 and base == 0x1100 + (first - 0xac00) // 588 \
                and base == 0x1100 + (last - 0xac00) // 588
            continue  # Hangul syllables by formula
        nfd.append(f"{{{first},{last},{base}}}")
    print(f"const struct unicode_base unicode_base[] = {{\n{numbers(nfd)}\n}};")
    print("const size_t unicode_n_base = sizeof unicode_base / sizeof unicode_base[0];")


main()
