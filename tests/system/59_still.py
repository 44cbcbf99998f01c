"""Who stands still, and what is scarce: processes that are stopped for less than the watch minds, readers that do not read while the worker
writes 50,000 tokens a second, connections that are half open, a file that is read slowly, memory and descriptors that run out in one process.
Nobody dies of it whom nobody killed, no token has two writers (every stream is what it is alone), and the others go on. HEARTH_LONG=1:
longer and oftener."""
import json
import os
import random
import resource
import shutil
import signal
import socket
import tempfile
import threading
import time

from house import BIN, FIXTURES, LONG, House, main, one_line, wait_for
from web import stream

SHIM = os.path.join(BIN, "..", "tests", "libhearth_faults.so")
TINY = os.path.join(FIXTURES, "hearth-tiny.gguf")
STORY = ("complete", "--ids", "--ignore-eos", "--temp", 0, "-n", 1900, "Once upon a time")
HALF_GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3"


def stand_still(pid, seconds):
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def chaos(house, seconds, clients=4):
    """Streams that are checked token by token, and nothing that disturbs them."""
    return house.popen("chaos", "--reference", "--kills", 0, "--seconds", seconds, "--clients", clients)


def all_right(process):
    out, err = process.communicate(timeout=120)
    summary = json.loads(out)
    assert process.returncode == 0 and summary["tokens"] > 0, (out, err)
    return summary


def a_short_stop_is_no_death():
    """Less than the five seconds of the watch: a pause, the same process, the same tokens."""
    chance = random.Random(7)
    with House("--device", "reference:20000") as house:
        pids = {role: house.pids(role) for role in ("worker", "broker", "loader")}
        others = chaos(house, 20 if LONG else 4)
        stops = [("worker", 4 if LONG else 2), ("broker", 4 if LONG else 1)]
        stops += [(chance.choice(("worker", "broker")), 0.1 + chance.random() / 4) for _ in range(40 if LONG else 4)]
        for role, seconds in stops:
            stand_still(pids[role][0], seconds)
            time.sleep(0.1)
        all_right(others)
        for role in "worker", "broker":
            assert house.pids(role) == pids[role], (role, house.log())
        assert "hung" not in house.log() and "died" not in house.log(), house.log()


def a_reader_that_stands_still_holds_up_itself():
    """A client, the broker and the gateway in turn: what the worker writes for them waits in the journal, the others have theirs."""
    with House("--device", "reference:50000", "--http", "127.0.0.1:0") as house:
        wanted = house.hearth(*STORY).stdout
        body = {"prompt": "Once upon a time", "max_tokens": 1900, "temperature": 0, "ignore_eos": True}
        text = stream(house, "/v1/completions", body)
        for who in "client", "broker", "http":
            answers = []
            mine = house.popen(*STORY)
            first = mine.stdout.read(1)
            far = threading.Thread(target=lambda: answers.append(stream(house, "/v1/completions", body)))
            far.start()
            pid = mine.pid if who == "client" else house.pids(who)[0]
            # The program that a verb is, not the one that finds it: they are the same process.
            others = chaos(house, 1) if who != "broker" else None
            stand_still(pid, 1)
            rest, err = mine.communicate(timeout=60)
            far.join(60)
            assert mine.returncode == 0 and first + rest == wanted, (who, err)
            tokens = [[c["text"] for e in got if e for c in e["choices"]] for got in (text, answers[0])]
            assert "".join(tokens[0]) == "".join(tokens[1]), who
            if others:
                all_right(others)


def half_open_connections_cost_nobody():
    """Greetings that stop in the middle, silence, nonsense: they are closed after a while, and nobody waits for them."""
    with House("--device", "reference:20000") as house:
        broker = house.pids("broker")[0]
        before = len(os.listdir("/proc/%d/fd" % broker))
        lines = []
        for i in range(400 if LONG else 60):
            for name, words in ("broker", (HALF_GREETING, b"", os.urandom(40))), ("attach", (b"", b"x", os.urandom(40))):
                s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if name == "broker" else socket.SOCK_SEQPACKET)
                s.connect(os.path.join(house.run, name))
                try:
                    s.send(words[i % 3])
                except OSError:
                    pass  # it was closed already
                lines.append(s)
        all_right(chaos(house, 1))
        assert house.pids("broker") == [broker], house.log()
        for s in lines:
            s.close()
        wait_for("the descriptors back", lambda: len(os.listdir("/proc/%d/fd" % broker)) <= before + 4)


def a_slow_file_delays_its_model_alone():
    """Every read takes a quarter of a second; the other model streams meanwhile, and the slow one comes."""
    if not os.path.exists(SHIM):
        print("skipped: no fault library in this build")
        return
    directory = tempfile.mkdtemp(prefix="hearth-models-")
    shutil.copy(TINY, os.path.join(directory, "a.gguf"))
    shutil.copy(TINY, os.path.join(directory, "b.gguf"))
    config = os.path.join(directory, "config")
    try:
        with House("--device", "reference:20000", "--source", "pread", models=directory,
                   env={"LD_PRELOAD": SHIM, "HEARTH_FAULT": "slow", "HEARTH_FAULT_AT": "250",
                        "HEARTH_FAULT_IN": "hearth-loader"}) as house:
            wanted = house.hearth(*STORY[:-1], "-m", "a", STORY[-1]).stdout
            mine = house.popen(*STORY[:-1], "-m", "a", STORY[-1])
            assert house.hearth("load", "b").returncode == 0
            out, err = mine.communicate(timeout=60)
            assert mine.returncode == 0 and out == wanted, err
            assert house.hearth(*STORY[:-1], "-m", "b", STORY[-1]).stdout == wanted
    finally:
        shutil.rmtree(directory)


def one_process_without_memory():
    """Its address space ends here: what needs more is told or is a pause, what runs is not touched."""
    directory = tempfile.mkdtemp(prefix="hearth-models-")
    shutil.copy(TINY, os.path.join(directory, "a.gguf"))
    shutil.copy(TINY, os.path.join(directory, "b.gguf"))
    story = STORY[:-1] + ("-m", "a", STORY[-1])
    try:
        for role in "worker", "broker":
            with House("--device", "reference:5000", models=directory) as house:
                wanted = house.hearth(*story).stdout
                mine = house.popen(*story)
                first = mine.stdout.read(1)
                pid = house.pids(role)[0]
                with open("/proc/%d/status" % pid) as f:
                    used = next(int(line.split()[1]) << 10 for line in f if line.startswith("VmSize"))
                resource.prlimit(pid, resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
                done = house.hearth("load", "b", check=False)
                assert done.returncode == 0 or one_line(done.stderr), (role, done)
                crowd = [house.popen("status") for _ in range(30)]
                for c in crowd:
                    c.communicate(timeout=60)
                rest, err = mine.communicate(timeout=60)
                assert mine.returncode == 0 and first + rest == wanted, (role, err, house.log())
                try:
                    resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                except ProcessLookupError:
                    pass
                wait_for("the other model", lambda: house.hearth("load", "b", check=False).returncode == 0)
                assert house.hearth(*story).stdout == wanted
                print("info %s without memory: a load %s, the process is %s" % (
                    role, "failed" if done.returncode else "came", "the same" if house.pids(role) == [pid] else "another"))
    finally:
        shutil.rmtree(directory)


def any_descriptor_may_be_refused():
    """The n-th socket, accept, eventfd or memfd of keeper, broker or worker, once: they come up, or a new one does, and serve."""
    if not os.path.exists(SHIM):
        print("skipped: no fault library in this build")
        return
    n_struck = 0
    for program in "hearth-broker", "hearth-worker", "hearth-keeper":
        for fault in "socket", "accept", "eventfd", "memfd":
            for at in range(1, 30) if LONG else (1,):
                base = tempfile.mkdtemp(prefix="hearth-once-")
                once = os.path.join(base, "once")
                open(once, "w").close()
                try:
                    with House("--device", "reference:20000",
                               env={"LD_PRELOAD": SHIM, "HEARTH_FAULT": fault, "HEARTH_FAULT_AT": str(at),
                                    "HEARTH_FAULT_IN": program, "HEARTH_FAULT_ONCE": once}, start=False) as house:
                        house.start(wait=False)
                        short = ("complete", "--ids", "--ignore-eos", "--temp", 0, "-n", 20, "Hello")

                        def served():
                            if house.process.poll() is not None:  # nobody has been served yet: it may end, with a line
                                assert 0 < house.process.returncode < 100 and "Too many open files" in house.log(), house.log()
                                house.start(wait=False)
                            done = house.hearth(*short, check=False)
                            return done.stdout if done.returncode == 0 else None
                        first = wait_for("an answer", served)
                        assert len(first.split()) == 20 and served() == first, (program, fault, at)
                        n_struck += not os.path.exists(once)
                finally:
                    shutil.rmtree(base)
    print("info %d descriptors refused" % n_struck)
    assert n_struck > 3


main(a_short_stop_is_no_death, a_reader_that_stands_still_holds_up_itself, half_open_connections_cost_nobody,
     a_slow_file_delays_its_model_alone, one_process_without_memory, any_descriptor_may_be_refused)
