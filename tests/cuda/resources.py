#!/usr/bin/env python3
"""What each kernel takes of a multiprocessor, from what ptxas says while it compiles: resources.py LOG...

    cmake -B build -DHEARTH_CUDA_ARCHITECTURES="120;90;89"; ninja -C build cuda_resources

Prints a table for tests/bench/RESULTS.md: registers, stack, spills and static shared memory of each kernel over its instances. Exit
status 1 when a decode kernel spills on the target card; on others it is only said.

resources.py --tiles CUBIN counts instructions from one tile's tensor instruction to the next in few_kernel: a file that names
instances of product.cuh's few_kernel, compiled with nvcc -cubin and the flags of the build. Needs readelf.
"""

import re
import statistics
import struct
import subprocess
import sys

DECODE = {"few_kernel", "split_few_kernel", "float_kernel", "quantise_kernel", "tiles_kernel", "attention_kernel", "merge_kernel",
          "store_kernel", "norm_kernel", "act_kernel", "add_kernel", "rope_kernel", "route_kernel",
          "sum_kernel", "sort_kernel", "delta_kernel", "embed_kernel", "embed_float_kernel",
          "sample_kernel"}
TARGET = "sm_120"
ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)' for '(?P<arch>sm_\w+)'"
                   r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes"
                   r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)", re.DOTALL)


def plain(mangled):
    """The kernel, and what tells its instances apart: 'few_kernel', the type's number, other numbers."""
    kernel = re.match(r"_Z(?:N\d+_GLOBAL__N_\w+?)?(\d+)", mangled)
    at = kernel.end()
    name = mangled[at:at + int(kernel[1])]
    dtype = re.search(r"IL5dtype(\d+)E", mangled)
    return name, int(dtype[1]) if dtype else None, tuple(int(n) for n in re.findall(r"L[jib](\d+)E", mangled))


IMMA = 0x237  # low 12 bits of an instruction of 16 bytes
TILE_LANE = 16  # weights of a tile that a lane holds


def tiles(path):
    with open(path, "rb") as cubin:
        data = cubin.read()
    sections = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True).stdout
    for name, off, size in re.findall(r"\] \.text\.(_Z10few_kernel\S+)\s+PROGBITS\s+\S+\s+(\w+)\s+(\w+)", sections):
        words = [struct.unpack_from("<Q", data, int(off, 16) + i)[0] & 0xfff for i in range(0, int(size, 16), 16)]
        at = [i for i, word in enumerate(words) if word == IMMA]
        gaps = [b - a for a, b in zip(at, at[1:]) if b - a > 4]  # two of one tile stand side by side
        n = statistics.median(gaps) if gaps else 0
        print(f"{plain(name)}: {n:g} instructions a tile, {n / TILE_LANE:.1f} a weight and lane")


def main():
    if sys.argv[1:2] == ["--tiles"]:
        tiles(sys.argv[2])
        return 0
    table, bad = {}, []
    for path in sys.argv[1:]:
        with open(path, errors="replace") as log:
            for found in ENTRY.finditer(log.read()):
                name, dtype, rest = plain(found["name"])
                shared = re.search(r"(\d+) bytes smem", found["rest"])
                row = {"registers": int(found["registers"]), "stack": int(found["stack"]),
                       "spilled": int(found["stores"]) + int(found["loads"]), "shared": int(shared[1]) if shared else 0}
                table.setdefault((found["arch"], name, rest), {})[dtype] = row
    print("| architecture | kernel | instances | registers | stack bytes | spilled bytes | static shared bytes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (arch, name, rest), instances in sorted(table.items()):
        def span(field):
            values = [row[field] for row in instances.values()]
            return str(values[0]) if min(values) == max(values) else f"{min(values)}-{max(values)}"
        shown = " ".join([name, *map(str, rest)])
        print(f"| {arch} | {shown} | {len(instances)} | {span('registers')} | {span('stack')} | {span('spilled')} | {span('shared')} |")
        for dtype, row in instances.items():
            if name in DECODE and row["spilled"] > 0:
                bad.append(f"{arch}: {shown}, type {dtype}: {row['spilled']} bytes spilled")
    for line in bad:
        print(line, file=sys.stderr)
    return 1 if any(line.startswith(TARGET) for line in bad) or not table else 0


if __name__ == "__main__":
    sys.exit(main())
