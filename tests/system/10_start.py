"""hearth starts, says so, shows its processes, refuses a second one, and stops without a trace."""
import os
import signal
import subprocess

from house import BIN, House, main, one_line, wait_for


def it_starts_and_stops():
    with House() as house:
        status = house.status()
        assert status["ready"] is True, status
        roles = {p["role"] for p in status["processes"]}
        assert {"keeper", "broker", "worker"} <= roles, roles
        for process in status["processes"]:
            os.kill(process["pid"], 0)
        wanted = house.options[house.options.index("--device") + 1] if "--device" in house.options else "cpu"
        assert status["device"]["name"] == wanted, status["device"]
        assert "hearth: ready" in house.log()
        pids = [p["pid"] for p in status["processes"]]
        assert house.stop() == 0
        for pid in pids:
            wait_for("process %d to be gone" % pid, lambda: not os.path.exists("/proc/%d" % pid))
        assert not os.path.exists(os.path.join(house.run, "broker"))
        assert not os.path.exists(os.path.join(house.run, "attach"))


def a_second_one_is_refused():
    with House() as house:
        second = subprocess.run(house.argv("serve"), env=house.env, capture_output=True, timeout=30)
        assert second.returncode == 6, (second.returncode, second.stderr)
        assert house.status()["ready"]


def nobody_there_is_exit_3_at_once():
    house = House(start=False)
    asked = subprocess.run(house.argv("ask", "hello"), env=house.env, stdin=subprocess.DEVNULL, capture_output=True,
                           timeout=5)
    assert asked.returncode == 3, asked
    assert "hearth serve" in one_line(asked.stderr)


def a_wrong_option_is_exit_2():
    house = House(start=False)
    for wrong in (["--nonsense"], ["--threads", "many"], ["--device", "abacus"], ["--config", "/nonexistent/x.conf"]):
        done = subprocess.run(house.argv("serve", *wrong), env=house.env, stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=30)
        assert done.returncode in (1, 2), (wrong, done)
        assert wrong[-1] in done.stderr.decode(), (wrong, done.stderr)


def hangup_reads_the_catalog_again():
    import shutil
    import tempfile
    from house import FIXTURES
    with tempfile.TemporaryDirectory() as models:
        shutil.copy(os.path.join(FIXTURES, "hearth-tiny.gguf"), os.path.join(models, "first.gguf"))
        with House(models=models) as house:
            os.link(os.path.join(models, "first.gguf"), os.path.join(models, "second.gguf"))
            house.process.send_signal(signal.SIGHUP)
            wait_for("the new model to be listed",
                     lambda: b"second" in house.hearth("models").stdout)


assert os.path.exists(os.path.join(BIN, "hearth")), BIN
main(it_starts_and_stops, a_second_one_is_refused, nobody_there_is_exit_3_at_once, a_wrong_option_is_exit_2,
     hangup_reads_the_catalog_again)
