"""The broker dies under a running answer; the whole house dies and comes back: the journal goes on."""
import os
import signal
import time

from house import House, lines, main, wait_for

STORY = ("complete", "--temp", 0.7, "--seed", 5, "-n", 700, "--ignore-eos", "Once upon a time")


def a_running_answer_does_not_notice_the_broker():
    with House() as house:
        wanted = house.hearth(*STORY).stdout
        process = house.popen(*STORY)
        first = process.stdout.read(1)
        for _ in range(3):
            house.kill("broker")
            wait_for("a broker", lambda: house.hearth("status", check=False).returncode == 0)
        rest, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        assert first + rest == wanted
        broker = [p for p in house.status()["processes"] if p["role"] == "broker"][0]
        assert broker["restarts"] == 3, broker


def a_dead_keeper_takes_all_with_it_and_the_journal_goes_on():
    with House() as house:
        wanted = [t["id"] for t in lines(house.hearth("ask", "--temp", 0, "-n", 100, "--ignore-eos", "--json", "Hello").stdout)[:-1]]
        pids = [p["pid"] for p in house.status()["processes"]]
        ident = house.hearth("ask", "--temp", 0, "-n", 100, "--ignore-eos", "--detach", "Hello").stdout.decode().strip()
        house.process.send_signal(signal.SIGKILL)
        house.process.wait()
        for pid in pids:
            wait_for("orphan %d to be gone" % pid, lambda: not os.path.exists("/proc/%d" % pid) or
                     open("/proc/%d/stat" % pid).read().split(") ")[1][0] == "Z")
        house.start()
        got = [t["id"] for t in lines(house.hearth("attach", "--json", ident).stdout)[:-1]]
        assert got == wanted


def a_client_waits_for_a_restart_of_everything():
    with House() as house:
        wanted = house.hearth(*STORY).stdout
        process = house.popen(*STORY)
        first = process.stdout.read(1)
        house.process.send_signal(signal.SIGKILL)
        house.process.wait()
        wait_for("the last orphan to let the lock go", lambda: not os.path.exists(os.path.join(house.run, "lock")) or
                 house.hearth("status", check=False).returncode == 3)
        house.start()
        rest, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        assert first + rest == wanted


def a_clean_stop_keeps_what_is_unfinished():
    with House() as house:
        ident = house.hearth("ask", "--temp", 0, "-n", 1500, "--ignore-eos", "--detach", "Hello").stdout.decode().strip()
        assert house.stop() == 0
        house.start()
        got = lines(house.hearth("attach", "--json", ident).stdout)
        assert got[-1]["usage"]["completion_tokens"] == 1500, got[-1]


main(a_running_answer_does_not_notice_the_broker, a_dead_keeper_takes_all_with_it_and_the_journal_goes_on,
     a_client_waits_for_a_restart_of_everything, a_clean_stop_keeps_what_is_unfinished)
