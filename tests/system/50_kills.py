"""kill -9 of workers, brokers and loaders under streaming clients: no token lost, doubled or changed, nobody blamed.

The campaign: HEARTH_LONG=1 python3 50_kills.py [KILLS] [SEED]; in CI a short one with a fixed seed."""
import os
import random
import sys
import time

from house import LONG, House, main, wait_for
from streams import Streams

KILLS = int(sys.argv[1]) if len(sys.argv) > 1 else 200 if LONG else 15
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
STREAMS = 8
ROLES = ["worker", "worker", "broker", "loader"]


# A part of the jobs asks for samplers whose state is of the tokens so far; "the" is in every story.
SAMPLERS = [(), (), (), ("--mirostat", 2, "--mirostat-tau", 3), ("--mirostat", 1, "--mirostat-tau", 4),
            ("--adaptive-target", 0.3), ("--adaptive-target", 0.2, "--adaptive-decay", 0.99, "--banned-string", "the"),
            ("--banned-string", "the", "--banned-string", " was a"),
            ("--dry-multiplier", 0.8, "--xtc-probability", 0.5, "--dynatemp-range", 0.4, "--top-n-sigma", 2)]


def job(i):
    return ("complete", "--ids", "--temp", 0.8, "--seed", i, "-n", 60 + 7 * (i % 5), *SAMPLERS[i % len(SAMPLERS)],
            "Story %d: once upon a time" % (i % 6))


def nothing_is_lost():
    chance = random.Random(SEED)
    with House() as house:
        wanted = {i: house.hearth(*job(i)).stdout for i in range(30)}
        killed = 0
        until = time.monotonic() + (3600 if KILLS > 50 else 200)
        with Streams(house, job, wanted, STREAMS, SEED) as streams:
            while killed < KILLS and not streams.wrong and time.monotonic() < until:
                time.sleep(chance.uniform(0.0, 0.5))
                role = chance.choice(ROLES)
                probe = house.hearth("status", "--json", check=False)
                if probe.returncode == 0 and house.kill(role):
                    killed += 1
        assert killed == KILLS, killed
        assert "poison" not in house.log()
        wait_for("readiness after it all", lambda: house.status()["ready"])
        assert house.ids(*job(3)[2:]) == [int(x) for x in wanted[3].split()]
    print("info %d kills, seed %d, %d requests finished, none different" % (killed, SEED, len(streams.finished)))


main(nothing_is_lost)
