#!/usr/bin/env python3
"""Writes glyph_tables.h: the classes and case mappings that strings need, from Python's copy of the
Unicode Character Database. Run by hand when Unicode changes: ./make_glyphs.py > glyph_tables.h"""
import sys
import unicodedata


def ranges(pred):
    out, start = [], None
    for cp in range(0x110001):
        ok = cp < 0x110000 and pred(chr(cp))
        if ok and start is None:
            start = cp
        if not ok and start is not None:
            out.append((start, cp - 1))
            start = None
    return out


def cases(full, skip=lambda cp: False):
    """(first, last, stride, delta) of single mappings, and the rest as sequences."""
    rows, special = [], []
    for cp in range(0x110000):
        if 0xD800 <= cp < 0xE000:
            continue
        to = full(chr(cp))
        if to == chr(cp):
            continue
        if len(to) > 1:
            special.append((cp, [ord(c) for c in to]))
            continue
        delta = ord(to) - cp
        if rows and rows[-1][3] == delta and cp - rows[-1][1] in (1, 2) and rows[-1][2] in (0, cp - rows[-1][1]):
            rows[-1][2] = cp - rows[-1][1]
            rows[-1][1] = cp
        else:
            rows.append([cp, cp, 0, delta])
    return [(a, b, s or 1, d) for a, b, s, d in rows], special


def emit(kind, name, rows, fmt):
    print(f"static const struct {kind} {name}[] = {{")
    line = "   "
    for row in rows:
        text = " " + fmt(row) + ","
        if len(line) + len(text) > 98:
            print(line)
            line = "   "
        line += text
    print(line)
    print("};\n")


def main():
    print(f"/* Made by make_glyphs.py from Unicode {unicodedata.unidata_version}; see glyph.c. */")
    print("#pragma once\n\n/* clang-format off */")
    rng = lambda r: f"{{{r[0]:#x},{r[1]:#x}}}"
    emit("range", "not_printable", ranges(lambda c: not c.isprintable()), rng)
    emit("range", "alpha", ranges(str.isalpha), rng)
    emit("range", "digit", ranges(str.isdigit), rng)
    emit("range", "upper", ranges(lambda c: c.isupper() or unicodedata.category(c) == "Lt"), rng)
    emit("range", "lower", ranges(str.islower), rng)
    for name, full in (("to_upper", str.upper), ("to_lower", str.lower), ("to_title", str.title)):
        rows, special = cases(full)
        emit("mapping", name, rows, lambda r: f"{{{r[0]:#x},{r[1]:#x},{r[2]},{r[3]}}}")
        if name == "to_lower":
            assert [cp for cp, _ in special] == [0x130]
        pad = lambda seq: ",".join(f"{c:#x}" for c in seq)
        emit("expansion", name + "_long", special, lambda r: f"{{{r[0]:#x},{len(r[1])},{{{pad(r[1])}}}}}")
    print("/* clang-format on */")


sys.exit(main())
