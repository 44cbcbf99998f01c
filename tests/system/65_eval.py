"""eval -m: the service gives the bytes of --direct, in company too, and begins again after deaths."""
import os
import shutil
import struct
import tempfile
import time

from house import FIXTURES, House, main, one_line, wait_for

MODEL = os.path.join(FIXTURES, "hearth-tiny.gguf")
IDS = [(7 * i + 11) % 900 + 5 for i in range(120)]


def write_ids(house, ids=IDS):
    path = os.path.join(house.base, "ids.i32")
    with open(path, "wb") as f:
        f.write(struct.pack("<%di" % len(ids), *ids))
    return path


def evaluate(house, name, *options):
    out = os.path.join(house.base, name)
    house.hearth("eval", *options, "--tokens", write_ids(house), "--logits", out)
    with open(out, "rb") as f:
        return f.read()


def the_service_gives_the_bytes_of_direct():
    with House() as house:
        direct = evaluate(house, "direct", "--direct", MODEL)
        assert len(direct) % (4 * len(IDS)) == 0 and len(direct) > 4 * len(IDS)
        assert evaluate(house, "served", "-m", "hearth-tiny") == direct
        assert evaluate(house, "served", "-m", "hearth-tiny", "--lens", "50,70") == \
            evaluate(house, "direct", "--direct", MODEL, "--lens", "50,70")


def in_company_the_same():
    with House() as house:
        direct = evaluate(house, "direct", "--direct", MODEL)
        company = [house.popen("complete", "--temp", 0, "-n", 300, "--ignore-eos", "Once upon a time")
                   for _ in range(3)]
        assert evaluate(house, "served", "-m", "hearth-tiny") == direct
        texts = set()
        for process in company:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            texts.add(out)
        assert len(texts) == 1


def deaths_begin_it_again():
    with House() as house:
        direct = evaluate(house, "direct", "--direct", MODEL)
        for role in ("worker", "broker", "worker"):
            out = os.path.join(house.base, "served")
            process = house.popen("eval", "-m", "hearth-tiny", "--tokens", write_ids(house), "--logits", out)
            house.kill(role)
            _, err = process.communicate(timeout=90)
            assert process.returncode == 0, (role, err, house.log()[-3000:])
            with open(out, "rb") as f:
                assert f.read() == direct, role
            wait_for("readiness", lambda: house.status()["ready"])


def embedding(house, *options):
    return house.hearth("embed", "--json", *options, "Once upon a time").stdout


def an_embedding_is_pooled_the_models_own_way():
    with House() as house:  # it names none: the mean
        assert embedding(house) == embedding(house, "--pooling", "mean") != embedding(house, "--pooling", "last")
    base = os.environ.get("HEARTH_CONFORMANCE")
    if not base:
        print("skipped: HEARTH_CONFORMANCE names no directory with an embedding model")
        return
    with open(os.path.join(base, "models", "bert", "model.gguf"), "rb") as f:
        data = f.read()
    at = data.index(b"bert.pooling_type") + len("bert.pooling_type") + 4
    models = tempfile.mkdtemp(prefix="hearth-models-")
    for number in (1, 2, 3, 4):
        with open(os.path.join(models, "pool%d.gguf" % number), "wb") as f:
            f.write(data[:at] + struct.pack("<I", number) + data[at + 4:])
    with House(models=models) as house:
        for number, name in ((1, "mean"), (2, "cls"), (3, "last")):
            assert embedding(house, "-m", "pool%d" % number) == embedding(house, "-m", "pool1", "--pooling", name), name
        refused = house.hearth("embed", "-m", "pool4", "Hello", check=False)
        assert refused.returncode != 0 and "pair" in one_line(refused.stderr), refused
    shutil.rmtree(models)


main(an_embedding_is_pooled_the_models_own_way, the_service_gives_the_bytes_of_direct, in_company_the_same, deaths_begin_it_again)
