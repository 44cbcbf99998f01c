"""An adapter (LoRA) beside a model: an alias with one answers as the model that has it merged into its weights."""
import array
import json
import os
import random
import shutil
import struct
import tempfile

from house import PATIENCE_S, House, lines, main, one_line

TENSORS = ["blk.0.attn_q.weight", "blk.1.attn_v.weight", "blk.1.attn_output.weight", "blk.2.ffn_gate.weight",
           "blk.3.ffn_down.weight", "output.weight"]
RANK, ALPHA, SCALE = 16, 32.0, 0.5


def string(s):
    return struct.pack("<Q", len(s)) + s.encode()


def adapter(path, tensors, architecture="llama"):
    """A GGUF adapter of {name: (n_in, n_out, A, B)}: A as F16, B as F32."""
    infos, data = b"", b""
    for name, (n_in, n_out, a, b) in tensors.items():
        for suffix, shape, kind, form, values in ((".lora_a", (n_in, RANK), 1, "e", a), (".lora_b", (RANK, n_out), 0, "f", b)):
            infos += string(name + suffix) + struct.pack("<IQQIQ", 2, *shape, kind, len(data))
            data += struct.pack("<%d%s" % (len(values), form), *values)
            data += b"\0" * (-len(data) % 32)
    head = struct.pack("<4sIQQ", b"GGUF", 3, 2 * len(tensors), 4)
    for key, value in (("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", architecture)):
        head += string(key) + struct.pack("<I", 8) + string(value)
    head += string("adapter.lora.alpha") + struct.pack("<If", 6, ALPHA) + infos
    with open(path, "wb") as f:
        f.write(head + b"\0" * (-len(head) % 32) + data)


def numbers(n):
    """Random ones that F16 holds exactly."""
    return [random.randrange(-64, 65) / 1024 for _ in range(n)]


def shapes_of(house, path):
    told = json.loads(house.hearth("inspect", "--json", path).stdout)
    data = os.path.getsize(path) - told["data_bytes"]  # the last tensor ends with the file
    return {t["name"]: (*t["shape"], data + t["offset"]) for t in told["tensors"] if len(t["shape"]) == 2}


def merge(path, to, shapes, tensors):
    """W + SCALE * ALPHA / RANK * B A, in the file's own f32."""
    with open(path, "rb") as f:
        data = bytearray(f.read())
    for name, (n_in, n_out, a, b) in tensors.items():
        at = shapes[name][2]
        w = array.array("f", bytes(data[at:at + 4 * n_in * n_out]))
        for o in range(n_out):
            for r in range(RANK):
                s = SCALE * ALPHA / RANK * b[o * RANK + r]
                for i in range(n_in):
                    w[o * n_in + i] += s * a[r * n_in + i]
        data[at:at + 4 * n_in * n_out] = w.tobytes()
    with open(to, "wb") as f:
        f.write(data)


def logits(house, model):
    ids = os.path.join(house.base, "ids.i32")
    with open(ids, "wb") as f:
        f.write(struct.pack("<20i", *[(37 * i + 5) % 500 for i in range(20)]))
    out = os.path.join(house.base, "out.f32")
    house.hearth("eval", "-m", model, "--tokens", ids, "--logits", out)
    with open(out, "rb") as f:
        return array.array("f", f.read())


def distance(a, b):
    return max(abs(x - y) for x, y in zip(a, b)) / max(abs(x) for x in b)


def an_adapter_counts_as_if_merged():
    random.seed(3)
    models = tempfile.mkdtemp(prefix="hearth-models-")
    base = os.path.join(models, "base.gguf")
    with House(models=models, start=False) as house:
        house.hearth("synth", "--arch", "llama", "--preset", "tiny", "--type", "F32", "-o", base)
        shapes = shapes_of(house, base)
        tensors = {}
        for name in TENSORS:
            n_in, n_out, _ = shapes[name]
            tensors[name] = (n_in, n_out, numbers(RANK * n_in), numbers(RANK * n_out))
        merge(base, os.path.join(models, "merged.gguf"), shapes, tensors)
        os.mkdir(os.path.join(house.base, "adapters"))
        good, foreign, wide, lost = (os.path.join(house.base, "adapters", n) for n in ("good", "foreign", "wide", "lost"))
        adapter(good, tensors)
        adapter(foreign, tensors, "qwen2")
        adapter(wide, {"blk.0.attn_k.weight": (256, 256, [0.0] * 256 * RANK, [0.0] * 256 * RANK)})
        adapter(lost, {"blk.9.attn_q.weight": (256, 256, [0.0] * 256 * RANK, [0.0] * 256 * RANK)})
        config = os.path.join(house.base, "hearth.conf")
        with open(config, "w") as f:
            for name, path in (("tuned", good + ":0.5"), ("off", good + ":0"), ("foreign", foreign), ("wide", wide),
                               ("lost", lost), ("none", good + "-not"), ("model", base)):
                f.write("[alias %s]\nmodel = base\nlora = %s\n" % (name, path))
        house.options += ["--config", config]
        house.start()
        plain, merged, tuned = logits(house, "base"), logits(house, "merged"), logits(house, "tuned")
        assert distance(plain, merged) > 0.1, distance(plain, merged)
        assert distance(tuned, merged) < 5e-4, distance(tuned, merged)
        assert logits(house, "off") == plain
        assert logits(house, "base") == plain  # side by side
        for name, code, word in (("foreign", 7, "qwen2"), ("wide", 7, "blk.0.attn_k.weight.lora_b"),
                                 ("lost", 7, "blk.9.attn_q.weight.lora_a"), ("none", 4, "good-not"),
                                 ("model", 7, "general.type")):
            refused = house.hearth("load", name, check=False)
            assert refused.returncode == code and word in one_line(refused.stderr), (name, refused)
        # A new broker and a new worker find the adapter again.
        wanted = house.ids("-m", "tuned", "--temp", 0, "-n", 100, "--ignore-eos", "Hello")
        assert wanted != house.ids("-m", "base", "--temp", 0, "-n", 100, "--ignore-eos", "Hello")
        running = house.popen("complete", "--ids", "-m", "tuned", "--temp", 0, "-n", 100, "--ignore-eos", "Hello")
        first = running.stdout.read(1)
        house.kill("broker")
        house.kill("worker")
        out, err = running.communicate(timeout=PATIENCE_S)
        assert [int(i) for i in (first + out).split()] == wanted, err
        assert "base" in {m["name"] for m in lines(house.hearth("models", "--json").stdout)}
    shutil.rmtree(models)


main(an_adapter_counts_as_if_merged)
