"""Faults of the machine: memory, descriptors and reads that fail, a file that changes under a model that is served, a full tmpfs. The
table is in tests/README.md. HEARTH_LONG=1: every call instead of some."""
import os
import resource
import shutil
import socket
import struct
import subprocess
import tempfile

from house import BIN, FIXTURES, LONG, House, main, one_line, wait_for

SHIM = os.path.join(BIN, "..", "tests", "libhearth_faults.so")
TINY = os.path.join(FIXTURES, "hearth-tiny.gguf")
IDS = struct.pack("<8i", *range(20, 28))


def perplexity(fault, at):
    env = dict(os.environ, LD_PRELOAD=SHIM, HEARTH_FAULT=fault, HEARTH_FAULT_AT=str(at))
    return subprocess.run([os.path.join(BIN, "hearth-eval"), "--direct", TINY, "--tokens", "-", "--perplexity", "--threads",
                           "1"], input=IDS, env=env, capture_output=True, timeout=60)


def any_call_of_a_load_may_fail():
    """Reading a file, binding it, computing: the n-th call fails, and that is one line and an exit code, or it did not matter."""
    if not os.path.exists(SHIM):
        print("skipped: no fault library in this build")
        return
    good = perplexity("none", 0)
    assert good.returncode == 0 and good.stdout, good
    for fault in "malloc", "mmap", "open", "read", "short":
        at, failed, passed = 1, 0, 0
        while passed < 40 and at < 20000:
            done = perplexity(fault, at)
            if done.returncode == 0:
                assert done.stdout == good.stdout, (fault, at, done)
                passed += 1
            else:
                assert 0 < done.returncode < 100, (fault, at, done)
                assert b"Aborted" not in done.stderr and done.stderr.strip(), (fault, at, done)
                failed += 1
                passed = 0
            at += 1 if LONG or at < 12 else at // 6
            if not LONG and passed > 2 and at > 400:
                break
        assert failed > 0 or fault == "short", fault
        print("info %s: %d failures told, up to call %d" % (fault, failed, at))


def broker_runs_out_of_descriptors():
    """Silent connections take the broker's last descriptor; libzmq ends it. That is a pause."""
    with House("--device", "reference:3000") as house:
        stream = ("complete", "--ids", "--ignore-eos", "--temp", 0, "-n", 1500, "Once upon a time")
        wanted = house.hearth(*stream).stdout
        process = house.popen(*stream)
        first = process.stdout.read(1)
        pid = house.pids("broker")[0]
        n = len(os.listdir("/proc/%d/fd" % pid))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (n + 4, n + 4))
        strangers = []
        for _ in range(40):
            s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            s.settimeout(1)
            try:
                s.connect(os.path.join(house.run, "broker"))
            except OSError:
                pass
            strangers.append(s)
        rest, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert first + rest == wanted
        assert house.hearth(*stream).stdout == wanted
        print("info the broker was %s" % ("the same" if house.pids("broker") == [pid] else "replaced"))
        for s in strangers:
            s.close()


def file_changes_under_a_served_model():
    """Nothing maps a model's file: what runs is not touched. What comes later is told."""
    directory = tempfile.mkdtemp(prefix="hearth-models-")
    path = os.path.join(directory, "m.gguf")
    stream = ("complete", "--ids", "--ignore-eos", "--temp", 0, "-n", 900, "-m", "m", "Once upon a time")
    short = ("complete", "--ids", "--ignore-eos", "--temp", 0, "-n", 8, "-m", "m", "Hello")

    def replace():
        house.hearth("synth", "--arch", "llama", "--preset", "tiny", "--type", "Q8_0", "-o", path + ".new")
        os.replace(path + ".new", path)

    def cut():
        os.truncate(path, 700000)

    def scribble():
        with open(path, "r+b") as f:
            f.seek(0)
            f.write(b"\0" * 4096)

    def remove():
        os.unlink(path)

    try:
        for change in replace, cut, scribble, remove:
            shutil.copy(TINY, path)
            with House("--device", "reference:1500", models=directory) as house:
                wanted = house.hearth(*stream).stdout
                process = house.popen(*stream)
                first = process.stdout.read(1)
                change()
                rest, err = process.communicate(timeout=120)
                assert process.returncode == 0 and first + rest == wanted, (change.__name__, err)
                # A death now: what was begun with the old file goes on from memory.
                process = house.popen(*stream)
                first = process.stdout.read(1)
                if first:
                    house.kill("worker")
                rest, err = process.communicate(timeout=120)
                assert process.returncode == 0 and first + rest == wanted or one_line(err), (change.__name__, err)
                after = house.hearth(*short, check=False)
                assert after.returncode == 0 or one_line(after.stderr), (change.__name__, after)
                shutil.copy(TINY, path)
                wait_for("the old file to be served again", lambda: house.hearth(*short, check=False).returncode == 0)
    finally:
        shutil.rmtree(directory)


def a_cut_file_harms_nobody_else():
    """An error that names it, and other models are served. (Cut while it is read: tests/loader/test_load.c.)"""
    directory = tempfile.mkdtemp(prefix="hearth-models-")
    path = os.path.join(directory, "m.gguf")
    shutil.copy(TINY, os.path.join(directory, "other.gguf"))
    try:
        for size in 900000, 4096, 0:
            shutil.copy(TINY, path)
            os.truncate(path, size)
            with House("--device", "reference", models=directory) as house:
                refused = house.hearth("load", "m", check=False)
                assert refused.returncode != 0
                one_line(refused.stderr)
                assert house.hearth("complete", "--ids", "-m", "other", "-n", 3, "Hello").returncode == 0
    finally:
        shutil.rmtree(directory)


def tmpfs_is_full():
    """A journal that finds no room is an error with the figure, not a signal later."""
    base = tempfile.mkdtemp(prefix="hearth-test-")
    run = os.path.join(base, "run")
    os.mkdir(run, 0o700)
    serve = "mount -t tmpfs -o size=2m,mode=0700 none %s && exec %s serve --models %s --device reference --http off --run %s" % (
        run, os.path.join(BIN, "hearth"), FIXTURES, run)
    try:
        probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", run], capture_output=True)
    except FileNotFoundError:
        probe = None
    if probe is None or probe.returncode != 0:
        print("skipped: no mount namespace here")
        return
    log = open(os.path.join(base, "log"), "wb")
    process = subprocess.Popen(["unshare", "-m", "sh", "-c", serve], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        # A client in the same namespace: it hears why, and the service goes on.
        def ask():
            done = subprocess.run(["nsenter", "-t", str(process.pid), "-m", os.path.join(BIN, "hearth"), "complete", "--run", run,
                                   "-n", "3", "Hello"], capture_output=True, timeout=60)
            return done if b"bytes" in done.stderr else None
        done = wait_for("the refusal", ask)
        assert done.returncode not in (0, -7) and b"journal" in one_line(done.stderr).encode(), done
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(30)
        log.close()
        shutil.rmtree(base, ignore_errors=True)


main(any_call_of_a_load_may_fail, broker_runs_out_of_descriptors, file_changes_under_a_served_model,
     a_cut_file_harms_nobody_else, tmpfs_is_full)
