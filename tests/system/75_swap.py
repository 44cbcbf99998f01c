"""Three models of which one fits: eight clients want random ones, processes are killed in between, and every answer is the
one that the same request gets alone. HEARTH_LONG=1 python3 75_swap.py [SECONDS] [SEED] for a longer storm."""
import os
import random
import shutil
import sys
import tempfile
import time

from house import LONG, House, lines, main, one_line, wait_for
from streams import Streams

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 300 if LONG else 12
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
ARCHS = ["llama", "qwen3", "gemma3"]
ONE_FITS = ("--ram-budget", "9M", "--min-residency", "0", "--swap-wait-max", "1")
ROLES = ["worker", "worker", "loader", "broker"]


def models_of(house, directory):
    for arch in ARCHS:
        house.hearth("synth", "--arch", arch, "--preset", "tiny", "--type", "Q8_0", "-o",
                     os.path.join(directory, arch + ".gguf"))


def job(i):
    return ("complete", "--ids", "-m", ARCHS[i % 3], "--temp", 0.8, "--seed", i, "-n", 20 + i, "--ignore-eos",
            "Story %d: once upon a time" % (i % 4))


def swaps(house):
    return house.log().count("-> resident")


def a_storm_changes_nothing(directory):
    chance = random.Random(SEED)
    with House(*ONE_FITS, models=directory) as house:
        wanted = {i: house.hearth(*job(i)).stdout for i in range(24)}
        before = swaps(house)
        assert house.status()["swaps"] >= 2, house.log()[-6000:]  # of three models one has room
        killed = 0
        until = time.monotonic() + SECONDS
        with Streams(house, job, wanted, 8, SEED) as streams:
            while not streams.wrong and time.monotonic() < until:
                time.sleep(chance.uniform(0.3, 1.5))
                probe = house.hearth("status", "--json", check=False)
                if probe.returncode == 0 and house.kill(chance.choice(ROLES)):
                    killed += 1
        assert {i % 3 for i in streams.finished} == {0, 1, 2}
        assert "poison" not in house.log()
        print("info %d requests, %d swaps, %d kills, seed %d, none different" %
              (len(streams.finished), swaps(house) - before, killed, SEED))


def one_that_cannot_load_brings_the_old_one_back(directory):
    with open(os.path.join(directory, "llama.gguf"), "rb") as f:
        data = f.read()
    with open(os.path.join(directory, "cut.gguf"), "wb") as f:
        f.write(data[:len(data) * 9 // 10])
    with House(*ONE_FITS, models=directory) as house:
        wanted = house.hearth(*job(0)).stdout
        refused = house.hearth("load", "cut", check=False)
        assert refused.returncode == 7, refused
        one_line(refused.stderr)
        wait_for("llama to be back", lambda: any(m["name"] == "llama" and m["state"] == "resident" for m in lines(
            house.hearth("models", "--json").stdout)))
        assert house.hearth(*job(0)).stdout == wanted


def who_streams_pauses_for_the_other(directory):
    """A long answer of one model, a short one of another: the long one is set aside and goes on."""
    long = ("complete", "--ids", "-m", "llama", "--temp", 0, "-n", 700, "--ignore-eos", "Once upon a time")
    with House(*ONE_FITS, models=directory) as house:
        wanted = house.hearth(*long).stdout
        process = house.popen(*long)
        first = process.stdout.read(1)
        assert house.hearth(*job(1)).stdout
        rest, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert first + rest == wanted


def with_models(test):
    def run():
        directory = tempfile.mkdtemp(prefix="hearth-models-")
        try:
            models_of(House(start=False), directory)
            test(directory)
        finally:
            shutil.rmtree(directory)
    run.__name__ = test.__name__
    return run


main(with_models(who_streams_pauses_for_the_other), with_models(a_storm_changes_nothing),
     with_models(one_that_cannot_load_brings_the_old_one_back))
