"""A model that is still being read answers already: the same tokens as when all is there, whoever dies meanwhile."""
import signal
import time

from house import FIXTURES, House, main, partial_of, wait_for

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


if __name__ == "__main__":
    with House(models=FIXTURES, env={"HEARTH_LOAD_RATE": RATE}) as house:
        house.warm = ids(ask(house))
        again = ids(ask(house))
        assert again == house.warm and house.warm
        main(*(partial_of(test, house) for test in (the_first_tokens_wait_for_the_layers, whoever_dies_meanwhile,
                                                    a_cancel_is_heard_while_it_loads)))
