"""Bad input of every kind: one clear line, the right code, and hearth lives on."""
import os
import random
import socket
import struct

from house import House, main, one_line, partial_of, wait_for


def refused(house, code, *args, input=b""):
    done = house.hearth(*args, check=False, input=input)
    assert done.returncode == code, (args, done)
    return one_line(done.stderr)


def numbers_beyond_the_context(house):
    text = refused(house, 5, "complete", "-n", 100000, "Hello")
    assert "100000" in text and "2048" in text, text
    text = refused(house, 5, "complete", "-n", 4, input=b"word " * 5000)
    assert "2048" in text, text


def options_out_of_range(house):
    for args in (["--temp", "-1"], ["--temp", "hot"], ["--top-p", "1.5"], ["--min-p", "-0.1"], ["--top-k", "-2"],
                 ["--logit-bias", "x=1"], ["--logit-bias", "5"], ["-n", "-3"], ["--logprobs", "999"]):
        assert "hearth complete" in refused(house, 2, "complete", *args, "Hello")
    refused(house, 2, "complete")
    refused(house, 2, "ask", "--color", "sometimes", "Hello")
    refused(house, 2, "nonsense")
    assert "999999" in refused(house, 1, "complete", "--logit-bias", "999999=1", "Hello")


def bytes_that_are_no_text(house):
    for data in (b"\xff\xfe\x00\x01", bytes(range(256)), b"\xf0\x9f\x98", b"a\x00b"):
        assert house.hearth("complete", "--temp", 0, "-n", 2, input=data).returncode == 0
        assert house.hearth("ask", "--temp", 0, "-n", 2, input=data).returncode == 0


def user_text_is_never_a_special_token(house):
    import json
    plain = json.loads(house.hearth("tokenize", input=b"<|im_end|>").stdout)
    special = json.loads(house.hearth("tokenize", "--parse-special", input=b"<|im_end|>").stdout)
    assert len(plain) > len(special), (plain, special)


def frames_of_nonsense(house):
    """ZMTP by hand: a correct greeting and handshake, then rubbish; and rubbish from the first byte."""
    chance = random.Random(3)
    for attempt in range(30):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.settimeout(2)
        s.connect(os.path.join(house.run, "broker"))
        try:
            if attempt % 3 == 0:
                s.sendall(bytes(chance.randrange(256) for _ in range(200)))
            else:
                s.sendall(b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32)
                ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
                s.sendall(b"\x04" + bytes([len(ready)]) + ready)
                for _ in range(20):
                    body = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 200)))
                    s.sendall(bytes([chance.randrange(2), len(body)]) + body)
        except OSError:
            pass
        s.close()
    a = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for size in (1, 100, 5000):
        a = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        a.settimeout(2)
        a.connect(os.path.join(house.run, "attach"))
        try:
            a.send(bytes(chance.randrange(256) for _ in range(size)))
        except OSError:
            pass
        a.close()
    before = house.pids("broker")
    assert house.ids("--temp", 0, "-n", 3, "Hello")
    assert house.pids("broker") == before and house.status()["processes"][1]["restarts"] == 0


def many_silent_connections(house):
    held = []
    for _ in range(300):
        for kind, name in ((socket.SOCK_STREAM, "broker"), (socket.SOCK_SEQPACKET, "attach")):
            s = socket.socket(socket.AF_UNIX, kind)
            s.settimeout(2)
            try:
                s.connect(os.path.join(house.run, name))
                held.append(s)
            except OSError:
                pass
    assert house.ids("--temp", 0, "-n", 3, "Hello")
    for s in held:
        s.close()


with House() as one:
    main(*[partial_of(f, one) for f in (
        numbers_beyond_the_context, options_out_of_range, bytes_that_are_no_text, user_text_is_never_a_special_token,
        frames_of_nonsense, many_silent_connections)])
