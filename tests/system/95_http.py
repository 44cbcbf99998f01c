"""The HTTP gateway: every endpoint, whole and streamed, equal to the programs' answers; errors; clients that leave; deaths."""
import base64
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading

from house import House, main, partial_of, wait_for
from web import CHAT, LONG, alive, call, connection, events, port_of, post, stream


def chat_whole_and_streamed(house):
    wanted = house.hearth("ask", "--temp", 0, "-n", 40, "What is hearth?").stdout.decode().rstrip("\n")
    whole = post(house, "/v1/chat/completions", CHAT)
    message = whole["choices"][0]["message"]
    assert message["content"] == wanted and message["role"] == "assistant", (whole, wanted)
    assert whole["object"] == "chat.completion" and whole["choices"][0]["finish_reason"] == "stop"
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] and usage["completion_tokens"] > 5
    got = stream(house, "/v1/chat/completions", dict(CHAT, stream_options={"include_usage": True}))
    assert got[-1] is None and all(c["object"] == "chat.completion.chunk" for c in got[:-1])
    assert len({c["id"] for c in got[:-1]}) == 1
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [c["choices"][0] for c in got[:-2]]
    assert "".join(d["delta"].get("content", "") for d in deltas) == wanted
    assert [d["finish_reason"] for d in deltas] == [None] * (len(deltas) - 1) + ["stop"] and deltas[-1]["delta"] == {}
    assert got[-2]["choices"] == [] and got[-2]["usage"]["completion_tokens"] == usage["completion_tokens"]
    assert not any("usage" in c for c in stream(house, "/v1/chat/completions", CHAT)[:-1])
    parts = dict(CHAT, messages=[{"role": "developer", "content": "Be brief."},
                                 {"role": "user", "content": [{"type": "text", "text": "What is hearth?"}]}])
    assert post(house, "/chat/completions/", parts)["choices"][0]["message"]["content"]


def a_last_message_goes_on(house):
    begun = CHAT["messages"] + [{"role": "assistant", "content": "hearth is"}]
    whole, new = (post(house, "/v1/chat/completions", dict(CHAT, messages=begun, continue_final_message=goes_on)) for goes_on in (True, False))
    unsaid, turn = (post(house, "/v1/chat/completions", dict(CHAT, messages=begun, **more)) for more in ({}, {"add_generation_prompt": True}))
    assert unsaid["choices"] == whole["choices"] and turn["choices"] == new["choices"], (unsaid, turn)
    assert whole["usage"]["prompt_tokens"] < new["usage"]["prompt_tokens"] and whole["choices"][0]["message"]["content"], (whole, new)


def tools_are_parsed(house):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    for choice in ("auto", "none"):
        body = dict(CHAT, tools=[tool], tool_choice=choice)
        whole = post(house, "/v1/chat/completions", body)["choices"][0]
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in stream(house, "/v1/chat/completions", body)[:-1])
        assert whole["finish_reason"] in ("stop", "length") and whole["message"]["content"] == text, (whole, text)


def completions_whole_and_streamed(house):
    for seed in (1, 2):
        wanted = house.hearth("complete", "--temp", 0.8, "--seed", seed, "-n", 30, "Once upon a time").stdout.decode()
        body = {"prompt": "Once upon a time", "temperature": 0.8, "seed": seed, "max_tokens": 30}
        text = post(house, "/v1/completions", body)["choices"][0]["text"]
        assert text == wanted.rstrip("\n") or text == wanted, (text, wanted)
        chunks = stream(house, "/v1/completions", body)
        assert chunks[-1] is None and "".join(c["choices"][0]["text"] for c in chunks[:-1]) == text
    ids = post(house, "/tokenize", {"content": "Once upon a time"})["tokens"]
    same = {"temperature": 0, "max_tokens": 10}
    assert (post(house, "/v1/completions", dict(same, prompt=ids))["choices"][0]["text"] ==
            post(house, "/v1/completions", dict(same, prompt="Once upon a time"))["choices"][0]["text"])
    one = post(house, "/v1/completions", dict(same, prompt="Once upon a time", stop=[","]))["choices"][0]
    assert "," not in one["text"]
    short = post(house, "/v1/completions", dict(same, prompt="Once upon a time", max_tokens=3))
    assert short["choices"][0]["finish_reason"] == "length" and short["usage"]["completion_tokens"] == 3


def logprobs(house):
    one = post(house, "/v1/chat/completions", dict(CHAT, logprobs=True, top_logprobs=3))
    content = one["choices"][0]["logprobs"]["content"]
    assert content and all(len(t["top_logprobs"]) == 3 and t["logprob"] <= 0 for t in content)
    assert content[0]["logprob"] == content[0]["top_logprobs"][0]["logprob"]
    said = b"".join(bytes(t["bytes"]) for t in content)
    assert said.startswith(one["choices"][0]["message"]["content"].encode()), said
    streamed = stream(house, "/v1/chat/completions", dict(CHAT, logprobs=True, top_logprobs=3))[:-1]
    again = [t for c in streamed if c["choices"][0]["logprobs"] for t in c["choices"][0]["logprobs"]["content"]]
    assert [t["bytes"] for t in again] == [t["bytes"] for t in content]
    plain = post(house, "/v1/chat/completions", dict(CHAT, logprobs=True))["choices"][0]["logprobs"]["content"]
    assert [t["logprob"] for t in plain] == [t["logprob"] for t in content] and plain[0]["top_logprobs"] == []
    legacy = post(house, "/v1/completions", {"prompt": "Once", "max_tokens": 4, "logprobs": 2})["choices"][0]["logprobs"]
    assert [len(legacy[k]) for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [4] * 4
    first = post(house, "/tokenize", {"content": " cat"})["tokens"][0]
    banned = dict(CHAT, max_tokens=4, logit_bias={str(first): -100})
    assert post(house, "/v1/chat/completions", banned)["choices"][0]["finish_reason"]


def embeddings(house):
    floats = post(house, "/v1/embeddings", {"input": ["one cat", "two"], "model": "hearth-tiny"})
    assert [d["index"] for d in floats["data"]] == [0, 1] and floats["usage"]["prompt_tokens"] > 1
    vector = floats["data"][0]["embedding"]
    assert abs(sum(v * v for v in vector) - 1) < 1e-4
    packed = post(house, "/v1/embeddings", {"input": "one cat", "encoding_format": "base64"})["data"][0]["embedding"]
    raw = base64.b64decode(packed)
    assert all(abs(a - b) < 1e-6 for a, b in zip(struct.unpack("<%df" % (len(raw) // 4), raw), vector))
    short = post(house, "/v1/embeddings", {"input": "one cat", "dimensions": 8})["data"][0]["embedding"]
    assert len(short) == 8 and abs(sum(v * v for v in short) - 1) < 1e-4
    many = ["one cat", "two"] + ["word " * (n * 37 % 200 + 1) for n in range(24)] + ["one cat"]
    answer = post(house, "/v1/embeddings", {"input": many, "model": "hearth-tiny"})  # more than is asked for at once
    assert [d["index"] for d in answer["data"]] == list(range(27)) and answer["usage"]["prompt_tokens"] > 4096
    assert [answer["data"][i]["embedding"] for i in (0, 1, 26)] == [floats["data"][i]["embedding"] for i in (0, 1, 0)]
    assert "check_embedding_ctx_length" in post(house, "/v1/embeddings", {"input": [[1, 2]]}, 400)["error"]["message"]


def the_small_endpoints(house):
    models = call(house, "GET", "/v1/models")[2]
    assert "hearth-tiny" in [m["id"] for m in models["data"]]
    assert call(house, "GET", "/models/hearth-tiny/")[2]["id"] == "hearth-tiny"
    assert call(house, "GET", "/v1/models/some%2Fother/model")[0] == 404
    assert call(house, "GET", "/health")[2]["status"] == "ok" and call(house, "GET", "/v1/health")[0] == 200
    metrics = call(house, "GET", "/metrics")[2].decode()
    for name in ("predicted_tokens_total", "time_to_first_token_seconds_bucket", "inter_token_seconds_bucket", "requests_deferred", "hearth_memory_bytes", "hearth_up 1",
                 'hearth_process_restarts_total{role="worker"', "hearth_swaps_total 0"):
        assert name in metrics, name
    ids = post(house, "/tokenize", {"content": "hello there", "with_pieces": True})["tokens"]
    assert "".join(t["piece"] for t in ids) == "hello there"
    assert post(house, "/detokenize", {"tokens": [t["id"] for t in ids]})["content"] == "hello there"
    assert "hello" in post(house, "/apply-template", {"messages": [{"role": "user", "content": "hello"}]})["prompt"]
    assert post(house, "/models/load", {"model": "hearth-tiny"})["success"]
    status, head, body = call(house, "HEAD", "/health")
    assert status == 200 and not body and head.getheader("x-request-id")
    assert call(house, "OPTIONS", "/v1/chat/completions")[0] == 204
    assert any(p["role"] == "http" and p["state"] == "ready" for p in house.status()["processes"])


def errors_have_names(house):
    def refused(path, body, status, **members):
        error = post(house, path, body, status)["error"]
        assert error["message"] and error["type"], error
        for key, value in members.items():
            assert error[key] == value, (key, value, error)
    chat = "/v1/chat/completions"
    refused(chat, dict(CHAT, model="hearth-tony"), 404, code="model_not_found", param="model")
    refused(chat, dict(CHAT, messages=[{"role": "user", "content": "word " * 5000}]), 400, code="context_length_exceeded")
    too_long = post(house, chat, dict(CHAT, max_tokens=5000), 400)["error"]
    assert too_long["n_ctx"] == 2048 and 5 < too_long["n_prompt_tokens"] < 30, too_long
    refused(chat, dict(CHAT, nonsense=1), 400, param="nonsense")
    refused(chat, dict(CHAT, reasoning="low"), 400, param="reasoning")
    refused(chat, dict(CHAT, n=65), 400, param="n")
    refused(chat, dict(CHAT, temperature="hot"), 400, param="temperature")
    refused(chat, dict(CHAT, temperature=-1), 400, param="temperature")
    refused(chat, dict(CHAT, messages=[]), 400, param="messages")
    refused(chat, dict(CHAT, messages=[{"role": "king", "content": "x"}]), 400, param="messages[0].role")
    refused(chat, dict(CHAT, response_format={"type": "json_object"}), 400, param="response_format")
    refused(chat, dict(CHAT, tool_choice="required"), 400, param="tool_choice")
    refused(chat, dict(CHAT, stop=["a"] * 99), 400, param="stop")
    refused(chat, dict(CHAT, logit_bias={"x": 1}), 400, param="logit_bias")
    refused(chat, dict(CHAT, stream=True, nonsense=1), 400, param="nonsense")
    refused("/v1/completions", {"prompt": "x", "suffix": "y"}, 400, param="suffix")
    refused("/v1/completions", {"prompt": ["a", 1]}, 400, param="prompt")
    refused("/v1/completions", {"prompt": []}, 400, param="prompt")
    refused("/v1/completions", {"prompt": "a", "best_of": 2}, 400, param="best_of")
    refused("/v1/completions", {}, 400, param="prompt")
    refused("/v1/nothing", {}, 404)
    assert call(house, "GET", chat)[0] == 405
    assert call(house, "GET", "/v1/models", headers={"Host": "evil.example"})[0] == 403
    assert call(house, "GET", "/v1/models", headers={"Origin": "http://evil.example"})[0] == 403
    status, head, _ = call(house, "GET", "/v1/models", headers={"Origin": "http://localhost:3000"})
    assert status == 200 and head.getheader("Access-Control-Allow-Origin") == "http://localhost:3000"
    status, head, _ = call(house, "POST", chat, dict(CHAT, user="me", max_tokens=1))
    assert status == 200 and head.getheader("x-hearth-ignored") == "user"


def who_leaves_is_cancelled(house):
    def live():
        return [r for r in house.status()["requests"] if r["client"] == "http"]
    for streams in (True, False):
        c = connection(house)
        c.request("POST", "/v1/completions", json.dumps(dict(LONG, stream=streams)))
        if streams:
            c.getresponse().read(200)
        else:
            wait_for("a request", lambda: live() or c.sock is None)
        c.sock.shutdown(socket.SHUT_RDWR)
        c.close()
        wait_for("its end", lambda: not live())


def loading_is_told(house):
    unloaded = stream(house, "/models/unload", {"model": "hearth-tiny"})
    assert unloaded[-1] is None and unloaded[-2]["status"]["value"] == "unloaded", unloaded
    told = stream(house, "/models/load", {"model": "hearth-tiny"})
    assert told[-1] is None and told[-2]["model"] == "hearth-tiny" and told[-2]["status"]["value"] == "loaded", told
    assert all(e["elapsed_ms"] >= 0 and e["status"]["value"] in ("unloaded", "loading", "sleeping", "loaded") for e in told[:-1])
    assert post(house, "/models/load", {"model": "hearth-tony", "stream": True}, 404)["error"]["code"] == "model_not_found"


def health_tells_when_the_engine_is_stuck(house):
    """A worker that is stopped in the midst of another client's answer, until the broker's watch replaces it."""
    program = os.path.join(os.environ.get("HEARTH_BIN", ""), "hearth-http")
    with subprocess.Popen([program, "--listen", "127.0.0.1:0", "--stuck", "1"], env=house.env, stderr=subprocess.PIPE, text=True) as own:
        try:
            port = int(re.search(r"listens at http://127\.0\.0\.1:(\d+)", own.stderr.readline()).group(1))

            def health():
                c = http.client.HTTPConnection("127.0.0.1", port, timeout=100)
                c.request("GET", "/health")
                r = c.getresponse()
                return r.status, json.loads(r.read())

            client = house.popen("complete", "-n", 1900, "--ignore-eos", "Once")
            client.stdout.read(1)
            assert health()[0] == 200
            house.kill("worker", signal.SIGSTOP)
            wait_for("the truth", lambda: health()[0] == 503)
            wait_for("another worker", lambda: health() == (200, {"status": "ok", "last_token_age_ms": 0}))
            client.communicate(timeout=100)
        finally:
            own.terminate()


def new_key():
    """A key and its hash."""
    program = os.path.join(os.environ.get("HEARTH_BIN", ""), "hearth-http")
    out = subprocess.run([program, "--new-key"], capture_output=True, check=True).stdout.decode()
    return re.search(r"^hearth-\S+", out, re.M).group(), re.search(r"^http_key = ([0-9a-f]{64})$", out, re.M).group(1)


def configure(house, *lines):
    with open(os.path.join(house.base, "hearth.conf"), "w") as f:
        f.write("[hearth]\n" + "".join("http_key = %s\n" % line for line in lines))


def house_with(*lines):
    """Not started."""
    house = House(start=False)
    configure(house, *lines)
    house.options = ["--config", os.path.join(house.base, "hearth.conf"), "--http", "127.0.0.1:0"]
    return house


def keys_are_asked_for():
    program = os.path.join(os.environ.get("HEARTH_BIN", ""), "hearth-http")
    key, digest = new_key()
    done = subprocess.run([program, "--listen", "0.0.0.0:0"], capture_output=True, timeout=60)
    assert done.returncode == 8 and b"API key" in done.stderr, done
    house = house_with(digest)
    house.start()
    with house:
        assert call(house, "GET", "/v1/models")[0] == 401 and call(house, "GET", "/health")[0] == 200
        assert call(house, "GET", "/v1/models", headers={"Authorization": "Bearer " + key[:-1]})[0] == 401
        assert call(house, "GET", "/v1/models", headers={"Authorization": "Bearer " + key})[0] == 200
        assert call(house, "GET", "/v1/models", headers={"x-api-key": key})[0] == 200


def keys_have_quotas_of_their_own():
    (one, one_hash), (low, low_hash) = new_key(), new_key()
    house = house_with(one_hash + " name=one requests=1", low_hash + " name=low tokens_per_minute=6")

    def ask(key, body=CHAT):
        status, head, answer = call(house, "POST", "/v1/chat/completions", body, {"Authorization": "Bearer " + key})
        return status, answer.get("error", {}).get("code") if isinstance(answer, dict) else None, head.getheader("Retry-After")
    house.start()
    with house:
        c = connection(house)
        c.request("POST", "/v1/completions", json.dumps(dict(LONG, stream=True)), {"Authorization": "Bearer " + one})
        c.getresponse().read(200)
        assert ask(one) == (429, "key_requests_limit", "1")
        assert ask(low)[0] == 200  # another key's affair, and more than its minute
        status, code, after = ask(low)
        assert (status, code) == (429, "key_tokens_limit") and int(after) > 60, (status, code, after)
        embed = call(house, "POST", "/v1/embeddings", {"input": "text"}, {"Authorization": "Bearer " + low})
        assert embed[0] == 429 and embed[2]["error"]["code"] == "key_tokens_limit", embed
        assert call(house, "GET", "/v1/models", headers={"Authorization": "Bearer " + low})[0] == 200
        c.sock.shutdown(socket.SHUT_RDWR)
        c.close()
        wait_for("its place again", lambda: ask(one)[0] == 200)
        for streams in (False, True) * 3:  # one after another is one at once
            assert ask(one, dict(CHAT, stream=streams))[0] == 200


def keys_change_at_a_hangup():
    """New keys are known, old ones are not, a stream begun with an old one goes on; also after the broker died, and a mistake changes nothing."""
    (old, old_hash), (new, new_hash), (third, third_hash) = new_key(), new_key(), new_key()
    house = house_with(old_hash)

    def knows(key):
        return call(house, "GET", "/v1/models", headers={"x-api-key": key})[0] == 200

    def lenient():
        try:
            return call(house, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1, "foo": 1})[0] == 200
        except (OSError, http.client.HTTPException):
            return False  # the one before has gone

    def hang_up(*lines):
        configure(house, *lines)
        house.process.send_signal(signal.SIGHUP)
    house.start()
    with house:
        assert knows(old) and not knows(new)
        wanted = call(house, "POST", "/v1/completions", LONG, {"x-api-key": old})[2]["choices"][0]["text"]
        gateway = house.pids("http")
        c = connection(house)
        c.request("POST", "/v1/completions", json.dumps(dict(LONG, stream=True)), {"x-api-key": old})
        r = c.getresponse()
        hang_up(new_hash + " name=new requests=3")
        wait_for("the new key", lambda: knows(new))
        assert not knows(old)
        assert "".join(e["choices"][0]["text"] for e in events(r) if e) == wanted
        hang_up("nonsense")
        wait_for("the complaint", lambda: "not read again" in house.log())
        assert knows(new)
        configure(house, third_hash)
        house.kill("broker")  # the next one reads what stands there, and the gateway hears of it
        wait_for("the third key", lambda: knows(third))
        assert not knows(new) and house.pids("http") == gateway
        hang_up()
        wait_for("no key at all", lambda: knows("any"))
        with open(os.path.join(house.base, "hearth.conf"), "a") as f:
            f.write("http_fields = lenient\n")
        house.process.send_signal(signal.SIGHUP)
        wait_for("a lenient gateway", lenient)


def two_keys_are_two_flows():
    """One key asks for more than there are sequences and hands; what another key asks is not behind it. 48 of the crowd are at the broker,
    16 of them run: in one line with them 32 would end before a newcomer begins. A client that is slow itself has three tries."""
    (much, much_hash), (little, little_hash) = new_key(), new_key()
    house = house_with(much_hash + " name=much", little_hash + " name=little requests=1")
    house.start()
    with house:
        def at_work():
            """Requests that have a hand, and those that wait for one."""
            page = call(house, "GET", "/metrics", headers={"x-api-key": little})[2].decode()
            return tuple(int(re.search(r"^hearth_http_requests_%s (\d+)$" % name, page, re.M).group(1)) for name in ("processing", "deferred"))

        def ended_meanwhile():
            before = sum(at_work())
            assert before > 48 + 32, "the crowd is gone"
            for path, body in (("/v1/completions", {"prompt": "Once", "max_tokens": 20}), ("/v1/embeddings", {"input": "some text"})):
                status, _, answer = call(house, "POST", path, body, {"x-api-key": little})
                assert status == 200, answer
            return before - sum(at_work())

        crowd = []
        for i in range(230):
            crowd.append(connection(house))
            crowd[-1].request("POST", "/v1/completions", json.dumps({"prompt": [300 + i] + [310] * 400, "max_tokens": 60, "ignore_eos": True}),
                              {"x-api-key": much})
        wait_for("the crowd", lambda: at_work()[0] == 48)
        tries = []
        while not tries or tries[-1] >= 24:
            tries.append(ended_meanwhile())
            assert len(tries) <= 3, tries
        print("  ended meanwhile: %s" % tries)
        for c in crowd:
            c.close()
        wait_for("nobody", lambda: at_work() == (0, 0))


def silence_and_the_end_are_told():
    """A stream that waits begins by itself and says that it lives; one in whose midst hearth stops ends in an error, not in [DONE]; an id may
    hold a slash and a colon."""
    house = House(start=False)
    with open(os.path.join(house.base, "hearth.conf"), "w") as f:
        f.write("[alias org/tiny:Q8]\nmodel = hearth-tiny\n")
    house.options = ["--config", os.path.join(house.base, "hearth.conf"), "--http", "127.0.0.1:0"]
    house.start()
    with house:
        name = "org/tiny:Q8"
        for path in (name, "org%2Ftiny%3AQ8", name + "/"):
            assert call(house, "GET", "/v1/models/" + path)[2]["id"] == name, path
        assert post(house, "/v1/completions", {"model": name, "prompt": "a", "max_tokens": 1})["model"] == name
        c = connection(house)
        broker = house.kill("broker", signal.SIGSTOP)
        try:
            c.request("POST", "/v1/completions", json.dumps({"prompt": "Once", "max_tokens": 4, "stream": True}))
            r = c.getresponse()
            assert r.status == 200 and r.readline() == b": ping\n"
        finally:
            os.kill(broker, signal.SIGCONT)
        assert list(events(r))[-1] is None
        c.request("POST", "/v1/completions", json.dumps(dict(LONG, stream=True)))
        r = c.getresponse()
        r.read(500)
        house.process.send_signal(signal.SIGTERM)
        rest = r.read().strip().split(b"\n\n")
        error = json.loads(rest[-1].split(b"data: ")[1])["error"]
        assert error["code"] == "stopping" and b"[DONE]" not in rest, error
        house.process.wait(60)
        house.process = None


def a_taken_port_is_a_warning():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with House("--http", "127.0.0.1:%d" % taken.getsockname()[1]) as house:
            wait_for("the warning", lambda: "ddress already in use" in house.log())
            assert house.ids("-n", 2, "Once")


with House("--http", "127.0.0.1:0") as one:
    main(*[partial_of(t, one) for t in (
        chat_whole_and_streamed, a_last_message_goes_on, tools_are_parsed, completions_whole_and_streamed, logprobs, embeddings, the_small_endpoints,
        errors_have_names, who_leaves_is_cancelled, loading_is_told,
        health_tells_when_the_engine_is_stuck)])
main(keys_are_asked_for, keys_have_quotas_of_their_own, keys_change_at_a_hangup, two_keys_are_two_flows, silence_and_the_end_are_told, a_taken_port_is_a_warning)
