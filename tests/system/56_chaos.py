"""hearth chaos, as shipped: it hurts every role, it counts, and it finds nothing lost, doubled or changed; and it does find what is
wrong. HEARTH_LONG=1 python3 56_chaos.py [KILLS] [SEED] for a campaign on the reference device."""
import json
import os
import shutil
import sys
import tempfile

from house import LONG, House, main, wait_for

KILLS = int(sys.argv[1]) if len(sys.argv) > 1 else 2000 if LONG else 220
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 2
SECONDS = 3600 if LONG or len(sys.argv) > 1 else 100  # of one campaign at most
ARCHS = ["llama", "qwen3", "gemma3"]


def summary_of(done):
    summary = json.loads(done.stdout)
    hurt = sum(role[act] for role in summary["roles"].values() for act in ("kills", "stops", "stalls"))
    assert hurt == sum(summary["phases"].values()), summary
    return summary


def nothing_wrong(house, done, kills):
    summary = summary_of(done)
    # A machine that is very busy gets as far as it gets.
    assert sum(summary["phases"].values()) + summary["gone"] >= kills or summary["seconds"] > SECONDS, summary
    assert summary["requests"] >= 4 and summary["lost"] == summary["doubled"] == summary["changed"] == 0, summary
    # Ends that were acknowledged leave their slots, however fast that was; clients that died have no claim.
    wait_for("empty slots", lambda: not house.status()["requests"])
    return summary


def a_real_worker_tells_the_same():
    with House() as house:
        nothing_wrong(house, house.hearth("chaos", "--kills", 8, "--clients", 4, "--seed", SEED), 8)


def what_is_no_chain_is_found():
    with House() as house:
        done = house.hearth("chaos", "--reference", "--kills", 0, "--seconds", 1, "--clients", 2, check=False)
        summary = summary_of(done)
        assert done.returncode == 1 and summary["changed"] > 0 and summary["first_error"], summary


def every_role_falls():
    with House("--device", "reference:20000") as house:
        done = house.hearth("chaos", "--reference", "--kills", KILLS, "--seconds", SECONDS, "--clients", 12, "--acts", "kill,stop", "--pause", 80,
                            "--seed", SEED, timeout=7200)
        summary = nothing_wrong(house, done, KILLS)
        assert all(summary["roles"][role]["kills"] > 0 for role in ("worker", "broker", "text", "client")), summary
        assert all(summary["phases"][phase] > 0 for phase in ("any", "again", "prefill")), summary
        print("info", done.stdout.decode().strip())


def loaders_fall_while_models_swap():
    directory = tempfile.mkdtemp(prefix="hearth-models-")
    try:
        for arch in ARCHS:
            House(start=False).hearth("synth", "--arch", arch, "--preset", "tiny", "--type", "Q8_0", "-o",
                                      os.path.join(directory, arch + ".gguf"))
        with House("--device", "reference:20000", "--ram-budget", "9M", "--min-residency", "0", "--swap-wait-max", "1",
                   models=directory) as house:
            done = house.hearth("chaos", "--reference", "-m", ",".join(ARCHS), "--kills", KILLS * 80 // 220, "--seconds", SECONDS,
                                "--clients", 12, "--pause", 120, "--seed", SEED, timeout=7200)
            summary = nothing_wrong(house, done, KILLS * 80 // 220)
            assert summary["roles"]["loader"]["kills"] > 0 and summary["phases"]["load"] > 0, summary
            print("info", done.stdout.decode().strip())
    finally:
        shutil.rmtree(directory)


main(a_real_worker_tells_the_same, what_is_no_chain_is_found, every_role_falls, loaders_fall_while_models_swap)
