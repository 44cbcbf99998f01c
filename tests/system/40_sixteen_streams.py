"""Sixteen clients at once: every stream equals the same request run alone."""
import subprocess

from house import House, main, wait_for

PROMPTS = ["Once upon a time", "The cat sat", "What is hearth?", "A dog and a bird"]


def sixteen_equal_their_solo_runs():
    with House() as house:
        jobs = [("complete", "--ids", "--temp", 0.9, "--seed", i, "-n", 40 + i, PROMPTS[i % 4] + " %d" % i)
                for i in range(16)]
        alone = [house.hearth(*job).stdout for job in jobs]
        running = [house.popen(*job) for job in jobs]
        for i, process in enumerate(running):
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            assert out == alone[i], (i, out, alone[i])


def they_run_together():
    with House() as house:
        running = [house.popen("complete", "--temp", 0, "-n", 1500, "--ignore-eos", PROMPTS[i % 4]) for i in range(16)]
        try:
            wait_for("sixteen requests to decode at once", lambda: sum(
                r["state"] == "decode" for r in house.status()["requests"]) == 16)
        finally:
            for process in running:
                process.kill()
                process.communicate()


main(sixteen_equal_their_solo_runs, they_run_together)
