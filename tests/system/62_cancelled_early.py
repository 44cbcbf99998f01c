"""Ctrl-C before the first token: in the middle of a prompt, which is then not computed to its end, and while a model is on its way."""
import os
import shutil
import signal
import tempfile

from house import FIXTURES, House, lines, main, wait_for


def requests(house):
    return house.status()["requests"]


def long_prompt(i):
    return "%d: " % i + "Once upon a time there was a house on a hill. " * 110


def usage_of(house, prompt):
    done = lines(house.hearth("complete", "--json", "--temp", 0, "-n", 1, prompt).stdout)[-1]
    return done["usage"]["cached_tokens"], done["usage"]["prompt_tokens"]


def in_mid_prefill():
    with House("--device", "reference:1000") as house:
        cached, n_prompt = usage_of(house, long_prompt(0))
        assert n_prompt > 1000 and cached < n_prompt // 2, (cached, n_prompt)
        whole, _ = usage_of(house, long_prompt(0))
        assert whole > n_prompt * 9 // 10, (whole, n_prompt)
        for i in range(1, 20):  # a busy machine may look only when all is over
            process = house.popen("complete", "--json", "--temp", 0, "-n", 200, "--ignore-eos", long_prompt(i))
            wait_for("its prefill", lambda: [r for r in requests(house) if r["state"] in ("prefill", "decode")])
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            assert process.returncode == 130, (process.returncode, err)
            wait_for("its request to end", lambda: not requests(house))
            if b'"token"' in out:
                continue
            cached, n_prompt = usage_of(house, long_prompt(i))
            if cached < whole - 64:
                print("info %d of %d tokens were computed" % (cached, n_prompt))
                return
        raise AssertionError("the prompt was always computed to its end: %d of %d tokens" % (cached, n_prompt))


def while_its_model_is_on_its_way():
    directory = tempfile.mkdtemp(prefix="hearth-models-")
    try:
        House(start=False).hearth("synth", "--arch", "llama", "--preset", "tiny", "--type", "Q8_0", "-o",
                                  os.path.join(directory, "other.gguf"))
        with House(models=[FIXTURES, directory]) as house:
            house.hearth("complete", "-m", "hearth-tiny", "-n", 1, "Hello")
            stopped = house.kill("worker", signal.SIGSTOP)  # it takes no model now; the watch would replace it after a while
            process = house.popen("complete", "-m", "other", "-n", 4, "--ids", "Once")
            wait_for("the model to be wanted", lambda: [m for m in house.status()["models"]
                                                        if m["name"] == "other" and m["state"] != "cold"])
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            assert process.returncode == 130 and not out, (process.returncode, err)
            wait_for("its request to end", lambda: not requests(house))
            try:
                os.kill(stopped, signal.SIGCONT)
            except ProcessLookupError:
                pass
            assert len(house.ids("-m", "other", "-n", 4, "--ignore-eos", "Once")) == 4
    finally:
        shutil.rmtree(directory)


main(in_mid_prefill, while_its_model_is_on_its_way)
