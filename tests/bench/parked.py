"""A conversation picked up from its file after a restart of everything, beside its prefill; alternating; medians and spread as a
Markdown table.

    python3 tests/bench/parked.py --bin build/bin --model 1b.gguf [--tokens 1500] [--rounds 5]

Each round: a new prompt to a model that is resident (prefill), the service stopped (which writes the file) and begun again, the model
loaded, the same prompt (picked up; the tokens must be the same), then the end. Times are those of the whole client program up to its first token."""
import argparse
import glob
import json
import os
import shutil
import statistics
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))

N_ANSWER = 4


def spread(values):
    return "%.3f (%.3f to %.3f)" % (statistics.median(values), min(values), max(values))


def first_token(house, model, prompt):
    """Seconds to the first token, the tokens, usage."""
    begin = time.monotonic()
    asked = house.popen("complete", "--json", "--temp", 0, "-n", N_ANSWER, "--ignore-eos", "-m", model, prompt)
    line = asked.stdout.readline()
    seconds = time.monotonic() - begin
    lines = [json.loads(text) for text in [line] + asked.communicate()[0].splitlines()]
    assert asked.returncode == 0
    return seconds, [t["id"] for t in lines[:-1]], lines[-1]["usage"]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bin", required=True)
    ap.add_argument("--model", required=True)
    ap.add_argument("--tokens", type=int, default=1500, help="of the prompt, about")
    ap.add_argument("--rounds", type=int, default=5)
    a = ap.parse_args()
    os.environ["HEARTH_BIN"] = a.bin
    from house import House
    path, name = os.path.abspath(a.model), os.path.basename(a.model)[:-5]
    cold, stop, warm, size = [], [], [], 0
    with House(start=False) as house:
        one = len(json.loads(house.hearth("tokenize", "--file", path, input=b" 12345" * 100).stdout)) / 100
    for turn in range(a.rounds):
        state = tempfile.mkdtemp(prefix="hearth-state-")
        try:
            with House("--state-dir", state, models=os.path.dirname(path)) as house:
                prompt = " ".join("%05d" % (turn * 10007 % 90000 + i) for i in range(int(a.tokens / one)))
                house.hearth("load", name)
                seconds, tokens, usage = first_token(house, name, prompt)
                assert usage["cached_tokens"] == 0, usage
                cold.append(seconds)
                begin = time.monotonic()
                assert house.stop() == 0
                stop.append(time.monotonic() - begin)
                size = sum(os.path.getsize(f) for f in glob.glob(os.path.join(state, "*.kv")))
                house.start()
                house.hearth("load", name)
                seconds, again, usage = first_token(house, name, prompt)
                assert again == tokens and usage["cached_tokens"] == usage["prompt_tokens"] - 1, usage
                warm.append(seconds)
        finally:
            shutil.rmtree(state)
    print("%s, %d tokens of prompt, a file of %.1f MB, %d rounds\n" % (name, usage["prompt_tokens"], size / 1e6, a.rounds))
    print("| what | seconds: median (least to most) |\n| --- | --- |")
    print("| first token, prefill | %s |" % spread(cold))
    print("| the service stops, the conversation is written | %s |" % spread(stop))
    print("| first token, picked up after a restart of everything | %s |" % spread(warm))


if __name__ == "__main__":
    main()
