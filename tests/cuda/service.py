"""The whole service on a device, with a model so small that it is quick even emulated: answers survive kills of worker and broker
and swaps of adapters and models, a conversation survives a restart of everything.

    HEARTH_BIN=build/bin [HEARTH_EMULATED=build/tests/emulated] [HEARTH_DEVICE=cuda:0] python3 service.py [KILLS]

HEARTH_EMULATED holds the worker on the emulated device; a folder of programs with this one is made there (links: a program looks
for the others beside itself)."""
import glob
import os
import random
import struct
import sys
import tempfile
import time

EMULATED = os.environ.get("HEARTH_EMULATED")
if EMULATED:
    programs = os.path.join(EMULATED, os.path.splitext(os.path.basename(sys.argv[0]))[0])  # two tests, two folders
    os.makedirs(programs, exist_ok=True)
    for folder in (os.environ["HEARTH_BIN"], EMULATED):  # the later ones win
        for name in os.listdir(folder):
            if name.startswith("hearth"):
                to = os.path.join(programs, name)
                if os.path.lexists(to):
                    os.unlink(to)
                os.link(os.path.join(folder, name), to)
    os.environ["HEARTH_BIN"] = programs
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))
from house import House, lines, main, wait_for  # noqa: E402
from scripted import BOOL, F32, I32, STRING, U32, Vocabulary, array, pair, text  # noqa: E402
from streams import Streams  # noqa: E402

DIM, N_HEADS, FFN, RANK, STREAMS, ANSWERS = 64, 2, 64, 4, 3, 12
KILLS = int(sys.argv[1]) if len(sys.argv) > 1 else 6
Q8_0, SCALE_F32 = 8, 0
DEVICE = ("--device", os.environ.get("HEARTH_DEVICE", "cuda:0"))


def file(path, head, tensors):
    """tensors: (name, shape, type, bytes)."""
    infos, off = b"", 0
    for name, shape, kind, data in tensors:
        infos += text(name) + struct.pack("<I%dQIQ" % len(shape), len(shape), *shape, kind, off)
        off += len(data) + -len(data) % 32
    begin = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(head)) + b"".join(head) + infos
    with open(path, "wb") as f:
        f.write(begin + b"\0" * (-len(begin) % 32))
        for *_, data in tensors:
            f.write(data + b"\0" * (-len(data) % 32))


def matrix(chance, name, k, m):
    """Q8_0, values of about 1 / sqrt(k)."""
    scale = struct.pack("<e", 1.7 / 127 / k ** 0.5)
    blocks = [scale + chance.randbytes(32) for _ in range(k * m // 32)]
    return name + ".weight", (k, m), Q8_0, b"".join(blocks)


def model(path, n_layers=1, ffn=FFN, seed=5):
    chance, v = random.Random(seed), Vocabulary()
    for i in range(57):
        v.add("\u2581w%d" % i)
    n = len(v.pieces)
    head = [pair("general.architecture", STRING, "llama"), pair("general.name", STRING, "mini"), pair("llama.block_count", U32, n_layers),
            pair("llama.context_length", U32, 512), pair("llama.embedding_length", U32, DIM), pair("llama.vocab_size", U32, n),
            pair("llama.feed_forward_length", U32, ffn), pair("llama.attention.head_count", U32, N_HEADS),
            pair("llama.attention.head_count_kv", U32, 1), pair("llama.attention.layer_norm_rms_epsilon", F32, 1e-6),
            pair("llama.rope.freq_base", F32, 10000.0), pair("tokenizer.ggml.model", STRING, "llama"),
            array("tokenizer.ggml.tokens", STRING, v.pieces), array("tokenizer.ggml.scores", F32, [-1000.0] * n),
            array("tokenizer.ggml.token_type", I32, v.types), pair("tokenizer.ggml.bos_token_id", U32, 1),
            pair("tokenizer.ggml.eos_token_id", U32, 2), pair("tokenizer.ggml.unknown_token_id", U32, 0),
            pair("tokenizer.ggml.add_bos_token", BOOL, 0), pair("tokenizer.ggml.add_space_prefix", BOOL, 0)]
    ones, kv = struct.pack("<%df" % DIM, *[1.0] * DIM), DIM // N_HEADS
    tensors = [("output_norm.weight", (DIM,), SCALE_F32, ones), matrix(chance, "token_embd", DIM, n), matrix(chance, "output", DIM, n)]
    for i in range(n_layers):
        tensors += [("blk.%d.%s.weight" % (i, name), (DIM,), SCALE_F32, ones) for name in ("attn_norm", "ffn_norm")]
        tensors += [matrix(chance, "blk.%d.%s" % (i, name), k, m) for name, k, m in (
            ("attn_q", DIM, DIM), ("attn_k", DIM, kv), ("attn_v", DIM, kv), ("attn_output", DIM, DIM), ("ffn_gate", DIM, ffn),
            ("ffn_up", DIM, ffn), ("ffn_down", ffn, DIM))]
    file(path, head, tensors)


def adapter(path, ffn=FFN):
    chance, tensors = random.Random(6), []
    for name, k, m in (("blk.0.attn_q.weight", DIM, DIM), ("blk.0.ffn_down.weight", ffn, DIM)):
        for suffix, shape in ((".lora_a", (k, RANK)), (".lora_b", (RANK, m))):
            values = [chance.uniform(-1, 1) for _ in range(shape[0] * shape[1])]
            tensors.append((name + suffix, shape, SCALE_F32, struct.pack("<%df" % len(values), *values)))
    file(path, [pair("general.type", STRING, "adapter"), pair("adapter.type", STRING, "lora"),
                pair("general.architecture", STRING, "llama"), pair("adapter.lora.alpha", F32, 8.0)], tensors)


def job(i, n=24):
    kind = [("--temp", 0), ("--temp", 0.9, "--top-k", 30), ("--temp", 1.1, "--min-p", 0.05, "--repeat-penalty", 1.2),
            ("--temp", 0.8, "--mirostat", 2)][i % 4]
    return ("complete", "--ids", *kind, "--seed", i, "-n", n + i % 5, "-m", "tuned" if i % 3 == 2 else "mini", "w1w%d w%d" % (i, 9 + i))


def nothing_is_lost(base, models):
    chance = random.Random(1)
    config, lora = os.path.join(base, "hearth.conf"), os.path.join(base, "adapter.gguf")
    adapter(lora)
    with open(config, "w") as f:
        f.write("[alias tuned]\nmodel = mini\nlora = %s\n" % lora)
    with House("--config", config, *DEVICE, models=models) as house:
        wanted = {i: house.hearth(*job(i)).stdout for i in range(8)}
        assert wanted[2] != house.hearth(*job(2)[:-2], "mini", job(2)[-1]).stdout  # the adapter acts

        killed = 0
        until = time.monotonic() + 20 * KILLS  # a kill comes when answers are under way, not at a pace
        with Streams(house, job, wanted, STREAMS) as streams:
            while (killed < KILLS or len(streams.finished) < ANSWERS) and not streams.wrong and time.monotonic() < until:
                time.sleep(chance.uniform(0.2, 1.0))
                killed += house.kill("broker" if killed == 3 else "worker") is not None
                streams.more()  # a worker that has just come tests its device first
        assert killed >= KILLS and "poison" not in house.log(), killed
    print("info %d kills, %d requests finished, none different" % (killed, len(streams.finished)))


def say(i):
    return ("complete", "--ids", "--temp", 0.9, "--seed", i, "-n", 12, "-m", ("mini", "mono")[i % 2], "w%d w3" % i)


def weights_stay_while_states_come_and_go(base, models):
    """RAM holds two models' weights and one's state: each swap binds what the worker has mapped and registered already. Kills make it
    begin anew."""
    chance = random.Random(2)
    model(os.path.join(models, "mono.gguf"), seed=7)
    with House("--ram-budget", "280K", "--sequences", "2", "--min-residency", "0", "--swap-wait-max", "1", *DEVICE,
               models=models) as house:
        wanted = {i: house.hearth(*say(i)).stdout for i in range(8)}
        refused = "are not registered for DMA" in house.log()  # a device may be like that
        if not refused:
            wait_for("two registrations", lambda: house.log().count("are registered for DMA") >= 2)
        counts = [house.log().count(what) for what in ("are registered for DMA", "cold -> loading", "-> resident")]
        assert (refused or counts[0] == 2) and counts[1] == 2 and counts[2] >= 8, (counts, house.log()[-6000:])

        with Streams(house, say, wanted, STREAMS) as streams:
            for killed in range(KILLS // 2):
                time.sleep(chance.uniform(0.1, 0.6))
                house.kill("broker" if killed % 3 == 2 else "worker")
                streams.more()
        house.hearth("unload", "mini")
        house.hearth("unload", "mono")
        wait_for("unloading", lambda: not [m for m in house.status()["models"] if m["state"] != "cold"])
        assert "let go" in house.log()
        print("info %d requests finished, %d models bound, %d times registered" % (
            len(streams.finished), house.log().count("-> resident"), house.log().count("are registered for DMA")))
    os.unlink(os.path.join(models, "mono.gguf"))


def a_conversation_survives_a_restart(base, models):
    prompt = " ".join("w%d" % (i % 57) for i in range(30))
    say = ("complete", "--json", "--temp", 0.8, "--seed", 3, "-n", 12, "--ignore-eos", "-m", "mini", prompt)
    state = os.path.join(base, "state")
    os.mkdir(state, 0o700)
    with House("--state-dir", state, *DEVICE, models=models) as house:
        cold = lines(house.hearth(*say).stdout)
        assert house.stop() == 0
        assert len(glob.glob(os.path.join(state, "*.kv"))) == 1, house.log()
        house.start()
        warm = lines(house.hearth(*say).stdout)
        assert [t["id"] for t in warm[:-1]] == [t["id"] for t in cold[:-1]]
        usage = warm[-1]["usage"]
        assert usage["cached_tokens"] == usage["prompt_tokens"] - 1, (usage, house.log())


def everything():
    with tempfile.TemporaryDirectory(prefix="hearth-models-") as base:
        models = os.path.join(base, "models")
        os.mkdir(models)
        model(os.path.join(models, "mini.gguf"))
        for test in (nothing_is_lost, weights_stay_while_states_come_and_go, a_conversation_survives_a_restart):
            started = time.monotonic()
            test(base, models)
            print("ok %s (%.1f s)" % (test.__name__, time.monotonic() - started), flush=True)


if __name__ == "__main__":
    main(everything)
