"""hearth beside llama.cpp on the same file, threads and prompt, alternating; medians and ratios as a Markdown table.

    python3 tests/bench/rival.py --bin build/bin --model 1b.gguf --rival VENV/bin/python3 [--threads 1,2] [--rounds 5]
    python3 tests/bench/rival.py ... --service          # hearth bench -m against hearth bench --direct instead of a rival

The rival is the package llama-cpp-python, built in release mode for the native instruction set, outside the repository:
CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

RIVAL = r'''
import ctypes, json, sys, time
import llama_cpp as L
model, threads, n_prompt, n_gen = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
L.llama_backend_init()
m = L.llama_model_load_from_file(model.encode(), L.llama_model_default_params())
p = L.llama_context_default_params()
p.n_ctx, p.n_batch, p.n_ubatch, p.n_threads, p.n_threads_batch = n_prompt + n_gen + 64, 512, 512, threads, threads
c = L.llama_init_from_model(m, p)
def run(ids):
    array = (L.llama_token * len(ids))(*ids)
    for at in range(0, len(ids), 512):
        n = min(512, len(ids) - at)
        part = ctypes.cast(ctypes.byref(array, at * 4), ctypes.POINTER(L.llama_token))
        assert L.llama_decode(c, L.llama_batch_get_one(part, n)) == 0
run([5, 6, 7])
L.llama_memory_clear(L.llama_get_memory(c), True)
t0 = time.perf_counter(); run([3 + (i * 7919) % 240 for i in range(n_prompt)]); t1 = time.perf_counter()
for i in range(n_gen):
    run([5 + i % 100])
t2 = time.perf_counter()
print(json.dumps({"prefill_tps": n_prompt / (t1 - t0), "decode_tps": n_gen / (t2 - t1)}))
'''


def one_json(command, env=None):
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    if done.returncode:
        sys.exit("%s: %s" % (command[:3], done.stderr[-500:]))
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bin", required=True)
    ap.add_argument("--model", required=True)
    ap.add_argument("--rival")
    ap.add_argument("--service", action="store_true")
    ap.add_argument("--threads", default="1,2")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--prompt", type=int, default=512)
    ap.add_argument("--gen", type=int, default=64)
    ap.add_argument("--prefix", default="", help="before each measured command, as 'chrt -r 50'")
    a = ap.parse_args()
    hearth = os.path.join(a.bin, "hearth")
    prefix = a.prefix.split()
    common = ["-p", str(a.prompt), "-n", str(a.gen), "-r", "1", "--json"]
    print("| threads | what | %s | %s | ratio of medians | lowest and highest ratio of a pair |" %
          (("service", "direct") if a.service else ("hearth", "llama.cpp")))
    print("| --- | --- | --- | --- | --- | --- |")
    for threads in a.threads.split(","):
        ours, theirs, service = [], [], None
        run = tempfile.mkdtemp(prefix="hearth-bench-")
        env = dict(os.environ, HEARTH_RUNTIME_DIR=run)
        direct = [hearth, "bench", "--direct", a.model, "--threads", threads] + common
        if a.service:
            service = subprocess.Popen([hearth, "serve", "--models", os.path.dirname(os.path.abspath(a.model)), "--threads",
                                        threads, "--http", "off"], env=env, stderr=subprocess.DEVNULL)
            subprocess.run([hearth, "status", "--wait", "60"], env=env, check=True)
            name = os.path.basename(a.model)[:-5]
            subprocess.run([hearth, "load", name], env=env, check=True)
        try:
            for _ in range(a.rounds):
                if a.service:
                    ours.append(one_json(prefix + [hearth, "bench", "-m", name] + common, env))
                    theirs.append(one_json(prefix + direct))
                else:
                    ours.append(one_json(prefix + direct))
                    theirs.append(one_json(prefix + [a.rival, "-c", RIVAL, a.model, threads, str(a.prompt), str(a.gen)]))
        finally:
            if service:
                service.terminate()
                service.wait()
        for what in ("prefill_tps", "decode_tps"):
            x, y = [r[what] for r in ours], [r[what] for r in theirs]
            pairs = [p / q for p, q in zip(x, y)]
            print("| %s | %s, tokens/s | %.1f | %.1f | %.2f | %.2f to %.2f |" % (
                threads, what.split("_")[0], statistics.median(x), statistics.median(y),
                statistics.median(x) / statistics.median(y), min(pairs), max(pairs)), flush=True)


if __name__ == "__main__":
    main()
