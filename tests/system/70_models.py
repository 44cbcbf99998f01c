"""Models: several side by side, loaded, unloaded, named in every way, missing, broken, replaced."""
import os
import shutil
import signal
import tempfile

from house import FIXTURES, House, lines, main, one_line, wait_for

TINY = os.path.join(FIXTURES, "hearth-tiny.gguf")


def directory(**copies):
    path = tempfile.mkdtemp(prefix="hearth-models-")
    for name in copies:
        shutil.copy(TINY, os.path.join(path, name + ".gguf"))
    return path


def states(house):
    return {m["name"]: m["state"] for m in lines(house.hearth("models", "--json").stdout)}


def loaded_and_unloaded():
    models = directory(one=1, two=1)
    with House(models=models) as house:
        assert set(states(house)) == {"one", "two"}
        house.hearth("load", "one", "two")
        assert states(house) == {"one": "resident", "two": "resident"}
        house.hearth("unload", "one")
        assert states(house)["one"] == "cold"
        assert house.ids("-m", "one", "--temp", 0, "-n", 4, "Hello") == house.ids("-m", "two", "--temp", 0, "-n", 4, "Hello")
        assert states(house)["one"] == "resident"
    shutil.rmtree(models)


def any_name_is_json():
    name = 'a "quoted" \\ name'
    models = directory(**{name: 1})
    with House(models=models) as house:
        assert lines(house.hearth("load", name, "--json").stdout) == [{"model": name, "loaded": True}]
        assert set(states(house)) == {name}
        assert lines(house.hearth("unload", name, "--json").stdout) == [{"model": name, "unloaded": True}]
    shutil.rmtree(models)


def the_default_is_the_only_resident_one():
    models = directory(one=1, two=1)
    with House(models=models) as house:
        unclear = house.hearth("complete", "-n", 2, "Hello", check=False)
        assert unclear.returncode == 4, unclear
        text = one_line(unclear.stderr)
        assert "one" in text and "two" in text, text
        house.hearth("load", "two")
        house.hearth("complete", "-n", 2, "Hello")
    shutil.rmtree(models)


def a_path_is_a_name():
    models = directory(one=1)
    with House(models=FIXTURES) as house:
        assert house.ids("-m", os.path.join(models, "one.gguf"), "--temp", 0, "-n", 4, "Hello")
    shutil.rmtree(models)


def a_plan_knows_names_too():
    with House() as house:
        file = os.path.join(FIXTURES, "hearth-tiny.gguf")
        assert house.hearth("plan", "--device", "cpu", "--json", "hearth-tiny").stdout == house.hearth("plan", "--device", "cpu", "--json", file).stdout
        wrong = house.hearth("plan", "--device", "cpu", "hearth-tinny", check=False)
        assert wrong.returncode == 4 and "hearth-tinny" in one_line(wrong.stderr), wrong


def a_missing_name_is_exit_4_with_near_ones():
    with House() as house:
        wrong = house.hearth("ask", "-m", "hearth-tinny", "Hello", check=False)
        assert wrong.returncode == 4 and "hearth-tiny" in one_line(wrong.stderr), wrong
        assert house.hearth("load", "nothing-like-it", check=False).returncode == 4


def a_broken_file_is_exit_7_and_harms_nobody():
    models = directory(good=1)
    with open(TINY, "rb") as f:
        data = f.read()
    with open(os.path.join(models, "cut.gguf"), "wb") as f:
        f.write(data[:len(data) // 2])
    with open(os.path.join(models, "noise.gguf"), "wb") as f:
        f.write(b"GGUF" + bytes(range(256)) * 40)
    with House(models=models) as house:
        for name in ("cut", "noise"):
            done = house.hearth("ask", "-m", name, "Hello", check=False)
            assert done.returncode == 7, (name, done)
            one_line(done.stderr)
        assert house.ids("-m", "good", "--temp", 0, "-n", 4, "Hello")
    shutil.rmtree(models)


def an_unknown_architecture_is_refused_by_name():
    models = directory(good=1)
    with open(TINY, "rb") as f:
        data = f.read()
    at = data.index(b"general.architecture") + 20 + 4 + 8
    length = int.from_bytes(data[at - 8:at], "little")
    with open(os.path.join(models, "odd.gguf"), "wb") as f:
        f.write(data[:at] + b"z" * length + data[at + length:])
    with House(models=models) as house:
        for verb in (["load", "odd"], ["ask", "-m", "odd", "Hello"]):
            done = house.hearth(*verb, check=False)
            assert done.returncode == 7 and "z" * length in one_line(done.stderr), done
        wait_for("its weights to leave", lambda: states(house)["odd"] == "cold")
        assert house.hearth("tokenize", "-m", "odd", input=b"Hello").stdout.startswith(b"[")
    shutil.rmtree(models)


def many_models_under_a_small_budget():
    models = directory(a=1, b=1, c=1, d=1)
    with House("--ram-budget", "120M", models=models) as house:
        answers = {tuple(house.ids("-m", name, "--temp", 0, "-n", 6, "Hello")) for name in "abcdabcd"}
        assert len(answers) == 1
    shutil.rmtree(models)


def unload_pauses_a_running_answer():
    with House() as house:
        wanted = house.hearth("complete", "--temp", 0, "-n", 400, "--ignore-eos", "Once").stdout
        process = house.popen("complete", "--temp", 0, "-n", 400, "--ignore-eos", "Once")
        first = process.stdout.read(1)
        house.hearth("unload", "hearth-tiny")
        rest, err = process.communicate(timeout=60)
        assert process.returncode == 0 and first + rest == wanted, err


ALIASES = """models = %s
[alias calm]
model = hearth-tiny
temp = 0
[alias wild]
model = hearth-tiny
temp = 1.5
top_k = 0
[alias near]
model = hearth-tiny
adaptive_target = 0.1
adaptive_decay = 0.99
[alias small]
model = hearth-tiny
ctx = 24
temp = 0
[alias packed]
model = hearth-tiny
kv = q8_0
temp = 0
[alias spoken]
model = hearth-tiny
template = %s
[alias kept]
model = other
pin = yes
[alias brief]
model = third
ttl = 1
"""


def aliases_have_options_of_their_own():
    models = directory(other=1, third=1)
    shutil.copy(TINY, os.path.join(models, "hearth-tiny.gguf"))
    template = os.path.join(models, "spoken.jinja")
    with open(template, "w") as f:
        f.write("{% for m in messages %}={{ m.role }}: {{ m.content }}{% endfor %}")
    config = os.path.join(models, "hearth.conf")
    with open(config, "w") as f:
        f.write(ALIASES % (models, template))
    with House("--config", config, models=[]) as house:
        wait_for("the pinned model", lambda: states(house)["other"] == "resident")
        # Sampling: the alias's where the request says nothing, the request's where it does.
        greedy = house.ids("-m", "hearth-tiny", "--temp", 0, "-n", 12, "Once upon a time")
        assert house.ids("-m", "calm", "-n", 12, "Once upon a time") == greedy
        same = ("-n", 40, "--seed", 3, "Once upon a time")
        plain, near = house.ids("-m", "hearth-tiny", *same), house.ids("-m", "near", *same)
        assert near == house.ids("-m", "hearth-tiny", "--adaptive-target", 0.1, "--adaptive-decay", 0.99, *same) != plain
        assert house.ids("-m", "near", "--adaptive-target", -1, *same) == plain
        seeded = ["--seed", 5, "-n", 12, "Once upon a time"]
        assert house.ids("-m", "wild", *seeded) != greedy
        assert house.ids("-m", "wild", "--temp", 0, "-n", 12, "Once upon a time") == greedy
        # Context: the alias's limit is the request's, the file's own stays.
        long = "Once upon a time " * 12
        refused = house.hearth("complete", "-m", "small", "-n", 4, long, check=False)
        assert refused.returncode == 5 and "24" in one_line(refused.stderr), refused
        assert house.ids("-m", "calm", "-n", 4, long)
        # Another KV type is another state of the same file.
        assert len(house.ids("-m", "packed", "-n", 12, "--ignore-eos", "Once upon a time")) == 12
        # A template instead of the model's own.
        context = b'{"messages":[{"role":"user","content":"Hi"}]}'
        said = [house.hearth("template", "-m", m, "--input", "-", input=context).stdout
                for m in ("spoken", "hearth-tiny", "spoken")]
        assert said[0] == said[2] == b"=user: Hi" and said[1] != said[0], said
        assert house.hearth("ask", "-m", "spoken", "-n", 4, "Hello").stdout
        # Time to leave.
        house.hearth("load", "brief")
        wait_for("an idle model to leave", lambda: states(house)["third"] == "cold")
        assert states(house)["other"] == "resident"
    shutil.rmtree(models)


def a_changed_file_replaces_the_old_one_only_when_it_is_a_model():
    models = directory(one=1)
    path = os.path.join(models, "one.gguf")

    def replace(data):
        with open(path + ".new", "wb") as f:
            f.write(data)
        os.replace(path + ".new", path)

    with House(models=models) as house:
        ask = ("complete", "--ids", "-m", "one", "--temp", 0, "-n", 6, "--ignore-eos", "Hello")
        old = house.hearth(*ask).stdout
        replace(b"GGUF" + b"rubbish" * 1000)
        house.process.send_signal(signal.SIGHUP)
        wait_for("it to be looked at", lambda: house.hearth(*ask).stdout == old and "the old one stays" in house.log())
        assert states(house)["one"] == "resident"
        house.hearth(*ask)
        assert house.log().count("the old one stays") == 1  # once looked at is enough
        other = os.path.join(models, "other.gguf")
        house.hearth("synth", "--arch", "llama", "--preset", "tiny", "--type", "Q8_0", "-o", other)
        with open(other, "rb") as f:
            replace(f.read())
        house.process.send_signal(signal.SIGHUP)
        wait_for("the new model", lambda: house.hearth(*ask).stdout != old)
        assert house.hearth(*ask).stdout == house.hearth(*["other" if a == "one" else a for a in ask]).stdout
    shutil.rmtree(models)


main(a_changed_file_replaces_the_old_one_only_when_it_is_a_model, aliases_have_options_of_their_own, loaded_and_unloaded, any_name_is_json, the_default_is_the_only_resident_one, a_path_is_a_name, a_plan_knows_names_too,
     a_missing_name_is_exit_4_with_near_ones, a_broken_file_is_exit_7_and_harms_nobody,
     an_unknown_architecture_is_refused_by_name, many_models_under_a_small_budget, unload_pauses_a_running_answer)
