"""A Python of its own for tests that need foreign packages: beside the build's programs, made once, never needed by anything else."""
import hashlib
import os
import shutil
import subprocess
import sys
import time

from house import BIN, HERE

INSTALL_S = 60
SKIPPED = 77  # what ctest takes for "skipped"
WANTED = os.path.join(HERE, "sdk_requirements.txt")


def run(argv, until):
    """None, or why not: the last line that it said."""
    try:
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=max(1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "not installed within %d s" % INSTALL_S
    said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return None if done.returncode == 0 else (said or ["no word"])[-1]


def make(directory):
    """None, or why it cannot be."""
    until = time.monotonic() + INSTALL_S
    shutil.rmtree(directory, ignore_errors=True)
    python = os.path.join(directory, "bin", "python")
    why = run([sys.executable, "-m", "venv", directory], until) or run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries", "0", "--timeout", "15", "-r", WANTED], until)
    if why:
        shutil.rmtree(directory, ignore_errors=True)
    return why


def place():
    with open(WANTED, "rb") as f:
        name = "sdk-" + hashlib.sha256(f.read() + sys.version.encode()).hexdigest()[:12]
    return os.environ.get("HEARTH_SDK_VENV") or os.path.join(os.path.dirname(os.path.abspath(BIN)), name)


def ready():
    """Its directory, if it has been made; else None. Makes nothing."""
    directory = place()
    return directory if os.path.exists(os.path.join(directory, "done")) else None


def enter():
    """Goes on in that Python; ends the test as skipped where it cannot be made."""
    directory = place()
    python, done = os.path.join(directory, "bin", "python"), os.path.join(directory, "done")
    if os.path.abspath(sys.prefix) == os.path.abspath(directory):
        return
    if not os.path.exists(done):
        why = make(directory)
        if why:
            print("skipped: the packages of sdk_requirements.txt are not here: %s" % why)
            sys.exit(SKIPPED)
        with open(done, "w"):
            pass
    sys.stdout.flush()
    os.execv(python, [python] + sys.argv)
