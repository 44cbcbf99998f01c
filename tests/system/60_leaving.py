"""Clients that leave: a killed one frees its slot, Ctrl-C ends with what came, a detached one is picked up again."""
import json
import os
import signal
import subprocess

from house import House, lines, main, partial_of, wait_for

LONG_STORY = ("complete", "--temp", 0, "-n", 1900, "--ignore-eos", "Once upon a time")


def requests(house):
    return house.status()["requests"]


def start_streaming(house, *more):
    process = house.popen(*LONG_STORY, *more)
    assert process.stdout.read(1)
    return process


def a_killed_client_frees_its_slot(house):
    process = start_streaming(house)
    assert len(requests(house)) == 1
    process.kill()
    process.communicate()
    wait_for("its request to end", lambda: not requests(house), 20)


def an_interrupt_keeps_what_came(house):
    process = start_streaming(house)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, (process.returncode, err)
    assert out
    wait_for("its request to end", lambda: not requests(house), 20)


def cancel_by_id(house):
    process = start_streaming(house, "--json")
    first = requests(house)[0]
    house.hearth("cancel", first["id"][:8])
    out, err = process.communicate(timeout=30)
    done = json.loads(out.splitlines()[-1])
    assert done["finish_reason"] == "cancelled", done
    assert house.hearth("cancel", "ffffffff", check=False).returncode == 4


def a_detached_request_is_picked_up(house):
    wanted = lines(house.hearth("ask", "--temp", 0, "-n", 40, "--json", "Hello").stdout)
    ident = house.hearth("ask", "--temp", 0, "-n", 40, "--detach", "Hello").stdout.decode().strip()
    assert len(ident) == 32, ident
    got = lines(house.hearth("attach", "--json", ident).stdout)
    assert [t["id"] for t in got[:-1]] == [t["id"] for t in wanted[:-1]]


def picked_up_in_the_middle(house):
    wanted = lines(house.hearth("ask", "--temp", 0, "-n", 40, "--json", "Hello").stdout)
    ident = house.hearth("ask", "--temp", 0, "-n", 40, "--detach", "Hello").stdout.decode().strip()
    got = lines(house.hearth("attach", "--json", "--from", 3, ident[:12]).stdout)
    assert [t["seq"] for t in got[:-1]] == [t["seq"] for t in wanted[3:-1]]


def a_closed_pipe_ends_the_request(house):
    process = subprocess.Popen(house.argv(*LONG_STORY), env=house.env, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.read(1)
    process.stdout.close()
    process.wait(30)
    wait_for("its request to end", lambda: not requests(house), 20)


with House() as one:
    main(*[partial_of(f, one) for f in (
        a_killed_client_frees_its_slot, an_interrupt_keeps_what_came, cancel_by_id, a_detached_request_is_picked_up,
        picked_up_in_the_middle, a_closed_pipe_ends_the_request)])
