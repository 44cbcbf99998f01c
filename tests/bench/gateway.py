#!/usr/bin/env python3
"""What the HTTP gateway costs beside libhearth: tokens/s of 16 streams, time to the first token, a client that leaves, idle lines.

Both sides submit 16 prompts of as many random ids in the same milliseconds and read greedily to the last token: libhearth's side is one
program (`hearth bench -m`), so that no start of 16 programs is measured and the worker puts the prompts into like steps.

    tests/bench/gateway.py --bin BIN --models DIR --model NAME [--rounds 5] [--streams 16] [--tokens 32]"""
import argparse
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))

parser = argparse.ArgumentParser()
parser.add_argument("--bin", required=True)
parser.add_argument("--models", required=True)
parser.add_argument("--model", required=True)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--streams", type=int, default=16)
parser.add_argument("--tokens", type=int, default=32)
options = parser.parse_args()
os.environ["HEARTH_BIN"] = options.bin

from house import FIXTURES, House, wait_for  # noqa: E402 (it reads HEARTH_BIN)
from web import alive, connection, port_of, post  # noqa: E402

PROMPT = "Once upon a time"
PROMPT_IDS = 5
chance = random.Random(1)


def over_http(house):
    """Tokens/s from the first byte sent to the last one read."""
    lines = [connection(house) for _ in range(options.streams)]
    bodies = [json.dumps({"model": options.model, "prompt": [chance.randrange(3, 250) for _ in range(PROMPT_IDS)],
                          "max_tokens": options.tokens, "temperature": 0, "ignore_eos": True, "stream": True}) for _ in lines]

    def one(i):
        lines[i].request("POST", "/v1/completions", bodies[i])
        assert lines[i].getresponse().read().count(b"data: ") > 1

    for c in lines:
        c.connect()
    threads = [threading.Thread(target=one, args=(i,)) for i in range(options.streams)]
    begun = time.monotonic()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return options.streams * options.tokens / (time.monotonic() - begun)


def over_libhearth(house):
    """The same from the first submission to the last commit."""
    r = json.loads(house.hearth("bench", "-m", options.model, "-p", PROMPT_IDS, "-n", options.tokens - 1, "--parallel", options.streams,
                                "-r", 1, "--json").stdout)
    after_first = options.streams * (options.tokens - 1) / r["decode_tps"] if options.tokens > 1 else 0
    return options.streams * options.tokens / (options.streams * PROMPT_IDS / r["prefill_tps"] + after_first)


def first_token_http(house, c, ids):
    begun = time.monotonic()
    c.request("POST", "/v1/completions", json.dumps({"model": "hearth-tiny", "prompt": ids, "max_tokens": 8, "stream": True, "ignore_eos": True}))
    r = c.getresponse()
    while not r.readline().startswith(b"data: "):
        pass
    ms = (time.monotonic() - begun) * 1e3
    r.read()
    return ms


def first_token_libhearth(house):
    return json.loads(house.hearth("bench", "-m", "hearth-tiny", "-p", 16, "-n", 8, "-r", 5, "--json").stdout)["ttft_ms"]


def cancel_ms(house, c):
    """From the client's leaving to no request at work, looked at over HTTP."""
    leaver = connection(house)
    leaver.request("POST", "/v1/completions", json.dumps({"model": "hearth-tiny", "prompt": PROMPT, "max_tokens": 2000, "ignore_eos": True, "stream": True}))
    leaver.getresponse().read(500)
    begun = time.monotonic()
    leaver.sock.shutdown(socket.SHUT_RDWR)
    while True:
        c.request("GET", "/metrics")
        if b'hearth_requests{state="decode"} 0' in c.getresponse().read():
            return (time.monotonic() - begun) * 1e3


def resident(pid):
    with open("/proc/%d/status" % pid) as f:
        return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1)) / 1024


def say(name, values, unit):
    print("%-44s median %.2f %s, %.2f to %.2f, %d runs" % (name, statistics.median(values), unit, min(values), max(values), len(values)), flush=True)


with House("--http", "127.0.0.1:0", models=[FIXTURES, options.models]) as house:
    wait_for("the gateway", lambda: alive(house))
    ids = list(range(300, 316))
    c = connection(house)
    post(house, "/v1/completions", {"model": "hearth-tiny", "prompt": ids, "max_tokens": 1})
    http_ms = [first_token_http(house, c, [300 + n] + ids[1:]) for n in range(40)]
    say("first token over HTTP", http_ms, "ms")
    say("first token by libhearth", [first_token_libhearth(house) for _ in range(3)], "ms")
    say("a client leaves: no request at work after", [cancel_ms(house, c) for _ in range(20)], "ms")
    http, lib = [], []
    over_libhearth(house)
    for _ in range(options.rounds):
        lib.append(over_libhearth(house))
        http.append(over_http(house))
    say("%d streams over HTTP" % options.streams, http, "tokens/s")
    say("%d streams by libhearth" % options.streams, lib, "tokens/s")
    say("ratio of a pair", [a / b for a, b in zip(http, lib)], "")
    pid = house.pids("http")[0]
    before = resident(pid)
    idle = [socket.create_connection(("127.0.0.1", int(port_of(house)))) for _ in range(1000)]
    assert alive(house)
    print("%-44s %.1f MiB, %.1f MiB before" % ("resident with 1,000 idle lines", resident(pid), before))
