"""A worker that lives and does nothing: the broker's watch ends it, the stream pauses and goes on, nobody is blamed."""
import os
import signal

from house import House, main, wait_for

STORY = ("complete", "--ids", "--temp", 0, "-n", 1500, "--ignore-eos", "Once upon a time")


def a_stopped_worker_is_a_pause():
    with House() as house:
        wanted = house.hearth(*STORY).stdout
        process = house.popen(*STORY)
        first = process.stdout.read(1)
        stopped = house.kill("worker", signal.SIGSTOP)
        assert stopped
        try:
            rest, err = process.communicate(timeout=120)
        finally:
            try:
                os.kill(stopped, signal.SIGCONT)
            except ProcessLookupError:
                pass  # as it should be
        assert process.returncode == 0, err
        assert first + rest == wanted
        log = house.log()
        assert "hung" in log and "poison" not in log, log
        assert wait_for("the next worker", lambda: house.pids("worker")) != [stopped]


def an_idle_worker_may_rest():
    """It owns nothing, so it may be still; what comes then is served after the watch has looked."""
    with House() as house:
        wanted = house.ids("--temp", 0, "-n", 5, "Hello")
        assert house.ids("--temp", 0, "-n", 5, "Hello") == wanted
        assert "hung" not in house.log()


main(a_stopped_worker_is_a_pause, an_idle_worker_may_rest)
