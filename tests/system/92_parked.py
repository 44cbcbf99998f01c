"""Idle conversations survive: a restart of everything (--state-dir), a swap and an unload (in memory), a kill in the middle. What
is taken up again shows in cached_tokens, and its bits are those of a cold run; a file that is damaged or another's is ignored."""
import glob
import os
import shutil
import signal
import tempfile

from house import FIXTURES, House, lines, main, wait_for

PROMPT = " ".join("Once upon a time there was a cat number %d." % i for i in range(20))
OTHER = " ".join("A dog went to town %d." % i for i in range(24))


def say(house, prompt=PROMPT, model=None, seed=3):
    """Tokens of an answer, and how many positions of its prompt were not computed again."""
    out = lines(house.hearth("complete", "--json", "--temp", 0.8, "--seed", seed, "-n", 30, "--ignore-eos",
                             *(["-m", model] if model else []), prompt).stdout)
    return [t["id"] for t in out[:-1]], out[-1]["usage"]


def files(directory):
    return sorted(glob.glob(os.path.join(directory, "*.kv")))


def a_restart_of_everything_goes_on_where_it_was():
    state = tempfile.mkdtemp(prefix="hearth-state-")
    try:
        with House("--state-dir", state) as house:
            cold, usage = say(house)
            other, _ = say(house, OTHER)
            assert usage["cached_tokens"] == 0 and usage["prompt_tokens"] > 128, usage
            assert house.stop() == 0
            assert len(files(state)) == 2, (os.listdir(state), house.log())
            house.start()
            warm, usage = say(house)
            assert warm == cold
            assert usage["cached_tokens"] == usage["prompt_tokens"] - 1, (usage, house.log())
            warm, usage = say(house, OTHER)
            assert warm == other and usage["cached_tokens"] == usage["prompt_tokens"] - 1, usage
        # A worse end: no time to say anything. What had been quiet for a moment is there all the same.
        with House("--state-dir", state) as house:
            longer, _ = say(house, PROMPT + " And then came a wolf.")
            wait_for("the conversation to be parked", lambda: len(files(state)) == 3)
            house.process.send_signal(signal.SIGKILL)
            house.process.wait()
        with House("--state-dir", state) as house:
            again, usage = say(house, PROMPT + " And then came a wolf.")
            assert again == longer and usage["cached_tokens"] == usage["prompt_tokens"] - 1, usage
    finally:
        shutil.rmtree(state)


def what_is_damaged_or_foreign_is_ignored():
    state = tempfile.mkdtemp(prefix="hearth-state-")
    try:
        with House("--state-dir", state) as house:
            cold, _ = say(house)
            assert house.stop() == 0
            one, = files(state)
            whole = open(one, "rb").read()
            # In its pages: only the one who reads them can tell.
            with open(one, "r+b") as f:
                f.seek(len(whole) - 5000)
                f.write(b"\x00" * 64 if whole[-5000:-4936] != b"\x00" * 64 else b"\x01" * 64)
            house.start()
            again, usage = say(house)
            assert again == cold and usage["cached_tokens"] == 0, usage
            assert house.log().count("is not believed") == 1 and "is damaged" in house.log(), house.log()
            assert house.stop() == 0
            # Cut, empty, garbage, somebody else's, half written: each is passed over.
            for name in files(state):
                os.unlink(name)
            for i, data in enumerate([whole[:-1], whole[:50], b"", os.urandom(5000)]):
                with open(os.path.join(state, "%016x-%d-%016x.kv" % (7, os.getuid(), i)), "wb") as f:
                    f.write(data)
            with open(one.replace("-%d-" % os.getuid(), "-%d-" % (os.getuid() + 1)), "wb") as f:
                f.write(whole)
            with open(os.path.join(state, "new-0000000000000001"), "wb") as f:
                f.write(whole)
            before = house.log().count("is ignored")
            house.start()
            again, usage = say(house)
            assert again == cold and usage["cached_tokens"] == 0, usage
            assert house.log().count("is ignored") - before == 4, house.log()
            assert not os.path.exists(os.path.join(state, "new-0000000000000001"))
    finally:
        shutil.rmtree(state)


def a_budget_holds():
    state = tempfile.mkdtemp(prefix="hearth-state-")
    try:
        with House("--state-dir", state) as house:
            say(house)
            assert house.stop() == 0
            one = os.path.getsize(files(state)[0])
        with House("--state-dir", state, "--state-budget", str(3 * one)) as house:
            for i in range(6):
                say(house, "Number %d. " % i + PROMPT)
            assert house.stop() == 0
            sizes = [os.path.getsize(name) for name in files(state)]
            assert 2 <= len(sizes) <= 3 and sum(sizes) <= 3 * one, sizes
            house.start()
            _, usage = say(house, "Number 5. " + PROMPT)
            assert usage["cached_tokens"] > 64, usage
    finally:
        shutil.rmtree(state)


def an_unloaded_model_keeps_its_conversations():
    """In memory, without any option; and through the death of every process but the keeper."""
    with House() as house:
        cold, usage = say(house)
        for kill in ((), ("broker",), ("worker", "broker")):
            name = house.status()["models"][0]["name"]
            house.hearth("unload", name)
            wait_for("the model to be gone", lambda: all(m["state"] == "cold" for m in lines(
                house.hearth("models", "--json").stdout)))
            for role in kill:
                house.kill(role)
                wait_for("everybody", lambda: house.hearth("status", "--wait", 20, check=False).returncode == 0)
            warm, usage = say(house)
            assert warm == cold
            assert usage["cached_tokens"] == usage["prompt_tokens"] - 1, (kill, usage, house.log())


main(a_restart_of_everything_goes_on_where_it_was, what_is_damaged_or_foreign_is_ignored, a_budget_holds,
     an_unloaded_model_keeps_its_conversations)
