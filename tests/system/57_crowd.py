"""Many clients at once: most are only connected, some stream, a few ask and never read. Memory, descriptors and threads stay what they
were, every stream is right, and who does not read costs the others nothing. HEARTH_LONG=1 python3 57_crowd.py [SECONDS]: a thousand
clients, 64 streams, ten minutes."""
import json
import os
import sys
import time

from house import LONG, House, main, wait_for

SECONDS = int(sys.argv[1]) if len(sys.argv) > 1 else 600 if LONG else 6
IDLE, STREAMS, STALLED = (920, 64, 16) if LONG else (180, 16, 4)


def of(pid):
    with open("/proc/%d/status" % pid) as f:
        status = dict(line.split(":", 1) for line in f)
    return {"rss_kib": int(status["VmRSS"].split()[0]), "threads": int(status["Threads"]),
            "fds": len(os.listdir("/proc/%d/fd" % pid))}


def sample(house):
    return {role: of(pid) for role in ("keeper", "broker", "worker") for pid in house.pids(role)}


def crowd(house, seconds, *more):
    """Starts a crowd; the process and its samples, one early, one late."""
    process = house.popen("chaos", "--reference", "--kills", 0, "--seconds", seconds, "--clients", STREAMS, "--idle", IDLE,
                          *more)
    # The crowd is complete when as many descriptors are open as will be; then time passes.
    wanted = IDLE + STREAMS
    broker = house.pids("broker")[0]
    wait_for("the crowd", lambda: len(os.listdir("/proc/%d/fd" % broker)) > wanted or process.poll() is not None)
    time.sleep(seconds * 0.2)
    early = sample(house)
    time.sleep(seconds * 0.5)
    late = sample(house)
    out, err = process.communicate(timeout=600 + seconds)
    assert process.returncode == 0, (out, err, house.log()[-3000:])
    return json.loads(out), early, late


def nobody_feels_the_crowd():
    with House("--device", "reference:%d" % (60000 if LONG else 20000)) as house:  # rows a second, prompts too
        quiet, _, _ = crowd(house, max(2, min(60, SECONDS // 3)))
        busy, early, late = crowd(house, SECONDS, "--stalled", STALLED)
        for summary in quiet, busy:
            assert summary["lost"] == summary["doubled"] == summary["changed"] == 0 and summary["tokens"] > 0, summary
        for role in early:
            assert late[role]["threads"] == early[role]["threads"], (role, early, late)
            assert abs(late[role]["fds"] - early[role]["fds"]) <= 8, (role, early, late)
            assert late[role]["rss_kib"] - early[role]["rss_kib"] < 16 * 1024, (role, early, late)
        wait_for("an empty journal", lambda: not house.status()["requests"])
        print("info %d clients, %d streams, %d that do not read, %d s: %.0f tokens/s; gap p99 %.2f ms, without those %.2f ms; "
              "early %s late %s" % (IDLE + STREAMS + STALLED, STREAMS, STALLED, SECONDS,
                                    busy["tokens"] / busy["seconds"], busy["gap_ms"]["p99"], quiet["gap_ms"]["p99"],
                                    json.dumps(early), json.dumps(late)))


main(nobody_feels_the_crowd)
