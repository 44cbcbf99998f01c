"""A whole hearth for a test: its processes in a directory of their own, and the programs that talk to it.

    with House() as house:
        out = house.hearth("ask", "Hello")        # CompletedProcess; .stdout is bytes

Every wait has a deadline; nothing waits for time to pass. Run a file alone: HEARTH_BIN=build/bin python3 20_one_prompt.py"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = os.path.join(HERE, "..", "fixtures")
BIN = os.environ.get("HEARTH_BIN") or os.path.join(HERE, "..", "..", "build-test", "bin")
LONG = bool(os.environ.get("HEARTH_LONG"))
PATIENCE_S = 60  # a machine with many other things to do still gets this far


class House:
    def __init__(self, *options, models=FIXTURES, run=None, start=True, env=None):
        self.base = tempfile.mkdtemp(prefix="hearth-test-")
        self.run = run or os.path.join(self.base, "run")
        self.options = list(options) + os.environ.get("HEARTH_TEST_OPTIONS", "").split()  # another device, say
        self.models = [models] if isinstance(models, str) else list(models)
        self.env = dict(os.environ, HEARTH_RUNTIME_DIR=self.run, **(env or {}))
        self.env.pop("HEARTH_LOG", None)
        self.log_path = os.path.join(self.base, "log")
        self.process = None
        if start:
            self.start()

    # ---- the service ----
    def start(self, wait=True):
        args = [os.path.join(BIN, "hearth"), "serve"]
        for directory in self.models:
            args += ["--models", directory]
        if "--http" not in self.options:
            args += ["--http", "off"]  # many houses stand side by side
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(args + self.options, env=self.env, stderr=log, stdout=log,
                                            stdin=subprocess.DEVNULL)
        if not wait:
            return
        waited = self.hearth("status", "--wait", str(PATIENCE_S), check=False)
        if waited.returncode != 0:
            self.process.kill()
            self.process.wait()
            raise AssertionError("not ready: %s\n%s" % (waited.stderr.decode(), self.log()))

    def stop(self):
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        self.process = None
        return code

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def status(self):
        return json.loads(self.hearth("status", "--json").stdout)

    def pids(self, role):
        return [p["pid"] for p in self.status()["processes"] if p["role"] == role]

    def kill(self, role, number=signal.SIGKILL):
        """Kills one process of a role, if there is one; its pid or None."""
        for pid in self.pids(role):
            try:
                os.kill(pid, number)
                return pid
            except ProcessLookupError:
                pass
        return None

    # ---- clients ----
    def argv(self, *args):
        return [os.path.join(BIN, "hearth")] + [str(a) for a in args]

    def hearth(self, *args, check=True, input=b"", timeout=PATIENCE_S * 2):
        done = subprocess.run(self.argv(*args), env=self.env, input=input, capture_output=True, timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError("hearth %s: exit %d: %s\n%s" % (" ".join(map(str, args)), done.returncode,
                                                                done.stderr.decode(), self.log()))
        return done

    def popen(self, *args):
        # Unbuffered: communicate() would not see what read() has taken beyond its byte.
        return subprocess.Popen(self.argv(*args), env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, bufsize=0)

    def ids(self, *args):
        """The token ids of a completion."""
        return [int(line) for line in self.hearth("complete", "--ids", *args).stdout.split()]

    # ---- the end ----
    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if self.process:
            if kind:
                sys.stderr.write(self.log())
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.base, ignore_errors=True)


def wait_for(what, condition, seconds=PATIENCE_S):
    """Polls until condition() gives something true, which is returned."""
    until = time.monotonic() + seconds
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > until:
            raise AssertionError("waited %d s for %s" % (seconds, what))
        time.sleep(0.02)


def lines(stdout):
    return [json.loads(line) for line in stdout.splitlines() if line.strip()]


def one_line(stderr):
    """An error is one line."""
    text = stderr.decode().strip()
    assert text and "\n" not in text, text
    return text


def partial_of(test, house):
    """A test of a house that several share, under its own name."""
    def run():
        test(house)
    run.__name__ = test.__name__
    return run


def main(*tests):
    for test in tests:
        started = time.monotonic()
        test()
        print("ok %s (%.1f s)" % (test.__name__, time.monotonic() - started), flush=True)
