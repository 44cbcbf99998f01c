"""What tests of the HTTP gateway share: requests by hand, without any client's library."""
import http.client
import json
import os
import re
import threading

import scripted
from house import House, wait_for

CHAT = {"model": "hearth-tiny", "messages": [{"role": "user", "content": "What is hearth?"}], "temperature": 0, "max_tokens": 40}
LONG = {"prompt": "Once upon a time", "max_tokens": 1500, "temperature": 0.8, "seed": 5, "ignore_eos": True}


def port_of(house):
    return wait_for("the gateway's port", lambda: re.findall(r"listens at http://127\.0\.0\.1:(\d+)", house.log()))[-1]


def connection(house):
    return http.client.HTTPConnection("127.0.0.1", int(port_of(house)), timeout=100)


def call(house, method, path, body=None, headers=None):
    """Status, headers, body (JSON where it is)."""
    c = connection(house)
    data = json.dumps(body) if isinstance(body, (dict, list)) else body
    c.request(method, path, data, headers or {})
    r = c.getresponse()
    text = r.read()
    c.close()
    kind = r.getheader("Content-Type", "")
    return r.status, r, json.loads(text) if kind == "application/json" and text else text


def post(house, path, body, status=200):
    got, _, answer = call(house, "POST", path, body)
    assert got == status, (path, body, got, answer)
    return answer


def events(response):
    """The values of a stream; None is [DONE]."""
    for line in response:
        line = line.strip()
        if line.startswith(b"data: "):
            yield None if line == b"data: [DONE]" else json.loads(line[6:])
        else:
            assert not line or line.startswith((b":", b"id: ")), line


def stream(house, path, body):
    c = connection(house)
    c.request("POST", path, json.dumps(dict(body, stream=True)))
    r = c.getresponse()
    assert r.status == 200 and r.getheader("Content-Type") == "text/event-stream", (r.status, r.read())
    assert r.getheader("Cache-Control") == "no-cache"
    got = list(events(r))
    c.close()
    return got


def alive(house):
    try:
        return call(house, "GET", "/health")[0] == 200
    except OSError:
        return False


def scripted_house(scripts, fim):
    """With a gateway, and two models: hearth-tiny and `scripted`."""
    house = House("--http", "127.0.0.1:0", start=False)
    directory = os.path.join(house.base, "models")
    os.mkdir(directory)
    scripted.write(os.path.join(directory, "scripted.gguf"), scripts, fim=fim)
    house.models.append(directory)
    house.start()
    return house


def through_every_death(house, stream, n):
    """stream(i, begun) reads the i-th answer and calls begun() in its midst; then worker, broker and loader are killed. The answers."""
    got, barrier = [None] * n, threading.Barrier(n + 1)

    def work(i):
        try:
            got[i] = stream(i, lambda: barrier.wait(100))
        except Exception as e:
            got[i] = repr(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    barrier.wait(100)
    for role in ("worker", "broker", "loader"):
        house.kill(role)
    for t in threads:
        t.join(200)
    return got
