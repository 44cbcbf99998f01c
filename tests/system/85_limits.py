"""Memory that is not there: a full tmpfs, a model beyond the budget, a journal without room. An error each, and nothing is lost."""
import json
import os
import shutil
import subprocess
import tempfile

from house import BIN, FIXTURES, House, main, one_line, wait_for

TINY = os.path.join(FIXTURES, "hearth-tiny.gguf")


def a_model_beyond_the_budget_is_exit_5_with_the_numbers():
    models = tempfile.mkdtemp(prefix="hearth-models-")
    os.symlink(os.path.abspath(TINY), os.path.join(models, "tiny.gguf"))
    big = os.path.join(models, "big.gguf")
    subprocess.run([os.path.join(BIN, "hearth"), "synth", "--arch", "llama", "--preset", "tiny", "--type", "F32", "-o", big],
                   check=True, capture_output=True)
    with House("--ram-budget", str(max(os.path.getsize(TINY) * 2, 40 << 20)), models=models) as house:
        if os.path.getsize(big) > 50 << 20:
            done = house.hearth("complete", "-m", "big", "-n", 2, "Hello", check=False)
            assert done.returncode == 5, done
            one_line(done.stderr)
    with House("--ram-budget", "1M", models=models) as house:
        done = house.hearth("complete", "-m", "tiny", "-n", 2, "Hello", check=False)
        assert done.returncode == 5, done
        text = one_line(done.stderr)
        assert any(c.isdigit() for c in text), text
        assert house.status()["ready"]
    shutil.rmtree(models)


def a_full_tmpfs_is_an_error_and_not_a_death():
    """The runtime directory on a tmpfs of 2 MiB: the journal does not fit, who asks is told so."""
    mount = tempfile.mkdtemp(prefix="hearth-tmpfs-")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", mount], capture_output=True).returncode != 0:
        print("skipped: this user may not mount a tmpfs")
        os.rmdir(mount)
        return
    try:
        with House(run=os.path.join(mount, "run"), start=False) as house:
            house.start(wait=False)
            wait_for("the broker", lambda: "hearth: ready" in house.log())
            done = house.hearth("complete", "-n", 2, "Hello", check=False)
            assert done.returncode in (1, 5), done
            text = one_line(done.stderr)
            assert "journal" in text, text
            assert house.process.poll() is None
    finally:
        subprocess.run(["umount", mount], check=True)
        os.rmdir(mount)


def a_journal_without_room_is_busy_and_recovers():
    """Detached answers are kept until they are fetched: when no room is left the next one is told so, and fetching makes room."""
    with House() as house:
        total = json.loads(house.hearth("status", "--json").stdout)["memory"]
        kept, busy = [], None
        for i in range(600):
            done = house.hearth("ask", "--temp", 0, "-n", 1000, "--ignore-eos", "--detach", "Hello", check=False)
            if done.returncode != 0:
                busy = done
                break
            kept.append(done.stdout.decode().strip())
            house.hearth("cancel", kept[-1], check=False)
        assert busy is not None, (len(kept), total)
        assert busy.returncode == 6, busy
        one_line(busy.stderr)
        for ident in kept[:8]:
            house.hearth("attach", ident, check=False)
        wait_for("room again", lambda: house.hearth("complete", "--temp", 0, "-n", 4, "Hello", check=False).returncode == 0)


def a_users_limits_are_told_with_the_numbers():
    """One runs, one waits, the third is refused with place and time; a deadline ends who waits too long; then there is room."""
    base = tempfile.mkdtemp(prefix="hearth-conf-")
    conf = os.path.join(base, "hearth.conf")
    with open(conf, "w") as f:
        f.write("[hearth]\nsequences = 1\n[user %d]\nwaiting_max = 1\ntokens_max = 4000\n" % os.getuid())
    try:
        with House("--config", conf) as house:
            long = ("complete", "--detach", "--temp", 0, "-n", 1500, "--ignore-eos")
            runs = house.hearth(*long, "Once").stdout.decode().strip()
            state = lambda i: [r["state"] for r in house.status()["requests"] if r["id"] == i]
            wait_for("the first to run", lambda: state(runs) in (["prefill"], ["decode"]))
            waits = house.popen("complete", "--temp", 0, "-n", 1500, "--flow", "other", "--priority", "normal",
                                "--deadline", 3600, "Twice")
            wait_for("the second to wait", lambda: len(house.status()["requests"]) == 2)
            refused = house.hearth("complete", "-n", 4, "Hello", check=False)
            if len(house.status()["requests"]) == 2:  # on a quick machine the first may have ended meanwhile
                assert refused.returncode == 6, refused
                assert "the limit is 1; 1 requests are before this one, try again in" in one_line(refused.stderr)
            house.hearth("cancel", runs, check=False)
            waits.communicate(timeout=60)
            assert waits.returncode == 0
            late = house.hearth("complete", "-n", 1900, "--ignore-eos", "--deadline", 0.05, "Hello", check=False)
            assert late.returncode == 6 and b"deadline" in late.stderr, late
            never = house.hearth("complete", "-n", 1900, "--priority", "urgent", "Hello", check=False)
            assert never.returncode == 2, never
            assert house.hearth("complete", "-n", 4, "Hello").stdout
    finally:
        shutil.rmtree(base)


main(a_users_limits_are_told_with_the_numbers, a_model_beyond_the_budget_is_exit_5_with_the_numbers, a_full_tmpfs_is_an_error_and_not_a_death,
     a_journal_without_room_is_busy_and_recovers)
