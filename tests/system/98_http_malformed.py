"""More than 500 requests that are wrong in one way each (or at the edge of being right): one clean answer to each, and a stream
beside them that does not notice. HEARTH_LONG: also every cut and a thousand flipped bytes."""
import json
import os
import random
import socket
import threading

from house import LONG as AT_LENGTH, House, main, partial_of
from web import alive, call, port_of, post, stream

GOOD = {"model": "hearth-tiny", "prompt": "a", "max_tokens": 1}
EDGES = ["0", "-1", "1", "2", "0.5", "1.5", "-0.0", "1e-400", "1e308", "-1e308", "1e999", "-1e999", "2147483647", "2147483648", "-2147483649",
         "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616", "NaN", "Infinity", "-Infinity",
         "\"1\"", "\"\"", "true", "[]", "[1]", "{}", "null", "01", "+1", ".5", "1.", "0x10"]
NUMBERS = ["max_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p", "presence_penalty", "frequency_penalty", "repeat_penalty",
           "repeat_last_n", "seed", "n", "dynatemp_range", "dynatemp_exponent", "top_n_sigma", "xtc_probability", "xtc_threshold",
           "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "mirostat", "mirostat_tau", "mirostat_eta",
           "adaptive_target", "adaptive_decay"]


def raw(body, *headers, path="/v1/completions", method="POST", version="HTTP/1.1", host="Host: localhost"):
    lines = ["%s %s %s" % (method, path, version)] + ([host] if host else []) + list(headers)
    if not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
        lines.append("Content-Length: %d" % len(body))
    return "\r\n".join(lines).encode("latin-1") + b"\r\nConnection: close\r\n\r\n" + body


def talk(port, data, patience=30):
    """All that comes back until the line ends; the line is closed on our side when the server waits for more."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as s:
        answer = b""
        try:
            s.sendall(data)
        except OSError:
            pass  # it has heard enough; what it said is there
        try:
            while True:
                more = s.recv(65536)
                if not more:
                    break
                answer += more
        except OSError:
            pass
        return answer


def one_answer(answer, name):
    """(status, body): exactly one answer of HTTP, whole."""
    assert answer.startswith(b"HTTP/1."), (name, answer[:200])
    head, _, body = answer.partition(b"\r\n\r\n")
    if body.startswith(head) and b"<html>" in body:  # libmicrohttpd 0.9.75 says the head of its own answer to a bad length twice
        body = body[len(head) + 4:]
    status = int(head.split()[1])
    lengths = [int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")]
    assert status // 100 == 1 or not lengths or len(body) == lengths[0], (name, status, lengths, body[:200])
    if b"application/json" in head and body:
        value = json.loads(body)
        if status >= 400:
            error = value["error"]
            assert error["message"] and error["type"] and set(error) == {"message", "type", "param", "code"}, (name, error)
    return status, body


def numbers_at_their_edges(house):
    for field in NUMBERS:

        for edge in EDGES:
            body = json.dumps(GOOD)[:-1] + ", \"%s\": %s}" % (field, edge)
            status, _, answer = call(house, "POST", "/v1/completions", body)
            if status != 200:
                said = answer["error"]
                assert status == 400 and (said["param"] in (field, None) or (field, said["code"]) == ("n", None)), (field, edge, status, answer)
                assert said["param"] == field or "JSON" in said["message"] or field in said["message"] or "context" in said["message"], (
                    field, edge, said)
            else:
                assert edge not in ("NaN", "Infinity", "-Infinity", "\"1\"", "{}", "true", "01", "+1", ".5", "0x10"), (field, edge)


def fields_of_the_wrong_kind(house):
    wrong = ["5", "-1", "true", "\"x\"", "[]", "{}", "[null]", "[{}]", "{\"a\": {}}", "[[[[]]]]", "\"\\u0000\"", "\"\\ud800\""]
    for path, base, fields in (
            ("/v1/completions", GOOD, ["model", "prompt", "stop", "logit_bias", "stream_options", "stream", "logprobs", "samplers", "banned_tokens",
                                       "banned_strings", "suffix", "echo", "user", "ignore_eos"]),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
             ["messages", "tools", "tool_choice", "response_format", "reasoning_effort", "chat_template_kwargs", "modalities", "top_logprobs"]),
            ("/v1/embeddings", {"input": "a"}, ["input", "encoding_format", "dimensions", "pooling"]),
            ("/tokenize", {"content": "a"}, ["content", "add_special", "model"]), ("/detokenize", {"tokens": [3]}, ["tokens"]),
            ("/apply-template", {"messages": [{"role": "user", "content": "a"}]}, ["messages", "tools"]),
            ("/models/load", {"model": "hearth-tiny"}, ["model"])):
        for field in fields:
            for value in wrong:
                body = json.dumps({k: v for k, v in base.items() if k != field})[:-1].rstrip("{ ")
                body = "{%s%s\"%s\": %s}" % (body.lstrip("{"), ", " if len(base) > 1 or field not in base else "", field, value)
                status, _, answer = call(house, "POST", path, body)
                if status == 200 and isinstance(answer, bytes):
                    continue  # a stream
                assert status in (200, 400, 404, 501), (path, field, value, status, answer)
                assert status == 200 or answer["error"]["message"], (path, field, value, answer)


def bodies_that_are_no_request(house):
    deep = b'{"prompt":' + b"[" * 100000 + b"]" * 100000 + b"}"
    bodies = [b"", b"{", b"}", b"[]", b"null", b"1", b'"x"', b"{}", b"{}{}", b"{} x", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{'prompt':'a'}",
              b'{"prompt":"\xc3"}', b'{"prompt":"\xc0\x80"}', b'{"prompt":"\xed\xa0\x80"}', b'{"prompt":"a",}', b'{"prompt":"a" "b":1}',
              b'{prompt:"a"}', b"// x\n{}", b"/* x */{}", b'{"prompt":"\\x"}', b'{"prompt":"\\u12"}', b'{"":""}',
              b'{"prompt":"a"' * 2000, deep, b"[" * 100000, b'{"a":' * 100000, b'{"prompt":"a","max_tokens":' + b"9" * 5000 + b"}",
              b" " * 100000, b"\0" * 1000, b'{"prompt":"a"}\0', os.urandom(5000),
              b'{"' + b"k" * 100000 + b'":1}', b"{" + b",".join(b'"k%d":1' % i for i in range(20000)) + b"}", b"data: {}", b"--x\r\n", b"a=b&c=d"]
    wrong = []
    for body in bodies:
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"):
            status, _ = one_answer(talk(int(port_of(house)), raw(body, path=path)), (path, body[:40]))
            if status not in (400, 413):
                wrong.append((path, body[:60], status))
    assert not wrong, wrong
    fine = [b'{"prompt":"a","max_tokens":1,"temperature":0.' + b"1" * 50000 + b"}", b'{"prompt":"a\nb","max_tokens":1}', b' {"prompt":"a","max_tokens":1} ', b'{"prompt":"\\ud800","max_tokens":1}', b'{"prompt":"a","prompt":"b","max_tokens":1}',
            b'{"prompt":"\\u0000","max_tokens":1}', b'{"prompt":"","max_tokens":1}']
    for body in fine:
        assert one_answer(talk(int(port_of(house)), raw(body)), body)[0] in (200, 400), body


def requests_that_are_no_http(house):
    port, body = int(port_of(house)), json.dumps(GOOD).encode()
    n = len(body)
    chunked = b"".join(b"1\r\n%c\r\n" % c for c in body) + b"0\r\n\r\n"
    te = "Transfer-Encoding: chunked"
    cases = {  # name: (bytes, statuses)
        "length and chunks": (raw(chunked, te, "Content-Length: %d" % n), {400}),
        "two lengths": (raw(body, "Content-Length: %d" % n, "Content-Length: %d" % (n + 1)), {400}),
        "the same length twice": (raw(body, "Content-Length: %d" % n, "Content-Length: %d" % n), {200, 400}),
        "a list of lengths": (raw(body, "Content-Length: %d, %d" % (n, n)), {400}),
        "negative length": (raw(body, "Content-Length: -1"), {400}),
        "length with a sign": (raw(body, "Content-Length: +%d" % n), {400}),
        "hex length": (raw(body, "Content-Length: 0x10"), {400}),
        "length with blanks": (raw(body, "Content-Length: 1 0"), {400}),
        "empty length": (raw(body, "Content-Length:"), {400}),
        "huge length": (raw(b"", "Content-Length: 99999999999999999999999"), {400, 413}),
        "large length": (raw(b"", "Content-Length: 9999999999"), {413}),
        "unknown coding": (raw(body, "Transfer-Encoding: gzip"), {400, 501}),
        "two codings": (raw(chunked, "Transfer-Encoding: chunked, chunked"), {400, 501}),
        "odd coding": (raw(chunked, "Transfer-Encoding: xchunked"), {400, 501}),
        "bad chunk": (raw(b"zz\r\n", te), {400}),
        "negative chunk": (raw(b"-1\r\nx\r\n0\r\n\r\n", te), {400}),
        "huge chunk": (raw(b"fffffffffffffffffffffff\r\n", te), {400, 413}),
        "chunk without its end": (raw(b"1\r\nabc\r\n0\r\n\r\n", te), {400}),
        "chunk extensions": (raw(b"%x;a=b\r\n%s\r\n0\r\n\r\n" % (n, body), te), {200}),
        "small chunks": (raw(chunked, te), {200}),
        "folded header": (raw(body, "X-A: b\r\n  c"), {200, 400}),
        "header without a colon": (raw(body, "X-A"), {200, 400}),
        "header that is a colon": (raw(body, ": x"), {200, 400, 411}),
        "blank before the colon": (raw(body, "X-A : b"), {200, 400}),
        "NUL in a header": (raw(body, "X-A: a\0b"), {200, 400}),
        "bare line feeds": (raw(body).replace(b"\r\n", b"\n"), {200, 400}),
        "no host": (raw(body, host=None), {400, 403}),
        "two hosts": (raw(body, "Host: evil.example"), {400, 403, 200}),
        "a foreign host": (raw(body, host="Host: evil.example"), {403}),
        "a host that begins like ours": (raw(body, host="Host: localhost.evil.example"), {403}),
        "a foreign origin": (raw(body, "Origin: http://evil.example"), {403}),
        "no origin": (raw(body, "Origin: null"), {403}),
        "an origin that begins like ours": (raw(body, "Origin: http://localhost.evil.example"), {403}),
        "no version": (b"GET /\r\n\r\n", {200, 400, 403, 505}),
        "old version": (raw(body, version="HTTP/1.0"), {200, 400}),
        "new version": (raw(body, version="HTTP/2.0"), {400, 505}),
        "odd version": (raw(body, version="HTTX/1.1"), {400, 505}),
        "no method": (b" / HTTP/1.1\r\nHost: localhost\r\n\r\n", {None, 400}),  # None: the line closes
        "odd method": (raw(body, method="BREW"), {400, 405, 501}),
        "long method": (raw(b"", method="A" * 9000), {400, 405, 414, 431, 501}),
        "CONNECT": (raw(b"", method="CONNECT", path="evil.example:80"), {400, 404, 405, 501}),
        "TRACE": (raw(b"", method="TRACE"), {400, 405, 501}),
        "PUT": (raw(body, method="PUT"), {405}),
        "no path": (raw(b"", path="", method="GET"), {400, 404}),
        "a path with NUL": (raw(b"", path="/v1/models/%00", method="GET"), {200, 400, 404}),  # it ends there
        "a path with dots": (raw(b"", path="/v1/../../etc/passwd", method="GET"), {400, 404}),
        "a path with encoded dots": (raw(b"", path="/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", method="GET"), {400, 404}),
        "a bad escape": (raw(b"", path="/v1/models/%zz%", method="GET"), {400, 404}),
        "an address for a path": (raw(b"", path="http://evil.example/v1/models", method="GET"), {200, 400, 403, 404}),
        "a long path": (raw(b"", path="/" + "a" * 60000, method="GET"), {414, 431, 400}),
        "a long path that fits": (raw(b"", path="/v1/models/" + "a" * 5000, method="GET"), {404}),
        "a long question": (raw(b"", path="/v1/models?" + "a=b&" * 3000, method="GET"), {None, 200, 414, 431}),
        "a long header": (raw(body, "X-A: " + "b" * 40000), {431, 413, 400}),
        "many headers": (raw(body, *["X-%d: y" % i for i in range(10000)]), {431, 413, 400}),
        "a long key": (raw(body, "Authorization: Bearer " + "k" * 20000), {200, 401}),
        "a body for GET": (raw(body, path="/v1/models", method="GET"), {200, 400}),
        "expectation": (raw(body, "Expect: 200-maybe"), {200, 417}),
        "encoded body": (raw(b"\x1f\x8b\x08\0", "Content-Encoding: gzip"), {400, 415}),
        "another type": (raw(body, "Content-Type: text/plain"), {200, 400, 415}),
        "an upgrade": (raw(body, "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), {200}),
        "HTTP 2 at once": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 404, 405, 501, 505}),
        "an empty event id": (raw(body, "Last-Event-ID: "), {200, 400}),
        "a long event id": (raw(body, "Last-Event-ID: " + "0" * 32 + "-" + "9" * 60), {400}),
        "an empty key of its own": (raw(body, "Idempotency-Key: "), {200, 400}),
    }
    wrong = []
    for name, (data, statuses) in cases.items():
        answer = talk(port, data)
        status = one_answer(answer, name)[0] if answer else None
        if status not in statuses:
            wrong.append((name, status))
    assert not wrong, wrong
    for data in (b"", b"\0", b"\r\n" * 200, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"SSH-2.0-x\r\n", b"GET / HT", os.urandom(3000).replace(b"\n", b"")):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as s:
            s.sendall(data)  # and leaves
    assert alive(house)


def one_after_another_on_a_line(house):
    """Pipelined: as many answers as requests, in order; a refused body does not become a request."""
    port, body = int(port_of(house)), json.dumps(GOOD).encode()
    keep = raw(body).replace(b"Connection: close\r\n", b"")
    bad = raw(b'{"nonsense":1}').replace(b"Connection: close\r\n", b"")
    answer = talk(port, keep + bad + keep + raw(body))
    assert [int(a.split()[0]) for a in answer.split(b"HTTP/1.1")[1:]] == [200, 400, 200, 200], answer[:600]
    inner = raw(b"", path="/smuggled", method="GET")
    answer = talk(port, raw(inner, host="Host: evil.example").replace(b"Connection: close\r\n", b"", 1), patience=0.5)
    assert answer.count(b"HTTP/1.1 ") == 1 or b"smuggled" not in answer, answer


def slow_ones_wait_alone(house):
    """Two hundred that send nearly nothing; everybody else is served meanwhile."""
    port = int(port_of(house))
    slow = []
    for i in range(200):
        s = socket.create_connection(("127.0.0.1", port), timeout=60)
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"[:10 + i % 80])
        slow.append(s)
    assert post(house, "/v1/completions", GOOD)["choices"]
    for s in slow:
        s.close()


def flipped_and_cut(house):
    port, chance = int(port_of(house)), random.Random(11)
    whole = raw(json.dumps(GOOD).encode())
    cases = [whole[:i] for i in range(0, len(whole), 1 if AT_LENGTH else 7)]
    for _ in range(1000 if AT_LENGTH else 150):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        cases.append(bytes(data))
    for data in cases:
        with socket.create_connection(("127.0.0.1", port), timeout=0.05) as s:
            answer = b""
            try:
                s.sendall(data)
                while True:
                    more = s.recv(65536)
                    if not more:
                        break
                    answer += more
            except OSError:
                pass  # it may wait for the rest
            assert not answer or answer.startswith(b"HTTP/1."), (data, answer)


def undisturbed(house):
    """All of the above beside two clients that ask for the same again and again."""
    body = {"model": "hearth-tiny", "prompt": "Once upon a time", "max_tokens": 200, "temperature": 0.8, "seed": 9, "ignore_eos": True}
    wanted = post(house, "/v1/completions", body)["choices"][0]["text"]
    wrong, done = [], threading.Event()

    def client():
        while not done.is_set() and not wrong:
            try:
                text = "".join(c["choices"][0]["text"] for c in stream(house, "/v1/completions", body)[:-1])
                if text != wanted:
                    wrong.append(text)
            except Exception as e:
                wrong.append(repr(e))
            done.wait(0.5)

    threads = [threading.Thread(target=client) for _ in range(2)]
    for t in threads:
        t.start()
    try:
        main(*[partial_of(t, house) for t in (
            numbers_at_their_edges, fields_of_the_wrong_kind, bodies_that_are_no_request, requests_that_are_no_http,
            one_after_another_on_a_line, slow_ones_wait_alone, flipped_and_cut)])
    finally:
        done.set()
        for t in threads:
            t.join(100)
    assert not wrong, wrong
    assert house.pids("http") and house.status()["ready"]


with House("--http", "127.0.0.1:0") as one:
    main(partial_of(undisturbed, one))
