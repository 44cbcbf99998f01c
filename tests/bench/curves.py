"""Decode of hearth and llama.cpp against the context and against the sequences side by side: a Markdown table and two pictures.

    python3 tests/bench/curves.py --bin build/bin --model 1b.gguf --rival VENV/bin/python3 --out tests/bench \\
        [--context 0,1024,2048,4096] [--batch 1,2,4,8] [--threads 2] [--rounds 5] [--rest 5]

A run is one process that loads the file and measures one point; the two sides take turns (A B A B) at every point. The rival's
contexts are filled once, each from the one before (name them in ascending order), and read back as its saved states; hearth fills
its own each time. Both keep keys and values as f16. Sequences side by side have a prompt of 16 tokens each, in llama.cpp as a
stream of keys and values for each.
The rival is the one of rival.py; without --rival hearth is drawn alone."""
import argparse
import os
import statistics
import tempfile
import time

from rival import one_json

BATCH_PROMPT = 16

# MODEL THREADS FOLDER fill BEGIN END, or MODEL THREADS FOLDER decode DEPTH N_SEQS N_GEN; the folder has the states by depth.
RIVAL = r'''
import ctypes, json, os, sys, time
import llama_cpp as L
model, threads, folder, deed, numbers = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], [int(n) for n in sys.argv[5:]]
depth, n_seqs, n_gen = (numbers[1], 1, 0) if deed == "fill" else numbers
L.llama_backend_init()
m = L.llama_model_load_from_file(model.encode(), L.llama_model_default_params())
p = L.llama_context_default_params()
p.n_ctx, p.n_seq_max, p.kv_unified = n_seqs * (depth + n_gen + 256), n_seqs, False
p.n_batch, p.n_ubatch, p.n_threads, p.n_threads_batch = 512, 512, threads, threads
c = L.llama_init_from_model(m, p)
batch = L.llama_batch_init(512, 0, 1)
def token_at(pos, seq):
    return 3 + (pos * 7919 + seq * 31) % 240
def step(rows):
    batch.n_tokens = len(rows)
    for i, (pos, seq, logits) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token_at(pos, seq), pos, 1, logits
        batch.seq_id[i][0] = seq
    assert L.llama_decode(c, batch) == 0
def prefill(seq, begin, end):
    for at in range(begin, end, 512):
        step([(pos, seq, pos == end - 1) for pos in range(at, min(at + 512, end))])
def state(n):
    return os.path.join(folder, str(n)).encode()
def restore(n):
    assert L.llama_state_load_file(c, state(n), (L.llama_token * n)(), n, ctypes.byref(ctypes.c_size_t()))
if deed == "fill":
    if numbers[0]:
        restore(numbers[0])
    prefill(0, *numbers)
    assert L.llama_state_save_file(c, state(depth), (L.llama_token * depth)(), depth)
    print("{}")
    sys.exit()
if os.path.exists(state(depth)):
    restore(depth)
else:
    for seq in range(n_seqs):
        prefill(seq, 0, depth)
for pos in range(depth, depth + 2):  # what only a first step costs is not measured
    step([(pos, seq, True) for seq in range(n_seqs)])
start = time.perf_counter()
for pos in range(depth + 2, depth + 2 + n_gen):
    step([(pos, seq, True) for seq in range(n_seqs)])
print(json.dumps({"decode_tps": n_seqs * n_gen / (time.perf_counter() - start)}))
'''


def measure(a, folder, depth, prompt, n_seqs):
    """Tokens a second of both sides at one point, round by round: (hearth's, the rival's)."""
    ours, theirs = [], []
    for _ in range(a.rounds):
        ours.append(one_json(a.prefix.split() + [
            os.path.join(a.bin, "hearth"), "bench", "--direct", a.model, "--threads", str(a.threads), "-p", str(prompt),
            "-d", str(depth), "-n", str(a.gen), "--parallel", str(n_seqs), "-r", "1", "--json"])["decode_tps"])
        time.sleep(a.rest)
        if a.rival:
            theirs.append(one_json(a.prefix.split() + [
                a.rival, "-c", RIVAL, a.model, str(a.threads), folder, "decode", str(depth + prompt), str(n_seqs),
                str(a.gen)])["decode_tps"])
            time.sleep(a.rest)
    return ours, theirs


def print_row(name, ours, theirs):
    row = [name, "%.1f" % statistics.median(ours)]
    if theirs:
        pairs = [x / y for x, y in zip(ours, theirs)]
        row += ["%.1f" % statistics.median(theirs), "%.2f" % (statistics.median(ours) / statistics.median(theirs)),
                "%.2f to %.2f" % (min(pairs), max(pairs))]
    print("| %s |" % " | ".join(row), flush=True)


def round_up(value):
    """A round number above value, and the distance of the lines below it."""
    step = 1.0
    while value / step > 6:
        step *= 2.5 if str(step)[0] == "2" else 2
    return (int(value / step) + 1) * step, step


def draw(path, title, x_label, points):
    """points: [(x, ours, theirs)], x ascending; a line through the medians, a bar from the least to the most."""
    width, height, left, top, right, bottom = 560, 320, 52, 40, 92, 44
    x_max = points[-1][0]
    y_max, y_step = round_up(max(max(ours + theirs) for _, ours, theirs in points))

    def at_x(x):
        return left + x * (width - left - right) / x_max

    def at_y(y):
        return height - bottom - y * (height - top - bottom) / y_max

    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d"' % (width, height),
           ' font-family="sans-serif" font-size="12">',
           '<rect width="%d" height="%d" fill="#fff"/>' % (width, height),
           '<text x="%d" y="20" font-size="14">%s</text>' % (left, title)]
    y = 0.0
    while y <= y_max:
        out.append('<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>' % (
            left, at_y(y), width - right, left - 6, at_y(y) + 4, y))
        y += y_step
    for x, _, _ in points:
        out.append('<text x="%.1f" y="%d" text-anchor="middle">%d</text>' % (at_x(x), height - bottom + 16, x))
    out.append('<text x="%.1f" y="%d" text-anchor="middle">%s</text>' % ((left + width - right) / 2, height - 10, x_label))
    for name, colour, side in (("hearth", "#c2410c", 1), ("llama.cpp", "#1d4ed8", 2)):
        mine = [(at_x(p[0]), p[side]) for p in points if p[side]]
        if not mine:
            continue
        middle = [(x, at_y(statistics.median(values))) for x, values in mine]
        out.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>' % (
            " ".join("%.1f,%.1f" % xy for xy in middle), colour))
        for (x, y), (_, values) in zip(middle, mine):
            out.append('<path d="M%.1f %.1fV%.1f" stroke="%s"/><circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>' % (
                x, at_y(min(values)), at_y(max(values)), colour, x, y, colour))
        out.append('<text x="%.1f" y="%.1f" fill="%s">%s</text>' % (middle[-1][0] + 8, middle[-1][1] + 4, colour, name))
    with open(path, "w") as f:
        f.write("\n".join(out + ["</svg>", ""]))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bin", required=True)
    ap.add_argument("--model", required=True)
    ap.add_argument("--rival")
    ap.add_argument("--out", required=True, help="folder of context.svg and batch.svg")
    ap.add_argument("--context", default="0,1024,2048,4096")
    ap.add_argument("--batch", default="1,2,4,8")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--gen", type=int, default=24)
    ap.add_argument("--rest", type=float, default=0, help="seconds after each run, for the machine's other work")
    ap.add_argument("--prefix", default="", help="before each measured command, as 'chrt -r 50'")
    a = ap.parse_args()
    depths, batches = [int(n) for n in a.context.split(",")], [int(n) for n in a.batch.split(",")]
    with tempfile.TemporaryDirectory(prefix="hearth-curves-") as folder:
        begin = 0
        for end in [n + 1 for n in depths if n and a.rival]:
            one_json(a.prefix.split() + [a.rival, "-c", RIVAL, a.model, str(a.threads), folder, "fill", str(begin), str(end)])
            begin = end
        print("| decode | hearth, tokens/s%s |" % (" | llama.cpp | ratio of medians | pairs" if a.rival else ""))
        print("| --- | --- |%s" % (" --- | --- | --- |" if a.rival else ""))
        context = []  # (depth, hearth's tokens/s, the rival's)
        for n in depths:
            context.append((n,) + measure(a, folder, n, 1, 1))
            print_row("at %d positions" % n, *context[-1][1:])
        draw(os.path.join(a.out, "context.svg"), "Decode, tokens/s", "tokens of context", context)
        batch = []
        for n in batches:
            batch.append((n,) + measure(a, folder, 0, BATCH_PROMPT, n))
            print_row("%d side by side" % n, *batch[-1][1:])
        draw(os.path.join(a.out, "batch.svg"), "Decode of all sequences together, tokens/s", "sequences side by side", batch)


if __name__ == "__main__":
    main()
