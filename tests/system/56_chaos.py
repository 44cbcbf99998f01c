"""hearth chaos, as shipped: it kills, it counts, and it finds nothing lost, doubled or changed."""
import json

from house import House, main, wait_for


def a_short_run_finds_nothing():
    with House() as house:
        done = house.hearth("chaos", "--kills", 8, "--clients", 4, "--seed", 2)
        summary = json.loads(done.stdout)
        assert summary["kills"] == 8 == sum(role["kills"] for role in summary["roles"].values()), summary
        assert summary["requests"] >= 4 and summary["lost"] == summary["doubled"] == summary["changed"] == 0, summary
        # Ends that were acknowledged leave their slots, however fast that was.
        wait_for("empty slots", lambda: not house.status()["requests"])


main(a_short_run_finds_nothing)
