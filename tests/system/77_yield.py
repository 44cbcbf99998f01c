"""Memory is lent to another application and comes back: streams pause and go on with the same tokens, requests wait and do not
fail, a broker's death changes nothing; the ledger names every byte. And what the configuration pins stays."""
import os
import shutil
import signal
import tempfile

from house import FIXTURES, House, lines, main, one_line, wait_for

STORY = ("complete", "--ids", "--temp", 0.7, "--seed", 5, "-n", 1200, "--ignore-eos", "Once upon a time")


def states(house):
    return {m["name"]: m["state"] for m in lines(house.hearth("models", "--json").stdout)}


def a_stream_pauses_while_memory_is_lent():
    with House() as house:
        wanted = house.hearth(*STORY).stdout
        process = house.popen(*STORY)
        first = process.stdout.read(1)
        out = lines(house.hearth("yield", "--all", "--json").stdout)[0]
        assert out["models_bytes"] == 0 and out["lent_bytes"] > 0, out
        assert set(states(house).values()) == {"cold"}
        paused = house.status()["requests"]
        if paused:  # on a quick machine it was over before
            assert paused[0]["state"] == "queued" and paused[0]["why"] == "memory that is lent", paused
        assert house.status()["memory"]["lent_bytes"] == out["lent_bytes"]
        for role in ("broker", "worker"):
            house.kill(role)
            house.hearth("status", "--wait", 30)
        other = house.popen("complete", "--temp", 0, "-n", 5, "Hello")
        wait_for("it to wait", lambda: len(house.status()["requests"]) == len(paused) + 1)
        assert set(states(house).values()) == {"cold"}
        house.hearth("yield", "0")
        rest, err = process.communicate(timeout=90)
        assert process.returncode == 0 and first + rest == wanted, err
        _, err = other.communicate(timeout=90)
        assert other.returncode == 0, err
        assert "lent_bytes" not in house.status()["memory"]


def lent_for_a_time():
    with House() as house:
        house.hearth("yield", "--all", "--for", "1s")
        assert house.hearth("complete", "--temp", 0, "-n", 5, "Hello").stdout  # waits a second
        assert house.hearth("yield", "much", check=False).returncode == 2
        assert house.hearth("yield", check=False).returncode == 2


def the_ledger_names_every_byte():
    with House() as house:
        process = house.popen(*STORY)
        process.stdout.read(1)
        rows = [r for r in lines(house.hearth("ps", "--explain", "--json").stdout) if "kind" in r]
        kinds = {r["kind"] for r in rows}
        assert {"weights", "state", "journal", "process"} <= kinds, rows
        pids = {int(r["name"].split()[-1]) for r in rows if r["kind"] == "process" and " of " not in r["name"]}
        assert set(house.pids("broker") + house.pids("keeper")) <= pids, rows
        weights, = [r for r in rows if r["kind"] == "weights"]
        state, = [r for r in rows if r["kind"] == "state"]
        memory = house.status()["memory"]
        assert weights["bytes"] + state["bytes"] == memory["ram_used_bytes"]
        assert 0 < state["used_bytes"] <= state["bytes"] + 8192
        assert b"weights" in house.hearth("ps", "--explain").stdout
        process.kill()
        process.wait()


def what_the_configuration_pins_stays():
    base = tempfile.mkdtemp(prefix="hearth-conf-")
    conf = os.path.join(base, "hearth.conf")
    try:
        with open(conf, "w") as f:
            f.write("[alias mine]\nmodel = hearth-tiny\npin = yes\n")
        with House("--config", conf) as house:
            wait_for("the pinned model", lambda: states(house).get("hearth-tiny") == "resident")
            refused = house.hearth("unload", "mine", check=False)
            assert refused.returncode == 8 and "pinned by the configuration" in one_line(refused.stderr), refused
            with open(conf, "w") as f:
                f.write("[alias mine]\nmodel = hearth-tiny\n")
            house.process.send_signal(signal.SIGHUP)
            wait_for("the new configuration", lambda: "read again" in house.log())
            assert states(house)["hearth-tiny"] == "resident"  # what did not change is not touched
            house.hearth("unload", "mine")
            wait_for("it to go", lambda: states(house)["hearth-tiny"] == "cold")
    finally:
        shutil.rmtree(base)


main(a_stream_pauses_while_memory_is_lent, lent_for_a_time, the_ledger_names_every_byte, what_the_configuration_pins_stays)
