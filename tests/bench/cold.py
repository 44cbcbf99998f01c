"""A cold load beside a raw read of the same file, alternating; medians, spread and ratios as a Markdown table.

    python3 tests/bench/cold.py --bin build/bin --raw build/tests/bench_rawread --model 1b.gguf [--rounds 9]

Each round: the raw read (direct, 1 MiB, 32 in flight), `hearth load` from nothing to ready, the raw read again, the first token of a
prompt of 32 tokens from nothing, then a load of what is in RAM: its worker was killed, a new one binds the segment. Reads of either
side are direct, so no cache helps; the file's pages are given up besides."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))


def drop(path):
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def spread(values):
    return "%.3f (%.3f to %.3f)" % (statistics.median(values), min(values), max(values))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bin", required=True)
    ap.add_argument("--raw", required=True)
    ap.add_argument("--model", required=True)
    ap.add_argument("--rounds", type=int, default=9)
    ap.add_argument("--rest", type=float, default=1.0, help="seconds between two measurements")
    a = ap.parse_args()
    os.environ["HEARTH_BIN"] = a.bin
    from house import House, wait_for
    path, name = os.path.abspath(a.model), os.path.basename(a.model)[:-5]
    raw, load, token, again, serving = [], [], [], [], []

    def raw_read():
        drop(path)
        raw.append(float(subprocess.run([a.raw, path], capture_output=True, text=True, check=True).stdout))

    with House(models=os.path.dirname(path)) as house:
        def state():
            return {m["name"]: m["state"] for m in house.status()["models"]}.get(name, "cold")

        def timed(*args):
            began = time.perf_counter()
            house.hearth(*args)
            return time.perf_counter() - began

        def leave():
            house.hearth("unload", name, check=False)
            wait_for("the model to leave", lambda: state() == "cold")
            drop(path)
            time.sleep(a.rest)

        def prompt_of(n_tokens):
            text, n = "", 0
            while n < n_tokens:
                text += " a"
                out = house.hearth("complete", "-m", name, "-n", "1", "--json", text).stdout
                n = json.loads(out.splitlines()[-1])["usage"]["prompt_tokens"]
            return text

        words = prompt_of(32)
        for _ in range(a.rounds):
            leave()
            raw_read()
            load.append(timed("load", name))
            serving.append(timed("complete", "-m", name, "-n", "1", "--temp", "0", words))
            worker = house.pids("worker")[0]
            house.kill("worker")
            wait_for("the worker's death to be seen", lambda: worker not in house.pids("worker") and house.pids("worker"))
            again.append(timed("load", name))
            leave()
            raw_read()
            token.append(timed("complete", "-m", name, "-n", "1", "--temp", "0", words))
    base = statistics.median(raw)
    print("| what | seconds: median (least to most) | of the raw read |\n| --- | --- | --- |")
    for what, values in (("raw read", raw), ("cold, load to ready", load), ("cold, first token", token),
                         ("warm, first token", serving), ("in RAM, load by a new worker", again)):
        print("| %s | %s | %.2f |" % (what, spread(values), statistics.median(values) / base))


main()
