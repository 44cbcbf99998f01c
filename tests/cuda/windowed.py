"""A model larger than the memory it may have comes to the (emulated) device by a window: its answers are those of a model that was
read as a whole, also when worker, loader or broker are killed in the midst, when it makes way for another and comes back, and
when memory is lent. What has left the window is poison here (0xff): whoever read it again would answer nonsense.

    HEARTH_BIN=build/bin HEARTH_EMULATED=build/tests/emulated python3 windowed.py [KILLS]"""
import glob
import os
import random
import signal
import struct
import sys
import tempfile
import threading
import time

from service import DEVICE, adapter, model
from house import House, one_line, wait_for

KILLS = int(sys.argv[1]) if len(sys.argv) > 1 else 3
N_LAYERS, FFN = 2, 8192  # 3.4 MB in matrices of 0.6
BUDGET = ("--ram-budget", "3M", "--min-residency", 0, "--swap-wait-max", 1)
MAGIC = struct.pack("<Q", 0x3157485448524548)  # of proto/weights.h
POISON = {"HEARTH_LOAD_POISON": "1"}
PROMPTS = ["w1w2 w5", "w3 w4w1"]


def job(name, i, n=5):
    return ("complete", "--ids", "--temp", 0.8 if i else 0, "--seed", i, "-n", n, "--ignore-eos", "-m", name, PROMPTS[i % len(PROMPTS)])


def answers(house, names=("mini",)):
    return {(name, i): house.hearth(*job(name, i)).stdout for name in names for i in range(len(PROMPTS))}


def others(house):
    """What else reads weights: an adapter's, an evaluation."""
    return house.hearth(*job("tuned", 0)).stdout, house.hearth("embed", "-m", "tuned", "--json", "w1w2 w3").stdout


def house_of(models, *options, rate=None, budget=BUDGET):
    return House(*map(str, budget), *options, *DEVICE, models=models, env=dict(POISON, **({"HEARTH_LOAD_RATE": rate} if rate else {})))


def state_of(house, name="mini"):
    return next((m for m in house.status()["models"] if m["name"] == name), {"state": "cold"})


def segments(house):
    """The weights that the keeper holds: (path, bytes of memory)."""
    found = []
    for path in glob.glob("/proc/%d/fd/*" % house.pids("keeper")[0]):
        try:
            if "memfd:hearth" in os.readlink(path):
                with open(path, "rb") as f:
                    if f.read(8) == MAGIC:
                        found.append((path, os.stat(path).st_blocks * 512))
        except FileNotFoundError:
            pass
    return found


def it_fits_and_answers_the_same(models, wanted):
    with House(*map(str, BUDGET), "--device", "cpu", models=models) as house:  # it computes where weights stand
        done = house.hearth(*job("mini", 0), check=False)
        assert done.returncode == 5 and "the budget is 3.0 MiB" in one_line(done.stderr), done.stderr
    size = os.path.getsize(os.path.join(models, "mini.gguf"))
    with House(*map(str, BUDGET), *DEVICE, models=models) as house:  # without poison: what goes back is memory
        assert answers(house) == {k: v for k, v in wanted.items() if k[0] == "mini"}
        assert [at < size / 8 for _, at in segments(house)] == [True], segments(house)
        status = house.status()
        assert status["models"][0]["window_bytes"] < size / 2 and status["memory"]["ram_used_bytes"] < 3 << 20, status
        assert "on the device alone" in house.hearth("ps", "--explain").stdout.decode()
        assert "on the device alone" in house.hearth("status").stdout.decode()
    with house_of(models, "--config", os.path.join(models, "conf")) as house:
        assert others(house) == wanted["others"]
        house.hearth("unload", "tuned")
        wait_for("it to leave", lambda: segments(house) == [])
        assert answers(house) == {k: v for k, v in wanted.items() if k[0] == "mini"}
        (path, _), = segments(house)
        with open(path, "rb") as f:
            f.seek(size // 2)
            assert f.read(4096) == b"\xff" * 4096  # so the answers were not of these bytes
        house.hearth("unload", "mini")
        wait_for("it to leave", lambda: state_of(house)["state"] == "cold")
        assert segments(house) == []
        assert house.hearth(*job("mini", 1)).stdout == wanted["mini", 1]  # going back is a reload


def kills_cost_nothing_but_time(models, wanted):
    chance = random.Random(2)
    with house_of(models) as house:
        for n in range(KILLS):
            i = n % len(PROMPTS)
            process = house.popen(*job("mini", i))
            first = process.stdout.read(1) if n % 2 else b""  # in the midst of an answer, or of a load
            time.sleep(chance.uniform(0, 0.3))
            house.kill("broker" if n % 3 == 2 else "worker")
            out, err = process.communicate(timeout=100)
            assert process.returncode == 0 and first + out == wanted["mini", i], (n, out, err, house.log()[-6000:])
        assert "poison" not in house.log(), house.log()


def a_death_in_the_midst_of_a_window(models, wanted):
    """The load is slow; when a part has gone through the window, one of the three dies."""
    with house_of(models, rate="3M") as house:
        for i, role in enumerate(("worker", "loader", "broker")):
            process = house.popen(*job("mini", i % 2))
            wait_for("a part of the file", lambda: 1 << 20 < state_of(house).get("loading", {}).get("bytes", 0))
            if role == "loader":
                pids = [p["pid"] for p in house.status()["processes"] if p.get("kind") == "load"]
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            else:
                house.kill(role)
            out, err = process.communicate(timeout=100)
            assert process.returncode == 0 and out == wanted["mini", i % 2], (role, out, err, house.log()[-6000:])
            house.hearth("unload", "mini")
            wait_for("it to leave", lambda: state_of(house)["state"] == "cold")


def two_take_turns(models, wanted):
    with house_of(models) as house:
        wrong = []

        def client(name):
            for i in range(len(PROMPTS)):
                done = house.hearth(*job(name, i), check=False)
                if done.returncode or done.stdout != wanted[name, i]:
                    wrong.append((name, i, done))

        clients = [threading.Thread(target=client, args=(name,)) for name in ("mini", "other")]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(150)
        assert not wrong, (wrong, house.log()[-6000:])
        assert "-> draining" in house.log()


def lent_memory_is_gone_around(models, wanted):
    with house_of(models, budget=("--ram-budget", "64M")) as house:
        house.hearth("yield", "61M")
        assert house.hearth(*job("mini", 0)).stdout == wanted["mini", 0]
        assert "window_bytes" in state_of(house)


def everything():
    with tempfile.TemporaryDirectory(prefix="hearth-models-") as models:
        model(os.path.join(models, "mini.gguf"), N_LAYERS, FFN)
        model(os.path.join(models, "other.gguf"), N_LAYERS, FFN, seed=9)
        adapter(os.path.join(models, "adapter"), FFN)
        with open(os.path.join(models, "conf"), "w") as f:
            f.write("[alias tuned]\nmodel = mini\nlora = %s\n" % os.path.join(models, "adapter"))
        with House("--load-window", "off", "--config", os.path.join(models, "conf"), *DEVICE, models=models) as house:
            wanted = answers(house, ("mini", "other"))
            wanted["others"] = others(house)
        assert len(set(wanted.values())) == len(wanted) and wanted["mini", 0] != wanted["others"][0]
        for test in (it_fits_and_answers_the_same, kills_cost_nothing_but_time, a_death_in_the_midst_of_a_window, two_take_turns,
                     lent_memory_is_gone_around):
            started = time.monotonic()
            test(models, wanted)
            print("ok %s (%.1f s)" % (test.__name__, time.monotonic() - started), flush=True)


everything()
