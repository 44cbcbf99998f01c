"""A model that is still being read answers already: the same tokens as when all is there, whoever dies meanwhile."""
import os
import pty
import re
import signal
import subprocess
import time

from house import BIN, FIXTURES, House, main, partial_of, wait_for
from web import call, stream

PROMPT = "Once upon a time there was a little"
RATE = "1M"  # of a model of 1.6 MB: seconds of loading


def cold(house):
    house.hearth("unload", "hearth-tiny", check=False)
    wait_for("the model to leave", lambda: house.status()["models"] == [] or
             all(m["state"] == "cold" for m in house.status()["models"]))


def state(house):
    return {m["name"]: m["state"] for m in house.status()["models"]}.get("hearth-tiny")


def ask(house):
    return house.popen("complete", "--ids", "--temp", "0", "-n", "24", PROMPT)


def ids(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    return out


def the_first_tokens_wait_for_the_layers(house):
    """Taken while it is read, answered like one that waited."""
    cold(house)
    asked = ask(house)
    wait_for("the loader to be at it", lambda: state(house) == "loading")
    first = asked.stdout.read(1)  # the answer has begun; the loader may be done by now
    assert first
    assert first + ids(asked) == house.warm


def whoever_dies_meanwhile(house):
    for role in ("loader", "worker", "broker", "loader"):
        cold(house)
        asked = ask(house)
        wait_for("the loader to be at it", lambda: state(house) == "loading")
        time.sleep(0.4)
        house.kill(role)
        assert ids(asked) == house.warm, role


def a_cancel_is_heard_while_it_loads(house):
    cold(house)
    asked = ask(house)
    wait_for("the loader to be at it", lambda: state(house) == "loading")
    asked.send_signal(signal.SIGINT)
    asked.communicate(timeout=60)
    assert asked.returncode == 130, asked.returncode
    assert ids(ask(house)) == house.warm


def the_status_says_how_far_it_is(house):
    """Bytes that only grow, up to the same whole."""
    cold(house)
    asked, seen = ask(house), []

    def ended():
        for m in house.status()["models"]:
            if "loading" in m:
                assert m["state"] == "loading"
                seen.append((m["loading"]["bytes"], m["loading"]["of"]))
        return asked.poll() is not None
    wait_for("the answer", ended)
    assert ids(asked) == house.warm
    assert len({n for n, _ in seen}) >= 2 and seen == sorted(seen), seen
    assert len({of for _, of in seen}) == 1 and all(0 <= n <= of for n, of in seen), seen
    assert not any("loading" in m for m in house.status()["models"])


def the_gateway_says_it_too(house):
    """In the stream of a load, and in the list of models; a fraction that only grows."""
    cold(house)
    told = [e["status"].get("progress") for e in stream(house, "/models/load", {"model": "hearth-tiny"}) if e]
    fractions = [p["fraction"] for p in told if p]
    assert len(fractions) >= 2 and fractions == sorted(fractions) and 0 <= fractions[0] < fractions[-1] <= 1, told
    assert told[-1] is None  # loaded
    cold(house)
    asked, seen = ask(house), []

    def ended():
        seen.extend(m["status"]["progress"] for m in call(house, "GET", "/v1/models")[2]["data"] if "progress" in m["status"])
        return asked.poll() is not None
    wait_for("the answer", ended)
    assert ids(asked) == house.warm
    assert seen and all(p["bytes"] <= p["of"] for p in seen), seen


def drawn(house, *args, **env):
    """What a verb says on stderr, which is a terminal."""
    cold(house)
    terminal, end = pty.openpty()
    with subprocess.Popen([os.path.join(BIN, "hearth"), *args], env=dict(house.env, TERM="xterm", **env), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=end) as process:
        os.close(end)
        said = b""
        while True:
            try:
                piece = os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
            said += piece
        out = process.stdout.read()
        assert process.wait(60) == 0, said
    os.close(terminal)
    return said, out


def a_bar_is_drawn_on_a_terminal_and_taken_away(house):
    for verb in (("load", "hearth-tiny"), ("complete", "--ids", "--temp", "0", "-n", "24", PROMPT)):
        said, out = drawn(house, *verb)
        assert re.search(rb"hearth-tiny \[[#-]+\] +\d+ %, ", said), said
        assert said.endswith(b"\r\033[K"), said
        assert verb[0] == "load" or out == house.warm
    assert drawn(house, "load", "hearth-tiny", NO_COLOR="1")[0] == b""
    cold(house)
    assert house.hearth("load", "hearth-tiny").stderr == b""


if __name__ == "__main__":
    with House("--http", "127.0.0.1:0", models=FIXTURES, env={"HEARTH_LOAD_RATE": RATE}) as house:
        house.warm = ids(ask(house))
        again = ids(ask(house))
        assert again == house.warm and house.warm
        main(*(partial_of(test, house) for test in (the_first_tokens_wait_for_the_layers, whoever_dies_meanwhile,
                                                    a_cancel_is_heard_while_it_loads, the_status_says_how_far_it_is, the_gateway_says_it_too,
                                                    a_bar_is_drawn_on_a_terminal_and_taken_away)))
